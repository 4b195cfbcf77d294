//! The heart: one rollout as a pure state machine. Events in, actions out; no clock, no I/O, no chance.
//!
//! ```text
//!            every slot switched               watch passed
//!  Rolling ───────────────────────▶ Watching ───────────────▶ Finished(Succeeded)
//!     │  an incoming instance fails,    │
//!     │  or somebody cancels            │ the same
//!     ▼                                 ▼
//!  Reverting ───────────────────────────────────────────────▶ Finished(Undone)
//! ```
//!
//! One that was resumed after a crash finishes with TurnBack instead of reverting: its caller plans the way back.
//! One whose engine went away finishes with BrokenOff, whatever it was doing: its caller resumes it, as after a crash.
//!
//! A slot, new before old (`start_first`):
//!
//! ```text
//!  Waiting ─▶ Starting ─▶ Proving ─▶ Switching ─▶ Draining ─▶ Stopping ─▶ Done
//!             (started)   (ready)    (routed)     (drained)   (stopped)
//! ```
//!
//! Old before new (`stop_first`) begins with Unrouting ─▶ Draining ─▶ Stopping and goes on with Starting. The next slot
//! begins when the proxy has acknowledged the switch of the one before: what the old instance still has under way is
//! finished in the background.
//!
//! Undoing runs through the same slots the other way round: what was switched gets a fresh instance of the old release
//! (or the old instance itself, where it still runs), what was not is only stopped; all places at once. A revert never
//! starts a revert.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::canary::{Standing, Wish};
use super::plan::Slot;
use crate::config::Order;
use crate::model::{DeploymentId, Duty, InstanceId, ServiceName};

/// How often a place's old instance is started anew while undoing, before it is given up.
const RESTORE_ATTEMPTS: u32 = 3;
/// For how long an unacknowledged table is sent again while undoing. What the machine gives up the driver goes on sending.
pub(super) const ROUTE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two of them.
pub(super) const ROUTE_PAUSE: Duration = Duration::from_secs(1);

/// Time since the rollout began, as the driver counts it.
pub type Now = Duration;

/// What happened, in the machine's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first event.
    Begin,
    /// An instance runs.
    Started(InstanceId),
    /// An instance could not be started.
    StartFailed(InstanceId, String, Cause),
    /// An instance passed its gate.
    Ready(InstanceId),
    /// An instance that was ready fails its checks.
    Unready(InstanceId, String),
    /// An instance ended by itself.
    Exited(InstanceId, String),
    /// Somebody took an instance out of its network, or its container away: no doing of the release.
    TakenAway(InstanceId, String),
    /// The proxy has acknowledged the table of this switch.
    Routed(Switch),
    /// It has not.
    RouteFailed(Switch, String),
    /// An instance that is no longer chosen has nothing under way.
    Drained(InstanceId),
    /// An instance is gone.
    Stopped(InstanceId),
    /// A deadline set by [`Action::SetDeadline`] has passed.
    DeadlinePassed(Timer),
    /// Requests fail that did not fail before.
    ErrorsJumped(String),
    /// Somebody wants it undone.
    CancelAsked(String),
    /// A person wants something of a canary.
    Asked(Wish),
    /// Something failed, and the engine was away meanwhile: it says nothing about the release.
    EngineLost(String),
}

/// What to do next. Actions are performed in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start an instance (or find it started): the new release's, or the old one's while undoing.
    Start {
        /// Which.
        instance: InstanceId,
        /// Of which service.
        service: ServiceName,
        /// Its place, from 1.
        slot: u32,
        /// Of the old release.
        restore: bool,
    },
    /// Give instances their duties and send the table that follows; answered by Routed or RouteFailed.
    Switch {
        /// Tells the answers apart.
        switch: Switch,
        /// Who is to do what from now on.
        duties: Vec<(InstanceId, Duty)>,
    },
    /// From the next table on the new instances of a canary get this share of the requests, in percent; `None`: shares are
    /// equal.
    Share(Option<u32>),
    /// A canary has come so far. To be on disk before what follows is done.
    Stand(Standing),
    /// Give an instance its duty; no table changes by it (a service without a route).
    SetDuty(InstanceId, Duty),
    /// Report when an instance has nothing under way.
    Drain(InstanceId),
    /// End an instance.
    Stop(InstanceId),
    /// Report when this much time has passed.
    SetDeadline {
        /// What for.
        timer: Timer,
        /// At which time.
        at: Now,
    },
    /// Every slot is switched: the watch begins.
    Watch,
    /// Everything is undone from here on. To be on disk before what follows is done.
    Revert(Failure),
    /// A line for the deployment's log.
    Say(String),
    /// Nothing more will come.
    Finish(Outcome),
}

