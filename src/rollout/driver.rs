//! One task per app: signals in, the machine asked, its actions performed. The task itself never waits for the runtime
//! or the proxy; each call runs in a task of its own and comes back as a signal.
//!
//! Here is who may say what to it, and where each signal goes. `instances` keeps what is known of the app's instances,
//! `perform` does what the machine asks (`moves` is which one), `canary` keeps how far one has come and `analysis` compares it, `counting` counts what is answered, `publish` tells the proxy and others, `suspicion` tells failures
//! of the release from those of the engine, `upkeep` keeps running what is live, `waiting` is a canary whose rollout does not go on yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::canary::Wish;
use super::fleet::{Entrance, InstanceState, Member, Prepared, ServiceSpec, Share};
use super::machine::{Event, Failure, Outcome, Policy, Switch, Timer};
use super::plan::{Current, Plan};
use super::routes::Routes;
use super::stand_ins::Until;
use super::watch::History;
use crate::journal::{DeployLog, Journal};
use crate::model::{AppName, DeploymentId, Duty, InstanceId, ServiceName};
use crate::proxy::table::Route;
use crate::runtime::presence::{Mark, Presence};
use crate::runtime::{Happened, Observed, Runtime, RuntimeError};
use crate::store::{Ended, Served, Store, StoreError};

mod analysis;
pub mod canary;
mod counting;
mod instances;
mod moves;
mod perform;
mod publish;
mod served;
mod stand_ins;
mod strangers;
mod suspicion;
mod upkeep;
pub mod waiting;

use analysis::Analysis;
use canary::{CanaryPlan, CanaryState, WishRefused};
use counting::{Count, Counting};
use moves::Moves;
use publish::{Push, start_pusher};
pub use upkeep::LivePlace;
use upkeep::{Found, TICK};
use waiting::Watched;

/// The step that says that a deployment is being undone, and why.
pub const REVERT_STEP: &str = "revert";

/// What is to be rolled out, and how.
pub struct Assignment {
    /// For which deployment.
    pub deployment: DeploymentId,
    /// What changes.
    pub plan: Plan,
    /// These have passed their gates and serve in places that nobody else can be started in now.
    pub stand_ins: Vec<InstanceId>,
    /// How it is judged.
    pub policy: Policy,
    /// How many instances of each service there are to be.
    pub instances: BTreeMap<ServiceName, u32>,
    /// The services as they are to be.
    pub new: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    /// The services to go back to.
    pub old: BTreeMap<ServiceName, Arc<ServiceSpec>>,
    /// Requests are shared between old and new instances before all are switched.
    pub canary: Option<CanaryPlan>,
    /// It is to be undone: an earlier life of the agent, or the rollout before this one, had begun to.
    pub reverting: Option<Failure>,
    /// An earlier life of the agent had begun it, or the engine went away in the middle of it.
    pub resumed: bool,
    /// It is broken off rather than judged by what failed while the engine was away.
    pub may_break_off: bool,
    /// Takes the app's secrets out of what instances print.
    pub redact: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// How the app answered before: it is undone when many more requests fail. `None`: they are not judged.
    pub history: Option<History>,
    /// The deployment's log.
    pub log: DeployLog,
}

/// An instance of an earlier life of the agent.
pub struct Adopted {
    /// How it last ended by itself.
    pub last_end: Option<Ended>,
    /// As the engine shows it.
    pub observed: Observed,
    /// What it was started with.
    pub spec: Arc<ServiceSpec>,
    /// What it is for.
    pub duty: Duty,
    /// Whether it goes on being routed until its checks have spoken.
    pub trusted: bool,
    /// It was left behind, and serves only until the live release does.
    pub stands_in: Option<Until>,
}

