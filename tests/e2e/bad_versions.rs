//! Everything that can be wrong with a version: the old one serves on, and the record and Discord say why.

use std::time::Duration;

use serde_json::{Value, json};

use crate::shop::{HOST, LIMIT, Options, SECRET, Shop, assert_ended, seconds_in};
use crate::support::engine;
use crate::support::github;
use crate::support::site::{Behaviour, DOCKERFILE};

/// Deploys `bad` over a good version under load: nobody notices, and all is as before.
async fn undone(name: &str, options: Options, bad: Behaviour, reason: &[&str]) -> Option<(Shop, Value)> {
    let engine = engine::or_skip(name).await?;
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    let load = shop.load();
    let deployment = shop.push(&bad).await;
    assert_ended(&deployment, "rolled_back", reason);
    assert_eq!(shop.version().await, "v1");
    let report = load.stop().await;
    report.assert_flawless(50);
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["was rolled back", "v1 keeps serving", reason[0]]).await;
    Some((shop, deployment))
}

fn with_deadline(deadline: &str) -> Options {
    Options::web(&format!(
        "instances = 2\nstop_grace = \"2s\"\nhealth = {{ path = \"/healthz\", timeout = \"1s\", start_deadline = {deadline:?} }}"
    ))
}

#[tokio::test]
async fn a_version_that_never_gets_ready_is_undone() {
    let bad = Behaviour::version("v2").never_ready();
    let reason = ["not ready in time", "GET /healthz answered 503"];
    let Some((shop, _)) = undone("never_ready", with_deadline("3s"), bad, &reason).await else { return };
    shop.finish().await;
}

#[tokio::test]
async fn a_version_that_answers_errors_is_undone() {
    let bad = Behaviour::version("v2").answer_500();
    let reason = ["not ready in time", "GET /healthz answered 500"];
    let Some((shop, deployment)) = undone("answers_500", with_deadline("3s"), bad, &reason).await else { return };
    assert_eq!(deployment["requests"]["failed"], 0, "{deployment:#}");
    shop.finish().await;
}

