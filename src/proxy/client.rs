//! The agent's side of the control socket: one task that keeps a connection, and a handle to ask it things.
//!
//! The task connects and reconnects by itself. After a reconnect it finds out whether the same process is there
//! (`boot`) and brings it up to date: the last acknowledged table where the proxy has another one, and the drains
//! still waited for. A new process has no old connections, so drains are over with the old one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::control::{
    AppCounts, ChallengeAnswer, InstanceCounts, LOCK_NAME, LineBuffer, Order, QueueCount, Report, SOCKET_NAME,
    read_message, write_message,
};
use super::table::{DrainLimits, Route, Table};
use crate::model::{AppName, InstanceId};

/// How long a table may take to be in force.
const APPLY_LIMIT: Duration = Duration::from_secs(5);
/// How long counts may take.
const COUNT_LIMIT: Duration = Duration::from_secs(1);
/// What a drain may take beyond its limits.
const DRAIN_SLACK: Duration = Duration::from_secs(5);
/// The proxy speaks first, and at once.
const HELLO_LIMIT: Duration = Duration::from_secs(2);
/// What is not written by then, the proxy does not read.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// How often a proxy that says nothing is asked for a sign of life.
const PING: Duration = Duration::from_secs(1);
/// When so many of these times went by without one it does not answer: longer than a hand-over may hold up its answers.
/// They are counted, each from the end of the one before: an agent that was itself stopped meanwhile has missed but one.
const SILENCE: u32 = 4;
/// Between attempts to connect: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// A connection to the proxy that outlives both of its ends. Cheap to clone; the last clone ends it.
#[derive(Debug, Clone)]
pub struct ProxyClient {
    asks: mpsc::UnboundedSender<Ask>,
    status: watch::Receiver<ProxyStatus>,
    last_counts: watch::Receiver<Option<Counts>>,
}

/// What is known of the proxy process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyStatus {
    /// Whether there is a connection now. The rest is what the newest connection said.
    pub connected: bool,
    /// Without one: nobody listens on its socket, so no proxy runs. Otherwise one runs and does not answer.
    pub absent: bool,
    /// Process id: of the one that said so, or that has the lock and has said nothing yet; 0 when there was none.
    pub pid: u32,
    /// When it last said something; before that, since when it is asked.
    pub heard: Option<Timestamp>,
    /// The binary's version.
    pub version: String,
    /// Random per process.
    pub boot: String,
    /// Addresses it listens on.
    pub listeners: Vec<String>,
    /// Of the table in force.
    pub generation: u64,
    /// Whether a service manager gave it its listeners.
    pub activated: bool,
    /// Whether it can answer certificate authorities.
    pub answers: bool,
}

impl ProxyStatus {
    /// The process that runs, whether it answers or not; `None` when none is known.
    pub fn runs_as(&self) -> Option<u32> {
        (self.pid > 0 && (self.connected || !self.absent)).then_some(self.pid)
    }

    /// What a proxy said of itself first; anything else comes back.
    pub(super) fn of(said: Report) -> Result<Self, Report> {
        match said {
            Report::Hello { version, pid, boot, generation, listeners, activated, answers } => Ok(Self {
                connected: true,
                absent: false,
                pid,
                heard: Some(Timestamp::now()),
                version,
                boot,
                listeners,
                generation,
                activated,
                answers,
            }),
            other => Err(other),
        }
    }
}

/// Totals, and what is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Per app, since the proxy process `boot` started.
    pub apps: BTreeMap<AppName, AppCounts>,
    /// Requests and streams under way per instance, where there are any.
    pub in_flight: BTreeMap<InstanceId, u64>,
    /// What each instance of the table has answered, in that process alone.
    pub instances: BTreeMap<InstanceId, InstanceCounts>,
    /// Where requests wait for an instance with room.
    pub queues: Vec<QueueCount>,
    /// Which process counted; another one starts from zero.
    pub boot: String,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Requests ended by the limit.
    pub cut_requests: u64,
    /// Streams ended by the limit.
    pub cut_streams: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether the proxy said so; `false` when its process is gone (and its connections with it) or it was silent
    /// beyond every limit.
    pub confirmed: bool,
}

/// Why a table is not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The proxy did not take it; the old one stays in force.
    #[error("the proxy refused the route table: {0}")]
    Refused(String),
    /// No acknowledgement in time. Should the proxy have taken the table unheard, it is set back to the last
    /// acknowledged one as soon as it is heard of.
    #[error("the proxy did not acknowledge the route table within 5 s: {}", silence(*pid))]
    Unavailable {
        /// Of the process that runs and does not answer. `None` when none is known.
        pid: Option<u32>,
    },
}

