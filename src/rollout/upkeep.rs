//! When an instance that is meant to serve and does not is started again or replaced. Pure: `now` counts from any
//! fixed moment.

use std::time::Duration;

/// An instance that ended is left to the runtime, which restarts it by itself, for so long.
const RUNTIMES_TURN: Duration = Duration::from_secs(1);
/// The longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that an unready instance is waited for once it has been replaced before.
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);
/// The only one is reconnected at once so often, and then after this pause: whoever takes it out may do so again and again.
const RECONNECTED_AT_ONCE: u32 = 10;
const PAUSE_OF_THE_ONLY_ONE: Duration = Duration::from_secs(1);
/// One that was well for so long has no history.
const RECOVERED: Duration = Duration::from_secs(60);

/// How an instance stands that is meant to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It runs and is ready.
    Well,
    /// It runs and is not ready, or not yet.
    Unready,
    /// It runs and was taken out of its network.
    CutOff,
    /// Its process does not run.
    Down,
    /// The runtime does not have it.
    Gone,
}

/// What is to be done about it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Care {
    /// Nothing.
    Wait,
    /// Put it back into its network; it goes on running.
    Reconnect,
    /// Start it, or create it and start it.
    Start,
    /// Stop it and start it anew.
    Replace,
    /// It is well again after this many attempts.
    Recovered {
        /// Reconnections, starts and replacements.
        attempts: u32,
    },
}

/// What an instance has been through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upkeep {
    since: Option<(Standing, Duration)>,
    /// Starts and replacements.
    starts: u32,
    reconnections: u32,
    told: bool,
}

impl Upkeep {
    /// Takes how the instance stands at `now`. One that is unready is given `patience`, twice as much after each
    /// replacement, and is replaced only when `may_replace`. One that was cut off has not failed: where no `others_serve` it
    /// is not kept waiting.
    pub fn observe(
        &mut self,
        standing: Standing,
        now: Duration,
        patience: Duration,
        may_replace: bool,
        others_serve: bool,
    ) -> Care {
        let since = match self.since {
            Some((same, since)) if same == standing => since,
            _ => now,
        };
        self.since = Some((standing, since));
        let lasted = now.saturating_sub(since);
        match standing {
            Standing::Well => {
                if lasted >= RECOVERED {
                    (self.starts, self.reconnections) = (0, 0);
                }
                if std::mem::take(&mut self.told) { Care::Recovered { attempts: self.attempts() } } else { Care::Wait }
            }
            Standing::CutOff if lasted >= self.pause_before_reconnecting(others_serve) => {
                self.act(Care::Reconnect, now)
            }
            Standing::Gone if lasted >= pause(self.starts) => self.act(Care::Start, now),
            Standing::Down if lasted >= pause(self.starts).max(RUNTIMES_TURN) => self.act(Care::Start, now),
            Standing::Unready if may_replace && lasted >= self.patience(patience) => self.act(Care::Replace, now),
            _ => Care::Wait,
        }
    }

    fn pause_before_reconnecting(&self, others_serve: bool) -> Duration {
        match others_serve {
            true => pause(self.reconnections),
            false if self.reconnections < RECONNECTED_AT_ONCE => Duration::ZERO,
            false => PAUSE_OF_THE_ONLY_ONE,
        }
    }

    fn patience(&self, patience: Duration) -> Duration {
        patience.saturating_mul(1 << self.starts.min(10)).min(LONGEST_PATIENCE.max(patience))
    }

    fn act(&mut self, care: Care, now: Duration) -> Care {
        let count = if care == Care::Reconnect { &mut self.reconnections } else { &mut self.starts };
        *count = count.saturating_add(1);
        self.told = true;
        // The next pause counts from this attempt.
        self.since = self.since.map(|(standing, _)| (standing, now));
        care
    }

    /// How long after the last start the next one is due, when that does not help.
    pub fn pause_after_start(&self) -> Duration {
        pause(self.starts)
    }

    /// How often it was reconnected, started or replaced since it was last well for a while.
    pub fn attempts(&self) -> u32 {
        self.starts.saturating_add(self.reconnections)
    }
}

