//! `[apps.NAME.rollout]`: how instances are replaced.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::field::Field;
use super::reader::Section;
use super::{CanaryPolicy, Order, RolloutPolicy, Strategy};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SECOND: Duration = Duration::from_secs(1);
const DEFAULT_WATCH: Duration = Duration::from_secs(60);
const DEFAULT_PAUSE: Duration = Duration::from_secs(60);
const DEFAULT_STEPS: [u32; 2] = [10, 50];
/// In percent.
const STEP: RangeInclusive<u32> = 1..=100;
/// So many ask for a mistake rather than for a canary.
const MOST_STEPS: usize = 20;

/// Which requests an app has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requests {
    /// Its domains lead to it.
    Own,
    /// A share of another app's.
    Shared,
    None,
}

pub(super) fn read(field: Option<Field<'_>>, requests: Requests) -> RolloutPolicy {
    let mut policy = RolloutPolicy { strategy: Strategy::Rolling, order: Order::StartFirst, watch: DEFAULT_WATCH };
    let Some(section) = field.and_then(|field| field.section("write rollout = { watch = \"60s\" }")) else {
        return policy;
    };
    let strategy = section.take("strategy");
    let is_canary = strategy.as_ref().and_then(|field| field.word(&[("rolling", false), ("canary", true)]));
    let order = section.take("order");
    if let Some(field) = &order {
        let orders = [("start_first", Order::StartFirst), ("stop_first", Order::StopFirst)];
        policy.order = field.word(&orders).unwrap_or(policy.order);
    }
    if let Some(field) = section.take("watch") {
        policy.watch = field.duration_or_zero(Duration::from_millis(1)..=DAY).unwrap_or(policy.watch);
    }
    let unknown = strategy.is_some() && is_canary.is_none();
    let canary = canary(&section, is_canary.unwrap_or(unknown));
    if let (Some(true), Some(field)) = (is_canary, &strategy) {
        if policy.order == Order::StopFirst {
            let what = " = \"canary\" runs new instances beside the old ones, and order = \"stop_first\" forbids that";
            field.problem(what, "remove order, or write strategy = \"rolling\"");
        }
        match requests {
            Requests::Own => {}
            Requests::Shared => {
                field.problem(
                    " = \"canary\": this app is a canary already",
                    "write strategy = \"rolling\", or remove it",
                );
            }
            Requests::None => {
                let what = " = \"canary\" shares requests, and no domain of the app leads to a service with a port";
                field.problem(what, "set domains and port, or write strategy = \"rolling\"");
            }
        }
        policy.strategy = Strategy::Canary(canary);
    }
    section.finish();
    policy
}

/// The keys of a canary. With another strategy they would do nothing, which nobody means who writes them.
fn canary(section: &Section<'_>, is_canary: bool) -> CanaryPolicy {
    let mut policy = CanaryPolicy { steps: DEFAULT_STEPS.to_vec(), pause: DEFAULT_PAUSE, analysis: true };
    let keys = [section.take("steps"), section.take("pause"), section.take("analysis")];
    if !is_canary {
        for field in keys.iter().flatten() {
            field.problem(" does nothing in a rolling rollout", "write strategy = \"canary\", or remove it");
        }
        return policy;
    }
    let [steps_field, pause, analysis] = keys;
    if let Some(field) = steps_field {
        policy.steps = steps(&field).unwrap_or(policy.steps);
    }
    if let Some(field) = pause {
        policy.pause = field.duration(SECOND..=DAY).unwrap_or(policy.pause);
    }
    if let Some(field) = analysis {
        policy.analysis = field.boolean().unwrap_or(policy.analysis);
    }
    policy
}

/// Growing shares in percent. The last one, 100, goes without saying and is left out of the result.
fn steps(field: &Field<'_>) -> Option<Vec<u32>> {
    const FORM: &str = "write steps = [10, 50]";
    let elements = field.list(FORM)?;
    let steps: Option<Vec<u32>> = elements.iter().map(|step| step.number(STEP, "1 to 100 (percent)")).collect();
    let mut steps = steps?;
    if let Some(at) = steps.windows(2).position(|two| two[0] >= two[1]) {
        let what = format!(" must grow, and {} does not after {}", steps[at + 1], steps[at]);
        elements[at + 1].problem(what, "write each share once, the smallest first");
        return None;
    }
    steps.retain(|&step| step < 100);
    if steps.is_empty() {
        field.problem(" has no share below 100: nothing would be tried first", FORM);
        return None;
    }
    if steps.len() > MOST_STEPS {
        field.problem(format!(" has {} shares, and 20 are allowed", steps.len()), FORM);
        return None;
    }
    Some(steps)
}