#[tokio::test]
async fn a_healthy_version_that_answers_errors_to_visitors_is_undone_in_the_watch() {
    let Some(engine) = engine::or_skip("healthy_but_500").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("20s")).await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").answer_500_but_healthy()).await;
    assert_ended(&deployment, "rolled_back", &["were answered with an error"]);
    assert_eq!(shop.version().await, "v1");
    load.stop().await;
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["was rolled back", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn errors_to_visitors_are_seen_while_another_service_still_rolls() {
    let Some(engine) = engine::or_skip("500_while_rolling").await else { return };
    let mut options = Options::web_and_worker(2, 1).watch("20s");
    options.tables = options.tables.replace("stable_for = \"300ms\"", "stable_for = \"20s\"");
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), Options::web_and_worker(2, 1).watch("0s")).await;
    shop.deploy_first().await;
    shop.reconfigure(&options).await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").answer_500_but_healthy()).await;
    assert_ended(&deployment, "rolled_back", &["requests to the new web were answered with an error"]);
    let took = seconds_in(&deployment, "rolling_out");
    assert!(took < 15.0, "the worker's time was waited for: {took} s: {deployment:#}");
    assert_eq!(seconds_in(&deployment, "watching"), 0.0, "{deployment:#}");
    assert_eq!(shop.version().await, "v1");
    let report = load.stop().await;
    let (first, last) = (&report.failures[0], report.last_failure);
    let (errors, seen_for) = (report.failed, last.saturating_sub(first.at));
    assert!(first.what.contains("500"), "{first:?}");
    assert!(seen_for < Duration::from_secs(8), "{errors} visitors saw errors for {seen_for:?}");
    let requests = &deployment["requests"];
    assert_eq!(requests["failed"], 0, "{deployment:#}");
    // A visitor counts what the proxy counts, but for what came in between the record and the load's end.
    assert!(requests["server_errors"].as_u64().is_some_and(|told| told > 0 && told <= errors), "{errors}: {requests}");
    shop.assert_live(1, &[("web", 2), ("worker", 1)]).await;
    shop.told(2, &["was rolled back", "of them 5xx of the app's own, 0 failed", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_version_that_does_not_answer_is_undone() {
    let bad = Behaviour::version("v2").hang_health();
    let reason = ["not ready in time", "no answer within 1s"];
    let Some((shop, _)) = undone("hangs", with_deadline("3s"), bad, &reason).await else { return };
    shop.finish().await;
}

#[tokio::test]
async fn a_version_that_listens_elsewhere_is_undone() {
    let bad = Behaviour::version("v2").port(8001);
    let reason = ["not ready in time", "no connection to port 8000: refused"];
    let Some((shop, _)) = undone("listens_elsewhere", with_deadline("3s"), bad, &reason).await else { return };
    shop.finish().await;
}

#[tokio::test]
async fn a_version_that_exits_at_once_is_undone_without_waiting() {
    let bad = Behaviour::version("v2").exit_at_once(3);
    let reason = ["exited with code 3", "exits at once with 3"];
    let Some((shop, deployment)) = undone("exits_at_once", with_deadline("60s"), bad, &reason).await else { return };
    let took = seconds_in(&deployment, "rolling_out");
    assert!(took < 6.0, "undone only after {took} s: {deployment:#}");
    shop.finish().await;
}

#[tokio::test]
async fn a_version_of_which_one_instance_crashes_later_is_undone() {
    let bad = Behaviour::version("v2").crash_after_ready_ms(2500, 7).only_on("-1");
    let reason = ["web-1", "exited with code 7", "crashes as told"];
    let options = Options::default().watch("20s");
    let Some((shop, deployment)) = undone("one_crashes_later", options, bad, &reason).await else { return };
    assert!(seconds_in(&deployment, "watching") < 10.0, "{deployment:#}");
    shop.finish().await;
}

#[tokio::test]
async fn a_version_of_which_all_instances_crash_later_is_undone() {
    let Some(engine) = engine::or_skip("all_crash_later").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("20s")).await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").crash_after_ready_ms(2500, 7)).await;
    assert_ended(&deployment, "rolled_back", &["exited with code 7"]);
    assert_eq!(shop.version().await, "v1");
    let report = load.stop().await;
    // No instance that works may be left for a moment, but the old ones are there at once.
    let (first, last) = (report.failures.first(), report.failures.last());
    let outage = last.zip(first).map_or(Duration::ZERO, |(last, first)| last.at.saturating_sub(first.at));
    assert!(outage < Duration::from_secs(5), "nobody answered for {outage:?}: {first:?}");
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["was rolled back", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_version_that_outgrows_its_memory_is_undone() {
    let Some(engine) = engine::or_skip("outgrows_its_memory").await else { return };
    let options = Options::web(
        "instances = 2\nmemory = \"32MiB\"\nstop_grace = \"2s\"\nhealth = { path = \"/healthz\", start_deadline = \"15s\" }",
    );
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options.watch("20s")).await;
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.reaches(id, "watching").await;
    // The page of this one visitor is lost with the instance; POST, so that it is not asked again elsewhere.
    let request = crate::support::http::request("POST", HOST, "/alloc?mb=100", &[], "");
    let _ = crate::support::http::send(shop.agent.proxy, request).await;
    let deployment = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&deployment, "rolled_back", &["ran out of its memory limit of 32 MiB"]);
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["memory limit of 32 MiB", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_failing_release_command_switches_nothing() {
    let Some(engine) = engine::or_skip("a_failing_release_command").await else { return };
    let options = Options::default().table("[apps.shop.release]\ncommand = [\"migrate\"]");
    let shop = Shop::live(&engine, &Behaviour::version("v1").migrate(0, 0, "smoothly"), options).await;
    assert!(shop.log(1).await.contains("migrating for v1 smoothly"));
    let before = shop.instances("web").await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").migrate(9, 0, "into a wall")).await;
    assert_ended(&deployment, "failed", &["release command", "exited with code 9", "nothing was switched"]);
    load.stop().await.assert_flawless(20);
    assert!(shop.log(2).await.contains("migrating for v2 into a wall"));
    assert_eq!(seconds_in(&deployment, "rolling_out"), 0.0);
    let ids = |all: &[engine::Container]| all.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&shop.instances("web").await));
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["failed", "code 9", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_failing_build_names_its_step() {
    let Some(engine) = engine::or_skip("a_failing_build").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    shop.repo.write_site(&Behaviour::version("v2").migrate(4, 0, "while building"));
    shop.repo.write("Dockerfile", format!("{DOCKERFILE}RUN [\"/site\", \"migrate\"]\n"));
    shop.repo.commit("Build more");
    let id = shop.deliver(&shop.repo.push("main")).await;
    let deployment = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&deployment, "failed", &["the build of web failed", "RUN [\"/site\"", "exited with 4"]);
    assert!(shop.log(id).await.contains("migrating for v2 while building"));
    assert_eq!(shop.version().await, "v1");
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["failed", "exited with 4", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_first_version_that_fails_leaves_nothing_and_a_good_one_goes_live() {
    let Some(engine) = engine::or_skip("a_first_version_that_fails").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1").exit_at_once(3), Options::default()).await;
    let deployment = shop.ask_and_wait("POST", "/api/v1/apps/shop/deployments", json!({})).await;
    assert_ended(&deployment, "rolled_back", &["exited with code 3"]);
    let app = shop.app().await;
    assert_eq!((&app["live"], &app["instances"]), (&Value::Null, &json!([])), "{app:#}");
    assert!(shop.instances("web").await.is_empty());
    let nothing = shop.agent.visit(HOST, "/").await.unwrap().expect(503);
    assert!(nothing.text().contains(&format!("nothing runs behind {HOST}")), "{}", nothing.text());
    assert_eq!(shop.agent.visit("else.test", "/").await.unwrap().status, 404);
    shop.told(1, &["was rolled back", "nothing is live yet"]).await;

    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v2");
    shop.assert_live(2, &[("web", 2)]).await;
    shop.told(2, &["v2 is live"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_bad_worker_takes_the_good_web_back_with_it() {
    let Some(engine) = engine::or_skip("a_bad_worker").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::web_and_worker(2, 2)).await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").exit_at_once(5).only_on("worker-2")).await;
    assert_ended(&deployment, "rolled_back", &["worker-2", "exited with code 5"]);
    assert_eq!(shop.version().await, "v1");
    let report = load.stop().await;
    report.assert_flawless(50);
    assert!(report.versions.contains_key("v2"), "web was switched before the worker failed: {:?}", report.versions);
    shop.assert_live(1, &[("web", 2), ("worker", 2)]).await;
    shop.told(2, &["worker-2", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_failed_commit_is_held_until_a_newer_one_or_a_person() {
    let Some(engine) = engine::or_skip("a_failed_commit_is_held").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("0s")).await;
    shop.repo.write_site(&Behaviour::version("v2").exit_at_once(3));
    let bad = shop.repo.commit("A bad version");
    let pushed = shop.repo.push("main");
    let id = shop.deliver(&pushed).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "rolled_back", &["code 3"]);
    assert_eq!(shop.app().await["held"]["commit"], bad.as_str());

    let again = github::Push::of("main", &pushed).delivery().send(shop.agent.listen, "shop", SECRET).await;
    let answer = again.expect(200).json();
    assert_eq!(answer["decision"], "held", "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("code 3"), "{answer}");

    // A plan says that pushes do not bring it back.
    let dry = json!({ "commit": bad, "dry_run": true });
    let plan = shop.agent.api("POST", "/api/v1/apps/shop/deployments", Some(dry)).await.expect(200).json();
    assert!(plan["held"].as_str().unwrap().contains("code 3"), "{plan}");

    // A person may try it again, and then it runs.
    let deployment = shop.ask_and_wait("POST", "/api/v1/apps/shop/deployments", json!({ "commit": bad })).await;
    assert_ended(&deployment, "rolled_back", &["code 3"]);
    assert_eq!(shop.version().await, "v1");

    assert_ended(&shop.push(&Behaviour::version("v3")).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v3");
    assert!(shop.app().await["held"].is_null(), "the branch has moved on");
    shop.finish().await;
}
