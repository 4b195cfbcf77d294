//! The engine ends in the middle of a deployment: what it was about is live when the engine is back, without another
//! push, and people are told of the outage once.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::private_engine::PrivateEngine;
use crate::support::site::{Behaviour, DOCKERFILE};
use crate::support::wait::eventually;

const SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGKILL];

/// An engine of the test's own, and a shop on it with `v1` live.
async fn open(test: &str, options: Options) -> Option<(PrivateEngine, Shop)> {
    engine::or_skip(test).await?;
    let private = PrivateEngine::start_or_skip(test).await?;
    let options = options.table(&format!("[runtime]\ndocker_host = \"{}\"", private.address()));
    let shop = Shop::live(&private.engine(), &Behaviour::version("v1"), options).await;
    Some((private, shop))
}

/// Pushes a version whose build takes a while.
async fn push_slow_build(shop: &Shop, version: &str) -> u64 {
    shop.repo.write_site(&Behaviour::version(version).migrate(0, 3000, "slowly"));
    shop.repo.write("Dockerfile", format!("{DOCKERFILE}RUN [\"/site\", \"migrate\"]\n"));
    shop.repo.commit("Build slowly");
    shop.deliver(&shop.repo.push("main")).await
}

/// Ends the engine once the deployment's log has said `moment`, and starts it again when the deployment has noticed.
async fn lose_engine(private: &mut PrivateEngine, shop: &Shop, id: u64, moment: &str, signal: Signal) -> Value {
    shop.says(id, moment).await;
    private.down(signal).await;
    shop.says(id, "goes on by itself when the engine answers again").await;
    private.up().await;
    shop.agent.deployment_ended(id, LIMIT).await
}

