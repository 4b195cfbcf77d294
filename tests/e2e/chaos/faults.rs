//! What goes wrong meanwhile, and how long until all is as before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bollard::query_parameters::KillContainerOptionsBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::excuses::{Excuses, Outage};
use super::pushes::Door;
use crate::chance::Chance;
use crate::support::agent::{TestAgent, rebuilt};
use crate::support::engine::Engine;
use crate::support::http;
use crate::support::private_engine::PrivateEngine;

/// What is not as before after this long, with nothing else going wrong meanwhile, will not be.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);
/// An agent that is told to end does so within this.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Faults are drawn from this until none is left, then from it anew.
const DECK: [Fault; 13] = [
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentTerminated,
    Fault::AgentUpgraded,
    Fault::ProxyKilled,
    Fault::ProxyKilled,
    Fault::BothKilled,
    Fault::InstanceKilled,
    Fault::InstanceKilled,
    Fault::EngineKilled,
    Fault::EngineKilledWithAll,
    Fault::EngineStopped,
];

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, then another start.
    AgentKilled,
    /// SIGTERM, then another start.
    AgentTerminated,
    /// Another binary: its agent has the running proxy hand over.
    AgentUpgraded,
    /// kill -9: the agent starts another one.
    ProxyKilled,
    /// kill -9 of both.
    BothKilled,
    /// kill -9 of one instance's first process.
    InstanceKilled,
    /// kill -9 of the engine; its containers run on.
    EngineKilled,
    /// The same, and the next engine ends the containers and starts them anew.
    EngineKilledWithAll,
    /// SIGSTOP, seconds later SIGCONT.
    EngineStopped,
}

impl Fault {
    pub fn words(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent killed",
            Self::AgentTerminated => "agent told to end",
            Self::AgentUpgraded => "agent upgraded, proxy handed over",
            Self::ProxyKilled => "proxy killed",
            Self::BothKilled => "agent and proxy killed",
            Self::InstanceKilled => "instance killed",
            Self::EngineKilled => "engine killed, containers run on",
            Self::EngineKilledWithAll => "engine killed, containers end with it",
            Self::EngineStopped => "engine stopped for seconds",
        }
    }

    /// What its recovery is.
    fn recovery(self) -> &'static str {
        match self {
            Self::AgentKilled | Self::AgentTerminated | Self::AgentUpgraded => "agent started -> ready",
            Self::ProxyKilled => "proxy killed -> serving",
            Self::BothKilled => "both killed, agent started -> serving and ready",
            Self::InstanceKilled => "instance killed -> replaced and routed",
            Self::EngineKilled => "engine answers (containers ran on) -> all routed",
            Self::EngineKilledWithAll => "engine answers (containers ended) -> all routed",
            Self::EngineStopped => "engine goes on -> agent ready, all routed",
        }
    }
}

/// A fault that was done.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    pub fault: Fault,
    pub at: SystemTime,
}

/// What went wrong, and what came of it.
#[derive(Debug, Default)]
pub struct Harm {
    pub strikes: Vec<Strike>,
    /// How long until all was as before, where nothing else went wrong meanwhile.
    pub recoveries: BTreeMap<&'static str, Vec<Duration>>,
    /// How long the agent took to end when it was told to.
    pub slowest_end: Duration,
    /// Containers that an engine had forgotten when it started again.
    pub forgotten: usize,
    pub wrong: Vec<String>,
}

/// The machine, with all that can be taken away.
pub struct Faults {
    pub agent: TestAgent,
    pub engine: PrivateEngine,
    sight: Sight,
    excuses: Excuses,
    chance: Chance,
    binaries: tempfile::TempDir,
    upgrades: usize,
    /// Grows with each fault: a recovery during which it grew is not measured.
    number: Arc<AtomicU64>,
    harm: Arc<Mutex<Harm>>,
    watches: JoinSet<()>,
    began: Instant,
}

