use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn slot(number: u32, routed: bool, order: Order, new: bool, old: bool) -> Slot {
    Slot {
        service: web(),
        number,
        routed,
        order,
        incoming: new.then(|| InstanceId::new(DeploymentId(2), &web(), number, 0)),
        outgoing: old.then(|| InstanceId::new(DeploymentId(1), &web(), number, 0)),
    }
}

fn policy() -> Policy {
    Policy {
        deployment: DeploymentId(2),
        watch: Duration::from_secs(60),
        services: BTreeMap::new(),
        default_start_deadline: Duration::from_secs(60),
    }
}

/// What the world does with the next thing it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// A start fails, a table is not taken, an instance never gets ready.
    Bad,
    /// It works, and a serving new instance crashes right afterwards.
    CrashAfter,
    /// It works, and somebody cancels right afterwards.
    CancelAfter,
    /// It works, and what serves is seen to answer with errors: again and again, as long as it is counted.
    ErrorsAfter,
}

/// A world of instances and one route table that does what the machine asks, and checks what it must never see.
struct World {
    machine: Rollout,
    running: BTreeSet<InstanceId>,
    ready: BTreeSet<InstanceId>,
    /// The acknowledged table.
    routed: BTreeSet<InstanceId>,
    duties: BTreeMap<InstanceId, Duty>,
    pending: Vec<Event>,
    finished: Vec<Outcome>,
    reverts: usize,
    watches: usize,
    log: Vec<Action>,
    now: Duration,
    places: usize,
    stop_first: bool,
    all_routed: bool,
}

impl World {
    fn new(slots: Vec<Slot>) -> Self {
        let old: BTreeSet<_> = slots.iter().filter_map(|s| s.outgoing.clone()).collect();
        let duties = old.iter().map(|id| (id.clone(), Duty::Serving)).collect();
        let routed_old = slots.iter().filter(|s| s.routed).filter_map(|s| s.outgoing.clone()).collect();
        Self {
            places: slots.iter().filter(|s| s.outgoing.is_some() && s.incoming.is_some()).count(),
            stop_first: slots.iter().any(|s| s.order == Order::StopFirst),
            all_routed: slots.iter().all(|s| s.routed),
            machine: Rollout::new(slots, policy()),
            running: old.clone(),
            ready: old.clone(),
            routed: routed_old,
            duties,
            pending: vec![Event::Begin],
            finished: Vec::new(),
            reverts: 0,
            watches: 0,
            log: Vec::new(),
            now: Duration::ZERO,
        }
    }

    fn step(&mut self, event: Event, fate: Fate) {
        let actions = self.machine.on(event, self.now);
        for action in actions {
            self.log.push(action.clone());
            self.perform(action, fate);
            self.check();
        }
    }

    fn perform(&mut self, action: Action, fate: Fate) {
        let bad = fate == Fate::Bad;
        match action {
            Action::Start { instance, .. } if bad => {
                self.pending.push(Event::StartFailed(instance, "no such file".into(), Cause::Release));
            }
            Action::Start { instance, .. } => {
                assert!(self.running.insert(instance.clone()), "{instance} started twice");
                self.pending.push(Event::Started(instance.clone()));
                if fate == Fate::Good {
                    self.pending.push(Event::Ready(instance));
                } else {
                    self.pending.push(Event::Exited(instance, "exited with code 1".into()));
                }
            }
            Action::Switch { switch, .. } if bad => self.pending.push(Event::RouteFailed(switch, "no proxy".into())),
            Action::Switch { switch, duties } => {
                for (id, duty) in duties {
                    self.set_duty(id, duty);
                }
                self.pending.push(Event::Routed(switch));
                self.aftermath(fate);
            }
            Action::SetDuty(id, duty) => self.set_duty(id, duty),
            Action::Drain(id) => {
                assert!(!self.routed.contains(&id), "{id} drained while it is chosen");
                self.pending.push(Event::Drained(id));
                self.aftermath(fate);
            }
            Action::Stop(id) => {
                assert!(!self.routed.contains(&id), "{id} stopped while it is chosen");
                self.running.remove(&id);
                self.ready.remove(&id);
                self.pending.push(Event::Stopped(id));
                self.aftermath(fate);
            }
            Action::SetDeadline { timer, at } => {
                if timer == Timer::Watch || matches!(timer, Timer::Route(_)) {
                    self.now = self.now.max(at);
                    self.pending.push(Event::DeadlinePassed(timer));
                }
            }
            Action::Watch => self.watches += 1,
            Action::Revert(_) => self.reverts += 1,
            Action::Say(_) => {}
            Action::Share(_) | Action::Stand(_) => panic!("{action:?} is a canary's"),
            Action::Finish(outcome) => self.finished.push(outcome),
        }
    }

