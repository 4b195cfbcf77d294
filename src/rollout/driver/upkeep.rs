//! Outside of what a rollout is changing: instances that are meant to serve are kept running, and what is on the engine
//! is compared with what should be there. What differs is drift: told and recorded, and no deployment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{DriverTask, Prepare, Signal};
use crate::model::{AppName, DeploymentId, Duty, Health, InstanceId, ServiceName};
use crate::rollout::fleet::{CUT_OFF, Member, Pending, ServiceSpec};
use crate::rollout::strangers::Stranger;
use crate::rollout::upkeep::{Care, Standing};
use crate::runtime::{Observed, Runtime, RuntimeError, Unknown};

/// Between two looks at how the instances stand.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// Between two comparisons with the engine: for what no event told of.
const COMPARE: Duration = Duration::from_secs(30);
/// The same while the engine does not answer.
const COMPARE_AWAY: Duration = Duration::from_secs(2);
/// For reading the secrets of an instance; what they are on may hang.
const READING: Duration = Duration::from_secs(10);
/// For stopping what a deployment left behind.
const GRACE: Duration = Duration::from_secs(10);

/// A place of the live release: one instance is meant to serve in it.
#[derive(Debug, Clone)]
pub struct LivePlace {
    /// What runs in it.
    pub spec: Arc<ServiceSpec>,
    /// Which place, from 1.
    pub slot: u32,
    /// The deployment that a missing instance is started for.
    pub deployment: DeploymentId,
}

/// All that the runtime has of an app.
pub(super) struct Found {
    instances: Vec<Observed>,
    unknown: Vec<Unknown>,
}

impl Found {
    async fn of(runtime: &dyn Runtime, app: &AppName) -> Result<Self, RuntimeError> {
        Ok(Self { instances: runtime.list(Some(app)).await?, unknown: runtime.list_unknown(app).await? })
    }
}

impl DriverTask {
    /// Takes where instances of the live release are meant to be, until the next rollout.
    pub(super) async fn expect(&mut self, places: Vec<LivePlace>) {
        if self.rollout.is_some() {
            return;
        }
        self.places = Some(places);
        self.fill_places();
        self.look_after_all().await;
    }

    /// Adds the instances that are missing in the places of the live release; upkeep starts them.
    fn fill_places(&mut self) {
        for place in self.places.iter().flatten() {
            let service = &place.spec.service.name;
            let serves = |m: &Member| m.duty == Duty::Serving && m.stands_in.is_none();
            let taken = |m: &Member| serves(m) && m.slot == place.slot && m.spec.service.name == *service;
            if self.members.values().any(taken) {
                continue;
            }
            let id = InstanceId::new(place.deployment, service, place.slot, 0);
            // One of that name may be stopping still: then it has its turn when that has ended.
            let missing = || Member::missing(place.spec.clone(), place.slot, place.deployment);
            self.members.entry(id).or_insert_with(missing);
        }
    }

    /// Looks how each instance that is meant to serve stands, and does what is due.
    pub(super) async fn look_after_all(&mut self) {
        if !self.adopted {
            return;
        }
        let now = self.up_since.elapsed();
        if self.engine_away {
            return self.compare_when_due(now);
        }
        // First, as those that go are not to be started again.
        self.relieve();
        self.fill_places();
        self.serve_alone();
        let mut disturbed: BTreeSet<ServiceName> = self
            .members
            .values()
            .filter(|m| m.pending != Pending::None || !m.running || m.cut_off)
            .map(|m| m.spec.service.name.clone())
            .collect();
        let serving = self.members.values().filter(|m| m.duty == Duty::Serving && m.standing() == Standing::Well);
        let served: BTreeSet<ServiceName> = serving.map(|m| m.spec.service.name.clone()).collect();
        let mut due = Vec::new();
        for (id, member) in &mut self.members {
            let in_rollout = self.rollout.as_ref().is_some_and(|active| active.decides(id, member));
            let under_way = member.pending != Pending::None || member.reconnecting;
            if member.duty != Duty::Serving || under_way || in_rollout {
                continue;
            }
            // One at a time: what answers badly is still better than nothing.
            let may_replace = !disturbed.contains(&member.spec.service.name);
            let patience = member.spec.service.health.start_deadline;
            // Of one that is cut off: by others.
            let is_served = served.contains(&member.spec.service.name);
            match member.upkeep.observe(member.standing(), now, patience, may_replace, is_served) {
                Care::Wait => {}
                care => due.push((id.clone(), care)),
            }
            if due.last().is_some_and(|(other, care)| other == id && *care == Care::Replace) {
                disturbed.insert(member.spec.service.name.clone());
            }
        }
        for (id, care) in due {
            self.take_care(id, care).await;
        }
        self.compare_when_due(now);
    }

    fn compare_when_due(&mut self, now: Duration) {
        let pause = if self.engine_away { COMPARE_AWAY } else { COMPARE };
        if self.compared.is_none_or(|at| now.saturating_sub(at) >= pause) {
            self.compare();
        }
    }

