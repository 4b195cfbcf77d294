//! Whether the canary answers with more errors, or slower, than the stable instances do in the same time. Pure.
//!
//! It may be asked again and again, and of few requests: the evidence is an e-process ([`evidence`]), for which looking is
//! free. Errors are compared directly; latency by the share of answers that are slower than nearly all of the stable ones were
//! until then. `docs/CANARY.md` has the reasons and measured rates of false alarms and of misses.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::proxy::control::InstanceCounts;

pub mod evidence;

use evidence::{Evidence, Sample};

/// An answer is slow when it takes longer than all but this share of the stable ones' answers before.
const USUALLY_SLOW: f64 = 0.05;
/// Slow answers may be more by this share even where `least_difference` is smaller: new instances are cold.
const LEAST_SLOW_DIFFERENCE: f64 = 0.05;
/// What begins within this time is never slow: a pause of the machine takes as long.
const NEVER_SLOW: Duration = Duration::from_millis(5);
/// Fewer answers than this do not say which are slow.
const LEAST_ANSWERS: u64 = 20;

/// How a canary is judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The probability of aborting a canary that is as good as the stable instances, over all looks, and that of promoting one
    /// that is worse by more than tolerated.
    pub alpha: f64,
    /// The least difference that matters, of the shares of requests that fail.
    pub least_difference: f64,
    /// Nothing is decided before the canary has answered so many requests.
    pub least_requests: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { alpha: 0.01, least_difference: 0.01, least_requests: 20 }
    }
}

/// What some instances have answered since the canary began. Counts only grow, unless another process counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Window {
    /// All requests.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// How long each took; empty when that is not known.
    pub latency: Histogram,
}

impl Window {
    /// What came after `earlier`, of the same counter.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: self.latency.since(&earlier.latency),
        }
    }

    fn failed(&self) -> Sample {
        Sample { of: self.requests, bad: self.errors.min(self.requests) }
    }

    fn slower_than(&self, bound: Duration) -> Sample {
        Sample { of: self.latency.total(), bad: self.latency.slower_than(bound) }
    }

    fn is_after(&self, earlier: &Self) -> bool {
        self.requests >= earlier.requests
            && self.errors >= earlier.errors
            && self.latency.total() >= earlier.latency.total()
    }
}

impl std::ops::AddAssign for Window {
    fn add_assign(&mut self, more: Self) {
        let Self { requests, errors, latency } = more;
        self.requests += requests;
        self.errors += errors;
        self.latency += latency;
    }
}

impl From<InstanceCounts> for Window {
    fn from(counts: InstanceCounts) -> Self {
        Self { requests: counts.answered, errors: counts.server_errors, latency: counts.latency }
    }
}

/// What was compared, and what it says so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that failed.
    pub errors: Compared,
    /// Answers slower than `slow_bound`; `None` while it is not known what is slow.
    pub slow: Option<Compared>,
    /// What is slow at the moment.
    pub slow_bound: Option<Duration>,
}

/// One thing, compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Of the stable instances.
    pub stable: Sample,
    /// Of the canary.
    pub canary: Sample,
    /// How strongly it speaks for the canary being worse than tolerated: 1 is not at all, 100 is 1 in 100 by chance.
    pub worse: f64,
    /// How strongly it speaks for the canary not being worse than tolerated.
    pub good: f64,
}

/// What to do with the canary.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Verdict {
    /// It is not known yet.
    Wait(Figures),
    /// The canary is worse. This stays.
    Abort {
        /// In words, with numbers.
        why: String,
        /// By these.
        figures: Figures,
    },
    /// There is enough evidence that it is not worse than tolerated.
    Promote(Figures),
}

/// Judges one canary. What it has seen can be kept and read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    settings: Settings,
    /// At the last look.
    stable: Window,
    canary: Window,
    errors: Evidence,
    slow: Evidence,
    /// Why it is aborted.
    aborted: Option<String>,
}

impl Judge {
    /// Of a canary of which nothing has been seen.
    pub fn new(settings: Settings) -> Self {
        let (stable, canary) = (Window::default(), Window::default());
        Self { settings, stable, canary, errors: Evidence::default(), slow: Evidence::default(), aborted: None }
    }