/// The number of a switch, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Switch(pub u32);

/// What a deadline is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// An instance must be ready by now.
    Start(InstanceId),
    /// The watch is over.
    Watch,
    /// Send an unacknowledged table again.
    Route(Switch),
    /// A canary's pause is over; they are counted.
    Pause(u32),
}

/// Why a rollout is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In words.
    pub why: String,
    /// The instance at fault; `None` when somebody cancelled or the proxy did not answer.
    pub instance: Option<InstanceId>,
    /// Whose doing it is.
    pub cause: Cause,
}

/// Whose doing a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The new release's.
    Release,
    /// The proxy's, or a full disk's: another attempt may go well.
    Surroundings,
    /// The engine's, which did not answer.
    Engine,
    /// Somebody asked for it.
    Cancelled,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything wanted runs and has passed the watch.
    Succeeded,
    /// Everything was put back, except for what `left` says.
    Undone {
        /// Why.
        failure: Failure,
        /// What could not be put back, one line each.
        left: Vec<String>,
    },
    /// It failed, and an earlier life of the agent had begun it: what is to be undone is to be planned from what runs.
    TurnBack(Failure),
    /// The engine went away, for this that is known of it. Nothing is undone: it is to be planned again from what runs.
    BrokenOff(String),
}

/// How a service's instances are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServicePolicy {
    /// How long an instance may take to become ready.
    pub start_deadline: Duration,
}

/// What a rollout needs to know besides its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Names the instances that restore the old release.
    pub deployment: DeploymentId,
    /// How long all is watched after the last switch.
    pub watch: Duration,
    /// Per service.
    pub services: BTreeMap<ServiceName, ServicePolicy>,
    /// For services that only exist in the old release.
    pub default_start_deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// `stop_first`: the table without the outgoing one is under way.
    Unrouting(Switch),
    Starting,
    Proving,
    Switching(Switch),
    /// By a canary; the outgoing one is still to be drained.
    Switched,
    Draining,
    Stopping,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    slot: Slot,
    phase: Phase,
    /// The incoming instance runs already (undoing only): it needs no start and no proof.
    runs_already: bool,
    /// The incoming instance passed its gate and still does.
    ready: bool,
    /// The outgoing instance was told to stop, or is gone.
    outgoing_gone: bool,
    /// The incoming instance was asked to start.
    start_asked: bool,
    /// The incoming one serves (for a routed service: in an acknowledged table).
    switched: bool,
    attempt: u32,
    /// Since when the proxy does not take its table.
    unrouted_since: Option<Now>,
}

impl Place {
    fn new(slot: Slot) -> Self {
        Self {
            slot,
            phase: Phase::Waiting,
            runs_already: false,
            ready: false,
            outgoing_gone: false,
            start_asked: false,
            switched: false,
            attempt: 0,
            unrouted_since: None,
        }
    }

    fn incoming_is(&self, id: &InstanceId) -> bool {
        self.slot.incoming.as_ref() == Some(id)
    }

    fn outgoing_is(&self, id: &InstanceId) -> bool {
        self.slot.outgoing.as_ref() == Some(id)
    }

    /// Whether the next slot may begin.
    fn lets_next_begin(&self) -> bool {
        match self.phase {
            Phase::Done => true,
            Phase::Draining | Phase::Stopping => self.slot.incoming.is_none() || self.switched,
            _ => false,
        }
    }

