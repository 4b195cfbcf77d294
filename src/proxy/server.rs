//! The proxy process: what its parts share, its listeners, and the way down.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::access_log::AccessLog;
use super::challenges::Challenges;
use super::client::ProxyStatus;
use super::clients::Clients;
use super::control::{AppCounts, LOCK_NAME, Report};
use super::drain::Drains;
use super::front::{Fronts, ISSUED};
use super::handover::{Estate, Offer};
use super::instance::{Instance, lock};
use super::listen::{Inherited, Listener, Wanted};
use super::message::RequestId;
use super::orders::{Control, Successor, Tables};
use super::predecessor::Predecessor;
use super::retire::{accept_waiting, retire, wind_down};
use super::routing::Routing;
use super::saved::Saved;
use super::table::DrainLimits;
use super::tls::Handshakes;
use super::wait::Signal;
use super::{alive, connection, handover, listen};
use crate::config::ProxyConfig;
use crate::data_dir;
use crate::model::{AppName, InstanceId};
use crate::text::with_causes;

/// What is under way at a shutdown may take this long, unless the order says otherwise.
const GRACE: Duration = Duration::from_secs(30);
/// How often idle connections to instances are looked through.
const SWEEP: Duration = Duration::from_secs(1);
/// Reports that a slow agent may be behind before its connection is closed.
const REPORTS_KEPT: usize = 1024;

/// How to run a proxy.
#[derive(Debug)]
pub struct ProxyOptions {
    /// Where it listens, and with what. Port 0 takes any free one.
    pub front: ProxyConfig,
    /// The file that has `front` in `[proxy]`, to be read again.
    pub config: Option<PathBuf>,
    /// Whenever it is notified, that file is read again.
    pub reload: Arc<Notify>,
    /// Listeners from a service manager, which take the place of those in `front`.
    pub inherited: Inherited,
    /// Holds `proxy.sock`, `proxy.lock` and `routes.json`; made with mode 0700 when it is missing.
    pub data_dir: PathBuf,
    /// Take over from the proxy that serves from the data directory, when there is one.
    pub take_over: bool,
    /// How long what that one has under way may go on.
    pub limits: DrainLimits,
    /// Told the address that was bound for plain HTTP, once the proxy serves.
    pub ready: Option<oneshot::Sender<SocketAddr>>,
}

impl ProxyOptions {
    /// A proxy that serves plain HTTP and finds nobody there.
    pub fn new(http: SocketAddr, data_dir: PathBuf) -> Self {
        let front = ProxyConfig::plain(http);
        let limits = DrainLimits { requests: Duration::from_secs(30), streams: Duration::from_secs(60) };
        Self {
            front,
            config: None,
            reload: Arc::default(),
            inherited: Inherited::default(),
            data_dir,
            take_over: false,
            limits,
            ready: None,
        }
    }
}

/// What the parts of the process share.
#[derive(Debug)]
pub struct Proxy {
    /// The table in force.
    pub(super) routing: Routing,
    /// Instances on their way out.
    pub(super) drains: Drains,
    /// What clients are shown besides.
    pub(super) fronts: Arc<Fronts>,
    /// What certificate authorities are answered.
    pub(super) challenges: Challenges,
    /// Who is connected.
    pub(super) clients: Arc<Clients>,
    /// TLS connections that begin.
    pub(super) handshakes: Handshakes,
    /// Where the table is kept.
    pub(super) saved: Saved,
    /// One table at a time is saved and put in force.
    pub(super) tables: Arc<tokio::sync::Mutex<Tables>>,
    /// Client connections and tunnels.
    pub(super) tasks: TaskTracker,
    /// Told to every connected agent.
    pub(super) reports: broadcast::Sender<Report>,
    /// Random: tells this process from one that it did not take over from.
    pub(super) boot: String,
    /// Random: tells this process from all others.
    process: String,
    /// Of the listeners.
    pub(super) listeners: Vec<String>,
    /// They came from a service manager.
    pub(super) activated: bool,
    /// The number of the newest control connection that gave an order; those of older ones do not count.
    pub(super) newest_agent: AtomicU64,
    /// The process that this one took over from.
    predecessor: OnceLock<Arc<Predecessor>>,
    /// What can be handed over, unless it is being, or was, or nothing is served any more.
    pub(super) estate: Mutex<Option<Estate>>,
    /// Where a process that has taken over is told of.
    pub(super) successors: mpsc::Sender<Successor>,
    requests: AtomicU64,
    closing: AtomicBool,
    retired: AtomicBool,
    /// Asks `run` to end.
    pub(super) stop: CancellationToken,
    grace: Mutex<Duration>,
    /// Asks HTTP/2 clients to leave: unlike others they can be told while they idle.
    pub(super) leaving: CancellationToken,
    /// Closes idle client connections.
    pub(super) close_idle: Signal,
    /// Closes everything.
    pub(super) abort: CancellationToken,
}

