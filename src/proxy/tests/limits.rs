//! What a client may ask for, and what becomes of one that asks for more.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::config::ProxyLimits;
use crate::proxy::listen::client_capacity;

/// A proxy with these limits and an instance behind it.
async fn start(limits: ProxyLimits) -> (TestProxy, Backend) {
    let proxy = TestProxy::with_limits(limits).await;
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
async fn beyond_so_many_connections_in_all_one_waits_for_another_to_end() {
    let (proxy, _backend) = start(ProxyLimits { connections: Some(2), ..ProxyLimits::default() }).await;
    let (mut first, mut second) = (proxy.wire().await, proxy.wire().await);
    assert_eq!((first.get("/").await.status, second.get("/").await.status), (200, 200));
    let mut third = proxy.wire().await;
    third.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let waits = tokio::time::timeout(Duration::from_millis(200), third.try_reply()).await;
    assert!(waits.is_err(), "it is neither answered nor closed: {waits:?}");
    assert_eq!(first.get("/").await.status, 200);
    drop(second);
    assert_eq!(third.reply().await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_bodies_have_a_largest_size() {
    let limits = ProxyLimits { max_header_size: 8 << 10, max_body_size: Some(1000), ..ProxyLimits::default() };
    let (proxy, backend) = start(limits).await;
    let head = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Long: {}\r\n\r\n", "x".repeat(9 << 10));
    let mut wire = proxy.wire().await;
    wire.send(&head).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (431, Some("close")));
    assert!(reply.body.contains(reply.header("x-request-id").unwrap()), "{reply:?}");
    assert!(wire.is_closed().await);

    let mut wire = proxy.wire().await;
    wire.send(&head.replacen("GET", "HEAD", 1)).await;
    let said = wire.until(b"\r\n\r\n").await.unwrap();
    assert!(said.starts_with("HTTP/1.1 431 ") && wire.is_closed().await, "and no body: {said}");

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

/// From its last bytes on a body has as long as an answer, and not twice that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_is_waited_for_once() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let (proxy, _backend) = start(ProxyLimits { answer_timeout: TIMEOUT, ..ProxyLimits::default() }).await;
    let mut stalls = proxy.wire().await;
    stalls.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 8\r\n\r\n").await;
    tokio::time::sleep(TIMEOUT / 4).await;
    stalls.send("body").await;
    let last = Instant::now();
    assert_eq!(stalls.reply().await.status, 408);
    let waited = last.elapsed();
    assert!(waited > TIMEOUT * 3 / 4 && waited < TIMEOUT * 5 / 4, "{waited:?}");
}

/// Slowloris: clients that say a byte now and then, at each place where one may stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_slow_clients_are_closed_and_nobody_notices() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let limits = ProxyLimits { header_timeout: TIMEOUT, connections_per_client: usize::MAX, ..ProxyLimits::default() };
    let (proxy, backend) = start(limits).await;
    // A frame of HEADERS that has no end in sight.
    let http2 =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 9, 0, 1, 0, 0, 0, 0, 1]];
    let beginnings = [
        b"".to_vec(),
        b"G".to_vec(),
        b"PRI * H".to_vec(),
        b"GET / HTTP/1.1\r\nHost: shop.test\r\nX: ".to_vec(),
        http2.concat(),
    ];
    let rests = [
        b"GET /xxxxxxxxxxxxxxxxxxx".as_slice(),
        b"ET /xxxxxxxxxxxxxxxxxxxxx",
        b"TTP/2.0\r\n",
        &[b'x'; 24],
        &[0x40; 24],
    ];
    // Each has two ends here.
    let many = 2_000.min(client_capacity() / 3);
    let mut slow = Vec::with_capacity(many);
    for number in 0..many {
        let mut wire = proxy.wire().await;
        wire.stream.write_all(&beginnings[number % beginnings.len()]).await.unwrap();
        slow.push((number, wire.stream));
    }
    let began = Instant::now();
    let (mut kept, mut took, mut said) = (proxy.wire().await, Vec::new(), 0);
    while !slow.is_empty() {
        assert!(began.elapsed() < TIMEOUT + Duration::from_secs(15), "{} are still open", slow.len());
        let asked = Instant::now();
        assert_eq!(kept.get("/").await.status, 200);
        assert_eq!(proxy.wire().await.get("/").await.status, 200);
        took.push(asked.elapsed() / 2);
        for (number, stream) in &slow {
            let rest = rests[number % rests.len()];
            // Closed or not: that is seen below.
            let _ = rest.get(said..=said).map(|byte| stream.try_write(byte));
        }
        said += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut buffer = [0; 1024];
        slow.retain(|(_, stream)| {
            loop {
                match stream.try_read(&mut buffer) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break true,
                    _ => break false,
                }
            }
        });
    }
    assert!(began.elapsed() > TIMEOUT / 2, "they were not slow: {:?}", began.elapsed());
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_millis(100), "requests take {took:?} meanwhile");
    assert_eq!(backend.requests(), 2 * took.len(), "of the slow ones none was a request");
}

