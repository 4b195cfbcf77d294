use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::config::Order;
use crate::model::DeploymentId;
use crate::rollout::shares::shares;

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn slot(service: &str, number: u32, routed: bool, new: bool, old: bool) -> Slot {
    let service: ServiceName = service.parse().unwrap();
    let id = |deployment| InstanceId::new(DeploymentId(deployment), &service, number, 0);
    let (incoming, outgoing) = (new.then(|| id(2)), old.then(|| id(1)));
    Slot { number, routed, order: Order::StartFirst, incoming, outgoing, service }
}

fn policy() -> Policy {
    Policy {
        deployment: DeploymentId(2),
        watch: Duration::from_secs(60),
        services: BTreeMap::new(),
        default_start_deadline: Duration::from_secs(60),
    }
}

fn course(steps: &[u32]) -> Course {
    Course { steps: steps.to_vec(), pause: Duration::from_secs(60) }
}

fn wish(action: CanaryAction) -> Event {
    Event::Asked(Wish { action, by: "ada".into() })
}

/// What happens besides the next thing that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// A start fails, a table is not taken.
    Bad,
    /// A new instance that serves crashes.
    Crash,
    Unready,
    Errors,
    Cancel,
    Wish(CanaryAction),
}

/// Instances and one table that do what the machine asks, and check what must never be.
struct World {
    machine: Canary,
    slots: Vec<Slot>,
    steps: Vec<u32>,
    running: BTreeSet<InstanceId>,
    ready: BTreeSet<InstanceId>,
    duties: BTreeMap<InstanceId, Duty>,
    share: Option<u32>,
    /// The table in force: who, with which weight.
    table: BTreeMap<InstanceId, u32>,
    pending: Vec<Event>,
    finished: Vec<Outcome>,
    reverted: bool,
    promoted: bool,
    old_ended: bool,
    log: Vec<Action>,
    now: Duration,
}

impl World {
    fn new(slots: Vec<Slot>, steps: &[u32]) -> Self {
        let old: BTreeSet<_> = slots.iter().filter_map(|slot| slot.outgoing.clone()).collect();
        let mut world = Self {
            machine: Canary::new(slots.clone(), policy(), course(steps)),
            slots,
            steps: steps.to_vec(),
            running: old.clone(),
            ready: old.clone(),
            duties: old.into_iter().map(|id| (id, Duty::Serving)).collect(),
            share: None,
            table: BTreeMap::new(),
            pending: vec![Event::Begin],
            finished: Vec::new(),
            reverted: false,
            promoted: false,
            old_ended: false,
            log: Vec::new(),
            now: Duration::ZERO,
        };
        world.table = world.weights();
        world
    }

    fn is_routed(&self, id: &InstanceId) -> bool {
        self.slots.iter().any(|slot| slot.routed && [&slot.incoming, &slot.outgoing].contains(&&Some(id.clone())))
    }

    fn is_new(id: &InstanceId) -> bool {
        id.as_str().starts_with("d2") && !id.as_str().contains("-r")
    }

    /// As `fleet::routes` gives them.
    fn weights(&self) -> BTreeMap<InstanceId, u32> {
        let serving = self.duties.iter().filter(|(id, duty)| **duty == Duty::Serving && self.routed_place(id));
        let chosen: Vec<_> = serving.map(|(id, _)| id.clone()).filter(|id| self.ready.contains(id)).collect();
        let new = chosen.iter().filter(|id| Self::is_new(id)).count();
        let (old, new) = self.share.map_or((1, 1), |percent| shares(chosen.len() - new, new, percent));
        chosen.into_iter().map(|id| (id.clone(), if Self::is_new(&id) { new } else { old })).collect()
    }

    fn routed_place(&self, id: &InstanceId) -> bool {
        self.is_routed(id) || id.as_str().contains("web-")
    }

    fn step(&mut self, event: Event, fate: Fate) {
        if let Event::Ready(id) = &event {
            self.ready.extend(self.running.get(id).cloned());
        }
        for action in self.machine.on(event, self.now) {
            self.log.push(action.clone());
            self.perform(action, fate);
        }
        self.happen(fate);
    }

