//! What is to be ordered next, and when: from the names, what is held and what has failed. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A certificate that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Of the authority that issued it.
    pub directory: String,
    /// Before it clients refuse it.
    pub not_before: Timestamp,
    /// From then on clients refuse it.
    pub not_after: Timestamp,
}

impl Held {
    /// When a third of its lifetime is left.
    pub fn renew_at(&self) -> Timestamp {
        let lifetime = self.not_after.duration_since(self.not_before);
        self.not_after.checked_sub(lifetime / 3).unwrap_or(self.not_after)
    }
}

/// That it failed, for how many times in a row, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In words, on one line.
    pub why: String,
    /// In a row.
    pub times: u32,
    /// The first of these times; an older version did not keep it.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// The last time.
    pub at: Timestamp,
    /// Not before this time.
    pub again: Timestamp,
}

/// How long what failed is left alone.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// After the first failure. It doubles with each that follows.
    pub first: Duration,
    /// It does not get longer than this.
    pub longest: Duration,
    /// Up to a quarter of it is added, in 255 steps, so that not all who failed come back at once.
    pub chance: u8,
}

impl Failure {
    /// One more.
    fn after(before: Option<&Self>, why: String, now: Timestamp, pauses: Pauses) -> Self {
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let pause = pauses.first.saturating_mul(2_u32.saturating_pow(times - 1)).min(pauses.longest);
        let pause = pause + pause / 4 * u32::from(pauses.chance) / 255;
        let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
        let since = Some(before.map_or(now, Self::since));
        Self { why, times, since, at: now, again: now.checked_add(pause).unwrap_or(Timestamp::MAX) }
    }

    /// When it failed for the first time, as far as it is known.
    pub fn since(&self) -> Timestamp {
        self.since.unwrap_or(self.at)
    }

    /// Until when nothing is tried. A failure in the future is that of a clock that has been set back since.
    fn holds_until(&self, now: Timestamp) -> Option<Timestamp> {
        (self.at <= now && now < self.again).then_some(self.again)
    }
}

/// All that has failed since it last went well. Kept on disk, so that a restart asks no sooner.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failures {
    /// With which authority; what failed with another one is of no interest.
    pub directory: String,
    /// It could not be used at all.
    pub authority: Option<Failure>,
    /// By host.
    pub hosts: BTreeMap<String, Failure>,
}

/// Why there is no certificate, in words on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The authority cannot be used at the moment: the next host would fare no better.
    #[error("{0}")]
    Authority(String),
    /// It is this host's.
    #[error("{0}")]
    Host(String),
}

impl Failures {
    /// As it is kept while an order is under way. It stays when the agent dies meanwhile.
    pub fn with_unfinished(&self, host: &str, now: Timestamp, pauses: Pauses) -> Self {
        let mut unfinished = self.clone();
        let why = "the agent ended while the order was under way".to_owned();
        unfinished.fail(host, why, now, pauses);
        unfinished
    }

    /// What came of an order, and what is to be said of it.
    pub fn settle(
        &mut self,
        host: &str,
        outcome: Result<&Held, Trouble>,
        now: Timestamp,
        pauses: Pauses,
    ) -> Option<&Failure> {
        let authority = self.authority.take();
        match outcome {
            // Otherwise one would be ordered after the other.
            Ok(held) if held.renew_at() <= now => {
                let why = "the certificate that was issued is due for renewal already: is this machine's clock right?";
                Some(self.fail(host, why.to_owned(), now, pauses))
            }
            Ok(_) => {
                self.hosts.remove(host);
                None
            }
            Err(Trouble::Host(why)) => Some(self.fail(host, why, now, pauses)),
            Err(Trouble::Authority(why)) => {
                Some(self.authority.insert(Failure::after(authority.as_ref(), why, now, pauses)))
            }
        }
    }

    /// Lets go of what is of no interest any more.
    pub fn forget(&mut self, wanted: &[String], now: Timestamp) {
        self.hosts.retain(|host, failure| wanted.contains(host) || failure.holds_until(now).is_some());
    }

