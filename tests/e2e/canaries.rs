//! Canaries: a new version gets a share of the requests, and no more than that until it has earned them all.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::query_parameters::KillContainerOptions;
use serde_json::{Value, json};

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::load::{Load, Report};
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

fn canary(options: Options, keys: &str) -> Options {
    let Options { keys: own, tables, watch } = options;
    // The test shop opens `[apps.shop.rollout]` last of its own tables, so that these lines are in it.
    Options { keys: own, tables: format!("strategy = \"canary\"\n{keys}\n{tables}"), watch }
}

/// A live first version, rolled out as a canary from then on.
async fn live(engine: &engine::Engine, options: &Options, keys: &str) -> Shop {
    let mut shop = Shop::start(engine, &Behaviour::version("v1"), options.clone().watch("0s")).await;
    shop.deploy_first().await;
    shop.reconfigure(&canary(options.clone(), keys)).await;
    shop
}

async fn act(shop: &Shop, action: &str, status: u16) -> Value {
    let body = Some(json!({ "action": action }));
    shop.agent.api("POST", "/api/v1/apps/shop/canary", body).await.expect(status).json()
}

/// Fails when more than `percent` of the requests reached `version` between its first answer and its last.
#[track_caller]
fn assert_share(report: &Report, version: &str, percent: u64) {
    let (first, last) = report.spans[version];
    let (all, new) = (last - first + 1, report.versions[version] + report.failed);
    assert!(new > 20, "too few to say: {new} of {all}");
    // Answers overtake each other by as many as there are connections, and each end may fall on one of its requests.
    assert!(new * 100 <= (all + 10) * percent + 200, "{new} of {all} requests reached {version}, at {percent} %");
}

/// Lets a load go on until enough is answered to see the share of `version`, and fails when it is more than `percent`.
async fn assert_share_of(load: Load, version: &str, percent: u64) {
    eventually("enough is answered to see its share", LIMIT, async || {
        let answered = load.so_far().versions.get(version).copied().unwrap_or(0);
        if answered >= 60 { Ok(()) } else { Err(format!("{answered} answers")) }
    })
    .await;
    let report = load.stop().await;
    report.assert_flawless(100);
    assert_share(&report, version, percent);
}

