//! A push whose commit changes nothing that is deployed: no upload, no build, no rollout.

use crate::figure::{Figure, Target};
use crate::rounds::{ROUNDS, median, show};
use crate::shop::{Shop, at, entered};
use crate::source;
use crate::support::engine::Engine;
use crate::support::repo::Repo;
use crate::support::site::Behaviour;

pub async fn run(engine: &Engine) -> Vec<Figure> {
    let repo = Repo::new();
    source::write_large(|path, content| repo.write(path, content));
    repo.push_site(&Behaviour::version("v1"));
    let shop = Shop::start(engine, repo, "instances = 1").await;
    let first = shop.deploy().await;
    let cold = at(&first["finished_at"]) - at(&first["queued_at"]);
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        shop.repo.commit(&format!("Nothing, for the {round}th time"));
        let (_, deployment) = shop.push().await;
        assert!(deployment["reason"].as_str().unwrap_or_default().starts_with("unchanged"), "{deployment:#}");
        took.push(at(&deployment["finished_at"]) - entered(&deployment, "queued"));
        eprintln!("  phases: {}", deployment["phases"]);
    }
    shop.agent.finish().await;
    show("longshore", &took);
    vec![
        Figure::new("push without a change, 5,000 files, 50 MB, from queued to ended", median(&took), "ms")
            .against("the first deployment of the same", cold)
            .target(Target::AtMost(100.0)),
    ]
}
