//! HTTP/2 frame by frame: what a library's client would never send.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::recorder::Recorder;
use super::support::*;
use crate::config::ProxyLimits;
use crate::model::InstanceId;
use crate::proxy::table::{Member, Protocol, Route};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// Each header as a literal that no table knows (RFC 7541 §6.2.2).
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A request's first headers, and those that are added.
fn request<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let first = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "shop.test")];
    first.into_iter().chain(more.iter().copied()).collect()
}

/// The frames that come until a stream is answered: their kinds and streams. Ends with the connection too.
async fn read_until_answered(wire: &mut Wire, stream: u32) -> Vec<(u8, u32)> {
    read_until(wire, (HEADERS, stream)).await
}

/// The frames that come up to the first of this kind and stream. Ends with the connection too.
async fn read_until(wire: &mut Wire, last: (u8, u32)) -> Vec<(u8, u32)> {
    let mut seen = Vec::new();
    loop {
        let mut head = [0; 9];
        if wire.stream.read_exact(&mut head).await.is_err() {
            return seen;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut payload = vec![0; length as usize];
        if wire.stream.read_exact(&mut payload).await.is_err() {
            return seen;
        }
        seen.push((head[3], of));
        if (head[3], of) == last {
            return seen;
        }
    }
}

/// Requests that HTTP/1.1 would read in another way, or in two: none of them gets to an instance.
#[tokio::test]
async fn what_is_no_request_is_reset() {
    let (proxy, recorder) = (TestProxy::start().await, Recorder::start().await);
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    let hidden = "a\r\nX: 1\r\n\r\nGET /hidden HTTP/1.1";
    for (what, headers) in [
        ("Connection", request("GET", "/", &[("connection", "close")])),
        ("Keep-Alive", request("GET", "/", &[("keep-alive", "timeout=5")])),
        ("Proxy-Connection", request("GET", "/", &[("proxy-connection", "close")])),
        ("Transfer-Encoding", request("POST", "/", &[("transfer-encoding", "chunked")])),
        ("Upgrade", request("GET", "/", &[("upgrade", "websocket")])),
        ("TE with more than trailers", request("GET", "/", &[("te", "gzip")])),
        ("a name in capitals", request("GET", "/", &[("X-Upper", "1")])),
        ("a name with a colon", request("GET", "/", &[("x: y", "1")])),
        ("a name with a line's end", request("GET", "/", &[("x\r\ny", "1")])),
        ("an empty name", request("GET", "/", &[("", "1")])),
        ("a value with two lines", request("GET", "/", &[("x", hidden)])),
        ("a value with LF", request("GET", "/", &[("x", "a\nb: c")])),
        ("a value with NUL", request("GET", "/", &[("x", "a\0b")])),
        ("a path with two lines", request("GET", "/ HTTP/1.1\r\nHost: x\r\n\r\nGET /hidden", &[])),
        ("a path with a space", request("GET", "/ /hidden", &[])),
        ("an empty path", request("GET", "", &[])),
        ("a path that does not begin with a slash", request("GET", "hidden", &[])),
        ("a method with a space", request("GET /hidden", "/", &[])),
        ("a method with two lines", request("GET / HTTP/1.1\r\n\r\nGET", "/", &[])),
        ("two paths", request("GET", "/", &[(":path", "/hidden")])),
        ("a pseudo-header at the end", vec![(":method", "GET"), (":scheme", "http"), ("x", "1"), (":path", "/")]),
        ("a pseudo-header of answers", request("GET", "/", &[(":status", "200")])),
        ("no path", vec![(":method", "GET"), (":scheme", "http"), (":authority", "shop.test")]),
        ("no method", vec![(":path", "/"), (":scheme", "http"), (":authority", "shop.test")]),
        ("another host", request("GET", "/", &[("host", "else.test")])),
        ("a length that is none", request("POST", "/", &[("content-length", "x")])),
        ("a length that is not there", request("POST", "/", &[("content-length", "10")])),
    ] {
        let mut wire = proxy.wire().await;
        let bytes = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, b""),
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&headers)),
            frame(HEADERS, END_STREAM | END_HEADERS, 3, &block(&request("GET", "/good", &[]))),
        ];
        // The connection may be closed before all of it is written.
        let _ = wire.stream.write_all(&bytes.concat()).await;
        let seen = timeout(Duration::from_secs(10), read_until_answered(&mut wire, 3)).await.expect(what);
        assert!(!seen.is_empty(), "{what}");
        let others: Vec<String> = recorder.summaries().into_iter().filter(|text| text != "GET /good").collect();
        assert!(others.is_empty(), "{what}: {others:?}");
    }
}