    fn stops_first(&self) -> bool {
        self.slot.order == Order::StopFirst && self.slot.outgoing.is_some() && self.slot.incoming.is_some()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Rolling,
    Watching,
    Reverting(Failure),
    Finished,
}

/// One rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    state: State,
    places: Vec<Place>,
    policy: Policy,
    switches: u32,
    watch_over: bool,
    left: Vec<String>,
    /// Its slots do not tell what an earlier life of the agent has replaced already.
    resumed: bool,
}

impl Rollout {
    /// A rollout of `slots`.
    pub fn new(slots: Vec<Slot>, policy: Policy) -> Self {
        let places = slots.into_iter().map(Place::new).collect();
        Self { state: State::Rolling, places, policy, switches: 0, watch_over: false, left: Vec::new(), resumed: false }
    }

    /// Goes on with what an earlier life of the agent had begun. `slots` are planned from what runs: of a place that was
    /// switched they no longer know what was there before. So this one does not undo itself: it ends with
    /// [`Outcome::TurnBack`].
    pub fn resumed(slots: Vec<Slot>, policy: Policy) -> Self {
        Self { resumed: true, ..Self::new(slots, policy) }
    }

    /// Goes on undoing what an earlier life of the agent had begun to undo. `slots` lead back to the old release.
    pub fn reverting(slots: Vec<Slot>, policy: Policy, failure: Failure) -> Self {
        let mut rollout = Self::new(slots, policy);
        let deployment = rollout.policy.deployment;
        for place in &mut rollout.places {
            // A plan names new instances; those that restore have names of their own.
            let slot = &mut place.slot;
            if slot.incoming == Some(InstanceId::new(deployment, &slot.service, slot.number, 0)) {
                slot.incoming = Some(InstanceId::new(deployment, &slot.service, slot.number, 1));
            }
            place.attempt = 1;
        }
        rollout.state = State::Reverting(failure);
        rollout
    }

    /// Goes on where every place has been switched at once, by a canary whose last switch was `last`: the old instances
    /// are drained and stopped, and all is watched. [`Event::Begin`] sets it off. `resumed` as in [`Rollout::resumed`].
    pub(super) fn all_switched(slots: Vec<Slot>, policy: Policy, last: Switch, resumed: bool) -> Self {
        let mut rollout = Self { resumed, ..Self::new(slots, policy) };
        rollout.switches = last.0;
        for place in &mut rollout.places {
            place.phase = Phase::Switched;
            place.start_asked = true;
            place.ready = true;
            place.switched = true;
        }
        rollout
    }

    /// Whether nothing more will come.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Whether it is being undone.
    pub fn is_reverting(&self) -> bool {
        matches!(self.state, State::Reverting(_))
    }

    /// Whether every slot is switched and all is watched.
    pub fn is_watching(&self) -> bool {
        self.state == State::Watching
    }

    /// Whether a failure of this instance would count: it was asked to start.
    pub fn depends_on(&self, id: &InstanceId) -> bool {
        self.places.iter().any(|place| place.incoming_is(id) && place.start_asked)
    }

    /// The one entry: takes an event, answers with what to do. Events that no longer matter are answered with nothing.
    pub fn on(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.is_finished() {
            return actions;
        }
        match event {
            // Asked of a canary only.
            Event::Begin | Event::Asked(_) => {}
            Event::Started(id) => self.started(&id, now, &mut actions),
            Event::Ready(id) => self.ready(&id),
            Event::StartFailed(id, why, cause) => {
                self.incoming_failed(&id, format!("could not be started: {why}"), cause, &mut actions)
            }
            Event::Exited(id, why) => self.incoming_failed(&id, why, Cause::Release, &mut actions),
            Event::TakenAway(id, why) => self.incoming_failed(&id, why, Cause::Surroundings, &mut actions),
            Event::Unready(id, why) => {
                self.incoming_failed(&id, format!("is unready: {why}"), Cause::Release, &mut actions)
            }
            Event::Routed(switch) => self.routed(switch, &mut actions),
            Event::RouteFailed(switch, why) => self.route_failed(switch, why, now, &mut actions),
            Event::Drained(id) => self.drained(&id, &mut actions),
            Event::Stopped(id) => self.stopped(&id),
            Event::DeadlinePassed(timer) => self.deadline_passed(timer, &mut actions),
            Event::ErrorsJumped(why) => {
                self.fail(Failure { why, instance: None, cause: Cause::Release }, &mut actions);
            }
            Event::CancelAsked(why) => {
                self.fail(Failure { why, instance: None, cause: Cause::Cancelled }, &mut actions);
            }
            Event::EngineLost(why) => {
                self.state = State::Finished;
                actions.push(Action::Finish(Outcome::BrokenOff(why)));
            }
        }
        self.go_on(now, &mut actions);
        actions
    }