    fn set_duty(&mut self, id: InstanceId, duty: Duty) {
        if duty == Duty::Serving {
            assert!(self.ready.contains(&id), "{id} is to serve and is not ready");
            self.routed.insert(id.clone());
        } else {
            self.routed.remove(&id);
        }
        self.duties.insert(id, duty);
    }

    fn aftermath(&mut self, fate: Fate) {
        match fate {
            Fate::ErrorsAfter => {
                let counted = || Event::ErrorsJumped("40 of 100 requests were answered with an error".into());
                self.pending.extend([counted(), counted()]);
            }
            Fate::CancelAfter => self.pending.push(Event::CancelAsked("cancelled by ada".into())),
            Fate::CrashAfter => {
                let new = self.routed.iter().find(|id| id.as_str().starts_with("d2")).cloned();
                self.pending.extend(new.map(|id| Event::Exited(id, "exited with code 1".into())));
            }
            _ => {}
        }
    }

    /// What must hold at every moment.
    fn check(&self) {
        assert!(self.reverts <= 1, "a revert started a revert");
        assert!(self.finished.len() <= 1);
        let floor = if self.stop_first { self.places.saturating_sub(1) } else { self.places };
        if self.all_routed && self.reverts == 0 {
            assert!(self.routed.len() >= floor, "only {:?} of {} are chosen", self.routed, self.places);
        }
    }

    /// Runs to the end, taking the pending events in an order and with fates that `choices` picks.
    fn run(&mut self, choices: &[(u8, Fate)]) {
        let mut choices = choices.iter().copied();
        let mut steps = 0;
        while !self.pending.is_empty() {
            steps += 1;
            assert!(steps < 5000, "no end in sight: {:?}", self.machine);
            let (pick, fate) = choices.next().unwrap_or((0, Fate::Good));
            let event = self.next_event(usize::from(pick));
            if let Event::Ready(id) = &event {
                self.ready.extend(self.running.get(id).cloned());
            }
            self.step(event, fate);
        }
    }

    /// Events of one instance keep their order; others may overtake each other. The watch ends last.
    fn next_event(&mut self, pick: usize) -> Event {
        let urgent: Vec<usize> = (0..self.pending.len())
            .filter(|&i| self.pending[i] != Event::DeadlinePassed(Timer::Watch))
            .filter(|&i| {
                !(0..i).any(|earlier| {
                    about(&self.pending[earlier]) == about(&self.pending[i]) && about(&self.pending[i]).is_some()
                })
            })
            .collect();
        let index = urgent.get(pick % urgent.len().max(1)).copied().unwrap_or(0);
        self.pending.remove(index)
    }
}

fn about(event: &Event) -> Option<&InstanceId> {
    match event {
        Event::Started(id) | Event::StartFailed(id, ..) | Event::Ready(id) | Event::Unready(id, _) => Some(id),
        Event::Exited(id, _) | Event::TakenAway(id, _) | Event::Drained(id) | Event::Stopped(id) => Some(id),
        _ => None,
    }
}

fn slots(n: u32, order: Order) -> Vec<Slot> {
    (1..=n).map(|number| slot(number, true, order, true, true)).collect()
}

fn names(ids: &BTreeSet<InstanceId>) -> Vec<&str> {
    ids.iter().map(InstanceId::as_str).collect()
}

