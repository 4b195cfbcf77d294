//! `git push` into a bare repository with the hook that `longshore hook install` puts there.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::shop::{LIMIT, Options, SECRET, Shop};
use crate::support::engine::{self, Engine};
use crate::support::site::Behaviour;
use crate::support::spawned::{Ended, Spawned};
use crate::support::wait::eventually;

/// A shop whose repository has the hook.
async fn with_hook(engine: &Engine) -> Shop {
    let shop = Shop::start(engine, &Behaviour::version("v1"), Options::quick()).await;
    let origin = shop.repo.url();
    let done = shop.agent.cli(&["hook", "install", &origin]).await;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("Installed"), "{done:?}");
    assert!(!said.contains(SECRET), "{said}");
    shop
}

fn push(shop: &Shop, refspec: &str) -> Spawned {
    Spawned::start(Command::from(shop.repo.command(&shop.repo.work(), &["push", "--force", "origin", refspec])))
}

async fn pushed(shop: &Shop, refspec: &str) -> Ended {
    let ended = push(shop, refspec).ended(LIMIT).await;
    assert!(ended.status.success(), "{}", ended.text());
    ended
}

async fn push_version(shop: &Shop, behaviour: &Behaviour) -> Ended {
    shop.repo.write_site(behaviour);
    shop.repo.commit("A new version");
    pushed(shop, "HEAD:refs/heads/main").await
}

/// What the hook printed, without git's prefix.
fn remote(ended: &Ended) -> Vec<&str> {
    ended.lines.iter().filter_map(|line| line.text.strip_prefix("remote: ")).map(str::trim_end).collect()
}

#[tokio::test]
async fn the_pusher_sees_the_deployment_as_it_happens() {
    let Some(engine) = engine::or_skip("the_pusher_sees_the_deployment").await else { return };
    let shop = with_hook(&engine).await;

    let slow = push_version(&shop, &Behaviour::version("v1b").ready_after_ms(1500)).await;
    let lines = remote(&slow);
    assert!(lines[0].starts_with("longshore: queued main at "), "{lines:#?}");
    assert_eq!(lines.last(), Some(&"longshore: succeeded v1"), "{lines:#?}");
    let last = slow.line("longshore: succeeded v1").at;
    for early in ["longshore: queued", "fetched in", "rolling out v1"] {
        let before = last - slow.line(early).at;
        assert!(before > Duration::from_millis(1000), "{early:?} came only {before:?} before the end: {lines:#?}");
    }
    assert_eq!(shop.version().await, "v1b");

    let bad = push_version(&shop, &Behaviour::version("v2").exit_at_once(3)).await;
    let lines = remote(&bad);
    let last = lines.last().unwrap();
    assert!(last.starts_with("longshore: rolled_back: ") && last.contains("exited with code 3"), "{lines:#?}");
    assert_eq!(shop.version().await, "v1b");

    // The same commit again: it is held, and its pusher is told what to do.
    pushed(&shop, "HEAD~1:refs/heads/main").await;
    let held = pushed(&shop, "HEAD:refs/heads/main").await;
    let lines = remote(&held);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].starts_with("longshore: held: main at") && lines[0].contains("longshore deploy shop"),
        "{lines:#?}"
    );

    // Back behind what is live, on purpose: git's lines do not say so, its history does.
    let back = pushed(&shop, "HEAD~2:refs/heads/main").await;
    assert_eq!(remote(&back).last(), Some(&"longshore: succeeded v3"), "{:#?}", remote(&back));
    assert_eq!(shop.version().await, "v1");

    // A build that fails is read by the pusher as well, and nothing is switched.
    shop.repo.write("Dockerfile", "FROM scratch\nCOPY nowhere /x\n");
    shop.repo.commit("Break the build");
    let broken = pushed(&shop, "HEAD:refs/heads/main").await;
    let lines = remote(&broken);
    assert!(lines.last().unwrap().starts_with("longshore: failed: the build of web failed"), "{lines:#?}");
    assert_eq!(shop.version().await, "v1");
    shop.finish().await;
}