/// A body that is longer or shorter than its `content-length` says would shift the beginning of the next request of HTTP/1.1.
#[tokio::test]
async fn a_length_that_does_not_hold_ends_its_request_alone() {
    let (proxy, recorder) = (TestProxy::start().await, Recorder::start().await);
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    let hidden = b"GET /hidden HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for (what, length, body) in
        [("longer", "0", &hidden[..]), ("longer by some", "4", hidden), ("shorter", "400", hidden)]
    {
        let mut wire = proxy.wire().await;
        let bytes = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, b""),
            frame(HEADERS, END_HEADERS, 1, &block(&request("POST", "/bad", &[("content-length", length)]))),
            frame(DATA, END_STREAM, 1, body),
            frame(HEADERS, END_STREAM | END_HEADERS, 3, &block(&request("GET", "/good", &[]))),
        ];
        let _ = wire.stream.write_all(&bytes.concat()).await;
        timeout(Duration::from_secs(10), read_until_answered(&mut wire, 3)).await.expect(what);
        assert!(recorder.summaries().iter().all(|text| text == "GET /good"), "{what}: {:?}", recorder.summaries());
    }
    let mut wire = proxy.wire().await;
    assert_eq!(wire.get("/after").await.body, "GET /after");
}

#[tokio::test]
async fn headers_that_claim_to_be_the_proxys_do_not_cross() {
    let (proxy, recorder) = (TestProxy::start().await, Recorder::start().await);
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    let mut wire = proxy.wire().await;
    let claims = [
        ("x-forwarded-for", "127.0.0.9"),
        ("x-forwarded-host", "else.test"),
        ("x-forwarded-port", "1"),
        ("x_forwarded_for", "127.0.0.9"),
        ("forwarded", "for=127.0.0.9"),
        ("x-real-ip", "127.0.0.9"),
        ("proxy-authorization", "Basic eDp5"),
        ("x-own", "1"),
    ];
    let bytes = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, b""),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&request("GET", "/h", &claims))),
    ];
    wire.stream.write_all(&bytes.concat()).await.unwrap();
    timeout(Duration::from_secs(10), read_until_answered(&mut wire, 1)).await.expect("an answer");
    let head = recorder.seen().remove(0).head;
    for gone in ["127.0.0.9", "else.test", "_", "x-real-ip", "\r\nforwarded:", "port", "Basic", "connection"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    for there in
        ["GET /h HTTP/1.1\r\n", "\r\nx-forwarded-for: 127.0.0.1\r\n", "\r\nx-own: 1\r\n", "\r\nhost: shop.test\r\n"]
    {
        assert_eq!(head.matches(there).count(), 1, "{there}: {head}");
    }
}

/// A client that gives up a page cancels all that it had asked for at once, at times in the packet that asked.
#[tokio::test]
async fn as_many_requests_as_may_be_open_may_be_cancelled_at_once() {
    let (proxy, recorder) = (TestProxy::start().await, Recorder::start().await);
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    let mut bytes = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, b"")].concat();
    let head = block(&request("GET", "/cancelled", &[]));
    let streams: Vec<u32> = (0..127).map(|number| 2 * number + 1).collect();
    bytes.extend(streams.iter().flat_map(|&id| frame(HEADERS, END_STREAM | END_HEADERS, id, &head)));
    bytes.extend(streams.iter().flat_map(|&id| frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())));
    bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 255, &block(&request("GET", "/good", &[]))));
    let mut wire = proxy.wire().await;
    wire.stream.write_all(&bytes).await.unwrap();
    let seen = timeout(Duration::from_secs(10), read_until_answered(&mut wire, 255)).await.expect("an answer");
    assert_eq!(seen.last(), Some(&(HEADERS, 255)), "{seen:?}");
}

