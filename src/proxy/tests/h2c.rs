//! Instances that speak HTTP/2 without TLS, as gRPC servers do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2 as client;
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
    connections: Arc<AtomicUsize>,
    serving: JoinSet<()>,
}

impl Instance {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&connections)));
        Self { address, connections, serving }
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
        self.serving.spawn(serve(again, Arc::clone(&self.connections)));
    }
}

async fn serve(listener: TcpListener, connections: Arc<AtomicUsize>) {
    let mut open = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, SeqCst);
        let builder = server::Builder::new(TokioExecutor::new());
        open.spawn(builder.serve_connection(TokioIo::new(socket), service_fn(answer)));
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    assert_eq!(request.version(), Version::HTTP_2);
    let said = format!(
        "{} {} te={:?} for={:?}",
        request.method(),
        request.uri(),
        request.headers().get("te"),
        request.headers().get("x-forwarded-for"),
    );
    let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
    let body = request.into_body().with_trailers(async move { Some(Ok(status)) }).boxed();
    Ok(Response::builder().header("x-said", said).body(body).unwrap())
}

async fn routed() -> (TestProxy, Instance) {
    let (proxy, instance) = (TestProxy::start().await, Instance::start().await);
    let id = InstanceId::parse("d1-web-1").unwrap();
    let members = vec![Member { instance: id, address: instance.address, weight: 1, group: 0 }];
    let route = Route { protocol: Protocol::H2c, members, ..route("shop", "shop.test", &[]) };
    proxy.client.apply(vec![route]).await.unwrap();
    (proxy, instance)
}

async fn connect(proxy: &TestProxy) -> client::SendRequest<Body> {
    let socket = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) =
        client::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket)).await.unwrap();
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
    assert_eq!(instance.connections.load(SeqCst), 1);
    assert_eq!(proxy.counts().await.served, 3);
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
    assert!(instance.connections.load(SeqCst) >= 5);
    assert_eq!(proxy.counts().await.failed, 0);
}
