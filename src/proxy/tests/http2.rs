//! HTTP/2 in front of instances that speak HTTP/1.1, with hyper's client and with curl.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::support::*;
use crate::config::ProxyLimits;
use crate::proxy::{ProxyOptions, run};

type Body = BoxBody<Bytes, Infallible>;

/// An HTTP/2 client with one connection.
struct Client {
    sender: http2::SendRequest<Body>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket));
        let (sender, connection) = handshake.await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// The answer, its body and its trailers.
    async fn whole(&mut self, request: Request<Body>) -> (Response<()>, String, Option<HeaderMap>) {
        let (head, body) = self.send(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        (Response::from_parts(head, ()), String::from_utf8(body.to_bytes().to_vec()).unwrap(), trailers)
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        let (head, body, _) = self.whole(to("GET", path, none())).await;
        (head.status().as_u16(), body)
    }
}

fn none() -> Body {
    Full::default().boxed()
}

fn to(method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(format!("http://shop.test{path}")).body(body).unwrap()
}

/// A body that is sent frame by frame as the test says.
fn spoken() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (say, mut said) = mpsc::unbounded_channel();
    let frames = futures_util::stream::poll_fn(move |cx| said.poll_recv(cx).map(|frame| frame.map(Ok)));
    (say, BodyExt::boxed(StreamBody::new(frames)))
}

/// A proxy with one instance that gives this answer to its only request, and what it was sent up to `end`.
async fn with_answer(answer: &'static str, end: &'static [u8]) -> (TestProxy, JoinHandle<String>) {
    let (proxy, listener) = played_instance().await;
    let instance = tokio::spawn(async move {
        let mut wire = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
        let sent = wire.until(end).await.unwrap();
        wire.send(answer).await;
        // Until the proxy is through with it.
        let _ = timeout(Duration::from_secs(5), wire.until(b"\0")).await;
        sent
    });
    (proxy, instance)
}

async fn with_backend() -> (TestProxy, Backend, Client) {
    let (proxy, backend) = (TestProxy::start().await, Backend::start("d1-web-1").await);
    proxy.route(&[&backend]).await;
    let client = Client::open(proxy.address).await;
    (proxy, backend, client)
}

/// RFC 9112 §6.3: beside chunks a length says nothing, and an HTTP/2 client would take the answer for malformed.
#[tokio::test]
async fn a_length_beside_an_answers_chunks_does_not_cross() {
    for method in ["GET", "POST"] {
        let (proxy, _instance) = with_answer(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            b"\r\n\r\n",
        )
        .await;
        let mut client = Client::open(proxy.address).await;
        let (head, body, _) = client.whole(to(method, "/", none())).await;
        assert_eq!((body.as_str(), head.headers().get("content-length")), ("body", None), "{method}");
    }
}

