//! Five instances of a static site are replaced by a push, in turn with the same by bare engine calls and by Swarm.

use std::fs;

use crate::engine_calls::Calls;
use crate::figure::{Figure, Target};
use crate::rounds::{ROUNDS, median, ms, show};
use crate::shop::{Shop, entered, epoch_ms};
use crate::support::engine::{AGENT_LABEL, Engine};
use crate::support::site::{self, Behaviour};
use crate::swarm::Swarm;

pub async fn run(engine: &Engine) -> Vec<Figure> {
    let shop = Shop::live(engine, 5).await;
    let bench = format!("bench-{}", shop.agent.id());
    let images = [image(engine, &bench, 1).await, image(engine, &bench, 2).await];
    let mut calls = Calls::new(engine, &bench).await;
    calls.replace(&images[1]).await;
    let swarm = Swarm::start(&bench, &images[1]);

    let (mut rollout, mut serving, mut bound, mut running, mut completed) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        shop.repo.write("behaviour", Behaviour::version(&format!("v{}", round + 1)).to_file());
        shop.repo.commit("A new version");
        let (sent, deployment) = shop.push().await;
        let switched = entered(&deployment, "watching");
        rollout.push(switched - entered(&deployment, "rolling_out"));
        serving.push(switched - epoch_ms(sent));

        let image = &images[round % 2];
        bound.push(ms(calls.replace(image).await));
        let update = swarm.update(image);
        running.push(update.running);
        completed.push(update.completed);
    }
    let log = shop.agent.api("GET", "/api/v1/deployments/2/log", None).await.text();
    eprintln!("  one of the rollouts:\n{}", log.lines().map(|line| format!("    {line}\n")).collect::<String>());
    drop(swarm);
    let problems = engine.remove_all(&bench).await;
    assert!(problems.is_empty(), "{problems:?}");
    shop.agent.finish().await;

    show("longshore, rollout", &rollout);
    show("longshore, from the push", &serving);
    show("engine calls", &bound);
    show("swarm, last task runs", &running);
    show("swarm, completed", &completed);
    let (rollout, serving, bound) = (median(&rollout), median(&serving), median(&bound));
    vec![
        Figure::new("rollout of 5 instances, one at a time", rollout, "ms")
            .against("the engine's bare calls", bound)
            .target(Target::RatioAtMost(1.25)),
        Figure::new("the same", rollout, "ms")
            .against("`docker service update`, monitored for 1 s", median(&completed))
            .target(Target::RatioAtMost(0.5)),
        Figure::new("the same", rollout, "ms").against("`docker service update`, last task runs", median(&running)),
        Figure::new("from the push to 5 new instances serving, build included", serving, "ms")
            .target(Target::AtMost(1.25 * bound + 1000.0)),
    ]
}

/// An image of the site; two of them differ in one layer.
async fn image(engine: &Engine, bench: &str, version: u32) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    fs::copy(site::binary(), directory.path().join("site")).expect("the site");
    fs::write(directory.path().join("Dockerfile"), site::DOCKERFILE).expect("a file");
    let behaviour = Behaviour::version(&version.to_string());
    fs::write(directory.path().join("behaviour"), behaviour.to_file()).expect("a file");
    let name = format!("{bench}:{version}");
    engine.build(directory.path(), &name, &format!("{AGENT_LABEL}={bench}")).await;
    name
}