    /// Remembers whether the engine answers: while it does not, there is nothing that upkeep could do.
    pub(super) fn engine_answered<T>(&mut self, answer: &Result<T, RuntimeError>) {
        let away = matches!(answer, Err(RuntimeError::Unavailable(_)));
        if away != self.engine_away {
            self.engine_away = away;
            match away {
                true => tracing::warn!(app = %self.app, "upkeep waits until the engine answers"),
                false => tracing::info!(app = %self.app, "the engine answers, upkeep goes on"),
            }
        }
    }

    async fn take_care(&mut self, id: InstanceId, care: Care) {
        if let Care::Recovered { attempts } = care {
            return self.record_drift(Some(id), format!("serves again (attempt {attempts})")).await;
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        let attempts = member.upkeep.attempts();
        if care == Care::Reconnect {
            member.reconnecting = true;
            let why = member.last_check.clone().unwrap_or_else(|| CUT_OFF.to_owned());
            let what = format!("{why}; connecting it again (attempt {attempts})");
            let (runtime, asked) = (self.parts.runtime.clone(), id.clone());
            self.spawn(async move { Signal::Reconnected(asked.clone(), runtime.reconnect(&asked).await) });
            return self.record_drift(Some(id), what).await;
        }
        let why = member.last_check.clone().unwrap_or_else(|| "it is not there".to_owned());
        let what = match care {
            Care::Wait | Care::Recovered { .. } | Care::Reconnect => return,
            Care::Start => {
                member.pending = Pending::Start;
                let pause = member.upkeep.pause_after_start();
                format!("does not run: {why}; starting it (attempt {attempts}); if that fails, again in {pause:?}")
            }
            Care::Replace => {
                member.pending = Pending::Replace;
                member.probe = None;
                format!("stays unready: {why}; replacing it (attempt {attempts})")
            }
        };
        let anew = StartAnew {
            app: self.app.clone(),
            id: id.clone(),
            slot: member.slot,
            deployment: member.deployment,
            spec: member.spec.clone(),
            has_container: member.exists,
            runs: care == Care::Replace,
        };
        let (runtime, prepare) = (self.parts.runtime.clone(), self.parts.prepare.clone());
        self.record_drift(Some(id.clone()), what).await;
        self.spawn(async move { Signal::Started(id, anew.perform(runtime.as_ref(), prepare).await) });
    }

    /// The runtime was asked to put an instance back into its network.
    pub(super) async fn reconnected(&mut self, id: InstanceId, result: Result<Observed, RuntimeError>) {
        self.engine_answered(&result);
        let Some(member) = self.members.get_mut(&id) else { return };
        member.reconnecting = false;
        match result {
            Ok(observed) => self.inspected(id, Ok(Some(observed))).await,
            Err(err) => member.last_check = Some(format!("{CUT_OFF} and could not be connected again: {err}")),
        }
    }

    /// An instance could not be started.
    pub(super) fn not_started(&mut self, id: &InstanceId, err: &RuntimeError) {
        let Some(member) = self.members.get_mut(id) else { return };
        tracing::warn!(app = %self.app, instance = %id, %err, "could not be started");
        member.last_check = Some(format!("could not be started: {err}"));
        member.running = false;
        member.address = None;
        member.gate.restarted();
        self.push_routes();
    }

    /// Asks the engine what there is.
    pub(super) fn compare(&mut self) {
        self.compared = Some(self.up_since.elapsed());
        if !self.adopted || self.rollout.is_some() {
            return;
        }
        let (runtime, app, rounds) = (self.parts.runtime.clone(), self.app.clone(), self.rounds);
        self.spawn(async move { Signal::Listed(rounds, Found::of(runtime.as_ref(), &app).await) });
    }

    /// Asks the engine what there is, for somebody who waits until it is known.
    pub(super) fn refresh(&self, answer: oneshot::Sender<Result<(), RuntimeError>>) {
        let (runtime, app) = (self.parts.runtime.clone(), self.app.clone());
        self.spawn(async move { Signal::Refreshed(Found::of(runtime.as_ref(), &app).await, answer) });
    }

    pub(super) async fn refreshed(
        &mut self,
        listed: Result<Found, RuntimeError>,
        answer: oneshot::Sender<Result<(), RuntimeError>>,
    ) {
        let outcome = listed.as_ref().map(drop).map_err(Clone::clone);
        self.listed(self.rounds, listed).await;
        // Nobody waits any more when the agent ends.
        let _ = answer.send(outcome);
    }

    /// What the engine has, asked for when `rounds` rollouts had begun.
    pub(super) async fn listed(&mut self, rounds: u64, listed: Result<Found, RuntimeError>) {
        self.engine_answered(&listed);
        let Found { instances: observed, unknown } = match listed {
            // A rollout that has begun since moves instances.
            Ok(found) if self.rollout.is_none() && self.rounds == rounds => found,
            Ok(_) => return,
            Err(err) => return tracing::debug!(app = %self.app, %err, "the instances could not be compared"),
        };
        let gone = |id: &InstanceId| !observed.iter().any(|o| o.id == *id);
        let missed: Vec<_> =
            self.members.iter().filter(|(id, m)| m.pending == Pending::None && m.running && gone(id)).collect();
        for id in missed.into_iter().map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.gone(id).await;
        }
        let there =
            observed.iter().map(|o| &o.container).chain(unknown.iter().map(|u| &u.container)).cloned().collect();
        let mut strangers: Vec<Stranger> = unknown.iter().map(Stranger::of_no_instance).collect();
        for instance in observed {
            match self.members.get(&instance.id) {
                Some(_) => self.inspected(instance.id.clone(), Ok(Some(instance))).await,
                None => strangers.extend(self.unexpected(instance).await),
            }
        }
        self.meet(strangers, &there).await;
    }

