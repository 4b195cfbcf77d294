//! From what runs and what should run to the ordered slots of a rollout. Used again after a crash: what was done
//! already is no longer a difference.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Order;
use crate::model::{DeploymentId, InstanceId, ServiceName, Status};

/// An instance that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// Which.
    pub id: InstanceId,
    /// Of which service.
    pub service: ServiceName,
    /// Its place, from 1.
    pub slot: u32,
    /// Digest of what it runs with; one of which that is not known is like no other.
    pub settings: Option<String>,
    /// The deployment that started it.
    pub deployment: DeploymentId,
    /// Its process runs.
    pub running: bool,
    /// It has passed its gate: it serves, or is ready now.
    pub proven: bool,
    /// It could answer now: it is ready, or trusted until its checks have spoken.
    pub ready: bool,
}

/// A service as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub service: ServiceName,
    /// Digest of what its instances run with.
    pub settings: String,
    /// How many.
    pub instances: u32,
    /// Requests are routed to it.
    pub routed: bool,
    /// New before old, or old before new.
    pub order: Order,
}

/// One place of a service, and what changes in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Of which service.
    pub service: ServiceName,
    /// Which place, from 1.
    pub number: u32,
    /// Requests are routed to it.
    pub routed: bool,
    /// New before old, or old before new.
    pub order: Order,
    /// What is to be there.
    pub incoming: Option<InstanceId>,
    /// What is there and goes.
    pub outgoing: Option<InstanceId>,
}

/// What a rollout has to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In this order, one at a time. Slots that only remove come last.
    pub slots: Vec<Slot>,
    /// These stay as they are.
    pub kept: Vec<InstanceId>,
}

/// Where a plan leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To what is wanted; instances whose settings are as wanted stay.
    Forward,
    /// To new instances everywhere (a restart).
    Renew,
    /// Back to what is wanted again: what the deployment itself started goes, also where its settings are the same,
    /// except for what it started to restore.
    Back,
}

/// Plans `deployment`.
pub fn plan(current: &[Current], wanted: &[Wanted], deployment: DeploymentId, way: Way) -> Plan {
    let back = way == Way::Back;
    let mut plan = Plan::default();
    let mut placed: BTreeSet<&InstanceId> = BTreeSet::new();
    for want in wanted {
        for number in 1..=want.instances {
            let here = || current.iter().filter(|c| c.service == want.service && c.slot == number);
            let mut fitting = here().filter(|c| c.settings.as_ref() == Some(&want.settings));
            let ours = fitting.clone().find(|c| c.deployment == deployment && is_restored(&c.id) == back);
            let goes = |c: &Current| way == Way::Renew || (back && c.deployment == deployment);
            let kept = fitting.find(|c| c.running && !goes(c));
            let old =
                here().filter(|c| ours.is_none_or(|ours| ours.id != c.id)).max_by_key(|c| (c.running, c.deployment));
            let (incoming, outgoing) = match (ours, kept) {
                // Started by an earlier life of the agent: its readiness is still to be seen.
                (Some(ours), _) => (ours.id.clone(), old),
                (None, Some(kept)) => {
                    placed.insert(&kept.id);
                    plan.kept.push(kept.id.clone());
                    continue;
                }
                (None, None) => (InstanceId::new(deployment, &want.service, number, 0), old),
            };
            placed.extend(ours.map(|c| &c.id));
            placed.extend(outgoing.map(|c| &c.id));
            plan.slots.push(Slot {
                service: want.service.clone(),
                number,
                routed: want.routed,
                order: want.order,
                incoming: Some(incoming),
                outgoing: outgoing.map(|c| c.id.clone()),
            });
        }
    }
    for extra in current.iter().filter(|c| !placed.contains(&c.id)) {
        let want = wanted.iter().find(|w| w.service == extra.service);
        plan.slots.push(Slot {
            service: extra.service.clone(),
            number: extra.slot,
            // A service that is no longer wanted may still be in the routes.
            routed: want.is_none_or(|w| w.routed),
            order: want.map_or(Order::StartFirst, |w| w.order),
            incoming: None,
            outgoing: Some(extra.id.clone()),
        });
    }
    plan
}

