//! What two sides have answered, from the proxy's counts of each instance. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::judge::Window;
use super::watch::Answers;
use crate::model::InstanceId;
use crate::proxy::Counts;
use crate::proxy::control::InstanceCounts;

/// Adds up what the instances of both sides have answered since the first count.
#[derive(Debug, Default)]
pub struct Tally {
    boot: Option<String>,
    last: BTreeMap<InstanceId, InstanceCounts>,
    /// What those that are compared with have answered.
    pub old: Window,
    /// What those that are judged have answered.
    pub new: Window,
}

impl Tally {
    /// Takes in what process `boot` has counted: of an instance that it did not know at the first count, all.
    pub fn take<'a>(&mut self, boot: &str, counts: impl Iterator<Item = (&'a InstanceId, bool, InstanceCounts)>) {
        let is_first = self.boot.is_none();
        if self.boot.as_deref() != Some(boot) {
            self.last.clear();
            self.boot = Some(boot.to_owned());
        }
        for (id, is_new, counts) in counts {
            let before = self.last.insert(id.clone(), counts);
            // Counts of an instance that came back begin at zero.
            let before = before.filter(|before| before.answered <= counts.answered);
            let since = match before {
                None if is_first => Window::default(),
                None => Window::from(counts),
                Some(before) => Window::from(counts).since(&Window::from(before)),
            };
            let side = if is_new { &mut self.new } else { &mut self.old };
            *side += since;
        }
    }
}

/// What a permanent canary has answered of its production's requests. The proxy counts it as production's, and production's
/// rollouts are not to be judged by it.
#[derive(Debug, Default)]
pub struct Guests {
    boot: Option<String>,
    tally: Tally,
}

impl Guests {
    /// Takes in one more count; what the `canary`'s instances have answered since the first count of this process.
    pub fn take(&mut self, counts: &Counts, canary: &BTreeSet<InstanceId>) -> Answers {
        if self.boot.as_ref() != Some(&counts.boot) {
            *self = Self { boot: Some(counts.boot.clone()), tally: Tally::default() };
        }
        let own = counts.instances.iter().filter(|(id, _)| canary.contains(*id));
        self.tally.take(&counts.boot, own.map(|(id, counts)| (id, true, *counts)));
        Answers { requests: self.tally.new.requests, errors: self.tally.new.errors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> InstanceId {
        InstanceId::parse(text).unwrap()
    }

    fn counts(answered: u64, server_errors: u64) -> InstanceCounts {
        InstanceCounts { answered, server_errors, ..InstanceCounts::default() }
    }

    #[test]
    fn what_was_counted_before_and_by_another_process_is_told_apart() {
        let (old, new, late) = (id("d1-web-1"), id("d2-web-1"), id("d2-web-2"));
        let mut tally = Tally::default();
        tally.take("a", [(&old, false, counts(500, 50)), (&new, true, counts(3, 1))].into_iter());
        assert_eq!((tally.old, tally.new), (Window::default(), Window::default()), "from here on");
        let second = [(&old, false, counts(590, 50)), (&new, true, counts(13, 3)), (&late, true, counts(2, 0))];
        tally.take("a", second.into_iter());
        assert_eq!((tally.old.requests, tally.old.errors), (90, 0));
        assert_eq!((tally.new.requests, tally.new.errors), (12, 2), "one that came later counts from its beginning");
        // Another proxy process begins at zero, and so does an instance that came back.
        tally.take("b", [(&old, false, counts(7, 0)), (&new, true, counts(5, 1))].into_iter());
        tally.take("b", [(&old, false, counts(9, 0)), (&new, true, counts(1, 1))].into_iter());
        assert_eq!((tally.old.requests, tally.new.requests, tally.new.errors), (99, 18, 4));
    }

    #[test]
    fn what_a_canary_answered_is_known_after_it_has_gone() {
        let canary = BTreeSet::from([id("d2-web-1")]);
        let mut guests = Guests::default();
        let mut take = |boot: &str, instances: &[(&str, u64, u64)]| {
            let instances = instances.iter().map(|&(name, answered, errors)| (id(name), counts(answered, errors)));
            let counts = Counts {
                boot: boot.into(),
                apps: BTreeMap::new(),
                in_flight: BTreeMap::new(),
                instances: instances.collect(),
                queues: Vec::new(),
            };
            let Answers { requests, errors } = guests.take(&counts, &canary);
            (requests, errors)
        };
        assert_eq!(take("a", &[("d1-web-1", 500, 50), ("d2-web-1", 90, 9)]), (0, 0), "from here on");
        assert_eq!(take("a", &[("d1-web-1", 600, 90), ("d2-web-1", 100, 19)]), (10, 10));
        assert_eq!(take("a", &[("d1-web-1", 700, 90)]), (10, 10), "it left the table");
        assert_eq!(take("a", &[("d2-web-1", 5, 1)]), (15, 11), "and came back");
        assert_eq!(take("b", &[("d2-web-1", 7, 1)]), (0, 0), "another process counts from zero");
    }
}
