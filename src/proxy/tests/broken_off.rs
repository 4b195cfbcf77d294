//! Answers that break off: what there is of them reaches the client, and does not look whole.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::support::*;
use crate::model::InstanceId;

/// The beginning of a chunked answer.
fn beginning() -> String {
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n", "x".repeat(1024))
}

/// Requests for all ways through the proxy, and whether the connection's end alone tells their clients where an answer ends.
const REQUESTS: [(&str, bool); 4] = [
    ("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n", false),
    ("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\nok", false),
    ("GET / HTTP/1.0\r\nHost: shop.test\r\n\r\n", true),
    ("POST / HTTP/1.0\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\nok", true),
];

/// All that comes, and whether the connection was closed in order.
async fn read(client: &mut Wire) -> (String, bool) {
    let mut bytes = Vec::new();
    let ended = timeout(Duration::from_secs(10), client.stream.read_to_end(&mut bytes)).await.expect("it ends");
    match &ended {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    (String::from_utf8(bytes).unwrap(), ended.is_ok())
}

fn check(what: &str, (got, is_closed): (String, bool), ends_with_connection: bool) {
    assert!(got.starts_with("HTTP/1.1 200") || got.starts_with("HTTP/1.0 200"), "{what}: {got:?}");
    assert_eq!(got.matches('x').count(), 1024, "{what}: {got:?}");
    assert!(!got.ends_with("0\r\n\r\n"), "{what}: {got:?}");
    assert!(!(is_closed && ends_with_connection), "{what}: it looks whole");
}

/// The moment decides which of head, body and end hyper sees at once.
async fn plays(listener: TcpListener, pause: Duration) {
    loop {
        let mut wire = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
        let head = wire.until(b"\r\n\r\n").await.unwrap();
        if head.starts_with("POST") {
            wire.until(b"ok").await.unwrap();
        }
        wire.send(&beginning()).await;
        tokio::time::sleep(pause).await;
        wire.stream.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_of_one_that_its_instance_breaks_off_is_sent() {
    for pause in [Duration::ZERO, Duration::from_millis(20)] {
        let (proxy, listener) = played_instance().await;
        let playing = tokio::spawn(plays(listener, pause));
        for round in 0..10 {
            for (request, ends_with_connection) in REQUESTS {
                let mut client = proxy.wire().await;
                client.send(request).await;
                check(&format!("round {round}: {request}"), read(&mut client).await, ends_with_connection);
            }
        }
        assert_eq!((proxy.counts().await.served, proxy.counts().await.failed), (0, 40));
        playing.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_a_drain_cuts_does_not_look_whole() {
    for (request, ends_with_connection) in REQUESTS {
        let (proxy, listener) = played_instance().await;
        let playing = tokio::spawn(plays(listener, Duration::from_secs(60)));
        let mut client = proxy.wire().await;
        client.send(request).await;
        let mut first = [0; 1];
        client.stream.read_exact(&mut first).await.unwrap();
        proxy.client.apply(Vec::new()).await.unwrap();
        let drained = proxy.client.drain(&InstanceId::parse("d1-web-1").unwrap(), limits(100, 100)).await;
        assert_eq!((drained.confirmed, drained.cut_requests), (true, 1), "{request}: {drained:?}");
        let (rest, is_closed) = read(&mut client).await;
        check(request, (format!("H{rest}"), is_closed), ends_with_connection);
        playing.abort();
    }
}