fn silence(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => {
            format!("its process (pid {pid}) runs and does not answer; if it is stopped: kill -CONT {pid}")
        }
        None => "no `longshore proxy` runs".to_owned(),
    }
}

enum Ask {
    Apply { routes: Vec<Route>, reply: oneshot::Sender<Result<u64, ApplyError>> },
    Drain { instance: InstanceId, limits: DrainLimits, reply: oneshot::Sender<Drained> },
    Count { reply: oneshot::Sender<Counts> },
    Answer { answers: Vec<ChallengeAnswer>, reply: oneshot::Sender<()> },
    Reload,
}

impl ProxyClient {
    /// Starts to keep a connection to the proxy of this data directory. Needs a tokio runtime.
    pub fn start(data_dir: &Path) -> Self {
        let (client, keeper) = Self::new(data_dir.join(SOCKET_NAME));
        tokio::spawn(keeper.run());
        client
    }

    /// On a connection that is there, and not beyond its end.
    pub(super) fn over(
        read: BufReader<OwnedReadHalf>,
        write: OwnedWriteHalf,
        line: LineBuffer,
        greeted: ProxyStatus,
    ) -> Self {
        let (client, mut keeper) = Self::new(PathBuf::new());
        keeper.greet(greeted);
        tokio::spawn(async move {
            if let Ended::Lost(error) = keeper.exchange(read, write, line).await {
                tracing::debug!(%error, "the connection to the proxy before this one has ended");
            }
            keeper.status.send_modify(|status| status.connected = false);
        });
        client
    }

    fn new(socket: PathBuf) -> (Self, Keeper) {
        let (asks, asked) = mpsc::unbounded_channel();
        let unheard = ProxyStatus { heard: Some(Timestamp::now()), ..ProxyStatus::default() };
        let (status_sender, status) = watch::channel(unheard);
        let (counts_sender, last_counts) = watch::channel(None);
        let keeper = Keeper {
            socket,
            asked,
            status: status_sender,
            generation: 0,
            acknowledged: None,
            tables: VecDeque::new(),
            sent: None,
            drains: HashMap::new(),
            counts: VecDeque::new(),
            asked_counts: 0,
            last_counts: counts_sender,
            answers: Answers::default(),
            is_to_reload: false,
        };
        (Self { asks, status, last_counts }, keeper)
    }

    /// Puts these routes in force, whole. Answers the table's number once no request can be given to what left it.
    /// Calls are served in the order they were made.
    pub async fn apply(&self, routes: Vec<Route>) -> Result<u64, ApplyError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Apply { routes, reply }).map_err(|_| self.unavailable())?;
        match timeout(APPLY_LIMIT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(self.unavailable()),
        }
    }

    fn unavailable(&self) -> ApplyError {
        ApplyError::Unavailable { pid: self.status.borrow().runs_as() }
    }

    /// Waits until an instance that left the table has finished, or was cut at its limits. Always ends: at the
    /// latest five seconds after the longer limit.
    pub async fn drain(&self, instance: &InstanceId, limits: DrainLimits) -> Drained {
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        let asked = self.asks.send(Ask::Drain { instance: instance.clone(), limits, reply });
        let unconfirmed = |took| Drained { cut_requests: 0, cut_streams: 0, took, confirmed: false };
        if asked.is_err() {
            return unconfirmed(started.elapsed());
        }
        match timeout(limits.requests.max(limits.streams) + DRAIN_SLACK, answer).await {
            Ok(Ok(drained)) => drained,
            Ok(Err(_)) | Err(_) => unconfirmed(started.elapsed()),
        }
    }

    /// The totals; `None` when the proxy does not answer within a second.
    pub async fn counts(&self) -> Option<Counts> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Count { reply }).ok()?;
        timeout(COUNT_LIMIT, answer).await.ok()?.ok()
    }

    /// Has the proxy read its part of the configuration again. One that is not there reads it as it starts.
    pub fn reload(&self) {
        // Without a task there is no connection.
        let _ = self.asks.send(Ask::Reload);
    }

    /// Has certificate authorities answered so, and no longer as before; also by a process that takes the place of this one.
    /// Whether they are, now.
    pub async fn answer(&self, answers: Vec<ChallengeAnswer>) -> bool {
        let (reply, answering) = oneshot::channel();
        let asked = self.asks.send(Ask::Answer { answers, reply });
        asked.is_ok() && matches!(timeout(APPLY_LIMIT, answering).await, Ok(Ok(())))
    }

    /// The totals that were heard last.
    pub(super) fn last_counts(&self) -> Option<Counts> {
        self.last_counts.borrow().clone()
    }

    /// What is known of the proxy process now.
    pub fn status(&self) -> ProxyStatus {
        self.status.borrow().clone()
    }

    /// To be told of changes of the status.
    pub fn watch_status(&self) -> watch::Receiver<ProxyStatus> {
        self.status.clone()
    }

    /// Whether there is a connection now or within this time.
    pub async fn connected(&self, within: Duration) -> bool {
        let mut status = self.status.clone();
        matches!(timeout(within, status.wait_for(|status| status.connected)).await, Ok(Ok(_)))
    }
}

