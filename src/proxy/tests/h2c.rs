//! Instances that speak HTTP/2 without TLS, as gRPC servers do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2 as client;
use hyper::header::HeaderValue;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::support::*;
use crate::model::InstanceId;
use crate::proxy::table::{Member, Protocol, Route};

type Body = BoxBody<Bytes, Infallible>;

/// Echoes bodies, says of a request what it saw, and gives a status in its trailers.
struct Instance {
    address: SocketAddr,
    streams: u32,
    seen: Arc<Seen>,
    serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Made so far, and open now.
    connections: AtomicUsize,
    open: AtomicUsize,
    /// What `/endless` was given.
    bytes: AtomicUsize,
    /// Echoes that are over, whole or not.
    ended: AtomicUsize,
}

struct Echo(Arc<Seen>);

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

impl Instance {
    async fn start(streams: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Seen>::default());
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, streams, Arc::clone(&seen)));
        Self { address, streams, seen, serving }
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }

    /// Cuts every connection, and listens again at once.
    async fn restart(&mut self) {
        self.serving.shutdown().await;
        let again = loop {
            if let Ok(listener) = TcpListener::bind(self.address).await {
                break listener;
            }
            tokio::task::yield_now().await;
        };
        self.serving.spawn(serve(again, self.streams, Arc::clone(&self.seen)));
    }
}

/// Requests at a time on one connection, where a test says nothing else.
const STREAMS: u32 = 200;

async fn serve(listener: TcpListener, streams: u32, seen: Arc<Seen>) {
    let mut open = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let seen = Arc::clone(&seen);
        seen.connections.fetch_add(1, SeqCst);
        seen.open.fetch_add(1, SeqCst);
        open.spawn(async move {
            let answering = service_fn(|request| answer(request, Arc::clone(&seen)));
            let mut builder = server::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(streams);
            let _ = builder.serve_connection(TokioIo::new(socket), answering).await;
            seen.open.fetch_sub(1, SeqCst);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    assert_eq!(request.version(), Version::HTTP_2);
    let (path, size) = (request.uri().path(), request.uri().query().and_then(|size| size.parse().ok()).unwrap_or(0));
    let large = HeaderValue::try_from("x".repeat(size)).unwrap();
    let piece = Bytes::from_static(&[b'x'; 16 << 10]);
    match path {
        "/endless" => {
            let pieces = futures_util::stream::repeat_with(move || {
                seen.bytes.fetch_add(piece.len(), SeqCst);
                Ok(Frame::data(piece.clone()))
            });
            return Ok(Response::new(BodyExt::boxed(StreamBody::new(pieces))));
        }
        "/pause" => tokio::time::sleep(Duration::from_millis(100)).await,
        "/head" => {
            let body = Empty::new().map_err(|never| match never {}).boxed();
            return Ok(Response::builder().header("x-large", large).body(body).unwrap());
        }
        "/trailers" => {
            let trailers = [("x-large".parse().unwrap(), large)].into_iter().collect();
            let body = request.into_body().with_trailers(async move { Some(Ok(trailers)) });
            return Ok(Response::new(body.boxed()));
        }
        _ => {}
    }
    let said = format!(
        "{} {} te={:?} for={:?}",
        request.method(),
        request.uri(),
        request.headers().get("te"),
        request.headers().get("x-forwarded-for"),
    );
    let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
    let echo = Echo(seen);
    let heard = request.into_body().map_frame(move |frame| {
        let _kept = &echo;
        frame
    });
    let body = heard.with_trailers(async move { Some(Ok(status)) }).boxed();
    Ok(Response::builder().header("x-said", said).body(body).unwrap())
}

async fn routed() -> (TestProxy, Instance) {
    allowing(STREAMS).await
}

/// An instance that takes so many requests at a time on one connection.
async fn allowing(streams: u32) -> (TestProxy, Instance) {
    let (proxy, instance) = (TestProxy::start().await, Instance::start(streams).await);
    route_to(&proxy, instance.address).await;
    (proxy, instance)
}

async fn route_to(proxy: &TestProxy, address: SocketAddr) {
    let id = InstanceId::parse("d1-web-1").unwrap();
    let members = vec![Member { instance: id, address, weight: 1, group: 0 }];
    let route = Route { protocol: Protocol::H2c, members, ..route("shop", "shop.test", &[]) };
    proxy.client.apply(vec![route]).await.unwrap();
}

/// Asks, reads the head of the answer, and leaves the rest.
async fn begin(proxy: &TestProxy, path: &str) -> Wire {
    let mut wire = proxy.wire().await;
    wire.send(&format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
    let head = timeout(Duration::from_secs(10), wire.until(b"\r\n\r\n")).await.expect("an answer").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    wire
}

async fn connect(proxy: &TestProxy) -> client::SendRequest<Body> {
    let socket = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) = client::Builder::new(TokioExecutor::new())
        .max_header_list_size(1 << 20)
        .handshake(TokioIo::new(socket))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn call(body: Body) -> Request<Body> {
    let request = Request::post("http://shop.test/shop.Orders/Follow").header("te", "trailers");
    request.header("content-type", "application/grpc").body(body).unwrap()
}

#[tokio::test]
async fn calls_stream_both_ways_on_one_connection_and_end_with_trailers() {
    let (proxy, instance) = routed().await;
    let mut client = connect(&proxy).await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        let (say, mut said) = mpsc::unbounded_channel::<Frame<Bytes>>();
        let frames = futures_util::stream::poll_fn(move |cx| said.poll_recv(cx).map(|frame| frame.map(Ok)));
        say.send(Frame::data("first".into())).unwrap();
        let answer = client.send_request(call(BodyExt::boxed(StreamBody::new(frames)))).await.unwrap();
        let said = answer.headers()["x-said"].to_str().unwrap().to_owned();
        assert_eq!(said, "POST http://shop.test/shop.Orders/Follow te=Some(\"trailers\") for=Some(\"127.0.0.1\")");
        calls.push((say, answer.into_body()));
    }
    for (say, body) in &mut calls {
        for word in ["first", "second"] {
            let frame = timeout(Duration::from_secs(5), body.frame()).await.unwrap().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), word);
            if word == "first" {
                say.send(Frame::data("second".into())).unwrap();
            }
        }
    }
    for (say, body) in calls {
        drop(say);
        let end = body.collect().await.unwrap();
        assert_eq!(end.trailers().unwrap()["grpc-status"], "0");
    }
    assert_eq!(instance.connections(), 1);
    assert_eq!(proxy.counts().await.served, 3);
}

