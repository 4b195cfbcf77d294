//! The composition root: opens the journal, finds or starts the proxy, adopts what runs, serves, and ends in order.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::agent::apps::Shared;
use crate::config::Config;
use crate::data_dir::identity::Identity;
use crate::data_dir::lock::{Lock, LockError};
use crate::deploy::build::Builder;
use crate::deploy::source::{Mirrors, Timeouts};
use crate::deploy::static_files::StaticStore;
use crate::proxy::client::ProxyClient;
use crate::proxy::supervise::Supervisor;
use crate::rollout::routes::Routes;
use crate::runtime::docker::Docker;
use crate::runtime::{Happened, RuntimeError};
use crate::store::{AGENT_ID_KEY, Store};
use crate::{acme, agent, api, data_dir, notify, trigger};

/// Builds at a time, over all apps.
const BUILDS: usize = 2;
/// The engine may take so long before the agent begins to answer without it.
const ENGINE_PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to reach the engine: the first pause, and the longest.
const ENGINE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// What is still under way at the end (answers, streams) gets so long.
const END_GRACE: Duration = Duration::from_secs(5);
/// And the journal so long to bring all that is written into one file.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT. A listener that a service manager opened takes the place of `[agent] listen`.
pub async fn run(config_path: PathBuf, config: Config, inherited: Option<std::net::TcpListener>) -> Result<()> {
    // From the first moment on: until somebody listens for it, a signal ends a program.
    let mut signals = Signals::listen()?;
    let serving = tokio::select! {
        serving = start(config_path, config, inherited) => serving?,
        () = signals.ended() => return Ok(()),
    };
    signals.obey(&serving.agent).await;
    serving.end().await;
    Ok(())
}

/// An agent that is up.
struct Serving {
    agent: Arc<Agent>,
    /// What ends in order when the agent does.
    tasks: Vec<JoinHandle<()>>,
    /// What is simply left where it is.
    endless: JoinHandle<()>,
    _alone: Lock,
    _identity: Identity,
}

impl Serving {
    async fn end(self) {
        tracing::info!("ending: what is under way goes on at the next start");
        self.agent.shutdown().cancel();
        let ended = async {
            // Each ends by the token; an error here is a task that had ended before.
            let _ = tokio::join!(join_all(self.tasks), self.agent.workers_ended());
        };
        if tokio::time::timeout(END_GRACE, ended).await.is_err() {
            tracing::warn!("some of what is under way did not end in time and is cut");
        }
        self.endless.abort();
        match tokio::time::timeout(LAST_WRITE, self.agent.store.checkpoint()).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(%err, "the journal is whole only with the -wal file beside it"),
            Err(_) => tracing::warn!("the journal does not answer; it is whole only with the -wal file beside it"),
        }
    }
}

