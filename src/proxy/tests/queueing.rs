//! Instances with a limit of requests, and those that wait for one.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::support::*;
use crate::proxy::RouteLimits;
use crate::proxy::table::Route;

const WAIT: Duration = Duration::from_secs(8);

impl TestProxy {
    /// `shop.test`, with these limits.
    async fn route_with(&self, backends: &[&Backend], limits: RouteLimits) {
        self.client.apply(vec![Route { limits, ..route("shop", "shop.test", backends) }]).await.unwrap();
    }

    async fn waiting(&self) -> usize {
        self.client.counts().await.unwrap().queues.iter().map(|queue| queue.waiting).sum()
    }

    /// A request of its own connection, on its way.
    async fn sent(&self, path: &str) -> Wire {
        let mut wire = self.wire().await;
        wire.send(&format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
        wire
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_gets_no_more_than_it_may_and_the_rest_waits_or_is_turned_away() {
    let proxy = TestProxy::start().await;
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d1-web-2").await);
    proxy.route_with(&[&a, &b], RouteLimits { max_requests: Some(2), queue: 3, queue_wait: WAIT }).await;
    // A stream is no request: these take no room.
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut wire = proxy.wire().await;
        wire.send("GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await;
        assert!(wire.until(b"hello").await.is_some());
        streams.push(wire);
    }
    let mut answers = Vec::new();
    for _ in 0..7 {
        answers.push(proxy.sent("/slow?600").await);
    }
    eventually("three wait", || async { proxy.waiting().await == 3 }).await;
    let began = Instant::now();
    let mut away = proxy.sent("/").await;
    let refused = away.reply().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert!(refused.body.contains("shop.test has as many requests as it can take"), "{}", refused.body);
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    for wire in &mut answers {
        assert_eq!(wire.reply().await.status, 200);
    }
    assert_eq!(proxy.waiting().await, 0);
    let open = [&a, &b].map(|backend| backend.seen.most_open.load(SeqCst));
    assert_eq!(open, [2, 2], "besides the streams");
    assert_eq!(proxy.counts().await.failed, 1);
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_the_first_instance_of_an_app_that_starts() {
    let proxy = TestProxy::start().await;
    let limits = RouteLimits { queue: 50, queue_wait: WAIT, ..RouteLimits::default() };
    proxy.route_with(&[], limits).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(proxy.sent("/").await);
    }
    eventually("all wait", || async { proxy.waiting().await == 20 }).await;
    let a = Backend::start("d1-web-1").await;
    proxy.route_with(&[&a], limits).await;
    for wire in &mut waiting {
        assert_eq!(wire.reply().await.status, 200);
    }

    // Not for ever.
    proxy.route_with(&[], RouteLimits { queue_wait: Duration::from_millis(200), ..limits }).await;
    let began = Instant::now();
    let late = proxy.sent("/").await.reply().await;
    assert!(late.status == 503 && late.body.contains("nothing runs behind shop.test"), "{}", late.body);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
}
