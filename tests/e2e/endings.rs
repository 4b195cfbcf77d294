//! The agent is asked to end at any moment: it does within ten seconds, and what was under way goes on with the next.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::git_server::{Behaviour as Server, GitServer};
use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::sources;
use crate::support::discord::Fault;
use crate::support::engine;
use crate::support::relay::{Fault as Wire, Relay};
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::spawned::Spawned;
use crate::support::wait::eventually;

/// What a service manager gives at the least.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Ends the agent with SIGTERM; how long that took.
async fn terminated(shop: &mut Shop, moment: &str) -> Duration {
    let began = Instant::now();
    shop.agent.signal(Signal::SIGTERM);
    let status = shop.agent.wait(END_WITHIN).await;
    assert!(status.success(), "{moment}: {status}");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_whatever_moment_a_deployment_is_interrupted_it_is_finished() {
    const STEP: u64 = 300;
    let Some(engine) = engine::or_skip("at_whatever_moment").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("300ms")).await;
    let offset = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64 % STEP;
    let load = shop.load();
    let mut longest = Duration::ZERO;
    let mut interrupted = 0;
    for number in 2u64.. {
        let moment = Duration::from_millis(offset + (number - 2) * STEP);
        let id = shop.push_without_waiting(&Behaviour::version(&format!("v{number}"))).await;
        // Not waiting for anything: the moment is what is tried.
        tokio::time::sleep(moment).await;
        let reached = shop.deployment(id).await;
        longest = longest.max(terminated(&mut shop, &format!("{moment:?} after the push")).await);
        shop.agent.start().await;
        let ended = shop.agent.deployment_ended(id, LIMIT).await;
        assert_ended(&ended, "succeeded", &[]);
        assert_eq!(shop.version().await, format!("v{number}"));
        if !reached["finished_at"].is_null() {
            break;
        }
        interrupted += 1;
    }
    println!("interrupted {interrupted} times, every {STEP} ms from {offset} ms on; it ended within {longest:?}");
    assert!(interrupted > 2, "{interrupted}");
    load.stop().await.assert_flawless(50);
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_does_not_keep_the_agent() {
    let Some(engine) = engine::or_skip("what_hangs_does_not_keep_the_agent").await else { return };
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(directory.path().join("engine.sock"), "/var/run/docker.sock".as_ref());
    let table = format!("[runtime]\ndocker_host = \"{}\"", relay.address());
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().table(&table)).await;

    // A follower reads, a sender stops in the middle of its request, Discord and the engine no longer answer.
    let follower = Spawned::start(shop.agent.command(&["status", "shop", "--watch"]));
    follower.prints("shop", LIMIT).await;
    let mut sender = TcpStream::connect(shop.agent.listen).await.unwrap();
    sender.write_all(b"POST /hooks/shop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    shop.discord.fault(Fault::Hang(Duration::from_secs(60)));
    relay.arm(1, Wire::Hang);
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    eventually("a request to the engine hangs", LIMIT, async || relay.struck().ok_or("none does")).await;
    let took = terminated(&mut shop, "while everything hangs").await;
    println!("while everything hung it ended within {took:?}");
    relay.disarm();
    shop.agent.start().await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v2");
    drop((follower, sender));
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_hangs_is_left_and_cancelled() {
    let Some(engine) = engine::or_skip("a_fetch_that_hangs").await else { return };
    let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
    let server = GitServer::start(repo.origin().parent().unwrap(), Server::Hang, None);
    let mut shop = sources::start(&engine, repo, &server.url("origin.git"), sources::GIT_TOKEN).await;
    let id = shop.ask("POST", "/api/v1/apps/shop/deployments", json!({})).await;
    let asked = async |times: usize| {
        eventually("the remote is asked", LIMIT, async || {
            let arrived = server.arrived().len();
            if arrived >= times { Ok(()) } else { Err(arrived) }
        })
        .await;
    };
    asked(1).await;
    terminated(&mut shop, "while a fetch hangs").await;
    shop.agent.start().await;
    asked(2).await;
    assert_eq!(shop.deployment(id).await["status"], "preparing");
    shop.cancel(id).await;
    let began = Instant::now();
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "cancelled", &["cancelled by"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    shop.finish().await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_is_named_to_whoever_asks_it() {
    let Some(engine) = engine::or_skip("an_agent_that_is_stopped").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let pid = shop.agent.pid().expect("it runs");
    shop.agent.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let asked = shop.agent.cli(&["status"]).await;
    let said = String::from_utf8(asked.stderr).unwrap();
    assert_eq!(asked.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("the agent (pid {pid}) runs and does not answer")), "{said}");
    assert!(said.contains(&format!("kill -CONT {pid}")) && !said.contains("start it with"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    shop.agent.signal(Signal::SIGCONT);
    let asked = shop.agent.cli(&["status"]).await;
    assert!(asked.status.success(), "{asked:?}");
    shop.finish().await;
}