/// All there is of its answer is in hyper's hands: the stream itself is what must not stay.
#[tokio::test]
async fn a_stream_without_a_window_is_not_kept_for_ever() {
    let limits = ProxyLimits { send_timeout: Duration::from_millis(300), ..ProxyLimits::default() };
    let proxy = TestProxy::with_limits(limits).await;
    let recorder = Recorder::start().await;
    proxy.client.apply(vec![recorder.route()]).await.unwrap();
    let initial_window = [&4_u16.to_be_bytes()[..], &0_u32.to_be_bytes()].concat();
    let bytes = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &initial_window),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&request("GET", "/untaken", &[]))),
    ];
    let mut wire = proxy.wire().await;
    wire.stream.write_all(&bytes.concat()).await.unwrap();
    let seen = timeout(Duration::from_secs(10), read_until(&mut wire, (RST_STREAM, 1))).await.expect("it is reset");
    assert!(seen.contains(&(HEADERS, 1)) && !seen.contains(&(DATA, 1)), "{seen:?}");
    assert_eq!(seen.last(), Some(&(RST_STREAM, 1)));
    let next = frame(HEADERS, END_STREAM | END_HEADERS, 3, &block(&request("GET", "/next", &[])));
    wire.stream.write_all(&next).await.unwrap();
    let seen = timeout(Duration::from_secs(10), read_until_answered(&mut wire, 3)).await.expect("an answer");
    assert_eq!(seen.last(), Some(&(HEADERS, 3)), "the connection goes on: {seen:?}");
}

/// hyper takes a reset without an error for the end of an answer. It is none, but one may follow the end where the instance
/// wants no more of the request (RFC 9113 §8.1).
#[tokio::test]
async fn an_answer_is_whole_by_its_end_and_not_by_a_reset() {
    let cases = [false, true].map(|has_length| {
        let of = move |is_upload_over, is_whole| (has_length, is_upload_over, is_whole);
        [of(true, false), of(false, false), of(true, true), of(false, true)]
    });
    for (has_length, is_upload_over, is_whole) in cases.into_iter().flatten() {
        let (proxy, listener) = played_instance().await;
        let instance = InstanceId::parse("d1-web-1").unwrap();
        let members = vec![Member { instance, address: listener.local_addr().unwrap(), weight: 1, group: 0 }];
        let route = Route { protocol: Protocol::H2c, members, ..route("shop", "shop.test", &[]) };
        proxy.client.apply(vec![route]).await.unwrap();
        let playing = tokio::spawn(async move {
            let mut wire = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
            wire.stream.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
            wire.stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
            read_until(&mut wire, (HEADERS, 1)).await;
            let mut headers = vec![(":status", "200")];
            if has_length {
                headers.push(("content-length", if is_whole { "4" } else { "10" }));
            }
            let bytes = [
                frame(HEADERS, END_HEADERS, 1, &block(&headers)),
                frame(DATA, if is_whole { END_STREAM } else { 0 }, 1, b"half"),
                frame(RST_STREAM, 0, 1, &0_u32.to_be_bytes()),
            ];
            wire.stream.write_all(&bytes.concat()).await.unwrap();
            wire
        });
        let mut client = proxy.wire().await;
        let end = if is_upload_over { "0\r\n\r\n" } else { "" };
        let head = "POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
        client.send(&format!("{head}{end}")).await;
        let what = format!("length: {has_length}, upload over: {is_upload_over}, whole: {is_whole}");
        let reply = timeout(Duration::from_secs(10), client.reply()).await.expect(&what);
        assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "half", is_whole), "{what}");
        let counts = proxy.counts().await;
        assert_eq!((counts.served, counts.failed), (u64::from(is_whole), u64::from(!is_whole)), "{what}");
        drop(playing);
    }
}

#[tokio::test]
async fn an_upload_is_whole_by_its_end_and_not_by_a_reset() {
    let (proxy, listener) = played_instance().await;
    let mut client = proxy.wire().await;
    let bytes = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, b""),
        frame(HEADERS, END_HEADERS, 1, &block(&request("POST", "/", &[]))),
        frame(DATA, 0, 1, b"half"),
    ];
    client.stream.write_all(&bytes.concat()).await.unwrap();
    let mut instance = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
    instance.until(b"4\r\nhalf\r\n").await.unwrap();
    client.stream.write_all(&frame(RST_STREAM, 0, 1, &0_u32.to_be_bytes())).await.unwrap();
    while timeout(Duration::from_secs(10), instance.more()).await.expect("its connection ends") {}
    let got = String::from_utf8(instance.rest).unwrap();
    assert_eq!(got, "", "it was told an end");
}
