//! Requests without end, each with a number that its answer must repeat: one request, one complete answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::http::{self, Connection};

/// No answer within this counts as failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(15);
/// What a slow request takes in the app.
const SLOW_MS: u64 = 700;

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// GET, over a connection that is kept.
    KeepAlive,
    /// GET, over one of its own.
    Fresh,
    /// GET that is under way for a while.
    Slow,
    /// POST with a body, over a connection that is kept.
    Post,
    /// The request that opens a WebSocket; what is said over it is counted apart.
    WebSocket,
}

impl Kind {
    pub fn words(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive GET",
            Self::Fresh => "GET, fresh connections",
            Self::Slow => "GET that takes 0.7 s",
            Self::Post => "POST with a body",
            Self::WebSocket => "WebSockets opened",
        }
    }
}

/// What came instead of the wanted answer.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "told by the failed test")]
pub enum What {
    /// Another status.
    Status { status: u16, version: String, text: String },
    /// No complete answer.
    Broken(String),
    /// An answer to something else.
    Wrong(String),
}

/// A request that did not get its answer.
#[derive(Debug, Clone)]
pub struct Failure {
    pub id: u64,
    pub host: &'static str,
    pub kind: Kind,
    /// When its connection was made; `None`: it was not.
    pub connected: Option<Instant>,
    pub began: Instant,
    pub ended: Instant,
    pub what: What,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, host, kind, connected, began, ended, what } = self;
        let age = connected.map(|connected| began.saturating_duration_since(connected));
        let took = *ended - *began;
        write!(f, "{kind:?} {id} of {host}, {took:.2?} long on a connection {age:.2?} old: {what:?}")
    }
}

/// What happened to WebSockets once they were open.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    /// Messages that came back as they were sent.
    pub echoed: u64,
    /// Connections that ended between two messages.
    pub ended: u64,
    /// Connections that ended with a message under way.
    pub ended_with_message: u64,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Report {
    pub answered: BTreeMap<Kind, u64>,
    pub failures: Vec<Failure>,
    pub sockets: Sockets,
    /// When each version answered.
    pub versions: BTreeMap<String, Vec<Instant>>,
    /// The longest that an answer took, beyond what the app itself takes.
    pub slowest: Duration,
}

struct Run {
    proxy: SocketAddr,
    next_id: AtomicU64,
    report: Mutex<Report>,
    stop: CancellationToken,
}

/// A running load.
pub struct Load {
    run: Arc<Run>,
    workers: JoinSet<()>,
}

impl Load {
    pub fn start(proxy: SocketAddr) -> Self {
        let run = Run { proxy, next_id: AtomicU64::new(1), report: Mutex::default(), stop: CancellationToken::new() };
        Self { run: Arc::new(run), workers: JoinSet::new() }
    }

    /// Adds so many workers of a kind.
    pub fn on(mut self, host: &'static str, kind: Kind, workers: usize) -> Self {
        for _ in 0..workers {
            let run = Arc::clone(&self.run);
            match kind {
                Kind::WebSocket => self.workers.spawn(run.converse(host)),
                kind => self.workers.spawn(run.ask(host, kind)),
            };
        }
        self
    }

    /// Lets every request under way end, then says what happened.
    pub async fn stop(mut self) -> Report {
        self.run.stop.cancel();
        while let Some(worker) = self.workers.join_next().await {
            worker.expect("a load worker does not panic");
        }
        std::mem::take(&mut *self.run.report.lock().unwrap())
    }
}

/// A request under way.
struct Asked {
    id: u64,
    host: &'static str,
    kind: Kind,
    connected: Option<Instant>,
    began: Instant,
}

impl Run {
    async fn ask(self: Arc<Self>, host: &'static str, kind: Kind) {
        let mut kept: Option<(Connection, Instant)> = None;
        while !self.stop.is_cancelled() {
            let mut asked = self.begin(host, kind, kept.as_ref().map(|(_, connected)| *connected));
            let asking = tokio::time::timeout(ANSWER_WITHIN, self.exchange(&mut asked, kept.take()));
            let outcome = match asking.await {
                Ok(outcome) => outcome,
                Err(_) => Err(What::Broken(format!("no answer within {ANSWER_WITHIN:?}"))),
            };
            match outcome {
                Ok(connection) => {
                    let connected = asked.connected;
                    self.answered(&asked);
                    kept = connection.zip(connected);
                }
                Err(what) => self.failed(asked, what),
            }
            self.pause().await;
        }
    }

    fn begin(&self, host: &'static str, kind: Kind, connected: Option<Instant>) -> Asked {
        Asked { id: self.next_id.fetch_add(1, Relaxed), host, kind, connected, began: Instant::now() }
    }

