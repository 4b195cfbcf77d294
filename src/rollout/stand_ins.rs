//! What a failed deployment left behind and has passed its gate, where nobody of the live release serves: it stands in until
//! somebody does. Pure.
//!
//! It is none of the live instances: no plan knows it, and in the end it goes. Until then it is kept up as they are, also when
//! it has ended. What the proxy's table does not hold and the journal does not name has not passed its gate, or was taken
//! out, and never stands in.

use super::plan::Current;
use crate::model::InstanceId;

/// Those of `left` that serve on, or are to again: proven, in a place where none of `live` is that runs and that the table
/// `holds`. Of those that have ended it is the newest, where no other one is left that runs.
pub fn stand_ins(
    current: &[Current],
    left: &[InstanceId],
    live: &[InstanceId],
    holds: impl Fn(&InstanceId) -> bool,
    is_named: impl Fn(&InstanceId) -> bool,
) -> Vec<InstanceId> {
    let serves = |c: &Current| c.running && holds(&c.id);
    let is_taken = |place: &Current| {
        let here = |c: &&Current| (&c.service, c.slot) == (&place.service, place.slot);
        current.iter().filter(here).any(|c| live.contains(&c.id) && serves(c))
    };
    let may = |c: &&Current| left.contains(&c.id) && (holds(&c.id) || is_named(&c.id)) && !is_taken(c);
    let is_better = |c: &Current, other: &Current| {
        (&c.service, c.slot) == (&other.service, other.slot)
            && (c.running, c.deployment, &c.id) > (other.running, other.deployment, &other.id)
    };
    let candidates: Vec<&Current> = current.iter().filter(may).collect();
    let is_needed = |c: &&&Current| c.running || !candidates.iter().any(|better| is_better(better, c));
    candidates.iter().filter(is_needed).map(|c| c.id.clone()).collect()
}

/// How long one stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until somebody else serves in its place.
    ItsPlaceIsFilled,
    /// Until anybody else of its service serves: it was a canary, and the old instances were to answer all requests.
    AnyPlaceIsFilled,
}

/// What is said of a new instance that a canary leaves as it is undone.
pub fn serves_on(id: &InstanceId) -> String {
    format!("{id} serves until an instance of the live release does: none of its service is ready")
}

/// Whether one in `place` may go: another one is ready and serves there (of a canary's: anywhere), or there is no such
/// place among the `wanted` and all of these are `filled`. `None`: nobody knows yet what is wanted.
pub fn may_go(until: Until, place: u32, wanted: Option<u32>, filled: &[u32]) -> bool {
    if until == Until::AnyPlaceIsFilled && !filled.is_empty() {
        return true;
    }
    let is_extra = |wanted: u32| place > wanted && (1..=wanted).all(|place| filled.contains(&place));
    filled.contains(&place) || wanted.is_some_and(is_extra)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeploymentId;

    fn instance(deployment: i64, slot: u32, running: bool) -> Current {
        let (deployment, service) = (DeploymentId(deployment), "web".parse().unwrap());
        let id = InstanceId::new(deployment, &service, slot, 0);
        Current { id, service, slot, settings: None, deployment, running, proven: running, ready: running }
    }

    #[test]
    fn only_what_serves_where_nobody_else_does_stands_in() {
        let current = [
            instance(1, 1, true),  // live, and routed
            instance(2, 1, true),  // routed as well
            instance(1, 2, false), // live, and ended
            instance(2, 2, true),  // routed
            instance(2, 3, true),  // not routed
            instance(2, 4, false), // routed, and ended
            instance(3, 4, false), // ended as well, and not routed, but on record
            instance(3, 6, false), // the same
            instance(2, 6, true),  // routed
            instance(2, 7, false), // ended, and not routed
            instance(1, 5, true),  // live, and not routed
            instance(2, 5, true),  // routed
        ];
        let of = |deployment| -> Vec<InstanceId> {
            current.iter().filter(|c| c.deployment == DeploymentId(deployment)).map(|c| c.id.clone()).collect()
        };
        let routed = ["d1-web-1", "d2-web-1", "d1-web-2", "d2-web-2", "d2-web-4", "d2-web-5", "d2-web-6"];
        let is_routed = |id: &InstanceId| routed.contains(&id.as_str());
        let standing = stand_ins(&current, &[of(2), of(3)].concat(), &of(1), is_routed, |id| of(3).contains(id));
        let standing: Vec<_> = standing.iter().map(InstanceId::as_str).collect();
        assert_eq!(standing, ["d2-web-2", "d3-web-4", "d2-web-6", "d2-web-5"]);
    }

    #[test]
    fn it_goes_when_its_place_is_filled_or_none_of_those_that_are_wanted_is_missing() {
        let may_go = |place, wanted, filled: &[u32]| may_go(Until::ItsPlaceIsFilled, place, wanted, filled);
        assert!(!may_go(1, None, &[]) && !may_go(1, Some(2), &[2]));
        assert!(may_go(1, Some(2), &[1]) && may_go(1, None, &[1]));
        assert!(!may_go(3, Some(2), &[1]) && may_go(3, Some(2), &[2, 1]));
        assert!(may_go(1, Some(0), &[]), "nobody is to come");
    }

    #[test]
    fn a_canary_goes_when_anybody_of_the_live_release_serves() {
        let may_go = |wanted, filled: &[u32]| may_go(Until::AnyPlaceIsFilled, 1, wanted, filled);
        assert!(!may_go(None, &[]) && !may_go(Some(2), &[]));
        assert!(may_go(Some(2), &[2]) && may_go(Some(2), &[1]) && may_go(None, &[2]));
        assert!(may_go(Some(0), &[]), "nobody is to come");
    }
}