/// Bodies that never end, several at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_an_end_is_refused_and_its_client_sent_away() {
    let limits = ProxyLimits { max_body_size: Some(100_000), ..ProxyLimits::default() };
    let (proxy, backend) = start(limits).await;
    let send = |framing: &'static str, piece: Vec<u8>| {
        let address = proxy.address;
        async move {
            let mut wire = Wire::open(address).await;
            wire.send(&format!("POST /size HTTP/1.1\r\nHost: shop.test\r\n{framing}\r\n\r\n")).await;
            let (mut read, mut write) = wire.stream.split();
            let endless = async {
                let mut sent = 0_usize;
                while write.write_all(&piece).await.is_ok() {
                    sent += piece.len();
                }
                sent
            };
            let answered = async {
                let mut answer = Vec::new();
                // It may end with a reset: more was sent than anybody reads.
                let _ = read.read_to_end(&mut answer).await;
                answer
            };
            let (sent, answer) = tokio::join!(endless, answered);
            (sent, String::from_utf8(answer).unwrap())
        }
    };
    let block = vec![b'x'; 1 << 16];
    let chunk = [b"10000\r\n", block.as_slice(), b"\r\n"].concat();
    let clients = (0..4).map(|number| match number % 2 {
        0 => send("Transfer-Encoding: chunked", chunk.clone()),
        _ => send("Content-Length: 1000000000000", block.clone()),
    });
    for (sent, answer) in futures_util::future::join_all(clients).await {
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(sent < 100 << 20, "{sent} bytes were taken of a body that was refused");
    }
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (0, 0), "{counts:?}");
    eventually("no instance is busy with them", || async { proxy.in_flight(&backend).await == 0 }).await;
    assert_eq!(proxy.wire().await.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_has_so_many_lines_and_no_more() {
    let (proxy, backend) = start(ProxyLimits::default()).await;
    let mut wire = proxy.wire().await;
    wire.send(&format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{}\r\n", "X: 1\r\n".repeat(5000))).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, backend.requests()), (431, 0));
    assert!(reply.body.contains(reply.header("x-request-id").unwrap()), "{reply:?}");
    // As many as there may be here; the instance would have some more to read.
    wire = proxy.wire().await;
    wire.send(&format!("GET / HTTP/1.1\r\nHost: else.test\r\n{}\r\n", "X: 1\r\n".repeat(99))).await;
    assert_eq!(wire.reply().await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_configured_anew_holds_on_open_connections_too() {
    let (dir, files) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let config = files.path().join("deploy.toml");
    std::fs::write(&config, "[proxy]\n").unwrap();
    let proxy = TestProxy::start_with(dir, |options| {
        options.config = Some(config.clone());
        options.front.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    // One connection is served by ourselves, the other one by hyper.
    let (mut plain, mut other) = (proxy.wire().await, proxy.wire().await);
    let claim = "Host: shop.test\r\nX-Forwarded-For: 192.0.2.6\r\n\r\n";
    let is_believed = |reply: Reply| reply.body.contains("x-forwarded-for: 192.0.2.6, 127.0.0.1");
    plain.send(&format!("GET /headers HTTP/1.1\r\n{claim}")).await;
    other.send(&format!("GET /headers HTTP/1.1\r\nContent-Length: 0\r\n{claim}")).await;
    assert!(is_believed(plain.reply().await) && is_believed(other.reply().await));
    proxy.client.reload();
    let end = Instant::now() + Duration::from_secs(10);
    for wire in [&mut plain, &mut other] {
        wire.send(&format!("GET /headers HTTP/1.1\r\n{claim}")).await;
        while is_believed(wire.reply().await) {
            assert!(Instant::now() < end, "nobody is trusted any more");
            wire.send(&format!("GET /headers HTTP/1.1\r\n{claim}")).await;
        }
    }
}
