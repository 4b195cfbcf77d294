//! What crosses the proxy byte by byte: headers, framings, hostile requests.

use super::support::*;
use crate::model::InstanceId;
use crate::proxy::table::Member;

#[tokio::test]
async fn headers_are_those_of_this_hop() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut wire = proxy.wire().await;
    wire.send(
        "GET /headers?q=1 HTTP/1.1\r\nHost: Shop.test:81\r\nX-Forwarded-For: 127.0.0.1\r\nX_Forwarded_For: 1\r\n\
         Forwarded: for=1\r\nX-Real-IP: 1\r\nX-Request-Id: mine\r\nConnection: X-Forwarded-For, X-Secret, x-request-id\r\n\
         X-Secret: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\nCookie: a=b\r\n\r\n",
    )
    .await;
    let body = wire.reply().await.body;
    let (id, others): (Vec<&str>, Vec<&str>) = body.lines().partition(|line| line.starts_with("x-request-id"));
    assert_eq!(
        others,
        [
            "GET /headers?q=1",
            "cookie: a=b",
            "host: Shop.test:81",
            "te: trailers",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: Shop.test:81",
            "x-forwarded-proto: http"
        ]
    );
    assert!(id.len() == 1 && !id[0].contains("mine"), "{id:?}");
    let hop = wire.get("/hop").await;
    assert_eq!(hop.header("x-app"), Some("1"));
    for gone in ["x-internal", "keep-alive", "connection"] {
        assert_eq!(hop.header(gone), None, "{gone}");
    }
    assert_eq!(wire.get("/").await.status, 200, "the instance closed its connection, not the client's");
}

#[tokio::test]
async fn requests_that_two_might_read_differently_are_refused() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let head = "POST / HTTP/1.1\r\nHost: shop.test\r\n";
    let hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for (what, request) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("a host alone", "GET shop.test HTTP/1.1\r\nHost: shop.test\r\n\r\n".to_owned()),
        ("two hosts", "GET / HTTP/1.1\r\nHost: shop.test\r\nHost: shop.test\r\n\r\n".to_owned()),
        ("host with a path", "GET / HTTP/1.1\r\nHost: shop.test/x\r\n\r\n".to_owned()),
        ("two lengths", format!("{head}Content-Length: 4\r\nContent-Length: 5\r\n\r\n{hidden}")),
        ("a list of lengths", format!("{head}Content-Length: 4, 5\r\n\r\n{hidden}")),
        ("a signed length", format!("{head}Content-Length: +4\r\n\r\n{hidden}")),
        ("a hexadecimal length", format!("{head}Content-Length: 0x4\r\n\r\n{hidden}")),
        ("a negative length", format!("{head}Content-Length: -1\r\n\r\n{hidden}")),
        ("a coding not known", format!("{head}Transfer-Encoding: xchunked\r\n\r\n{hidden}")),
        ("chunked not last", format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n{hidden}")),
        ("chunked twice", format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{hidden}")),
        ("a second coding", format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n{hidden}")),
        ("a vertical tab", format!("{head}Transfer-Encoding: \x0bchunked\r\n\r\n{hidden}")),
        ("space before the colon", format!("{head}Transfer-Encoding : chunked\r\n\r\n{hidden}")),
        ("a folded line", format!("{head}X: 1\r\n Transfer-Encoding: chunked\r\n\r\n{hidden}")),
        (
            "chunked in HTTP/1.0",
            format!("POST / HTTP/1.0\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n{hidden}"),
        ),
        ("a NUL in a value", format!("{head}X: a\0b\r\n\r\n")),
        ("a bare CR in a value", format!("{head}X: a\rb\r\n\r\n")),
        ("a control character in the target", "GET /a\x01b HTTP/1.1\r\nHost: shop.test\r\n\r\n".to_owned()),
    ] {
        let mut wire = proxy.wire().await;
        wire.send(&request).await;
        let reply = wire.try_reply().await;
        assert_eq!(reply.map(|reply| reply.status), Some(400), "{what}");
        assert!(wire.try_reply().await.is_none(), "{what}: the connection goes with it");
        assert_eq!(backend.requests(), 0, "{what}");
    }
    let mut wire = proxy.wire().await;
    wire.send("CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!((wire.reply().await.status, backend.requests()), (405, 0));
}

#[tokio::test]
async fn a_length_beside_chunked_does_not_count() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    for lengths in
        ["Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 300"]
    {
        let before = backend.requests();
        let mut wire = proxy.wire().await;
        wire.send(&format!(
            "POST /size HTTP/1.1\r\nHost: shop.test\r\n{lengths}\r\n\r\n4\r\nbody\r\n0\r\n\r\n\
             GET /hidden HTTP/1.1\r\nHost: shop.test\r\n\r\n"
        ))
        .await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "4"), "{lengths}");
        assert!(wire.try_reply().await.is_none(), "what follows is not trusted: {lengths}");
        assert_eq!(backend.requests(), before + 1);
    }
}

