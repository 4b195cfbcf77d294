//! The app's instances as they change: what the runtime and the probes say of them, and what follows for routes and
//! rollout.

use std::time::Duration;

use jiff::Timestamp;

use super::{Adopted, DriverTask, Signal};
use crate::disk;
use crate::health::probe;
use crate::model::{Duty, Health, InstanceId};
use crate::rollout::fleet::{CUT_OFF, Member, Pending, REMOVED, Task};
use crate::rollout::machine::{Cause, Event};
use crate::rollout::plan::Current;
use crate::runtime::{Exited, Happened, Observed, RunState, RuntimeError};
use crate::store::Ended;

impl DriverTask {
    pub(super) async fn adopt(&mut self, instances: Vec<Adopted>) {
        let mut reported = Vec::new();
        for Adopted { last_end, observed, spec, duty, trusted, stands_in } in instances {
            let member = Member { last_end, stands_in, ..Member::adopted(spec, &observed, duty, trusted) };
            self.members.insert(observed.id.clone(), member);
            self.start_probe(&observed.id);
            reported.extend(observed.image_health.map(|passed| (observed.id, passed)));
        }
        self.adopted = true;
        // The engine tells of changes alone.
        for (id, passed) in reported {
            self.engine_reported(id, passed).await;
        }
        self.push_routes();
    }

    pub(super) fn current(&self) -> Vec<Current> {
        let current = |(id, m): (&InstanceId, &Member)| Current {
            id: id.clone(),
            service: m.spec.service.name.clone(),
            slot: m.slot,
            settings: m.settings.clone(),
            deployment: m.deployment,
            running: m.running,
            proven: m.is_proven(),
            ready: m.is_ready(),
        };
        self.members.iter().filter(|(_, m)| m.duty != Duty::Retired && m.stands_in.is_none()).map(current).collect()
    }

    pub(super) async fn started(&mut self, id: InstanceId, result: Result<Observed, RuntimeError>) {
        self.engine_answered(&result);
        let Some(member) = self.members.get_mut(&id) else {
            if let Err(err) = result {
                self.feed(Event::StartFailed(id, err.to_string(), cause_of(&err))).await;
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
                if let Some(passed) = observed.image_health {
                    self.engine_reported(id.clone(), passed).await;
                }
                match (observed.state, early) {
                    (RunState::Exited(exited), _) | (_, Some(exited)) => self.ended(id, exited).await,
                    // One that an earlier life of the agent started may have passed its gate before the rollout went on.
                    _ if self.is_ready(&id) => self.feed(Event::Ready(id)).await,
                    _ => {}
                }
            }
            Err(err) => {
                self.not_started(&id, &err);
                self.feed(Event::StartFailed(id, err.to_string(), cause_of(&err))).await;
            }
        }
    }

    pub(super) async fn stopped(&mut self, id: InstanceId, result: Result<(), RuntimeError>) {
        if let Err(err) = result {
            self.say(format!("{id} could not be stopped: {err}; it is swept when the agent starts again"));
        }
        self.members.remove(&id);
        if self.rollout.is_some() {
            self.say(format!("{id}: stopped"));
        }
        self.feed(Event::Stopped(id)).await;
    }

    fn is_ready(&self, id: &InstanceId) -> bool {
        self.members.get(id).is_some_and(|member| member.gate.health() == Health::Ready)
    }

