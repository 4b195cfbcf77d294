//! What two sides have answered, from the proxy's counts of each instance. Pure.

use std::collections::BTreeMap;

use super::judge::Window;
use crate::model::InstanceId;
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
}
