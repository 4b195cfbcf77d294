//! Whether a deployment would be a canary, and what would be compared in it. Pure.

use serde::{Deserialize, Serialize};

use crate::config::{CanaryOf, Strategy};

/// How an app's instances are replaced, as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyPlan {
    /// One instance after another.
    #[default]
    Rolling,
    /// New instances beside the old ones, with a share of the requests that grows in steps.
    Canary,
}

/// The canary that a deployment would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryPlan {
    /// The new instances' shares of the requests in percent, growing. The last step, to all, comes after them.
    pub steps: Vec<u32>,
    /// How long each of these shares is kept.
    pub pause_seconds: f64,
    /// The services whose new instances are compared with the stable ones meanwhile; empty without analysis.
    pub judged: Vec<String>,
}

/// What a permanent canary shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharesPlan {
    /// The app that is production.
    pub app: String,
    /// The canary's share of its requests, such as `1/3`.
    pub share: String,
}

/// What would change of a service.
pub(super) struct Change {
    pub service: String,
    /// Requests are routed to it.
    pub routed: bool,
    /// Instances would be started.
    pub comes: bool,
    /// Instances that run would go.
    pub goes: bool,
}

impl From<&Strategy> for StrategyPlan {
    fn from(strategy: &Strategy) -> Self {
        match strategy {
            Strategy::Rolling => Self::Rolling,
            Strategy::Canary(_) => Self::Canary,
        }
    }
}

impl From<&CanaryOf> for SharesPlan {
    fn from(of: &CanaryOf) -> Self {
        Self { app: of.app.to_string(), share: of.share.to_string() }
    }
}

impl CanaryPlan {
    /// `None` where instances are replaced one after another: also where requests cannot be shared, as with a first
    /// deployment (see `rollout::canary::Canary::fits`).
    pub(super) fn of(strategy: &Strategy, changes: &[Change]) -> Option<Self> {
        let Strategy::Canary(policy) = strategy else { return None };
        let routed = || changes.iter().filter(|change| change.routed);
        if !routed().any(|change| change.comes) || !routed().any(|change| change.goes) {
            return None;
        }
        let judged = routed().filter(|change| change.comes && policy.analysis);
        Some(Self {
            steps: policy.steps.clone(),
            pause_seconds: policy.pause.as_secs_f64(),
            judged: judged.map(|change| change.service.clone()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::CanaryPolicy;

    #[test]
    fn only_old_and_new_instances_of_what_is_routed_share_requests() {
        let strategy = |analysis| {
            Strategy::Canary(CanaryPolicy { steps: vec![10, 50], pause: Duration::from_millis(1500), analysis })
        };
        let change = |service: &str, routed, comes, goes| Change { service: service.into(), routed, comes, goes };
        let next =
            [change("api", true, false, false), change("web", true, true, true), change("worker", false, true, true)];
        let judged = |judged: &[&str]| {
            let judged = judged.iter().map(|&service| service.to_owned()).collect();
            Some(CanaryPlan { steps: vec![10, 50], pause_seconds: 1.5, judged })
        };
        assert_eq!(CanaryPlan::of(&strategy(true), &next), judged(&["web"]));
        assert_eq!(CanaryPlan::of(&strategy(false), &next), judged(&[]));
        assert_eq!(CanaryPlan::of(&Strategy::Rolling, &next), None);
        for nothing_to_share in
            [change("web", true, true, false), change("web", true, false, true), change("web", true, false, false)]
        {
            let changes = [nothing_to_share, change("worker", false, true, true)];
            assert_eq!(CanaryPlan::of(&strategy(true), &changes), None);
        }
    }
}