impl Proxy {
    /// With nothing in its table. Who takes over is told of on the receiver.
    pub(super) fn new(
        saved: Saved,
        fronts: Arc<Fronts>,
        boot: String,
        listeners: Vec<String>,
        activated: bool,
    ) -> (Arc<Self>, mpsc::Receiver<Successor>) {
        let (successors, succeeded) = mpsc::channel(1);
        let routing = Routing::default();
        let proxy = Self {
            close_idle: Signal::new(routing.bell()),
            routing,
            drains: Drains::default(),
            fronts,
            challenges: Challenges::default(),
            clients: Arc::default(),
            handshakes: Handshakes::default(),
            saved,
            tables: Arc::default(),
            tasks: TaskTracker::new(),
            reports: broadcast::Sender::new(REPORTS_KEPT),
            process: random().unwrap_or_else(|_| boot.clone()),
            boot,
            listeners,
            activated,
            newest_agent: AtomicU64::new(0),
            predecessor: OnceLock::new(),
            estate: Mutex::default(),
            successors,
            requests: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            stop: CancellationToken::new(),
            grace: Mutex::new(GRACE),
            leaving: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        (Arc::new(proxy), succeeded)
    }

    /// Whether clients are to be told that their connection ends with the answer.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Whether another process has taken over: the file is that one's to write.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    /// From now on clients are told to close; the accepted connections are all there will be.
    pub(super) fn close(&self) {
        self.closing.store(true, Relaxed);
        self.leaving.cancel();
        self.tasks.close();
        drop(lock(&self.estate).take());
    }

    /// What was to be handed over and was not.
    pub(super) fn give_back(&self, estate: Estate) {
        if !self.is_closing() {
            *lock(&self.estate) = Some(estate);
        }
    }

    /// The process that this one took over from, if it did.
    pub(super) fn predecessor(&self) -> Option<Arc<Predecessor>> {
        self.predecessor.get().cloned()
    }

    /// Totals and what is under way, here and in the process before.
    pub(super) async fn count(&self) -> (BTreeMap<AppName, AppCounts>, BTreeMap<InstanceId, u64>) {
        let (mut apps, mut in_flight) = match self.predecessor() {
            Some(before) => before.counts().await,
            None => Default::default(),
        };
        for (app, counts) in self.routing.counts() {
            *apps.entry(app).or_default() += counts;
        }
        for (instance, load) in self.routing.in_flight() {
            *in_flight.entry(instance).or_default() += load;
        }
        (apps, in_flight)
    }

    /// How long what is under way at the end may take.
    pub(super) fn grace(&self) -> Duration {
        *lock(&self.grace)
    }

    /// Unique among all processes of this proxy.
    pub(super) fn next_request_id(&self) -> RequestId<'_> {
        RequestId { process: &self.process, number: self.requests.fetch_add(1, Relaxed) }
    }

    /// An instance did not take a request or broke off: others are preferred for a while, and the agent is told.
    pub(super) fn upstream_failed(&self, instance: &Instance, error: &dyn std::error::Error) {
        if instance.note_failure() {
            let why = with_causes(error);
            tracing::warn!(instance = %instance.id, address = %instance.pool.address(), why, "instance failed a request");
            self.tell(Report::UpstreamFailed { instance: instance.id.clone(), why });
        }
    }

    /// Tells every connected agent. Without one it is told to nobody: an agent asks for what it missed.
    pub(super) fn tell(&self, report: Report) {
        let _ = self.reports.send(report);
    }

    /// Runs something that belongs to a client until it ends or everything is closed.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            abort.run_until_cancelled(task).await;
        });
    }

    /// Ends the process once what is under way is done, or after `grace`.
    pub(super) fn shut_down(&self, grace: Duration) {
        *lock(&self.grace) = grace;
        self.stop.cancel();
    }
}

