//! What the machine asks for, performed: one rollout from its assignment to its outcome.

use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::moves::Moves;
use super::{Active, Assignment, DriverTask, REVERT_STEP, Round, Signal};
use crate::health::Gate;
use crate::model::{Duty, InstanceId, ServiceName, Status};
use crate::proxy::table::DrainLimits;
use crate::rollout::canary::Canary;
use crate::rollout::fleet::{Member, Pending, Share};
use crate::rollout::machine::{Action, Event, Failure, Outcome, Rollout, Timer};
use crate::runtime::{Runtime, RuntimeError};

/// How many lines of an instance's output a failure carries.
const FAILURE_LINES: u32 = 20;
/// A stop that fails is tried so often; what is left then is swept by a later start of the agent.
const STOP_ATTEMPTS: u32 = 5;

impl DriverTask {
    pub(super) async fn roll(&mut self, mut assignment: Assignment, answer: oneshot::Sender<Outcome>) {
        self.watched = None;
        let undone = self.asked_meanwhile(&mut assignment).await;
        if assignment.canary.is_none() {
            self.canary.send_replace(None);
        }
        // What is being undone keeps a canary's share to the end, however few of its instances are left.
        if assignment.canary.is_none() && assignment.reverting.is_none() {
            self.share = None;
        }
        for kept in &assignment.plan.kept {
            self.keep(kept, &assignment);
        }
        self.waiting = None;
        // One that was ready when its deployment was cut off gets requests now. It stands in when all is undone.
        for id in &assignment.stand_ins {
            self.set_duty(id, Duty::Serving);
        }
        self.push_routes();
        let (slots, policy) = (assignment.plan.slots.clone(), assignment.policy.clone());
        let machine = match (assignment.reverting.clone(), &assignment.canary) {
            (Some(failure), _) => Moves::Rolling(Rollout::reverting(slots, policy, failure)),
            (None, Some(plan)) => {
                let course = plan.course.clone();
                let canary = match plan.standing {
                    Some(standing) => Canary::resumed(slots, policy, course, standing),
                    None => Canary::new(slots, policy, course),
                };
                Moves::Canary(Box::new(canary))
            }
            (None, None) if assignment.resumed => Moves::Rolling(Rollout::resumed(slots, policy)),
            (None, None) => Moves::Rolling(Rollout::new(slots, policy)),
        };
        self.rounds += 1;
        // They may be others afterwards.
        self.places = None;
        let (round, began) = (Round(self.rounds), Instant::now());
        let failure = assignment.reverting.clone();
        self.rollout = Some(Active {
            round,
            machine,
            assignment,
            answer: Some(answer),
            began,
            engine: self.parts.presence.mark(),
            failure,
            counting: None,
            analysis: None,
            unrecorded: None,
        });
        self.count();
        self.feed(Event::Begin).await;
        self.undo_planned(undone).await;
    }

