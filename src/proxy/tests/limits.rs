//! What a client may ask for, and what becomes of one that asks for more.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::config::ProxyLimits;

/// A proxy with these limits and an instance behind it.
async fn start(limits: ProxyLimits) -> (TestProxy, Backend) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let proxy = TestProxy::start_with(dir, |options| options.front.limits = limits).await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    (proxy, backend)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_has_so_many_connections_and_no_more() {
    let (proxy, _backend) = start(ProxyLimits { connections_per_client: 3, ..ProxyLimits::default() }).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut wire = proxy.wire().await;
        assert_eq!(wire.get("/").await.status, 200);
        open.push(wire);
    }
    assert!(proxy.wire().await.is_closed().await, "the fourth");
    assert_eq!(open[0].get("/").await.status, 200, "the others are as before");
    drop(open.pop());
    eventually("its place is free", || async {
        let mut wire = proxy.wire().await;
        wire.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        wire.try_reply().await.is_some_and(|reply| reply.status == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_bodies_have_a_largest_size() {
    let limits = ProxyLimits { max_header_size: 8 << 10, max_body_size: Some(1000), ..ProxyLimits::default() };
    let (proxy, backend) = start(limits).await;
    let head = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Long: {}\r\n\r\n", "x".repeat(9 << 10));
    let mut wire = proxy.wire().await;
    wire.send(&head).await;
    assert_eq!(wire.reply().await.status, 431);

    let mut wire = proxy.wire().await;
    wire.send(&format!("POST /size HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000)))
        .await;
    assert_eq!(wire.reply().await.body, "1000");
    wire.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1001\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 413);
    assert_eq!(backend.requests(), 1, "it was not even begun");

    let mut wire = proxy.wire().await;
    wire.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let piece = format!("190\r\n{}\r\n", "x".repeat(400));
    wire.send(&piece.repeat(3)).await;
    assert_eq!(wire.reply().await.status, 413, "more came than may");
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (1, 0), "these are the client's mistakes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_slow_is_not_waited_for() {
    let limits = ProxyLimits {
        header_timeout: Duration::from_millis(400),
        answer_timeout: Duration::from_millis(600),
        send_timeout: Duration::from_millis(500),
        ..ProxyLimits::default()
    };
    let (proxy, backend) = start(limits).await;
    let mut wire = proxy.wire().await;
    assert_eq!(wire.get("/slow?5000").await.status, 504, "an instance");

    let mut half = proxy.wire().await;
    half.send("GET / HTTP/1.1\r\nHost: sh").await;
    let began = Instant::now();
    let mut rest = Vec::new();
    half.stream.read_to_end(&mut rest).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a client that never ends its head: {:?}", began.elapsed());

    // Echoed, and never read.
    let mut deaf = proxy.wire().await;
    deaf.send("POST /echo HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1000000000\r\n\r\n").await;
    let piece = vec![b'x'; 1 << 20];
    let began = Instant::now();
    while deaf.stream.write_all(&piece).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "a client that takes nothing goes on for ever");
    }
    eventually("the instance is rid of it too", || async {
        proxy.in_flight(&backend).await == 0 && backend.seen.open.load(SeqCst) == 0
    })
    .await;
}
