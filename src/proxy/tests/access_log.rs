//! The access log: a line for each request, however it ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::support::*;
use crate::config::AccessLogConfig;
use crate::proxy::ProxyOptions;
use crate::proxy::RouteLimits;
use crate::proxy::http1::HALF_CLOSE;
use crate::proxy::table::Route;

fn logging(options: &mut ProxyOptions, max_size: u64, keep: u32) {
    options.front.access_log = Some(AccessLogConfig { path: None, max_size, keep });
}

async fn started() -> (TestProxy, Backend) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let proxy = TestProxy::start_with(dir, |options| logging(options, 100 << 20, 5)).await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    (proxy, backend)
}

/// What a file has in whole lines.
fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
}

/// The lines, once there are so many.
async fn lines(proxy: &TestProxy, count: usize) -> Vec<Value> {
    let path = proxy.dir.path().join("access.log");
    eventually(&format!("{count} lines"), || async { lines_of(&path).len() >= count }).await;
    let lines = lines_of(&path);
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

fn some(line: &Value, keys: &[&str]) -> Value {
    keys.iter().map(|&key| line[key].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_told_once_with_its_end() {
    let (proxy, _backend) = started().await;
    let mut wire = proxy.wire().await;
    wire.send(
        "GET /headers?a=%22b HTTP/1.1\r\nHost: Shop.test:80\r\nUser-Agent: x\"\\y\r\nReferer: /r\r\n\
         X-Forwarded-For: 6.6.6.6\r\n\r\n",
    )
    .await;
    let sees = wire.reply().await.body;
    wire.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(wire.reply().await.body, "5");
    wire.send("HEAD / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    wire.until(b"\r\n\r\n").await.unwrap();
    wire.send("GET /x HTTP/1.1\r\nHost: else.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 404);
    assert!(!wire.get("/break").await.complete);
    let lines = lines(&proxy, 5).await;
    let keys = [
        "method", "target", "host", "app", "service", "instance", "by", "status", "received", "sent", "retries", "end",
    ];
    let seen = sees.len();
    for (line, expected) in lines.iter().zip([
        json!(["GET", "/headers?a=%22b", "shop.test", "shop", "web", "d1-web-1", "app", 200, 0, seen, 0, "complete"]),
        json!(["POST", "/size", "shop.test", "shop", "web", "d1-web-1", "app", 200, 5, 1, 0, "complete"]),
        json!(["HEAD", "/", "shop.test", "shop", "web", "d1-web-1", "app", 200, 0, 0, 0, "complete"]),
    ]) {
        assert_eq!(some(line, &keys), expected);
    }
    let own = ["host", "app", "instance", "by", "status", "end"];
    assert_eq!(some(&lines[3], &own), json!(["else.test", null, null, "proxy", 404, "complete"]));
    let broken = ["target", "by", "status", "sent", "end"];
    assert_eq!(some(&lines[4], &broken), json!(["/break", "app", 200, 4, "instance_broke"]));
    let first = ["client", "forwarded_for", "version", "tls", "referer", "user_agent"];
    assert_eq!(some(&lines[0], &first), json!(["127.0.0.1", null, "HTTP/1.1", false, "/r", "x\"\\y"]));
    let id = lines[0]["id"].as_str().unwrap();
    assert!(sees.contains(&format!("x-request-id: {id}\n")), "{sees}");
    assert!(lines[0]["duration_ms"].as_f64() >= lines[0]["first_byte_ms"].as_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_trusted_proxy_says_of_its_client_is_told_whatever_the_client_put_before() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let proxy = TestProxy::start_with(dir, |options| {
        logging(options, 100 << 20, 5);
        options.front.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut wire = proxy.wire().await;
    let long = "6".repeat(600);
    for lines in [
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n",
        &format!("X-Forwarded-For: {long}\r\nX-Forwarded-For: 203.0.113.9\r\n"),
        "",
    ] {
        wire.send(&format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n")).await;
        assert_eq!(wire.reply().await.status, 200);
    }
    let lines = lines(&proxy, 3).await;
    assert_eq!(lines[0]["forwarded_for"], "6.6.6.6, 203.0.113.9");
    let cut = lines[1]["forwarded_for"].as_str().unwrap();
    assert!(cut.starts_with("…666") && cut.ends_with("6, 203.0.113.9") && cut.chars().count() == 513, "{cut}");
    assert_eq!(lines[2]["forwarded_for"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_and_what_stays_open_is_told_at_its_end() {
    let (proxy, backend) = started().await;
    let mut waiting = proxy.wire().await;
    waiting.send("GET /slow?60000 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let mut reading = proxy.wire().await;
    reading.send("GET /sse HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    reading.until(b"data: 3").await.unwrap();
    let mut tunnel = proxy.wire().await;
    tunnel.send("GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
    tunnel.until(b"hello from d1-web-1\n").await.unwrap();
    tunnel.send("ping\n").await;
    tunnel.until(b"ping\n").await.unwrap();
    eventually("all three are under way", || async { proxy.in_flight(&backend).await == 3 }).await;
    sleep(Duration::from_millis(600)).await;
    assert!(lines_of(&proxy.dir.path().join("access.log")).is_empty(), "nothing has ended");

    drop(waiting);
    let left = lines(&proxy, 1).await;
    assert_eq!(some(&left[0], &["target", "status", "by", "end"]), json!(["/slow?60000", null, null, "client_left"]));
    drop(reading);
    let left = lines(&proxy, 2).await;
    assert_eq!(some(&left[1], &["target", "status", "by", "end"]), json!(["/sse", 200, "app", "client_left"]));
    assert!(left[1]["sent"].as_u64() > Some(20));
    drop(tunnel);
    let left = lines(&proxy, 3).await;
    let keys = ["target", "status", "by", "received", "sent", "end"];
    assert_eq!(some(&left[2], &keys), json!(["/ws", 101, "app", 5, 25, "complete"]));

    // An event stream has as much time as its instance.
    let mut reading = proxy.wire().await;
    reading.send("GET /sse HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    reading.until(b"data: 3").await.unwrap();
    let next = Backend::start("d2-web-1").await;
    proxy.route(&[&next]).await;
    proxy.client.drain(&backend.id, limits(1, 50)).await;
    assert_eq!(some(&lines(&proxy, 4).await[3], &["target", "status", "end"]), json!(["/sse", 200, "time_over"]));

    // An instance that is gone is tried, and the proxy answers.
    next.kill();
    assert_eq!(proxy.wire().await.get("/").await.status, 502);
    let keys = ["status", "by", "app", "instance", "end"];
    assert_eq!(some(&lines(&proxy, 5).await[4], &keys), json!([502, "proxy", "shop", "d2-web-1", "complete"]));

    // Of a route without one the client leaves the queue.
    let waits = RouteLimits { queue: 1, ..RouteLimits::default() };
    proxy.client.apply(vec![Route { limits: waits, ..route("shop", "shop.test", &[]) }]).await.unwrap();
    let before = proxy.counts().await.client_aborted;
    let mut queued = proxy.wire().await;
    queued.send("GET /queued HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    eventually("it waits", || async { !proxy.client.counts().await.unwrap().queues.is_empty() }).await;
    // Gone sooner it would have said only that this was all.
    sleep(HALF_CLOSE + Duration::from_millis(10)).await;
    drop(queued);
    let keys = ["target", "status", "app", "service", "instance", "end"];
    assert_eq!(some(&lines(&proxy, 6).await[5], &keys), json!(["/queued", null, "shop", "web", null, "client_left"]));
    assert_eq!(proxy.counts().await.client_aborted, before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_turned_on_and_off_without_a_restart() {
    let (dir, files) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let config = files.path().join("deploy.toml");
    let write = |keys: &str| std::fs::write(&config, format!("[proxy]\n{keys}\n")).unwrap();
    write("");
    let proxy = TestProxy::start_with(dir, |options| options.config = Some(config.clone())).await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let (mut wire, told) = (proxy.wire().await, proxy.dir.path().join("access.log"));
    wire.get("/before").await;
    write("access_log = true");
    proxy.client.reload();
    while lines_of(&told).is_empty() {
        wire.get("/on").await;
        sleep(Duration::from_millis(5)).await;
    }
    write("access_log = { path = \"elsewhere/log\" }");
    proxy.client.reload();
    let elsewhere: PathBuf = files.path().join("elsewhere/log");
    while lines_of(&elsewhere).is_empty() {
        wire.get("/moved").await;
        sleep(Duration::from_millis(5)).await;
    }
    let lines = lines_of(&told);
    assert!(lines.iter().all(|line| line["target"] != "/before"), "{lines:#?}");
    write("access_log = false");
    proxy.client.reload();
    let off = || async {
        let before = lines_of(&elsewhere).len();
        proxy.wire().await.get("/off").await;
        sleep(Duration::from_millis(700)).await;
        lines_of(&elsewhere).len() == before
    };
    eventually("it is off", off).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_and_full_files_lose_no_line() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let first = TestProxy::start_with(Arc::clone(&dir), |options| logging(options, 16 << 10, 100)).await;
    let backend = Backend::start("d1-web-1").await;
    first.route(&[&backend]).await;
    let address = first.address;
    let stop = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut wire, mut answered) = (Wire::open(address).await, 0);
                while !stop.is_cancelled() {
                    let reply = wire.get("/slow?1").await;
                    assert_eq!(reply.status, 200);
                    answered += 1;
                    if reply.header("connection") == Some("close") {
                        wire = Wire::open(address).await;
                    }
                }
                answered
            })
        })
        .collect();
    sleep(Duration::from_millis(700)).await;
    let second = TestProxy::start_with(Arc::clone(&dir), |options| {
        logging(options, 16 << 10, 100);
        options.take_over = true;
    })
    .await;
    sleep(Duration::from_millis(700)).await;
    stop.cancel();
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    first.task.await.unwrap().unwrap();
    second.shutdown.cancel();
    second.task.await.unwrap().unwrap();
    let is_log = |name: &str| name.starts_with("access.log");
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = names.filter(|path| path.file_name().unwrap().to_str().is_some_and(is_log)).collect();
    let lines: Vec<Value> = files.iter().flat_map(|path| lines_of(path)).collect();
    let ids: std::collections::HashSet<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!((lines.len(), ids.len()), (answered, answered));
    let processes: std::collections::HashSet<&str> = ids.iter().map(|id| id.split('-').next().unwrap()).collect();
    assert!(processes.len() == 2 && files.len() > 2, "{processes:?} {files:?}");
    assert!(files.iter().all(|path| path.metadata().unwrap().len() <= 80 << 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_unread_is_told_too() {
    let (proxy, backend) = started().await;
    let long = format!("GET /long HTTP/1.1\r\nHost: shop.test\r\nX: {}", "x".repeat(200_000));
    let cases = [
        ("GET /a?b HTTP/1.1\r\nno field\r\n\r\n", json!(["GET", "/a?b", "HTTP/1.1", 400])),
        ("GET /old HTTP/1.0\r\nX : y\r\n\r\n", json!(["GET", "/old", "HTTP/1.0", 400])),
        ("GET /q?<script> HTTP/1.1\r\nHost: shop.test\r\n\r\n", json!(["GET", "/q?<script>", "HTTP/1.1", 400])),
        (
            "POST /`id` HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n",
            json!(["POST", "/`id`", "HTTP/1.1", 400]),
        ),
        ("\u{16}\u{3}\u{1}", json!([null, null, null, 400])),
        (long.as_str(), json!(["GET", "/long", "HTTP/1.1", 431])),
    ];
    let mut ids = Vec::new();
    for (sent, expected) in &cases {
        let mut wire = proxy.wire().await;
        wire.send(sent).await;
        let reply = wire.reply().await;
        assert_eq!(json!(reply.status), expected[3]);
        assert!(wire.is_closed().await, "nothing that follows it is trusted");
        ids.push(reply.header("x-request-id").unwrap().to_owned());
    }
    let lines = lines(&proxy, cases.len()).await;
    for ((line, (_, expected)), id) in lines.iter().zip(&cases).zip(&ids) {
        assert_eq!(some(line, &["method", "target", "version", "status"]), *expected);
        assert_eq!(some(line, &["id", "by", "host", "app", "end"]), json!([id, "proxy", null, null, "complete"]));
        assert!(line["sent"].as_u64().unwrap() > 0 && line["client"] == "127.0.0.1", "{line}");
    }
    assert_eq!(backend.requests(), 0);
}
