//! Requests without end against one host, so that a test can say that nobody noticed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::http::{self, Connection, Response};

/// No answer within this counts as failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Failures kept with their details; all are counted.
const DETAILED: usize = 100;

/// What is asked, and how hard.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path; `/` answers with the version.
    pub path: String,
    /// Workers that ask over one connection each for as long as it is kept.
    pub keep_alive: usize,
    /// Workers that open a connection per request.
    pub fresh: usize,
    /// What each worker waits between two requests.
    pub pause: Duration,
}

impl Shape {
    /// Four kept connections and two workers with fresh ones, some hundred requests per second each.
    pub fn new(address: SocketAddr, host: &str) -> Self {
        let pause = Duration::from_millis(2);
        Self { address, host: host.to_owned(), path: "/".to_owned(), keep_alive: 4, fresh: 2, pause }
    }
}

/// How a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first request of a connection.
    Fresh,
    /// A later request of a kept connection.
    Reused,
}

/// A request that did not get its 2xx.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The number sent as `X-Load-Id`.
    pub id: u64,
    /// Since the load began.
    pub at: Duration,
    /// How it was sent.
    #[allow(dead_code, reason = "told by the failed assertion")]
    pub kind: Kind,
    /// The status and body, or the error.
    pub what: String,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests with a 2xx.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// The first of the others.
    pub failures: Vec<Failure>,
    /// When the last of them came.
    pub last_failure: Duration,
    /// Answers by the first line of their body: with path `/`, the version.
    pub versions: BTreeMap<String, u64>,
    /// For each of them, how many requests had ended when it came first and when it came last.
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub spans: BTreeMap<String, (u64, u64)>,
    /// The longest that an answered request took.
    pub slowest: Duration,
}

impl Report {
    /// Fails the test with every kept failure unless all requests, and at least `least`, were answered.
    #[track_caller]
    pub fn assert_flawless(&self, least: u64) {
        let lines: Vec<_> = self.failures.iter().map(|failure| format!("{failure:?}")).collect();
        assert!(
            self.failed == 0,
            "{} of {} requests failed:\n{}",
            self.failed,
            self.ok + self.failed,
            lines.join("\n")
        );
        assert!(self.ok >= least, "only {} requests were made, {least} were wanted", self.ok);
    }
}

struct Run {
    shape: Shape,
    started: Instant,
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
    /// Starts asking.
    pub fn start(shape: Shape) -> Self {
        let (keep_alive, fresh) = (shape.keep_alive, shape.fresh);
        let run = Arc::new(Run {
            shape,
            started: Instant::now(),
            next_id: AtomicU64::new(1),
            report: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let mut workers = JoinSet::new();
        for _ in 0..keep_alive {
            workers.spawn(Arc::clone(&run).work(true));
        }
        for _ in 0..fresh {
            workers.spawn(Arc::clone(&run).work(false));
        }
        Self { run, workers }
    }

    /// What happened so far.
    pub fn so_far(&self) -> Report {
        self.run.report.lock().unwrap().clone()
    }

    /// Lets every request under way end, then says what happened.
    pub async fn stop(mut self) -> Report {
        self.run.stop.cancel();
        while let Some(worker) = self.workers.join_next().await {
            worker.expect("a load worker does not panic");
        }
        self.so_far()
    }
}

impl Run {
    async fn work(self: Arc<Self>, keep: bool) {
        let mut kept = None;
        while !self.stop.is_cancelled() {
            let kind = if kept.is_some() { Kind::Reused } else { Kind::Fresh };
            let id = self.next_id.fetch_add(1, Relaxed);
            let begin = Instant::now();
            let outcome = tokio::time::timeout(ANSWER_WITHIN, self.ask(id, kept.take()))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}")));
            match outcome {
                Ok((response, connection)) => {
                    if keep && response.header("connection") != "close" {
                        kept = Some(connection);
                    }
                    self.record(id, kind, begin.elapsed(), Ok(response));
                }
                Err(why) => self.record(id, kind, begin.elapsed(), Err(why)),
            }
            tokio::select! {
                () = tokio::time::sleep(self.shape.pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn ask(&self, id: u64, kept: Option<Connection>) -> Result<(Response, Connection), String> {
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::tcp(self.shape.address).await.map_err(|error| format!("connect: {error}"))?,
        };
        let id = id.to_string();
        let request = http::request("GET", &self.shape.host, &self.shape.path, &[("x-load-id", &id)], Bytes::new());
        let response = connection.send(request).await.map_err(|error| format!("{error:?}"))?;
        Ok((response, connection))
    }

    fn record(&self, id: u64, kind: Kind, took: Duration, outcome: Result<Response, String>) {
        let mut report = self.report.lock().unwrap();
        let what = match outcome {
            Ok(response) if response.status.is_success() => {
                let version = response.text().lines().next().unwrap_or_default().to_owned();
                report.ok += 1;
                let ended = report.ok + report.failed;
                report.spans.entry(version.clone()).or_insert((ended, ended)).1 = ended;
                *report.versions.entry(version).or_default() += 1;
                report.slowest = report.slowest.max(took);
                return;
            }
            Ok(response) => format!("{} {}", response.status, response.text().trim()),
            Err(why) => why,
        };
        report.failed += 1;
        let at = self.started.elapsed();
        report.last_failure = at;
        if report.failures.len() < DETAILED {
            report.failures.push(Failure { id, at, kind, what });
        }
    }
}
