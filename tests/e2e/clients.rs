//! Requests without end, each with a number that its answer must repeat: one request, one complete answer.

mod http2;
mod report;
mod transfers;
mod websocket;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::http::{self, Connection, Response};
pub use report::{Failure, Report, What};

/// No answer within this counts as failed, beyond what the app itself takes.
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
    /// POST with a body, over one of its own.
    FreshPost,
    /// GET over HTTP/2, over a connection that is kept.
    Http2,
    /// POST with a body, the same way.
    Http2Post,
    /// POST whose body comes in pieces over some seconds, over a connection that is kept.
    Upload,
    /// GET whose answer comes in pieces over some seconds, over a connection that is kept.
    Download,
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
            Self::FreshPost => "POST with a body, fresh connections",
            Self::Http2 => "GET over HTTP/2",
            Self::Http2Post => "POST with a body over HTTP/2",
            Self::Upload => "slow upload",
            Self::Download => "slow download",
            Self::WebSocket => "WebSockets opened",
        }
    }

    /// Whether the app may see it only once.
    pub fn is_post(self) -> bool {
        matches!(self, Self::Post | Self::FreshPost | Self::Http2Post | Self::Upload)
    }

    /// What the app itself takes.
    fn own_time(self) -> Duration {
        Duration::from_millis(match self {
            Self::Slow => SLOW_MS,
            Self::Upload | Self::Download => transfers::TRANSFER_MS,
            _ => 0,
        })
    }

    fn keeps_connection(self) -> bool {
        !matches!(self, Self::Fresh | Self::FreshPost)
    }

    /// Method, target and body of the request with this number.
    fn request(self, id: u64) -> (&'static str, String, Bytes) {
        match self {
            Self::Slow => ("GET", format!("/slow?ms={SLOW_MS}"), Bytes::new()),
            Self::Post | Self::FreshPost | Self::Http2Post => {
                ("POST", "/echo".to_owned(), format!("body of {id}").into())
            }
            Self::Upload => ("POST", "/echo".to_owned(), transfers::content(id)),
            Self::Download => ("GET", transfers::download(), Bytes::new()),
            Self::KeepAlive | Self::Fresh | Self::Http2 | Self::WebSocket => ("GET", "/".to_owned(), Bytes::new()),
        }
    }
}

