//! Every kind of message that HTTP/1.1 knows, one story each: interim answers, trailers, answers without a body or without a
//! length, connections that are closed on one side.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::recorder::{Recorded, Recorder};
use super::support::*;
use crate::proxy::http1::HALF_CLOSE;

async fn accepted(listener: &TcpListener) -> Wire {
    Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() }
}

/// Each answer, what its client gets of it, and whether the connection to the instance is used again.
#[tokio::test]
async fn answers_end_where_they_say() {
    for (what, method, answer, is_closed, status, body, lines) in [
        (
            "by length",
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            200,
            "ok",
            &["content-length: 2"][..],
        ),
        (
            "by chunks",
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            false,
            200,
            "ok",
            &["transfer-encoding: chunked"],
        ),
        (
            "by the end of the connection",
            "GET",
            "HTTP/1.1 200 OK\r\n\r\nok",
            true,
            200,
            "ok",
            &["transfer-encoding: chunked"],
        ),
        (
            "by the end, in HTTP/1.0",
            "GET",
            "HTTP/1.0 200 OK\r\n\r\nok",
            true,
            200,
            "ok",
            &["transfer-encoding: chunked"],
        ),
        (
            "of a HEAD, with the length of a GET",
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            false,
            200,
            "",
            &["content-length: 1000"],
        ),
        (
            "of a HEAD, with the coding of a GET",
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
            200,
            "",
            &[],
        ),
        (
            "304, with a length",
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"a\"\r\n\r\n",
            false,
            304,
            "",
            &["etag: \"a\""],
        ),
        ("304, without", "GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", false, 304, "", &["etag: \"a\""]),
        ("204", "DELETE", "HTTP/1.1 204 No Content\r\n\r\n", false, 204, "", &[]),
    ] {
        let (proxy, listener) = played_instance().await;
        let mut client = proxy.wire().await;
        client.send(&format!("{method} /a HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
        let mut instance = accepted(&listener).await;
        instance.until(b"\r\n\r\n").await.unwrap();
        instance.send(answer).await;
        if is_closed {
            instance.stream.shutdown().await.unwrap();
        }
        if method == "HEAD" {
            let head = client.until(b"\r\n\r\n").await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200 "), "{what}: {head}");
            assert!(lines.iter().all(|line| head.to_ascii_lowercase().contains(line)), "{what}: {head}");
        } else {
            let reply = client.reply().await;
            assert_eq!((reply.status, reply.body.as_str(), reply.complete), (status, body, true), "{what}");
            assert!(lines.iter().all(|line| reply.head.to_ascii_lowercase().contains(line)), "{what}: {}", reply.head);
        }
        // What was the whole answer leaves both connections where the next one begins.
        client.send("GET /next HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let mut instance = if is_closed { accepted(&listener).await } else { instance };
        let next = timeout(Duration::from_secs(10), instance.until(b"\r\n\r\n")).await.expect(what).unwrap();
        assert!(next.starts_with("GET /next "), "{what}: {next}");
        instance.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await;
        assert_eq!(client.reply().await.body, "next", "{what}");
        assert_eq!(proxy.counts().await.failed, 0, "{what}");
    }
}

/// RFC 9110 §15.2: each at once, before the answer; a 100 is the answer to a question that the client did not ask.
#[tokio::test]
async fn interim_answers_reach_the_client() {
    let (proxy, listener) = played_instance().await;
    let mut client = proxy.wire().await;
    client.send("GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let mut instance = accepted(&listener).await;
    instance.until(b"\r\n\r\n").await.unwrap();
    for (link, before) in [("</a.css>", "HTTP/1.1 100 Continue\r\n\r\n"), ("</b.css>", "")] {
        instance
            .send(&format!("{before}HTTP/1.1 103 Early Hints\r\nLink: {link}\r\nX-Hop: 1\r\nConnection: x-hop\r\n\r\n"))
            .await;
        let interim = client.until(b"\r\n\r\n").await.unwrap();
        assert!(interim.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{interim}");
        assert!(interim.contains(&format!("Link: {link}\r\n")), "{interim}");
        assert!(!interim.to_lowercase().contains("hop") && !interim.to_lowercase().contains("length"), "{interim}");
    }
    instance.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(client.until(b"\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 102 "));
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "ok"));
    assert_eq!((proxy.counts().await.served, proxy.counts().await.failed), (1, 0));
}

/// An answer that is cut short is not taken for a whole one.
#[tokio::test]
async fn half_an_answer_is_told_from_a_whole_one() {
    for (what, answer) in [
        ("less than its length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        ("no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("half a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf"),
        ("no chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n0\r\n\r\n"),
    ] {
        let (proxy, listener) = played_instance().await;
        let mut client = proxy.wire().await;
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let mut instance = accepted(&listener).await;
        instance.until(b"\r\n\r\n").await.unwrap();
        instance.send(answer).await;
        drop(instance);
        assert!(client.try_reply().await.is_none_or(|reply| !reply.complete), "{what}");
        assert!(client.is_closed().await, "{what}");
        assert_eq!(proxy.counts().await.failed, 1, "{what}");
    }
}

#[tokio::test]
async fn trailers_cross_both_ways() {
    let answer = |_: &Recorded| {
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n"
            .to_owned()
    };
    let (proxy, recorder) = (TestProxy::start().await, Recorder::with(answer).await);
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    let mut wire = proxy.wire().await;
    wire.send(
        "POST /a HTTP/1.1\r\nHost: shop.test\r\nTE: trailers\r\nTrailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\nX-Check: 7\r\n\r\n",
    )
    .await;
    let text = wire.until(b"X-Sum: 42\r\n\r\n".to_ascii_lowercase().as_slice()).await.unwrap();
    assert!(text.contains("2\r\nok\r\n0\r\n"), "{text}");
    let seen = recorder.seen().remove(0);
    assert_eq!((seen.body.as_str(), seen.header("trailer")), ("bodyx-check: 7", Some("X-Check")));
    assert_eq!(wire.get("/next").await.status, 200, "the connection goes on");
}

/// An instance that answers early and then takes the rest gets all of it; the next request begins behind it.
#[tokio::test]
async fn an_early_answer_does_not_end_the_upload() {
    let (proxy, listener) = played_instance().await;
    let mut client = proxy.wire().await;
    client.send("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 8\r\n\r\nbody").await;
    let mut instance = accepted(&listener).await;
    instance.until(b"body").await.unwrap();
    instance.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await;
    assert_eq!(client.reply().await.body, "early");
    client.send("moreGET /next HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(instance.until(b"more").await.as_deref(), Some("more"));
    // Its connection is not used again: who answers early may not have read what follows.
    assert!(instance.is_closed().await);
    let mut next = accepted(&listener).await;
    let head = next.until(b"\r\n\r\n").await.unwrap();
    assert!(head.starts_with("GET /next HTTP/1.1\r\n"), "{head}");
    next.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await;
    assert_eq!(client.reply().await.body, "next");
}

#[tokio::test]
async fn a_tunnel_ends_on_each_side_by_itself() {
    let (proxy, listener) = played_instance().await;
    let mut client = proxy.wire().await;
    client.send("GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
    let mut instance = accepted(&listener).await;
    instance.until(b"\r\n\r\n").await.unwrap();
    instance.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nfirst").await;
    assert_eq!(client.reply().await.status, 101);
    client.until(b"first").await.unwrap();
    client.send("last words").await;
    client.stream.shutdown().await.unwrap();
    instance.until(b"last words").await.unwrap();
    assert!(!instance.more().await, "the client's end is the instance's to see");
    instance.send("and an answer").await;
    assert_eq!(client.until(b"and an answer").await.as_deref(), Some("and an answer"));
    drop(instance);
    assert!(client.is_closed().await);
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed, counts.client_aborted), (1, 0, 0), "{counts:?}");
}

/// A request without a body, and of each kind that is read by hyper: its path is put in.
const KINDS: [(&str, &str); 6] = [
    ("GET", " HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
    ("GET", " HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n"),
    ("GET", " HTTP/1.0\r\nHost: shop.test\r\n\r\n"),
    ("POST", " HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nbody"),
    ("POST", " HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
    ("GET", " HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: no-such\r\n\r\n"),
];

/// A client that closes its side with its request has said only that this was all (as `nc -N` does). One that does it later is
/// taken for gone, as it is by nginx and by Go's servers: from here one that has gone looks the same. Its instance is told,
/// and nobody is blamed.
#[tokio::test]
async fn a_client_that_says_no_more_is_answered_and_one_that_leaves_is_let_go() {
    let (proxy, backend) = (TestProxy::start().await, Backend::start("d1-web-1").await);
    proxy.route(&[&backend]).await;
    for (method, rest) in KINDS {
        let mut answers = Vec::new();
        for number in 0..12 {
            let mut half = proxy.wire().await;
            // Most end with their last bytes, some while they are looked at.
            half.send(&format!("{method} /slow?{}{rest}", 10 * number)).await;
            half.stream.shutdown().await.unwrap();
            answers.push(half);
        }
        for half in &mut answers {
            assert_eq!(half.reply().await.body, "d1-web-1", "{method} {rest}");
            assert!(half.is_closed().await, "{method} {rest}");
        }
    }
    let all = KINDS.len() as u64 * 12;
    for (number, (method, rest)) in (1..).zip(KINDS) {
        let mut client = proxy.wire().await;
        client.send(&format!("{method} /slow?60000{rest}")).await;
        eventually("it is under way", || async { proxy.in_flight(&backend).await == 1 }).await;
        // Time itself is what tells the two apart.
        tokio::time::sleep(HALF_CLOSE * 2).await;
        client.stream.shutdown().await.unwrap();
        assert!(client.is_closed().await, "{method} {rest}");
        eventually("its instance is let go of", || async { proxy.in_flight(&backend).await == 0 }).await;
        let counts = proxy.counts().await;
        assert_eq!((counts.served, counts.failed, counts.client_aborted), (all, 0, number), "{counts:?}");
    }
}

/// Its end in the middle of what it sends is no end of a request.
#[tokio::test]
async fn a_client_that_ends_in_the_middle_of_a_body_is_not_answered() {
    let (proxy, backend) = (TestProxy::start().await, Backend::start("d1-web-1").await);
    proxy.route(&[&backend]).await;
    for framing in ["Content-Length: 8\r\n\r\nbody", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"] {
        let mut half = proxy.wire().await;
        half.send(&format!("POST /size HTTP/1.1\r\nHost: shop.test\r\n{framing}")).await;
        half.stream.shutdown().await.unwrap();
        let reply = half.try_reply().await;
        assert!(reply.as_ref().is_none_or(|reply| reply.status == 400), "{framing}: {reply:?}");
        assert!(half.is_closed().await, "{framing}");
    }
    eventually("its instance is let go of", || async { proxy.in_flight(&backend).await == 0 }).await;
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (0, 0), "{counts:?}");
}