    fn started(&mut self, id: &InstanceId, now: Now, actions: &mut Vec<Action>) {
        let services = &self.policy.services;
        let default = self.policy.default_start_deadline;
        for place in self.places.iter_mut().filter(|p| p.incoming_is(id) && p.phase == Phase::Starting) {
            place.phase = Phase::Proving;
            let allowed = services.get(&place.slot.service).map_or(default, |policy| policy.start_deadline);
            actions.push(Action::SetDeadline { timer: Timer::Start(id.clone()), at: now + allowed });
        }
    }

    fn ready(&mut self, id: &InstanceId) {
        for place in self.places.iter_mut().filter(|p| p.incoming_is(id)) {
            place.ready = true;
        }
    }

    /// An incoming instance failed: while rolling, all is undone; while undoing, that place is tried again or given up.
    fn incoming_failed(&mut self, id: &InstanceId, why: String, cause: Cause, actions: &mut Vec<Action>) {
        let reverting = self.is_reverting();
        let Some(place) = self.places.iter_mut().find(|p| p.incoming_is(id) && p.start_asked) else { return };
        if !reverting {
            let why = format!("{}-{} ({id}) {why}", place.slot.service, place.slot.number);
            return self.fail(Failure { why, instance: Some(id.clone()), cause }, actions);
        }
        // One that is in its place already has done its part: the runtime restarts it.
        if !matches!(place.phase, Phase::Starting | Phase::Proving) {
            return;
        }
        actions.push(Action::Stop(id.clone()));
        if place.attempt < RESTORE_ATTEMPTS {
            place.attempt += 1;
            actions.push(Action::Say(format!("{id}, started to restore the old release, {why}; trying again")));
            let (service, number) = (&place.slot.service, place.slot.number);
            place.slot.incoming = Some(InstanceId::new(self.policy.deployment, service, number, place.attempt));
            place.start_asked = false;
            place.ready = false;
            place.phase = Phase::Waiting;
        } else {
            let (service, number) = (&place.slot.service, place.slot.number);
            let line = format!("{service}-{number} could not be restored after {RESTORE_ATTEMPTS} attempts: {why}");
            actions.push(Action::Say(line.clone()));
            self.left.push(line);
            // What serves in this place, if anything does, goes on serving.
            place.slot.incoming = None;
            place.phase = Phase::Done;
        }
    }

    fn routed(&mut self, switch: Switch, actions: &mut Vec<Action>) {
        for place in &mut self.places {
            match place.phase {
                Phase::Switching(s) if s == switch => {
                    place.switched = true;
                    after_switch(place, actions);
                }
                Phase::Unrouting(s) if s == switch => {
                    place.phase = Phase::Draining;
                    actions.extend(place.slot.outgoing.clone().map(Action::Drain));
                }
                _ => {}
            }
        }
    }

    fn route_failed(&mut self, switch: Switch, why: String, now: Now, actions: &mut Vec<Action>) {
        let reverting = self.is_reverting();
        let waits = |p: &&mut Place| matches!(p.phase, Phase::Switching(s) | Phase::Unrouting(s) if s == switch);
        let Some(place) = self.places.iter_mut().find(waits) else { return };
        if !reverting {
            let why = format!("the proxy did not take the new routes: {why}");
            return self.fail(Failure { why, instance: None, cause: Cause::Surroundings }, actions);
        }
        let since = *place.unrouted_since.get_or_insert(now);
        if now.saturating_sub(since) < ROUTE_PATIENCE {
            actions.push(Action::SetDeadline { timer: Timer::Route(switch), at: now + ROUTE_PAUSE });
            return;
        }
        let line = format!(
            "{}-{}: the proxy did not take the old routes: {why}; both instances are left running",
            place.slot.service, place.slot.number
        );
        actions.push(Action::Say(line.clone()));
        self.left.push(line);
        place.phase = Phase::Done;
    }

