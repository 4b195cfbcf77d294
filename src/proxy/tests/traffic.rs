//! Routing, switching under load, retries, counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::support::*;
use crate::proxy::PathPrefix;
use crate::proxy::control::{LineBuffer, Report, SOCKET_NAME, read_message};
use crate::proxy::http1::HALF_CLOSE;
use crate::proxy::table::Route;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_lead_to_their_apps_over_kept_connections() {
    let proxy = TestProxy::start().await;
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    let routes =
        vec![route("shop", "shop.test", &[&a]), route("blog", "blog.test", &[&b]), route("bare", "bare.test", &[])];
    proxy.client.apply(routes).await.unwrap();

    let mut wire = proxy.wire().await;
    for _ in 0..50 {
        for (host, name) in [("shop.test", "d1-web-1"), ("BLOG.test:8080", "d2-web-1")] {
            wire.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let reply = wire.reply().await;
            assert_eq!((reply.status, reply.body.as_str()), (200, name));
        }
    }
    assert_eq!(a.seen.connections.load(SeqCst), 1, "connections to instances are kept");

    wire.send("GET / HTTP/1.1\r\nHost: Else.test\r\n\r\n").await;
    let unknown = wire.reply().await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("the host else.test is not configured here"), "{}", unknown.body);
    wire.send("GET / HTTP/1.1\r\nHost: bare.test\r\nAccept: application/json\r\n\r\n").await;
    let empty = wire.reply().await;
    assert_eq!((empty.status, empty.header("retry-after")), (503, Some("1")));
    let problem: serde_json::Value = serde_json::from_str(&empty.body).unwrap();
    assert_eq!(problem["title"], "Service Unavailable");
    assert!(problem["detail"].as_str().unwrap().starts_with("nothing runs behind bare.test"), "{problem}");
    wire.send("GET http://blog.test/x HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.body, "d2-web-1", "a full target beats the Host header");

    let apps = proxy.client.counts().await.unwrap().apps;
    assert_eq!(apps[&"shop".parse().unwrap()].served, 50);
    assert_eq!(apps[&"bare".parse().unwrap()].failed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_lead_to_services_and_are_taken_off_where_wanted() {
    let proxy = TestProxy::start().await;
    let (web, api) = (Backend::start("d1-web-1").await, Backend::start("d1-api-1").await);
    let api_route = Route {
        path: PathPrefix::parse("/api").unwrap(),
        strip: true,
        service: "api".parse().unwrap(),
        ..route("shop", "shop.test", &[&api])
    };
    let wild = Route { path: PathPrefix::parse("/only").unwrap(), ..route("wild", "*.wild.test", &[]) };
    proxy.client.apply(vec![route("shop", "shop.test", &[&web]), api_route, wild]).await.unwrap();

    let mut wire = proxy.wire().await;
    for (path, body) in [("/", "d1-web-1"), ("/apix", "d1-web-1"), ("/api", "d1-api-1"), ("/api/x?y=/api", "d1-api-1")]
    {
        wire.send(&format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
        assert_eq!(wire.reply().await.body, body, "{path}");
    }
    wire.send("GET /api/headers?x=1 HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-Prefix: /evil\r\n\r\n").await;
    let seen = wire.reply().await.body;
    assert!(seen.starts_with("GET /headers?x=1\n") && seen.contains("x-forwarded-prefix: /api\n"), "{seen}");
    wire.send("GET /headers HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-Prefix: /evil\r\n\r\n").await;
    let seen = wire.reply().await.body;
    assert!(!seen.contains("x-forwarded-prefix"), "{seen}");
    wire.send("GET / HTTP/1.1\r\nHost: a.wild.test\r\n\r\n").await;
    let beside = wire.reply().await;
    assert!(beside.status == 404 && beside.body.contains("nothing is configured at this path"), "{}", beside.body);
    wire.send("GET /only HTTP/1.1\r\nHost: a.wild.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stays_with_its_instance_as_long_as_that_is_there() {
    let proxy = TestProxy::start().await;
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d1-web-2").await);
    let sticky = |backends: &[&Backend]| vec![Route { sticky: true, ..route("shop", "shop.test", backends) }];
    proxy.client.apply(sticky(&[&a, &b])).await.unwrap();
    let mut wire = proxy.wire().await;
    let ask = |cookie: &str| format!("GET / HTTP/1.1\r\nHost: shop.test\r\nCookie: x=1; {cookie}\r\n\r\n");

    wire.send(&ask("")).await;
    let first = wire.reply().await;
    let tie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(tie, format!("longshore-web={}", first.body));
    for _ in 0..20 {
        wire.send(&ask(&tie)).await;
        let next = wire.reply().await;
        assert_eq!((&next.body, next.header("set-cookie")), (&first.body, None));
    }
    // It has left, or never was: another one answers, and the client stays with that.
    let (gone, left) = if first.body == "d1-web-1" { (&a, &b) } else { (&b, &a) };
    gone.kill();
    eventually("it has gone", async || {
        gone.seen.open.load(SeqCst) == 0 && TcpStream::connect(gone.address).await.is_err()
    })
    .await;
    for cookie in [tie.as_str(), "longshore-web=d9-web-9"] {
        wire.send(&ask(cookie)).await;
        let next = wire.reply().await;
        let tied = next.header("set-cookie").map(|tie| tie.split(';').next().unwrap().to_owned());
        assert_eq!((next.status, tied), (200, Some(format!("longshore-web={}", left.id))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_switches_under_load_lose_nothing() {
    let proxy = Arc::new(TestProxy::start().await);
    let mut current = Backend::start("d0-web-1").await;
    proxy.route(&[&current]).await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for task in 0..12 {
        let (proxy, stop, sent) = (Arc::clone(&proxy), Arc::clone(&stop), Arc::clone(&sent));
        clients.spawn(async move {
            let keeps = task % 3 != 0;
            let mut wire = proxy.wire().await;
            let mut number = 0;
            while !stop.load(SeqCst) {
                if !keeps {
                    wire = proxy.wire().await;
                }
                number += 1;
                let (method, path, body) = match number % 4 {
                    0 => ("POST", "/echo", "twelve bytes"),
                    1 => ("GET", "/slow?3", ""),
                    _ => ("GET", "/", ""),
                };
                let length = body.len();
                wire.send(&format!(
                    "{method} {path} HTTP/1.1\r\nHost: shop.test\r\nX-Id: {task}-{number}\r\nContent-Length: {length}\r\n\r\n{body}"
                ))
                .await;
                let reply = wire.try_reply().await.unwrap_or_else(|| panic!("{task}-{number}: closed"));
                assert!(reply.status == 200 && reply.complete, "{task}-{number}: {reply:?}");
                sent.fetch_add(1, SeqCst);
            }
        });
    }
    let mut gone = Vec::new();
    for round in 1..=200 {
        let next = Backend::start(&format!("d{round}-web-1")).await;
        proxy.route(&[&next]).await;
        let drained = proxy.client.drain(&current.id, limits(10_000, 10_000)).await;
        assert!(drained.confirmed && drained.cut_requests == 0, "{drained:?}");
        current.kill();
        gone.push(std::mem::replace(&mut current, next));
        assert!(clients.try_join_next().is_none(), "a client gave up");
    }
    stop.store(true, SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let total = sent.load(SeqCst);
    assert!(total > 1_000, "{total} requests are no load");
    let mut distinct = 0;
    for backend in gone.iter().chain([&current]) {
        for (id, times) in backend.seen.ids.lock().unwrap().iter() {
            assert_eq!(*times, 1, "{id} was seen {times} times");
            distinct += 1;
        }
    }
    assert_eq!(distinct, total, "every request reached exactly one instance");
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (total as u64, 0), "{counts:?}");
    assert!(proxy.client.counts().await.unwrap().in_flight.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_close_idle_connections_early_lose_nothing() {
    // So early that every request may meet a connection that closes; and as early as the worst of real servers.
    for (idle_ms, clients, each) in [(4, 20, 100), (50, 100, 100)] {
        close_early(Duration::from_millis(idle_ms), clients, each).await;
    }
}

/// Clients that pause for about as long as the instance keeps an idle connection.
async fn close_early(idle: Duration, clients: usize, each: u32) {
    let proxy = Arc::new(TestProxy::start().await);
    let backend = Backend::with_keep_alive("d1-web-1", idle).await;
    proxy.route(&[&backend]).await;
    let mut told = BufReader::new(UnixStream::connect(proxy.dir.path().join(SOCKET_NAME)).await.unwrap());
    let mut tasks = JoinSet::new();
    for task in 0..clients {
        let proxy = Arc::clone(&proxy);
        tasks.spawn(async move {
            let mut wire = proxy.wire().await;
            for number in 0..each {
                // Some come just before it closes, some just after, some between.
                sleep(idle - Duration::from_micros(500) + Duration::from_micros(40) * (number % 25)).await;
                let (method, length, body) = if number % 5 == 0 { ("POST", 4, "body") } else { ("GET", 0, "") };
                wire.send(&format!(
                    "{method} / HTTP/1.1\r\nHost: shop.test\r\nX-Id: {method}-{task}-{number}\r\nContent-Length: {length}\r\n\r\n{body}"
                ))
                .await;
                assert_eq!(wire.reply().await.status, 200, "{task}-{number}");
            }
        });
    }
    while let Some(client) = tasks.join_next().await {
        if let Err(error) = client {
            let failed = async {
                while let Ok(Some(report)) = read_message::<Report>(&mut told, &mut LineBuffer::default()).await {
                    if let Report::UpstreamFailed { why, .. } = report {
                        return why;
                    }
                }
                String::new()
            };
            panic!("{error}: {:?}", tokio::time::timeout(Duration::from_secs(1), failed).await);
        }
    }
    let total = clients * each as usize;
    let ids = backend.seen.ids.lock().unwrap().clone();
    assert_eq!(ids.len(), total);
    let twice: Vec<_> = ids.iter().filter(|(id, times)| id.starts_with("POST") && **times != 1).collect();
    assert!(twice.is_empty(), "a POST is never sent twice: {twice:?}");
    let connections = backend.seen.connections.load(SeqCst);
    // Each POST has a fresh one; the others are of a GET that found its own closed.
    let met = connections - total / 5;
    assert!(met >= total / 50 && connections < total, "{met} of {total} met the case");
    assert_eq!((proxy.counts().await.served, proxy.counts().await.failed), (total as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_refuses_is_passed_over() {
    let proxy = TestProxy::start().await;
    let (dead, alive) = (Backend::start("d1-web-1").await, Backend::start("d1-web-2").await);
    dead.kill();
    eventually("the port is closed", || async { tokio::net::TcpStream::connect(dead.address).await.is_err() }).await;
    proxy.route(&[&dead, &alive]).await;
    let mut told = BufReader::new(UnixStream::connect(proxy.dir.path().join(SOCKET_NAME)).await.unwrap());
    let mut wire = proxy.wire().await;
    for number in 0..20 {
        wire.send(&format!("POST / HTTP/1.1\r\nHost: shop.test\r\nX-Id: {number}\r\nContent-Length: 2\r\n\r\nhi"))
            .await;
        assert_eq!(wire.reply().await.body, "d1-web-2");
    }
    assert!(alive.seen.ids.lock().unwrap().values().all(|&times| times == 1));
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (20, 0));
    assert_eq!(counts.retried, 1, "after the first failure it is not even tried for a while");
    let mut line = LineBuffer::default();
    let (instance, why) = loop {
        match read_message(&mut told, &mut line).await.unwrap() {
            Some(Report::UpstreamFailed { instance, why }) => break (instance, why),
            report => assert!(report.is_some(), "the proxy told nothing"),
        }
    };
    assert!(instance == dead.id && why.contains("refused"), "{instance}: {why}");

    alive.kill();
    eventually("the other is gone too, with what it had open", || async {
        alive.seen.open.load(SeqCst) == 0 && TcpStream::connect(alive.address).await.is_err()
    })
    .await;
    let reply = wire.get("/").await;
    assert_eq!((reply.status, proxy.counts().await.failed), (502, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_is_counted_once_and_blamed_on_the_right_side() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut wire = proxy.wire().await;
    assert_eq!(wire.get("/status?503").await.status, 503);
    let broken = wire.get("/break").await;
    assert!(!broken.complete && broken.body == "half", "the client can tell: {broken:?}");
    let mut wire = proxy.wire().await;
    wire.send("HEAD / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let head = wire.until(b"\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 8"), "{head}");
    assert_eq!(wire.get("/status?304").await.status, 304);

    let mut leaves = proxy.wire().await;
    leaves.send("GET /slow?5000 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    eventually("it is under way", || async { proxy.in_flight(&backend).await == 1 }).await;
    sleep(HALF_CLOSE * 2).await;
    drop(leaves);
    eventually("it is not any more", || async { proxy.in_flight(&backend).await == 0 }).await;
    let mut breaks = proxy.wire().await;
    breaks.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nhalf").await;
    eventually("the upload has begun", || async { proxy.in_flight(&backend).await == 1 }).await;
    drop(breaks);
    eventually("it is over", || async { proxy.in_flight(&backend).await == 0 }).await;

    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.server_errors, counts.failed, counts.client_aborted), (3, 1, 1, 2), "{counts:?}");
    let of_instance = proxy.client.counts().await.unwrap().instances[&backend.id];
    assert_eq!(of_instance.server_errors, 1, "{of_instance:?}");
    assert!(of_instance.answered >= counts.served, "one that broke off had begun: {of_instance:?}");
    assert_eq!(of_instance.latency.total(), of_instance.answered, "each is timed: {of_instance:?}");
    assert_eq!(counts.latency, of_instance.latency);
}

/// The instance had begun to answer before it had the whole request, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_in_the_middle_of_an_upload_is_no_failure_of_the_instance() {
    for framing in ["Content-Length: 1000\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let (proxy, instance) = played_instance().await;
        let mut client = proxy.wire().await;
        client.send(&format!("POST / HTTP/1.1\r\nHost: shop.test\r\n{framing}")).await;
        let mut instance = Wire { stream: instance.accept().await.unwrap().0, rest: Vec::new() };
        instance.until(b"hello").await.unwrap();
        instance.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nworld\r\n").await;
        client.until(b"world").await.unwrap();
        drop(client);
        eventually("its end is counted", || async {
            let counts = proxy.counts().await;
            counts.client_aborted + counts.failed + counts.served > 0
        })
        .await;
        let counts = proxy.counts().await;
        assert_eq!((counts.client_aborted, counts.failed), (1, 0), "{framing:?}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_timed_until_they_begin() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut wire = proxy.wire().await;
    wire.get("/slow?400").await;
    let after_one = proxy.counts().await.latency;
    assert_eq!(after_one.slower_than(Duration::from_millis(300)), 1, "{after_one:?}");
    for _ in 0..20 {
        wire.get("/status?200").await;
    }
    let since = proxy.counts().await.latency.since(&after_one);
    assert_eq!(since.total(), 20);
    assert!(since.quantile(0.5).unwrap() < Duration::from_millis(300), "{since:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways_at_once() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut wire = proxy.wire().await;
    wire.send("POST /echo HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    // Each piece comes back before the next is sent: nothing waits for the end of the request.
    for number in 0..20 {
        let piece = format!("piece {number:2}");
        wire.send(&format!("8\r\n{piece}\r\n")).await;
        wire.until(piece.as_bytes()).await.unwrap();
    }
    wire.send("0\r\n\r\n").await;
    wire.until(b"0\r\n\r\n").await.unwrap();

    // Far more than any buffer on the way, in both directions at once.
    let size = 24 << 20;
    let (mut read, mut write) = tokio::io::split(proxy.wire().await.stream);
    let upload = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let head =
            format!("PUT /echo HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let block = vec![b'x'; 1 << 20];
        for _ in 0..size >> 20 {
            write.write_all(&block).await.unwrap();
        }
        write
    });
    let mut got = 0;
    let mut block = vec![0; 1 << 16];
    loop {
        use tokio::io::AsyncReadExt;
        match read.read(&mut block).await.unwrap() {
            0 => break,
            read => got += block[..read].iter().filter(|&&b| b == b'x').count(),
        }
    }
    upload.await.unwrap();
    assert_eq!(got, size);
    assert_eq!(proxy.counts().await.served, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_posts_leaves_few_connections_at_the_instance() {
    const CLIENTS: usize = 4;
    const EACH: usize = 100;
    let proxy = Arc::new(TestProxy::start().await);
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let proxy = Arc::clone(&proxy);
        clients.spawn(async move {
            let mut wire = proxy.wire().await;
            for _ in 0..EACH {
                wire.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nbody").await;
                assert_eq!(wire.reply().await.body, "4");
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let seen = &backend.seen;
    assert_eq!(seen.connections.load(SeqCst), CLIENTS * EACH, "each POST has a fresh connection");
    // Besides the 32 that are kept each client has one under way and at most one that is closing.
    assert!(seen.most_open.load(SeqCst) <= 32 + 2 * CLIENTS, "{} open at once", seen.most_open.load(SeqCst));
    eventually("only those kept are open", || async { seen.open.load(SeqCst) <= 32 }).await;
    let mut wire = proxy.wire().await;
    assert_eq!(wire.get("/").await.status, 200);
    assert_eq!(seen.connections.load(SeqCst), CLIENTS * EACH, "a GET takes one that a POST left");
}