    fn perform(&mut self, action: Action, fate: Fate) {
        match action {
            Action::Start { instance, .. } if fate == Fate::Bad => {
                self.pending.push(Event::StartFailed(instance, "no such file".into(), Cause::Release));
            }
            Action::Start { instance, .. } => {
                assert!(self.running.insert(instance.clone()), "{instance} started twice");
                self.duties.insert(instance.clone(), Duty::Idle);
                self.pending.extend([Event::Started(instance.clone()), Event::Ready(instance)]);
            }
            Action::Share(share) => self.share = share,
            Action::Switch { switch, duties } => {
                for (id, duty) in duties {
                    self.set_duty(id, duty);
                }
                if fate == Fate::Bad {
                    return self.pending.push(Event::RouteFailed(switch, "no proxy".into()));
                }
                self.table = self.weights();
                self.check_table();
                self.pending.push(Event::Routed(switch));
            }
            Action::SetDuty(id, duty) => self.set_duty(id, duty),
            Action::Drain(id) => {
                assert!(!self.table.contains_key(&id), "{id} drained while it is chosen");
                self.pending.push(Event::Drained(id));
            }
            Action::Stop(id) => {
                assert!(!self.table.contains_key(&id), "{id} stopped while it is chosen");
                self.old_ended |= id.as_str().starts_with("d1");
                self.running.remove(&id);
                self.ready.remove(&id);
                self.pending.push(Event::Stopped(id));
            }
            Action::SetDeadline { timer: Timer::Start(_), .. } => {}
            Action::SetDeadline { timer, at } => {
                self.now = self.now.max(at);
                self.pending.push(Event::DeadlinePassed(timer));
            }
            Action::Revert(_) => {
                assert!(!self.reverted, "a revert started a revert");
                self.reverted = true;
            }
            Action::Finish(outcome) => self.finished.push(outcome),
            Action::Watch | Action::Say(_) | Action::Stand(_) => {}
        }
    }

    fn set_duty(&mut self, id: InstanceId, duty: Duty) {
        assert!(duty != Duty::Serving || self.ready.contains(&id), "{id} is to serve and is not ready");
        self.duties.insert(id, duty);
    }

    /// Each table gives the new instances exactly a step's share, or all goes to one side.
    fn check_table(&mut self) {
        let side = |new: bool| self.table.iter().filter(move |(id, _)| Self::is_new(id) == new);
        let [old, new] = [false, true].map(|new| side(new).map(|(_, weight)| weight).sum::<u32>());
        let olds = self.slots.iter().filter(|slot| slot.routed && slot.outgoing.is_some()).count();
        if !self.reverted && !self.promoted {
            if old == 0 {
                assert!(new > 0);
                self.promoted = true;
                let wanted = self.slots.iter().filter(|slot| slot.routed && slot.incoming.is_some()).count();
                assert_eq!(side(true).count(), wanted, "all new ones are there before the old ones go");
            } else {
                assert_eq!(side(false).count(), olds, "every old one stays until the last step");
                let share = self.steps.iter().find(|&&percent| new * 100 == (old + new) * percent);
                assert!(share.is_some(), "{:?} is no step's share", self.table);
            }
        }
        if self.reverted && !self.promoted {
            assert_eq!((new, side(false).count()), (0, olds), "an abort is one switch, to the old ones alone");
        }
    }

    fn happen(&mut self, fate: Fate) {
        let new = || self.table.keys().find(|id| Self::is_new(id)).cloned();
        let event = match fate {
            Fate::Good | Fate::Bad => None,
            Fate::Crash => new().map(|id| Event::Exited(id, "exited with code 1".into())),
            Fate::Unready => new().map(|id| Event::Unready(id, "503".into())),
            Fate::Errors => new().map(|_| Event::ErrorsJumped("the canary fails".into())),
            Fate::Cancel => Some(Event::CancelAsked("cancelled".into())),
            Fate::Wish(action) => Some(wish(action)),
        };
        self.pending.extend(event);
    }

    fn run(&mut self, choices: &[(u8, Fate)]) {
        let mut choices = choices.iter().copied();
        for _ in 0..5000 {
            if self.pending.is_empty() {
                if !self.machine.standing().held || self.machine.is_finished() {
                    return;
                }
                self.pending.push(wish(CanaryAction::Resume));
            }
            let (pick, fate) = choices.next().unwrap_or((0, Fate::Good));
            let event = self.next_event(usize::from(pick));
            self.step(event, fate);
        }
        panic!("no end in sight: {:?}", self.machine);
    }

    /// Events of one instance keep their order; others may overtake each other. The watch ends last.
    fn next_event(&mut self, pick: usize) -> Event {
        let urgent: Vec<usize> = (0..self.pending.len())
            .filter(|&at| self.pending[at] != Event::DeadlinePassed(Timer::Watch))
            .filter(|&at| {
                let of = |at: usize| about(&self.pending[at]);
                of(at).is_none() || !(0..at).any(|earlier| of(earlier) == of(at))
            })
            .collect();
        let at = urgent.get(pick % urgent.len().max(1)).copied().unwrap_or(0);
        self.pending.remove(at)
    }
}