/// A table that someone waits for.
struct Wanted {
    routes: Vec<Route>,
    /// `None`: not asked for, but sent to set the proxy back.
    reply: Option<oneshot::Sender<Result<u64, ApplyError>>>,
}

impl Wanted {
    /// Whether nobody waits any more: its caller was told that it failed.
    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// The task behind the handles.
struct Keeper {
    socket: PathBuf,
    asked: mpsc::UnboundedReceiver<Ask>,
    status: watch::Sender<ProxyStatus>,
    /// The highest number seen.
    generation: u64,
    /// The last table that the proxy acknowledged.
    acknowledged: Option<(u64, Vec<Route>)>,
    /// Tables to be sent, one at a time.
    tables: VecDeque<Wanted>,
    /// The one that is not yet answered.
    sent: Option<(u64, Wanted)>,
    drains: HashMap<InstanceId, WaitedDrain>,
    /// Answered in the order they were asked.
    counts: VecDeque<oneshot::Sender<Counts>>,
    /// How many of these the proxy was asked on this connection.
    asked_counts: usize,
    last_counts: watch::Sender<Option<Counts>>,
    answers: Answers,
    is_to_reload: bool,
}

/// What certificate authorities are to be answered.
#[derive(Default)]
struct Answers {
    all: Vec<ChallengeAnswer>,
    /// Of the newest set.
    number: u64,
    /// Whether the proxy of this connection was told.
    sent: bool,
    reply: Option<oneshot::Sender<()>>,
}

struct WaitedDrain {
    limits: DrainLimits,
    since: Instant,
    replies: Vec<oneshot::Sender<Drained>>,
    /// The process that was asked.
    boot: Option<String>,
}

/// Why a connection's time is over.
enum Ended {
    /// No handle is left.
    NobodyAsks,
    /// Lost; how.
    Lost(io::Error),
}

impl Keeper {
    async fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            let ended = match self.connect().await {
                Ok((read, write)) => {
                    let since = Instant::now();
                    let ended = self.converse(read, write).await;
                    let ProxyStatus { connected, pid, .. } = *self.status.borrow();
                    self.status.send_modify(|status| status.connected = false);
                    match &ended {
                        Ended::Lost(error) if connected => tracing::info!(pid, %error, "lost the proxy"),
                        // Who is asked again and again says so once.
                        Ended::Lost(error) => tracing::debug!(pid, %error, "the proxy says nothing"),
                        Ended::NobodyAsks => {}
                    }
                    // One that is lost again and again at once is asked less and less often.
                    if since.elapsed() >= RETRY.1 {
                        pause = RETRY.0;
                    }
                    ended
                }
                Err(error) => {
                    let absent = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
                    self.status.send_if_modified(|status| std::mem::replace(&mut status.absent, absent) != absent);
                    tracing::debug!(%error, "no connection to the proxy");
                    Ended::Lost(error)
                }
            };
            if let Ended::NobodyAsks = ended {
                return;
            }
            let wake = sleep(pause);
            tokio::pin!(wake);
            loop {
                tokio::select! {
                    () = &mut wake => break,
                    ask = self.asked.recv() => match ask {
                        Some(ask) => self.note(ask),
                        None => return,
                    },
                }
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Whoever does not say hello is known by the lock that it has.
    async fn connect(&self) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let holder = tokio::fs::read_to_string(self.socket.with_file_name(LOCK_NAME)).await.unwrap_or_default();
        if let Ok(pid) = holder.trim().parse() {
            self.status.send_if_modified(|status| {
                status.pid = pid;
                false
            });
        }
        Ok(stream.into_split())
    }

