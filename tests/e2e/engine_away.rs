//! The engine is not there when the agent starts: what runs goes on serving, pushes are taken, and nothing is deployed
//! before the agent knows what runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::http;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

const ENGINE: &str = "/var/run/docker.sock";

/// What becomes of a question for the list of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// It is not answered.
    Hang,
    /// It is answered with an error.
    Fail,
    /// The engine answers it.
    Pass,
}

/// A way to the engine on which lists of containers have a fate of their own.
struct Front {
    lists: watch::Sender<Lists>,
    /// Lists that were asked for and did not pass.
    refused: watch::Receiver<usize>,
    task: AbortHandle,
}

impl Front {
    fn open(path: &Path, lists: Lists) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let lists = watch::Sender::new(lists);
        let (count, refused) = watch::channel(0);
        let (fates, count) = (lists.subscribe(), Arc::new(count));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (fates, count) = (fates.clone(), Arc::clone(&count));
                // A connection that breaks is the agent's matter.
                tokio::spawn(async move { pass(near, fates, &count).await.ok() });
            }
        });
        Self { lists, refused, task: task.abort_handle() }
    }

    async fn refuses_more(&mut self) {
        let before = *self.refused.borrow();
        let waiting = self.refused.wait_for(|now| *now > before);
        tokio::time::timeout(LIMIT, waiting).await.expect("the agent asks for a list").unwrap();
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut near: UnixStream,
    mut fates: watch::Receiver<Lists>,
    refused: &watch::Sender<usize>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.contains(&b'\n') && near.read_buf(&mut head).await? > 0 {}
    let fate = *fates.borrow_and_update();
    let is_list = String::from_utf8_lossy(&head).lines().next().is_some_and(|line| line.contains("/containers/json"));
    if is_list && fate != Lists::Pass {
        refused.send_modify(|count| *count += 1);
        if fate == Lists::Hang {
            // Until it is decided otherwise; then the connection is cut.
            let _ = fates.changed().await;
            return Ok(());
        }
        return near.write_all(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").await;
    }
    let mut far = UnixStream::connect(ENGINE).await?;
    far.write_all(&head).await?;
    copy_bidirectional(&mut near, &mut far).await.map(drop)
}

/// What `/readyz` says is in the way.
async fn problems(shop: &Shop) -> String {
    match http::get(shop.agent.listen, "localhost", "/readyz").await {
        Ok(answer) if answer.status == 503 => answer.json()["problems"].to_string(),
        Ok(answer) => format!("{} {}", answer.status, answer.text()),
        Err(why) => why,
    }
}

async fn says_in_the_way(shop: &Shop, part: &str) {
    eventually(&format!("/readyz says {part:?}"), LIMIT, async || {
        let problems = problems(shop).await;
        if problems.contains(part) { Ok(()) } else { Err(format!("{problems}\n{}", shop.agent.log())) }
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_starts_beside_a_stopped_engine_refuses_nobody() {
    let Some(engine) = engine::or_skip("an_agent_that_starts_beside_a_stopped_engine").await else { return };
    let directory = tempfile::tempdir().unwrap();
    let socket: PathBuf = directory.path().join("docker.sock");
    std::os::unix::fs::symlink(ENGINE, &socket).unwrap();
    let options = Options::quick().table(&format!("[runtime]\ndocker_host = \"unix://{}\"", socket.display()));
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    shop.agent.kill().await;
    shop.agent.stop_proxy();
    std::fs::remove_file(&socket).unwrap();
    // The kernel takes connections to a process that is stopped.
    let stopped = UnixListener::bind(&socket).unwrap();
    shop.agent.spawn();
    let listens = async || TcpStream::connect(shop.agent.listen).await.map(drop).map_err(|err| err.to_string());
    eventually("the agent listens, engine or not", Duration::from_secs(2), listens).await;
    let serves = async || match shop.agent.visit(HOST, "/").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the app is served, engine or not", Duration::from_secs(2), serves).await;
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    assert_eq!(shop.deployment(id).await["status"], "queued");
    says_in_the_way(&shop, "no answer from unix://").await;
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(ENGINE, &socket).unwrap();
    drop(stopped);
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deployed_before_the_engine_has_said_what_runs() {
    let Some(engine) = engine::or_skip("nothing_is_deployed_before").await else { return };
    let directory = tempfile::tempdir().unwrap();
    let socket: PathBuf = directory.path().join("docker.sock");
    std::os::unix::fs::symlink(ENGINE, &socket).unwrap();
    let options = Options::default().table(&format!("[runtime]\ndocker_host = \"unix://{}\"", socket.display()));
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options.clone()).await;
    let load = shop.load();

    shop.agent.kill().await;
    std::fs::remove_file(&socket).unwrap();
    shop.agent.spawn();
    says_in_the_way(&shop, "there is no socket").await;
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    let waits = async |shop: &Shop| assert_eq!(shop.deployment(id).await["status"], "queued");
    waits(&shop).await;

    let mut front = Front::open(&socket, Lists::Hang);
    front.refuses_more().await;
    waits(&shop).await;
    assert_ne!(problems(&shop).await, "[]");

    front.lists.send_replace(Lists::Fail);
    says_in_the_way(&shop, "the instances of shop could not be looked at; its deployments wait").await;
    front.refuses_more().await;
    front.refuses_more().await;
    // A new configuration changes nothing of that: the proxy keeps the routes that it has.
    shop.reconfigure(&options).await;
    front.refuses_more().await;
    waits(&shop).await;
    assert_eq!(shop.version().await, "v1");
    let app: Value = shop.app().await;
    assert_eq!(app["queued"], 1, "{app:#}");
    assert_eq!(shop.instances("web").await.len(), 2);

    front.lists.send_replace(Lists::Pass);
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    load.stop().await.assert_flawless(100);
    shop.assert_live(2, &[("web", 2)]).await;
    assert_eq!(problems(&shop).await.split(' ').next(), Some("200"));
    let log = shop.agent.log();
    let times = |line: &str| log.matches(line).count();
    assert_eq!(times("deployments wait until the engine answers"), 1, "{log}");
    assert_eq!(times("its deployments wait until they can"), 1, "{log}");
    shop.finish().await;
}