fn about(event: &Event) -> Option<&InstanceId> {
    match event {
        Event::Started(id) | Event::StartFailed(id, ..) | Event::Ready(id) | Event::Unready(id, _) => Some(id),
        Event::Exited(id, _) | Event::TakenAway(id, _) | Event::Drained(id) | Event::Stopped(id) => Some(id),
        _ => None,
    }
}

fn names(ids: &BTreeSet<InstanceId>) -> Vec<&str> {
    ids.iter().map(InstanceId::as_str).collect()
}

fn shop() -> Vec<Slot> {
    let web = (1..=4).map(|number| slot("web", number, true, true, true));
    std::iter::once(slot("worker", 1, false, true, true)).chain(web).collect()
}

/// The switches so far: how many new instances each made serve.
fn switched(world: &World) -> Vec<usize> {
    let serving = |duties: &[(InstanceId, Duty)]| {
        duties.iter().filter(|(id, duty)| *duty == Duty::Serving && World::is_new(id)).count()
    };
    let switch = |action: &Action| match action {
        Action::Switch { duties, .. } => Some(serving(duties)),
        _ => None,
    };
    world.log.iter().filter_map(switch).collect()
}

#[test]
fn a_good_one_takes_step_after_step() {
    let mut world = World::new(shop(), &[10, 50]);
    world.run(&[]);
    assert_eq!(world.finished, [Outcome::Succeeded]);
    assert_eq!(names(&world.running), ["d2-web-1", "d2-web-2", "d2-web-3", "d2-web-4", "d2-worker-1"]);
    assert_eq!(switched(&world), [1, 2, 5], "as many as each step needs, the worker at the last");
}

#[test]
fn each_routed_service_has_as_many_as_its_own_number_needs() {
    let service = |name: &'static str, instances: u32| (1..=instances).map(move |n| slot(name, n, true, true, true));
    let slots: Vec<Slot> = service("api", 2).chain(service("web", 4)).collect();
    let canary = Canary::new(slots, policy(), course(&[10, 50]));
    let needed = |step: usize| canary.needed(step).map(|fresh| fresh.id.as_str()).collect::<Vec<_>>();
    assert_eq!(needed(0), ["d2-api-1", "d2-web-1"]);
    assert_eq!(needed(1), ["d2-api-1", "d2-web-1", "d2-web-2"]);
    assert_eq!(needed(2).len(), 6);
}

#[test]
fn one_that_fails_its_comparison_leaves_the_old_ones_untouched() {
    let mut world = World::new(shop(), &[10, 50]);
    let steps: Vec<(u8, Fate)> = std::iter::repeat_n((0, Fate::Good), 3).chain([(0, Fate::Errors)]).collect();
    world.run(&steps);
    let Outcome::Undone { failure, left } = &world.finished[0] else { panic!("{:?}", world.finished) };
    assert_eq!((failure.why.as_str(), failure.cause, left.len()), ("the canary fails", Cause::Release, 0));
    assert!(!world.old_ended);
    assert_eq!(switched(&world), [1, 0], "there and back: {:?}", world.log);
    assert_eq!(names(&world.running), ["d1-web-1", "d1-web-2", "d1-web-3", "d1-web-4", "d1-worker-1"]);
}

/// A canary at its first pause, which began at second 1.
fn pausing() -> Canary {
    let slots = vec![slot("web", 1, true, true, true), slot("web", 2, true, true, true)];
    let mut canary = Canary::new(slots, policy(), course(&[10, 50]));
    let new = InstanceId::new(DeploymentId(2), &web(), 1, 0);
    canary.on(Event::Begin, Duration::ZERO);
    canary.on(Event::Started(new.clone()), Duration::ZERO);
    canary.on(Event::Ready(new), Duration::ZERO);
    let actions = canary.on(Event::Routed(Switch(1)), Duration::from_secs(1));
    let over = Action::SetDeadline { timer: Timer::Pause(1), at: Duration::from_secs(61) };
    assert!(actions.contains(&over), "{actions:?}");
    canary
}

