//! One canary as a pure state machine, beside the rolling one in [`super::machine`], whose events and actions it shares.
//!
//! ```text
//!              what the step     the proxy has          the pause
//!              needs is ready    taken the table        is over, or a person promotes
//!   Growing ─────────────────▶ Routing ───────────▶ Pausing ───────────────┐
//!      ▲                          │ last step                              │
//!      └──────────────────────────┼────────────────────────────────────────┘
//!                                 ▼
//!                             Promoted: the rolling machine drains and stops the old ones, and watches
//!
//!   Growing, Routing, Pausing ── a new instance fails, the judge or a person aborts, somebody cancels ──▶
//!                             Unrouting ─▶ Leaving ─▶ Finished(Undone)
//! ```
//!
//! New instances start beside the old ones, which all stay until the table of the last step is in force. So an abort is
//! one switch of the table and restores nothing. Where no old instance of a service can serve, that switch leaves the new
//! ones that do: they stand in until one can. At a step of p % a routed service has as many new instances as p % of
//! its number needs; services without a route get theirs at the last step.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::{Action, Cause, Event, Failure, Now, Outcome, Policy, ROUTE_PATIENCE, ROUTE_PAUSE, Rollout};
use super::machine::{Switch, Timer};
use super::plan::Slot;
use super::shares::needed;
use super::stand_ins::serves_on;
use crate::model::{CanaryAction, Duty, InstanceId, ServiceName};

/// The way of a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// Shares in percent, growing, below 100. The last step, to all, comes after them.
    pub steps: Vec<u32>,
    /// How long each is kept.
    pub pause: Duration,
}

/// How far a canary has come. It is kept on disk, and one that was interrupted goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The step it is at or on its way to, from 0. As many as there are shares: the last, to all.
    pub step: usize,
    /// The new instances' share of the requests in percent, as the proxy last acknowledged it.
    pub share: u32,
    /// A person has it wait.
    pub held: bool,
}

/// What a person wants of a canary under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What.
    pub action: CanaryAction,
    /// Who.
    pub by: String,
}

/// Why something cannot be asked of a canary that is neither promoted nor undone, and whose last step is `last`.
pub fn refuses(standing: Standing, last: usize, action: CanaryAction) -> Option<&'static str> {
    match action {
        CanaryAction::Abort => None,
        _ if standing.step >= last => Some("it is at its last step already"),
        CanaryAction::Promote => None,
        CanaryAction::Pause => standing.held.then_some("it is paused already"),
        CanaryAction::Resume => (!standing.held).then_some("it is not paused"),
    }
}

/// Where a canary stands when that was asked of it.
pub fn wished(standing: Standing, last: usize, action: CanaryAction) -> Standing {
    match action {
        CanaryAction::Abort => standing,
        CanaryAction::Promote => Standing { step: last, held: false, ..standing },
        CanaryAction::Pause => Standing { held: true, ..standing },
        CanaryAction::Resume => Standing { held: false, ..standing },
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// What the step needs is started and proved, one after another.
    Growing,
    /// The table of this step is under way.
    Routing {
        switch: Switch,
        step: usize,
    },
    /// Until then, unless it is held: then so much of the pause is left.
    Pausing {
        until: Now,
        left: Duration,
    },
    /// Every place is switched.
    Promoted(Box<Rollout>),
    /// The table without the new ones is under way.
    Unrouting {
        switch: Switch,
        /// Since when the proxy does not take it.
        since: Option<Now>,
        failure: Failure,
    },
    /// The new ones finish what they have, and end.
    Leaving(Failure),
    Finished,
}

/// A new instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fresh {
    id: InstanceId,
    service: ServiceName,
    number: u32,
    routed: bool,
    asked: bool,
    ready: bool,
    proving: bool,
}

/// One canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    state: State,
    /// Those that requests are routed to come first.
    fresh: Vec<Fresh>,
    slots: Vec<Slot>,
    policy: Policy,
    course: Course,
    standing: Standing,
    /// A table with new instances was asked for, or may have been by an earlier life of the agent.
    may_be_routed: bool,
    /// An earlier life of the agent had begun the last step: old instances may be gone already.
    may_have_ended_old: bool,
    resumed: bool,
    switches: u32,
    pauses: u32,
    /// They serve where no old instance does.
    alone: BTreeSet<InstanceId>,
    left: Vec<String>,
}

