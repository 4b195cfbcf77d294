//! A proxy in a directory of its own, servers to stand behind it, and a client that sees every byte.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{ProxyConfig, ProxyLimits};
use crate::model::InstanceId;
use crate::proxy::access_log::AccessLog;
use crate::proxy::front::Fronts;
use crate::proxy::table::{DrainLimits, Member, Route};
use crate::proxy::{ProxyClient, ProxyOptions, run};

/// A proxy on a free port, with an agent connected.
pub struct TestProxy {
    pub address: SocketAddr,
    pub client: ProxyClient,
    pub dir: Arc<TempDir>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<anyhow::Result<()>>,
}

impl TestProxy {
    pub async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap())).await
    }

    pub async fn start_in(dir: Arc<TempDir>) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    /// With these limits.
    pub async fn with_limits(limits: ProxyLimits) -> Self {
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), |options| options.front.limits = limits).await
    }

    pub async fn start_with(dir: Arc<TempDir>, adapt: impl FnOnce(&mut ProxyOptions)) -> Self {
        let (ready, address) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let mut options =
            ProxyOptions { ready: Some(ready), ..ProxyOptions::new(([127, 0, 0, 1], 0).into(), dir.path().to_owned()) };
        adapt(&mut options);
        let task = tokio::spawn(run(options, shutdown.clone()));
        let address = address.await.unwrap();
        let client = ProxyClient::start(dir.path());
        assert!(client.connected(Duration::from_secs(5)).await);
        Self { address, client, dir, shutdown, task }
    }

    pub async fn wire(&self) -> Wire {
        Wire::open(self.address).await
    }

    /// Puts one app `shop` with the host `shop.test` on these backends.
    pub async fn route(&self, backends: &[&Backend]) {
        self.client.apply(vec![route("shop", "shop.test", backends)]).await.unwrap();
    }

    pub async fn counts(&self) -> crate::proxy::control::AppCounts {
        self.client.counts().await.unwrap().apps.get(&"shop".parse().unwrap()).copied().unwrap_or_default()
    }

    pub async fn in_flight(&self, backend: &Backend) -> u64 {
        self.client.counts().await.unwrap().in_flight.get(&backend.id).copied().unwrap_or(0)
    }
}

/// A proxy with an instance that the test speaks for.
pub async fn played_instance() -> (TestProxy, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = TestProxy::start().await;
    let mut route = route("shop", "shop.test", &[]);
    route.members.push(Member { instance: InstanceId::parse("d1-web-1").unwrap(), address, weight: 1, group: 0 });
    proxy.client.apply(vec![route]).await.unwrap();
    (proxy, listener)
}

/// What a proxy without an operator shows.
pub fn fronts() -> Arc<Fronts> {
    let (front, access_log) = (ProxyConfig::plain(([127, 0, 0, 1], 0).into()), AccessLog::off(Path::new("")));
    Arc::new(Fronts::new(front, None, PathBuf::new(), Arc::default(), access_log).unwrap())
}

pub fn route(app: &str, host: &str, backends: &[&Backend]) -> Route {
    let member =
        |backend: &&Backend| Member { instance: backend.id.clone(), address: backend.address, weight: 1, group: 0 };
    let members = backends.iter().map(member).collect();
    Route::new(app.parse().unwrap(), "web".parse().unwrap(), vec![host.to_owned()], members)
}

pub fn limits(requests_ms: u64, streams_ms: u64) -> DrainLimits {
    DrainLimits { requests: Duration::from_millis(requests_ms), streams: Duration::from_millis(streams_ms) }
}

/// Asks until it holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let asking = async {
        while !check().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(Duration::from_secs(10), asking).await.is_ok(), "{what}");
}

/// A server that answers by path and remembers what it saw.
pub struct Backend {
    pub id: InstanceId,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    stop: CancellationToken,
}

#[derive(Default)]
pub struct Seen {
    /// How often each `x-id` came.
    pub ids: Mutex<HashMap<String, usize>>,
    pub requests: AtomicUsize,
    pub connections: AtomicUsize,
    pub open: AtomicUsize,
    pub most_open: AtomicUsize,
}

/// A connection counted as open.
struct Open(Arc<Seen>);

