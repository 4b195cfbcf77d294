//! Bytes that two might read differently: an instance sees the requests that the proxy took, each with its own end, and no
//! other.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::recorder::Recorder;
use super::support::*;

/// Would be a request of its own if the one before it ended earlier than the proxy says.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: shop.test\r\n\r\n";

async fn start() -> (TestProxy, Recorder) {
    let (proxy, recorder) = (TestProxy::start().await, Recorder::start().await);
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    (proxy, recorder)
}

#[tokio::test]
async fn what_is_taken_has_one_beginning_and_one_end() {
    let (proxy, recorder) = start().await;
    let hidden = HIDDEN.len();
    let post = "POST /a HTTP/1.1\r\nHost: shop.test\r\n";
    let get = "GET /a HTTP/1.1\r\nHost: shop.test\r\n";
    for (what, bytes, expected) in [
        ("a length", format!("{post}Content-Length: {hidden}\r\n\r\n{HIDDEN}"), vec![format!("POST /a {HIDDEN}")]),
        ("of a GET too", format!("{get}Content-Length: {hidden}\r\n\r\n{HIDDEN}"), vec![format!("GET /a {HIDDEN}")]),
        (
            "of nothing",
            format!("{post}Content-Length: 0\r\n\r\n{HIDDEN}"),
            vec!["POST /a".into(), "GET /hidden".into()],
        ),
        ("none at all", format!("{post}\r\n{HIDDEN}"), vec!["POST /a".into(), "GET /hidden".into()]),
        ("with zeros", format!("{post}Content-Length: 0004\r\n\r\nbody"), vec!["POST /a body".into()]),
        (
            "named in Connection",
            format!("{post}Connection: content-length\r\nContent-Length: {hidden}\r\n\r\n{HIDDEN}"),
            vec![format!("POST /a {HIDDEN}")],
        ),
        (
            "beside one with an underscore",
            format!("{post}Content_Length: 0\r\nContent-Length: {hidden}\r\n\r\n{HIDDEN}"),
            vec![format!("POST /a {HIDDEN}")],
        ),
        (
            "chunks",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n"),
            vec![format!("POST /a {HIDDEN}")],
        ),
        (
            "chunks, named in Connection",
            format!(
                "{post}Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n{hidden:X}\r\n{HIDDEN}\r\n0\r\n\r\n"
            ),
            vec![format!("POST /a {HIDDEN}")],
        ),
        (
            "chunks with extensions, which end here",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n4;a=b;c=\"d\"\r\nbody\r\n0;e\r\n\r\n{HIDDEN}"),
            vec!["POST /a body".into(), "GET /hidden".into()],
        ),
        (
            "chunks of a GET",
            format!("{get}Transfer-Encoding: chunked\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n"),
            vec![format!("GET /a {HIDDEN}")],
        ),
        ("empty lines before a request", format!("\r\n\r\n{HIDDEN}"), vec!["GET /hidden".into()]),
        ("lines that end with LF alone", "GET /lf HTTP/1.1\nHost: shop.test\n\n".to_owned(), vec!["GET /lf".into()]),
        (
            "a full target, and another Host",
            "GET http://shop.test/full HTTP/1.1\r\nHost: else.test\r\n\r\n".to_owned(),
            vec!["GET /full".into()],
        ),
        (
            "a target that looks like two",
            "GET //else.test/..%2f?a=http://b HTTP/1.1\r\nHost: shop.test\r\n\r\n".to_owned(),
            vec!["GET //else.test/..%2f?a=http://b".into()],
        ),
    ] {
        let before = recorder.seen().len();
        let mut wire = proxy.wire().await;
        wire.send(&bytes).await;
        for summary in &expected {
            let reply = wire.reply().await;
            assert_eq!((reply.status, reply.body.trim_end()), (200, summary.trim_end()), "{what}");
        }
        // Nothing is left over: the next request begins where this one ended.
        assert_eq!(wire.get("/next").await.body, "GET /next", "{what}");
        assert_eq!(recorder.seen().len(), before + expected.len() + 1, "{what}");
        let hosts = recorder.seen().into_iter().map(|request| request.header("host").unwrap().to_owned());
        assert!(hosts.into_iter().all(|host| host == "shop.test"), "{what}");
    }
}

