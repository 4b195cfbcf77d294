//! Many pushes, in and out of order: the newest commit wins, and every push has its end on record.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::shop::{LIMIT, Options, SECRET, Shop};
use crate::support::engine;
use crate::support::github::Push;
use crate::support::http::{self, Connection};
use crate::support::repo::{Pushed, Repo};
use crate::support::site::Behaviour;

fn push(shop: &Shop, version: &str) -> Pushed {
    shop.repo.write_site(&Behaviour::version(version));
    shop.repo.commit(version);
    shop.repo.push("main")
}

/// Lets a deployment run that takes its time; its number.
async fn occupy(shop: &Shop, ms: u64) -> u64 {
    let id = shop.push_without_waiting(&Behaviour::version("slow").ready_after_ms(ms)).await;
    shop.reaches(id, "rolling_out").await;
    id
}

#[tokio::test]
async fn of_twenty_pushes_only_the_newest_runs() {
    let Some(engine) = engine::or_skip("of_twenty_pushes").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let running = occupy(&shop, 9000).await;
    let mut ids = Vec::new();
    for n in 1..=20 {
        let pushed = push(&shop, &format!("push {n}"));
        ids.push(shop.deliver(&pushed).await);
    }
    assert_eq!(shop.deployment(running).await["status"], "rolling_out", "the pushes came while it ran");
    assert_eq!(shop.app().await["queued"], 1);

    let last = *ids.last().unwrap();
    let ended = shop.agent.deployment_ended(last, LIMIT).await;
    assert_eq!((&ended["status"], &ended["release"]), (&"succeeded".into(), &json!(2)), "{ended:#}");
    assert_eq!(shop.deployment(running).await["status"], "succeeded");
    assert_eq!(shop.version().await, "push 20");
    for pair in ids.windows(2) {
        let old = shop.deployment(pair[0]).await;
        assert_eq!(old["status"], "superseded", "{old:#}");
        assert_eq!(old["superseded_by"], pair[1], "{old:#}");
        assert_eq!(old["reason"], format!("replaced by #{}", pair[1]));
        assert_eq!(old["started_at"], Value::Null, "it never left the queue: {old:#}");
    }
    shop.finish().await;
}

#[tokio::test]
async fn a_late_delivery_never_replaces_a_newer_commit() {
    let Some(engine) = engine::or_skip("a_late_delivery").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let first = shop.repo.head();
    occupy(&shop, 3000).await;
    let (older, middle, newest) = (push(&shop, "older"), push(&shop, "middle"), push(&shop, "newest"));
    // The network turns them around.
    let newest_id = shop.deliver(&newest).await;
    let older_id = shop.deliver(&older).await;
    let middle_id = shop.deliver(&middle).await;
    let ended = shop.agent.deployment_ended(newest_id, LIMIT).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    for id in [older_id, middle_id] {
        let late = shop.agent.deployment_ended(id, LIMIT).await;
        assert_eq!(late["status"], "superseded", "{late:#}");
    }
    let late = shop.deployment(middle_id).await;
    assert_eq!(late["superseded_by"], newest_id, "{late:#}");
    assert_eq!(late["reason"], format!("#{newest_id} already contains its commit"));
    assert_eq!(shop.version().await, "newest");

    // Later still: the newest is live, and the older one's delivery is sent again under another id.
    let id = shop.deliver(&older).await;
    let late = shop.agent.deployment_ended(id, LIMIT).await;
    assert_eq!(late["status"], "superseded", "{late:#}");
    let reason = late["reason"].as_str().unwrap();
    assert!(reason.starts_with("v2, which is live, already contains"), "{reason}");
    assert_eq!(shop.version().await, "newest");

    // Rewound on purpose: the older commit is deployed.
    shop.repo.reset(&first);
    let back = shop.repo.force_push("main");
    let answer = Push::of("main", &back).forced().delivery().send(shop.agent.listen, "shop", SECRET).await;
    let id = answer.expect(202).json()["deployment"].as_u64().unwrap();
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_eq!((&ended["status"], &ended["commit"]), (&"succeeded".into(), &first.as_str().into()), "{ended:#}");
    assert_eq!(shop.version().await, "v1");
    shop.finish().await;
}

#[tokio::test]
async fn a_rollback_goes_before_a_push_that_waits() {
    let Some(engine) = engine::or_skip("a_rollback_goes_before").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    shop.deploy_first().await;
    shop.push(&Behaviour::version("v2")).await;
    let running = occupy(&shop, 3000).await;
    let pushed = push(&shop, "v4");
    let waiting = shop.deliver(&pushed).await;
    let id = shop.ask("POST", "/api/v1/apps/shop/rollback", json!({ "to": 1 })).await;
    let replaced = shop.deployment(waiting).await;
    assert_eq!((&replaced["status"], &replaced["superseded_by"]), (&"superseded".into(), &json!(id)), "{replaced:#}");
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_eq!((&ended["status"], &ended["release"]), (&"succeeded".into(), &json!(1)), "{ended:#}");
    assert_eq!(shop.deployment(running).await["status"], "succeeded");
    assert_eq!(shop.version().await, "v1");

    // A push after the rollback is new again.
    let pushed = push(&shop, "v5");
    let id = shop.deliver(&pushed).await;
    assert_eq!(shop.agent.deployment_ended(id, LIMIT).await["status"], "succeeded");
    assert_eq!(shop.version().await, "v5");
    shop.finish().await;
}