    pub(super) fn start_probe(&mut self, id: &InstanceId) {
        let Some(signals) = self.signals.upgrade() else { return };
        let Some(member) = self.members.get_mut(id) else { return };
        let target = member.target(id, self.entrance.as_ref());
        if !member.running || member.cut_off || target.engine_reports() {
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

    pub(super) async fn probed(&mut self, id: InstanceId, result: Result<(), String>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !member.running || member.cut_off {
            return;
        }
        let passed = result.is_ok();
        member.last_check = Some(result.err().unwrap_or_else(|| "passed".into()));
        self.checked(id, passed).await;
    }

    async fn checked(&mut self, id: InstanceId, passed: bool) {
        let Some(member) = self.members.get_mut(&id) else { return };
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
                if let (Some(active), Some(member)) = (&self.rollout, self.members.get(&id)) {
                    let is_new = member.deployment == active.assignment.deployment;
                    self.say(match is_new {
                        true => format!("{id}: ready after {:.2} s", member.up_since.elapsed().as_secs_f64()),
                        false => format!("{id}: ready again"),
                    });
                }
                self.serve_alone();
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

    pub(super) async fn happened(&mut self, happened: Happened) {
        if happened != Happened::Interrupted {
            self.engine_answered(&Ok(()));
        }
        match happened {
            Happened::Interrupted => {}
            Happened::Started(id) if self.members.contains_key(&id) => self.inspect(id),
            Happened::StartedUnknown(app) if app != self.app => {}
            // Nobody asked for it, or this is the first that is heard of one that is being started.
            Happened::Started(_) | Happened::StartedUnknown(_) => self.compare(),
            Happened::Exited(id, exited) => match self.members.get_mut(&id) {
                Some(member) if member.pending == Pending::None => self.ended(id, exited).await,
                // It ended before the runtime's answer to the start arrived.
                Some(member) if member.pending == Pending::Start => member.ended_early = Some(exited),
                _ => {}
            },
            Happened::ImageHealth(id, passed) => self.engine_reported(id, passed).await,
            Happened::Rewired(observed) => self.inspected(observed.id.clone(), Ok(Some(*observed))).await,
            Happened::Removed(id) => {
                if self.members.get(&id).is_some_and(|m| m.pending == Pending::None) {
                    self.gone(id).await;
                    self.look_after_all().await;
                }
            }
            Happened::Reconnected => {
                let ids: Vec<_> = self.members.keys().cloned().collect();
                ids.into_iter().for_each(|id| self.inspect(id));
                self.compare();
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

    pub(super) async fn inspected(&mut self, id: InstanceId, result: Result<Option<Observed>, RuntimeError>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.pending != Pending::None {
            return;
        }
        match result {
            Ok(Some(observed)) => {
                let state = |m: &Member| (m.started_at, m.address, m.running, m.cut_off);
                let before = state(member);
                member.observe(&observed);
                if before == state(member) {
                    return;
                }
                if let RunState::Exited(exited) = observed.state {
                    return self.ended(id, exited).await;
                }
                let has_left = before.1.is_some() && before.0 == member.started_at && before.1 != member.address;
                self.start_probe(&id);
                match has_left {
                    // The same process, no longer where its connections lead.
                    true => self.push_without(id.clone()),
                    false => self.push_routes(),
                }
                if observed.is_cut_off() {
                    tracing::warn!(app = %self.app, instance = %id, "{CUT_OFF}");
                    self.feed(Event::TakenAway(id, CUT_OFF.to_owned())).await;
                    return self.look_after_all().await;
                }
                if let Some(passed) = observed.image_health {
                    self.engine_reported(id, passed).await;
                }
            }
            Ok(None) => self.gone(id).await,
            Err(err) => tracing::warn!(app = %self.app, instance = %id, %err, "cannot be inspected"),
        }
    }

    /// What the engine says of an image's own HEALTHCHECK.
    async fn engine_reported(&mut self, id: InstanceId, passed: bool) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.cut_off || !member.target(&id, self.entrance.as_ref()).engine_reports() {
            return;
        }
        let said = if passed { "the image's HEALTHCHECK passed" } else { "the image's HEALTHCHECK failed" };
        member.last_check = Some(said.into());
        self.checked(id, passed).await;
    }

    /// An instance's process ended by itself. The runtime restarts it; a rollout of it fails at once.
    pub(super) async fn ended(&mut self, id: InstanceId, exited: Exited) {
        if exited.removed {
            return self.taken_away(id).await;
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        let why = describe_exit(&exited, member.spec.service.memory, member.up_since.elapsed());
        let ended = Ended { at: Timestamp::now(), why: why.clone() };
        self.parts.store.record_end(member.deployment, &id, &ended);
        member.last_end = Some(ended);
        self.runs_no_longer(&id, &why);
        self.feed(Event::Exited(id, why)).await;
    }

    /// An instance ended with its container: no doing of its release. The engine tells it several times.
    pub(super) async fn taken_away(&mut self, id: InstanceId) {
        let is_known = |m: &Member| !m.running && m.last_check.as_deref() == Some(REMOVED);
        if self.members.get(&id).is_none_or(is_known) {
            return;
        }
        self.runs_no_longer(&id, REMOVED);
        self.feed(Event::TakenAway(id, REMOVED.to_owned())).await;
    }

    fn runs_no_longer(&mut self, id: &InstanceId, why: &str) {
        let Some(member) = self.members.get_mut(id) else { return };
        tracing::warn!(app = %self.app, instance = %id, "{why}");
        member.running = false;
        member.cut_off = false;
        member.address = None;
        member.probe = None;
        member.last_check = Some(why.to_owned());
        member.trusted = false;
        member.gate.restarted();
        self.push_routes();
    }
}

/// An engine that does not answer, or has no room, says nothing about the release.
fn cause_of(err: &RuntimeError) -> Cause {
    match err {
        RuntimeError::Unavailable(_) => Cause::Engine,
        RuntimeError::Refused(why) if disk::says_full(why) => Cause::Surroundings,
        RuntimeError::ImageGone(_) | RuntimeError::Refused(_) => Cause::Release,
    }
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
