//! The new instances of a canary compared with the old ones, step by step, by what the proxy counts of each.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::counting::Count;
use super::{Active, DriverTask};
use crate::journal::DeployEvent;
use crate::model::{DeploymentId, InstanceId};
use crate::proxy::control::InstanceCounts;
use crate::rollout::canary::Canary;
use crate::rollout::fleet::Member;
use crate::rollout::judge::{Judge, Settings, Verdict, Window};
use crate::rollout::machine::Event;
use crate::rollout::tally::Tally;

/// Those who watch are told of new figures at most this often.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// One step's comparison. Each step has one of its own: while the share stays the same, both sides see the same hours,
/// good and bad, in the same proportion.
pub(super) struct Analysis {
    step: usize,
    judge: Judge,
    tally: Tally,
    /// What was last said of it, for the log at its end.
    words: Option<String>,
    told_at: Option<Instant>,
}

impl Analysis {
    /// The false alarms allowed in all are divided among the steps.
    pub(super) fn new(step: usize, steps: usize) -> Self {
        let usual = Settings::default();
        let settings = Settings { alpha: usual.alpha / steps.max(1) as f64, ..usual };
        Self { step, judge: Judge::new(settings), tally: Tally::default(), words: None, told_at: None }
    }

    /// Takes one more count.
    pub(super) fn look(
        &mut self,
        count: &Count,
        members: &BTreeMap<InstanceId, Member>,
        deployment: DeploymentId,
    ) -> Looked {
        self.tally.take(&count.boot, sides(count, members, deployment));
        let (old, new) = (self.tally.old, self.tally.new);
        let mut words = words(&old, &new);
        let is_worse = match self.judge.look(&old, &new) {
            Verdict::Wait(_) => None,
            Verdict::Promote(_) => {
                words.push_str("; the canary is no worse");
                None
            }
            Verdict::Abort { why, .. } => Some(why),
        };
        Looked { words, is_worse }
    }
}

/// What one look has shown.
pub(super) struct Looked {
    /// How both sides compare.
    pub words: String,
    /// Why the canary is to be undone.
    pub is_worse: Option<String>,
}

impl DriverTask {
    /// Compares both sides by one more count, while a canary keeps its share.
    pub(super) async fn analyse(&mut self, count: &Count) {
        let Some(active) = &mut self.rollout else { return };
        let Some(standing) = active.analyses() else { return };
        let steps = active.assignment.canary.as_ref().map_or(1, |plan| plan.course.steps.len());
        let deployment = active.assignment.deployment;
        let analysis = match &mut active.analysis {
            Some(analysis) if analysis.step == standing => analysis,
            place => place.insert(Analysis::new(standing, steps)),
        };
        let Looked { words, is_worse: why } = analysis.look(count, &self.members, deployment);
        let is_news = analysis.words.as_ref() != Some(&words);
        let tells = is_news && analysis.told_at.is_none_or(|told| told.elapsed() >= TOLD_EVERY);
        if tells {
            analysis.told_at = Some(Instant::now());
        }
        analysis.words = Some(words.clone());
        self.canary.send_modify(|state| {
            if let Some(state) = state {
                state.comparison = Some(words);
            }
        });
        if tells && let Some(state) = self.canary.borrow().as_ref() {
            self.parts.journal.publish(&self.app, Some(deployment), DeployEvent::from(state));
        }
        if let Some(why) = why {
            let share = active.machine.canary().map_or(0, |canary| canary.standing().share);
            let why = format!("the canary is worse than what it replaces, at {share} % of the requests: {why}");
            self.feed(Event::ErrorsJumped(why)).await;
        }
    }

    /// The comparison of a step that is over goes into the log.
    pub(super) fn end_analysis(&mut self) {
        let Some(active) = &mut self.rollout else { return };
        let canary = active.machine.canary();
        let goes_on = |analysis: &Analysis| {
            canary.is_some_and(|canary| canary.is_under_way() && canary.standing().step == analysis.step)
        };
        if !active.analysis.as_ref().is_some_and(goes_on)
            && let Some(words) = active.analysis.take().and_then(|analysis| analysis.words)
        {
            active.assignment.log.line(format!("canary: compared in this step: {words}"));
        }
    }
}

impl Active {
    /// The step whose share is being compared, if one is.
    fn analyses(&self) -> Option<usize> {
        let wanted = self.assignment.canary.as_ref().is_some_and(|plan| plan.analysis);
        let canary = self.machine.canary().filter(|canary| wanted && Canary::is_pausing(canary))?;
        Some(canary.standing().step)
    }
}

/// What was counted of the routed service's instances, and whether each is new.
fn sides<'a>(
    count: &'a Count,
    members: &'a BTreeMap<InstanceId, Member>,
    deployment: DeploymentId,
) -> impl Iterator<Item = (&'a InstanceId, bool, InstanceCounts)> {
    count.instances.iter().filter_map(move |(id, counts)| {
        let member = members.get(id).filter(|member| member.spec.routed)?;
        Some((id, member.deployment == deployment, *counts))
    })
}

/// `canary 412 requests, 5.1 % errors, 95 % within 15 ms; stable 3708 requests, 0.0 % errors, 95 % within 12 ms`
fn words(old: &Window, new: &Window) -> String {
    let side = |name: &str, window: &Window| {
        let thousandths = window.errors * 1000 / window.requests.max(1);
        let p95 = window.latency.quantile(0.95).map(|p95| format!(", 95 % within {} ms", p95.as_millis().max(1)));
        format!(
            "{name} {} requests, {}.{} % errors{}",
            window.requests,
            thousandths / 10,
            thousandths % 10,
            p95.unwrap_or_default()
        )
    };
    format!("{}; {}", side("canary", new), side("stable", old))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_in_words() {
        let window = |requests, errors| Window { requests, errors, ..Window::default() };
        let said = words(&window(3708, 1), &window(412, 21));
        assert_eq!(said, "canary 412 requests, 5.0 % errors; stable 3708 requests, 0.0 % errors");
    }
}