#[test]
fn one_that_alone_serves_is_left_when_all_is_undone() {
    for undo in [wish(CanaryAction::Abort), Event::CancelAsked("no".into()), Event::ErrorsJumped("bad".into())] {
        let mut canary = pausing();
        let new = InstanceId::new(DeploymentId(2), &web(), 1, 0);
        canary.set_alone(BTreeSet::from([new.clone()]));
        let actions = canary.on(undo, Duration::from_secs(2));
        let of_new = |duties: &[(InstanceId, Duty)]| duties.iter().any(|(id, _)| *id == new);
        let is_switched =
            |a: &Action| matches!(a, Action::Switch { duties, .. } if !of_new(duties) && duties.len() == 2);
        assert!(actions.iter().any(is_switched), "{actions:?}");
        let actions = canary.on(Event::Routed(Switch(2)), Duration::from_secs(3));
        assert!(!actions.iter().any(|a| matches!(a, Action::Stop(_) | Action::Drain(_))), "{actions:?}");
        let Some(Action::Finish(Outcome::Undone { left, .. })) = actions.last() else { panic!("{actions:?}") };
        assert!(left[0].starts_with("d2-web-1 serves until"), "{left:?}");
    }
}

#[test]
fn one_that_a_person_holds_waits_and_goes_on_with_what_was_left() {
    let mut canary = pausing();
    canary.on(wish(CanaryAction::Pause), Duration::from_secs(41));
    assert_eq!(canary.refuses(CanaryAction::Pause), Some("it is paused already"));
    assert_eq!(canary.on(Event::DeadlinePassed(Timer::Pause(1)), Duration::from_secs(61)), []);
    assert_eq!(canary.standing(), Standing { step: 0, share: 10, held: true });
    let actions = canary.on(wish(CanaryAction::Resume), Duration::from_secs(1000));
    let over = Action::SetDeadline { timer: Timer::Pause(2), at: Duration::from_secs(1020) };
    assert!(actions.contains(&over), "{actions:?}");
    assert_eq!(canary.on(Event::DeadlinePassed(Timer::Pause(1)), Duration::from_secs(1001)), [], "of the time before");
    canary.on(Event::DeadlinePassed(Timer::Pause(2)), Duration::from_secs(1020));
    assert_eq!(canary.standing(), Standing { step: 1, share: 10, held: false });
}

#[test]
fn promoting_goes_to_the_last_step_at_once() {
    let mut canary = pausing();
    canary.on(wish(CanaryAction::Pause), Duration::from_secs(2));
    let actions = canary.on(wish(CanaryAction::Promote), Duration::from_secs(3));
    assert!(actions.contains(&Action::Stand(Standing { step: 2, share: 10, held: false })), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Start { slot: 2, .. })), "{actions:?}");
    assert_eq!(canary.refuses(CanaryAction::Promote), Some("it is at its last step already"));
    assert_eq!(canary.refuses(CanaryAction::Abort), None, "the old ones are all there");
}

#[test]
fn one_that_was_interrupted_goes_on_at_its_step() {
    let slots: Vec<Slot> = (1..=4).map(|number| slot("web", number, true, true, true)).collect();
    let standing = Standing { step: 1, share: 50, held: true };
    let mut canary = Canary::resumed(slots, policy(), course(&[10, 50]), standing);
    let mut actions = canary.on(Event::Begin, Duration::ZERO);
    for number in 1..=2 {
        let id = InstanceId::new(DeploymentId(2), &web(), number, 0);
        assert!(actions.iter().any(|a| matches!(a, Action::Start { instance, .. } if *instance == id)), "{actions:?}");
        canary.on(Event::Started(id.clone()), Duration::ZERO);
        actions = canary.on(Event::Ready(id), Duration::ZERO);
    }
    assert_eq!(actions[0], Action::Share(Some(50)), "{actions:?}");
    let actions = canary.on(Event::Routed(Switch(1)), Duration::ZERO);
    assert!(canary.is_pausing() && !actions.iter().any(|a| matches!(a, Action::SetDeadline { .. })), "{actions:?}");
    let failed = canary.on(Event::ErrorsJumped("bad".into()), Duration::ZERO);
    assert!(matches!(&failed[2], Action::Switch { duties, .. } if duties.iter().any(|(_, d)| *d == Duty::Draining)));
}

#[test]
fn one_that_is_undone_as_soon_as_it_is_resumed_takes_out_all_that_had_requests() {
    let slots: Vec<Slot> = (1..=4).map(|number| slot("web", number, true, true, true)).collect();
    let standing = Standing { step: 1, share: 50, held: false };
    let mut canary = Canary::resumed(slots, policy(), course(&[10, 50]), standing);
    canary.on(Event::Begin, Duration::ZERO);
    let actions = canary.on(wish(CanaryAction::Abort), Duration::ZERO);
    let drains = |duties: &[(InstanceId, Duty)], number| {
        duties.contains(&(InstanceId::new(DeploymentId(2), &web(), number, 0), Duty::Draining))
    };
    let is_switched = |a: &Action| matches!(a, Action::Switch { duties, .. } if drains(duties, 1) && drains(duties, 2));
    assert!(actions.iter().any(is_switched), "only the first one was started anew: {actions:?}");
}