impl Canary {
    /// A canary over `slots`.
    pub fn new(slots: Vec<Slot>, policy: Policy, course: Course) -> Self {
        let fresh = |slot: &Slot| {
            let (service, number, routed) = (slot.service.clone(), slot.number, slot.routed);
            let id = slot.incoming.clone()?;
            Some(Fresh { id, service, number, routed, asked: false, ready: false, proving: false })
        };
        let mut fresh: Vec<Fresh> = slots.iter().filter_map(fresh).collect();
        fresh.sort_by_key(|fresh| !fresh.routed);
        Self {
            state: State::Growing,
            fresh,
            slots,
            policy,
            course,
            standing: Standing { step: 0, share: 0, held: false },
            may_be_routed: false,
            may_have_ended_old: false,
            resumed: false,
            switches: 0,
            pauses: 0,
            alone: BTreeSet::new(),
            left: Vec::new(),
        }
    }

    /// Goes on with what an earlier life of the agent had begun, at its step. `slots` are planned from what runs. Its pause
    /// begins anew.
    pub fn resumed(slots: Vec<Slot>, policy: Policy, course: Course, mut standing: Standing) -> Self {
        standing.step = standing.step.min(course.steps.len());
        let may_have_ended_old = standing.step == course.steps.len();
        let new = Self::new(slots, policy, course);
        Self { standing, may_be_routed: true, may_have_ended_old, resumed: true, ..new }
    }

    /// Whether `slots` are something to share requests over: a service that is routed, with old and new instances.
    pub fn fits(slots: &[Slot]) -> bool {
        let routed = || slots.iter().filter(|slot| slot.routed);
        routed().any(|slot| slot.incoming.is_some()) && routed().any(|slot| slot.outgoing.is_some())
    }

    /// How far it has come.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether nothing more will come.
    pub fn is_finished(&self) -> bool {
        match &self.state {
            State::Promoted(rollout) => rollout.is_finished(),
            state => *state == State::Finished,
        }
    }

    /// Whether every slot is switched and all is watched.
    pub fn is_watching(&self) -> bool {
        matches!(&self.state, State::Promoted(rollout) if rollout.is_watching())
    }

    /// Whether the old instances serve as ever, and are to be kept up.
    pub fn keeps_old(&self) -> bool {
        match self.state {
            State::Growing | State::Pausing { .. } | State::Unrouting { .. } | State::Leaving(_) => true,
            State::Routing { step, .. } => step < self.last(),
            State::Promoted(_) | State::Finished => false,
        }
    }

    /// When the next step begins by itself.
    pub fn next_step_at(&self) -> Option<Now> {
        match self.state {
            State::Pausing { until, .. } if !self.standing.held => Some(until),
            _ => None,
        }
    }

    /// Whether new and old instances are to be compared now.
    pub fn is_pausing(&self) -> bool {
        matches!(self.state, State::Pausing { .. })
    }

    /// Whether it is neither promoted nor being undone.
    pub fn is_under_way(&self) -> bool {
        matches!(self.state, State::Growing | State::Routing { .. } | State::Pausing { .. })
    }

    /// Says which new instances are ready and serve where no old instance of their service could. When all is undone they
    /// are left, as nobody would serve without them.
    pub fn set_alone(&mut self, alone: BTreeSet<InstanceId>) {
        self.alone = alone;
    }

    /// Whether a failure of this instance would count: it was asked to start.
    pub fn depends_on(&self, id: &InstanceId) -> bool {
        match &self.state {
            State::Promoted(rollout) => rollout.depends_on(id),
            _ => self.fresh.iter().any(|fresh| fresh.id == *id && fresh.asked),
        }
    }