/// A way back on which nobody is started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Back {
    /// They only remove.
    pub slots: Vec<Slot>,
    /// These stay as they are, or are started again in their own containers.
    pub kept: Vec<InstanceId>,
    /// Started by the deployment that is undone and proven, in places where nobody else runs.
    pub stand_ins: Vec<InstanceId>,
    /// Places of the live release that stay empty.
    pub empty: Vec<Empty>,
}

/// A place in which nobody serves until an instance can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Empty {
    /// Of which service.
    pub service: ServiceName,
    /// Which place, from 1.
    pub number: u32,
    /// The new one that runs in it and goes, as it has not passed its gate.
    pub unproven: Option<InstanceId>,
}

/// A service of which no instance can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unstartable {
    /// How many instances of the live release there are to be.
    pub instances: u32,
    /// Requests are routed to it.
    pub routed: bool,
}

/// Plans the way back of `deployment` for services of which no instance can be started: an old one that is there stays, and
/// a new one goes where an old one runs. Where none does, a new one stands in that has passed its gate; one that has not
/// goes, as it must not answer a request.
pub fn back_without_starting(
    current: &[Current],
    services: &BTreeMap<ServiceName, Unstartable>,
    deployment: DeploymentId,
) -> Back {
    let mut back = Back::default();
    let is_new = |c: &Current| c.deployment == deployment && !is_restored(&c.id);
    for c in current {
        let here = current.iter().filter(|other| (&other.service, other.slot) == (&c.service, c.slot));
        let old = here.filter(|other| !is_new(other)).max_by_key(|old| (old.running, old.deployment, &old.id));
        if old.is_some_and(|old| old.id == c.id) {
            back.kept.push(c.id.clone());
        } else if is_new(c) && c.running && c.proven && !old.is_some_and(|old| old.running) {
            back.stand_ins.push(c.id.clone());
        } else {
            back.slots.push(Slot {
                service: c.service.clone(),
                number: c.slot,
                routed: services.get(&c.service).is_some_and(|service| service.routed),
                order: Order::StartFirst,
                incoming: None,
                outgoing: Some(c.id.clone()),
            });
        }
    }
    for (service, unstartable) in services {
        for number in 1..=unstartable.instances {
            let here = || current.iter().filter(|c| c.service == *service && c.slot == number);
            let stays = |c: &Current| back.kept.contains(&c.id) || back.stand_ins.contains(&c.id);
            if here().any(stays) {
                continue;
            }
            let unproven = here().find(|c| c.running).map(|c| c.id.clone());
            back.empty.push(Empty { service: service.clone(), number, unproven });
        }
    }
    back
}

/// Those that serve on when a canary is undone: of its instances the ready ones of a service of which no other one is ready
/// that a plan back to the old release keeps or replaces. Whatever else would only go is taken off the plan's slots.
pub fn left_alone(plan: &mut Plan, current: &[Current], deployment: DeploymentId) -> Vec<InstanceId> {
    let is_new = |c: &Current| c.deployment == deployment && !is_restored(&c.id);
    let Plan { slots, kept } = &plan;
    let is_wanted = |service: &ServiceName| {
        let stays = |c: &Current| c.service == *service && kept.contains(&c.id);
        current.iter().any(stays) || slots.iter().any(|slot| slot.service == *service && slot.incoming.is_some())
    };
    let is_alone = |c: &&Current| {
        let other_is_ready = current.iter().any(|other| other.service == c.service && !is_new(other) && other.ready);
        is_new(c) && c.ready && !other_is_ready && is_wanted(&c.service)
    };
    let alone = current.iter().filter(is_alone).map(|c| c.id.clone()).collect::<BTreeSet<_>>();
    // Where another one is started in its place the rollout replaces it when that is ready.
    let only_removes = |slot: &Slot| {
        slot.routed && slot.incoming.is_none() && slot.outgoing.as_ref().is_some_and(|id| alone.contains(id))
    };
    let (left, slots) = std::mem::take(&mut plan.slots).into_iter().partition(only_removes);
    plan.slots = slots;
    left.into_iter().filter_map(|slot: Slot| slot.outgoing).collect()
}

