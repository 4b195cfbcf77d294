//! Agents that come and go, and proxies that do.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::support::*;
use crate::proxy::client::ApplyError;
use crate::proxy::control::{LineBuffer, Order, Report, SOCKET_NAME, read_message, write_message};
use crate::proxy::saved::Saved;
use crate::proxy::server::Proxy;
use crate::proxy::table::Table;
use crate::proxy::{ProxyClient, ProxyOptions, orders, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_does_not_notice_agents_come_and_go() {
    let proxy = Arc::new(TestProxy::start().await);
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&a]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn({
        let (proxy, stop) = (Arc::clone(&proxy), Arc::clone(&stop));
        async move {
            let mut wire = proxy.wire().await;
            while !stop.load(SeqCst) {
                assert_eq!(wire.get("/").await.status, 200);
            }
        }
    });
    let mut generation = proxy.client.status().generation;
    for _ in 0..10 {
        let agent = ProxyClient::start(proxy.dir.path());
        assert!(agent.connected(Duration::from_secs(5)).await);
        assert_eq!(agent.status().generation, generation, "it learns what is in force");
        let applied = agent.apply(vec![route("shop", "shop.test", &[&b])]).await.unwrap();
        assert!(applied > generation);
        generation = applied;
    }
    let refused = proxy.client.apply(vec![route("shop", "shop.test", &[&a])]).await;
    assert!(matches!(&refused, Err(ApplyError::Refused(why)) if why.contains("a newer agent")), "{refused:?}");
    assert_eq!(proxy.wire().await.get("/").await.body, "d2-web-1");
    stop.store(true, SeqCst);
    traffic.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_starts_again_serves_what_it_knew() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    let first = TestProxy::start_in(Arc::clone(&dir)).await;
    first.route(&[&a]).await;
    let agent = ProxyClient::start(dir.path());
    let generation = agent.apply(vec![route("shop", "shop.test", &[&b])]).await.unwrap();
    let boot = agent.status().boot;
    let mut tunnel = first.wire().await;
    tunnel.send("GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await;
    assert_eq!(tunnel.reply().await.status, 101);
    agent.apply(vec![route("shop", "shop.test", &[&a])]).await.unwrap();
    let mut drain = Box::pin(agent.drain(&b.id, limits(60_000, 60_000)));
    tokio::select! {
        biased;
        drained = &mut drain => panic!("its tunnel is open: {drained:?}"),
        // Asked after the drain, so once this is answered the drain is under way.
        counts = agent.counts() => assert_eq!(counts.unwrap().in_flight[&b.id], 1),
    }
    // It dies on the spot.
    let TestProxy { task, client, .. } = first;
    drop(client);
    task.abort();
    let _ = task.await;

    let second = TestProxy::start_in(dir).await;
    assert_eq!(second.wire().await.get("/").await.body, "d1-web-1");
    let drained = drain.await;
    assert!(!drained.confirmed, "its connections died with the process: {drained:?}");
    assert!(agent.connected(Duration::from_secs(5)).await);
    assert_ne!(agent.status().boot, boot);
    assert!(agent.apply(vec![route("shop", "shop.test", &[&b])]).await.unwrap() > generation + 1);
    assert_eq!(second.wire().await.get("/").await.body, "d2-web-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_brings_a_forgetful_proxy_up_to_date() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let backend = Backend::start("d1-web-1").await;
    let first = TestProxy::start_in(Arc::clone(&dir)).await;
    let agent = first.client.clone();
    first.route(&[&backend]).await;
    first.shutdown.cancel();
    first.task.await.unwrap().unwrap();
    std::fs::write(dir.path().join("routes.json"), "not a table").unwrap();

    let second = TestProxy::start_in(dir).await;
    eventually("the table is back", || async { second.wire().await.get("/").await.status == 200 }).await;
    assert!(agent.status().connected);
}

#[tokio::test]
async fn a_table_that_cannot_be_kept_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let proxy = Proxy::new(Saved::in_dir(&file), fronts(), "boot".to_owned(), Vec::new(), false).0;
    let why = orders::apply(&proxy, Table { generation: 1, routes: Vec::new() }).await.unwrap_err();
    assert!(why.contains("cannot be kept on disk") && why.contains("file/routes.json"), "{why}");
    assert_eq!(proxy.routing.generation(), 0, "the old one stays in force");

    let proxy = Proxy::new(Saved::in_dir(dir.path()), fronts(), "boot".to_owned(), Vec::new(), false).0;
    orders::apply(&proxy, Table { generation: 5, routes: Vec::new() }).await.unwrap();
    let why = orders::apply(&proxy, Table { generation: 5, routes: Vec::new() }).await.unwrap_err();
    assert_eq!(why, "generation 5 is not newer than 5, which is in force");
}

#[tokio::test]
async fn a_table_that_cannot_be_served_is_refused_with_the_cause() {
    let proxy = TestProxy::start().await;
    let (a, b) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&a]).await;
    let routes = vec![route("shop", "shop.test", &[&a]), route("blog", "shop.test", &[&b])];
    let refused = proxy.client.apply(routes).await.unwrap_err();
    assert_eq!(refused, ApplyError::Refused("shop and blog both claim the host shop.test".to_owned()));
    assert_eq!(proxy.wire().await.get("/").await.body, "d1-web-1");
}