enum Signal {
    Roll(Box<Assignment>, oneshot::Sender<Outcome>),
    Cancel(DeploymentId, String),
    Ask(Wish, oneshot::Sender<Result<DeploymentId, WishRefused>>),
    Adopt(Vec<Adopted>, Option<Share>, oneshot::Sender<()>),
    Entrance(Option<Entrance>),
    Current(oneshot::Sender<Vec<Current>>),
    Expect(Vec<LivePlace>),
    Wait(DeploymentId, DeployLog, Arc<Notify>),
    Served(Vec<LivePlace>, oneshot::Sender<Served>),
    Refresh(oneshot::Sender<Result<(), RuntimeError>>),
    Refreshed(Result<Found, RuntimeError>, oneshot::Sender<Result<(), RuntimeError>>),
    Listed(u64, Result<Found, RuntimeError>),
    Happened(Happened),
    Probed(InstanceId, Result<(), String>),
    Started(InstanceId, Result<Observed, RuntimeError>),
    Inspected(InstanceId, Result<Option<Observed>, RuntimeError>),
    Reconnected(InstanceId, Result<Observed, RuntimeError>),
    Stopped(InstanceId, Result<(), RuntimeError>),
    Switched(Round, Switch, Result<(), String>),
    /// The routes without an instance that stood in were sent.
    Relieved(InstanceId, Result<(), String>),
    /// It has nothing under way.
    Finished(InstanceId),
    Drained(InstanceId, u64, u64),
    Timer(Round, Timer),
    /// Something failed, and this is what the engine answered when it was asked whether it is there.
    Checked(Round, Event, Result<(), RuntimeError>),
    Counted(Round, Count),
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
    canary: watch::Receiver<Option<CanaryState>>,
}

/// See [`Parts::prepare`]. The error names the secret that cannot be read.
pub type Prepare = Arc<dyn Fn(&ServiceSpec) -> Result<Prepared, String> + Send + Sync>;

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
    /// Whether the engine is there.
    pub presence: Presence,
    /// Reads the secrets of a service anew, when they could not be read before. Blocks.
    pub prepare: Prepare,
}

impl Driver {
    /// Starts the driver of an app.
    pub fn start(app: AppName, entrance: Option<Entrance>, parts: Parts) -> Self {
        let (signals, inbox) = mpsc::unbounded_channel();
        let (published, state) = watch::channel(Vec::new());
        let (canary_told, canary) = watch::channel(None);
        let pusher = start_pusher(app.clone(), parts.routes.clone(), signals.downgrade());
        let task = DriverTask {
            app,
            entrance,
            parts,
            signals: signals.downgrade(),
            published,
            canary: canary_told,
            share: None,
            members: BTreeMap::new(),
            adopted: false,
            rollout: None,
            rounds: 0,
            pusher,
            pushed: None,
            up_since: Instant::now(),
            compared: None,
            engine_away: false,
            places: None,
            waiting: None,
            watched: None,
            strangers: None,
        };
        tokio::spawn(task.run(inbox));
        Self { signals, state, canary }
    }

    /// The app's instances now.
    pub fn instances(&self) -> Vec<InstanceState> {
        self.state.borrow().clone()
    }

    /// The app's canary, if one is under way.
    pub fn canary(&self) -> Option<CanaryState> {
        self.canary.borrow().clone()
    }

    /// Asks something of the canary under way; which deployment it is of. Returns when it is on disk.
    pub async fn ask(&self, app: &AppName, wish: Wish) -> Result<DeploymentId, WishRefused> {
        let (answer, asked) = oneshot::channel();
        self.send(Signal::Ask(wish, answer));
        // Closed only when the agent ends.
        asked.await.unwrap_or_else(|_| Err(WishRefused::NoCanary(app.clone())))
    }

    /// The digests of what the app's instances run with.
    pub async fn settings(&self) -> BTreeMap<InstanceId, String> {
        self.current().await.into_iter().filter_map(|current| Some((current.id, current.settings?))).collect()
    }

    /// Takes over instances of an earlier life of the agent, and the share of the requests that a canary among them has.
    pub async fn adopt(&self, instances: Vec<Adopted>, share: Option<Share>) {
        let (done, adopted) = oneshot::channel();
        self.send(Signal::Adopt(instances, share, done));
        // Closed only when the agent ends.
        let _ = adopted.await;
    }

