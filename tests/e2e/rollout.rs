//! A push goes live, or nothing changes.

use std::time::Duration;

use serde_json::Value;

use crate::shop::{HOST, LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::load::Load;
use crate::support::site::Behaviour;

#[tokio::test]
async fn a_new_version_replaces_the_old_one_without_a_failed_request() {
    let Some(engine) = engine::or_skip("a_new_version_replaces_the_old_one").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::default()).await;
    shop.deploy_first().await;
    assert_eq!(shop.version().await, "v1");

    let load = Load::start(shop.agent.load(HOST));
    let deployment = shop.push(&Behaviour::version("v2")).await;
    assert_eq!(deployment["status"], "succeeded", "{deployment:#}");
    assert_eq!(deployment["release"], 2);
    assert_eq!(shop.version().await, "v2");
    let report = load.stop().await;
    report.assert_flawless(100);

    let app = shop.app().await;
    let instances = app["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2, "{app:#}");
    for instance in instances {
        assert_eq!((&instance["health"], &instance["duty"]), (&"ready".into(), &"serving".into()), "{app:#}");
        assert_eq!(instance["release"], 2);
    }
    let messages = shop.discord.wait_for("two messages that have ended", LIMIT, |messages| {
        messages.len() == 2 && messages.iter().all(|message| message.text().contains("is live"))
    });
    let messages = messages.await;
    assert!(messages[1].text().contains("v2 is live"), "{}", messages[1].text());
    shop.finish().await;
}

/// Everything that can be wrong with a version: the old one serves on, and the record and Discord say why.
async fn undone(name: &str, bad: Behaviour, status: &str, reason: &[&str]) {
    let Some(engine) = engine::or_skip(name).await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options { watch: "8s", ..Options::default() }).await;
    // The good version passes its watch at once when it is not watched for long: a shorter one is configured first.
    shop.deploy_first().await;
    let load = Load::start(shop.agent.load(HOST));
    let deployment = shop.push(&bad).await;
    assert_eq!(deployment["status"], status, "{deployment:#}");
    let said = deployment["reason"].as_str().unwrap_or_default();
    for part in reason {
        assert!(said.contains(part), "{part:?} is missing in the reason {said:?}");
    }
    assert_eq!(shop.version().await, "v1");
    let report = load.stop().await;
    report.assert_flawless(100);
    assert_old_release_serves(&shop.app().await);
    let text = shop.discord.wait_for("the failure", Duration::from_secs(20), |messages| {
        messages.len() == 2 && messages[1].text().contains("rolled back")
    });
    assert!(text.await[1].text().contains("v1 keeps serving"));
    shop.finish().await;
}

fn assert_old_release_serves(app: &Value) {
    assert_eq!(app["live"]["release"], 1, "{app:#}");
    let instances = app["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2, "{app:#}");
    assert!(instances.iter().all(|i| i["release"] == 1 && i["duty"] == "serving" && i["health"] == "ready"), "{app:#}");
}

#[tokio::test]
async fn a_version_that_never_gets_ready_is_undone() {
    let bad = Behaviour::version("v2").never_ready();
    undone("never_ready", bad, "rolled_back", &["not ready in time", "503"]).await;
}

#[tokio::test]
async fn a_version_that_exits_at_once_is_undone_without_waiting() {
    undone("exits_at_once", Behaviour::version("v2").exit_at_once(3), "rolled_back", &["exited with code 3"]).await;
}

#[tokio::test]
async fn a_version_that_crashes_in_the_watch_is_undone() {
    let bad = Behaviour::version("v2").crash_after_ready_ms(5000, 7).only_on("-1");
    undone("crashes_later", bad, "rolled_back", &["exited with code 7"]).await;
}