/// Which of the instances that exist are meant to be there, and which were left behind.
///
/// In each place the newest instance counts that a deployment started which succeeded (or is under way), or that was
/// started to restore the old release while a deployment was undone. What no deployment on record has started is in
/// neither: it is not ours to remove.
pub fn live_set(
    current: &[Current],
    status: impl Fn(DeploymentId) -> Option<Status>,
) -> (Vec<InstanceId>, Vec<InstanceId>) {
    let mut newest: BTreeMap<(&ServiceName, u32), &Current> = BTreeMap::new();
    let (mut under_way, mut unknown) = (Vec::new(), Vec::new());
    for instance in current {
        let counts = match status(instance.deployment) {
            Some(Status::Succeeded) => true,
            Some(status) if !status.is_terminal() => {
                under_way.push(instance.id.clone());
                continue;
            }
            Some(_) => is_restored(&instance.id),
            None => {
                unknown.push(instance.id.clone());
                continue;
            }
        };
        if !counts {
            continue;
        }
        let best = newest.entry((&instance.service, instance.slot)).or_insert(instance);
        if (instance.deployment, &instance.id) > (best.deployment, &best.id) {
            *best = instance;
        }
    }
    let mut live: Vec<InstanceId> = newest.into_values().map(|c| c.id.clone()).collect();
    live.extend(under_way);
    let left = current.iter().map(|c| c.id.clone()).filter(|id| !live.contains(id) && !unknown.contains(id)).collect();
    (live, left)
}

/// Those in whose place another one that runs gets the requests: in the middle of a rollout they wait for their turn, or
/// drain and are not to get requests again.
pub fn replaced(current: &[Current], holds: impl Fn(&InstanceId) -> bool) -> Vec<InstanceId> {
    let successors: Vec<&Current> = current.iter().filter(|c| c.running && holds(&c.id)).collect();
    let is_replaced = |c: &&Current| {
        !holds(&c.id) && successors.iter().any(|other| (&other.service, other.slot) == (&c.service, c.slot))
    };
    current.iter().filter(is_replaced).map(|c| c.id.clone()).collect()
}