/// By what it is known that all is as before.
enum Sign {
    TakesConnections,
    Ready,
    Serves,
    ServesAndReady,
    ReadyAndRouted,
    /// The container was started again, or is gone, and every instance is routed.
    Replaced {
        engine: Engine,
        container: String,
        started: Option<String>,
    },
}

impl Sign {
    async fn is_seen(&self, sight: &Sight) -> bool {
        match self {
            Self::TakesConnections => TcpStream::connect(sight.proxy).await.is_ok(),
            Self::Ready => sight.door.ready().await,
            Self::Serves => sight.serves().await,
            Self::ServesAndReady => sight.serves().await && sight.door.ready().await,
            Self::ReadyAndRouted => sight.door.ready().await && sight.all_routed().await,
            Self::Replaced { engine, container, started } => {
                let gone = engine.docker.inspect_container(container, None).await.is_err();
                let now = started_at(engine, container).await;
                (gone || now.is_some() && now != *started) && sight.all_routed().await
            }
        }
    }
}

impl Sign {
    /// Waits until it is seen, or nobody wants to know any more; false: neither in time.
    async fn comes(&self, sight: &Sight, is_moot: impl Fn() -> bool + Sync) -> bool {
        let seen = async {
            while !is_moot() && !self.is_seen(sight).await {
                sleep(POLL).await;
            }
        };
        timeout(RECOVERS_WITHIN, seen).await.is_ok()
    }
}

/// When a container that runs was started.
async fn started_at(engine: &Engine, container: &str) -> Option<String> {
    let state = engine.docker.inspect_container(container, None).await.ok()?.state?;
    if state.running? { state.started_at } else { None }
}

/// What can be seen from outside.
#[derive(Clone)]
pub struct Sight {
    pub door: Door,
    pub engine: Engine,
    pub proxy: SocketAddr,
    /// Apps and their hosts.
    pub apps: Vec<(&'static str, &'static str)>,
}

impl Sight {
    async fn serves(&self) -> bool {
        for (_, host) in &self.apps {
            let asking = timeout(Duration::from_secs(2), http::get(self.proxy, host, "/"));
            if !matches!(asking.await, Ok(Ok(answer)) if answer.status == 200 || answer.status == 500) {
                return false;
            }
        }
        true
    }

    /// Every app has as many instances as it should, ready, serving, taking connections, and where the engine says that
    /// they are: an agent that has not looked yet may believe in addresses that others have been given since.
    pub async fn all_routed(&self) -> bool {
        let Ok(owners) = self.engine.addresses().await else { return false };
        for (app, _) in &self.apps {
            let Ok(app) = self.door.get(&format!("/api/v1/apps/{app}")).await else { return false };
            let desired = app["services"][0]["instances"]["desired"].as_u64().unwrap_or(1);
            let serve = |i: &&Value| i["health"] == "ready" && i["duty"] == "serving";
            let serving: Vec<_> = app["instances"].as_array().into_iter().flatten().filter(serve).collect();
            if (serving.len() as u64) < desired {
                return false;
            }
            for instance in serving {
                let Some(Ok(address)) = instance["address"].as_str().map(str::parse::<SocketAddr>) else {
                    return false;
                };
                if owners.get(&address.ip()).is_none_or(|owner| *owner != instance["id"]) {
                    return false;
                }
                let connecting = timeout(Duration::from_millis(500), TcpStream::connect(address));
                if !matches!(connecting.await, Ok(Ok(_))) {
                    return false;
                }
            }
        }
        true
    }
}

impl Harm {
    /// How often each kind was done.
    pub fn counts(&self) -> BTreeMap<Fault, u64> {
        let mut counts = BTreeMap::new();
        for strike in &self.strikes {
            *counts.entry(strike.fault).or_default() += 1;
        }
        counts
    }
}

impl Faults {
    pub fn new(agent: TestAgent, engine: PrivateEngine, sight: Sight, excuses: Excuses, chance: Chance) -> Self {
        Self {
            agent,
            engine,
            sight,
            excuses,
            chance,
            binaries: tempfile::tempdir().expect("a directory"),
            upgrades: 0,
            number: Arc::default(),
            harm: Arc::default(),
            watches: JoinSet::new(),
            began: Instant::now(),
        }
    }