    /// An instance with our labels that is not one of the app's. What a deployment on record left behind is removed;
    /// what no deployment on record has started is nobody's to remove but the operator's.
    async fn unexpected(&mut self, instance: Observed) -> Option<Stranger> {
        match self.parts.store.deployment(instance.deployment).await {
            Err(err) => {
                tracing::error!(app = %self.app, instance = %instance.id, %err, "its deployment could not be read");
            }
            Ok(None) => return Some(Stranger::of_no_deployment(&instance)),
            Ok(Some(record)) if !record.status.is_terminal() => {}
            Ok(Some(record)) => {
                let id = instance.id;
                self.record_drift(Some(id.clone()), format!("was left behind by {}; removing it", record.id)).await;
                let (runtime, app) = (self.parts.runtime.clone(), self.app.clone());
                tokio::spawn(async move {
                    if let Err(err) = runtime.stop(&id, GRACE).await {
                        tracing::error!(%app, instance = %id, %err, "it could not be removed");
                    }
                });
            }
        }
        None
    }

    /// The runtime does not have it any more.
    pub(super) async fn gone(&mut self, id: InstanceId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if std::mem::take(&mut member.exists) {
            self.taken_away(id).await;
        }
    }

    pub(super) async fn record_drift(&self, instance: Option<InstanceId>, what: String) {
        if let Err(err) = self.parts.journal.drift(&self.app, instance, what).await {
            tracing::error!(app = %self.app, %err, "drift could not be recorded");
        }
    }
}

/// An instance that is to be started, from what upkeep knows of it.
struct StartAnew {
    app: AppName,
    id: InstanceId,
    slot: u32,
    deployment: DeploymentId,
    spec: Arc<ServiceSpec>,
    has_container: bool,
    /// It is stopped before.
    runs: bool,
}

impl StartAnew {
    async fn perform(self, runtime: &dyn Runtime, prepare: Prepare) -> Result<Observed, RuntimeError> {
        let grace = self.spec.service.stop_grace;
        let spec = match prepared(self.spec, prepare).await {
            Ok(spec) => spec,
            // Its container has been given all that it needs.
            Err(_) if self.has_container => return runtime.restart(&self.id, grace).await,
            Err(why) => return Err(RuntimeError::Refused(why)),
        };
        let instance = spec.instance(&self.app, self.deployment, self.id.clone(), self.slot)?;
        if self.runs {
            runtime.stop(&self.id, grace).await?;
        }
        runtime.start(&instance).await
    }
}

/// A service with its secrets, which are read again when one could not be read before.
async fn prepared(spec: Arc<ServiceSpec>, prepare: Prepare) -> Result<Arc<ServiceSpec>, String> {
    if spec.prepared.is_ok() {
        return Ok(spec);
    }
    let reading = tokio::task::spawn_blocking(move || {
        let prepared = Ok(prepare(&spec)?);
        Ok(Arc::new(ServiceSpec { prepared, ..ServiceSpec::clone(&spec) }))
    });
    match timeout(READING, reading).await {
        Ok(read) => read.unwrap_or_else(|error| Err(format!("its secrets could not be read: {error}"))),
        Err(_) => Err(format!("its secrets could not be read within {READING:?}")),
    }
}

impl Member {
    /// An instance that is meant to be there and is not.
    fn missing(spec: Arc<ServiceSpec>, slot: u32, deployment: DeploymentId) -> Self {
        let mut member = Self::starting(spec, slot, deployment);
        member.pending = Pending::None;
        member.duty = Duty::Serving;
        member.exists = false;
        member
    }

    fn standing(&self) -> Standing {
        match (self.exists, self.running, self.gate.health()) {
            (false, ..) => Standing::Gone,
            (true, false, _) => Standing::Down,
            (true, true, _) if self.cut_off => Standing::CutOff,
            (true, true, Health::Ready) => Standing::Well,
            (true, true, _) => Standing::Unready,
        }
    }
}
