//! The agent ends in the middle of things, in order or not: it finishes or undoes what was going on, and nobody notices.

use std::time::Duration;

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::agent::{Setup, TestAgent};
use crate::support::engine;
use crate::support::http;
use crate::support::site::{Behaviour, DOCKERFILE};
use crate::support::wait::eventually;

/// How the agent ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Terminated,
    Killed,
}

use End::{Killed, Terminated};

async fn end_and_start(agent: &mut TestAgent, end: End) {
    match end {
        Terminated => drop(agent.stop().await),
        Killed => agent.kill().await,
    }
    agent.start().await;
}

/// Pushes a version and ends the agent once the deployment's log says `moment`; the deployment when it has ended.
async fn interrupted(shop: &mut Shop, version: &Behaviour, moment: &str, end: End) -> serde_json::Value {
    let id = shop.push_without_waiting(version).await;
    ended_after(shop, id, moment, end).await
}

async fn ended_after(shop: &mut Shop, id: u64, moment: &str, end: End) -> serde_json::Value {
    shop.says(id, moment).await;
    end_and_start(&mut shop.agent, end).await;
    let deployment = shop.agent.deployment_ended(id, LIMIT).await;
    let log = shop.log(id).await;
    assert!(log.contains("the agent was restarted; going on from"), "it was not interrupted ({end:?}): {log}");
    deployment
}