    /// An instance that stays goes on as it is; how it is checked, drained and routed may have changed.
    fn keep(&mut self, id: &InstanceId, assignment: &Assignment) {
        let specs = if assignment.reverting.is_some() { &assignment.old } else { &assignment.new };
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

    /// Asks the machine, unless it is the engine that is at fault, and performs what it answers.
    pub(super) async fn feed(&mut self, event: Event) {
        if let Some(event) = self.suspect(event) {
            self.ask_machine(event).await;
        }
    }

    /// Asks the machine and performs what it answers; performing may lead to further events.
    pub(super) async fn ask_machine(&mut self, event: Event) {
        let Some(deployment) = self.rollout.as_ref().map(|active| active.assignment.deployment) else { return };
        let alone = self.alone(deployment);
        let Some(active) = &mut self.rollout else { return };
        active.machine.set_alone(alone);
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
                    self.push_switch(active.round, switch);
                }
            }
            Action::Share(percent) => {
                let deployment = self.rollout.as_ref().map(|active| active.assignment.deployment);
                self.share = deployment.zip(percent).map(|(deployment, percent)| Share { deployment, percent });
            }
            Action::Stand(standing) => self.stand(standing).await,
            Action::SetDuty(id, duty) => self.set_duty(&id, duty),
            Action::Drain(id) => self.drain(id),
            Action::Stop(id) => self.stop(id),
            Action::SetDeadline { timer, at } => self.set_deadline(timer, at),
            Action::Watch => self.begin_watch().await,
            Action::Revert(failure) => self.begin_revert(failure).await,
            Action::Say(line) => self.say(line),
            Action::Finish(outcome) => self.finish(outcome).await,
        }
    }

    fn set_duty(&mut self, id: &InstanceId, duty: Duty) {
        if let Some(member) = self.members.get_mut(id) {
            member.duty = duty;
        }
    }

    fn start(&mut self, id: InstanceId, service: ServiceName, slot: u32, restore: bool) {
        let Some(active) = &self.rollout else { return };
        let specs = if restore { &active.assignment.old } else { &active.assignment.new };
        let Some(spec) = specs.get(&service).cloned() else {
            let why = format!("service {service} is not part of the release");
            return self.send(Signal::Started(id, Err(RuntimeError::Refused(why))));
        };
        let deployment = active.assignment.deployment;
        let count = active.assignment.instances.get(&service).copied().unwrap_or(spec.service.instances);
        active.assignment.log.line(format!("{id}: starting ({slot} of {count})"));
        let instance = match spec.instance(&self.app, deployment, id.clone(), slot) {
            Ok(instance) => instance,
            Err(why) => return self.send(Signal::Started(id, Err(why))),
        };
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

    fn drain(&self, id: InstanceId) {
        let limits = self.members.get(&id).map(|m| m.spec.service.drain);
        let Some(limits) = limits else { return self.send(Signal::Drained(id, 0, 0)) };
        let proxy = self.parts.routes.proxy().clone();
        let (store, deployment) = (self.parts.store.clone(), self.rollout.as_ref().map(|r| r.assignment.deployment));
        self.spawn(async move {
            let limits = DrainLimits { requests: limits.requests, streams: limits.streams };
            let drained = proxy.drain(&id, limits).await;
            if let Some(deployment) = deployment
                && let Err(err) = store.record_drain(deployment, &id, drained).await
            {
                tracing::error!(instance = %id, %err, "its drain could not be recorded");
            }
            Signal::Drained(id, drained.cut_requests, drained.cut_streams)
        });
    }

    pub(super) fn stop(&mut self, id: InstanceId) {
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
        let (store, deployment) = (self.parts.store.clone(), self.rollout.as_ref().map(|r| r.assignment.deployment));
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
        let id = active.assignment.deployment;
        if !active.assignment.policy.watch.is_zero() {
            active
                .assignment
                .log
                .line(format!("every instance is switched; watching for {:?}", active.assignment.policy.watch));
        }
        if let Err(err) = self.parts.journal.advance(&self.app, id, Status::Watching).await {
            tracing::error!(app = %self.app, %err, "the watch could not be recorded");
        }
        self.count();
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
        self.end_analysis();
        let Some(active) = &mut self.rollout else { return };
        let id = active.assignment.deployment;
        failure.why = (active.assignment.redact)(&failure.why);
        active.assignment.log.line(format!("undoing: {}", failure.why));
        active.failure = Some(failure.clone());
        let recorded = async {
            self.parts.store.begin_step::<Failure>(id, REVERT_STEP).await?;
            self.parts.store.end_step(id, REVERT_STEP, &failure).await
        };
        let recorded = recorded.await;
        if let Some(active) = &mut self.rollout {
            active.unrecorded = recorded.as_ref().err().cloned();
        }
        if let Err(err) = recorded {
            // Without the record a crash now would lead forward again, into the same failure: no harm.
            tracing::error!(app = %self.app, %err, "the undoing could not be recorded");
        }
    }

    async fn finish(&mut self, outcome: Outcome) {
        let Some(mut active) = self.rollout.take() else { return };
        let outcome = match (outcome, active.failure.take()) {
            (Outcome::Undone { left, .. }, Some(failure)) => Outcome::Undone { failure, left },
            (Outcome::TurnBack(_), Some(failure)) => Outcome::TurnBack(failure),
            (outcome, _) => outcome,
        };
        self.canary.send_replace(None);
        if matches!(outcome, Outcome::Undone { .. }) {
            self.leave_behind(active.assignment.deployment).await;
        }
        // One that goes on later, forward or back, goes on from this share.
        if !matches!(outcome, Outcome::BrokenOff(_) | Outcome::TurnBack(_)) {
            self.share = None;
        }
        let is_broken_off = matches!(outcome, Outcome::BrokenOff(_));
        if let Some(answer) = active.answer.take() {
            let _ = answer.send(outcome);
        }
        self.push_final_routes();
        if is_broken_off {
            let (id, log) = (active.assignment.deployment, active.assignment.log);
            self.watch_waiting(id, log, Arc::default()).await;
        }
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