/// While its answer waits for the client, nothing moves either way but what the client might still send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_outlives_its_budget_ends_on_both_sides() {
    let (proxy, instance) = routed().await;
    let mut client = connect(&proxy).await;
    let (say, mut said) = mpsc::unbounded_channel::<Frame<Bytes>>();
    let frames = futures_util::stream::poll_fn(move |cx| said.poll_recv(cx).map(|frame| frame.map(Ok)));
    // More than the client's own window takes of its echo.
    for _ in 0..256 {
        say.send(Frame::data(Bytes::from_static(&[b'x'; 16 << 10]))).unwrap();
    }
    let answer = client.send_request(call(BodyExt::boxed(StreamBody::new(frames)))).await.unwrap();
    assert_eq!(instance.seen.ended.load(SeqCst), 0);
    proxy.client.apply(Vec::new()).await.unwrap();
    let drained = proxy.client.drain(&InstanceId::parse("d1-web-1").unwrap(), limits(300, 300)).await;
    assert_eq!((drained.confirmed, drained.cut_requests), (true, 1), "{drained:?}");
    assert!(drained.took < Duration::from_secs(1), "{drained:?}");
    eventually("the instance hears of it", || async { instance.seen.ended.load(SeqCst) == 1 }).await;
    assert!(!say.is_closed(), "the client knows nothing yet");
    assert!(answer.into_body().collect().await.is_err(), "it is told when it takes more");
    assert_eq!(proxy.counts().await.failed, 1);
}