/// Started to restore the old release (`…-r1`).
pub(super) fn is_restored(id: &InstanceId) -> bool {
    id.as_str()
        .rsplit_once("-r")
        .is_some_and(|(_, attempt)| !attempt.is_empty() && attempt.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    #[test]
    fn who_was_switched_away_from_is_replaced_as_long_as_the_new_one_runs() {
        let mut all = vec![current(1, 1, "a"), current(1, 2, "a"), current(2, 1, "b"), current(2, 2, "b")];
        let (old, waiting) = (all[0].id.clone(), all[3].id.clone());
        // The second place is not switched yet.
        let middle = [all[1].id.clone(), all[2].id.clone()];
        assert_eq!(replaced(&all, |id| middle.contains(id)), [old, waiting.clone()]);
        assert_eq!(replaced(&all, |_| false), [], "the proxy knows of nobody");
        all[2].running = false;
        assert_eq!(replaced(&all, |id| middle.contains(id)), [waiting], "the new one has died");
    }

    fn current(deployment: i64, slot: u32, settings: &str) -> Current {
        let deployment = DeploymentId(deployment);
        Current {
            id: InstanceId::new(deployment, &web(), slot, 0),
            service: web(),
            slot,
            settings: Some(settings.into()),
            deployment,
            running: true,
            proven: true,
            ready: true,
        }
    }

    fn wanted(instances: u32, settings: &str) -> Wanted {
        Wanted { service: web(), settings: settings.into(), instances, routed: true, order: Order::StartFirst }
    }

    fn moves(plan: &Plan) -> Vec<(Option<&str>, Option<&str>)> {
        plan.slots
            .iter()
            .map(|s| (s.incoming.as_ref().map(InstanceId::as_str), s.outgoing.as_ref().map(InstanceId::as_str)))
            .collect()
    }

    #[test]
    fn equal_settings_change_nothing() {
        let now = [current(1, 1, "a"), current(1, 2, "a")];
        let plan = plan(&now, &[wanted(2, "a")], DeploymentId(2), Way::Forward);
        assert_eq!((plan.slots.len(), plan.kept.len()), (0, 2));
    }

    #[test]
    fn other_settings_replace_place_by_place() {
        let now = [current(1, 1, "a"), current(1, 2, "a")];
        let plan = plan(&now, &[wanted(2, "b")], DeploymentId(2), Way::Forward);
        assert_eq!(moves(&plan), [(Some("d2-web-1"), Some("d1-web-1")), (Some("d2-web-2"), Some("d1-web-2"))]);
    }

    #[test]
    fn after_a_crash_only_the_rest_is_left() {
        // Place 1 is switched, place 2 has both, place 3 is untouched.
        let now = [current(2, 1, "b"), current(1, 2, "a"), current(2, 2, "b"), current(1, 3, "a")];
        let plan = plan(&now, &[wanted(3, "b")], DeploymentId(2), Way::Forward);
        let expected =
            [(Some("d2-web-1"), None), (Some("d2-web-2"), Some("d1-web-2")), (Some("d2-web-3"), Some("d1-web-3"))];
        assert_eq!(moves(&plan), expected);
    }

    #[test]
    fn scaling_keeps_what_is_there() {
        let now = [current(1, 1, "a"), current(1, 2, "a")];
        let more = plan(&now, &[wanted(3, "a")], DeploymentId(2), Way::Forward);
        assert_eq!(moves(&more), [(Some("d2-web-3"), None)]);
        let fewer = plan(&now, &[wanted(1, "a")], DeploymentId(2), Way::Forward);
        assert_eq!(moves(&fewer), [(None, Some("d1-web-2"))]);
        let none = plan(&now, &[], DeploymentId(2), Way::Forward);
        assert_eq!(none.slots.len(), 2);
    }

    #[test]
    fn a_restart_replaces_all_and_goes_on_after_a_crash() {
        let now = [current(2, 1, "a"), current(1, 2, "a")];
        let plan = plan(&now, &[wanted(2, "a")], DeploymentId(2), Way::Renew);
        assert_eq!(moves(&plan), [(Some("d2-web-1"), None), (Some("d2-web-2"), Some("d1-web-2"))]);
    }

    #[test]
    fn undoing_a_restart_removes_what_it_started() {
        let restored = Current { id: InstanceId::new(DeploymentId(2), &web(), 3, 1), ..current(2, 3, "a") };
        // Place 1 has both, in place 2 the old one is gone, place 3 is restored already.
        let now = [current(1, 1, "a"), current(2, 1, "a"), current(2, 2, "a"), restored];
        let plan = plan(&now, &[wanted(3, "a")], DeploymentId(2), Way::Back);
        let expected = [(Some("d2-web-2"), Some("d2-web-2")), (Some("d2-web-3-r1"), None), (None, Some("d2-web-1"))];
        assert_eq!(moves(&plan), expected);
    }

    #[test]
    fn what_a_failed_deployment_left_is_not_live_and_a_strangers_is_neither() {
        let restored = Current { id: InstanceId::new(DeploymentId(3), &web(), 2, 1), ..current(3, 2, "a") };
        let stranger = current(9, 1, "a");
        let now = [current(1, 1, "a"), current(3, 1, "b"), restored, current(2, 3, "a"), current(4, 3, "a"), stranger];
        let status = |id: DeploymentId| match id.0 {
            1 | 2 | 4 => Some(Status::Succeeded),
            3 => Some(Status::RolledBack),
            _ => None,
        };
        let (live, left) = live_set(&now, status);
        let names = |ids: &[InstanceId]| ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&live), ["d1-web-1", "d3-web-2-r1", "d4-web-3"]);
        assert_eq!(names(&left), ["d3-web-1", "d2-web-3"]);
    }

    #[test]
    fn a_canary_serves_on_while_no_old_one_of_its_service_is_ready() {
        let left = |now: &[Current]| {
            let mut plan = plan(now, &[wanted(2, "a")], DeploymentId(2), Way::Back);
            let left = left_alone(&mut plan, now, DeploymentId(2));
            (left.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>(), plan.slots.len())
        };
        let unready = |current: Current| Current { ready: false, ..current };
        let canary = current(2, 1, "b");
        let first_serves = [current(1, 1, "a"), unready(current(1, 2, "a")), canary.clone()];
        assert_eq!(left(&first_serves), (vec![], 1));
        let none_serves = [unready(current(1, 1, "a")), unready(current(1, 2, "a")), canary.clone()];
        assert_eq!(left(&none_serves), (vec!["d2-web-1".to_owned()], 0));
        let none_is_ready = [unready(current(1, 1, "a")), unready(current(1, 2, "a")), unready(canary.clone())];
        assert_eq!(left(&none_is_ready), (vec![], 1));
        // An old one that has ended is started anew, and takes the place of the new one when it is ready.
        let ended = |current: Current| Current { running: false, ..unready(current) };
        let first_ended = [ended(current(1, 1, "a")), unready(current(1, 2, "a")), canary];
        assert_eq!(left(&first_ended), (vec![], 2));
        let other: ServiceName = "api".parse().unwrap();
        let of_a_new_service =
            [current(1, 1, "a"), current(1, 2, "a"), Current { service: other, ..current(2, 1, "b") }];
        assert_eq!(left(&of_a_new_service), (vec![], 1), "the old release has no such service");
    }

    #[test]
    fn a_way_back_without_a_start_keeps_what_runs_and_leaves_to_the_unproven_no_place() {
        let instance = |deployment: i64, slot, restored, running| Current {
            id: InstanceId::new(DeploymentId(deployment), &web(), slot, restored),
            running,
            ..current(deployment, slot, "any")
        };
        let unproven = |slot| Current { proven: false, ..instance(2, slot, 0, true) };
        let current = [
            instance(1, 1, 0, true), // the old one is still there
            instance(2, 1, 0, true),
            instance(2, 2, 0, true),  // was switched, or is ready to be
            instance(1, 3, 0, false), // the old one has ended
            instance(2, 3, 0, true),
            instance(1, 4, 0, true), // the new one has not been started
            instance(2, 5, 0, true), // one was restored
            instance(2, 5, 1, true),
            instance(2, 6, 0, false), // the new one has ended, too
            unproven(7),              // the old one is gone
            instance(1, 8, 0, false), // the old one has ended
            unproven(8),
        ];
        // In the ninth place there is nobody at all.
        let services = BTreeMap::from([(web(), Unstartable { instances: 9, routed: true })]);
        let back = back_without_starting(&current, &services, DeploymentId(2));
        let names = |ids: &[InstanceId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(names(&back.kept), "d1-web-1 d1-web-3 d1-web-4 d2-web-5-r1 d1-web-8");
        assert_eq!(names(&back.stand_ins), "d2-web-2 d2-web-3");
        let gone: Vec<_> = back.slots.iter().filter_map(|slot| slot.outgoing.clone()).collect();
        assert_eq!(names(&gone), "d2-web-1 d2-web-5 d2-web-6 d2-web-7 d2-web-8");
        assert!(back.slots.iter().all(|slot| slot.incoming.is_none() && slot.routed));
        let empty: Vec<_> =
            back.empty.iter().map(|e| (e.number, e.unproven.as_ref().map(InstanceId::as_str))).collect();
        assert_eq!(empty, [(6, None), (7, Some("d2-web-7")), (9, None)]);
    }
}
