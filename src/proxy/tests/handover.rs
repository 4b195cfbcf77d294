//! A proxy that takes over from another, under traffic.

use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::support::*;
use crate::proxy::table::Table;
use crate::proxy::{ProxyClient, ProxyOptions, handover, run};

const STREAM: &str = "GET /sse HTTP/1.1\r\nHost: shop.test\r\n\r\n";

/// A second process of the same proxy: it takes over.
async fn take_over(first: &TestProxy, options: ProxyOptions) -> (std::net::SocketAddr, JoinHandle<anyhow::Result<()>>) {
    let (ready, address) = oneshot::channel();
    let options = ProxyOptions { take_over: true, ready: Some(ready), ..options };
    let task = tokio::spawn(run(options, first.shutdown.clone()));
    match address.await {
        Ok(address) => (address, task),
        Err(_) => panic!("{:?}", task.await),
    }
}

fn options(first: &TestProxy) -> ProxyOptions {
    ProxyOptions::new(first.address, first.dir.path().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_notices_that_proxies_take_over_from_each_other() {
    let first = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    first.route(&[&backend]).await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (stop, sent, address) = (Arc::clone(&stop), Arc::clone(&sent), first.address);
            tokio::spawn(async move {
                let mut wire = Wire::open(address).await;
                while !stop.load(SeqCst) {
                    // Every other client is a new one each time.
                    if client % 2 == 0 {
                        wire = Wire::open(address).await;
                    }
                    let reply = wire.get("/").await;
                    assert_eq!((reply.status, reply.complete), (200, true));
                    if reply.header("connection") == Some("close") {
                        wire = Wire::open(address).await;
                    }
                    sent.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let boot = first.client.status().boot;
    let mut tasks = Vec::new();
    for _ in 0..5 {
        let before = sent.load(SeqCst);
        let (address, task) = take_over(&first, options(&first)).await;
        assert_eq!(address, first.address);
        tasks.push(task);
        eventually("traffic goes on", || async { sent.load(SeqCst) > before + 100 }).await;
    }
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    eventually("the agent has found the last one", || async { first.client.status().connected }).await;
    assert_eq!(first.client.status().boot, boot);
    // Whoever served them: all were counted, once.
    eventually("all are counted", || async { first.counts().await.served == sent.load(SeqCst) as u64 }).await;
    assert_eq!(first.counts().await.failed, 0);
    first.route(&[]).await;
    assert_eq!(first.wire().await.get("/").await.status, 503, "the last one obeys");
    assert!(timeout(Duration::from_secs(10), first.task).await.is_ok(), "the first one has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_let_go_of_when_both_processes_have() {
    let first = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    first.route(&[&old]).await;
    let (mut stream, mut slow, mut idle) = (first.wire().await, first.wire().await, first.wire().await);
    stream.send(STREAM).await;
    stream.until(b"data: 0\n\n").await.unwrap();
    assert_eq!(idle.get("/").await.status, 200);
    slow.send("GET /slow?1500 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    eventually("both are under way", || async { first.in_flight(&old).await == 2 }).await;
    let (_, _second) = take_over(&first, options(&first)).await;
    eventually("the agent finds the new one", || async { first.client.counts().await.is_some() }).await;
    assert_eq!(first.in_flight(&old).await, 2, "what the old process has counts");
    // A table for the new process is one for the old: its idle client is not led astray.
    first.route(&[&new]).await;
    let reply = idle.get("/").await;
    assert_eq!((reply.body.as_str(), reply.header("connection")), ("d2-web-1", Some("close")));
    let drained = first.client.drain(&old.id, limits(10_000, 2000)).await;
    assert!(drained.confirmed && drained.took >= Duration::from_millis(1000), "{drained:?}");
    assert_eq!((drained.cut_requests, drained.cut_streams), (0, 1));
    assert_eq!(slow.reply().await.body, "d1-web-1");
    assert!(!first.task.is_finished(), "the stream's connection is still open");
    drop(stream);
    assert!(timeout(Duration::from_secs(10), first.task).await.is_ok(), "the first one has ended");
    assert_eq!(first.client.counts().await.unwrap().in_flight.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_way_is_finished_by_the_process_that_began_it() {
    let first = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    first.route(&[&old]).await;
    let mut stream = first.wire().await;
    stream.send(STREAM).await;
    stream.until(b"data: 0\n\n").await.unwrap();
    first.route(&[&new]).await;
    let (client, id) = (first.client.clone(), old.id.clone());
    let drain = tokio::spawn(async move { client.drain(&id, limits(3000, 3000)).await });
    eventually("it is asked for", || async { first.in_flight(&old).await == 1 }).await;
    let (_, _second) = take_over(&first, options(&first)).await;
    let drained = drain.await.unwrap();
    assert_eq!((drained.confirmed, drained.cut_streams), (true, 1), "{drained:?}");
    assert!(drained.took >= Duration::from_secs(2), "not given up with the connection: {drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_replaced_process_are_closed_at_their_limit() {
    let first = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    first.route(&[&backend]).await;
    let mut stream = first.wire().await;
    stream.send(STREAM).await;
    stream.until(b"data: 0\n\n").await.unwrap();
    let started = Instant::now();
    let (_, _second) = take_over(&first, ProxyOptions { limits: limits(30_000, 1000), ..options(&first) }).await;
    // To its proper end, as a stream that is closed.
    assert!(stream.until(b"0\r\n\r\n").await.is_some());
    assert!(started.elapsed() >= Duration::from_millis(800), "{:?}", started.elapsed());
    drop(stream);
    assert!(timeout(Duration::from_secs(5), first.task).await.is_ok(), "the first one has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_address_is_served_before_the_old_one_is_closed() {
    let first = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    first.route(&[&backend]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let options = ProxyOptions::new(free, first.dir.path().to_owned());
    let (address, _second) = take_over(&first, options).await;
    assert_eq!(address, free);
    assert_eq!(Wire::open(free).await.get("/").await.status, 200);
    eventually("the old address is closed", || async { tokio::net::TcpStream::connect(first.address).await.is_err() })
        .await;
    eventually("the agent knows", || async { first.client.status().listeners == [free.to_string()] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_does_not_get_ready_changes_nothing() {
    let first = TestProxy::start().await;
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    first.route(&[&a]).await;
    // Its port is taken.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ProxyOptions::new(taken.local_addr().unwrap(), first.dir.path().to_owned());
    let options = ProxyOptions { take_over: true, ..options };
    let why = run(options, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(why.contains("is used by"), "{why}");
    // It takes what is handed over and is not heard of again, as when it hangs; a table waits that long and no longer.
    let dir = first.dir.path().to_owned();
    let offer = tokio::task::spawn_blocking(move || handover::ask(&dir)).await.unwrap().unwrap();
    let dir = first.dir.path().to_owned();
    let why = tokio::task::spawn_blocking(move || handover::ask(&dir)).await.unwrap().unwrap_err();
    assert!(format!("{why:#}").contains("being handed over already"), "{why:#}");
    first.route(&[&b]).await;
    assert_eq!(first.wire().await.get("/").await.body, "d2-web-1");
    // Too late.
    let late = handover::take(offer.link, offer.before, Vec::new(), limits(1, 1)).await;
    assert!(format!("{:#}", late.unwrap_err()).contains("was not ready within"));
    assert!(first.dir.path().join("proxy.sock").exists());
    // And the next one succeeds.
    let (_, _second) = take_over(&first, self::options(&first)).await;
    assert_eq!(first.wire().await.get("/").await.body, "d2-web-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_loses_its_successor_finishes_and_ends() {
    let first = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    first.route(&[&backend]).await;
    let mut slow = first.wire().await;
    slow.send("GET /slow?1500 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    eventually("it is under way", || async { first.in_flight(&backend).await == 1 }).await;
    let (_, second) = take_over(&first, options(&first)).await;
    second.abort();
    let _ = second.await;
    // Another one starts from the file meanwhile.
    let third = TestProxy::start_in(Arc::clone(&first.dir)).await;
    assert_eq!(third.wire().await.get("/").await.body, "d1-web-1");
    assert_eq!(slow.reply().await.body, "d1-web-1");
    assert!(timeout(Duration::from_secs(5), first.task).await.is_ok(), "the first one has ended");
    assert!(third.client.counts().await.is_some(), "the socket is the third one's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_take_no_connection_at_the_start_are_passed_over_until_they_do() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (dead, alive) = (Backend::start("d1-web-1").await, Backend::start("d1-web-2").await);
    let address = dead.address;
    let routes = vec![route("shop", "shop.test", &[&dead, &alive])];
    crate::proxy::saved::Saved::in_dir(dir.path()).save(&Table { generation: 3, routes }).unwrap();
    drop(dead);
    eventually("it is gone", || async { tokio::net::TcpStream::connect(address).await.is_err() }).await;
    let proxy = TestProxy::start_in(dir).await;
    // Beyond the second for which a failure is remembered.
    let end = Instant::now() + Duration::from_millis(1300);
    while Instant::now() < end {
        assert_eq!(proxy.wire().await.get("/").await.body, "d1-web-2");
    }
    assert_eq!(proxy.counts().await.retried, 0, "nobody had to find out");
    let back = TcpListener::bind(address).await.unwrap();
    assert!(timeout(Duration::from_secs(5), back.accept()).await.is_ok(), "it is asked again");
    eventually("it is chosen again", || async {
        let _ = timeout(Duration::from_millis(20), proxy.wire().await.get("/")).await;
        timeout(Duration::from_millis(5), back.accept()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_silent_proxy_is_told_from_none() {
    let dir = tempfile::tempdir().unwrap();
    let client = ProxyClient::start(dir.path());
    let mut status = client.watch_status();
    status.wait_for(|status| status.absent).await.unwrap();
    let socket = dir.path().join(crate::proxy::control::SOCKET_NAME);
    // Connections are taken by the kernel, and nobody speaks: as when the process is stopped.
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    status.wait_for(|status| !status.absent).await.unwrap();
    assert!(!client.status().connected);
    drop(listener);
    assert!(Blocking::connect(&socket).is_err());
    status.wait_for(|status| status.absent).await.unwrap();
}