#[tokio::test]
async fn without_a_proxy_every_question_still_ends() {
    let dir = tempfile::tempdir().unwrap();
    let client = ProxyClient::start(dir.path());
    let backend = Backend::start("d1-web-1").await;
    assert!(!client.connected(Duration::from_millis(50)).await);
    let routes = vec![route("shop", "shop.test", &[&backend])];
    let (applied, counts, drained) =
        tokio::join!(client.apply(routes), client.counts(), client.drain(&backend.id, limits(100, 100)));
    assert_eq!(applied, Err(ApplyError::Unavailable { pid: None }));
    assert_eq!(counts, None);
    assert!(!drained.confirmed);
}

#[tokio::test]
async fn the_control_socket_is_private_and_survives_garbage() {
    let proxy = TestProxy::start().await;
    let socket = proxy.dir.path().join("proxy.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stranger = BufReader::new(UnixStream::connect(&socket).await.unwrap());
    let mut line = String::new();
    stranger.read_line(&mut line).await.unwrap();
    assert!(line.starts_with(r#"{"hello":{"version":"#), "{line}");
    stranger.write_all(b"{\"apply\": \"nonsense\"}\n").await.unwrap();
    line.clear();
    assert_eq!(stranger.read_line(&mut line).await.unwrap(), 0, "closed: {line}");
    assert!(proxy.client.counts().await.is_some(), "others are not touched");
}

#[tokio::test]
async fn a_data_directory_has_one_proxy() {
    let proxy = TestProxy::start().await;
    let options = ProxyOptions::new(([127, 0, 0, 1], 0).into(), proxy.dir.path().to_owned());
    let why = run(options, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(why.contains(&format!("another proxy (pid {})", std::process::id())), "{why}");
    assert!(proxy.client.counts().await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_shutdown_clients_are_told_and_requests_end() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let (mut slow, mut idle, mut silent) = (proxy.wire().await, proxy.wire().await, proxy.wire().await);
    assert_eq!(idle.get("/").await.header("connection"), None);
    assert_eq!(silent.get("/").await.status, 200);
    slow.send("GET /slow?1500 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    eventually("it is under way", || async { proxy.in_flight(&backend).await == 1 }).await;
    proxy.shutdown.cancel();
    eventually("it does not listen", || async { tokio::net::TcpStream::connect(proxy.address).await.is_err() }).await;
    let last = idle.get("/").await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert!(silent.is_closed().await, "idle clients are closed after a moment");
    let finished = slow.reply().await;
    assert_eq!((finished.status, finished.body.as_str()), (200, "d1-web-1"));
    proxy.task.await.unwrap().unwrap();
    assert!(!proxy.dir.path().join("proxy.sock").exists());
}

/// The proxy's side of one control connection, by hand.
struct Scripted {
    stream: BufReader<UnixStream>,
    line: LineBuffer,
}

impl Scripted {
    async fn accept(listener: &UnixListener, generation: u64) -> Self {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        let (version, boot) = ("1".to_owned(), "same".to_owned());
        let listeners = Vec::new();
        let hello = Report::Hello { version, pid: 1, boot, generation, listeners, activated: false, answers: false };
        write_message(&mut stream, &hello).await.unwrap();
        Self { stream, line: LineBuffer::default() }
    }

    async fn order(&mut self) -> Order {
        read_message(&mut self.stream, &mut self.line).await.unwrap().unwrap()
    }

    async fn table(&mut self) -> (u64, usize) {
        match self.order().await {
            Order::Apply(table) => (table.generation, table.routes.len()),
            other => panic!("{other:?}"),
        }
    }

    async fn say(&mut self, report: Report) {
        write_message(&mut self.stream, &report).await.unwrap();
    }
}

#[tokio::test]
async fn a_table_whose_caller_gave_up_is_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
    let client = ProxyClient::start(dir.path());
    let mut proxy = Scripted::accept(&listener, 3).await;
    let backend = Backend::start("d1-web-1").await;
    let one = vec![route("shop", "shop.test", &[&backend])];

    let (applied, ()) = tokio::join!(client.apply(one), async {
        assert_eq!(proxy.table().await, (4, 1), "numbered on from what is in force");
        proxy.say(Report::Applied { generation: 4 }).await;
    });
    assert_eq!(applied, Ok(4));
    tokio::select! {
        biased;
        applied = client.apply(Vec::new()) => panic!("{applied:?}"),
        table = proxy.table() => assert_eq!(table, (5, 0)),
    }
    proxy.say(Report::Applied { generation: 5 }).await;
    assert_eq!(proxy.table().await, (6, 1), "what its caller believes to be in force is");
    proxy.say(Report::Applied { generation: 6 }).await;

    // The connection breaks before the answer: the table is sent again.
    let again = vec![route("shop", "shop.test", &[&backend]), route("blog", "blog.test", &[])];
    let (applied, ()) = tokio::join!(client.apply(again), async {
        assert_eq!(proxy.table().await, (7, 2));
        drop(proxy);
        let mut proxy = Scripted::accept(&listener, 6).await;
        let (generation, routes) = proxy.table().await;
        assert_eq!(routes, 2);
        proxy.say(Report::Applied { generation }).await;
    });
    assert_eq!(applied, Ok(8));
}

#[tokio::test]
async fn a_drain_is_asked_for_again_on_a_new_connection() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
    let client = ProxyClient::start(dir.path());
    let backend = Backend::start("d1-web-1").await;
    let (drained, ()) = tokio::join!(client.drain(&backend.id, limits(60_000, 60_000)), async {
        for _ in 0..3 {
            let mut proxy = Scripted::accept(&listener, 1).await;
            assert!(matches!(proxy.order().await, Order::Drain { .. }));
        }
        let mut proxy = Scripted::accept(&listener, 1).await;
        assert!(matches!(proxy.order().await, Order::Drain { .. }));
        let instance = backend.id.clone();
        proxy.say(Report::Drained { instance, cut_requests: 1, cut_streams: 2, took_ms: 3 }).await;
    });
    assert_eq!((drained.cut_requests, drained.cut_streams, drained.confirmed), (1, 2, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_drain_is_told_again_to_who_missed_it() {
    let proxy = TestProxy::start().await;
    let (old, new) = (Backend::start("d1-web-1").await, Backend::start("d2-web-1").await);
    proxy.route(&[&old]).await;
    let mut stream = proxy.wire().await;
    stream.send("GET /sse HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    stream.until(b"data: 0\n\n").await.unwrap();
    proxy.route(&[&new]).await;
    let first = proxy.client.drain(&old.id, limits(50, 50)).await;
    assert_eq!(first.cut_streams, 1);
    let other = ProxyClient::start(proxy.dir.path());
    assert_eq!(other.drain(&old.id, limits(50, 50)).await, first);
}