#[tokio::test]
async fn a_malformed_chunk_is_the_clients_fault() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut wire = proxy.wire().await;
    wire.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nbody\r\n0\r\n\r\n")
        .await;
    assert_eq!(wire.reply().await.status, 400);
    let counts = proxy.counts().await;
    assert_eq!((counts.failed, counts.client_aborted), (0, 1));
}

#[tokio::test]
async fn old_clients_and_expectations_are_served() {
    let proxy = TestProxy::start().await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut old = proxy.wire().await;
    old.send("GET /sse HTTP/1.0\r\nHost: shop.test\r\n\r\n").await;
    let head = old.until(b"\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.0 200") && !head.contains("chunked"), "{head}");
    old.until(b"data: 2\n\n").await.unwrap();

    let mut asks = proxy.wire().await;
    asks.send("GET /headers HTTP/1.0\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await;
    let reply = asks.reply().await;
    assert!(reply.status == 200 && !reply.body.contains("upgrade"), "HTTP/1.0 has none: {reply:?}");

    let mut waits = proxy.wire().await;
    waits.send("POST /size HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(waits.until(b"\r\n\r\n").await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    waits.send("body").await;
    assert_eq!(waits.reply().await.body, "4");

    let mut pipelines = proxy.wire().await;
    pipelines.send(&"GET /headers HTTP/1.1\r\nHost: shop.test\r\n\r\n".repeat(20)).await;
    for _ in 0..20 {
        assert_eq!(pipelines.reply().await.status, 200);
    }
}

#[tokio::test]
async fn an_upload_that_nobody_takes_still_gets_its_answer() {
    let proxy = TestProxy::start().await;
    proxy.client.apply(vec![route("bare", "bare.test", &[])]).await.unwrap();
    let body = "x".repeat(1 << 20);
    let mut wire = proxy.wire().await;
    for (host, status) in [("else.test", 404), ("bare.test", 503), ("else.test", 404)] {
        wire.send(&format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len())).await;
        // The answer is long on its way when the last byte is sent.
        wire.stream.readable().await.unwrap();
        wire.send(&body).await;
        let reply = wire.reply().await;
        assert!(reply.status == status && reply.complete, "{host}: {reply:?}");
    }
}

#[tokio::test]
async fn an_upload_gets_the_answer_of_an_instance_that_does_not_read_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = TestProxy::start().await;
    let mut route = route("shop", "shop.test", &[]);
    route.members.push(Member { instance: InstanceId::parse("d1-web-1").unwrap(), address, weight: 1, group: 0 });
    proxy.client.apply(vec![route]).await.unwrap();
    let instance = tokio::spawn(async move {
        let mut wire = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
        wire.until(b"\r\n\r\n").await.unwrap();
        wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n").await;
    });
    let mut wire = proxy.wire().await;
    let body = "x".repeat(1 << 20);
    wire.send(&format!("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    wire.stream.readable().await.unwrap();
    instance.await.unwrap();
    wire.send(&body).await;
    let reply = wire.reply().await;
    assert!(reply.status == 413 && reply.complete, "{reply:?}");
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_not_told_to_go_on_in_vain() {
    let proxy = TestProxy::start().await;
    let mut wire = proxy.wire().await;
    wire.send("POST / HTTP/1.1\r\nHost: else.test\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (404, Some("close")));
    assert!(wire.is_closed().await);
}
