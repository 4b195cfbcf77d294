//! One task per app: signals in, the machine asked, its actions performed. The task itself never waits for the runtime
//! or the proxy; each call runs in a task of its own and comes back as a signal.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::fleet::{self, InstanceState, Member, Pending, ServiceSpec, Task};
use super::machine::{Action, Event, Failure, Outcome, Policy, Rollout, Switch, Timer};
use super::plan::{Current, Plan};
use super::routes::Routes;
use super::watch::{Answers, errors_jumped};
use crate::health::{Gate, probe};
use crate::journal::{DeployEvent, DeployLog, Journal};
use crate::model::{AppName, DeploymentId, Duty, Health, InstanceId, ServiceName, Status};
use crate::proxy::table::{DrainLimits, Route};
use crate::runtime::{Exited, Happened, Observed, RunState, Runtime, RuntimeError};
use crate::store::Store;

/// The step that says that a deployment is being undone, and why.
pub const REVERT_STEP: &str = "revert";
/// How many lines of an instance's output a failure carries.
const FAILURE_LINES: u32 = 20;
/// Between two counts of the requests in the watch.
const COUNT_PAUSE: Duration = Duration::from_millis(500);
/// A stop that fails is tried so often; what is left then is swept by a later start of the agent.
const STOP_ATTEMPTS: u32 = 5;

/// An order to roll out.
pub struct Order {
    /// For which deployment.
    pub deployment: DeploymentId,
    /// What changes.
    pub plan: Plan,
    /// How it is judged.
    pub policy: Policy,
    /// The services as they are to be.
    pub new: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    /// The services to go back to.
    pub old: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    /// It is to be undone: an earlier life of the agent, or the rollout before this one, had begun to.
    pub reverting: Option<Failure>,
    /// An earlier life of the agent had begun it.
    pub resumed: bool,
    /// Takes the app's secrets out of what instances print.
    pub redact: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// The deployment's log.
    pub log: DeployLog,
}

enum Signal {
    Roll(Box<Order>, oneshot::Sender<Outcome>),
    Cancel(DeploymentId, String),
    Adopt(Vec<(Observed, Arc<ServiceSpec>, Duty)>, oneshot::Sender<()>),
    Domains(Vec<String>),
    Current(oneshot::Sender<Vec<Current>>),
    Happened(Happened),
    Probed(InstanceId, Result<(), String>),
    Started(InstanceId, Result<Observed, RuntimeError>),
    Inspected(InstanceId, Result<Option<Observed>, RuntimeError>),
    Stopped(InstanceId, Result<(), RuntimeError>),
    Switched(Round, Switch, Result<(), String>),
    Drained(InstanceId, u64, u64),
    Timer(Round, Timer),
    Counted(Round, CountedAt, Answers),
}

/// At which moment of a rollout requests were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CountedAt {
    Begin,
    Watch,
}

/// Counts a driver's rollouts: a late answer to one is not taken for an answer to the next, which may be of the same
/// deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round(u64);

/// A handle on an app's driver; the task ends with the last one.
#[derive(Clone)]
pub struct Driver {
    signals: mpsc::UnboundedSender<Signal>,
    state: watch::Receiver<Vec<InstanceState>>,
}

/// What a driver needs of the agent.
#[derive(Clone)]
pub struct Parts {
    /// Where instances run.
    pub runtime: Arc<dyn Runtime>,
    /// The proxy's table.
    pub routes: Arc<Routes>,
    /// Events and logs.
    pub journal: Journal,
    /// Durable steps.
    pub store: Store,
}

impl Driver {
    /// Starts the driver of an app.
    pub fn start(app: AppName, domains: Vec<String>, parts: Parts) -> Self {
        let (signals, inbox) = mpsc::unbounded_channel();
        let (published, state) = watch::channel(Vec::new());
        let pusher = start_pusher(app.clone(), parts.routes.clone(), signals.downgrade());
        let task = DriverTask {
            app,
            domains,
            parts,
            signals: signals.downgrade(),
            published,
            members: BTreeMap::new(),
            rollout: None,
            rounds: 0,
            pusher,
            pushed: None,
        };
        tokio::spawn(task.run(inbox));
        Self { signals, state }
    }

    /// The app's instances now.
    pub fn instances(&self) -> Vec<InstanceState> {
        self.state.borrow().clone()
    }