    /// Says in which places of the app an instance is meant to serve now; those that are missing are started.
    pub fn expect(&self, places: Vec<LivePlace>) {
        self.send(Signal::Expect(places));
    }

    /// A deployment that was cut off in its rollout waits. Meanwhile, until it is rolled out further or back, those of its
    /// instances that pass their gates serve where nobody else is. `wake` is notified when its canary is to be undone.
    pub fn wait(&self, deployment: DeploymentId, log: DeployLog, wake: Arc<Notify>) {
        self.send(Signal::Wait(deployment, log, wake));
    }

    /// Has the engine say what there is, as instances may have ended or begun while it was away.
    pub async fn refresh(&self) -> Result<(), RuntimeError> {
        let (answer, refreshed) = oneshot::channel();
        self.send(Signal::Refresh(answer));
        // Closed only when the agent ends.
        refreshed.await.unwrap_or(Ok(()))
    }

    /// In how many of these places of the live release somebody serves now; `None` when the agent ends.
    pub async fn served(&self, places: Vec<LivePlace>) -> Option<Served> {
        let (answer, served) = oneshot::channel();
        self.send(Signal::Served(places, answer));
        served.await.ok()
    }

    /// What runs, for planning.
    pub async fn current(&self) -> Vec<Current> {
        let (answer, current) = oneshot::channel();
        self.send(Signal::Current(answer));
        current.await.unwrap_or_default()
    }

    /// Rolls out; `None` when the agent ends before the rollout does.
    pub async fn roll(&self, assignment: Assignment) -> Option<Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.send(Signal::Roll(Box::new(assignment), answer));
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

    /// The app's hosts may have changed.
    pub fn set_entrance(&self, entrance: Option<Entrance>) {
        self.send(Signal::Entrance(entrance));
    }

    fn send(&self, signal: Signal) {
        // The task ends only with the agent.
        let _ = self.signals.send(signal);
    }
}

struct Active {
    round: Round,
    machine: Moves,
    assignment: Assignment,
    answer: Option<oneshot::Sender<Outcome>>,
    began: Instant,
    /// The engine's life when it began.
    engine: Mark,
    /// The failure with what was found out about it.
    failure: Option<Failure>,
    counting: Option<Counting>,
    /// Of the canary's step that it is at.
    analysis: Option<Analysis>,
    /// Why the canary's last step is not on disk.
    unrecorded: Option<StoreError>,
}

impl Active {
    /// Whether the rollout decides about an instance.
    fn changes(&self, id: &InstanceId, member: &Member) -> bool {
        if self.machine.keeps_old() {
            return member.deployment == self.assignment.deployment;
        }
        let plan = &self.assignment.plan;
        let in_a_slot = || plan.slots.iter().any(|slot| [&slot.incoming, &slot.outgoing].contains(&&Some(id.clone())));
        !plan.kept.contains(id) && (member.deployment == self.assignment.deployment || in_a_slot())
    }

    /// Whether the rollout decides what is done about an instance that does not serve. An old one that was cut off is
    /// reconnected all the same: that replaces nothing, and until its turn it serves.
    fn decides(&self, id: &InstanceId, member: &Member) -> bool {
        let only_cut_off = member.cut_off && member.deployment != self.assignment.deployment;
        self.changes(id, member) && !only_cut_off
    }
}

struct DriverTask {
    app: AppName,
    entrance: Option<Entrance>,
    parts: Parts,
    signals: mpsc::WeakUnboundedSender<Signal>,
    published: watch::Sender<Vec<InstanceState>>,
    canary: watch::Sender<Option<CanaryState>>,
    /// A canary's share of the requests; without one all serving instances get the same.
    share: Option<Share>,
    members: BTreeMap<InstanceId, Member>,
    /// What ran before is known. Until then the routes that the proxy keeps say more than we do, and
    /// nothing can be missing.
    adopted: bool,
    rollout: Option<Active>,
    rounds: u64,
    pusher: mpsc::UnboundedSender<Push>,
    pushed: Option<Vec<Route>>,
    /// When the driver was started.
    up_since: Instant,
    /// How long after `up_since` the engine was last asked what there is.
    compared: Option<Duration>,
    /// The engine's last answer was none.
    engine_away: bool,
    /// The places of the live release, as long as that is known and no rollout changes it.
    places: Option<Vec<LivePlace>>,
    /// The deployment that waits in the middle of its rollout, and its log.
    waiting: Option<(DeploymentId, DeployLog)>,
    /// The canary whose rollout does not go on yet.
    watched: Option<Watched>,
    /// Containers that no deployment on record has started and that were told of, once that has been read.
    strangers: Option<BTreeSet<String>>,
}