    /// Takes in what was answered since the last look, and says what all of it amounts to.
    pub fn look(&mut self, stable: &Window, canary: &Window) -> Verdict {
        if stable.is_after(&self.stable) && canary.is_after(&self.canary) {
            self.take_in(stable, canary);
        } else {
            // Another process counts now; what it had counted before we looked is lost.
            (self.stable, self.canary) = (*stable, *canary);
        }
        let figures = self.figures();
        if self.aborted.is_none() && canary.requests >= self.settings.least_requests {
            self.aborted = self.is_worse(&figures);
        }
        match &self.aborted {
            Some(why) => Verdict::Abort { why: why.clone(), figures },
            None if self.is_good(&figures) => Verdict::Promote(figures),
            None => Verdict::Wait(figures),
        }
    }
}

impl Judge {
    /// Takes in one block: what both sides have answered since the last one that both had a part in.
    fn take_in(&mut self, stable: &Window, canary: &Window) {
        let (new_stable, new_canary) = (stable.since(&self.stable), canary.since(&self.canary));
        if new_stable.requests == 0 || new_canary.requests == 0 {
            return;
        }
        let tolerated = self.tolerated();
        self.errors.add(self.stable.failed(), tolerated, new_stable.failed(), new_canary.failed());
        // By what was known before this block: a bound that it had a part in would be bent towards it.
        if let Some(bound) = slow_bound(&self.stable) {
            let [before, stable, canary] = [&self.stable, &new_stable, &new_canary].map(|w| w.slower_than(bound));
            self.slow.add(before, tolerated.max(LEAST_SLOW_DIFFERENCE), stable, canary);
        }
        (self.stable, self.canary) = (*stable, *canary);
    }

    /// Without what no setting should be.
    fn tolerated(&self) -> f64 {
        self.settings.least_difference.clamp(0.0, 0.9)
    }

    fn figures(&self) -> Figures {
        let compared = |stable, canary, evidence: &Evidence| {
            let (worse, good) = (evidence.that_it_is_worse(), evidence.that_it_is_good());
            Compared { stable, canary, worse, good }
        };
        let (stable, canary) = (&self.stable, &self.canary);
        let slow_bound = slow_bound(stable).filter(|_| canary.latency.total() > 0);
        Figures {
            errors: compared(stable.failed(), canary.failed(), &self.errors),
            slow: slow_bound.map(|it| compared(stable.slower_than(it), canary.slower_than(it), &self.slow)),
            slow_bound,
        }
    }

    /// The probability of a false alarm is shared by the two things that are compared.
    fn is_worse(&self, figures: &Figures) -> Option<String> {
        let enough = 2.0 / self.settings.alpha;
        if figures.errors.worse >= enough {
            return Some(said(&figures.errors, "were answered with an error"));
        }
        let (slow, bound) = (figures.slow?, figures.slow_bound?);
        let bound = bound.as_micros() as f64 / 1000.0;
        (slow.worse >= enough).then(|| said(&slow, &format!("took longer than {bound} ms")))
    }

    /// Both must be good, so each may be wrong as often as the whole. Where nobody times answers, errors decide.
    fn is_good(&self, figures: &Figures) -> bool {
        let enough = 1.0 / self.settings.alpha;
        let is_timed = self.stable.latency.total() > 0 && self.canary.latency.total() > 0;
        self.canary.requests >= self.settings.least_requests
            && figures.errors.good >= enough
            && (!is_timed || figures.slow.is_some_and(|slow| slow.good >= enough))
    }
}

/// What is slower than this is slow, by what the stable instances have answered.
fn slow_bound(stable: &Window) -> Option<Duration> {
    let enough = stable.latency.total() >= LEAST_ANSWERS;
    let bound = stable.latency.bound_above(USUALLY_SLOW).filter(|_| enough)?;
    Some(bound.max(NEVER_SLOW))
}

fn said(compared: &Compared, what: &str) -> String {
    let percent = |sample: Sample| sample.share() * 100.0;
    let Compared { stable, canary, .. } = compared;
    format!(
        "{:.1} % of {} requests to the canary {what}, {:.1} % of {} to the stable instances in the same time",
        percent(*canary),
        canary.of,
        percent(*stable),
        stable.of
    )
}

#[cfg(test)]
mod tests;