    /// The connection comes back when it may be used again.
    async fn exchange(
        &self,
        asked: &mut Asked,
        kept: Option<(Connection, Instant)>,
    ) -> Result<Option<Connection>, What> {
        let mut connection = match kept {
            Some((connection, _)) => connection,
            None => {
                let connection = Connection::tcp(self.proxy).await;
                asked.connected = connection.is_ok().then(Instant::now);
                connection.map_err(|error| What::Broken(format!("connect: {error}")))?
            }
        };
        let id = asked.id.to_string();
        let slow = format!("/slow?ms={SLOW_MS}");
        let (method, path, body) = match asked.kind {
            Kind::Slow => ("GET", slow.as_str(), String::new()),
            Kind::Post => ("POST", "/echo", format!("body of {id}")),
            Kind::KeepAlive | Kind::Fresh | Kind::WebSocket => ("GET", "/", String::new()),
        };
        let request = http::request(method, asked.host, path, &[("x-load-id", &id)], Bytes::from(body.clone()));
        let answer = connection.send(request).await.map_err(|error| What::Broken(format!("{error:?}")))?;
        let version = answer.header("x-version").to_owned();
        if !version.is_empty() {
            self.report().versions.entry(version.clone()).or_default().push(Instant::now());
        }
        let status = answer.status.as_u16();
        if status != 200 {
            return Err(What::Status { status, version, text: answer.text().trim().to_owned() });
        }
        let expected = if asked.kind == Kind::Post { body } else { format!("{version}\n") };
        if answer.header("x-load-id") != id || answer.text() != expected {
            return Err(What::Wrong(format!("{:?} {:?}", answer.header("x-load-id"), answer.text())));
        }
        let again = asked.kind != Kind::Fresh && answer.header("connection") != "close";
        Ok(again.then_some(connection))
    }

    /// Opens one WebSocket after the other and has every message come back.
    async fn converse(self: Arc<Self>, host: &'static str) {
        while !self.stop.is_cancelled() {
            let mut asked = self.begin(host, Kind::WebSocket, None);
            let opening = tokio::time::timeout(ANSWER_WITHIN, self.open(&mut asked));
            match opening.await.unwrap_or_else(|_| Err(What::Broken(format!("no answer within {ANSWER_WITHIN:?}")))) {
                Ok(socket) => {
                    self.answered(&asked);
                    self.echo(asked, socket).await;
                }
                Err(what) => self.failed(asked, what),
            }
            self.pause().await;
        }
    }

    async fn open(&self, asked: &mut Asked) -> Result<TcpStream, What> {
        let broken = |error: std::io::Error| What::Broken(error.to_string());
        let mut socket = TcpStream::connect(self.proxy).await.map_err(broken)?;
        asked.connected = Some(Instant::now());
        socket.set_nodelay(true).map_err(broken)?;
        let request = format!(
            "GET /ws HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-load-id: {}\r\n\r\n",
            asked.host, asked.id
        );
        socket.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.map_err(broken)?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
        if status == 101 {
            return Ok(socket);
        }
        let header = |line: &str| line.strip_prefix("x-version: ").map(str::to_owned);
        let version = text.lines().find_map(header).unwrap_or_default();
        Err(What::Status { status, version, text: text.lines().next().unwrap_or_default().to_owned() })
    }

    /// Until the connection ends: a switch closes it when the old instance's time for streams is over.
    async fn echo(&self, mut asked: Asked, mut socket: TcpStream) {
        for number in 0_u64.. {
            if self.stop.is_cancelled() {
                return;
            }
            let message = format!("{:012}.{number:012};", asked.id);
            let mut back = vec![0; message.len()];
            asked.began = Instant::now();
            let exchange = async {
                socket.write_all(message.as_bytes()).await?;
                socket.read_exact(&mut back).await.map(drop)
            };
            match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
                Ok(Ok(())) if back == message.as_bytes() => self.report().sockets.echoed += 1,
                Ok(Ok(())) => {
                    let what = What::Wrong(format!("{message:?} came back as {:?}", String::from_utf8_lossy(&back)));
                    return self.failed(asked, what);
                }
                Ok(Err(_)) => {
                    self.report().sockets.ended_with_message += 1;
                    return;
                }
                Err(_) => return self.failed(asked, What::Broken("the message did not come back".to_owned())),
            }
            // The end is seen as it comes, so that the next message does not meet it.
            match tokio::time::timeout(PAUSE, socket.read(&mut [0; 1])).await {
                Err(_) => {}
                Ok(Ok(length)) if length > 0 => {
                    return self.failed(asked, What::Wrong("a message came twice".to_owned()));
                }
                Ok(_) => {
                    self.report().sockets.ended += 1;
                    return;
                }
            }
        }
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap()
    }

    fn answered(&self, asked: &Asked) {
        let own = if asked.kind == Kind::Slow { Duration::from_millis(SLOW_MS) } else { Duration::ZERO };
        let mut report = self.report();
        *report.answered.entry(asked.kind).or_default() += 1;
        report.slowest = report.slowest.max(asked.began.elapsed().saturating_sub(own));
    }

    fn failed(&self, asked: Asked, what: What) {
        let Asked { id, host, kind, connected, began } = asked;
        let failure = Failure { id, host, kind, connected, began, ended: Instant::now(), what };
        self.report().failures.push(failure);
    }

    async fn pause(&self) {
        let _ = self.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}