async fn start(config_path: PathBuf, config: Config, inherited: Option<std::net::TcpListener>) -> Result<Serving> {
    let data_dir = config.agent.data_dir.clone();
    data_dir::prepare(&data_dir)?;
    // Before anything is read: two agents would undo each other's work.
    let alone = data_dir::lock::take(&data_dir, data_dir::lock::AGENT).map_err(|err| match err {
        LockError::Held { .. } => anyhow!("{err}; stop that process first, or give this agent a data_dir of its own"),
        LockError::Io { .. } => err.into(),
    })?;
    let store = Store::open(&data_dir.join(data_dir::JOURNAL))?;
    let id = store.kept_random(AGENT_ID_KEY, 6).await?;
    let identity = Identity::take(&id).await?;
    data_dir::write_whole(&data_dir.join(data_dir::AGENT_ID), id.as_bytes()).context("cannot write agent-id")?;
    let settings_key = store.kept_random("settings_key", 32).await?;
    let listener = match inherited {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener).context("cannot use the socket that was handed to this process")?
        }
        None => TcpListener::bind(config.agent.listen)
            .await
            .with_context(|| format!("cannot listen on {} ([agent] listen)", config.agent.listen))?,
    };
    // One that was handed over may be another than is configured.
    let address = listener.local_addr().unwrap_or(config.agent.listen);
    let socket = bind_socket(&data_dir.join("longshore.sock"))?;

    // Whoever asks from here on is not refused, but waits: for an engine that does not answer too, though not for long. An
    // app's clients do not: the proxy serves from its file.
    let proxy = ProxyClient::start(&data_dir);
    let listens = [Some(config.proxy.http), config.proxy.https].into_iter().flatten().collect();
    let mut supervisor = Supervisor::new(proxy.clone(), config_path.clone(), data_dir.join("proxy.log"), listens)?;
    supervisor.begin().await?;
    let engine = reach_engine(&config.runtime.docker_host, &id).await;
    if let Err(err @ RuntimeError::Refused(_)) = engine {
        return Err(err.into());
    }
    let kept = Routes::read_kept(&data_dir.join("routes.json"));
    let mirrors =
        Mirrors::new(data_dir.join("mirrors"), Timeouts::default()).context("cannot create the mirrors' directory")?;
    let routes = Arc::new(Routes::new(proxy.clone(), kept));
    let static_files = StaticStore::new(&data_dir);
    let with_engine = {
        let proxy = proxy.clone();
        move |docker: Docker| Shared {
            runtime: Arc::new(docker.clone()),
            builder: Builder::new(docker.clone()),
            docker,
            mirrors,
            routes,
            proxy,
            build_slots: Arc::new(Semaphore::new(BUILDS)),
            static_files,
            settings_key,
        }
    };
    let agent = Arc::new(Agent::detached(id, store, config_path.clone(), config));
    agent.connect_proxy(proxy.clone());
    let shutdown = agent.shutdown().clone();
    let (adopted, all_adopted) = oneshot::channel();
    let engine_answers = engine.is_ok();
    let work = tokio::spawn(take_up(agent.clone(), engine, with_engine, adopted));
    // What runs is known before the first answer, unless the engine takes its time: pushes do not wait for it.
    if engine_answers && tokio::time::timeout(ENGINE_PATIENCE, all_adopted).await.is_err() {
        tracing::warn!("not everything that runs is known yet; requests are taken meanwhile");
    }
    let look_out = tokio::spawn(agent::outage::look_out(agent.clone()));
    let files = tokio::spawn(agent.store.clone().keep_looking_for_files(shutdown.clone()));
    let absent = tokio::spawn(agent::absent::look_out(agent.clone()));
    let certificate_files = tokio::spawn(agent::certificate_files::look_out(agent.clone()));
    let unconfigured = tokio::spawn(agent::unconfigured::look_out(agent.clone()));
    let canaries = tokio::spawn(agent::canaries::look_out(agent.clone()));
    let notices = notify::start(agent.store.clone(), agent.journal.clone(), agent.watch_config(), shutdown.clone());
    let keeper = tokio::spawn(supervisor.keep(shutdown.clone()));
    let certificates = {
        let (standing, config) = (agent.certificates.clone(), agent.watch_config());
        let outbox = acme::Outbox { store: agent.store.clone(), journal: agent.journal.clone() };
        let ordering = acme::keep(data_dir, proxy, outbox, config, standing, shutdown.clone());
        tokio::spawn(ordering)
    };

    let router = Router::new().merge(trigger::http::routes(agent.clone())).merge(api::routes(agent.clone()));
    let tcp = tokio::spawn(api::serve_tcp(listener, router.clone(), shutdown.clone()));
    let unix = tokio::spawn(api::serve_unix(socket, router, shutdown.clone()));
    tracing::info!(listen = %address, agent = %agent.id, apps = agent.config().apps.len(), "longshore is up");

    Ok(Serving {
        agent,
        tasks: vec![
            tcp,
            unix,
            notices,
            look_out,
            files,
            absent,
            certificate_files,
            unconfigured,
            canaries,
            keeper,
            certificates,
        ],
        endless: work,
        _alone: alone,
        _identity: identity,
    })
}