#[tokio::test]
async fn what_waits_is_cancelled_at_once_and_what_runs_is_undone() {
    let Some(engine) = engine::or_skip("what_waits_is_cancelled").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    shop.deploy_first().await;
    let running = occupy(&shop, 15_000).await;
    let pushed = push(&shop, "v3");
    let waiting = shop.deliver(&pushed).await;
    let cancel = async |id: u64| shop.agent.api("POST", &format!("/api/v1/deployments/{id}/cancel"), None).await;
    let now = cancel(waiting).await.expect(202).json();
    assert_eq!(now["status"], "cancelled", "{now:#}");
    // However often it is asked for.
    for _ in 0..2 {
        assert_eq!(cancel(running).await.expect(202).json()["cancel_asked"], true);
    }
    let began = Instant::now();
    let ended = shop.agent.deployment_ended(running, LIMIT).await;
    assert!(began.elapsed().as_secs() < 10, "it did not wait for the new instance");
    assert_eq!(ended["status"], "cancelled", "{ended:#}");
    assert!(ended["reason"].as_str().unwrap().starts_with("cancelled by "), "{ended:#}");
    assert_eq!(shop.version().await, "v1");
    assert_eq!(cancel(running).await.expect(200).json()["status"], "cancelled");
    let gone_well = cancel(1).await.expect(409).json();
    assert!(gone_well["detail"].as_str().unwrap().ends_with("it has ended: succeeded"), "{gone_well}");
    cancel(4711).await.expect(404);
    shop.finish().await;
}

/// Commits on top of `main` that change the site's version, made by one git process, and pushed; oldest first.
fn many_commits(repo: &Repo, count: usize) -> Vec<String> {
    let mut stream = String::new();
    for n in 1..=count {
        let behaviour = Behaviour::version(&format!("push {n}")).to_file();
        let from = if n == 1 { "from refs/heads/main^0\n" } else { "" };
        let _ = write!(
            stream,
            "commit refs/heads/main\ncommitter Ada Example <ada@example.com> {} +0000\ndata 1\nx\n{from}\
             M 100644 inline behaviour\ndata {}\n{behaviour}\n",
            1_700_000_000 + n,
            behaviour.len(),
        );
    }
    let mut import = repo.command(&repo.work(), &["fast-import", "--quiet"]);
    let mut import = import.stdin(Stdio::piped()).spawn().expect("git can be run");
    std::io::Write::write_all(&mut import.stdin.take().expect("a pipe"), stream.as_bytes()).expect("it is read");
    assert!(import.wait().expect("a child").success());
    repo.git(&["push", "--quiet", "origin", "main"]);
    let listed = repo.git(&["rev-list", "--reverse", &format!("main~{count}..main")]);
    listed.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_thousand_deliveries_at_once_are_accepted_and_a_few_run() {
    a_thousand_deliveries("in_order", 1).await;
}

#[tokio::test]
async fn a_thousand_deliveries_far_out_of_order_end_at_the_newest() {
    // A stride without a common divisor visits each once.
    a_thousand_deliveries("out_of_order", 617).await;
}

async fn a_thousand_deliveries(name: &str, stride: usize) {
    let Some(engine) = engine::or_skip(name).await else { return };
    const DELIVERIES: usize = 1000;
    const CONNECTIONS: usize = 64;
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let before = shop.repo.head();
    let commits = many_commits(&shop.repo, DELIVERIES);
    assert_eq!(commits.len(), DELIVERIES);
    let parents: Vec<String> = std::iter::once(before).chain(commits.iter().cloned()).collect();
    let mut deliveries: Vec<_> =
        parents.windows(2).map(|pair| Push::branch("main", &pair[0], &pair[1]).delivery()).collect();
    deliveries = (0..DELIVERIES).map(|n| deliveries[n * stride % DELIVERIES].clone()).collect();

    let deliveries = Arc::new(deliveries);
    let next = Arc::new(AtomicUsize::new(0));
    let agent = shop.agent.listen;
    let began = Instant::now();
    let mut senders = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (deliveries, next) = (Arc::clone(&deliveries), Arc::clone(&next));
        senders.spawn(async move {
            let mut connection = Connection::tcp(agent).await.expect("a connection");
            let mut accepted = Vec::new();
            while let Some(delivery) = deliveries.get(next.fetch_add(1, Relaxed)) {
                let headers = delivery.headers(SECRET);
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let request = http::request("POST", "agent", "/hooks/shop", &headers, delivery.body.clone());
                let sent = Instant::now();
                let answer = connection.send(request).await.expect("an answer").expect(202).json();
                accepted.push((answer["deployment"].as_u64().expect("a number"), sent.elapsed()));
            }
            accepted
        });
    }
    let accepted: Vec<_> = senders.join_all().await.into_iter().flatten().collect();
    let took = began.elapsed();
    let slowest = accepted.iter().map(|(_, took)| *took).max().unwrap();
    println!("{name}: {DELIVERIES} deliveries in {took:?}, the slowest answer after {slowest:?}");
    let ids: BTreeSet<u64> = accepted.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), DELIVERIES);
    assert!(slowest.as_secs() < 10, "GitHub gives up after 10 s");

    let mut statuses = std::collections::BTreeMap::<String, usize>::new();
    for id in ids {
        let ended = shop.agent.deployment_ended(id, LIMIT).await;
        *statuses.entry(ended["status"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    println!("{name}: {statuses:?} after {:?}", began.elapsed());
    assert_eq!(shop.version().await, format!("push {DELIVERIES}"));
    assert_eq!(shop.running_commits().await, [commits.last().unwrap().as_str()]);
    assert!(statuses["succeeded"] <= 5, "{statuses:?}");
    assert_eq!(statuses["succeeded"] + statuses["superseded"], DELIVERIES, "{statuses:?}");
    shop.finish().await;
}
