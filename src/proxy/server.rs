//! The proxy process: listeners, client connections, and the way down.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::Report;
use super::drain::Drains;
use super::headers::Origin;
use super::instance::{Instance, lock};
use super::routing::Routing;
use super::saved::Saved;
use super::{forward, listen, orders};
use crate::data_dir;
use crate::text::with_causes;

/// How long a client may take to send the head of a request, and a connection may idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// What is under way at a shutdown may take this long, unless the order says otherwise.
const GRACE: Duration = Duration::from_secs(30);
/// At a shutdown, idle clients get this long to send one more request and be told to close; closing at once would
/// meet requests on their way.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// How often idle connections to instances are looked through.
const SWEEP: Duration = Duration::from_secs(1);
/// Reports that a slow agent may be behind before its connection is closed.
const REPORTS_KEPT: usize = 1024;

/// How to run a proxy.
#[derive(Debug)]
pub struct ProxyOptions {
    /// Where plain HTTP is served. Port 0 takes any free one.
    pub http: SocketAddr,
    /// Holds `proxy.sock`, `proxy.lock` and `routes.json`; made with mode 0700 when it is missing.
    pub data_dir: PathBuf,
    /// Told the address that was bound, once the proxy serves.
    pub ready: Option<oneshot::Sender<SocketAddr>>,
}

/// What the parts of the process share.
#[derive(Debug)]
pub struct Proxy {
    /// The table in force.
    pub(super) routing: Routing,
    /// Instances on their way out.
    pub(super) drains: Drains,
    /// Where the table is kept.
    pub(super) saved: Saved,
    /// One table at a time is saved and put in force.
    pub(super) applying: tokio::sync::Mutex<()>,
    /// Client connections and tunnels.
    tasks: TaskTracker,
    /// Told to every connected agent.
    pub(super) reports: broadcast::Sender<Report>,
    /// Random: tells this process from the one before it.
    pub(super) boot: String,
    /// Of the listeners.
    pub(super) listeners: Vec<String>,
    /// The number of the newest control connection that gave an order; those of older ones do not count.
    pub(super) newest_agent: AtomicU64,
    requests: AtomicU64,
    closing: AtomicBool,
    /// Asks `run` to end.
    stop: CancellationToken,
    grace: Mutex<Duration>,
    /// Closes idle client connections.
    close_idle: CancellationToken,
    /// Closes everything.
    abort: CancellationToken,
}