/// Waits until every notice is off the list: an agent that is killed right after it told one tells it again.
async fn all_noted_as_told(shop: &Shop) {
    eventually("every notice is noted as told", LIMIT, async || {
        let copy = shop.agent.scratch().join("copy.db");
        let journal = shop.agent.api("POST", "/api/v1/backup", None).await.expect(200);
        std::fs::write(&copy, &journal.body).expect("a file");
        let journal = rusqlite::Connection::open(&copy).expect("a journal");
        let sql = "SELECT (SELECT max(id) FROM notices) - (SELECT min(delivered) FROM notice_cursors)";
        let left: i64 = journal.query_row(sql, [], |row| row.get(0)).expect("a number");
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
}

/// What Discord was told of the engine.
fn told_of_engine(shop: &Shop) -> Vec<String> {
    let messages = shop.discord.messages();
    let texts = messages.iter().map(|message| message.text());
    texts.filter(|text| text.contains("The Docker engine at")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_build_and_for_long() {
    let Some((mut private, mut shop)) = open("in_the_build_and_for_long", Options::default()).await else { return };
    let id = push_slow_build(&shop, "v2").await;
    shop.says(id, "slowly").await;
    private.down(Signal::SIGKILL).await;
    shop.says(id, "goes on by itself when the engine answers again").await;
    assert_eq!(shop.version().await, "v1");
    let limit = Duration::from_secs(60);
    shop.discord
        .wait_for("the outage is told", limit, |all| all.iter().any(|m| m.text().contains("has not answered since")))
        .await;

    all_noted_as_told(&shop).await;

    // Also to those who ask, and not again by an agent that was restarted.
    shop.agent.kill().await;
    shop.agent.spawn();
    eventually("the app waits for the engine", LIMIT, async || {
        let app = shop.agent.try_get("/api/v1/apps/shop").await?;
        let why = app["waits"]["why"].as_str().unwrap_or_default();
        let known = why.contains("the Docker engine does not answer") && app["waits"]["since"].is_string();
        if known { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
    for arguments in [&["status"][..], &["status", "shop"]] {
        let shown = shop.agent.command(arguments).output().await.expect("it runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert_eq!(shown.matches("the Docker engine does not answer").count(), 1, "{shown}");
        assert!(shown.contains("(since ") && shown.contains(" ago)"), "{shown}");
    }
    let newer = shop.push_without_waiting(&Behaviour::version("v3")).await;
    assert_eq!(shop.deployment(newer).await["status"], "queued");
    assert_eq!(shop.version().await, "v1");

    private.up().await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert_ended(&shop.agent.deployment_ended(newer, LIMIT).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v3");
    shop.discord
        .wait_for("its end is told", limit, |all| all.iter().any(|m| m.text().contains("answers again after")))
        .await;
    let told = told_of_engine(&shop);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(shop.app().await["waits"].is_null());
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_release_command() {
    let options = Options::default().table("[apps.shop.release]\ncommand = [\"migrate\"]");
    let Some((mut private, shop)) = open("in_the_release_command", options).await else { return };
    for signal in SIGNALS {
        let slow = Behaviour::version(&format!("v2 {signal}")).migrate(0, 3000, "slowly");
        let id = shop.push_without_waiting(&slow).await;
        let ended = lose_engine(&mut private, &shop, id, "slowly", signal).await;
        // It was cut off with the engine: whether that left something half done is for a person to say.
        assert_ended(&ended, "failed", &["Docker engine went away", "not run a second time by itself"]);
        assert!(shop.app().await["held"].is_null());
        assert_eq!(shop.version().await, "v1");
    }
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_rollout_and_in_its_undoing() {
    let Some((mut private, shop)) = open("in_the_rollout_and_in_its_undoing", Options::default()).await else { return };
    for (signal, version) in SIGNALS.into_iter().zip(["v2", "v3"]) {
        let id = shop.push_without_waiting(&Behaviour::version(version).ready_after_ms(2000)).await;
        let ended = lose_engine(&mut private, &shop, id, "-2: starting", signal).await;
        assert_ended(&ended, "succeeded", &[]);
        assert_eq!(shop.version().await, version);
    }
    for signal in SIGNALS {
        let bad = Behaviour::version("bad").crash_after_ready_ms(300, 3).only_on("-2");
        let id = shop.push_without_waiting(&bad).await;
        shop.says(id, "undoing").await;
        private.down(signal).await;
        private.up().await;
        assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "rolled_back", &["exited with code 3"]);
        shop.all_ready().await;
        eventually("two instances of the good version run", LIMIT, async || {
            let app = shop.app().await;
            if app["instances"].as_array().is_some_and(|all| all.len() == 2) { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
        assert_eq!(shop.version().await, "v3");
    }
    assert!(told_of_engine(&shop).is_empty(), "an engine that is restarted is no news");
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_takes_the_engine_with_it_is_given_up_and_one_that_waits_can_be_cancelled() {
    let Some((mut private, shop)) = open("one_that_takes_the_engine_with_it", Options::default()).await else { return };
    let id = push_slow_build(&shop, "v2").await;
    for time in 1..=4 {
        let what = format!("the build runs for the {time}. time");
        eventually(&what, LIMIT, async || {
            let log = shop.log(id).await;
            if log.matches("migrating for v2 slowly").count() >= time { Ok(()) } else { Err(log) }
        })
        .await;
        private.down(Signal::SIGKILL).await;
        private.up().await;
    }
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "failed", &["the Docker engine went away", "as it had 3 times before"]);
    assert!(shop.app().await["held"].is_null());

    let waiting = push_slow_build(&shop, "v3").await;
    shop.says(waiting, "slowly").await;
    private.down(Signal::SIGKILL).await;
    shop.says(waiting, "goes on by itself when the engine answers again").await;
    shop.cancel(waiting).await;
    let ended = shop.agent.deployment_ended(waiting, LIMIT).await;
    assert_ended(&ended, "cancelled", &["cancelled by ", " while it waited for the Docker engine"]);
    private.up().await;
    assert_eq!(shop.version().await, "v1");

    // In its rollout there is something to undo first. Who wanted it is known all the same.
    let rolling = shop.push_without_waiting(&Behaviour::version("v4").never_ready()).await;
    shop.says(rolling, "web-1: starting").await;
    private.down(Signal::SIGKILL).await;
    shop.says(rolling, "goes on by itself when the engine answers again").await;
    shop.cancel(rolling).await;
    private.up().await;
    let ended = shop.agent.deployment_ended(rolling, LIMIT).await;
    assert_ended(&ended, "cancelled", &["cancelled by "]);
    assert_eq!(shop.version().await, "v1");
    shop.finish().await;
}
