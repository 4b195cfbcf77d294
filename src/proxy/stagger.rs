//! When streams whose time comes to its end are closed: one after another, so that their clients do not all come back in
//! one moment. Pure.

use std::time::Instant;

/// They are closed over this part of their budget, the last one.
const LAST_PART: u32 = 5;

/// The moments, evenly spread. They are reckoned from one another and not from when somebody looks, so that who is late, or
/// is woken for something else, moves none of them.
#[derive(Debug, Clone, Copy)]
pub struct Stagger {
    started: Instant,
    /// When the newest of those that were closed was due.
    newest: Option<Instant>,
}

impl Stagger {
    /// For a budget that began then.
    pub fn new(started: Instant) -> Self {
        Self { started, newest: None }
    }

    /// When one more of `open` streams is due, the last of them at the `limit`; without any, that.
    pub fn next(&self, limit: Instant, open: usize) -> Instant {
        let begins = || limit - limit.saturating_duration_since(self.started) / LAST_PART;
        let newest = self.newest.unwrap_or_else(begins).min(limit);
        newest + (limit - newest) / u32::try_from(open).unwrap_or(u32::MAX).max(1)
    }

    /// How many of `open` streams are due by `now`. They count as closed.
    pub fn take_due(&mut self, limit: Instant, open: usize, now: Instant) -> usize {
        let mut left = open;
        while left > 0 {
            let next = self.next(limit, left);
            if next > now {
                break;
            }
            self.newest = Some(next);
            left -= 1;
        }
        open - left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However often, and however late, somebody looks.
        #[test]
        fn they_are_spread_evenly_over_the_last_part(
            streams in 1..3_000_usize,
            budget in 1..600_000_u64,
            looks in prop::collection::vec(0..700_000_u64, 1..60),
        ) {
            let started = Instant::now();
            let limit = started + Duration::from_millis(budget);
            let begins = limit - (limit - started) / LAST_PART;
            let (mut stagger, mut closed) = (Stagger::new(started), 0);
            let mut looks = looks;
            looks.sort_unstable();
            for look in looks {
                let now = started + Duration::from_millis(look);
                closed += stagger.take_due(limit, streams - closed, now);
                let passed = now.saturating_duration_since(begins).min(limit - begins);
                let due = passed.as_secs_f64() / (limit - begins).as_secs_f64() * streams as f64;
                prop_assert!((closed as f64 - due).abs() <= 1.01, "{closed} of {streams} closed, {due} due");
            }
            stagger.take_due(limit, streams - closed, limit);
            prop_assert!(stagger.next(limit, 1) <= limit);
        }
    }

    #[test]
    fn those_that_end_by_themselves_give_the_others_time_and_a_shorter_budget_takes_it() {
        let started = Instant::now();
        let at = |ms: u64| started + Duration::from_millis(ms);
        let mut stagger = Stagger::new(started);
        assert_eq!(stagger.next(at(1000), 4), at(850));
        assert_eq!(stagger.next(at(500), 4), at(425), "nothing was closed yet");
        assert_eq!(stagger.take_due(at(1000), 4, at(849)), 0);
        assert_eq!(stagger.take_due(at(1000), 4, at(855)), 1);
        assert_eq!(stagger.next(at(1000), 1), at(1000));
        assert_eq!(stagger.next(at(900), 1), at(900));
        assert_eq!(stagger.take_due(at(700), 3, at(860)), 3, "their time is over");
        assert_eq!(stagger.take_due(at(1000), 0, at(2000)), 0);
        assert_eq!(Stagger::new(started).next(at(1000), 0), at(1000));
    }
}