#[test]
fn a_good_release_takes_every_place() {
    let mut world = World::new(slots(3, Order::StartFirst));
    world.run(&[]);
    assert_eq!(world.finished, [Outcome::Succeeded]);
    assert_eq!(names(&world.running), ["d2-web-1", "d2-web-2", "d2-web-3"]);
    assert_eq!(world.routed, world.running);
}

#[test]
fn one_that_exits_at_once_leaves_the_old_ones_serving() {
    let mut world = World::new(slots(3, Order::StartFirst));
    world.run(&[(0, Fate::CrashAfter)]);
    let Outcome::Undone { failure, left } = &world.finished[0] else { panic!("{:?}", world.finished) };
    assert_eq!(failure.why, "web-1 (d2-web-1) exited with code 1");
    assert!(left.is_empty());
    assert_eq!(names(&world.running), ["d1-web-1", "d1-web-2", "d1-web-3"]);
    assert!(!world.log.iter().any(|a| matches!(a, Action::Switch { .. })), "no table was touched");
}

#[test]
fn one_that_is_never_ready_is_ended_by_its_deadline() {
    let mut rollout = Rollout::new(slots(1, Order::StartFirst), policy());
    rollout.on(Event::Begin, Duration::ZERO);
    let new = InstanceId::new(DeploymentId(2), &web(), 1, 0);
    let actions = rollout.on(Event::Started(new.clone()), Duration::from_secs(1));
    let timer = Timer::Start(new.clone());
    assert_eq!(actions, [Action::SetDeadline { timer: timer.clone(), at: Duration::from_secs(61) }]);
    let actions = rollout.on(Event::DeadlinePassed(timer), Duration::from_secs(61));
    assert!(matches!(&actions[0], Action::Revert(f) if f.why.contains("not ready in time")), "{actions:?}");
    assert!(actions.contains(&Action::Stop(new)));
}

#[test]
fn a_crash_in_the_watch_puts_every_place_back() {
    let mut world = World::new(slots(2, Order::StartFirst));
    world.machine.policy.watch = Duration::from_secs(1);
    world.pending.clear();
    let mut queue = vec![Event::Begin];
    while let Some(event) = queue.pop() {
        if let Event::Ready(id) = &event {
            world.ready.insert(id.clone());
        }
        world.step(event, Fate::Good);
        queue.extend(world.pending.drain(..).filter(|e| *e != Event::DeadlinePassed(Timer::Watch)).rev());
    }
    assert_eq!(world.watches, 1);
    let crash = Event::Exited(InstanceId::new(DeploymentId(2), &web(), 2, 0), "exited with code 137".into());
    world.pending = vec![crash];
    world.run(&[]);
    assert!(matches!(&world.finished[0], Outcome::Undone { left, .. } if left.is_empty()));
    assert_eq!(names(&world.running), ["d2-web-1-r1", "d2-web-2-r1"]);
    assert_eq!(world.routed, world.running);
}

#[test]
fn errors_of_the_first_new_one_leave_the_others_untouched() {
    let mut rollout = Rollout::new(slots(3, Order::StartFirst), policy());
    let [first, old] = [2, 1].map(|deployment| InstanceId::new(DeploymentId(deployment), &web(), 1, 0));
    rollout.on(Event::Begin, Duration::ZERO);
    rollout.on(Event::Started(first.clone()), Duration::ZERO);
    rollout.on(Event::Ready(first.clone()), Duration::ZERO);
    rollout.on(Event::Routed(Switch(1)), Duration::ZERO);
    let actions = rollout.on(Event::ErrorsJumped("12 of 12 failed".into()), Duration::from_secs(1));
    let duties = |id: &InstanceId| {
        let mut all = actions.iter().filter_map(|a| match a {
            Action::Switch { duties, .. } => Some(duties),
            _ => None,
        });
        all.find_map(|duties| duties.iter().find(|(of, _)| of == id).map(|(_, duty)| *duty))
    };
    assert!(
        matches!(&actions[0], Action::Revert(f) if f.cause == Cause::Release && f.instance.is_none()),
        "{actions:?}"
    );
    assert_eq!((duties(&old), duties(&first)), (Some(Duty::Serving), Some(Duty::Draining)), "{actions:?}");
    let harms = |a: &&Action| match a {
        Action::Stop(id) => id.as_str().starts_with("d1"),
        Action::Start { .. } => true,
        _ => false,
    };
    assert_eq!(actions.iter().find(harms), None, "{actions:?}");
}