/// What a proxy serves with: its own, or handed over by the proxy before it.
struct Ground {
    lock: File,
    control: Control,
    listeners: Vec<Listener>,
    boot: String,
    tables: Tables,
    /// To whom to say that this process is ready.
    before: Option<(std::os::unix::net::UnixStream, ProxyStatus)>,
}

/// Closes what could be handed over, however the proxy ends: the port is free and the directory unlocked. The last requests
/// are told.
struct Left<'a>(&'a Proxy);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        drop(lock(&self.0.estate).take());
        self.0.fronts.access_log().set(None);
    }
}

/// Serves until `shutdown` fires, an agent orders it, or another proxy takes over; then lets what is under way end.
/// Fails when the port or the data directory cannot be had.
pub async fn run(options: ProxyOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ProxyOptions { front, config, reload, inherited, data_dir, take_over, limits, ready } = options;
    data_dir::prepare(&data_dir)?;
    let saved = Saved::in_dir(&data_dir);
    let activated = !inherited.is_empty();
    let wanted = Wanted { http: front.http, https: front.https };
    let (issued, access_log) = (data_dir.join(ISSUED), AccessLog::off(&data_dir));
    let fronts = tokio::task::spawn_blocking(move || Fronts::new(front, config, issued, reload, access_log)).await?;
    let fronts = Arc::new(fronts.context("cannot set up TLS")?);
    let ground = match lock_data_dir(&data_dir)? {
        Held::Here(lock) => start_alone(lock, wanted, inherited, &data_dir, &saved)?,
        Held::By(_) if take_over => {
            let dir = data_dir.clone();
            let offer = tokio::task::spawn_blocking(move || handover::ask(&dir)).await??;
            start_from(offer, wanted, inherited, &saved)?
        }
        Held::By(pid) => bail!(
            "another proxy (pid {pid}) already serves from {}; `longshore proxy --take-over` takes its place",
            data_dir.display()
        ),
    };
    let Ground { mut lock, mut control, listeners, boot, tables, before } = ground;
    let allowed = fronts.current().settings.limits.connections;
    let capacity = listen::client_capacity().min(allowed.unwrap_or(usize::MAX));
    let addresses = listeners.iter().map(|one| one.socket.local_addr()).collect::<io::Result<Vec<_>>>()?;
    let named: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let (proxy, mut succeeded) = Proxy::new(saved, fronts, boot, named.clone(), activated);
    proxy.routing.replace(&tables.in_force);
    *proxy.tables.lock().await = tables;
    let doubtful = alive::pass_over_dead(&proxy.routing).await;
    if let Some((link, status)) = before {
        let pid = status.pid;
        let predecessor = handover::take(link, status, named.clone(), limits).await?;
        tracing::info!(pid, "took over from the proxy before");
        let _ = proxy.predecessor.set(Arc::new(predecessor));
        control.own(&data_dir);
    }
    hold(&mut lock)?;
    proxy.give_back(Estate {
        control: control.duplicate()?,
        lock: lock.as_fd().try_clone_to_owned()?,
        listeners: listeners.iter().map(|one| one.socket.as_fd().try_clone_to_owned()).collect::<io::Result<_>>()?,
        secure: listeners.iter().filter(|one| one.secure).count(),
    });
    let _left_at_the_end = Left(&proxy);
    tracing::info!(addresses = ?named, generation = proxy.routing.generation(), clients = capacity, "proxy serves");
    if let (Some(ready), Some(&address)) = (ready, addresses.first()) {
        let _ = ready.send(address);
    }

    // A task of its own: of very many instances it has work for seconds, and clients come in between.
    let _settling = AbortOnDropHandle::new(tokio::spawn(alive::settle(doubtful)));
    let upkeep = async { tokio::join!(sweep(&proxy), proxy.fronts.follow()) };
    tokio::pin!(upkeep);
    let successor = {
        let serving = control.serve(&proxy);
        tokio::pin!(serving);
        let places = Arc::new(Semaphore::new(capacity));
        let successor = tokio::select! {
            _ = join_all(listeners.iter().map(|listener| accept(&proxy, listener, &places))) => None,
            successor = succeeded.recv() => successor,
            () = shutdown.cancelled() => None,
            () = proxy.stop.cancelled() => None,
            () = &mut serving => None,
            _ = &mut upkeep => None,
        };
        if successor.is_none() {
            drop(listeners);
            proxy.close();
            tokio::select! {
                () = wind_down(&proxy) => {}
                // Agents are answered to the end: drains go on while clients leave.
                () = &mut serving => {}
                _ = &mut upkeep => {}
            }
            return Ok(());
        }
        // Its agents are cut off here; they find the new process on the same socket.
        proxy.retired.store(true, Relaxed);
        (successor, listeners)
    };
    let (Some(successor), listeners) = successor else { return Ok(()) };
    control.leave();
    drop(lock);
    for listener in listeners.iter().filter(|one| !is_at(&one.socket, &successor.listeners)) {
        for (stream, peer) in accept_waiting(&listener.socket).await {
            serve_client(&proxy, stream, peer, listener.secure, None);
        }
    }
    drop(listeners);
    tokio::select! {
        () = retire(&proxy, successor, &shutdown) => {}
        _ = &mut upkeep => {}
    }
    Ok(())
}