    /// Files what is asked; `flush` sends it.
    fn note(&mut self, ask: Ask) {
        match ask {
            Ask::Apply { routes, reply } => self.tables.push_back(Wanted { routes, reply: Some(reply) }),
            Ask::Count { reply } => self.counts.push_back(reply),
            Ask::Answer { answers, reply } => {
                let number = self.answers.number + 1;
                self.answers = Answers { all: answers, number, sent: false, reply: Some(reply) };
            }
            Ask::Reload => self.is_to_reload = true,
            Ask::Drain { instance, limits, reply } => {
                let since = Instant::now();
                let waited = self.drains.entry(instance);
                let waited = waited.or_insert_with(|| WaitedDrain { limits, since, replies: Vec::new(), boot: None });
                waited.replies.push(reply);
                waited.limits = limits;
                waited.boot = None;
            }
        }
    }

    async fn converse(&mut self, read: OwnedReadHalf, write: OwnedWriteHalf) -> Ended {
        let mut read = BufReader::new(read);
        let mut line = LineBuffer::default();
        let said = match timeout(HELLO_LIMIT, read_message(&mut read, &mut line)).await {
            Ok(Ok(Some(said))) => said,
            Ok(Ok(None)) => return Ended::Lost(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => return Ended::Lost(error),
            Err(_) => {
                self.status.send_if_modified(|status| std::mem::replace(&mut status.absent, false));
                return Ended::Lost(io::ErrorKind::TimedOut.into());
            }
        };
        match ProxyStatus::of(said) {
            Ok(hello) => self.greet(hello),
            Err(_) => return Ended::Lost(io::Error::other("the proxy did not say hello")),
        }
        self.exchange(read, write, line).await
    }

    async fn exchange(
        &mut self,
        mut read: BufReader<OwnedReadHalf>,
        mut write: OwnedWriteHalf,
        mut line: LineBuffer,
    ) -> Ended {
        self.asked_counts = 0;
        self.counts.retain(|reply| !reply.is_closed());
        let (mut next, mut unheard) = (Instant::now() + PING, 0);
        loop {
            match timeout(WRITE_LIMIT, self.flush(&mut write)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Ended::Lost(error),
                Err(_) => return Ended::Lost(io::ErrorKind::TimedOut.into()),
            }
            tokio::select! {
                biased;
                report = read_message(&mut read, &mut line) => match report {
                    Ok(Some(report)) => {
                        (next, unheard) = (Instant::now() + PING, 0);
                        // Nobody waits for it: it is looked at when the proxy does not answer.
                        self.status.send_if_modified(|status| {
                            status.heard = Some(Timestamp::now());
                            false
                        });
                        self.hear(report);
                    }
                    Ok(None) => return Ended::Lost(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => return Ended::Lost(error),
                },
                ask = self.asked.recv() => match ask {
                    Some(ask) => self.note(ask),
                    None => return Ended::NobodyAsks,
                },
                () = sleep_until(next) => {
                    (next, unheard) = (Instant::now() + PING, unheard + 1);
                    if unheard == SILENCE {
                        return Ended::Lost(io::ErrorKind::TimedOut.into());
                    }
                    if self.counts.is_empty() {
                        self.counts.push_back(oneshot::channel().0);
                    }
                }
            }
        }
    }

    /// Compares what the proxy is with what was known of it.
    fn greet(&mut self, status: ProxyStatus) {
        let (boot, generation) = (&status.boot, status.generation);
        self.generation = self.generation.max(generation);
        for drain in self.drains.values_mut() {
            // The process that had the connections is gone; or it is the same and has to be asked again.
            if drain.boot.as_ref().is_some_and(|asked| asked != boot) {
                drain.end(|since| Drained { cut_requests: 0, cut_streams: 0, took: since.elapsed(), confirmed: false });
            }
            drain.boot = None;
        }
        self.drains.retain(|_, drain| drain.is_waited_for());
        // What was sent and not answered is sent again, unless its caller has given it up.
        if let Some((_, wanted)) = self.sent.take() {
            self.tables.push_front(wanted);
        }
        self.tables.retain(|wanted| !wanted.is_abandoned());
        if let Some((number, routes)) = &self.acknowledged
            && *number != generation
            && self.tables.is_empty()
        {
            self.tables.push_front(Wanted { routes: routes.clone(), reply: None });
        }
        // Nobody has told this process yet; without any there is nothing to tell.
        self.answers.sent = self.answers.all.is_empty() && self.answers.reply.is_none();
        tracing::info!(pid = status.pid, version = status.version, generation, "connected to the proxy");
        self.status.send_replace(status);
    }

    /// Sends what is waiting and can be sent now.
    async fn flush(&mut self, write: &mut OwnedWriteHalf) -> io::Result<()> {
        while self.sent.is_none() {
            let Some(wanted) = self.tables.pop_front() else { break };
            if wanted.is_abandoned() {
                continue;
            }
            // A proxy may say that it has whatever number: one that has the last refuses what comes.
            self.generation = self.generation.saturating_add(1);
            let table = Table { generation: self.generation, routes: wanted.routes.clone() };
            self.sent = Some((self.generation, wanted));
            write_message(write, &Order::Apply(table)).await?;
        }
        let boot = self.status.borrow().boot.clone();
        for (instance, drain) in &mut self.drains {
            if drain.boot.is_none() {
                drain.boot = Some(boot.clone());
                let limits = drain.limits;
                write_message(write, &Order::Drain { instance: instance.clone(), limits }).await?;
            }
        }
        // A proxy of an earlier version would take it for no message, and close the connection.
        if !self.answers.sent && self.status.borrow().answers {
            self.answers.sent = true;
            let Answers { all, number, .. } = &self.answers;
            write_message(write, &Order::Answer { number: *number, answers: all.clone() }).await?;
        }
        if std::mem::take(&mut self.is_to_reload) {
            write_message(write, &Order::Reload).await?;
        }
        while self.asked_counts < self.counts.len() {
            self.asked_counts += 1;
            write_message(write, &Order::Count).await?;
        }
        Ok(())
    }

    fn hear(&mut self, report: Report) {
        match report {
            // The last three are for a proxy that takes over.
            Report::Hello { .. } | Report::HandOver { .. } | Report::HandOverRefused { .. } | Report::HandedOver => {}
            Report::Applied { generation } => self.answered(generation, Ok(generation)),
            Report::Refused { generation, why } => self.answered(generation, Err(ApplyError::Refused(why))),
            Report::Answering { number } => {
                if number == self.answers.number
                    && let Some(reply) = self.answers.reply.take()
                {
                    let _ = reply.send(());
                }
            }
            Report::Drained { instance, cut_requests, cut_streams, took_ms } => {
                if let Some(mut drain) = self.drains.remove(&instance) {
                    let took = Duration::from_millis(took_ms);
                    drain.end(|_| Drained { cut_requests, cut_streams, took, confirmed: true });
                }
            }
            Report::UpstreamFailed { instance, why } => tracing::warn!(%instance, why, "instance failed a request"),
            Report::Counts { apps, in_flight, instances, queues } => {
                let boot = self.status.borrow().boot.clone();
                let counts = Counts { apps, in_flight, instances, queues, boot };
                self.last_counts.send_replace(Some(counts.clone()));
                self.asked_counts = self.asked_counts.saturating_sub(1);
                if let Some(reply) = self.counts.pop_front() {
                    let _ = reply.send(counts);
                }
            }
        }
    }

    fn answered(&mut self, generation: u64, outcome: Result<u64, ApplyError>) {
        let Some((_, wanted)) = self.sent.take_if(|(sent, _)| *sent == generation) else { return };
        if outcome.is_ok() {
            self.status.send_modify(|status| status.generation = generation);
        }
        let in_force = outcome.is_ok();
        let heard = wanted.reply.is_none_or(|reply| reply.send(outcome).is_ok());
        if !in_force {
            return;
        }
        if heard {
            self.acknowledged = Some((generation, wanted.routes));
            return;
        }
        self.tables.retain(|waiting| !waiting.is_abandoned());
        if let Some((_, before)) = &self.acknowledged
            && self.tables.is_empty()
        {
            // Its caller believes that the table before is in force: make it so.
            self.tables.push_back(Wanted { routes: before.clone(), reply: None });
        }
    }
}

impl WaitedDrain {
    fn is_waited_for(&self) -> bool {
        self.replies.iter().any(|reply| !reply.is_closed())
    }

    fn end(&mut self, drained: impl Fn(Instant) -> Drained) {
        for reply in self.replies.drain(..) {
            let _ = reply.send(drained(self.since));
        }
    }
}