#[tokio::test]
async fn a_chunk_that_is_none_ends_everything() {
    let (proxy, recorder) = start().await;
    let length = HIDDEN.len();
    for (what, chunks) in [
        ("hexadecimal with a sign", format!("0x4\r\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("a plus", format!("+4\r\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("a minus", format!("-4\r\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("no size", format!("\r\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("more than there are numbers", format!("10000000000000004\r\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("no CR after the size", format!("4\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("no LF after the size", format!("4\rXbody\r\n0\r\n\r\n{HIDDEN}")),
        ("an extension with a line of its own", format!("4;a\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("longer than it says", format!("4\r\nbody{HIDDEN}\r\n0\r\n\r\n")),
        ("shorter than it says", format!("8\r\nbody\r\n0\r\n\r\n{HIDDEN}")),
        ("no CR after the data", format!("4\r\nbody\n0\r\n\r\n{HIDDEN}")),
        ("a trailer that is none", format!("0\r\nx y: z\r\n\r\n{HIDDEN}")),
        ("a trailer with a bare CR", format!("0\r\nx: y\rz\r\n\r\n{HIDDEN}")),
        ("an endless extension", format!("4;{}\r\nbody\r\n0\r\n\r\n{HIDDEN}", "x".repeat(100_000))),
        ("endless trailers", format!("0\r\n{}\r\n{HIDDEN}", format!("x: {}\r\n", "y".repeat(100)).repeat(1000))),
        ("space after the size", format!("{length:x} x\r\n{HIDDEN}\r\n0\r\n\r\n")),
    ] {
        let mut wire = proxy.wire().await;
        let head = "POST /a HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        // It may be refused before all of it is written.
        let _ = wire.stream.write_all([head, &chunks].concat().as_bytes()).await;
        let reply = wire.try_reply().await;
        assert!(reply.as_ref().is_none_or(|reply| reply.status == 400), "{what}: {reply:?}");
        assert!(wire.try_reply().await.is_none(), "{what}: what follows is not trusted");
        assert_eq!(recorder.summaries(), Vec::<String>::new(), "{what}");
    }
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (0, 0), "these are the client's mistakes");
    assert_eq!(proxy.wire().await.get("/after").await.body, "GET /after");
}

/// Pingora's CVE-2026-2833: what a client sends before it knows that the protocol was switched is not a request, nor the
/// instance's to read as one.
#[tokio::test]
async fn nothing_follows_an_upgrade_before_it_is_agreed_to() {
    let (proxy, listener) = played_instance().await;
    let ask = format!("GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n{HIDDEN}");
    for agrees in [true, false] {
        let mut client = proxy.wire().await;
        client.send(&ask).await;
        let mut instance = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
        let head = instance.until(b"\r\n\r\n").await.unwrap();
        assert!(head.starts_with("GET /ws HTTP/1.1\r\n") && instance.rest.is_empty(), "{head}");
        let early = timeout(Duration::from_millis(200), instance.more()).await;
        assert!(early.is_err(), "before its answer: {:?}", instance.rest);
        if agrees {
            instance.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await;
            assert_eq!(client.reply().await.status, 101);
            // Now they are bytes of the other protocol, and come as they are.
            assert_eq!(instance.until(b"\r\n\r\n").await.as_deref(), Some(HIDDEN));
        } else {
            instance.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await;
            assert_eq!(client.reply().await.status, 403);
            drop(instance);
            // It was the next request, and is treated as one: looked at, and with a connection and headers of its own.
            let mut next = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
            let head = next.until(b"\r\n\r\n").await.unwrap();
            assert!(
                head.starts_with("GET /hidden HTTP/1.1\r\n") && head.contains("x-forwarded-for: 127.0.0.1"),
                "{head}"
            );
            next.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            assert_eq!(client.reply().await.body, "ok");
        }
    }
}

/// Answers that two might read differently are not passed on.
#[tokio::test]
async fn an_answer_has_one_end_as_well() {
    for (what, answer) in [
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nokok"),
        ("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok"),
        ("one number in two ways", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 02\r\n\r\nok"),
        ("no number", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok"),
        ("a sign", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
        ("a space", "HTTP/1.1 200 OK\r\nContent-Length: 2 2\r\n\r\nok"),
        ("another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("a line of no header", "HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 2\r\n\r\nok"),
        (
            "a switch that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        ),
        ("no HTTP", "SSH-2.0-OpenSSH_9.2p1\r\n\r\n"),
    ] {
        let (proxy, listener) = played_instance().await;
        let instance = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut wire = Wire { stream, rest: Vec::new() };
                wire.until(b"\r\n\r\n").await;
                // It may have been given up.
                let _ = wire.stream.write_all(answer.as_bytes()).await;
            }
        });
        assert_eq!(proxy.wire().await.get("/").await.status, 502, "{what}");
        let mut wire = proxy.wire().await;
        wire.send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(wire.reply().await.status, 502, "{what}, of a POST");
        instance.abort();
    }
}

/// RFC 9112 §6.3: beside chunks a length says nothing, whoever reads them, and no client is told of it.
#[tokio::test]
async fn a_length_beside_an_answers_chunks_does_not_cross() {
    for (chunks, body) in [("0\r\n\r\n", ""), ("4\r\nbody\r\n0\r\n\r\n", "body")] {
        for length in [0, 2, 5, 400] {
            let (proxy, listener) = played_instance().await;
            let instance = tokio::spawn(async move {
                loop {
                    let mut wire = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
                    tokio::spawn(async move {
                        while let Some(head) = wire.until(b"\r\n\r\n").await {
                            let chunks = if head.starts_with("HEAD ") { "" } else { chunks };
                            let head =
                                format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
                            wire.send(&format!("HTTP/1.1 200 OK\r\n{head}")).await;
                        }
                    });
                }
            });
            for requests in [
                &["GET", "GET"][..],
                // Over the connection to the instance that the one before left.
                &["POST", "GET", "HEAD", "POST"],
            ] {
                let mut client = proxy.wire().await;
                for method in requests {
                    let what = format!("{method} of {requests:?}, {length} beside {chunks:?}");
                    let nothing = if *method == "POST" { "Content-Length: 0\r\n" } else { "" };
                    client.send(&format!("{method} /a HTTP/1.1\r\nHost: shop.test\r\n{nothing}\r\n")).await;
                    if *method == "HEAD" {
                        let head = client.until(b"\r\n\r\n").await.unwrap().to_ascii_lowercase();
                        assert!(!head.contains("content-length"), "{what}: {head}");
                        continue;
                    }
                    let reply = client.reply().await;
                    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, body, true), "{what}");
                    assert_eq!(reply.header("content-length"), None, "{what}");
                    assert!(client.rest.is_empty(), "{what}: {:?}", client.rest);
                }
            }
            let counts = proxy.counts().await;
            assert_eq!((counts.served, counts.failed), (6, 0), "{counts:?}");
            instance.abort();
        }
    }
}

#[tokio::test]
async fn headers_that_claim_to_be_the_proxys_do_not_cross() {
    let (proxy, recorder) = start().await;
    let mut wire = proxy.wire().await;
    wire.send(
        "GET /h HTTP/1.1\r\nHost: shop.test\r\nConnection: X-Forwarded-For, X-Longshore-User, X-Request-Id, X-Forwarded-Host\r\n\
         X-Longshore-User: admin\r\nX-Forwarded-For: 127.0.0.9\r\nx-forwarded-port: 1\r\nX-FORWARDED-HOST: else.test\r\n\
         Forwarded: for=127.0.0.9\r\nX-Real-IP: 127.0.0.9\r\nX_Forwarded_For: 127.0.0.9\r\nX-Forwarded_For: 127.0.0.9\r\n\r\n",
    )
    .await;
    assert_eq!(wire.reply().await.status, 200);
    let head = recorder.seen().remove(0).head.to_ascii_lowercase();
    for gone in ["127.0.0.9", "else.test", "admin", "_", "x-real-ip", "forwarded:", "port", "connection"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    for ours in ["\r\nx-forwarded-for: 127.0.0.1\r\n", "\r\nx-forwarded-host: shop.test\r\n", "\r\nx-request-id: "] {
        assert_eq!(head.matches(ours).count(), 1, "{ours}: {head}");
    }
}

/// What the agent answers on its own listener is the app's on the public one.
#[tokio::test]
async fn the_public_listener_knows_no_administration() {
    let (proxy, recorder) = start().await;
    let mut wire = proxy.wire().await;
    let paths =
        ["/api", "/api/v1/apps", "/api/v1/tokens", "/livez", "/readyz", "/metrics", "/hooks/shop", "/proxy.sock"];
    for path in paths {
        assert_eq!(wire.get(path).await.body, format!("GET {path}"), "the app answers");
    }
    for path in paths {
        wire.send(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")).await;
        assert_eq!(wire.reply().await.status, 404, "and nobody, where there is no app: {path}");
    }
    assert_eq!(recorder.seen().len(), paths.len());
}