    fn drained(&mut self, id: &InstanceId, actions: &mut Vec<Action>) {
        for place in self.places.iter_mut().filter(|p| p.outgoing_is(id) && p.phase == Phase::Draining) {
            stop_outgoing(place, actions);
        }
    }

    fn stopped(&mut self, id: &InstanceId) {
        for place in self.places.iter_mut().filter(|p| p.outgoing_is(id) && p.phase == Phase::Stopping) {
            let must_start = place.slot.incoming.is_some() && !place.switched;
            place.phase = if must_start { Phase::Waiting } else { Phase::Done };
        }
    }

    fn deadline_passed(&mut self, timer: Timer, actions: &mut Vec<Action>) {
        match timer {
            Timer::Watch => self.watch_over = true,
            Timer::Pause(_) => {}
            Timer::Start(id) => {
                let late = self.places.iter().any(|p| p.incoming_is(&id) && p.phase == Phase::Proving && !p.ready);
                if late {
                    self.incoming_failed(&id, "was not ready in time".into(), Cause::Release, actions);
                }
            }
            Timer::Route(switch) => {
                let waits = |p: &&Place| matches!(p.phase, Phase::Switching(s) | Phase::Unrouting(s) if s == switch);
                if let Some(place) = self.places.iter().find(waits) {
                    let duties = duties(place);
                    actions.push(Action::Switch { switch, duties });
                }
            }
        }
    }

    /// Turns round: everything begun is undone. Does nothing when that is under way already.
    fn fail(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        if self.is_reverting() {
            return;
        }
        actions.push(Action::Revert(failure.clone()));
        if self.resumed {
            self.state = State::Finished;
            return actions.push(Action::Finish(Outcome::TurnBack(failure)));
        }
        self.state = State::Reverting(failure);
        let deployment = self.policy.deployment;
        let begun = std::mem::take(&mut self.places);
        // Last switched, first put back.
        self.places = begun.into_iter().rev().filter_map(|place| reversed(place, deployment)).collect();
    }

    /// Performs every step that needs no further event. Rolling takes one place at a time: the first that does not let
    /// the next begin. Undoing takes all at once, for what is being put back is known to work, and what is there is
    /// known to fail; only where the old must stop first, one place waits for the other.
    fn go_on(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.is_finished() {
            return;
        }
        let restore = self.is_reverting();
        let mut index = 0;
        while let Some(place) = self.places.get_mut(index) {
            let before = place.phase;
            advance(place, &mut self.switches, restore, actions);
            let moved = place.phase != before;
            let next_may_begin = place.lets_next_begin() || (restore && place.slot.order == Order::StartFirst);
            match (moved, next_may_begin) {
                (true, _) => {}
                (false, true) => index += 1,
                (false, false) => break,
            }
        }
        self.settle(now, actions);
    }

    fn settle(&mut self, now: Now, actions: &mut Vec<Action>) {
        let all_switched = self.places.iter().all(Place::lets_next_begin);
        let all_done = self.places.iter().all(|p| p.phase == Phase::Done);
        match &self.state {
            State::Rolling if all_switched => {
                self.state = State::Watching;
                actions.push(Action::Watch);
                if self.policy.watch.is_zero() {
                    self.watch_over = true;
                } else {
                    actions.push(Action::SetDeadline { timer: Timer::Watch, at: now + self.policy.watch });
                }
                self.settle(now, actions);
            }
            State::Watching if all_done && self.watch_over => {
                self.state = State::Finished;
                actions.push(Action::Finish(Outcome::Succeeded));
            }
            State::Reverting(failure) if all_done => {
                let outcome = Outcome::Undone { failure: failure.clone(), left: std::mem::take(&mut self.left) };
                self.state = State::Finished;
                actions.push(Action::Finish(outcome));
            }
            _ => {}
        }
    }
}

