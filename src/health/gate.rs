//! The one writer of an instance's health: passes and failures in a row, in; a change, out.

use std::time::Duration;

use crate::config::{HealthCheck, HealthPolicy};
use crate::model::Health;

/// An instance's health. Starts at `Starting`, never at `Ready`: after a restart of the agent health is observed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    health: Health,
    passes: u32,
    failures: u32,
    passes_needed: u32,
    failures_allowed: u32,
    min_uptime: Duration,
}

impl Gate {
    /// The gate for a policy. An image's own HEALTHCHECK has counted its passes already, so one report of it is enough.
    pub fn new(policy: &HealthPolicy, image_healthcheck: bool) -> Self {
        let (passes_needed, min_uptime) = match &policy.check {
            HealthCheck::Unset { .. } if image_healthcheck => (1, Duration::ZERO),
            HealthCheck::Unset { stable_for } => (1, *stable_for),
            _ => (policy.successes.max(1), Duration::ZERO),
        };
        let failures_allowed = if image_healthcheck && matches!(policy.check, HealthCheck::Unset { .. }) {
            1
        } else {
            policy.failures.max(1)
        };
        Self { health: Health::Starting, passes: 0, failures: 0, passes_needed, failures_allowed, min_uptime }
    }

    /// The health now.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes the result of one check of an instance that has been up for `uptime`; says when the health changed.
    pub fn observe(&mut self, passed: bool, uptime: Duration) -> Option<Health> {
        if passed {
            self.passes = self.passes.saturating_add(1);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.passes = 0;
        }
        let next = match self.health {
            Health::Ready if self.failures >= self.failures_allowed => Health::Unready,
            Health::Starting | Health::Unready if self.passes >= self.passes_needed && uptime >= self.min_uptime => {
                Health::Ready
            }
            same => same,
        };
        self.change(next)
    }

    /// Whether the last checks failed as often as a ready instance may not.
    pub fn has_given_up(&self) -> bool {
        self.failures >= self.failures_allowed
    }

    /// The instance was started again: whatever was known of it is void.
    pub fn restarted(&mut self) -> Option<Health> {
        self.passes = 0;
        self.failures = 0;
        self.change(Health::Starting)
    }

    fn change(&mut self, next: Health) -> Option<Health> {
        let changed = next != self.health;
        self.health = next;
        changed.then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(check: HealthCheck, successes: u32, failures: u32) -> HealthPolicy {
        HealthPolicy {
            check,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            successes,
            failures,
            start_deadline: Duration::from_secs(60),
        }
    }

    fn http(successes: u32, failures: u32) -> Gate {
        Gate::new(&policy(HealthCheck::Http { path: "/healthz".into() }, successes, failures), false)
    }

    #[test]
    fn without_a_check_it_must_stay_up_for_a_while() {
        let check = HealthCheck::Unset { stable_for: Duration::from_secs(10) };
        let mut gate = Gate::new(&policy(check, 2, 3), false);
        assert_eq!(gate.observe(true, Duration::from_secs(9)), None);
        assert_eq!(gate.observe(true, Duration::from_secs(10)), Some(Health::Ready));
    }

    #[test]
    fn a_restart_starts_over() {
        let mut gate = http(1, 3);
        assert_eq!(gate.observe(true, Duration::ZERO), Some(Health::Ready));
        assert_eq!(gate.restarted(), Some(Health::Starting));
        assert_eq!(gate.restarted(), None);
    }

    proptest! {
        /// Ready only after `successes` passes in a row, unready only after `failures` failures in a row; and a
        /// check that alternates never becomes ready.
        #[test]
        fn only_runs_count(results in prop::collection::vec(any::<bool>(), 0..200), successes in 1u32..5, failures in 1u32..5) {
            let mut gate = http(successes, failures);
            let (mut run, mut last) = (0u32, None);
            for passed in results {
                run = if last == Some(passed) { run + 1 } else { 1 };
                last = Some(passed);
                let before = gate.health();
                match gate.observe(passed, Duration::ZERO) {
                    Some(Health::Ready) => prop_assert!(passed && run >= successes && before != Health::Ready),
                    Some(Health::Unready) => prop_assert!(!passed && run >= failures && before == Health::Ready),
                    Some(Health::Starting) => prop_assert!(false, "a check never makes it starting again"),
                    None => prop_assert!(gate.health() == before),
                }
                let should_be_ready = passed && run >= successes;
                prop_assert!(!should_be_ready || gate.health() == Health::Ready);
            }
        }
    }
}
