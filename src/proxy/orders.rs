//! The proxy's side of the control socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedMutexGuard, broadcast};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::control::{LineBuffer, Order, Report, SOCKET_NAME, read_line, write_message};
use super::server::Proxy;
use super::table::{DrainLimits, Table};
use super::{drain, handover};

/// An agent that does not read what it is told is cut off; it may be stopped, and nobody waits for it.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// `proxy.sock`, for this user alone; removed when dropped.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    /// `None`: another process listens on it now.
    path: Option<PathBuf>,
}

impl Control {
    /// In the data directory, whose lock the caller holds: a socket that lies there is a dead proxy's.
    pub fn bind(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the old {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot protect {}", path.display()))?;
        Ok(Self { listener, path: Some(path) })
    }

    /// The same socket, from the process before this one, whose file it still is.
    pub fn handed_over(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path: None })
    }

    /// From now on the file is this process's, to be removed at the end.
    pub fn own(&mut self, data_dir: &Path) {
        self.path = Some(data_dir.join(SOCKET_NAME));
    }

    /// A second handle.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Leaves the socket to whom it was handed over.
    pub fn leave(mut self) {
        self.path = None;
    }

    /// Serves agents for ever.
    pub async fn serve(&self, proxy: &Arc<Proxy>) {
        let mut number = 0;
        // Agents are cut off when this ends.
        let mut agents = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = agents.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    number += 1;
                    let conversation = Conversation::new(proxy, number, stream);
                    agents.spawn(async move {
                        if let Err(error) = serve(conversation).await {
                            tracing::error!(agent = number, %error, "control connection closed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an agent");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn serve(mut conversation: Conversation) -> io::Result<()> {
    let hello = conversation.hello();
    conversation.say(&hello).await?;
    match conversation.talk(&CancellationToken::new()).await? {
        Talked::Enough => Ok(()),
        Talked::AskedToHandOver => handover::offer(conversation).await,
    }
}

/// A process that has taken over.
#[derive(Debug)]
pub(super) struct Successor {
    /// On which it gives orders now.
    pub conversation: Conversation,
    /// Where it listens.
    pub listeners: Vec<String>,
    /// How long requests and streams may go on here.
    pub limits: DrainLimits,
    /// No table is taken until the agents are cut off.
    pub frozen: OwnedMutexGuard<Tables>,
}

/// One table at a time is saved and put in force.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub in_force: Arc<Table>,
    /// The one whose routes are in the file; `None` when it cannot be read.
    pub on_disk: Option<Arc<Table>>,
}

/// One control connection: an agent's, or that of a proxy that takes over.
#[derive(Debug)]
pub(super) struct Conversation {
    pub proxy: Arc<Proxy>,
    number: u64,
    pub read: BufReader<OwnedReadHalf>,
    pub write: OwnedWriteHalf,
    pub line: LineBuffer,
    reports: broadcast::Receiver<Report>,
}

/// How talking ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Talked {
    /// The other side left, or nothing more is to be said.
    Enough,
    /// What comes next on this connection is a hand-over.
    AskedToHandOver,
}

impl Conversation {
    fn new(proxy: &Arc<Proxy>, number: u64, stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        // From here on nothing told to all is missed.
        let reports = proxy.reports.subscribe();
        let (read, line) = (BufReader::new(read), LineBuffer::default());
        Self { proxy: Arc::clone(proxy), number, read, write, line, reports }
    }

    /// Orders and reports, until the other side leaves or it is `enough`.
    pub async fn talk(&mut self, enough: &CancellationToken) -> io::Result<Talked> {
        loop {
            tokio::select! {
                is_there = read_line(&mut self.read, &mut self.line) => match is_there? {
                    false => return Ok(Talked::Enough),
                    true => match self.line.message_aside().await? {
                        Order::HandOver => return Ok(Talked::AskedToHandOver),
                        order => {
                            if let Some(reply) = self.obey(order).await {
                                self.say(&reply).await?;
                            }
                        }
                    },
                },
                report = self.reports.recv() => match report {
                    Ok(report) => self.say(&report).await?,
                    Err(RecvError::Closed) => return Ok(Talked::Enough),
                    // It connects again and asks again for what it waits for.
                    Err(RecvError::Lagged(missed)) => {
                        return Err(io::Error::other(format!("the agent does not read: {missed} reports behind")));
                    }
                },
                () = enough.cancelled() => return Ok(Talked::Enough),
            }
        }
    }

    /// Says one thing. Who does not read it in time is cut off.
    pub async fn say(&mut self, report: &Report) -> io::Result<()> {
        match timeout(WRITE_LIMIT, write_message(&mut self.write, report)).await {
            Ok(written) => written,
            Err(_) => Err(io::Error::other(format!("the agent did not read for {WRITE_LIMIT:?}"))),
        }
    }

    fn hello(&self) -> Report {
        Report::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot: self.proxy.boot.clone(),
            generation: self.proxy.routing.generation(),
            listeners: self.proxy.listeners.clone(),
            activated: self.proxy.activated,
            answers: true,
        }
    }

    /// Whether a newer agent has given orders: this one is being replaced. Who only asks for counts replaces nobody.
    fn is_outdated(&self) -> bool {
        self.proxy.newest_agent.fetch_max(self.number, SeqCst) > self.number
    }

    async fn obey(&self, order: Order) -> Option<Report> {
        match order {
            Order::Count => {
                let (apps, in_flight) = self.proxy.count().await;
                let instances = self.proxy.routing.instance_counts();
                let queues = self.proxy.routing.queues();
                Some(Report::Counts { apps, in_flight, instances, queues })
            }
            Order::Apply(table) => {
                let generation = table.generation;
                if self.is_outdated() {
                    let why = "a newer agent is connected; only its orders count".to_owned();
                    return Some(Report::Refused { generation, why });
                }
                Some(match apply(&self.proxy, table).await {
                    Ok(()) => Report::Applied { generation },
                    Err(why) => {
                        tracing::error!(generation, why, "table refused");
                        Report::Refused { generation, why }
                    }
                })
            }
            Order::Drain { .. } | Order::Answer { .. } | Order::Shutdown { .. } if self.is_outdated() => {
                tracing::warn!(agent = self.number, "order of an outdated agent ignored");
                None
            }
            Order::Drain { instance, limits } => {
                drain::begin(&self.proxy, &instance, limits);
                None
            }
            Order::Answer { number, answers } => {
                self.proxy.challenges.replace(answers);
                Some(Report::Answering { number })
            }
            Order::Reload => {
                self.proxy.fronts.read_again();
                None
            }
            Order::Shutdown { grace_ms } => {
                self.proxy.shut_down(Duration::from_millis(grace_ms));
                None
            }
            Order::HandOver | Order::TakeOver { .. } => {
                tracing::warn!("an order of a hand-over out of its turn is ignored");
                None
            }
        }
    }
}

/// Checks a table, puts it on disk, then in force. The error is the reason to refuse it; the old one stays.
pub async fn apply(proxy: &Arc<Proxy>, table: Table) -> Result<(), String> {
    let mut tables = Arc::clone(&proxy.tables).lock_owned().await;
    let (here, table) = (Arc::clone(proxy), Arc::new(table));
    // Not among the requests: the disk takes its time, and so does a large table.
    let switching = tokio::task::spawn_blocking(move || {
        let switched = switch(&here, &mut tables, &table);
        (tables, switched.map(|()| table))
    });
    let (_tables, switched) = switching.await.map_err(|error| format!("switching the table failed: {error}"))?;
    let table = switched?;
    if let Some(before) = proxy.predecessor() {
        before.apply(&table.routes).await;
    }
    Ok(())
}

/// Blocks.
fn switch(proxy: &Proxy, tables: &mut Tables, table: &Arc<Table>) -> Result<(), String> {
    let current = proxy.routing.generation();
    if table.generation <= current {
        return Err(format!("generation {} is not newer than {current}, which is in force", table.generation));
    }
    table.validate().map_err(|error| error.to_string())?;
    // What is on disk already needs no room there: the way back from a table that could not be kept is open.
    let is_on_disk = tables.on_disk.as_ref().is_some_and(|kept| kept.routes == table.routes);
    if !proxy.is_retired() && !is_on_disk {
        let saved = proxy.saved.save(table);
        tables.on_disk = match saved {
            Ok(()) => Some(Arc::clone(table)),
            // It may have failed before or after the file was replaced.
            Err(_) => proxy.saved.load().ok().flatten().map(Arc::new),
        };
        saved.map_err(|error| format!("the table cannot be kept on disk: {error}"))?;
    }
    let began = Instant::now();
    proxy.routing.replace(table);
    let switched_in = began.elapsed();
    proxy.drains.forget(table);
    tracing::info!(generation = table.generation, routes = table.routes.len(), ?switched_in, "route table in force");
    tables.in_force = Arc::clone(table);
    Ok(())
}