#[tokio::test]
async fn one_that_fails_now_and_then_is_aborted_by_itself() {
    let Some(engine) = engine::or_skip("canary_aborts_itself").await else { return };
    let shop = live(&engine, &Options::default(), "steps = [25, 50]\npause = \"80s\"").await;
    let ids = |all: &[engine::Container]| all.iter().map(|container| container.id.clone()).collect::<Vec<_>>();
    let before = ids(&shop.instances("web").await);
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").fail_percent(5)).await;
    let report = load.stop().await;
    assert_ended(
        &deployment,
        "rolled_back",
        &["worse than what it replaces, at 25 % of the requests: ", " to the canary were answered with an error"],
    );
    let foreign: Vec<_> = report.failures.iter().filter(|failure| !failure.what.contains("v2 fails as told")).collect();
    assert!(foreign.is_empty() && report.failed > 0, "{foreign:?}");
    assert_share(&report, "v2", 25);
    assert_eq!(ids(&shop.instances("web").await), before, "the old ones were not touched");
    shop.assert_live(1, &[("web", 2)]).await;
    assert!(shop.app().await["held"]["reason"].as_str().unwrap().contains("worse than what it replaces"));
    shop.told(2, &["was rolled back", "worse than what it replaces", "v1 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn one_that_is_well_is_promoted_step_by_step() {
    let Some(engine) = engine::or_skip("canary_is_promoted").await else { return };
    let shop = live(&engine, &Options::web_and_worker(4, 1), "steps = [10, 50]\npause = \"3s\"").await;
    let load = shop.load();
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;

    shop.says(id, "step 1 of 3: 10 % of the requests to 1 new, the rest to 4 old").await;
    let app = shop.app().await;
    let canary = &app["canary"];
    assert_eq!((&canary["step"], &canary["steps"], &canary["share"]), (&json!(1), &json!(3), &json!(10)), "{app:#}");
    let weights = |release: u64| -> Vec<u64> {
        let all = app["instances"].as_array().unwrap().iter().filter(|instance| instance["release"] == release);
        all.filter(|instance| instance["service"] == "web").map(|web| web["weight"].as_u64().unwrap()).collect()
    };
    assert_eq!((weights(1), weights(2)), (vec![9; 4], vec![4]), "{app:#}");
    assert_eq!(shop.instances("worker").await.len(), 1, "the worker has its turn at the last step");
    let status = shop.agent.cli(&["status", "shop"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("canary  step 1 of 3: 10 % of the requests to v2 for "), "{status}");

    shop.says(id, "step 2 of 3: 50 % of the requests to 2 new, the rest to 4 old").await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    let log = shop.log(id).await;
    for line in
        ["canary: compared in this step: canary ", "canary: promoted", "d1-worker-1: stopped", "d1-web-4: stopped"]
    {
        assert!(log.contains(line), "{line:?} is missing: {log}");
    }
    assert!(log.find("canary: promoted") < log.find("d1-web-1: stopped"), "{log}");
    load.stop().await.assert_flawless(100);
    shop.assert_live(2, &[("web", 4), ("worker", 1)]).await;
    assert_eq!(shop.app().await["canary"], Value::Null);
    shop.told(2, &["v2 is live"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_person_holds_promotes_and_aborts_it() {
    let Some(engine) = engine::or_skip("canary_by_hand").await else { return };
    let shop = live(&engine, &Options::default(), "steps = [20]\npause = \"2s\"").await;
    let none = act(&shop, "promote", 409).await;
    assert_eq!(none["detail"], "no canary of shop is under way", "{none}");
    act(&shop, "postpone", 422).await;

    let load = shop.load();
    // Takes its time to get ready, so that it is held before its pause begins.
    let id = shop.push_without_waiting(&Behaviour::version("v2").ready_after_ms(1500)).await;
    shop.says(id, "d2-web-1: starting").await;
    let held = shop.agent.cli(&["canary", "shop", "pause"]).await;
    assert!(held.status.success(), "{}", String::from_utf8_lossy(&held.stderr));
    shop.says(id, "step 1 of 2").await;
    let held = Instant::now();
    eventually("it is held for twice as long as its pause", LIMIT, async || {
        let app = shop.app().await;
        assert_eq!((&app["canary"]["paused"], &app["canary"]["share"]), (&json!(true), &json!(20)), "{app:#}");
        if held.elapsed() > Duration::from_secs(4) { Ok(()) } else { Err("not yet") }
    })
    .await;
    let twice = act(&shop, "pause", 409).await;
    assert!(twice["detail"].as_str().unwrap().ends_with("it is paused already"), "{twice}");
    act(&shop, "resume", 202).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 2)]).await;

    let id = shop.push_without_waiting(&Behaviour::version("v3")).await;
    shop.says(id, "step 1 of 2").await;
    assert_eq!(act(&shop, "pause", 202).await["id"], id);
    act(&shop, "promote", 202).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert!(shop.log(id).await.contains("canary: promoted by "));
    shop.assert_live(3, &[("web", 2)]).await;

    let id = shop.push_without_waiting(&Behaviour::version("v4")).await;
    shop.says(id, "step 1 of 2").await;
    act(&shop, "abort", 202).await;
    let aborted = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&aborted, "rolled_back", &["the canary was aborted by ", "at 20 % of the requests"]);
    load.stop().await.assert_flawless(100);
    shop.assert_live(3, &[("web", 2)]).await;
    assert!(!shop.app().await["held"].is_null(), "it is not deployed again by itself");
    shop.finish().await;
}

#[tokio::test]
async fn one_whose_agent_is_killed_keeps_its_share_and_goes_on_at_its_step() {
    let Some(engine) = engine::or_skip("canary_agent_killed").await else { return };
    let mut shop = live(&engine, &Options::default(), "steps = [10, 50]\npause = \"4s\"").await;
    let load = shop.load();
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.says(id, "step 1 of 3").await;
    act(&shop, "pause", 202).await;
    shop.agent.kill().await;
    shop.agent.start().await;
    shop.says(id, "canary: going on with step 1 of 3").await;
    eventually("it waits at its share", LIMIT, async || {
        let app = shop.app().await;
        let canary = &app["canary"];
        let waits = canary["paused"] == true && canary["share"] == 10 && app["instances"][0]["weight"] == 9;
        if waits { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
    assert_share_of(load, "v2", 10).await;

    // A proxy that takes the place of one that was killed has the share from its file.
    let proxy = nix::unistd::Pid::from_raw(shop.agent.proxy_pid());
    nix::sys::signal::kill(proxy, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the app is served again", LIMIT, async || match shop.agent.visit(HOST, "/").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_share_of(shop.load(), "v2", 10).await;

    let load = shop.load();
    act(&shop, "resume", 202).await;
    shop.says(id, "step 2 of 3").await;
    shop.agent.kill().await;
    shop.agent.start().await;
    shop.says(id, "canary: going on with step 2 of 3").await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 2)]).await;

    // While the old ones end: it goes on to the end.
    let id = shop.push_without_waiting(&Behaviour::version("v3")).await;
    shop.says(id, "step 1 of 3").await;
    act(&shop, "promote", 202).await;
    shop.says(id, "canary: promoted; ").await;
    shop.agent.kill().await;
    shop.agent.start().await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    shop.assert_live(3, &[("web", 2)]).await;

    // While it is undone.
    let id = shop.push_without_waiting(&Behaviour::version("v4").ignore_sigterm()).await;
    shop.says(id, "step 1 of 3").await;
    act(&shop, "abort", 202).await;
    shop.agent.kill().await;
    shop.agent.start().await;
    let aborted = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&aborted, "rolled_back", &["the canary was aborted by "]);
    shop.assert_live(3, &[("web", 2)]).await;
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn one_that_crashes_or_becomes_unready_is_undone() {
    let Some(engine) = engine::or_skip("canary_crashes").await else { return };
    let shop = live(&engine, &Options::default(), "steps = [10]\npause = \"60s\"").await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").crash_after_ready_ms(2500, 7)).await;
    assert_ended(&deployment, "rolled_back", &["web-1", "exited with code 7"]);
    load.stop().await;
    shop.assert_live(1, &[("web", 2)]).await;

    let id = shop.push_without_waiting(&Behaviour::version("v3")).await;
    shop.says(id, "step 1 of 2").await;
    let new = shop.app().await["instances"].as_array().unwrap().iter().find(|i| i["release"] == 3).unwrap().clone();
    let address: std::net::SocketAddr = new["address"].as_str().unwrap().parse().unwrap();
    let request = crate::support::http::request("POST", HOST, "/break", &[], "");
    crate::support::http::send(address, request).await.unwrap().expect(200);
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "rolled_back", &["is unready"]);
    shop.assert_live(1, &[("web", 2)]).await;
    shop.finish().await;
}

/// Ends the containers of the live version, and waits until the canary answers all requests.
async fn kill_the_old(shop: &Shop) {
    for container in shop.instances("web").await {
        if container.label("longshore.release") == "1" {
            shop.engine.docker.kill_container(&container.id, None::<KillContainerOptions>).await.expect("killed");
        }
    }
    eventually("nobody is ready but the canary", LIMIT, async || {
        let app = shop.app().await;
        let old = app["instances"].as_array().unwrap().iter().filter(|instance| instance["release"] == 1);
        let down = old.filter(|instance| instance["health"] != "ready").count();
        if down == 2 { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
}

#[tokio::test]
async fn one_that_alone_serves_is_undone_when_the_live_version_serves_again() {
    let Some(engine) = engine::or_skip("canary_alone").await else { return };
    let options = Options::default().watch("0s");
    let mut shop = Shop::start(&engine, &Behaviour::version("v1").ready_after_ms(4000), options.clone()).await;
    shop.deploy_first().await;
    shop.reconfigure(&canary(options, "steps = [20]\npause = \"80s\"")).await;
    let cut_off = "serves until an instance of the live release does: none of its service is ready";
    for (release, is_killed) in [(2, false), (3, true)] {
        let id = shop.push_without_waiting(&Behaviour::version(&format!("v{release}"))).await;
        shop.says(id, "step 1 of 2").await;
        kill_the_old(&shop).await;
        let load = shop.load();
        act(&shop, "abort", 202).await;
        if is_killed {
            shop.agent.kill().await;
            shop.agent.start().await;
        }
        let ended = shop.agent.deployment_ended(id, LIMIT).await;
        assert_ended(&ended, "rolled_back", &["the canary was aborted by "]);
        if !is_killed {
            assert_ended(&ended, "rolled_back", &[&format!("d{id}-web-1 {cut_off}")]);
            shop.told(2, &["was rolled back", "d2-web-1 stands in"]).await;
        }
        eventually("the live version alone serves, and the canary is gone", LIMIT, async || {
            let app = shop.app().await;
            let all = app["instances"].as_array().unwrap();
            let is_live = |i: &Value| i["release"] == 1 && i["health"] == "ready";
            let none_else = shop.instances("web").await.len() == 2;
            if all.len() == 2 && all.iter().all(is_live) && none_else { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
        load.stop().await.assert_flawless(50);
        assert_eq!(shop.version().await, "v1");
        shop.assert_live(1, &[("web", 2)]).await;
    }

    // What is not ready serves nobody, whoever else does not.
    let id = shop.push_without_waiting(&Behaviour::version("v4")).await;
    shop.says(id, "step 1 of 2").await;
    kill_the_old(&shop).await;
    let new = shop.app().await["instances"].as_array().unwrap().iter().find(|i| i["release"] == 4).unwrap().clone();
    let address: std::net::SocketAddr = new["address"].as_str().unwrap().parse().unwrap();
    let request = crate::support::http::request("POST", HOST, "/break", &[], "");
    crate::support::http::send(address, request).await.unwrap().expect(200);
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "rolled_back", &["is unready"]);
    assert!(!ended["reason"].as_str().unwrap().contains("serves until"), "{ended:#}");
    shop.all_ready().await;
    shop.assert_live(1, &[("web", 2)]).await;
    shop.finish().await;
}

/// A canary whose agent is killed at its first step, and whose secret is gone when the agent is back.
async fn cut_off(shop: &mut Shop, secret: &Path, version: &Behaviour) -> u64 {
    let id = shop.push_without_waiting(version).await;
    shop.says(id, "step 1 of 2").await;
    shop.agent.kill().await;
    std::fs::remove_file(secret).expect("removed");
    shop.agent.start().await;
    id
}

#[tokio::test]
async fn one_that_waits_for_a_secret_is_shown_judged_and_can_be_asked() {
    let Some(engine) = engine::or_skip("canary_waits").await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let secret = dir.path().join("greeting");
    let write = || {
        std::fs::write(&secret, "hello from a file").expect("written");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    };
    write();
    let options = Options::default().table(&format!("[apps.shop.env]\nGREETING = {{ file = {secret:?} }}\n"));
    let mut shop = live(&engine, &options, "steps = [20]\npause = \"80s\"").await;
    let load = shop.load();

    // What is asked of it while it waits counts when it goes on.
    let id = cut_off(&mut shop, &secret, &Behaviour::version("v2")).await;
    act(&shop, "pause", 202).await;
    let twice = act(&shop, "pause", 409).await;
    assert!(twice["detail"].as_str().unwrap().ends_with("it is paused already"), "{twice}");
    shop.says(id, "it waits for a secret").await;
    eventually("it is shown and compared", LIMIT, async || {
        let canary = shop.app().await["canary"].clone();
        let is_shown = canary["share"] == 20 && canary["step"] == 1 && canary["paused"] == true;
        if is_shown && canary["comparison"].is_string() { Ok(()) } else { Err(format!("{canary:#}")) }
    })
    .await;
    let status = shop.agent.cli(&["status", "shop"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("canary  step 1 of 2: 20 % of the requests to v2 for "), "{status}");
    write();
    shop.says(id, "canary: going on with step 1 of 2").await;
    eventually("it is held", LIMIT, async || {
        let canary = shop.app().await["canary"].clone();
        if canary["paused"] == true { Ok(()) } else { Err(format!("{canary:#}")) }
    })
    .await;

    // Undoing it needs no secret.
    shop.agent.kill().await;
    std::fs::remove_file(&secret).expect("removed");
    shop.agent.start().await;
    act(&shop, "abort", 202).await;
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "rolled_back", &["the canary was aborted by ", "at 20 % of the requests"]);
    shop.assert_live(1, &[("web", 2)]).await;
    load.stop().await.assert_flawless(100);

    // It is judged while it waits.
    write();
    let load = shop.load();
    let id = cut_off(&mut shop, &secret, &Behaviour::version("v3").fail_percent(10)).await;
    shop.says(id, "it waits for a secret").await;
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "rolled_back", &["worse than what it replaces, at 20 % of the requests: "]);
    assert!(!secret.exists(), "the secret is still absent");
    let report = load.stop().await;
    let foreign: Vec<_> = report.failures.iter().filter(|failure| !failure.what.contains("v3 fails as told")).collect();
    assert!(foreign.is_empty() && report.failed > 0, "{foreign:?}");
    shop.assert_live(1, &[("web", 2)]).await;
    write();
    shop.finish().await;
}