    /// Goes on until `stop`, with pauses of up to `longest` milliseconds. Each kind has its turn in a while; an engine that
    /// takes its containers with it only where `ends_all`.
    pub async fn run(&mut self, stop: &CancellationToken, longest: u64, ends_all: bool) {
        let mut deck = Vec::new();
        loop {
            let pause = self.chance.millis(longest / 10, longest);
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            if deck.is_empty() {
                deck = DECK.to_vec();
                deck.retain(|fault| ends_all || *fault != Fault::EngineKilledWithAll);
            }
            let fault = deck.swap_remove(self.chance.below(deck.len()));
            self.strike(fault).await;
        }
    }

    /// Waits for the recoveries under way.
    pub async fn settle(&mut self) -> Harm {
        let all = async {
            while let Some(watch) = self.watches.join_next().await {
                watch.expect("a watch does not panic");
            }
        };
        if timeout(RECOVERS_WITHIN * 2, all).await.is_err() {
            self.watches.abort_all();
            self.harm.lock().unwrap().wrong.push("the proxy, or all instances, are not back".to_owned());
        }
        std::mem::take(&mut *self.harm.lock().unwrap())
    }

    async fn strike(&mut self, fault: Fault) {
        if fault == Fault::InstanceKilled && !self.sight.all_routed().await {
            // One at a time: with all of them gone nothing could serve.
            return;
        }
        println!("{:>7.1} s  {}", self.began.elapsed().as_secs_f64(), fault.words());
        self.number.fetch_add(1, SeqCst);
        self.harm.lock().unwrap().strikes.push(Strike { fault, at: SystemTime::now() });
        match fault {
            Fault::AgentKilled => {
                self.agent.kill().await;
                sleep(self.chance.millis(0, 1500)).await;
                self.start_agent(fault);
            }
            Fault::AgentTerminated => {
                self.terminate().await;
                self.start_agent(fault);
            }
            Fault::AgentUpgraded => {
                self.upgrades += 1;
                let binary = rebuilt(self.binaries.path(), self.upgrades);
                self.terminate().await;
                self.agent.set_binary(binary);
                self.start_agent(fault);
            }
            Fault::ProxyKilled => {
                let killed = self.kill_proxy().await;
                self.watch(fault, killed, Sign::Serves);
            }
            Fault::BothKilled => {
                self.kill_proxy().await;
                self.agent.kill().await;
                sleep(self.chance.millis(0, 500)).await;
                self.agent.spawn();
                self.watch(fault, Instant::now(), Sign::ServesAndReady);
            }
            Fault::InstanceKilled => self.kill_instance(fault).await,
            Fault::EngineKilled | Fault::EngineKilledWithAll => self.kill_engine(fault).await,
            Fault::EngineStopped => {
                self.engine.signal(Signal::SIGSTOP);
                sleep(self.chance.millis(500, 4000)).await;
                self.engine.signal(Signal::SIGCONT);
                self.watch(fault, Instant::now(), Sign::ReadyAndRouted);
            }
        }
    }

    fn start_agent(&mut self, fault: Fault) {
        self.agent.spawn();
        self.watch(fault, Instant::now(), Sign::Ready);
    }

    async fn terminate(&mut self) {
        let told = Instant::now();
        let status = self.agent.stop().await;
        let mut harm = self.harm.lock().unwrap();
        harm.slowest_end = harm.slowest_end.max(told.elapsed());
        if told.elapsed() > ENDS_WITHIN {
            harm.wrong.push(format!("the agent took {:?} to end", told.elapsed()));
        }
        // In its first moments nothing listens to the signal yet: then it ends as any program does.
        if !status.success() && status.signal() != Some(Signal::SIGTERM as i32) {
            harm.wrong.push(format!("the agent ended with {status}"));
        }
    }

