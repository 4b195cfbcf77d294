//! Drains: slow requests, upgrades and event streams while their instance leaves.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::support::*;
use crate::model::InstanceId;
use crate::proxy::table::DrainLimits;

async fn upgraded(proxy: &TestProxy) -> Wire {
    upgraded_by(proxy, "/ws").await
}

async fn upgraded_by(proxy: &TestProxy, path: &str) -> Wire {
    let mut wire = proxy.wire().await;
    wire.send(&format!(
        "GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n"
    ))
    .await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.header("upgrade")), (101, Some("echo")));
    wire
}

async fn echoes(wire: &mut Wire, text: &str) {
    wire.send(text).await;
    assert_eq!(wire.until(text.as_bytes()).await.as_deref(), Some(text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_lives_through_a_switch_until_its_budget() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let (mut first, mut second) = (upgraded(&proxy).await, upgraded(&proxy).await);
    assert_eq!(first.until(b"\n").await.as_deref(), Some("hello from d1-web-1\n"));
    assert_eq!(second.until(b"\n").await.as_deref(), Some("hello from d1-web-1\n"));
    proxy.route(&[&new]).await;
    let started = Instant::now();
    let drain = tokio::spawn({
        let (client, id) = (proxy.client.clone(), old.id.clone());
        async move { client.drain(&id, limits(50, 800)).await }
    });
    assert_eq!(proxy.wire().await.get("/").await.body, "d2-web-1");
    while started.elapsed() < Duration::from_millis(500) {
        echoes(&mut first, "still here\n").await;
        echoes(&mut second, "here too\n").await;
    }
    assert!(!drain.is_finished(), "open streams keep their instance");
    assert!(first.is_closed().await && second.is_closed().await);
    let drained = drain.await.unwrap();
    assert_eq!((drained.cut_requests, drained.cut_streams, drained.confirmed), (0, 2, true));
    assert!((700..5_000).contains(&drained.took.as_millis()), "{drained:?}");
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_after_the_answer_to_what_was_said_and_not_before() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    // Its answers take a while; one is waited for when the budget is over, and the other one never comes.
    let (mut slow, mut mute) = (upgraded_by(&proxy, "/ws?250").await, upgraded_by(&proxy, "/ws?60000").await);
    for tunnel in [&mut slow, &mut mute] {
        assert_eq!(tunnel.until(b"\n").await.as_deref(), Some("hello from d1-web-1\n"));
        tunnel.send("a message\n").await;
    }
    eventually("both have come", || async { proxy.in_flight(&old).await == 2 }).await;
    proxy.route(&[&new]).await;
    let drained = proxy.client.drain(&old.id, limits(50, 50)).await;
    assert_eq!((drained.cut_streams, drained.confirmed), (2, true), "{drained:?}");
    assert!(drained.took < Duration::from_secs(5), "{drained:?}");
    assert_eq!(slow.until(b"\n").await.as_deref(), Some("a message\n"));
    assert!(slow.is_closed().await && mute.is_closed().await);
    assert_eq!(proxy.in_flight(&old).await, 0, "whoever is silent for ever is waited for no longer than the limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_has_the_budget_of_streams() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let mut wire = proxy.wire().await;
    wire.send("GET /sse HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    wire.until(b"data: 0\n\n").await.unwrap();
    proxy.route(&[&new]).await;
    let drained = proxy.client.drain(&old.id, limits(1, 300)).await;
    assert_eq!((drained.cut_requests, drained.cut_streams), (0, 1), "{drained:?}");
    assert!(drained.took >= Duration::from_millis(250), "{drained:?}");
    wire.until(b"\r\n0\r\n\r\n").await.expect("the stream ends properly");
    assert_eq!(wire.get("/").await.body, "d2-web-1", "and the client's connection goes on");
    assert_eq!(proxy.counts().await.failed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_that_told_its_length_does_not_look_whole_when_it_is_cut() {
    let (proxy, instance) = played_instance().await;
    let mut client = proxy.wire().await;
    client.send("GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let mut speaker = Wire { stream: instance.accept().await.unwrap().0, rest: Vec::new() };
    speaker.until(b"\r\n\r\n").await.unwrap();
    speaker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5000\r\n\r\ndata: 0\n\n").await;
    client.until(b"data: 0\n\n").await.unwrap();
    let next = Backend::start("d2-web-1").await;
    proxy.route(&[&next]).await;
    let drained = proxy.client.drain(&InstanceId::parse("d1-web-1").unwrap(), limits(1, 50)).await;
    assert_eq!((drained.cut_requests, drained.cut_streams), (0, 1), "{drained:?}");
    assert!(client.is_closed().await, "the next answer would be taken for the rest of this one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_slow_answers_and_ends_at_once_without() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let mut wire = proxy.wire().await;
    wire.send("GET /slow?400 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    eventually("it is under way", || async { proxy.in_flight(&old).await == 1 }).await;
    proxy.route(&[&new]).await;
    let drained = proxy.client.drain(&old.id, limits(10_000, 10_000)).await;
    let counted = proxy.counts().await;
    assert!((200..9_000).contains(&drained.took.as_millis()) && drained.cut_requests == 0, "{drained:?}");
    assert_eq!(wire.reply().await.body, "d1-web-1");
    assert_eq!(counted.served, 1, "the answer was through before the drain was reported");

    proxy.route(&[&old]).await;
    let started = Instant::now();
    let idle = proxy.client.drain(&new.id, limits(10_000, 10_000)).await;
    assert!(idle.confirmed && started.elapsed() < Duration::from_secs(5), "{idle:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_instance_has_not_begun_to_answer_goes_to_another_one() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let (mut get, mut other_get, mut post) = (proxy.wire().await, proxy.wire().await, proxy.wire().await);
    get.send("GET /slow?60000 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    // On the connection that a POST has left: another way through the proxy.
    post.send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(post.reply().await.status, 200);
    other_get.send("GET /slow?60000 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    post.send("POST /slow?60000 HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n").await;
    eventually("all are under way", || async { proxy.in_flight(&old).await == 3 }).await;
    proxy.route(&[&new]).await;
    let drained = proxy.client.drain(&old.id, DrainLimits::NONE).await;
    assert!(drained.confirmed && drained.took < Duration::from_secs(5), "{drained:?}");
    eventually("the other one has them", || async { proxy.in_flight(&new).await == 2 }).await;
    assert_eq!(post.reply().await.status, 502, "it may have been acted upon");
    assert_eq!((proxy.counts().await.failed, proxy.counts().await.retried), (1, 2));
    drop((get, other_get));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlives_its_budget_is_cut_and_counted() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let mut slow = proxy.wire().await;
    slow.send("GET /slow?60000 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    // Its answer is far larger than any buffer, and nobody reads it.
    let mut stuck = proxy.wire().await;
    let blocks = 64;
    stuck.send(&format!("PUT /echo HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {}\r\n\r\n", blocks << 20)).await;
    let block = "x".repeat(1 << 20);
    while timeout(Duration::from_millis(300), stuck.send(&block)).await.is_ok() {}
    assert_eq!(proxy.in_flight(&old).await, 2);
    proxy.route(&[&new]).await;
    let drained = proxy.client.drain(&old.id, limits(200, 200)).await;
    assert_eq!((drained.cut_requests, drained.confirmed), (2, true), "{drained:?}");
    assert!(drained.took < Duration::from_secs(1), "{drained:?}");
    assert_eq!(slow.reply().await.status, 504);
    assert_eq!((proxy.counts().await.failed, proxy.in_flight(&old).await), (2, 0));
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_comes_back_is_not_drained_further() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let mut tunnel = upgraded(&proxy).await;
    proxy.route(&[&new]).await;
    let drain = tokio::spawn({
        let (client, id) = (proxy.client.clone(), old.id.clone());
        async move { client.drain(&id, limits(300, 300)).await }
    });
    eventually("it is under way", || async { proxy.in_flight(&old).await == 1 }).await;
    proxy.route(&[&old]).await;
    assert_eq!(drain.await.unwrap().cut_streams, 0);
    tokio::time::sleep(Duration::from_millis(400)).await;
    tunnel.until(b"\n").await.unwrap();
    echoes(&mut tunnel, "kept\n").await;
}
