//! What became of each request that was sent to prove something, and how it reads.

use std::time::Duration;

use serde::Serialize;

use crate::text::{briefly, thousands};

/// So many failures are kept with their reason.
const KEPT: usize = 20;

/// One request that did not get what it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// As sent in the header `X-Longshore-Prove`.
    pub id: String,
    /// Whether on a connection that had been used before, or that was opened for it.
    pub kept_connection: bool,
    /// Milliseconds until it was clear.
    pub after_ms: u64,
    /// Why.
    pub why: String,
}

/// All requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Whether what is counted now is counted as during the rollout.
    pub rolling: bool,
    before: Times,
    during: Times,
    failed: u64,
    failures: Vec<Failure>,
}

/// How long each answer took to be complete, in microseconds.
#[derive(Debug, Clone, Default)]
struct Times(Vec<u32>);

/// Of some requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Span {
    /// With one complete answer.
    pub answered: u64,
    /// Half of them took less; null of none.
    pub p50_ms: Option<f64>,
    /// One in a hundred took longer.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub slowest_ms: Option<f64>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether every request got exactly one complete answer, and there was at least one during the rollout.
    pub proven: bool,
    /// All that were sent.
    pub requests: u64,
    /// Those that did not get one complete answer.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failure>,
    /// Before the rollout, and after it.
    pub before: Span,
    /// During it.
    pub during: Span,
}

impl Tally {
    /// One complete answer, after so long.
    pub fn answered(&mut self, took: Duration) {
        let times = if self.rolling { &mut self.during } else { &mut self.before };
        times.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// None, or not a complete one.
    pub fn failed(&mut self, failure: Failure) {
        self.failed += 1;
        if self.failures.len() < KEPT {
            self.failures.push(failure);
        }
    }

    /// How many failed so far.
    pub fn failures(&self) -> u64 {
        self.failed
    }

    /// Why the first one failed.
    pub fn first_failure(&self) -> Option<&str> {
        self.failures.first().map(|failure| failure.why.as_str())
    }

    /// What it all amounts to.
    pub fn report(self) -> Report {
        let (before, during) = (self.before.span(), self.during.span());
        Report {
            proven: self.failed == 0 && during.answered > 0,
            requests: before.answered + during.answered + self.failed,
            failed: self.failed,
            failures: self.failures,
            before,
            during,
        }
    }
}

impl Times {
    fn span(mut self) -> Span {
        self.0.sort_unstable();
        let count = self.0.len();
        let at = |share: f64| {
            let rank = (share * count as f64).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).map(|&micros| f64::from(micros) / 1000.0)
        };
        Span { answered: count as u64, p50_ms: at(0.5), p99_ms: at(0.99), slowest_ms: at(1.0) }
    }
}

impl Report {
    /// For a person.
    pub fn lines(&self) -> Vec<String> {
        let Report { requests, failed, before, during, .. } = self;
        let verdict = match (self.proven, failed) {
            (true, _) => format!("every one of {} requests got exactly one complete answer", thousands(*requests)),
            (false, 0) => "not one request was answered during the rollout: nothing is proven".to_owned(),
            (false, failed) => {
                let all = thousands(*requests);
                format!("{} of {all} requests did not get exactly one complete answer", thousands(*failed))
            }
        };
        let mut lines = vec![verdict];
        let shown = self.failures.iter().map(|Failure { id, kept_connection, after_ms, why }| {
            let connection = if *kept_connection { "kept connection" } else { "new connection" };
            format!("  {id}, {connection}, after {after_ms} ms: {why}")
        });
        lines.extend(shown);
        if *failed > self.failures.len() as u64 {
            lines.push(format!("  and {} more", thousands(failed - self.failures.len() as u64)));
        }
        for (when, span) in [("before and after", before), ("during", during)] {
            let ms = |ms: Option<f64>| ms.map_or("–".to_owned(), |ms| briefly(Duration::from_secs_f64(ms / 1000.0)));
            let Span { answered, p50_ms, p99_ms, slowest_ms } = *span;
            let (p50, p99, slowest) = (ms(p50_ms), ms(p99_ms), ms(slowest_ms));
            let answered = thousands(answered);
            lines.push(format!("{when} the rollout: {answered} answered, median {p50}, 99 % {p99}, slowest {slowest}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_found() {
        let mut tally = Tally::default();
        (1..=100).for_each(|ms| tally.answered(Duration::from_millis(ms)));
        assert!(!tally.clone().report().proven, "nothing was asked during the rollout");
        tally.rolling = true;
        (0..2000).for_each(|_| tally.answered(Duration::from_micros(1_250)));
        let good = tally.clone().report();
        assert!(good.proven);
        assert_eq!(
            good.lines(),
            [
                "every one of 2,100 requests got exactly one complete answer",
                "before and after the rollout: 100 answered, median 50 ms, 99 % 99 ms, slowest 100 ms",
                "during the rollout: 2,000 answered, median 1.2 ms, 99 % 1.2 ms, slowest 1.2 ms",
            ]
        );
        let failure = |n| Failure { id: format!("3-{n}"), kept_connection: false, after_ms: 7, why: "cut off".into() };
        (1..=22).for_each(|n| tally.failed(failure(n)));
        let bad = tally.report();
        assert!(!bad.proven);
        assert_eq!(bad.lines()[0], "22 of 2,122 requests did not get exactly one complete answer");
        assert_eq!(bad.lines()[1], "  3-1, new connection, after 7 ms: cut off");
        assert_eq!(bad.lines()[21], "  and 2 more");
    }
}