impl Open {
    fn count(seen: &Arc<Seen>) -> Self {
        seen.most_open.fetch_max(seen.open.fetch_add(1, SeqCst) + 1, SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl Backend {
    pub async fn start(id: &str) -> Self {
        Self::with_keep_alive(id, Duration::from_secs(60)).await
    }

    /// Closes connections that idle this long.
    pub async fn with_keep_alive(id: &str, idle: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
        let name: Arc<str> = id.into();
        let serving = {
            let (seen, stop) = (Arc::clone(&seen), stop.clone());
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    seen.connections.fetch_add(1, SeqCst);
                    let open = Open::count(&seen);
                    let serving = serve(stream, Arc::clone(&seen), Arc::clone(&name), idle);
                    let serving = async move {
                        serving.await;
                        drop(open);
                    };
                    tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
                }
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Self { id: InstanceId::parse(id).unwrap(), address, seen, stop }
    }

    /// Its process dies: the listener and all connections close.
    pub fn kill(&self) {
        self.stop.cancel();
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One connection; closed when nothing came for `idle` after an answer.
async fn serve(stream: TcpStream, seen: Arc<Seen>, name: Arc<str>, idle: Duration) {
    let (is_idle, mut idles) = watch::channel(false);
    let service = service_fn(|request| {
        let (seen, name, is_idle) = (Arc::clone(&seen), Arc::clone(&name), is_idle.clone());
        async move {
            is_idle.send_replace(false);
            let response = answer(&name, &seen, request).await;
            is_idle.send_replace(true);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut close_at = None;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            Ok(()) = idles.changed() => close_at = idles.borrow_and_update().then(|| Instant::now() + idle),
            () = sleep_until(close_at.unwrap_or_else(Instant::now)), if close_at.is_some() => {
                close_at = None;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn frames(parts: impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(parts.map(|part| part.map(Frame::data).map_err(Into::into))))
}

async fn answer(name: &str, seen: &Seen, mut request: Request<Incoming>) -> Response<Body> {
    seen.requests.fetch_add(1, SeqCst);
    if let Some(id) = request.headers().get("x-id") {
        *seen.ids.lock().unwrap().entry(id.to_str().unwrap().to_owned()).or_default() += 1;
    }
    let number = request.uri().query().and_then(|query| query.parse().ok()).unwrap_or(0);
    match request.uri().path() {
        "/slow" => {
            sleep(Duration::from_millis(number)).await;
            Response::new(text(name.to_owned()))
        }
        "/echo" => Response::new(request.into_body().map_err(Into::into).boxed()),
        "/size" => {
            let size = request.into_body().collect().await.map(|body| body.to_bytes().len()).unwrap_or(usize::MAX);
            Response::new(text(size.to_string()))
        }
        "/headers" => {
            let mut lines: Vec<String> =
                request.headers().iter().map(|(k, v)| format!("{k}: {}\n", v.to_str().unwrap())).collect();
            lines.sort();
            Response::new(text(format!("{} {}\n{}", request.method(), request.uri(), lines.concat())))
        }
        "/status" => Response::builder().status(number as u16).body(text(name.to_owned())).unwrap(),
        "/hop" => Response::builder()
            .header("connection", "x-internal, close")
            .header("x-internal", "1")
            .header("keep-alive", "timeout=5")
            .header("x-app", "1")
            .body(text(name.to_owned()))
            .unwrap(),
        "/break" => {
            let parts = [Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))];
            let slowly = futures_util::stream::iter(parts).then(|part| async {
                sleep(Duration::from_millis(20)).await;
                part
            });
            Response::new(frames(slowly))
        }
        "/sse" => {
            let ticks = futures_util::stream::unfold(0, |n| async move {
                sleep(Duration::from_millis(10)).await;
                Some((Ok(Bytes::from(format!("data: {n}\n\n"))), n + 1))
            });
            Response::builder().header("content-type", "text/event-stream").body(frames(ticks)).unwrap()
        }
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            let name = name.to_owned();
            let thinks = request.uri().query().and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let _ = io.write_all(format!("hello from {name}\n").as_bytes()).await;
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = io.read(&mut buffer).await {
                    sleep(thinks.unwrap_or_default()).await;
                    if io.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
            let switched = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
            switched.body(text("")).unwrap()
        }
        _ => Response::new(text(name.to_owned())),
    }
}

/// A client's connection, byte by byte.
pub struct Wire {
    pub stream: TcpStream,
    /// Read and not yet used.
    pub rest: Vec<u8>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// The body came to its proper end.
    pub complete: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = |line: &&str| line.split(':').next().is_some_and(|key| key.eq_ignore_ascii_case(name));
        self.head.lines().find(found).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, rest: Vec::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
        self.reply().await
    }

    /// One answer: by Content-Length, chunked, or without a body where the status says so.
    pub async fn reply(&mut self) -> Reply {
        self.try_reply().await.expect("an answer")
    }

    /// `None` when the connection ends before one.
    pub async fn try_reply(&mut self) -> Option<Reply> {
        timeout(Duration::from_secs(20), self.read_reply()).await.expect("an answer in time")
    }

    async fn read_reply(&mut self) -> Option<Reply> {
        let head = self.until(b"\r\n\r\n").await?;
        let status = head[9..12].parse().unwrap();
        let mut reply = Reply { status, head, body: String::new(), complete: true };
        if status == 101 || status == 204 || status == 304 {
            return Some(reply);
        }
        if let Some(length) = reply.header("content-length") {
            let length = length.parse().unwrap();
            reply.complete = self.fill(length).await;
            let end = length.min(self.rest.len());
            reply.body = String::from_utf8(self.rest.drain(..end).collect()).unwrap();
        } else {
            loop {
                let Some(size) = self.until(b"\r\n").await else {
                    reply.complete = false;
                    return Some(reply);
                };
                let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
                reply.complete = self.fill(size + 2).await;
                let end = size.min(self.rest.len());
                reply.body += &String::from_utf8(self.rest.drain(..end).collect()).unwrap();
                self.rest.drain(..2.min(self.rest.len()));
                if size == 0 || !reply.complete {
                    return Some(reply);
                }
            }
        }
        Some(reply)
    }

    /// Up to and with a delimiter; `None` at the end of the stream.
    pub async fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.rest.windows(end.len()).position(|window| window == end) {
                return Some(String::from_utf8(self.rest.drain(..at + end.len()).collect()).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn fill(&mut self, length: usize) -> bool {
        while self.rest.len() < length {
            if !self.more().await {
                return false;
            }
        }
        true
    }

    pub async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.rest).await, Ok(1..))
    }

    /// Whether the other side has closed, with nothing more to read.
    pub async fn is_closed(&mut self) -> bool {
        self.rest.is_empty() && timeout(Duration::from_secs(10), async { !self.more().await }).await.unwrap_or(false)
    }
}