    fn fail(&mut self, host: &str, why: String, now: Timestamp, pauses: Pauses) -> &Failure {
        let failure = Failure::after(self.hosts.get(host), why, now, pauses);
        match self.hosts.entry(host.to_owned()) {
            Entry::Vacant(first) => first.insert(failure),
            Entry::Occupied(before) => {
                let slot = before.into_mut();
                *slot = failure;
                slot
            }
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Order a certificate for this host.
    Order(String),
    /// Nothing before this time; `None`: nothing at all.
    Wait(Option<Timestamp>),
}

/// Decides. A host without a certificate that clients take comes before one that is to be renewed, and one that has failed
/// less often before others.
pub fn next(wanted: &[String], held: &BTreeMap<String, Held>, failures: &Failures, now: Timestamp) -> Next {
    let due = |host: &String| {
        let ordered = match held.get(host) {
            Some(held) if held.directory == failures.directory => held.renew_at(),
            _ => now,
        };
        let failure = failures.hosts.get(host);
        let pauses = [failure, failures.authority.as_ref()];
        let held_up = pauses.into_iter().flatten().filter_map(|failure| failure.holds_until(now)).max();
        held_up.map_or(ordered, |until| until.max(ordered))
    };
    let urgency = |host: &&String| {
        let serves = held.get(*host).is_some_and(|held| now < held.not_after);
        (serves, failures.hosts.get(*host).map_or(0, |failure| failure.times))
    };
    match wanted.iter().filter(|host| due(host) <= now).min_by_key(urgency) {
        Some(host) => Next::Order(host.clone()),
        None => Next::Wait(wanted.iter().map(due).min()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CA: &str = "https://ca.example/dir";
    const PAUSES: Pauses =
        Pauses { first: Duration::from_secs(60), longest: Duration::from_secs(12 * 3600), chance: 0 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn held(from: i64, to: i64) -> Held {
        Held { directory: CA.to_owned(), not_before: at(from), not_after: at(to) }
    }

    fn failure(at_second: i64, again: i64, times: u32) -> Failure {
        Failure { why: String::new(), times, since: None, at: at(at_second), again: at(again) }
    }

    fn decide(held: &[(&str, Held)], failures: &[(&str, Failure)], authority: Option<Failure>, now: i64) -> Next {
        let wanted = ["a.test", "b.test"].map(str::to_owned);
        let held = held.iter().map(|(host, held)| ((*host).to_owned(), held.clone())).collect();
        let hosts = failures.iter().map(|(host, failure)| ((*host).to_owned(), failure.clone())).collect();
        next(&wanted, &held, &Failures { directory: CA.to_owned(), authority, hosts }, at(now))
    }

    fn order(host: &str) -> Next {
        Next::Order(host.to_owned())
    }

    #[test]
    fn a_host_without_comes_before_one_to_renew_and_both_are_renewed_at_two_thirds() {
        let a = ("a.test", held(0, 90));
        assert_eq!(decide(&[], &[], None, 0), order("a.test"));
        assert_eq!(decide(std::slice::from_ref(&a), &[], None, 70), order("b.test"));
        let both = [a, ("b.test", held(10, 100))];
        assert_eq!(decide(&both, &[], None, 59), Next::Wait(Some(at(60))));
        assert_eq!(decide(&both, &[], None, 60), order("a.test"));
        assert_eq!(decide(&[("a.test", held(0, 90)), ("b.test", held(0, 80))], &[], None, 85), order("b.test"));
        let other = Held { directory: "https://staging.example/dir".to_owned(), ..held(0, 90) };
        assert_eq!(decide(&[("a.test", other), ("b.test", held(0, 90))], &[], None, 1), order("a.test"));
    }

    #[test]
    fn what_failed_waits_and_holds_up_no_other_host() {
        let failed = [("a.test", failure(0, 60, 1))];
        assert_eq!(decide(&[], &failed, None, 30), order("b.test"));
        assert_eq!(decide(&[("b.test", held(0, 900))], &failed, None, 30), Next::Wait(Some(at(60))));
        assert_eq!(decide(&[], &failed, None, 60), order("b.test"), "it has not failed yet");
        assert_eq!(decide(&[], &failed, Some(failure(20, 100, 3)), 30), Next::Wait(Some(at(100))));
        assert_eq!(decide(&[], &failed, Some(failure(200, 300, 3)), 30), order("b.test"), "the clock was set back");
    }

    #[test]
    fn pauses_double_from_a_minute_to_half_a_day() {
        let mut last: Option<Failure> = None;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let failure = Failure::after(last.as_ref(), "no".to_owned(), at(0), PAUSES);
            pauses.push(failure.again.as_second() / 60);
            assert_eq!(failure.since(), at(0));
            last = Some(failure);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 720, 720]);
    }

    fn hosts() -> Vec<String> {
        ["a.test", "b.test", "c.test"].map(str::to_owned).to_vec()
    }

    prop_compose! {
        fn any_failure()(at_second in 0_i64..200, pause in 0_i64..200, times in 1_u32..5) -> Failure {
            failure(at_second, at_second + pause, times)
        }
    }

    prop_compose! {
        fn any_held()(own in proptest::bool::weighted(0.9), from in 0_i64..200, lasts in 1_i64..200) -> Held {
            let directory = if own { CA } else { "https://other.example/dir" }.to_owned();
            Held { directory, ..held(from, from + lasts) }
        }
    }

    prop_compose! {
        fn any_state()(
            held in proptest::collection::btree_map(proptest::sample::select(hosts()), any_held(), 0..4),
            failed in proptest::collection::btree_map(proptest::sample::select(hosts()), any_failure(), 0..4),
            authority in proptest::option::of(any_failure()),
        ) -> (BTreeMap<String, Held>, Failures) {
            (held, Failures { directory: CA.to_owned(), authority, hosts: failed })
        }
    }

    proptest! {
        #[test]
        fn nothing_is_ordered_early_and_nothing_due_is_passed_over(
            (held, failures) in any_state(), count in 1_usize..4, now in 0_i64..400,
        ) {
            let (wanted, now) = (hosts()[..count].to_vec(), at(now));
            let pauses = |failure: &Failure| failure.at <= now && now < failure.again;
            let held_up = |host: &String| {
                failures.authority.as_ref().is_some_and(pauses) || failures.hosts.get(host).is_some_and(pauses)
            };
            let fresh = |host: &String| {
                held.get(host).is_some_and(|held| {
                    let left = held.not_after.duration_since(now);
                    held.directory == CA && left * 3 > held.not_after.duration_since(held.not_before)
                })
            };
            let due = |host: &String| !held_up(host) && !fresh(host);
            match next(&wanted, &held, &failures, now) {
                Next::Order(host) => prop_assert!(due(&host), "{host}"),
                Next::Wait(until) => {
                    prop_assert!(!wanted.iter().any(due));
                    let until = until.unwrap();
                    prop_assert!(until > now);
                    // One second earlier there is nothing either, and then there is.
                    let before = at(until.as_second() - 1).max(now);
                    prop_assert!(matches!(next(&wanted, &held, &failures, before), Next::Wait(_)));
                    let all = failures.hosts.values().chain(&failures.authority);
                    if all.into_iter().all(|failure| failure.at <= now) {
                        prop_assert!(matches!(next(&wanted, &held, &failures, until), Next::Order(_)));
                    }
                }
            }
        }

        #[test]
        fn however_an_order_ends_the_same_host_is_not_ordered_again_within_a_minute(
            (mut held, mut failures) in any_state(), issued in any_held(), end in 0..4, now in 0_i64..400, later in 0_i64..60,
        ) {
            let (wanted, host) = (hosts(), "a.test");
            let issued = Held { directory: CA.to_owned(), ..issued };
            let unfinished = failures.with_unfinished(host, at(now), PAUSES);
            match end {
                0 => {
                    failures.settle(host, Ok(&issued), at(now), PAUSES);
                    held.insert(host.to_owned(), issued.clone());
                }
                1 => _ = failures.settle(host, Err(Trouble::Host(String::new())), at(now), PAUSES),
                2 => _ = failures.settle(host, Err(Trouble::Authority(String::new())), at(now), PAUSES),
                _ => failures = unfinished,
            }
            let later = at(now + later);
            let becomes_due = end == 0 && issued.renew_at() > at(now) && issued.renew_at() <= later;
            if !becomes_due {
                prop_assert_ne!(next(&wanted, &held, &failures, later), order(host));
            }
        }

        #[test]
        fn a_pause_is_never_shorter_than_a_minute_nor_much_longer_than_half_a_day(
            times in any::<u32>(), chance in any::<u8>(), now in 0_i64..4_000_000_000,
        ) {
            let before = failure(0, 0, times);
            let next = Failure::after(Some(&before), String::new(), at(now), Pauses { chance, ..PAUSES });
            let pause = next.again.duration_since(next.at).as_secs();
            prop_assert!((60..=15 * 3600).contains(&pause), "{pause}");
            prop_assert!(next.times >= times);
        }
    }
}