#[tokio::test]
async fn in_the_build() {
    let Some(engine) = engine::or_skip("in_the_build").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let load = shop.load();
    for (number, end) in [(2, Terminated), (3, Killed)] {
        shop.repo.write_site(&Behaviour::version(&format!("v{number}")).migrate(0, 1500, "slowly"));
        shop.repo.write("Dockerfile", format!("{DOCKERFILE}RUN [\"/site\", \"migrate\"]\n"));
        shop.repo.commit("Build slowly");
        let id = shop.deliver(&shop.repo.push("main")).await;
        assert_ended(&ended_after(&mut shop, id, "slowly", end).await, "succeeded", &[]);
        shop.assert_live(number, &[("web", 2)]).await;
        shop.told(number as usize, &[&format!("v{number} is live")]).await;
    }
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn who_was_switched_away_from_gets_no_request_again() {
    let Some(engine) = engine::or_skip("who_was_switched_away_from").await else { return };
    let options = Options::default().keys("drain = { requests = \"20s\", streams = \"20s\" }\n");
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    // Keeps its old instance for a while.
    let (proxy, host) = (shop.agent.proxy, HOST);
    let slow = tokio::spawn(async move { http::get(proxy, host, "/slow?ms=6000").await });
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.says(id, "every instance is switched").await;
    end_and_start(&mut shop.agent, Killed).await;
    let asking = async {
        loop {
            assert_eq!(shop.version().await, "v2", "{}", shop.agent.log());
        }
    };
    let ended = tokio::select! {
        ended = shop.agent.deployment_ended(id, LIMIT) => ended,
        () = asking => unreachable!("it never ends"),
    };
    assert_ended(&ended, "succeeded", &[]);
    assert_eq!(slow.await.unwrap().unwrap().text().trim(), "v1");
    shop.finish().await;
}

#[tokio::test]
async fn in_the_release_command() {
    let Some(engine) = engine::or_skip("in_the_release_command").await else { return };
    let options = Options::default().table("[apps.shop.release]\ncommand = [\"migrate\"]");
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    let load = shop.load();
    for (number, end) in [(2, Terminated), (3, Killed)] {
        let version = Behaviour::version(&format!("v{number}")).migrate(0, 1500, "slowly");
        assert_ended(&interrupted(&mut shop, &version, "slowly", end).await, "succeeded", &[]);
        shop.assert_live(number, &[("web", 2)]).await;
    }
    // One that fails after the agent is back has failed all the same.
    let version = Behaviour::version("v4").migrate(6, 1500, "slowly");
    assert_ended(&interrupted(&mut shop, &version, "slowly", Killed).await, "failed", &["exited with code 6"]);
    shop.assert_live(3, &[("web", 2)]).await;
    load.stop().await.assert_flawless(100);
    shop.told(4, &["failed", "code 6", "v3 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn in_the_rollout() {
    let Some(engine) = engine::or_skip("in_the_rollout").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::web_and_worker(3, 1)).await;
    let load = shop.load();
    for (number, end) in [(2, Terminated), (3, Killed)] {
        let version = Behaviour::version(&format!("v{number}")).ready_after_ms(700);
        assert_ended(&interrupted(&mut shop, &version, "web-2: starting", end).await, "succeeded", &[]);
        shop.assert_live(number, &[("web", 3), ("worker", 1)]).await;
        shop.told(number as usize, &[&format!("v{number} is live")]).await;
    }
    // A version that fails after the agent is back is undone.
    let bad = Behaviour::version("v4").ready_after_ms(700).crash_after_ready_ms(100, 8).only_on("-3");
    let undone = interrupted(&mut shop, &bad, "web-2: starting", Killed).await;
    assert_ended(&undone, "rolled_back", &["web-3", "exited with code 8"]);
    shop.assert_live(3, &[("web", 3), ("worker", 1)]).await;
    shop.told(4, &["was rolled back", "v3 keeps serving"]).await;
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn what_was_switched_before_a_crash_goes_back_too() {
    let Some(engine) = engine::or_skip("what_was_switched_before_a_crash_goes_back_too").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::web_and_worker(3, 1)).await;
    let load = shop.load();
    // The first place's old instance is gone for good when the agent ends; then the third fails.
    let bad = Behaviour::version("v2").ready_after_ms(2000).crash_after_ready_ms(100, 8).only_on("-3");
    let undone = interrupted(&mut shop, &bad, "web-1: stopped", Killed).await;
    assert_ended(&undone, "rolled_back", &["web-3", "exited with code 8"]);
    shop.assert_live(1, &[("web", 3), ("worker", 1)]).await;

    let id = shop.push_without_waiting(&Behaviour::version("v3").ready_after_ms(2000)).await;
    shop.says(id, "web-1-r1: stopped").await;
    end_and_start(&mut shop.agent, Killed).await;
    shop.says(id, "going on from").await;
    shop.cancel(id).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "cancelled", &["cancelled by"]);
    shop.assert_live(1, &[("web", 3), ("worker", 1)]).await;
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn in_the_watch() {
    let Some(engine) = engine::or_skip("in_the_watch").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("2s")).await;
    let load = shop.load();
    for (number, end) in [(2, Terminated), (3, Killed)] {
        let version = Behaviour::version(&format!("v{number}"));
        assert_ended(&interrupted(&mut shop, &version, "watching for", end).await, "succeeded", &[]);
        shop.assert_live(number, &[("web", 2)]).await;
    }
    load.stop().await.assert_flawless(100);
    assert_eq!(shop.discord.messages().len(), 3);
    shop.finish().await;
}

#[tokio::test]
async fn while_undoing() {
    let Some(engine) = engine::or_skip("while_undoing").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::web_and_worker(3, 1).watch("20s")).await;
    let load = shop.load();
    for (number, end) in [(2, Terminated), (3, Killed)] {
        let bad =
            Behaviour::version(&format!("v{number}")).ignore_sigterm().crash_after_ready_ms(3000, 8).only_on("-1");
        let undone = interrupted(&mut shop, &bad, "undoing", end).await;
        assert_ended(&undone, "rolled_back", &["-1", "exited with code 8"]);
        shop.assert_live(1, &[("web", 3), ("worker", 1)]).await;
        shop.told(number, &["was rolled back", "v1 keeps serving"]).await;
    }
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn while_undoing_a_restart() {
    let Some(engine) = engine::or_skip("while_undoing_a_restart").await else { return };
    // Takes its time to stop, so that the undoing can be interrupted.
    let version = Behaviour::version("v1").ignore_sigterm();
    let mut shop = Shop::live(&engine, &version, Options::default().watch("20s")).await;
    let load = shop.load();
    let id = shop.ask("POST", "/api/v1/apps/shop/restart", serde_json::json!({})).await;
    shop.says(id, "web-2: starting").await;
    shop.says(id, "web-2: ready").await;
    shop.cancel(id).await;
    let undone = ended_after(&mut shop, id, "undoing", Killed).await;
    assert_ended(&undone, "cancelled", &["cancelled by"]);
    shop.assert_live(1, &[("web", 2)]).await;
    load.stop().await.assert_flawless(50);
    shop.finish().await;
}

#[tokio::test]
async fn what_waits_in_the_queue_is_deployed_after_a_crash() {
    let Some(engine) = engine::or_skip("what_waits_in_the_queue").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("1s")).await;
    let first = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.reaches(first, "watching").await;
    let second = shop.push_without_waiting(&Behaviour::version("v3")).await;
    end_and_start(&mut shop.agent, Killed).await;
    assert_ended(&shop.agent.deployment_ended(first, LIMIT).await, "succeeded", &[]);
    assert_ended(&shop.agent.deployment_ended(second, LIMIT).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v3");
    shop.finish().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_again_and_again_does_not_keep_a_deployment_going_for_ever() {
    let Some(engine) = engine::or_skip("killed_again_and_again").await else { return };
    // Longer than the agent ever lives, and shorter than the deadline: what is never ready does not fail by itself.
    let options = Options::web(
        "health = { path = \"/healthz\", start_deadline = \"9s\" }\nstop_grace = \"2s\"\ndeadline = \"10s\"",
    );
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    let id = shop.push_without_waiting(&Behaviour::version("v2").never_ready()).await;
    shop.reaches(id, "rolling_out").await;
    let mut lives = 0;
    while shop.deployment(id).await["finished_at"].is_null() && lives < 8 {
        lives += 1;
        tokio::time::sleep(Duration::from_secs(3)).await;
        end_and_start(&mut shop.agent, Killed).await;
    }
    let ended = shop.deployment(id).await;
    assert_ended(&ended, "rolled_back", &["it took longer than its deadline of 10s"]);
    assert_eq!(shop.version().await, "v1");
    shop.all_ready().await;
    shop.assert_live(1, &[("web", 1)]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_proxy_that_is_killed_is_started_again_and_serves_from_its_file() {
    let Some(engine) = engine::or_skip("a_proxy_that_is_killed").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let serves = async |shop: &Shop| {
        eventually("the app is served again", LIMIT, async || match shop.agent.visit(crate::shop::HOST, "/").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    };
    let pid = |shop: &Shop| -> i32 {
        let lock = std::fs::read_to_string(shop.agent.data_dir().join("proxy.lock")).unwrap();
        lock.split_whitespace().next().unwrap().parse().unwrap()
    };
    let kill = |pid: i32| {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    let first = pid(&shop);
    kill(first);
    let killed = std::time::Instant::now();
    serves(&shop).await;
    assert!(killed.elapsed().as_millis() <= 1000, "it took {:?}", killed.elapsed());
    assert_ne!(pid(&shop), first);
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v2");

    // Both at once, as when the machine loses power.
    kill(pid(&shop));
    end_and_start(&mut shop.agent, Killed).await;
    serves(&shop).await;
    assert_eq!(shop.version().await, "v2");
    shop.all_ready().await;
    shop.assert_live(2, &[("web", 2)]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_proxy_is_started_again_after_an_upgrade_replaced_the_binary() {
    let Some(engine) = engine::or_skip("a_proxy_is_started_again_after_an_upgrade").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let (binary, new) = (dir.path().join("longshore"), dir.path().join("new"));
    std::fs::copy(env!("CARGO_BIN_EXE_longshore"), &binary).unwrap();
    let agent = Setup::new("").binary(&binary).start(&engine).await;
    let lock = agent.data_dir().join("proxy.lock");
    let pid = || std::fs::read_to_string(&lock).ok()?.trim().parse::<i32>().ok();
    let first = pid().unwrap();
    // As install(1) does it: another file under the same name.
    std::fs::copy(env!("CARGO_BIN_EXE_longshore"), &new).unwrap();
    std::fs::rename(&new, &binary).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGTERM).unwrap();
    eventually("another proxy serves", LIMIT, async || match pid() {
        Some(pid) if pid != first => Ok(()),
        other => Err(format!("{other:?}: {}", agent.log())),
    })
    .await;
    agent.finish().await;
}