    /// The digests of what the app's instances run with.
    pub async fn settings(&self) -> BTreeMap<InstanceId, String> {
        self.current().await.into_iter().map(|current| (current.id, current.settings)).collect()
    }

    /// Takes over instances of an earlier life of the agent.
    pub async fn adopt(&self, instances: Vec<(Observed, Arc<ServiceSpec>, Duty)>) {
        let (done, adopted) = oneshot::channel();
        self.send(Signal::Adopt(instances, done));
        // Closed only when the agent ends.
        let _ = adopted.await;
    }

    /// What runs, for planning.
    pub async fn current(&self) -> Vec<Current> {
        let (answer, current) = oneshot::channel();
        self.send(Signal::Current(answer));
        current.await.unwrap_or_default()
    }

    /// Rolls out; `None` when the agent ends before the rollout does.
    pub async fn roll(&self, order: Order) -> Option<Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.send(Signal::Roll(Box::new(order), answer));
        outcome.await.ok()
    }

    /// Undoes the rollout of `deployment`, if it is under way.
    pub fn cancel(&self, deployment: DeploymentId, why: String) {
        self.send(Signal::Cancel(deployment, why));
    }

    /// Hands on what the runtime reported.
    pub fn happened(&self, happened: Happened) {
        self.send(Signal::Happened(happened));
    }

    /// The app's hosts have changed.
    pub fn set_domains(&self, domains: Vec<String>) {
        self.send(Signal::Domains(domains));
    }

    fn send(&self, signal: Signal) {
        // The task ends only with the agent.
        let _ = self.signals.send(signal);
    }
}

/// Routes to send, and whose switch waits for the answer.
struct Push {
    routes: Vec<Route>,
    switch: Option<(Round, Switch)>,
}

/// Sends an app's routes one after another, so that the last one sent is the one in force.
fn start_pusher(
    app: AppName,
    routes: Arc<Routes>,
    signals: mpsc::WeakUnboundedSender<Signal>,
) -> mpsc::UnboundedSender<Push> {
    let (pusher, mut inbox) = mpsc::unbounded_channel::<Push>();
    tokio::spawn(async move {
        while let Some(mut push) = inbox.recv().await {
            // Newer routes hold all that older ones say, unless a switch waits for those.
            while push.switch.is_none()
                && let Ok(newer) = inbox.try_recv()
            {
                push = newer;
            }
            let applied = routes.set(&app, push.routes).await.map_err(|err| err.to_string());
            match (push.switch, signals.upgrade()) {
                (Some((round, switch)), Some(signals)) => {
                    let _ = signals.send(Signal::Switched(round, switch, applied));
                }
                (_, None) => return,
                (None, _) => {
                    if let Err(err) = applied {
                        tracing::warn!(%app, %err, "the proxy did not take the routes");
                    }
                }
            }
        }
    });
    pusher
}

struct Active {
    round: Round,
    machine: Rollout,
    order: Order,
    answer: Option<oneshot::Sender<Outcome>>,
    began: Instant,
    /// The failure with what was found out about it.
    failure: Option<Failure>,
    /// The app's requests before anything was switched.
    before: Answers,
    /// The same when the watch began.
    at_watch: Option<Answers>,
    counting: Option<Task>,
}

struct DriverTask {
    app: AppName,
    domains: Vec<String>,
    parts: Parts,
    signals: mpsc::WeakUnboundedSender<Signal>,
    published: watch::Sender<Vec<InstanceState>>,
    members: BTreeMap<InstanceId, Member>,
    rollout: Option<Active>,
    rounds: u64,
    pusher: mpsc::UnboundedSender<Push>,
    pushed: Option<Vec<Route>>,
}