#[tokio::test]
async fn headers_are_those_of_this_hop() {
    let (_proxy, backend, mut client) = with_backend().await;
    let request = |headers: &[(&str, &str)]| {
        let request = Request::builder().uri("http://Shop.test:81/headers?q=1");
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(none()).unwrap()
    };
    let headers = [("te", "trailers"), ("cookie", "a=1"), ("x-forwarded-for", "1"), ("cookie", "b=2"), ("x-own", "1")];
    let (head, text, _) = client.whole(request(&headers)).await;
    assert_eq!((head.status().as_u16(), head.version()), (200, hyper::Version::HTTP_2));
    let id = text.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    assert_eq!(
        text.replace(id, "ID"),
        "GET /headers?q=1\ncookie: a=1; b=2\nhost: Shop.test:81\nte: trailers\nx-forwarded-for: 127.0.0.1\n\
         x-forwarded-host: Shop.test:81\nx-forwarded-proto: http\nx-own: 1\nx-request-id: ID\n"
    );
    let (head, text, _) = client.whole(to("GET", "/hop", none())).await;
    assert_eq!((text.as_str(), &head.headers()["x-app"]), ("d1-web-1", &"1".parse().unwrap()));
    for gone in ["connection", "x-internal", "keep-alive"] {
        assert!(!head.headers().contains_key(gone), "{gone}");
    }
    let before = backend.requests();
    let (head, text, _) = client.whole(request(&[("host", "else.test")])).await;
    assert_eq!((head.status().as_u16(), backend.requests()), (400, before), "{text}");
    assert!(text.contains(":authority") && !head.headers().contains_key("connection"), "{head:?}");
    let connect = Request::builder().method("CONNECT").uri("shop.test:443").body(none()).unwrap();
    assert_eq!(client.send(connect).await.unwrap().status(), 405);
    // What HTTP/1.1 calls the end of a connection is none here.
    assert_eq!(client.get("/headers").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_they_were_given() {
    let (proxy, _backend, mut client) = with_backend().await;
    let (head, text, _) = client.whole(to("HEAD", "/headers", none())).await;
    assert!(head.headers().contains_key("content-length") && text.is_empty(), "{head:?} {text:?}");
    for status in [204_u16, 304, 404, 500] {
        assert_eq!(client.get(&format!("/status?{status}")).await.0, status);
    }
    let broken = client.send(to("GET", "/break", none())).await.unwrap();
    assert!(broken.into_body().collect().await.is_err(), "a client can tell that an answer is not whole");
    let big = "x".repeat(3 << 20);
    let (_, size, _) = client.whole(to("PUT", "/size", Full::from(big.clone()).boxed())).await;
    assert_eq!(size, big.len().to_string());
    let (_, echoed, _) = client.whole(to("PUT", "/echo", Full::from(big.clone()).boxed())).await;
    assert_eq!(echoed.len(), big.len());
    let at_once = (0..300).map(|_| {
        let mut sender = client.sender.clone();
        async move {
            sender.ready().await.unwrap();
            sender.send_request(to("GET", "/slow?20", none())).await.unwrap().status().as_u16()
        }
    });
    assert_eq!(join_all(at_once).await, [200; 300], "more than fit at a time");
    assert_eq!(proxy.counts().await.failed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_proxy_says_itself_has_no_body_for_who_wants_none() {
    let (_proxy, _backend, mut client) = with_backend().await;
    let ask = |method: &str| Request::builder().method(method).uri("http://else.test/").body(none()).unwrap();
    let (whole, text, _) = client.whole(ask("GET")).await;
    let (head, nothing, _) = client.whole(ask("HEAD")).await;
    assert_eq!([whole.status().as_u16(), head.status().as_u16()], [404, 404]);
    assert!(text.contains("else.test") && nothing.is_empty(), "{text:?} {nothing:?}");
    let told = head.headers()["content-length"].to_str().unwrap();
    assert!(told.parse::<usize>().unwrap().abs_diff(text.len()) < 3, "{told} of {text:?}, whose id may be shorter");
}

#[tokio::test]
async fn bytes_flow_both_ways_at_once() {
    let (_proxy, _backend, mut client) = with_backend().await;
    let (say, body) = spoken();
    say.send(Frame::data("one".into())).unwrap();
    let mut answer = client.send(to("POST", "/echo", body)).await.unwrap().into_body();
    for word in ["one", "two", "three"] {
        let frame = timeout(Duration::from_secs(5), answer.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
        say.send(Frame::data(if word == "one" { "two" } else { "three" }.into())).unwrap();
    }
    drop(say);
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "three");
}

#[tokio::test]
async fn trailers_cross_both_ways() {
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n";
    let (proxy, instance) = with_answer(answer, b"\r\n0\r\nx-check: 7\r\n\r\n").await;
    let mut client = Client::open(proxy.address).await;
    let (say, body) = spoken();
    let mut request = to("POST", "/", body);
    request.headers_mut().insert("trailer", "x-check".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    say.send(Frame::data("data".into())).unwrap();
    say.send(Frame::trailers([("x-check".parse().unwrap(), "7".parse().unwrap())].into_iter().collect())).unwrap();
    drop(say);
    let (head, text, trailers) = client.whole(request).await;
    assert_eq!(
        (head.status().as_u16(), text.as_str(), &trailers.unwrap()["x-sum"]),
        (200, "ok", &"42".parse().unwrap())
    );
    drop((client, proxy));
    assert!(instance.await.unwrap().contains("\r\n4\r\ndata\r\n0\r\n"));
}

#[tokio::test]
async fn what_there_is_of_an_answer_that_breaks_off_is_sent_before_it_is_said() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n";
    for method in ["GET", "POST"] {
        let (proxy, _instance) = with_answer(answer, b"\r\n\r\n").await;
        let mut body = Client::open(proxy.address).await.send(to(method, "/", none())).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half", "{method}");
        assert!(body.frame().await.unwrap().is_err(), "{method}");
    }
}

#[tokio::test]
async fn interim_answers_are_not_taken_for_the_answer() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (proxy, _instance) = with_answer(answer, b"\r\n\r\n").await;
    assert_eq!(Client::open(proxy.address).await.get("/").await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn an_early_answer_ends_an_upload() {
    let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n";
    let (proxy, _instance) = with_answer(answer, b"\r\n\r\n").await;
    let mut client = Client::open(proxy.address).await;
    let (say, body) = spoken();
    say.send(Frame::data("x".repeat(100).into())).unwrap();
    let answer = client.send(to("POST", "/", body)).await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "no\n");
    drop(say);
    // Of the proxy's making, and the connection goes on.
    let (say, body) = spoken();
    let mut request = to("POST", "/", body);
    *request.uri_mut() = "http://else.test/".parse().unwrap();
    assert_eq!(client.whole(request).await.0.status(), 404);
    drop(say);
}

#[tokio::test]
async fn what_is_too_much_is_refused() {
    let (proxy, backend, mut client) = with_backend().await;
    let mut large = to("GET", "/", none());
    large.headers_mut().insert("x-large", "x".repeat(100_000).parse().unwrap());
    let refused = client.send(large).await;
    assert!(refused.as_ref().map_or(true, |answer| answer.status() == 431), "{refused:?}");
    assert_eq!(backend.requests(), 0);

    // Opened and reset at once, again and again: the connection ends, and nobody else notices.
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
    };
    // By the static table (RFC 7541): :method GET, :scheme http, :path /, and :authority as a literal.
    let head = [&[0x82, 0x86, 0x84, 0x41, 9][..], b"shop.test"].concat();
    let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, b"")].concat();
    for stream in (1..4000).step_by(2) {
        bytes.extend(frame(1, 5, stream, &head));
        bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut hasty = proxy.wire().await;
    hasty.stream.write_all(&bytes).await.unwrap();
    let mut answered = Vec::new();
    // Reset or closed: it ends.
    let _ =
        timeout(Duration::from_secs(10), hasty.stream.read_to_end(&mut answered)).await.expect("the connection ends");
    assert!(backend.requests() < 2000, "{}", backend.requests());
    assert_eq!(Client::open(proxy.address).await.get("/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_its_client_does_not_take_is_not_kept_for_ever() {
    let limits = ProxyLimits { send_timeout: Duration::from_millis(500), ..ProxyLimits::default() };
    let proxy = TestProxy::with_limits(limits).await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let mut client = Client::open(proxy.address).await;
    let untaken = client.send(to("POST", "/echo", BodyExt::boxed(Full::from(vec![b'x'; 8 << 20])))).await.unwrap();
    assert_eq!(untaken.status(), 200);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(client.get("/").await.0, 200, "the connection is as lively as ever");
    }
    eventually("the instance is rid of it", || async { proxy.in_flight(&backend).await == 0 }).await;
    assert!(untaken.into_body().collect().await.is_err(), "not whole, and not taken for whole");
    assert_eq!(client.get("/").await.0, 200);
}

/// Where hyper writes, the answer is not asked for more: it is its stream that has to be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instances_time_is_over_for_streams_that_are_not_taken_as_well() {
    let (proxy, old, mut client) = with_backend().await;
    let large = || BodyExt::boxed(Full::from(vec![b'x'; 8 << 20]));
    let mut untaken = Vec::new();
    for _ in 0..3 {
        untaken.push(client.send(to("POST", "/echo", large())).await.unwrap());
    }
    assert_eq!(proxy.in_flight(&old).await, 3);
    let new = Backend::start("d2-web-1").await;
    proxy.route(&[&new]).await;
    let drained = proxy.client.drain(&old.id, limits(200, 200)).await;
    assert_eq!((drained.confirmed, drained.cut_requests), (true, 3), "{drained:?}");
    assert!(drained.took < Duration::from_secs(1), "{drained:?}");
    assert_eq!((proxy.counts().await.failed, proxy.in_flight(&old).await), (3, 0));
    for answer in untaken {
        let why = answer.into_body().collect().await.expect_err("not whole, and not taken for whole");
        assert!(format!("{why:?}").contains("INTERNAL_ERROR"), "{why:?}");
    }
    assert_eq!(client.get("/").await, (200, "d2-web-1".to_owned()), "the connection goes on");
}

/// hyper has all of it long before its client has, and no request is under way any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_the_end_of_an_answer_slowly_has_it_whole() {
    let limits = ProxyLimits { header_timeout: Duration::from_millis(300), ..ProxyLimits::default() };
    let proxy = TestProxy::with_limits(limits).await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let socket = TcpStream::connect(proxy.address).await.unwrap();
    let mut narrow = http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) =
        narrow.initial_stream_window_size(4 << 10).handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let sent = 50 << 10;
    let request = to("POST", "/echo", BodyExt::boxed(Full::from(vec![b'x'; sent])));
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let (mut taken, began) = (0, Instant::now());
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap_or_else(|why| panic!("after {taken} bytes and {:?}: {why:?}", began.elapsed()));
        taken += frame.into_data().unwrap().len();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(taken, sent);
    assert!(began.elapsed() > Duration::from_secs(1), "it was not slow: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_asked_to_leave_and_loses_nothing() {
    let (proxy, _backend, mut client) = with_backend().await;
    let mut idle = Client::open(proxy.address).await;
    assert_eq!(idle.get("/").await.0, 200);
    let slow = client.send(to("GET", "/slow?1500", none()));
    let ended = async {
        eventually("it is under way", || async { proxy.counts().await.served == 1 }).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.shutdown.cancel();
        let idles = Instant::now();
        idle.connection.await.unwrap().unwrap();
        idles.elapsed()
    };
    let (answer, idled) = tokio::join!(slow, ended);
    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "d1-web-1");
    assert!(idled < Duration::from_millis(900), "an idle client is told at once: {idled:?}");
    client.connection.await.unwrap().unwrap();
    proxy.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_notices_a_hand_over() {
    let (first, backend, _) = with_backend().await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..6)
        .map(|name| {
            let (stop, sent, address) = (Arc::clone(&stop), Arc::clone(&sent), first.address);
            tokio::spawn(async move {
                let (mut number, mut unsent) = (0, Vec::new());
                let mut client = Client::open(address).await;
                while !stop.load(SeqCst) {
                    if client.sender.ready().await.is_err() {
                        client = Client::open(address).await;
                        client.sender.ready().await.unwrap();
                    }
                    number += 1;
                    let id = format!("{name}-{number}");
                    let mut request = to("GET", "/", none());
                    request.headers_mut().insert("x-id", id.parse().unwrap());
                    let answer = match client.sender.send_request(request).await {
                        Ok(answer) => answer,
                        // The client had just read of the end, or had seen it: it sent nothing, and may try again elsewhere.
                        Err(error) => {
                            let is_told = format!("{error:?}").contains("GoAway(b\"\", NO_ERROR");
                            assert!(is_told || error.is_canceled(), "{error:?}");
                            unsent.push(id);
                            continue;
                        }
                    };
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "d1-web-1");
                    sent.fetch_add(1, SeqCst);
                }
                unsent
            })
        })
        .collect();
    for _ in 0..5 {
        let before = sent.load(SeqCst);
        let (ready, serves) = oneshot::channel();
        let options = ProxyOptions::new(first.address, first.dir.path().to_owned());
        let options = ProxyOptions { take_over: true, ready: Some(ready), ..options };
        tokio::spawn(run(options, first.shutdown.clone()));
        serves.await.unwrap();
        eventually("traffic goes on", || async { sent.load(SeqCst) > before + 100 }).await;
    }
    stop.store(true, SeqCst);
    for client in clients {
        for id in client.await.unwrap() {
            assert!(!backend.seen.ids.lock().unwrap().contains_key(&id), "{id} was taken and not answered");
        }
    }
    assert!(backend.seen.ids.lock().unwrap().values().all(|&times| times == 1));
    assert!(timeout(Duration::from_secs(10), first.task).await.is_ok(), "the first one has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_it_with_prior_knowledge() {
    let (proxy, _backend, _client) = with_backend().await;
    let url = |path: &str| format!("http://{}{path}", proxy.address);
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "-m", "20", "--http2-prior-knowledge", "-H", "Host: shop.test", "-w", "|%{http_version}\n"]);
    // Larger than curl sends without asking (`Expect: 100-continue`).
    curl.args(["--data-binary", &"x".repeat(100_000), &url("/size")]);
    let output = curl.output().await.expect("curl is installed: ./dev setup");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out, "100000|2\n", "{err}");
}