impl DriverTask {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Signal>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = inbox.recv() => match signal {
                    Some(signal) => self.on(signal).await,
                    None => return,
                },
                _ = ticks.tick() => self.look_after_all().await,
            }
            self.publish();
        }
    }

    async fn on(&mut self, signal: Signal) {
        match signal {
            Signal::Roll(assignment, answer) => self.roll(*assignment, answer).await,
            Signal::Cancel(deployment, why) => {
                if self.rollout.as_ref().is_some_and(|active| active.assignment.deployment == deployment) {
                    self.feed(Event::CancelAsked(why)).await;
                }
            }
            Signal::Ask(wish, answer) => self.asked(wish, answer).await,
            Signal::Adopt(instances, share, done) => {
                self.share = share;
                self.adopt(instances).await;
                let _ = done.send(());
            }
            Signal::Entrance(entrance) => {
                self.entrance = entrance;
                self.push_routes();
            }
            Signal::Current(answer) => {
                let _ = answer.send(self.current());
            }
            Signal::Expect(places) => self.expect(places).await,
            Signal::Wait(deployment, log, wake) => {
                self.waiting = Some((deployment, log.clone()));
                self.watch_waiting(deployment, log, wake).await;
                self.serve_alone();
            }
            Signal::Served(places, answer) => {
                let _ = answer.send(self.served(&places));
            }
            Signal::Refresh(answer) => self.refresh(answer),
            Signal::Refreshed(listed, answer) => self.refreshed(listed, answer).await,
            Signal::Listed(rounds, listed) => self.listed(rounds, listed).await,
            Signal::Happened(happened) => self.happened(happened).await,
            Signal::Probed(id, result) => self.probed(id, result).await,
            Signal::Started(id, result) => self.started(id, result).await,
            Signal::Inspected(id, result) => self.inspected(id, result).await,
            Signal::Reconnected(id, result) => self.reconnected(id, result).await,
            Signal::Stopped(id, result) => self.stopped(id, result).await,
            Signal::Switched(round, switch, result) => {
                if self.is_in(round) {
                    let event = match result {
                        Ok(()) => Event::Routed(switch),
                        Err(why) => Event::RouteFailed(switch, why),
                    };
                    self.feed(event).await;
                }
            }
            Signal::Relieved(id, taken) => self.relieved(id, taken).await,
            Signal::Finished(id) => self.stop(id),
            Signal::Drained(id, requests, streams) => {
                if requests + streams > 0 {
                    self.say(format!("{id}: {requests} requests and {streams} streams were cut at the drain limit"));
                }
                self.feed(Event::Drained(id)).await;
            }
            Signal::Counted(round, count) => {
                if self.is_in(round) {
                    self.counted(count).await;
                } else if self.watched.as_ref().is_some_and(|watched| watched.round == round) {
                    self.counted_waiting(&count).await;
                }
            }
            Signal::Timer(round, timer) => {
                if self.is_in(round) {
                    self.feed(Event::DeadlinePassed(timer)).await;
                }
            }
            Signal::Checked(round, event, answer) => {
                self.parts.presence.saw(&answer, Timestamp::now());
                if self.is_in(round) {
                    self.judge(event).await;
                }
            }
        }
    }

    fn is_in(&self, round: Round) -> bool {
        self.rollout.as_ref().is_some_and(|active| active.round == round)
    }

    fn say(&self, line: String) {
        match &self.rollout {
            Some(active) => active.assignment.log.line(line),
            None => tracing::info!(app = %self.app, "{line}"),
        }
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