#[test]
fn a_place_that_cannot_be_restored_is_said_and_keeps_what_serves() {
    let mut world = World::new(slots(1, Order::StartFirst));
    // Switch, drain and stop well; then somebody cancels, and every restart of the old release fails.
    let mut choices = vec![(0, Fate::Good); 6];
    choices.push((0, Fate::CancelAfter));
    choices.extend([(0, Fate::Bad); 40]);
    world.run(&choices);
    if let Some(Outcome::Undone { left, .. }) = world.finished.first() {
        assert!(left.is_empty() || left[0].contains("could not be restored after 3 attempts"), "{left:?}");
        assert_eq!(world.routed.len(), 1, "{:?}", world.log);
    }
}

#[test]
fn a_proxy_that_does_not_answer_is_waited_for_a_minute_however_long_each_attempt_takes() {
    let mut rollout = Rollout::new(slots(1, Order::StartFirst), policy());
    let new = InstanceId::new(DeploymentId(2), &web(), 1, 0);
    for event in [Event::Begin, Event::Started(new.clone()), Event::Ready(new.clone()), Event::Routed(Switch(1))] {
        rollout.on(event, Duration::ZERO);
    }
    let mut now = Duration::from_secs(1);
    let mut actions = rollout.on(Event::Exited(new, "exited with code 1".into()), now);
    while !actions.iter().any(|action| matches!(action, Action::Finish(_))) {
        now += Duration::from_secs(5);
        assert!(now < Duration::from_secs(90), "it never ends");
        actions = rollout.on(Event::RouteFailed(Switch(2), "no answer".into()), now);
        assert!(!actions.iter().any(|action| matches!(action, Action::Stop(_))), "it may still get requests");
    }
    let ended = actions.into_iter().find_map(|action| match action {
        Action::Finish(Outcome::Undone { left, .. }) => Some(left),
        _ => None,
    });
    assert!(now >= Duration::from_secs(60) && ended.is_some_and(|left| left[0].contains("did not take")), "{now:?}");
}

#[test]
fn stopping_first_never_has_both() {
    let mut world = World::new(slots(3, Order::StopFirst));
    world.run(&[]);
    assert_eq!(world.finished, [Outcome::Succeeded]);
    let stop = world.log.iter().position(|a| matches!(a, Action::Stop(id) if id.as_str() == "d1-web-1"));
    let start = world.log.iter().position(|a| matches!(a, Action::Start { slot: 1, .. }));
    assert!(stop < start);
}

