//! A permanent canary compared with production, again and again. Pure.
//!
//! A judge's promise holds over all of its looks, but one that never ended would weigh what was a month ago. So there is a
//! fresh one every ten minutes, each with so small a probability of a false alarm that a year of them stays below a tenth:
//! 52,560 × 2·10⁻⁶ ≈ 0.105.

use std::time::Duration;

use crate::model::{DeploymentId, InstanceId};
use crate::proxy::control::InstanceCounts;
use crate::rollout::judge::{Judge, Settings, Verdict};
use crate::rollout::tally::Tally;

/// One judge's time.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// Where there is so little traffic a judge is given longer: evidence of single requests adds up.
const LEAST_REQUESTS: u64 = 100;
/// The probability that one judge takes a canary for worse that is not.
const ALPHA: f64 = 2e-6;

/// One judge at its work.
pub struct Comparison {
    of: DeploymentId,
    began: Duration,
    judge: Judge,
    tally: Tally,
}

impl Comparison {
    /// With nothing seen of this version yet.
    pub fn new(of: DeploymentId, now: Duration) -> Self {
        let settings = Settings { alpha: ALPHA, ..Settings::default() };
        Self { of, began: now, judge: Judge::new(settings), tally: Tally::default() }
    }

    /// Whether another judge is to look from `now` on.
    pub fn is_over(&self, of: DeploymentId, now: Duration) -> bool {
        let had_time = now.saturating_sub(self.began) >= WINDOW && self.tally.new.requests >= LEAST_REQUESTS;
        self.of != of || had_time
    }

    /// Takes in what process `boot` has counted of each instance, the canary's or not; why the canary is worse, if it is.
    pub fn look<'a>(
        &mut self,
        boot: &str,
        counts: impl Iterator<Item = (&'a InstanceId, bool, InstanceCounts)>,
    ) -> Option<String> {
        self.tally.take(boot, counts);
        match self.judge.look(&self.tally.old, &self.tally.new) {
            Verdict::Abort { why, .. } => Some(why),
            Verdict::Wait(_) | Verdict::Promote(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second at a canary that gets a third of `each_second` requests, of which every n-th fails; after how many
    /// seconds it is found to be worse.
    fn found_after(seconds: u64, each_second: u64, production: u64, canary: u64) -> Option<u64> {
        let [stable, new] = ["d1-web-1", "d2-web-1"].map(|id| InstanceId::parse(id).unwrap());
        let counts = |answered: u64, nth: u64| InstanceCounts {
            answered,
            server_errors: answered.checked_div(nth).unwrap_or(0),
            ..InstanceCounts::default()
        };
        let live = DeploymentId(2);
        let at = Duration::from_secs;
        let mut comparison = Comparison::new(live, at(0));
        (0..seconds).find(|&second| {
            if comparison.is_over(live, at(second)) {
                comparison = Comparison::new(live, at(second));
            }
            let all = second * each_second;
            let both = [(&stable, false, counts(all - all / 3, production)), (&new, true, counts(all / 3, canary))];
            comparison.look("boot", both.into_iter()).is_some()
        })
    }

    #[test]
    fn one_that_fails_now_and_then_is_found_in_one_window() {
        let after = found_after(600, 90, 0, 20).unwrap();
        assert!((5..60).contains(&after), "5 % of 30 requests a second: after {after} s");
        assert!(found_after(600, 9, 0, 1).is_some_and(|after| after < 30), "all fail");
        assert!(found_after(7200, 1, 0, 1).is_some(), "one of few requests");
    }

    #[test]
    fn one_that_is_no_worse_is_left_alone_for_days() {
        assert_eq!(found_after(2 * 86_400, 30, 20, 20), None, "both fail alike");
        assert_eq!(found_after(86_400, 30, 0, 200), None, "within what is tolerated");
    }

    #[test]
    fn a_judge_ends_with_its_time_and_with_its_version() {
        let (one, two) = (DeploymentId(1), DeploymentId(2));
        let id = InstanceId::parse("d1-web-1").unwrap();
        let mut comparison = Comparison::new(one, Duration::from_secs(5));
        assert!(comparison.is_over(two, Duration::from_secs(6)));
        assert!(!comparison.is_over(one, Duration::from_secs(5000)), "it has seen nothing");
        for answered in [0, LEAST_REQUESTS] {
            let counts = InstanceCounts { answered, ..InstanceCounts::default() };
            assert_eq!(comparison.look("boot", [(&id, true, counts)].into_iter()), None);
        }
        assert!(
            !comparison.is_over(one, Duration::from_secs(604)) && comparison.is_over(one, Duration::from_secs(605))
        );
    }
}