    /// Declares the outage, which ends when something takes connections again.
    async fn kill_proxy(&mut self) -> Instant {
        let outage = self.excuses.begin(Outage::Proxy);
        let killed = Instant::now();
        // One that is about to be started has no number yet; then there is nothing to kill.
        if let Ok(pid) = proxy_pid(&self.agent.data_dir()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            // Its socket is open until the last of its threads has gone.
            while has_threads(pid) {
                sleep(Duration::from_millis(1)).await;
            }
        }
        self.end_outage(outage, Sign::TakesConnections);
        killed
    }

    async fn kill_instance(&mut self, fault: Fault) {
        let engine = self.engine.engine();
        let mut containers = engine.objects(&self.agent.id()).await.containers;
        containers.retain(|container| container.label("longshore.kind") == "instance" && container.state == "running");
        if containers.is_empty() {
            return;
        }
        let victim = containers.swap_remove(self.chance.below(containers.len()));
        let options = KillContainerOptionsBuilder::new().signal("KILL").build();
        let killed = Instant::now();
        self.excuses.died(killed);
        // One that has just been replaced is not there any more.
        if engine.docker.kill_container(&victim.id, Some(options)).await.is_err() {
            return;
        }
        let started = started_at(&engine, &victim.id).await;
        self.watch(fault, killed, Sign::Replaced { engine, container: victim.id, started });
    }

    async fn kill_engine(&mut self, fault: Fault) {
        let with_all = fault == Fault::EngineKilledWithAll;
        let outage = with_all.then(|| self.excuses.begin(Outage::Engine));
        self.engine.down(Signal::SIGKILL).await;
        if self.chance.one_in(3) {
            // The agent that comes finds no engine.
            self.agent.kill().await;
            self.agent.spawn();
        }
        sleep(self.chance.millis(0, 3000)).await;
        self.engine.set_live_restore(!with_all);
        self.engine.up().await;
        self.harm.lock().unwrap().forgotten = self.engine.forgotten();
        if let Some(outage) = outage {
            self.end_outage(outage, Sign::ReadyAndRouted);
        }
        self.watch(fault, Instant::now(), Sign::ReadyAndRouted);
    }

    /// Declares the end of an outage when the sign is seen, whatever else goes wrong meanwhile.
    fn end_outage(&mut self, outage: usize, sign: Sign) {
        let (sight, excuses) = (self.sight.clone(), self.excuses.clone());
        self.watches.spawn(async move {
            while !sign.is_seen(&sight).await {
                sleep(POLL).await;
            }
            excuses.end(outage);
        });
    }

    /// Measures how long it takes until the sign is seen.
    fn watch(&mut self, fault: Fault, since: Instant, sign: Sign) {
        let (sight, number, harm) = (self.sight.clone(), Arc::clone(&self.number), Arc::clone(&self.harm));
        let own = number.load(SeqCst);
        self.watches.spawn(async move {
            let alone = || number.load(SeqCst) == own;
            let done = sign.comes(&sight, || !alone()).await;
            let mut harm = harm.lock().unwrap();
            match done {
                true if alone() => harm.recoveries.entry(fault.recovery()).or_default().push(since.elapsed()),
                true => {}
                false => harm.wrong.push(format!("{}: not as before after {RECOVERS_WITHIN:?}", fault.words())),
            }
        });
    }
}

/// Whether anything of a process is left but the zombie that somebody may not have waited for: its first thread, when it
/// is the last one. The list of threads in /proc may end early while they go; their number does not lie.
fn has_threads(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // From the third field on (proc_pid_stat(5)): the state, and as the twentieth the number of threads.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    !(fields.first() == Some(&"Z") && fields.get(17) == Some(&"1"))
}

fn proxy_pid(data_dir: &Path) -> Result<i32, String> {
    let lock = std::fs::read_to_string(data_dir.join("proxy.lock")).map_err(|error| error.to_string())?;
    lock.trim().parse().map_err(|_| format!("{lock:?} in proxy.lock"))
}