/// None before the first attempt, then 1, 2, 4 … seconds.
fn pause(attempts: u32) -> Duration {
    match attempts {
        0 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 1).min(6)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Standing::*;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The seconds at which something is done about an instance that stands like this all the time.
    fn acts(standing: Standing, until: u64) -> Vec<u64> {
        let mut upkeep = Upkeep::default();
        (0..until).filter(|now| upkeep.observe(standing, secs(*now), PATIENCE, true, true) != Care::Wait).collect()
    }

    #[test]
    fn what_is_gone_returns_at_once_and_then_with_growing_pauses() {
        assert_eq!(acts(Gone, 130), [0, 1, 3, 7, 15, 31, 63, 123]);
    }

    #[test]
    fn what_was_cut_off_is_reconnected_at_once_and_then_with_growing_pauses() {
        assert_eq!(acts(CutOff, 32), [0, 1, 3, 7, 15, 31]);
    }

    #[test]
    fn the_only_one_that_is_cut_off_again_and_again_is_not_kept_waiting() {
        let mut upkeep = Upkeep::default();
        let mut at = |standing, now, others| upkeep.observe(standing, secs(now), PATIENCE, true, others);
        for now in 0..10 {
            assert_eq!(at(CutOff, now, false), Care::Reconnect);
            assert!(matches!(at(Well, now, false), Care::Recovered { .. }));
        }
        assert_eq!(at(CutOff, 10, false), Care::Wait, "somebody does it all the time");
        assert_eq!(at(CutOff, 11, false), Care::Reconnect);
        assert_eq!(at(CutOff, 12, true), Care::Wait, "another one serves");
        assert_eq!(at(Gone, 13, true), Care::Start, "a crash is another matter");
    }

    #[test]
    fn what_ended_is_left_to_the_runtime_first() {
        assert_eq!(acts(Down, 32), [1, 2, 4, 8, 16]);
    }

    #[test]
    fn what_stays_unready_is_replaced_more_and_more_rarely() {
        assert_eq!(acts(Unready, 1700), [30, 90, 210, 450, 930, 1530]);
    }

    #[test]
    fn an_instance_that_is_well_is_told_of_once_and_forgiven_later() {
        let mut upkeep = Upkeep::default();
        let mut at = |standing, now| upkeep.observe(standing, secs(now), PATIENCE, true, true);
        assert_eq!(at(Gone, 0), Care::Start);
        assert_eq!(at(Unready, 1), Care::Wait);
        assert_eq!(at(Well, 2), Care::Recovered { attempts: 1 });
        assert_eq!(at(Well, 3), Care::Wait);
        assert_eq!(at(Gone, 4), Care::Wait, "it was here before a moment ago");
        assert_eq!(at(Gone, 5), Care::Start);
        assert_eq!(at(Well, 6), Care::Recovered { attempts: 2 });
        assert_eq!(at(Well, 66), Care::Wait);
        assert_eq!(at(Gone, 67), Care::Start, "a minute without trouble starts the count anew");
    }

    proptest! {
        /// Whatever happens to an instance: it is never started or reconnected more than nine times in any minute (the only
        /// one not reconnected more than 70 times), never replaced without leave, and never left alone for longer than the
        /// longest pause while it cannot serve.
        #[test]
        fn care_is_bounded(
            steps in prop::collection::vec((0u8..5, 0u64..20, any::<bool>()), 1..200),
            others_serve in any::<bool>(),
        ) {
            let (mut upkeep, mut now) = (Upkeep::default(), 0u64);
            let (mut starts, mut reconnections, mut idle_since) = (Vec::new(), Vec::new(), None);
            for (standing, pass, may_replace) in steps {
                now += pass;
                let standing = [Well, Unready, CutOff, Down, Gone][usize::from(standing)];
                let care = upkeep.observe(standing, secs(now), PATIENCE, may_replace, others_serve);
                if standing == Well || standing == Unready {
                    idle_since = None;
                }
                let idle = matches!(standing, CutOff | Down | Gone);
                match care {
                    Care::Start | Care::Reconnect => {
                        prop_assert!(idle && (care == Care::Reconnect) == (standing == CutOff));
                        if care == Care::Start { starts.push(now) } else { reconnections.push(now) }
                        idle_since = None;
                    }
                    Care::Replace => prop_assert!(standing == Unready && may_replace),
                    Care::Recovered { .. } => prop_assert_eq!(standing, Well),
                    Care::Wait if idle => {
                        // Another way of not serving starts the pause anew.
                        let since: &mut (Standing, u64) = idle_since.get_or_insert((standing, now));
                        if since.0 != standing {
                            *since = (standing, now);
                        }
                        prop_assert!(now - since.1 <= LONGEST_PAUSE.as_secs());
                    }
                    Care::Wait => {}
                }
            }
            for window in starts.windows(10) {
                prop_assert!(window[9] - window[0] >= 60, "{starts:?}");
            }
            let most = if others_serve { 9 } else { 70 };
            for window in reconnections.windows(most + 1) {
                prop_assert!(window[most] - window[0] >= 60, "{reconnections:?}");
            }
        }
    }
}