fn any_slots() -> impl Strategy<Value = Vec<Slot>> {
    let order = prop_oneof![Just(Order::StartFirst), Just(Order::StopFirst)];
    let kinds = prop_oneof![Just((true, true)), Just((true, true)), Just((true, false)), Just((false, true))];
    (order, any::<bool>(), prop::collection::vec(kinds, 0..6)).prop_map(|(order, routed, kinds)| {
        let numbered = kinds.into_iter().zip(1..);
        numbered.map(|((new, old), number)| slot(number, routed, order, new, old)).collect()
    })
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Good),
        1 => Just(Fate::Bad),
        1 => Just(Fate::CrashAfter),
        1 => Just(Fate::CancelAfter),
        1 => Just(Fate::ErrorsAfter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever fails and in whatever order answers come: it ends, once; everything started is live or stopped;
    /// no serving instance was ever not ready; places never fall below their floor (checked at every action).
    #[test]
    fn it_always_ends_in_order(slots in any_slots(), choices in prop::collection::vec((any::<u8>(), any_fate()), 0..80)) {
        let new: BTreeSet<_> = slots.iter().filter_map(|s| s.incoming.clone()).collect();
        let places: Vec<u32> = slots.iter().filter(|s| s.outgoing.is_some()).map(|s| s.number).collect();
        let mut world = World::new(slots);
        world.run(&choices);
        prop_assert_eq!(world.finished.len(), 1, "{:?}", world.log);
        match &world.finished[0] {
            Outcome::Succeeded => prop_assert_eq!(&world.running, &new),
            Outcome::Undone { left, .. } if left.is_empty() => {
                // Every place that had an old instance has it, or one that restores it; nothing new is left.
                let back: Vec<u32> = world.running.iter().map(number_of).collect();
                let mut back_sorted = back.clone();
                back_sorted.sort_unstable();
                prop_assert_eq!(back_sorted, places);
                prop_assert!(world.running.iter().all(|id| !new.contains(id)));
            }
            Outcome::TurnBack(_) | Outcome::BrokenOff(_) => prop_assert!(false, "nothing was resumed or lost"),
            Outcome::Undone { .. } => {}
        }
        prop_assert!(world.routed.is_subset(&world.running));
    }

    /// The same events give the same actions.
    #[test]
    fn it_is_deterministic(slots in any_slots(), choices in prop::collection::vec((any::<u8>(), any_fate()), 0..80)) {
        let mut first = World::new(slots.clone());
        let mut second = World::new(slots);
        first.run(&choices);
        second.run(&choices);
        prop_assert_eq!(first.log, second.log);
    }
}

/// The place's number in `d2-web-3` and `d2-web-3-r1`.
fn number_of(id: &InstanceId) -> u32 {
    id.as_str().split('-').nth(2).unwrap().parse().unwrap()
}

#[test]
fn a_resumed_rollout_leaves_the_way_back_to_whoever_plans_it() {
    // Place 1 was switched before the crash: nobody knows any more what had been there.
    let slots = vec![
        slot(1, true, Order::StartFirst, true, false),
        slot(2, true, Order::StartFirst, true, true),
        slot(3, true, Order::StartFirst, true, true),
    ];
    let mut rollout = Rollout::resumed(slots, policy());
    rollout.on(Event::Begin, Duration::ZERO);
    let first = InstanceId::new(DeploymentId(2), &web(), 1, 0);
    rollout.on(Event::Started(first.clone()), Duration::ZERO);
    let actions = rollout.on(Event::Exited(first.clone(), "exited with code 1".into()), Duration::ZERO);
    let [Action::Revert(recorded), Action::Finish(Outcome::TurnBack(failure))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!((recorded, failure.instance.as_ref()), (failure, Some(&first)));
    assert!(rollout.on(Event::CancelAsked("cancelled".into()), Duration::ZERO).is_empty());
}

#[test]
fn a_rollout_whose_engine_went_away_is_broken_off_and_undoes_nothing() {
    let mut rollout = Rollout::new(slots(2, Order::StartFirst), policy());
    rollout.on(Event::Begin, Duration::ZERO);
    let actions = rollout.on(Event::EngineLost("gone".into()), Duration::from_secs(1));
    assert_eq!(actions, [Action::Finish(Outcome::BrokenOff("gone".into()))]);
    let late = Event::Exited(InstanceId::new(DeploymentId(2), &web(), 1, 0), "exited with code 137".into());
    assert_eq!(rollout.on(late, Duration::from_secs(2)), []);
}

#[test]
fn an_undoing_whose_engine_went_away_is_broken_off_too() {
    let mut rollout = Rollout::new(slots(1, Order::StartFirst), policy());
    rollout.on(Event::Begin, Duration::ZERO);
    rollout.on(Event::CancelAsked("cancelled".into()), Duration::from_secs(1));
    assert!(rollout.is_reverting());
    let actions = rollout.on(Event::EngineLost("gone".into()), Duration::from_secs(2));
    assert_eq!(actions, [Action::Finish(Outcome::BrokenOff("gone".into()))]);
}