/// Takes a place as far as it goes without a further event.
fn advance(place: &mut Place, switches: &mut u32, restore: bool, actions: &mut Vec<Action>) {
    match place.phase {
        Phase::Waiting if place.stops_first() && !place.outgoing_gone => {
            if place.slot.routed {
                place.phase = Phase::Unrouting(next_switch(switches));
                push_switch(place, actions);
            } else {
                stop_outgoing(place, actions);
            }
        }
        Phase::Waiting => match place.slot.incoming.clone() {
            Some(instance) if !place.runs_already => {
                place.phase = Phase::Starting;
                place.start_asked = true;
                let (service, slot) = (place.slot.service.clone(), place.slot.number);
                actions.push(Action::Start { instance, service, slot, restore });
            }
            _ => switch(place, switches, actions),
        },
        Phase::Proving if place.ready => switch(place, switches, actions),
        Phase::Switched => after_switch(place, actions),
        _ => {}
    }
}

/// Has the incoming instance chosen from now on, and the outgoing one no longer.
fn switch(place: &mut Place, switches: &mut u32, actions: &mut Vec<Action>) {
    if place.slot.routed {
        place.phase = Phase::Switching(next_switch(switches));
        push_switch(place, actions);
        return;
    }
    place.switched = true;
    actions.extend(place.slot.incoming.clone().map(|id| Action::SetDuty(id, Duty::Serving)));
    after_switch(place, actions);
}

fn after_switch(place: &mut Place, actions: &mut Vec<Action>) {
    match place.slot.outgoing.clone() {
        Some(outgoing) if !place.outgoing_gone && place.slot.routed => {
            place.phase = Phase::Draining;
            actions.push(Action::Drain(outgoing));
        }
        Some(_) if !place.outgoing_gone => stop_outgoing(place, actions),
        _ => place.phase = Phase::Done,
    }
}

fn stop_outgoing(place: &mut Place, actions: &mut Vec<Action>) {
    place.phase = Phase::Stopping;
    place.outgoing_gone = true;
    if let Some(outgoing) = place.slot.outgoing.clone() {
        actions.push(Action::SetDuty(outgoing.clone(), Duty::Retired));
        actions.push(Action::Stop(outgoing));
    }
}

fn next_switch(switches: &mut u32) -> Switch {
    *switches += 1;
    Switch(*switches)
}

fn push_switch(place: &Place, actions: &mut Vec<Action>) {
    if let Phase::Switching(switch) | Phase::Unrouting(switch) = place.phase {
        actions.push(Action::Switch { switch, duties: duties(place) });
    }
}

fn duties(place: &Place) -> Vec<(InstanceId, Duty)> {
    let incoming = matches!(place.phase, Phase::Switching(_)).then(|| place.slot.incoming.clone()).flatten();
    let outgoing = place.slot.outgoing.clone().filter(|_| !place.outgoing_gone);
    let serve = incoming.map(|id| (id, Duty::Serving));
    serve.into_iter().chain(outgoing.map(|id| (id, Duty::Draining))).collect()
}

/// The way back of a place; `None` when nothing was begun in it.
fn reversed(place: Place, deployment: DeploymentId) -> Option<Place> {
    let untouched = place.phase == Phase::Waiting && !place.start_asked && !place.outgoing_gone;
    if untouched {
        return None;
    }
    let Slot { service, number, routed, order, incoming, outgoing } = place.slot;
    let started = incoming.filter(|_| place.start_asked);
    // Before the switch the old one serves as ever: the new one only has to go.
    let only_started = matches!(place.phase, Phase::Starting | Phase::Proving) && !place.outgoing_gone;
    let mut back = if only_started {
        Place::new(Slot { service, number, routed: false, order, incoming: None, outgoing: started })
    } else {
        let restored = InstanceId::new(deployment, &service, number, 1);
        let incoming = outgoing.map(|old| if place.outgoing_gone { restored } else { old });
        Place::new(Slot { service, number, routed, order, incoming, outgoing: started })
    };
    back.runs_already = back.slot.incoming.is_some() && !place.outgoing_gone;
    back.attempt = 1;
    // Nothing is chosen anew before what still runs is back in its place; only a forced order stops first.
    if back.runs_already {
        back.slot.order = Order::StartFirst;
    }
    Some(back)
}

#[cfg(test)]
mod tests;