    /// Why something cannot be asked of it now, in words.
    pub fn refuses(&self, action: CanaryAction) -> Option<&'static str> {
        match (&self.state, action) {
            (State::Promoted(_), CanaryAction::Abort) => {
                Some("it is promoted, and the old instances end; cancel the deployment to have it undone")
            }
            (State::Promoted(_), _) => Some("it is promoted already"),
            (State::Unrouting { .. } | State::Leaving(_) | State::Finished, _) => Some("it is being undone"),
            _ => refuses(self.standing, self.last(), action),
        }
    }

    /// The one entry: takes an event, answers with what to do. Events that no longer matter are answered with nothing.
    pub fn on(&mut self, event: Event, now: Now) -> Vec<Action> {
        if let State::Promoted(rollout) = &mut self.state {
            return rollout.on(event, now);
        }
        let mut actions = Vec::new();
        if self.is_finished() {
            return actions;
        }
        let failed = |why, instance, cause| Failure { why, instance, cause };
        match event {
            Event::Begin => {
                if self.resumed {
                    actions.push(Action::Say(format!("canary: going on with {}", self.describe_step())));
                }
                actions.push(Action::Stand(self.standing));
            }
            Event::Started(id) => self.started(&id, now, &mut actions),
            Event::Ready(id) => {
                self.fresh.iter_mut().filter(|fresh| fresh.id == id).for_each(|fresh| fresh.ready = true)
            }
            Event::StartFailed(id, why, cause) => {
                self.instance_failed(&id, &format!("could not be started: {why}"), cause, &mut actions);
            }
            Event::Exited(id, why) => self.instance_failed(&id, &why, Cause::Release, &mut actions),
            Event::TakenAway(id, why) => self.instance_failed(&id, &why, Cause::Surroundings, &mut actions),
            Event::Unready(id, why) => {
                self.instance_failed(&id, &format!("is unready: {why}"), Cause::Release, &mut actions);
            }
            Event::Routed(switch) => self.routed(switch, now, &mut actions),
            Event::RouteFailed(switch, why) => self.route_failed(switch, &why, now, &mut actions),
            Event::Drained(id) => self.drained(&id, &mut actions),
            Event::Stopped(id) => self.stopped(&id),
            Event::DeadlinePassed(timer) => self.deadline_passed(timer, &mut actions),
            Event::ErrorsJumped(why) => self.fail(failed(why, None, Cause::Release), &mut actions),
            Event::CancelAsked(why) => self.fail(failed(why, None, Cause::Cancelled), &mut actions),
            Event::Asked(wish) => self.asked(&wish, now, &mut actions),
            Event::EngineLost(why) => {
                self.state = State::Finished;
                actions.push(Action::Finish(Outcome::BrokenOff(why)));
            }
        }
        self.go_on(&mut actions);
        actions
    }

    fn last(&self) -> usize {
        self.course.steps.len()
    }

    /// The share of a step in percent.
    fn percent(&self, step: usize) -> u32 {
        self.course.steps.get(step).copied().unwrap_or(100)
    }

    /// The new instances that a step needs: the first of each routed service, and at the last all of all services.
    fn needed(&self, step: usize) -> impl Iterator<Item = &Fresh> {
        self.fresh.iter().filter(move |fresh| {
            let own = || self.fresh.iter().filter(|other| other.service == fresh.service);
            let place = own().take_while(|other| other.id != fresh.id).count();
            step == self.last() || fresh.routed && place < needed(own().count(), self.percent(step))
        })
    }

    fn old(&self) -> impl Iterator<Item = &InstanceId> {
        self.slots.iter().filter(|slot| slot.routed).filter_map(|slot| slot.outgoing.as_ref())
    }

    fn describe_step(&self) -> String {
        let step = self.standing.step;
        format!("step {} of {}: {} % of the requests to new instances", step + 1, self.last() + 1, self.percent(step))
    }

    fn started(&mut self, id: &InstanceId, now: Now, actions: &mut Vec<Action>) {
        if self.state != State::Growing {
            return;
        }
        let (services, default) = (&self.policy.services, self.policy.default_start_deadline);
        for fresh in self.fresh.iter_mut().filter(|fresh| fresh.id == *id && fresh.asked && !fresh.proving) {
            fresh.proving = true;
            let allowed = services.get(&fresh.service).map_or(default, |policy| policy.start_deadline);
            actions.push(Action::SetDeadline { timer: Timer::Start(id.clone()), at: now + allowed });
        }
    }

    fn instance_failed(&mut self, id: &InstanceId, why: &str, cause: Cause, actions: &mut Vec<Action>) {
        let Some(fresh) = self.fresh.iter().find(|fresh| fresh.id == *id && fresh.asked) else { return };
        let why = format!("{}-{} ({id}) {why}", fresh.service, fresh.number);
        self.fail(Failure { why, instance: Some(id.clone()), cause }, actions);
    }

    fn routed(&mut self, routed: Switch, now: Now, actions: &mut Vec<Action>) {
        match self.state.clone() {
            State::Routing { switch, step } if switch == routed && step == self.last() => self.promoted(now, actions),
            State::Routing { switch, step } if switch == routed => {
                self.standing.share = self.percent(step);
                let (share, old) = (self.standing.share, self.old().count());
                let new = self.needed(step).count();
                actions.push(Action::Say(format!(
                    "canary: step {} of {}: {share} % of the requests to {new} new, the rest to {old} old",
                    step + 1,
                    self.last() + 1,
                )));
                if self.standing.step == step {
                    self.pause(self.course.pause, now, actions);
                } else {
                    // Somebody has promoted it meanwhile.
                    self.state = State::Growing;
                }
                actions.push(Action::Stand(self.standing));
            }
            State::Unrouting { switch, failure, .. } if switch == routed => {
                self.standing.share = 0;
                actions.push(Action::Stand(self.standing));
                self.leave(failure, actions);
            }
            _ => {}
        }
    }

    fn pause(&mut self, length: Duration, now: Now, actions: &mut Vec<Action>) {
        self.pauses += 1;
        self.state = State::Pausing { until: now + length, left: length };
        if !self.standing.held {
            actions.push(Action::SetDeadline { timer: Timer::Pause(self.pauses), at: now + length });
        }
    }

    /// The new instances serve alone; the old ones are drained and stopped, and all is watched, as after a rolling rollout.
    fn promoted(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.standing.share = 100;
        actions.push(Action::Say("canary: promoted; the old instances finish what they have".into()));
        actions.push(Action::Stand(self.standing));
        let (slots, policy) = (std::mem::take(&mut self.slots), self.policy.clone());
        let mut rollout = Rollout::all_switched(slots, policy, Switch(self.switches), self.may_have_ended_old);
        actions.extend(rollout.on(Event::Begin, now));
        self.state = State::Promoted(Box::new(rollout));
    }

    fn route_failed(&mut self, failed: Switch, why: &str, now: Now, actions: &mut Vec<Action>) {
        match &mut self.state {
            State::Routing { switch, .. } if *switch == failed => {
                let why = format!("the proxy did not take the new routes: {why}");
                self.fail(Failure { why, instance: None, cause: Cause::Surroundings }, actions);
            }
            State::Unrouting { switch, since, .. }
                if *switch == failed && now.saturating_sub(since.unwrap_or(now)) < ROUTE_PATIENCE =>
            {
                since.get_or_insert(now);
                actions.push(Action::SetDeadline { timer: Timer::Route(failed), at: now + ROUTE_PAUSE });
            }
            State::Unrouting { switch, failure, .. } if *switch == failed => {
                let line = format!("the proxy did not take the old routes: {why}; the new instances are left running");
                actions.push(Action::Say(line.clone()));
                self.left.push(line);
                let failure = failure.clone();
                self.fresh.clear();
                self.state = State::Leaving(failure);
            }
            _ => {}
        }
    }

    fn drained(&mut self, id: &InstanceId, actions: &mut Vec<Action>) {
        let leaves = matches!(self.state, State::Leaving(_)) && self.fresh.iter().any(|fresh| fresh.id == *id);
        if leaves {
            actions.push(Action::SetDuty(id.clone(), Duty::Retired));
            actions.push(Action::Stop(id.clone()));
        }
    }

    fn stopped(&mut self, id: &InstanceId) {
        if matches!(self.state, State::Leaving(_)) {
            self.fresh.retain(|fresh| fresh.id != *id);
        }
    }

    fn deadline_passed(&mut self, timer: Timer, actions: &mut Vec<Action>) {
        match timer {
            Timer::Start(id) => {
                if self.fresh.iter().any(|fresh| fresh.id == id && fresh.proving && !fresh.ready) {
                    self.instance_failed(&id, "was not ready in time", Cause::Release, actions);
                }
            }
            Timer::Pause(number) if number == self.pauses && self.is_pausing() && !self.standing.held => {
                self.standing.step += 1;
                self.state = State::Growing;
                actions.push(Action::Stand(self.standing));
            }
            Timer::Route(switch) => {
                if matches!(self.state, State::Unrouting { switch: asked, .. } if asked == switch) {
                    actions.push(Action::Switch { switch, duties: self.duties_of_old_alone() });
                }
            }
            Timer::Pause(_) | Timer::Watch => {}
        }
    }

    fn asked(&mut self, wish: &Wish, now: Now, actions: &mut Vec<Action>) {
        if self.refuses(wish.action).is_some() {
            return;
        }
        let (by, share) = (&wish.by, self.standing.share);
        match wish.action {
            CanaryAction::Abort => {
                let why = format!("the canary was aborted by {by} at {share} % of the requests");
                return self.fail(Failure { why, instance: None, cause: Cause::Release }, actions);
            }
            CanaryAction::Promote => {
                actions.push(Action::Say(format!("canary: promoted by {by} at {share} % of the requests")));
                self.standing = wished(self.standing, self.last(), wish.action);
                if self.is_pausing() {
                    self.state = State::Growing;
                }
            }
            CanaryAction::Pause => {
                actions.push(Action::Say(format!("canary: paused by {by} until it is resumed, promoted or aborted")));
                self.standing = wished(self.standing, self.last(), wish.action);
                if let State::Pausing { until, left } = &mut self.state {
                    *left = until.saturating_sub(now);
                }
            }
            CanaryAction::Resume => {
                actions.push(Action::Say(format!("canary: resumed by {by}")));
                self.standing = wished(self.standing, self.last(), wish.action);
                if let State::Pausing { left, .. } = self.state {
                    self.pause(left, now, actions);
                }
            }
        }
        actions.push(Action::Stand(self.standing));
    }

    /// Turns round. Does nothing when that is under way already.
    fn fail(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        if !self.is_under_way() {
            return;
        }
        actions.push(Action::Revert(failure.clone()));
        if self.may_have_ended_old {
            // Its slots do not tell what was there before: the way back is planned from what runs.
            self.state = State::Finished;
            return actions.push(Action::Finish(Outcome::TurnBack(failure)));
        }
        if !self.may_be_routed {
            return self.leave(failure, actions);
        }
        self.leave_alone(actions);
        let switch = self.next_switch();
        self.state = State::Unrouting { switch, since: None, failure };
        actions.push(Action::Share(None));
        actions.push(Action::Switch { switch, duties: self.duties_of_old_alone() });
    }

    /// Those that alone serve are none of those that go. They stand in until an old one serves.
    fn leave_alone(&mut self, actions: &mut Vec<Action>) {
        let (alone, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.fresh)
            .into_iter()
            .partition(|fresh| fresh.routed && self.alone.contains(&fresh.id));
        self.fresh = going;
        for fresh in alone {
            let line = serves_on(&fresh.id);
            actions.push(Action::Say(line.clone()));
            self.left.push(line);
        }
    }

    /// The table without the new ones is in force: they finish what they have.
    fn leave(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        self.state = State::Leaving(failure);
        let resumed = self.resumed;
        self.fresh.retain(|fresh| fresh.asked || resumed);
        for fresh in &self.fresh {
            if fresh.routed && self.may_be_routed {
                actions.push(Action::Drain(fresh.id.clone()));
            } else {
                actions.push(Action::SetDuty(fresh.id.clone(), Duty::Retired));
                actions.push(Action::Stop(fresh.id.clone()));
            }
        }
    }

    fn duties_of_old_alone(&self) -> Vec<(InstanceId, Duty)> {
        let old = self.old().map(|id| (id.clone(), Duty::Serving));
        // Of one that is resumed an earlier life of the agent may have started them.
        let begun = self.fresh.iter().filter(|fresh| fresh.asked || self.resumed);
        let new = begun.map(|fresh| (fresh.id.clone(), Duty::Draining));
        old.chain(new).collect()
    }

    fn next_switch(&mut self) -> Switch {
        self.switches += 1;
        Switch(self.switches)
    }

    /// Performs every step that needs no further event.
    fn go_on(&mut self, actions: &mut Vec<Action>) {
        match &self.state {
            State::Growing => self.grow(actions),
            State::Leaving(failure) if self.fresh.is_empty() => {
                let outcome = Outcome::Undone { failure: failure.clone(), left: std::mem::take(&mut self.left) };
                self.state = State::Finished;
                actions.push(Action::Finish(outcome));
            }
            _ => {}
        }
    }

    /// Starts the next instance that the step needs when the ones before are ready; has the table changed when all are.
    fn grow(&mut self, actions: &mut Vec<Action>) {
        let step = self.standing.step;
        let next = self.needed(step).find(|fresh| !fresh.ready).map(|fresh| fresh.id.clone());
        let Some(next) = next else { return self.route(step, actions) };
        for next in self.fresh.iter_mut().filter(|fresh| fresh.id == next && !fresh.asked) {
            next.asked = true;
            let (instance, service, slot) = (next.id.clone(), next.service.clone(), next.number);
            actions.push(Action::Start { instance, service, slot, restore: false });
        }
    }

    fn route(&mut self, step: usize, actions: &mut Vec<Action>) {
        let is_last = step == self.last();
        let switch = self.next_switch();
        self.state = State::Routing { switch, step };
        self.may_be_routed = true;
        let new = self.needed(step).map(|fresh| (fresh.id.clone(), Duty::Serving));
        let old = self.old().filter(|_| is_last).map(|id| (id.clone(), Duty::Draining));
        let duties = new.chain(old).collect();
        actions.push(Action::Share((!is_last).then(|| self.percent(step))));
        actions.push(Action::Switch { switch, duties });
    }
}

#[cfg(test)]
mod tests;