impl DriverTask {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Signal>) {
        while let Some(signal) = inbox.recv().await {
            self.on(signal).await;
            self.publish();
        }
    }

    async fn on(&mut self, signal: Signal) {
        match signal {
            Signal::Roll(order, answer) => self.roll(*order, answer).await,
            Signal::Cancel(deployment, why) => {
                if self.rollout.as_ref().is_some_and(|active| active.order.deployment == deployment) {
                    self.feed(Event::CancelAsked(why)).await;
                }
            }
            Signal::Adopt(instances, done) => {
                self.adopt(instances);
                let _ = done.send(());
            }
            Signal::Domains(domains) => {
                self.domains = domains;
                self.push_routes();
            }
            Signal::Current(answer) => {
                let _ = answer.send(self.current());
            }
            Signal::Happened(happened) => self.happened(happened).await,
            Signal::Probed(id, result) => self.probed(id, result).await,
            Signal::Started(id, result) => self.started(id, result).await,
            Signal::Inspected(id, result) => self.inspected(id, result).await,
            Signal::Stopped(id, result) => {
                if let Err(err) = result {
                    self.say(format!("{id} could not be stopped: {err}; it is swept when the agent starts again"));
                }
                self.members.remove(&id);
                if self.rollout.is_some() {
                    self.say(format!("{id}: stopped"));
                }
                self.feed(Event::Stopped(id)).await;
            }
            Signal::Switched(round, switch, result) => {
                if self.is_in(round) {
                    let event = match result {
                        Ok(()) => Event::Routed(switch),
                        Err(why) => Event::RouteFailed(switch, why),
                    };
                    self.feed(event).await;
                }
            }
            Signal::Drained(id, requests, streams) => {
                if requests + streams > 0 {
                    self.say(format!("{id}: {requests} requests and {streams} streams were cut at the drain limit"));
                }
                self.feed(Event::Drained(id)).await;
            }
            Signal::Counted(round, at, answers) => {
                if self.is_in(round) {
                    self.counted(at, answers).await;
                }
            }
            Signal::Timer(round, timer) => {
                if self.is_in(round) {
                    self.feed(Event::DeadlinePassed(timer)).await;
                }
            }
        }
    }

    fn is_in(&self, round: Round) -> bool {
        self.rollout.as_ref().is_some_and(|active| active.round == round)
    }

    async fn roll(&mut self, order: Order, answer: oneshot::Sender<Outcome>) {
        for kept in &order.plan.kept {
            self.keep(kept, &order);
        }
        self.push_routes();
        let (slots, policy) = (order.plan.slots.clone(), order.policy.clone());
        let machine = match order.reverting.clone() {
            Some(failure) => Rollout::reverting(slots, policy, failure),
            None if order.resumed => Rollout::resumed(slots, policy),
            None => Rollout::new(slots, policy),
        };
        self.rounds += 1;
        let (round, began) = (Round(self.rounds), Instant::now());
        let failure = order.reverting.clone();
        self.rollout = Some(Active {
            round,
            machine,
            order,
            answer: Some(answer),
            began,
            failure,
            before: Answers::default(),
            at_watch: None,
            counting: None,
        });
        self.count(CountedAt::Begin);
        self.feed(Event::Begin).await;
    }

    /// An instance that stays goes on as it is; how it is checked, drained and routed may have changed.
    fn keep(&mut self, id: &InstanceId, order: &Order) {
        let specs = if order.reverting.is_some() { &order.old } else { &order.new };
        let Some(member) = self.members.get_mut(id) else { return };
        member.duty = Duty::Serving;
        let Some(spec) = specs.get(&member.spec.service.name) else { return };
        let checked_otherwise = spec.service.health != member.spec.service.health;
        member.spec = spec.clone();
        if checked_otherwise {
            member.gate = Gate::new(&spec.service.health, member.image_healthcheck);
            member.trusted = true;
            self.start_probe(id);
        }
    }

    /// Asks the machine and performs what it answers; performing may lead to further events.
    async fn feed(&mut self, event: Event) {
        let Some(active) = &mut self.rollout else { return };
        let actions = active.machine.on(event, active.began.elapsed());
        for action in actions {
            self.perform(action).await;
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Start { instance, service, slot, restore } => self.start(instance, service, slot, restore),
            Action::Switch { switch, duties } => {
                for (id, duty) in duties {
                    self.set_duty(&id, duty);
                }
                if let Some(active) = &self.rollout {
                    let switch = Some((active.round, switch));
                    let routes = fleet::routes(&self.app, &self.domains, &self.members);
                    self.pushed = Some(routes.clone());
                    let _ = self.pusher.send(Push { routes, switch });
                }
            }
            Action::SetDuty(id, duty) => self.set_duty(&id, duty),
            Action::Drain(id) => self.drain(id),
            Action::Stop(id) => self.stop(id),
            Action::SetDeadline { timer, at } => self.set_deadline(timer, at),
            Action::Watch => self.begin_watch().await,
            Action::Revert(failure) => self.begin_revert(failure).await,
            Action::Say(line) => self.say(line),
            Action::Finish(outcome) => self.finish(outcome),
        }
    }

    fn say(&self, line: String) {
        match &self.rollout {
            Some(active) => active.order.log.line(line),
            None => tracing::info!(app = %self.app, "{line}"),
        }
    }

    fn set_duty(&mut self, id: &InstanceId, duty: Duty) {
        if let Some(member) = self.members.get_mut(id) {
            member.duty = duty;
        }
    }

    fn start(&mut self, id: InstanceId, service: ServiceName, slot: u32, restore: bool) {
        let Some(active) = &self.rollout else { return };
        let specs = if restore { &active.order.old } else { &active.order.new };
        let Some(spec) = specs.get(&service).cloned() else {
            let why = format!("service {service} is not part of the release");
            return self.send(Signal::Started(id, Err(RuntimeError::Refused(why))));
        };
        let deployment = active.order.deployment;
        active.order.log.line(format!("{id}: starting ({} of {})", slot, spec.service.instances));
        let instance = spec.instance(&self.app, deployment, id.clone(), slot);
        match self.members.entry(id.clone()) {
            // Started by an earlier life of the agent; found again by its name.
            Entry::Occupied(mut member) => member.get_mut().pending = Pending::Start,
            Entry::Vacant(place) => drop(place.insert(Member::starting(spec, slot, deployment))),
        }
        let runtime = self.parts.runtime.clone();
        self.spawn(async move {
            let result = runtime.start(&instance).await;
            Signal::Started(id, result)
        });
    }

    async fn started(&mut self, id: InstanceId, result: Result<Observed, RuntimeError>) {
        let Some(member) = self.members.get_mut(&id) else {
            if let Err(err) = result {
                self.feed(Event::StartFailed(id, err.to_string())).await;
            }
            return;
        };
        let stop_wanted = member.pending == Pending::StopAfterStart;
        member.pending = Pending::None;
        if stop_wanted {
            return self.stop(id);
        }
        match result {
            Ok(observed) => {
                member.observe(&observed);
                let early = member.ended_early.take();
                self.start_probe(&id);
                self.feed(Event::Started(id.clone())).await;
                match (observed.state, early) {
                    (RunState::Exited(exited), _) | (_, Some(exited)) => self.ended(id, exited).await,
                    // One that an earlier life of the agent started may have passed its gate before the rollout went on.
                    _ if self.is_ready(&id) => self.feed(Event::Ready(id)).await,
                    _ => {}
                }
            }
            Err(err) => self.feed(Event::StartFailed(id, err.to_string())).await,
        }
    }

    fn is_ready(&self, id: &InstanceId) -> bool {
        self.members.get(id).is_some_and(|member| member.gate.health() == Health::Ready)
    }

    fn start_probe(&mut self, id: &InstanceId) {
        let Some(signals) = self.signals.upgrade() else { return };
        let Some(member) = self.members.get_mut(id) else { return };
        let target = member.target(id, &self.domains);
        if !member.running || target.engine_reports() {
            member.probe = None;
            return;
        }
        let (instance, signals, ready) = (id.clone(), signals.downgrade(), self.published.subscribe());
        let report = move |result| {
            if let Some(signals) = signals.upgrade() {
                let _ = signals.send(Signal::Probed(instance.clone(), result));
            }
            ready.borrow().iter().any(|state| state.id == instance && state.health == Health::Ready)
        };
        let task = tokio::spawn(probe::watch(target, self.parts.runtime.clone(), report));
        member.probe = Some(Task::new(task.abort_handle()));
    }

    async fn probed(&mut self, id: InstanceId, result: Result<(), String>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !member.running {
            return;
        }
        let passed = result.is_ok();
        member.last_check = Some(result.err().unwrap_or_else(|| "passed".into()));
        let change = member.gate.observe(passed, member.up_since.elapsed());
        let spoken = member.gate.health() == Health::Ready || member.gate.has_given_up();
        if member.trusted && spoken {
            member.trusted = false;
            self.push_routes();
        }
        self.health_changed(id, change).await;
    }

    async fn health_changed(&mut self, id: InstanceId, change: Option<Health>) {
        match change {
            None => {}
            Some(Health::Ready) => {
                if self.rollout.is_some() {
                    let up = self.members.get(&id).map(|m| m.up_since.elapsed().as_secs_f64()).unwrap_or_default();
                    self.say(format!("{id}: ready after {up:.2} s"));
                }
                self.push_routes();
                self.feed(Event::Ready(id)).await;
            }
            Some(Health::Unready) => {
                let last = self.members.get(&id).and_then(|m| m.last_check.clone()).unwrap_or_default();
                tracing::warn!(app = %self.app, instance = %id, %last, "unready");
                self.push_routes();
                self.feed(Event::Unready(id, last)).await;
            }
            Some(Health::Starting) => self.push_routes(),
        }
    }

    async fn happened(&mut self, happened: Happened) {
        match happened {
            Happened::Started(id) => self.inspect(id),
            Happened::Exited(id, exited) => match self.members.get_mut(&id) {
                Some(member) if member.pending == Pending::None => self.ended(id, exited).await,
                // It ended before the runtime's answer to the start arrived.
                Some(member) if member.pending == Pending::Start => member.ended_early = Some(exited),
                _ => {}
            },
            Happened::ImageHealth(id, passed) => {
                let Some(member) = self.members.get_mut(&id) else { return };
                if !member.target(&id, &self.domains).engine_reports() {
                    return;
                }
                let said = if passed { "the image's HEALTHCHECK passed" } else { "the image's HEALTHCHECK failed" };
                member.last_check = Some(said.into());
                let change = member.gate.observe(passed, member.up_since.elapsed());
                self.health_changed(id, change).await;
            }
            Happened::Removed(id) => {
                let ours = self.members.get(&id).is_some_and(|m| m.pending == Pending::None);
                if ours {
                    let gone = Exited { code: 137, oom: false, output: Vec::new() };
                    self.ended(id, gone).await;
                }
            }
            Happened::Reconnected => {
                let ids: Vec<_> = self.members.keys().cloned().collect();
                ids.into_iter().for_each(|id| self.inspect(id));
            }
        }
    }

    fn inspect(&self, id: InstanceId) {
        // One that is being started or stopped answers by itself.
        if !self.members.get(&id).is_some_and(|m| m.pending == Pending::None) {
            return;
        }
        let runtime = self.parts.runtime.clone();
        self.spawn(async move {
            let result = runtime.inspect(&id).await;
            Signal::Inspected(id, result)
        });
    }

    async fn inspected(&mut self, id: InstanceId, result: Result<Option<Observed>, RuntimeError>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.pending != Pending::None {
            return;
        }
        match result {
            Ok(Some(observed)) => {
                let before = (member.started_at, member.address, member.running);
                member.observe(&observed);
                if before == (member.started_at, member.address, member.running) {
                    return;
                }
                if let RunState::Exited(exited) = observed.state {
                    return self.ended(id, exited).await;
                }
                self.start_probe(&id);
                self.push_routes();
            }
            Ok(None) => self.ended(id, Exited { code: 137, oom: false, output: Vec::new() }).await,
            Err(err) => tracing::warn!(app = %self.app, instance = %id, %err, "cannot be inspected"),
        }
    }

    /// An instance's process ended by itself. The runtime restarts it; a rollout of it fails at once.
    async fn ended(&mut self, id: InstanceId, exited: Exited) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let why = describe_exit(&exited, member.spec.service.memory, member.up_since.elapsed());
        tracing::warn!(app = %self.app, instance = %id, "{why}");
        member.running = false;
        member.address = None;
        member.probe = None;
        member.last_check = Some(why.clone());
        member.trusted = false;
        member.gate.restarted();
        self.push_routes();
        self.feed(Event::Exited(id, why)).await;
    }

    fn drain(&self, id: InstanceId) {
        let limits = self.members.get(&id).map(|m| m.spec.service.drain);
        let Some(limits) = limits else { return self.send(Signal::Drained(id, 0, 0)) };
        let proxy = self.parts.routes.proxy().clone();
        self.spawn(async move {
            let limits = DrainLimits { requests: limits.requests, streams: limits.streams };
            let drained = proxy.drain(&id, limits).await;
            Signal::Drained(id, drained.cut_requests, drained.cut_streams)
        });
    }

    fn stop(&mut self, id: InstanceId) {
        let Some(member) = self.members.get_mut(&id) else {
            return self.send(Signal::Stopped(id, Ok(())));
        };
        member.probe = None;
        member.duty = Duty::Retired;
        if member.pending == Pending::Start {
            member.pending = Pending::StopAfterStart;
            return;
        }
        member.pending = Pending::Stop;
        let (runtime, grace) = (self.parts.runtime.clone(), member.spec.service.stop_grace);
        let (store, deployment) = (self.parts.store.clone(), self.rollout.as_ref().map(|r| r.order.deployment));
        self.spawn(async move {
            if let Some(deployment) = deployment
                && let Err(err) = store.begin_stop(deployment, &id).await
            {
                tracing::error!(instance = %id, %err, "its stop could not be recorded");
            }
            let result = stop_for_sure(runtime.as_ref(), &id, grace).await;
            Signal::Stopped(id, result)
        });
    }

    fn set_deadline(&self, timer: Timer, at: Duration) {
        let Some(active) = &self.rollout else { return };
        let (round, at) = (active.round, active.began + at);
        self.spawn(async move {
            sleep_until(at).await;
            Signal::Timer(round, timer)
        });
    }

    async fn begin_watch(&mut self) {
        let Some(active) = &self.rollout else { return };
        let id = active.order.deployment;
        if !active.order.policy.watch.is_zero() {
            active.order.log.line(format!("every instance is switched; watching for {:?}", active.order.policy.watch));
        }
        if let Err(err) = self.parts.journal.advance(&self.app, id, Status::Watching).await {
            tracing::error!(app = %self.app, %err, "the watch could not be recorded");
        }
        self.count(CountedAt::Watch);
    }

    /// Counts the app's requests: once now, or in the watch again and again until the rollout ends.
    fn count(&mut self, at: CountedAt) {
        let Some(active) = &mut self.rollout else { return };
        let round = active.round;
        let (proxy, app, signals) = (self.parts.routes.proxy().clone(), self.app.clone(), self.signals.clone());
        let counting = tokio::spawn(async move {
            loop {
                let counts = proxy.counts().await.and_then(|counts| counts.apps.get(&app).copied());
                let Some(signals) = signals.upgrade() else { return };
                let counts = counts.unwrap_or_default();
                let requests = counts.served + counts.failed;
                let answers = Answers { requests, errors: counts.server_errors + counts.failed };
                let _ = signals.send(Signal::Counted(round, at, answers));
                drop(signals);
                if at == CountedAt::Begin {
                    return;
                }
                sleep(COUNT_PAUSE).await;
            }
        });
        active.counting = Some(Task::new(counting.abort_handle()));
    }

    /// The first count of the watch is what the later ones are compared with.
    async fn counted(&mut self, at: CountedAt, answers: Answers) {
        let Some(active) = &mut self.rollout else { return };
        match (at, active.at_watch) {
            (CountedAt::Begin, _) => active.before = answers,
            (CountedAt::Watch, None) => active.at_watch = Some(answers),
            (CountedAt::Watch, Some(at_watch)) => {
                if let Some(why) = errors_jumped(active.before, answers.since(at_watch)) {
                    self.feed(Event::ErrorsJumped(why)).await;
                }
            }
        }
    }

    /// Finds out what a person needs to know, and has it on disk before anything is undone.
    async fn begin_revert(&mut self, mut failure: Failure) {
        if let Some(id) = &failure.instance {
            if failure.why.ends_with("in time")
                && let Some(member) = self.members.get(id)
            {
                let allowed = member.spec.service.health.start_deadline;
                let last = member.last_check.clone().unwrap_or_else(|| "no check has answered".into());
                failure.why = format!("{} ({allowed:?}); last check: {last}", failure.why);
            }
            for line in last_lines(self.parts.runtime.as_ref(), id).await {
                failure.why.push_str("\n  ");
                failure.why.push_str(&line);
            }
        }
        let Some(active) = &mut self.rollout else { return };
        let id = active.order.deployment;
        failure.why = (active.order.redact)(&failure.why);
        active.order.log.line(format!("undoing: {}", failure.why));
        active.failure = Some(failure.clone());
        let recorded = async {
            self.parts.store.begin_step::<Failure>(id, REVERT_STEP).await?;
            self.parts.store.end_step(id, REVERT_STEP, &failure).await
        };
        if let Err(err) = recorded.await {
            // Without the record a crash now would lead forward again, into the same failure: no harm.
            tracing::error!(app = %self.app, %err, "the undoing could not be recorded");
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        let Some(mut active) = self.rollout.take() else { return };
        let outcome = match (outcome, active.failure.take()) {
            (Outcome::Undone { left, .. }, Some(failure)) => Outcome::Undone { failure, left },
            (Outcome::TurnBack(_), Some(failure)) => Outcome::TurnBack(failure),
            (outcome, _) => outcome,
        };
        if let Some(answer) = active.answer.take() {
            let _ = answer.send(outcome);
        }
        self.push_routes();
    }

    fn adopt(&mut self, instances: Vec<(Observed, Arc<ServiceSpec>, Duty)>) {
        for (observed, spec, duty) in instances {
            let member = Member::adopted(spec, &observed, duty);
            self.members.insert(observed.id.clone(), member);
            self.start_probe(&observed.id);
        }
        self.push_routes();
    }

    fn current(&self) -> Vec<Current> {
        let current = |(id, m): (&InstanceId, &Member)| Current {
            id: id.clone(),
            service: m.spec.service.name.clone(),
            slot: m.slot,
            settings: m.settings.clone(),
            deployment: m.deployment,
            running: m.running,
        };
        self.members.iter().filter(|(_, m)| m.duty != Duty::Retired).map(current).collect()
    }

    /// Sends the routes when they differ from what was sent last.
    fn push_routes(&mut self) {
        let routes = fleet::routes(&self.app, &self.domains, &self.members);
        if self.pushed.as_ref() == Some(&routes) {
            return;
        }
        self.pushed = Some(routes.clone());
        let _ = self.pusher.send(Push { routes, switch: None });
    }

    /// Tells what changed since the last signal.
    fn publish(&self) {
        let now: Vec<_> = self.members.iter().map(|(id, member)| member.state(id)).collect();
        let before = self.published.borrow().clone();
        if before == now {
            return;
        }
        let deployment = self.rollout.as_ref().map(|active| active.order.deployment);
        for state in &now {
            let same = before.iter().any(|b| b.id == state.id && (b.health, b.duty) == (state.health, state.duty));
            if !same {
                self.tell(deployment, state, state.duty);
            }
        }
        for gone in before.iter().filter(|b| !now.iter().any(|n| n.id == b.id)) {
            self.tell(deployment, gone, Duty::Retired);
        }
        self.published.send_replace(now);
    }

    fn tell(&self, deployment: Option<DeploymentId>, state: &InstanceState, duty: Duty) {
        let event = DeployEvent::Instance {
            instance: state.id.clone(),
            service: state.service.clone(),
            slot: state.slot,
            health: state.health,
            duty,
        };
        self.parts.journal.publish(&self.app, deployment, event);
    }

    fn send(&self, signal: Signal) {
        if let Some(signals) = self.signals.upgrade() {
            let _ = signals.send(signal);
        }
    }

    /// Runs a call in a task of its own; its signal comes back unless the driver has ended.
    fn spawn(&self, call: impl Future<Output = Signal> + Send + 'static) {
        let signals = self.signals.clone();
        tokio::spawn(async move {
            let signal = call.await;
            if let Some(signals) = signals.upgrade() {
                let _ = signals.send(signal);
            }
        });
    }
}