#[tokio::test]
async fn a_push_that_deploys_nothing_says_so_in_one_line() {
    let Some(engine) = engine::or_skip("a_push_that_deploys_nothing").await else { return };
    let mut shop = with_hook(&engine).await;
    shop.repo.set_origin_config("receive.denyDeleteCurrent", "ignore");
    let main = shop.repo.remote_tip("refs/heads/main");
    shop.repo.git(&["tag", "v1.0"]);
    shop.repo.git(&["tag", "--annotate", "--message", "v1.1", "v1.1"]);
    let rows = [
        ("refs/tags/v1.0", "longshore: ignored: tag v1.0: only branch main is deployed"),
        ("refs/tags/v1.1", "longshore: ignored: tag v1.1: only branch main is deployed"),
        ("HEAD:refs/heads/next", "longshore: ignored: branch next: only branch main is deployed"),
        ("HEAD:refs/heads/a;$(id)", "longshore: ignored: branch a;$(id): only branch main is deployed"),
        (":refs/heads/next", "longshore: ignored: branch next: only branch main is deployed"),
        (
            ":refs/heads/main",
            "longshore: ignored: branch main was deleted: nothing is deployed, and what runs stays as it is",
        ),
    ];
    for (refspec, line) in rows {
        assert_eq!(remote(&pushed(&shop, refspec).await), [line], "{refspec}");
    }
    assert_eq!(shop.deployments().await.len(), 0);

    shop.agent.stop().await;
    let down = pushed(&shop, &format!("{main}:refs/heads/main")).await;
    let line = format!(
        "longshore: nobody answers at http://{}: is the agent running? Nothing was deployed so far; unless `reconcile` is \
         off, it finds the push at its start",
        shop.agent.listen
    );
    assert_eq!(remote(&down), [line]);
    shop.finish().await;
}

#[tokio::test]
async fn a_superseded_push_tells_its_pusher() {
    let Some(engine) = engine::or_skip("a_superseded_push").await else { return };
    let shop = with_hook(&engine).await;
    let commit = |version: &str, ready: u64| {
        shop.repo.write_site(&Behaviour::version(version).ready_after_ms(ready));
        shop.repo.commit(version);
    };
    commit("first", 4000);
    let first = push(&shop, "HEAD:refs/heads/main");
    first.prints("rolling out v1", LIMIT).await;
    commit("second", 0);
    let second = push(&shop, "HEAD:refs/heads/main");
    second.prints("longshore: queued", LIMIT).await;
    commit("third", 0);
    let third = push(&shop, "HEAD:refs/heads/main");
    third.prints("in place of #2", LIMIT).await;

    // The second one ends at once, while the first still rolls out.
    let second = second.ended(LIMIT).await;
    assert_eq!(remote(&second).last(), Some(&"longshore: superseded: replaced by #3"));
    let first = first.ended(LIMIT).await;
    assert_eq!(remote(&first).last(), Some(&"longshore: succeeded v1"));
    assert!(second.at < first.line("longshore: succeeded v1").at);
    let third = third.ended(LIMIT).await;
    assert_eq!(remote(&third).last(), Some(&"longshore: succeeded v2"));
    assert_eq!(shop.version().await, "third");
    shop.finish().await;
}

#[tokio::test]
async fn the_deployment_goes_on_without_its_pusher() {
    let Some(engine) = engine::or_skip("the_deployment_goes_on").await else { return };
    let mut shop = with_hook(&engine).await;
    shop.repo.write_site(&Behaviour::version("left").ready_after_ms(1500));
    shop.repo.commit("A new version");
    let gone = push(&shop, "HEAD:refs/heads/main");
    gone.prints("rolling out v1", LIMIT).await;
    drop(gone);
    let ended = shop.agent.deployment_ended(1, LIMIT).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");

    // An agent that ends in the middle: the pusher is told, and the deployment is finished by the next one.
    shop.repo.write_site(&Behaviour::version("cut").ready_after_ms(3000));
    shop.repo.commit("A new version");
    let cut = push(&shop, "HEAD:refs/heads/main");
    cut.prints("rolling out v2", LIMIT).await;
    shop.agent.kill().await;
    let cut = cut.ended(LIMIT).await;
    assert!(cut.status.success());
    let lines = remote(&cut);
    assert!(lines.last().unwrap().starts_with("longshore: the connection to the agent broke off"), "{lines:#?}");
    shop.agent.start().await;
    let ended = shop.agent.deployment_ended(2, LIMIT).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    assert_eq!(shop.version().await, "cut");
    shop.finish().await;
}