struct Run {
    proxy: SocketAddr,
    /// Between two requests of a worker.
    pause: Duration,
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
        Self::with_pause(proxy, PAUSE)
    }

    /// Whose workers wait so long between two requests.
    pub fn with_pause(proxy: SocketAddr, pause: Duration) -> Self {
        let (next_id, report, stop) = (AtomicU64::new(1), Mutex::default(), CancellationToken::new());
        Self { run: Arc::new(Run { proxy, pause, next_id, report, stop }), workers: JoinSet::new() }
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

    /// How many requests have failed so far.
    pub fn failures(&self) -> usize {
        self.run.report().failures.len()
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

/// A connection that may be kept, and since when it is there.
struct Kept {
    link: Link,
    connected: Instant,
}

enum Link {
    Http1(Connection),
    Http2(http2::Connection),
    Upload(transfers::Connection),
}

impl Link {
    async fn open(kind: Kind, proxy: SocketAddr) -> std::io::Result<Self> {
        Ok(match kind {
            Kind::Http2 | Kind::Http2Post => Self::Http2(http2::Connection::open(proxy).await?),
            Kind::Upload => Self::Upload(transfers::Connection::open(proxy).await?),
            _ => Self::Http1(Connection::tcp(proxy).await?),
        })
    }
}

impl Run {
    async fn ask(self: Arc<Self>, host: &'static str, kind: Kind) {
        let mut kept: Option<Kept> = None;
        let within = ANSWER_WITHIN + kind.own_time();
        while !self.stop.is_cancelled() {
            let mut asked = self.begin(host, kind, kept.as_ref().map(|kept| kept.connected));
            let asking = tokio::time::timeout(within, self.exchange(&mut asked, kept.take()));
            let outcome = match asking.await {
                Ok(outcome) => outcome,
                Err(_) => Err(What::Broken(format!("no answer within {within:?}"))),
            };
            match outcome {
                Ok(link) => {
                    self.answered(&asked);
                    kept = link;
                }
                Err(what) => self.failed(asked, what),
            }
            self.pause().await;
        }
    }

    fn begin(&self, host: &'static str, kind: Kind, connected: Option<Instant>) -> Asked {
        let id = self.next_id.fetch_add(1, Relaxed);
        if kind.is_post() {
            self.report().posts.insert(id);
        }
        Asked { id, host, kind, connected, began: Instant::now() }
    }

    /// The connection comes back when it may be used again.
    async fn exchange(&self, asked: &mut Asked, kept: Option<Kept>) -> Result<Option<Kept>, What> {
        let broken = |error: std::io::Error| What::Broken(format!("connect: {error}"));
        let mut kept = match kept {
            Some(kept) => kept,
            None => self.connect(asked).await.map_err(broken)?,
        };
        let (method, path, body) = asked.kind.request(asked.id);
        let id = asked.id.to_string();
        let answer = loop {
            let request = || http::request(method, asked.host, &path, &[("x-load-id", &id)], body.clone());
            let sent = match &mut kept.link {
                Link::Http1(link) => link.send(request()).await.map_err(|error| format!("{error:?}")),
                Link::Upload(link) => link.send(asked.host, &path, &id, &body).await,
                Link::Http2(link) => match link.send(request()).await {
                    Ok(answer) => Ok(answer),
                    Err(http2::Error::GivenBack) => {
                        self.report().given_back += 1;
                        kept = self.connect(asked).await.map_err(broken)?;
                        continue;
                    }
                    Err(http2::Error::Broken(why)) => Err(why),
                },
            };
            break sent.map_err(What::Broken)?;
        };
        self.judge(asked, &answer, &body)?;
        let again = asked.kind.keeps_connection() && answer.header("connection") != "close";
        Ok(again.then_some(kept))
    }

    async fn connect(&self, asked: &mut Asked) -> std::io::Result<Kept> {
        asked.connected = None;
        let link = Link::open(asked.kind, self.proxy).await?;
        let connected = Instant::now();
        asked.connected = Some(connected);
        Ok(Kept { link, connected })
    }

    /// Whether it is the answer to what was asked, and all of it.
    fn judge(&self, asked: &Asked, answer: &Response, body: &Bytes) -> Result<(), What> {
        let version = answer.header("x-version").to_owned();
        if !version.is_empty() {
            self.report().versions.entry(version.clone()).or_default().push(Instant::now());
        }
        let status = answer.status.as_u16();
        if status != 200 {
            return Err(What::Status { status, version, text: answer.text().trim().to_owned() });
        }
        let expected = match asked.kind {
            kind if kind.is_post() => body.clone(),
            Kind::Download => transfers::content(asked.id),
            _ => format!("{version}\n").into(),
        };
        if answer.header("x-load-id") == asked.id.to_string() && answer.body == expected {
            return Ok(());
        }
        let start: String = answer.text().chars().take(100).collect();
        Err(What::Wrong(format!("{:?}, {} bytes: {start:?}", answer.header("x-load-id"), answer.body.len())))
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap()
    }

    fn answered(&self, asked: &Asked) {
        let mut report = self.report();
        *report.answered.entry(asked.kind).or_default() += 1;
        report.slowest = report.slowest.max(asked.began.elapsed().saturating_sub(asked.kind.own_time()));
    }

    fn failed(&self, asked: Asked, what: What) {
        let Asked { id, host, kind, connected, began } = asked;
        let failure = Failure { id, host, kind, connected, began, ended: Instant::now(), what };
        self.report().failures.push(failure);
    }

    async fn pause(&self) {
        let _ = self.stop.run_until_cancelled(tokio::time::sleep(self.pause)).await;
    }
}