#[test]
fn one_that_was_interrupted_at_its_last_step_leaves_the_way_back_to_a_plan() {
    // Of place 1 the old one has ended.
    let slots = vec![slot("web", 1, true, true, false), slot("web", 2, true, true, true)];
    let standing = Standing { step: 2, share: 50, held: false };
    let mut canary = Canary::resumed(slots, policy(), course(&[10, 50]), standing);
    canary.on(Event::Begin, Duration::ZERO);
    let first = InstanceId::new(DeploymentId(2), &web(), 1, 0);
    let actions = canary.on(Event::Exited(first, "exited with code 1".into()), Duration::ZERO);
    assert!(matches!(actions.as_slice(), [Action::Revert(_), Action::Finish(Outcome::TurnBack(_))]), "{actions:?}");
}

#[test]
fn only_what_shares_requests_is_a_canary() {
    assert!(Canary::fits(&shop()));
    assert!(!Canary::fits(&[slot("web", 1, true, true, false)]), "nothing to compare with");
    assert!(!Canary::fits(&[slot("worker", 1, false, true, true)]), "no requests");
}

fn any_slots() -> impl Strategy<Value = Vec<Slot>> {
    let kinds = prop_oneof![3 => Just((true, true)), 1 => Just((true, false)), 1 => Just((false, true))];
    let web = prop::collection::vec(kinds.clone(), 0..5);
    let worker = prop::collection::vec(kinds, 0..3);
    (web, worker).prop_map(|(web, worker)| {
        let mut slots = vec![slot("web", 1, true, true, true)];
        slots.extend(web.into_iter().zip(2..).map(|((new, old), number)| slot("web", number, true, new, old)));
        slots.extend(worker.into_iter().zip(1..).map(|((new, old), number)| slot("worker", number, false, new, old)));
        slots
    })
}

fn any_fate() -> impl Strategy<Value = Fate> {
    let action = prop::sample::select(CanaryAction::ALL).prop_map(Fate::Wish);
    prop_oneof![
        20 => Just(Fate::Good),
        1 => Just(Fate::Bad),
        1 => Just(Fate::Crash),
        1 => Just(Fate::Unready),
        1 => Just(Fate::Errors),
        1 => Just(Fate::Cancel),
        2 => action,
    ]
}

fn any_steps() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::btree_set(1u32..100, 1..4).prop_map(|steps| steps.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever fails, is asked and in whatever order answers come: it ends, once; every table gives exactly a step's share
    /// (checked at each); everything started is live or stopped; what is aborted is never promoted.
    #[test]
    fn it_always_ends_in_order(
        slots in any_slots(),
        steps in any_steps(),
        choices in prop::collection::vec((any::<u8>(), any_fate()), 0..60),
    ) {
        let ids = |side: fn(&Slot) -> Option<&InstanceId>| slots.iter().filter_map(side).cloned().collect::<BTreeSet<_>>();
        let (old, new) = (ids(|slot| slot.outgoing.as_ref()), ids(|slot| slot.incoming.as_ref()));
        let mut world = World::new(slots.clone(), &steps);
        world.run(&choices);
        prop_assert_eq!(world.finished.len(), 1, "{:?}", world.log);
        match &world.finished[0] {
            Outcome::Succeeded => {
                prop_assert!(!world.reverted);
                prop_assert_eq!(&world.running, &new);
            }
            Outcome::Undone { left, .. } if left.is_empty() => {
                prop_assert!(world.running.is_disjoint(&new), "{:?}", world.running);
                if !world.promoted {
                    prop_assert_eq!(&world.running, &old);
                    prop_assert!(!world.old_ended);
                }
            }
            Outcome::Undone { .. } => {}
            Outcome::TurnBack(_) | Outcome::BrokenOff(_) => prop_assert!(false, "nothing was resumed or lost"),
        }
        prop_assert!(world.table.keys().all(|id| world.running.contains(id)));
    }

    /// The same events give the same actions.
    #[test]
    fn it_is_deterministic(slots in any_slots(), choices in prop::collection::vec((any::<u8>(), any_fate()), 0..60)) {
        let [mut first, mut second] = [World::new(slots.clone(), &[10, 50]), World::new(slots, &[10, 50])];
        first.run(&choices);
        second.run(&choices);
        prop_assert_eq!(first.log, second.log);
    }
}