impl Proxy {
    /// With nothing in its table.
    pub(super) fn new(saved: Saved, boot: String, listeners: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            routing: Routing::default(),
            drains: Drains::default(),
            saved,
            applying: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            reports: broadcast::Sender::new(REPORTS_KEPT),
            boot,
            listeners,
            newest_agent: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            stop: CancellationToken::new(),
            grace: Mutex::new(GRACE),
            close_idle: CancellationToken::new(),
            abort: CancellationToken::new(),
        })
    }

    /// Whether clients are to be told that their connection ends with the answer.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Unique among all processes of this proxy.
    pub(super) fn next_request_id(&self) -> HeaderValue {
        let number = self.requests.fetch_add(1, Relaxed);
        HeaderValue::from_str(&format!("{}-{number:x}", self.boot)).unwrap_or(HeaderValue::from_static("-"))
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

/// Serves until `shutdown` fires or an agent orders it, then lets what is under way end. Fails when the port or the
/// data directory cannot be had, or another proxy has the data directory.
pub async fn run(options: ProxyOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ProxyOptions { http, data_dir, ready } = options;
    data_dir::prepare(&data_dir)?;
    let _alone = lock_data_dir(&data_dir)?;

    let saved = Saved::in_dir(&data_dir);
    let table = saved.load().unwrap_or_else(|error| {
        tracing::error!(%error, "starting with an empty route table; the agent will send a new one");
        None
    });
    let capacity = listen::client_capacity();
    let listener = listen::bind(http)?;
    let address = listener.local_addr()?;
    let proxy = Proxy::new(saved, random_boot()?, vec![address.to_string()]);
    if let Some(table) = table {
        proxy.routing.replace(&table);
    }
    let control = orders::Control::bind(&data_dir)?;
    tracing::info!(%address, generation = proxy.routing.generation(), clients = capacity, "proxy serves");
    if let Some(ready) = ready {
        let _ = ready.send(address);
    }

    let serve_then_end = async {
        tokio::select! {
            () = accept(&proxy, listener, capacity) => {}
            () = shutdown.cancelled() => {}
            () = proxy.stop.cancelled() => {}
        }
        wind_down(&proxy).await;
    };
    tokio::select! {
        () = serve_then_end => {}
        // Agents are answered to the end: drains go on while clients leave.
        () = control.serve(&proxy) => {}
        () = sweep(&proxy) => {}
    }
    Ok(())
}

/// Told to go: no new connections (the listener is gone), answers say `Connection: close`, then idle clients are
/// closed, then everything.
async fn wind_down(proxy: &Proxy) {
    let grace = *lock(&proxy.grace);
    let now = Instant::now();
    tracing::info!(connections = proxy.tasks.len(), ?grace, "proxy ends");
    proxy.closing.store(true, Relaxed);
    proxy.tasks.close();
    let _ = timeout_at(now + IDLE_GRACE.min(grace), proxy.tasks.wait()).await;
    proxy.close_idle.cancel();
    if timeout_at(now + grace, proxy.tasks.wait()).await.is_err() {
        tracing::warn!(connections = proxy.tasks.len(), "closing what did not end in time");
    }
    proxy.abort.cancel();
    proxy.tasks.wait().await;
}

async fn accept(proxy: &Arc<Proxy>, listener: TcpListener, capacity: usize) {
    let places = Arc::new(Semaphore::new(capacity));
    loop {
        // At capacity new connections wait in the kernel's queue until one ends.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let proxy = Arc::clone(proxy);
                proxy.clone().tasks.spawn(async move {
                    serve_connection(&proxy, stream, peer).await;
                    drop(place);
                });
            }
            Err(error) => {
                // A connection that is gone already, or no files left; accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn sweep(proxy: &Proxy) {
    let mut turn = tokio::time::interval(SWEEP);
    loop {
        turn.tick().await;
        proxy.routing.sweep();
    }
}

async fn serve_connection(proxy: &Arc<Proxy>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "client is gone already");
        return;
    }
    let address = HeaderValue::from_str(&peer.ip().to_canonical().to_string());
    let address = address.unwrap_or(HeaderValue::from_static("unknown"));
    let origin = Arc::new(Origin { address, scheme: HeaderValue::from_static("http") });
    let service = service_fn(|request| {
        let (proxy, origin) = (Arc::clone(proxy), Arc::clone(&origin));
        async move { Ok::<_, Infallible>(forward::handle(proxy, origin, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut told_to_close = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "client connection ended");
                }
                return;
            }
            () = proxy.close_idle.cancelled(), if !told_to_close => {
                told_to_close = true;
                connection.as_mut().graceful_shutdown();
            }
            () = proxy.abort.cancelled() => return,
        }
    }
}

/// The lock of the data directory; released when dropped. Holds the process id for people.
fn lock_data_dir(data_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = data_dir.join("proxy.lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut holder = String::new();
    file.read_to_string(&mut holder).with_context(|| format!("cannot read {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut locked) => {
            locked.rewind()?;
            locked.set_len(0)?;
            writeln!(locked, "{}", std::process::id())?;
            Ok(locked)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!("another proxy (pid {}) already serves from {}", holder.trim(), data_dir.display())
        }
        Err((_, error)) => bail!("cannot lock {}: {error}", path.display()),
    }
}

fn random_boot() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 6];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(hex::encode(bytes))
}