/// Stops an instance, again after a pause when the runtime does not answer.
async fn stop_for_sure(runtime: &dyn Runtime, id: &InstanceId, grace: Duration) -> Result<(), RuntimeError> {
    let mut pause = Duration::from_millis(200);
    for _ in 1..STOP_ATTEMPTS {
        if runtime.stop(id, grace).await.is_ok() {
            return Ok(());
        }
        sleep(pause).await;
        pause *= 3;
    }
    runtime.stop(id, grace).await
}

async fn last_lines(runtime: &dyn Runtime, id: &InstanceId) -> Vec<String> {
    let read = async {
        let Ok(mut output) = runtime.logs(id, FAILURE_LINES, false).await else { return Vec::new() };
        let mut text = Vec::new();
        while let Some(chunk) = output.next().await {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    };
    timeout(Duration::from_secs(3), read).await.unwrap_or_default()
}

fn describe_exit(exited: &Exited, memory: Option<u64>, up: Duration) -> String {
    let after = if up >= Duration::from_secs(1) {
        format!("after {} s", up.as_secs())
    } else {
        format!("after {} ms", up.as_millis())
    };
    if exited.oom {
        let limit = memory.map(|bytes| format!(" of {} MiB", bytes >> 20)).unwrap_or_default();
        return format!("ran out of its memory limit{limit} {after} and was killed");
    }
    match exited.code {
        code @ 129..=159 => format!("was ended by signal {} {after} (exit code {code})", code - 128),
        code => format!("exited with code {code} {after}"),
    }
}