/// Nobody serves from the data directory: the socket and the file in it are a dead proxy's.
fn start_alone(
    lock: File,
    wanted: Wanted,
    inherited: Inherited,
    data_dir: &Path,
    saved: &Saved,
) -> anyhow::Result<Ground> {
    let table = saved.load().unwrap_or_else(|error| {
        tracing::error!(%error, "starting with an empty route table; the agent will send a new one");
        None
    });
    let on_disk = table.map(Arc::new);
    let tables = Tables { in_force: on_disk.clone().unwrap_or_default(), on_disk };
    let listeners = listen::all(wanted, inherited, Inherited::default())?;
    Ok(Ground { lock, control: Control::bind(data_dir)?, listeners, boot: random()?, tables, before: None })
}

/// The proxy before this one goes on until it is told that this one is ready.
fn start_from(offer: Offer, wanted: Wanted, inherited: Inherited, saved: &Saved) -> anyhow::Result<Ground> {
    let Offer { link, before, table, control, lock, listeners: handed } = offer;
    let listeners = listen::all(wanted, inherited, handed)?;
    let on_disk = saved.load().ok().flatten().map(Arc::new);
    let control = Control::handed_over(control)?;
    let (boot, tables) = (before.boot.clone(), Tables { in_force: Arc::new(table), on_disk });
    Ok(Ground { lock, control, listeners, boot, tables, before: Some((link, before)) })
}

fn is_at(listener: &TcpListener, addresses: &[String]) -> bool {
    listener.local_addr().is_ok_and(|address| addresses.contains(&address.to_string()))
}

async fn accept(proxy: &Arc<Proxy>, listener: &Listener, places: &Arc<Semaphore>) {
    loop {
        // At capacity new connections wait in the kernel's queue until one ends.
        let Ok(place) = Arc::clone(places).acquire_owned().await else { return };
        match listener.socket.accept().await {
            Ok((stream, peer)) => serve_client(proxy, stream, peer, listener.secure, Some(place)),
            Err(error) => {
                // A connection that is gone already, or no files left; accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn serve_client(
    proxy: &Arc<Proxy>,
    stream: TcpStream,
    peer: SocketAddr,
    secure: bool,
    place: Option<OwnedSemaphorePermit>,
) {
    let of_task = Arc::clone(proxy);
    proxy.tasks.spawn(async move {
        connection::serve(&of_task, stream, peer, secure).await;
        drop(place);
    });
}

async fn sweep(proxy: &Proxy) {
    let mut turn = tokio::time::interval(SWEEP);
    loop {
        turn.tick().await;
        proxy.routing.sweep();
    }
}

/// Who has the lock of the data directory.
enum Held {
    /// This process, as long as the file or a second handle of it is open.
    Here(File),
    /// The process with this number.
    By(String),
}

/// Locks the data directory. The file holds the process id for people.
fn lock_data_dir(data_dir: &Path) -> anyhow::Result<Held> {
    let path = data_dir.join(LOCK_NAME);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Held::Here(file)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Held::By(holder.trim().to_owned()))
        }
        Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
    }
}

/// Notes in the locked file who has it.
fn hold(lock: &mut File) -> io::Result<()> {
    lock.rewind()?;
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())
}

fn random() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 6];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(hex::encode(bytes))
}