#[tokio::test]
async fn an_agent_that_ends_lets_go_of_those_who_follow_and_tells_them_that_it_goes_on() {
    let Some(engine) = engine::or_skip("an_agent_that_ends_lets_go").await else { return };
    let mut shop = with_hook(&engine).await;
    shop.repo.write_site(&Behaviour::version("v1").ready_after_ms(8000));
    shop.repo.commit("A slow version");
    let pushing = push(&shop, "HEAD:refs/heads/main");
    let reading = async |shop: &Shop| {
        let reading = Spawned::start(shop.agent.command(&["logs", "--deployment", "1", "-f"]));
        reading.prints("rolling out v1", LIMIT).await;
        reading
    };
    pushing.prints("rolling out v1", LIMIT).await;
    let reader = reading(&shop).await;
    let watching = Spawned::start(shop.agent.command(&["status", "shop", "--watch"]));
    watching.prints("rolling out", LIMIT).await;
    let began = Instant::now();
    assert!(shop.agent.stop().await.success());
    let took = began.elapsed();
    // Nothing is to be waited for: this is a matter of milliseconds, on a machine that has nothing else to do.
    assert!(took < Duration::from_millis(1500), "the agent took {took:?} to end");

    let pushing = pushing.ended(LIMIT).await;
    assert!(pushing.status.success());
    let lines = remote(&pushing);
    let told = "longshore: the agent ends; deployment #1 goes on when it is back: see `longshore status shop`";
    assert_eq!(lines.last(), Some(&told), "{lines:#?}");
    let reader = reader.ended(LIMIT).await;
    assert_eq!(reader.status.code(), Some(1), "{}", reader.text());
    assert!(reader.text().contains("the agent ends; what is under way goes on when it is back"), "{}", reader.text());

    shop.agent.start().await;
    watching.prints("succeeded", LIMIT).await;
    let ended = shop.agent.deployment_ended(1, LIMIT).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    shop.finish().await;
}

#[tokio::test]
async fn a_pusher_does_not_wait_for_an_agent_that_is_stopped() {
    let Some(engine) = engine::or_skip("a_pusher_does_not_wait_for_an_agent_that_is_stopped").await else { return };
    let shop = with_hook(&engine).await;
    shop.repo.set_origin_config("longshore.silence", "3");
    shop.repo.write_site(&Behaviour::version("v1").ready_after_ms(4000));
    shop.repo.commit("A slow version");
    let pushing = push(&shop, "HEAD:refs/heads/main");
    pushing.prints("web-1: starting", LIMIT).await;
    shop.agent.signal(Signal::SIGSTOP);
    let left = pushing.ended(Duration::from_secs(20)).await;
    assert!(left.status.success(), "{}", left.text());
    let told = format!(
        "longshore: the agent at http://{} has said nothing for 3 s and is not waited for; the deployment goes on when it does: \
         see `longshore status shop`",
        shop.agent.listen
    );
    assert_eq!(remote(&left).last(), Some(&told.as_str()), "{:#?}", remote(&left));

    // One that comes meanwhile is answered by the kernel alone.
    shop.repo.write_site(&Behaviour::version("v2"));
    shop.repo.commit("A newer version");
    let unheard = push(&shop, "HEAD:refs/heads/main").ended(Duration::from_secs(20)).await;
    assert!(unheard.status.success(), "{}", unheard.text());
    let lines = remote(&unheard);
    assert!(lines.len() == 1 && lines[0].contains("does not answer: if it has not taken the push"), "{lines:#?}");

    // What it had taken goes on; the other one it may have found as it came back.
    shop.agent.signal(Signal::SIGCONT);
    let ended = shop.agent.deployment_ended(1, LIMIT).await;
    assert!(["succeeded", "superseded"].contains(&ended["status"].as_str().unwrap()), "{ended:#}");
    shop.finish().await;
}

/// Of memory that is the process's own, in MiB.
fn own_memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}

#[tokio::test]
async fn what_a_large_push_took_is_given_back() {
    let Some(engine) = engine::or_skip("what_a_large_push_took").await else { return };
    let shop = with_hook(&engine).await;
    // Not to be compressed, nor to be sent to the engine.
    let mut random = vec![0; 12 << 20];
    getrandom::fill(&mut random).unwrap();
    shop.repo.write("recording.bin", &random);
    shop.repo.write(".dockerignore", "recording.bin\n");
    push_version(&shop, &Behaviour::version("v1")).await;
    eventually("the agent is as small as before", LIMIT, async || {
        let mebibytes = own_memory(shop.agent.pid().unwrap());
        if mebibytes < 12.0 { Ok(()) } else { Err(format!("{mebibytes:.1} MiB")) }
    })
    .await;
    shop.finish().await;
}