/// A connection to the engine, in a moment or not at all.
async fn reach_engine(docker_host: &str, agent_id: &str) -> Result<Docker, RuntimeError> {
    let connecting = Docker::connect(docker_host, agent_id);
    let late = |_| RuntimeError::Unavailable(format!("no answer from {docker_host} within {ENGINE_PATIENCE:?}"));
    tokio::time::timeout(ENGINE_PATIENCE, connecting).await.map_err(late)?
}

/// Takes up what the engine has of ours, as soon as the engine is there, and then hands on what happens on it. Nothing is
/// deployed before.
async fn take_up(
    agent: Arc<Agent>,
    engine: Result<Docker, RuntimeError>,
    with_engine: impl FnOnce(Docker) -> Shared,
    adopted: oneshot::Sender<()>,
) {
    let docker = match engine {
        Ok(docker) => docker,
        Err(err) => {
            tracing::error!(%err, "deployments wait until the engine answers");
            agent.not_connected(Some(err));
            let docker = wait_for_engine(&agent).await;
            agent.not_connected(None);
            tracing::info!("the engine answers now");
            docker
        }
    };
    let parts = with_engine(docker);
    let restored = agent.store.was_restored();
    if restored {
        number_beyond_what_runs(&agent, &parts).await;
        agent.not_connected(None);
    }
    // Before any app is started: what it removes is told by which deployments run.
    if let Err(err) = sweep_release_commands(&agent, &parts.docker).await {
        tracing::warn!("what is left of release commands could not be removed: {err:#}");
    }
    agent.connect(parts.clone());
    let events = hand_on_events(agent.clone(), parts.runtime.watch());
    let starting = async {
        agent.start_apps().await;
        // Nobody waits for it any more when it took long.
        let _ = adopted.send(());
    };
    let numbering = async {
        // A journal may have been replaced by other means.
        if !restored {
            number_beyond_what_runs(&agent, &parts).await;
        }
    };
    tokio::join!(events, starting, numbering);
}

/// New numbers begin above those that are in use. A journal that was restored takes nothing new before, and nothing is
/// deployed from it.
async fn number_beyond_what_runs(agent: &Agent, parts: &Shared) {
    let (mut pause, longest) = ENGINE_PAUSES;
    while let Err(err) = agent.number_beyond_what_runs(parts.runtime.as_ref()).await {
        let why = format!("which numbers are in use could not be found out: {err:#}");
        tracing::warn!("{why}");
        agent.not_connected(Some(RuntimeError::Unavailable(why)));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Asks again and again, as the engine may be started later than the agent.
async fn wait_for_engine(agent: &Agent) -> Docker {
    let (mut pause, longest) = ENGINE_PAUSES;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
        match reach_engine(&agent.config().runtime.docker_host, &agent.id).await {
            Ok(docker) => return docker,
            Err(err) => agent.not_connected(Some(err)),
        }
    }
}

/// The journal's lock says that no other agent lives in this directory, so a socket that is there is left over.
fn bind_socket(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let socket = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Removes the containers of release commands whose deployments have ended.
async fn sweep_release_commands(agent: &Agent, docker: &Docker) -> Result<()> {
    let mut unfinished = Vec::new();
    for name in agent.config().apps.keys() {
        unfinished.extend(agent.store.unfinished(name).await?.map(|deployment| deployment.id));
    }
    docker.remove_orphans(None, &|observed| unfinished.contains(&observed.deployment)).await?;
    Ok(())
}

/// Hands the runtime's events to every app.
async fn hand_on_events(agent: Arc<Agent>, mut events: BoxStream<'static, Happened>) {
    while let Some(happened) = events.next().await {
        agent.happened(&happened);
    }
}

/// SIGHUP reloads; SIGTERM and SIGINT end.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns when the agent is to end. A reload stays to be done.
    async fn ended(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does what is asked until the agent is to end.
    async fn obey(&mut self, agent: &Arc<Agent>) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    if let Err(problems) = agent.reload().await {
                        tracing::error!("the configuration is not reloaded, the old one stays in force:\n{problems}");
                    }
                }
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }
}
