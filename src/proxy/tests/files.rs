//! Static files: answered without an instance, and nothing else is.

use std::path::Path;
use std::sync::Arc;

use super::support::*;
use crate::config::AccessLogConfig;
use crate::proxy::PathPrefix;
use crate::proxy::table::{FileRoot, Maintenance, Route, StaticFiles};

fn write(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

fn root(dir: &Path) -> FileRoot {
    FileRoot { dir: dir.to_owned(), below: String::new() }
}

fn files(prefix: &str, roots: &[&Path]) -> StaticFiles {
    StaticFiles { prefix: PathPrefix::parse(prefix).unwrap(), roots: roots.iter().map(|dir| root(dir)).collect() }
}

fn with_files(backends: &[&Backend], files: Vec<StaticFiles>) -> Route {
    Route { files, ..route("shop", "shop.test", backends) }
}

async fn ask(wire: &mut Wire, line: &str, headers: &str) -> Reply {
    wire.send(&format!("{line} HTTP/1.1\r\nHost: shop.test\r\n{headers}\r\n")).await;
    wire.reply().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_need_no_instance_and_everything_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let [v1, v2, media] = ["v1", "v2", "media"].map(|name| dir.path().join(name));
    write(&v1, &[("app.css", b"old"), ("app.0123456789ab.css", b"of v1"), ("only-old.js", b"js")]);
    write(&v2, &[("app.css", b"new"), ("app.ba9876543210.css", b"of v2"), ("docs/index.html", b"<p>docs")]);
    write(&media, &[("photo.png", b"\x89PNG")]);
    let log = AccessLogConfig { path: None, max_size: 1 << 20, keep: 1 };
    let proxy =
        TestProxy::start_with(Arc::new(tempfile::tempdir().unwrap()), |options| options.front.access_log = Some(log))
            .await;
    let served = vec![files("/static", &[&v2, &v1, Path::new("/nowhere")]), files("/static/media", &[&media])];
    proxy.client.apply(vec![with_files(&[], served.clone())]).await.unwrap();
    let mut wire = proxy.wire().await;
    for (path, status, body) in [
        ("/static/app.css", 200, "new"),
        ("/static/app.ba9876543210.css?v=1", 200, "of v2"),
        ("/static/app.0123456789ab.css", 200, "of v1"),
        ("/static/only%2Dold.js", 200, "js"),
        ("/static/docs/", 200, "<p>docs"),
        ("/static/docs", 404, "there is no such file"),
        ("/static", 404, "there is no such file"),
        ("/static/", 404, "there is no such file"),
        ("/static/none.css", 404, "there is no such file"),
        ("/static/../v1/app.css", 404, "there is no such file"),
        ("/static/%2e%2e/v1/app.css", 404, "there is no such file"),
        ("/static/..%2fv1/app.css", 404, "there is no such file"),
        ("/static//etc/passwd", 404, "there is no such file"),
        ("/static/media/app.css", 404, "there is no such file"),
        ("/staticx", 503, "nothing runs behind"),
        ("/", 503, "nothing runs behind"),
    ] {
        let reply = wire.get(path).await;
        assert!(reply.status == status && reply.body.contains(body), "{path}: {reply:?}");
    }
    let hashed = wire.get("/static/app.0123456789ab.css").await;
    assert_eq!(hashed.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(hashed.header("content-type"), Some("text/css; charset=utf-8"));
    assert_eq!(hashed.header("x-content-type-options"), Some("nosniff"));
    let plain = wire.get("/static/app.css").await;
    assert_eq!((plain.header("cache-control"), plain.header("accept-ranges")), (Some("no-cache"), Some("bytes")));
    wire.send("GET /static/media/photo.png HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let head = wire.until(b"\r\n\r\n").await.unwrap();
    assert!(head.contains("content-type: image/png\r\n") && head.contains("content-length: 4\r\n"), "{head}");
    let mut wire = proxy.wire().await;
    let post = ask(&mut wire, "POST /static/app.css", "Content-Length: 3\r\n\r\nabc").await;
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));

    let counts = proxy.counts().await;
    assert_eq!((counts.files, counts.failed, counts.served), (18, 2, 0));
    eventually("the log tells of them", || async {
        let log = std::fs::read_to_string(proxy.dir.path().join("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(r#""by":"static""#) && line.contains(r#""app":"shop""#)).count() == 18
    })
    .await;

    let mut route = with_files(&[], served);
    route.maintenance = Some(Maintenance::default());
    proxy.client.apply(vec![route]).await.unwrap();
    assert_eq!(proxy.wire().await.get("/static/app.css").await.status, 503, "maintenance is for files too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_the_part_and_the_coding_that_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..300_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    write(
        dir.path(),
        &[
            ("large.txt", &large),
            ("a.js", b"plain"),
            ("a.js.br", b"brotli"),
            ("a.js.gz", b"gzipped"),
            ("b.js.gz", b"x"),
        ],
    );
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.client.apply(vec![with_files(&[&backend], vec![files("/s", &[dir.path()])])]).await.unwrap();
    let mut wire = proxy.wire().await;
    let whole = wire.get("/s/large.txt").await;
    assert!(whole.complete && whole.body.as_bytes() == large);
    let etag = whole.header("etag").unwrap().to_owned();
    let range = ask(&mut wire, "GET /s/large.txt", "Range: bytes=100-200099\r\n").await;
    assert_eq!((range.status, range.header("content-range")), (206, Some("bytes 100-200099/300000")));
    assert!(range.complete && range.body.as_bytes() == &large[100..200_100]);
    let fresh = ask(&mut wire, "GET /s/large.txt", &format!("Range: bytes=-5\r\nIf-Range: {etag}\r\n")).await;
    assert_eq!((fresh.status, fresh.body.as_bytes()), (206, &large[299_995..]));
    let stale = ask(&mut wire, "GET /s/large.txt", "Range: bytes=-5\r\nIf-Range: \"x\"\r\n").await;
    assert_eq!((stale.status, stale.body.len()), (200, 300_000));
    let beyond = ask(&mut wire, "GET /s/large.txt", "Range: bytes=300000-\r\n").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */300000")));
    let known = ask(&mut wire, "GET /s/large.txt", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((known.status, known.header("etag")), (304, Some(etag.as_str())));
    let other = ask(&mut wire, "GET /s/large.txt", "If-Match: \"x\"\r\n").await;
    assert_eq!((other.status, other.header("etag"), other.body.len()), (412, Some(etag.as_str()), 0));
    let old = "If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT\r\nRange: bytes=0-1\r\n";
    assert_eq!(ask(&mut wire, "GET /s/large.txt", old).await.status, 412);
    let meant = ask(&mut wire, "GET /s/large.txt", &format!("If-Match: {etag}\r\nRange: bytes=0-1\r\n")).await;
    assert_eq!((meant.status, meant.body.as_bytes()), (206, &large[..2]));
    wire.send("HEAD /s/large.txt HTTP/1.1\r\nHost: shop.test\r\nRange: bytes=0-1\r\n\r\n").await;
    let head = wire.until(b"\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 300000\r\n"), "{head}");

    let mut etags = Vec::new();
    for (accept, coding, body) in [
        ("", None, "plain"),
        ("Accept-Encoding: gzip, deflate, br, zstd\r\n", Some("br"), "brotli"),
        ("Accept-Encoding: gzip\r\n", Some("gzip"), "gzipped"),
    ] {
        let reply = ask(&mut wire, "GET /s/a.js", accept).await;
        assert_eq!((reply.header("content-encoding"), reply.body.as_str()), (coding, body));
        assert_eq!(reply.header("content-type"), Some("text/javascript; charset=utf-8"));
        assert_eq!(reply.header("vary"), Some("accept-encoding"));
        etags.push(reply.header("etag").unwrap().to_owned());
    }
    etags.dedup();
    assert_eq!(etags.len(), 3, "each coding is a version of its own");
    assert_eq!(ask(&mut wire, "GET /s/b.js", "Accept-Encoding: gzip\r\n").await.status, 404);
    assert_eq!(wire.get("/else").await.body, "d1-web-1");
    assert_eq!(proxy.counts().await.served, 1);
}