#[tokio::test]
async fn clients_of_http1_get_their_answers_too() {
    let (proxy, _instance) = routed().await;
    let mut wire = proxy.wire().await;
    wire.send("POST /a?b HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        .await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.body.as_str(), reply.complete), (200, "hello", true));
    assert_eq!(wire.get("/c").await.status, 200, "on the same connection");
}

#[tokio::test]
async fn a_connection_that_the_instance_cut_costs_no_request() {
    let (proxy, mut instance) = routed().await;
    let mut client = connect(&proxy).await;
    for round in 0..5 {
        let get = Request::get("http://shop.test/").body(Empty::new().boxed()).unwrap();
        let answer = client.send_request(get).await.unwrap();
        assert_eq!(answer.status(), 200, "round {round}");
        assert!(answer.into_body().collect().await.is_ok());
        instance.restart().await;
    }
    assert!(instance.connections() >= 5);
    assert_eq!(proxy.counts().await.failed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_hold_up_nobody_else() {
    let (proxy, instance) = routed().await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(begin(&proxy, "/endless").await);
    }
    eventually("the instance can send no more of any", || async {
        let before = instance.seen.bytes.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
        before == instance.seen.bytes.load(SeqCst)
    })
    .await;
    let mut other = proxy.wire().await;
    other.send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\n\r\nhello").await;
    let reply = timeout(Duration::from_secs(5), other.reply()).await.expect("it is answered");
    assert_eq!((reply.body.as_str(), instance.connections()), ("hello", 1));
}

/// As large as those of an instance that speaks HTTP/1.1.
#[tokio::test]
async fn heads_and_trailers_may_be_large() {
    let (proxy, _instance) = routed().await;
    let mut wire = proxy.wire().await;
    for size in [30_000, 250_000] {
        let reply = wire.get(&format!("/head?{size}")).await;
        assert_eq!((reply.status, reply.header("x-large").map(str::len)), (200, Some(size)));
    }
    assert_eq!(wire.get("/head?300000").await.status, 502);
    let mut client = connect(&proxy).await;
    for size in [30_000, 250_000] {
        let request = Request::get(format!("http://shop.test/trailers?{size}")).body(Empty::new().boxed()).unwrap();
        let answer = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["x-large"].len(), size);
    }
}

/// Asks for a page that takes a moment, so often at once.
async fn burst(proxy: &TestProxy, requests: usize) {
    let at_once = (0..requests).map(|_| async { proxy.wire().await.get("/pause").await.status });
    assert_eq!(join_all(at_once).await, vec![200; requests]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_a_connection_takes_are_given_another() {
    let (proxy, instance) = allowing(5).await;
    let long = join_all((0..12).map(|_| begin(&proxy, "/endless"))).await;
    assert_eq!(instance.connections(), 3);
    assert_eq!(proxy.wire().await.get("/").await.status, 200, "there is room on the third");
    drop(long);
    eventually("all but one are closed", || async { instance.seen.open.load(SeqCst) == 1 }).await;
    burst(&proxy, 5).await;
    assert_eq!(instance.connections(), 3, "that one is used again");
    assert_eq!(proxy.counts().await.failed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_has_its_place_until_both_sides_are_through() {
    let (proxy, instance) = allowing(1).await;
    let mut client = connect(&proxy).await;
    let (say, mut said) = mpsc::unbounded_channel::<Frame<Bytes>>();
    let frames = futures_util::stream::poll_fn(move |cx| said.poll_recv(cx).map(|frame| frame.map(Ok)));
    say.send(Frame::data("first".into())).unwrap();
    let mut answer = client.send_request(call(BodyExt::boxed(StreamBody::new(frames)))).await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    let mut wire = proxy.wire().await;
    let reply = timeout(Duration::from_secs(5), wire.get("/")).await.expect("it does not wait for the call");
    assert_eq!((reply.status, instance.connections()), (200, 2));
    drop(say);
    assert_eq!(answer.collect().await.unwrap().trailers().unwrap()["grpc-status"], "0");
    eventually("the surplus one is closed", || async { instance.seen.open.load(SeqCst) == 1 }).await;
    assert_eq!((wire.get("/").await.status, instance.connections()), (200, 2), "the place is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_a_bound_to_an_instances_connections() {
    let (proxy, instance) = allowing(1).await;
    burst(&proxy, 60).await;
    assert_eq!(instance.connections(), 32, "the rest waited for their turn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_connections_that_the_instance_cut_cost_no_request() {
    let (proxy, mut instance) = allowing(1).await;
    for round in 1..5 {
        burst(&proxy, 4).await;
        instance.restart().await;
        assert_eq!(proxy.wire().await.get("/").await.status, 200, "round {round}");
    }
    assert_eq!(proxy.counts().await.failed, 0);
}

#[tokio::test]
async fn an_instance_that_speaks_something_else_is_a_bad_gateway() {
    let (proxy, backend) = (TestProxy::start().await, Backend::start("d1-web-1").await);
    route_to(&proxy, backend.address).await;
    for _ in 0..3 {
        let mut wire = proxy.wire().await;
        let reply = timeout(Duration::from_secs(5), wire.get("/")).await.expect("it is told at once");
        assert_eq!(reply.status, 502);
    }
}
