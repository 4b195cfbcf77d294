//! How strongly two streams of requests speak against "the canary's share is worse by no more than this": an e-process.
//!
//! Requests of the stable and of the canary instances come in blocks, one for each look. In a block of `ns` and `nc` requests
//! with unknown shares `s` and `c` of bad ones, a bet multiplies the wealth by `1 + b·(y − q)` for each request of the canary
//! (`y` is 1 when it was bad, `q = p + d`) and by `1 + a·(y − p)` for each stable one, where `a·ns = −b·nc`. The guess
//! `p` and the stake `b` are chosen before the block is seen. This is the E-variable for two proportions of
//! R. Turner, A. Ly, P. Grünwald, *Generic E-variables for exact sequential k-sample tests that allow for optional
//! stopping*, J. Statist. Plann. Inference 230 (2024), <https://arxiv.org/abs/2106.02693>, with the null hypothesis of
//! R. Turner, P. Grünwald, *Exact anytime-valid confidence intervals for contingency tables and beyond*, Statist. Probab.
//! Lett. 198 (2023), <https://arxiv.org/abs/2203.09785>.
//!
//! **Why it is fair.** Requests being independent, the block's expected factor is `(1 + b(c − q))^nc · (1 + a(s − p))^ns`. By
//! the inequality of the means that is at most `(1 + (b·nc/n)·(c − s − d))^n`, hence at most 1 when `c − s ≤ d` and `b ≥ 0`.
//! So the wealth is a supermartingale that begins at 1 under that hypothesis, whatever the shares are and however they move
//! from block to block, and by Ville's inequality it *ever* reaches `1/α` with a probability of at most `α`. With `b ≤ 0` the same
//! line holds for `c − s ≥ d`: evidence that the canary is *not* worse. A mixture of such bets is one.

use serde::{Deserialize, Serialize};

/// How much worse than tolerated the canary is supposed to be by each bet that it is worse.
const GAPS: [f64; 5] = [0.01, 0.03, 0.09, 0.27, 0.81];
/// Which part of the tolerated difference the canary is supposed to use up by each bet that it is good.
const USED_UP: [f64; 2] = [0.0, 0.5];
/// Shares are guessed as if half a bad one had been seen in so many stable requests before.
const PRIOR: (f64, f64) = (0.5, 50.0);
/// No stake is so high that one request could take all.
const MOST_AT_STAKE: f64 = 0.98;
/// No share is guessed to be closer to none and all.
const EDGE: f64 = 1e-6;
/// Steps towards the best guess; any guess is fair, so a few will do.
const STEPS: usize = 4;

/// Requests, and how many of them were bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// All.
    pub of: u64,
    /// The bad ones.
    pub bad: u64,
}

impl Sample {
    /// The share of bad ones; none of nothing.
    pub fn share(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.bad as f64 / self.of as f64 }
    }
}

/// What has been gathered so far, as logarithms of each bet's wealth.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evidence {
    worse: [f64; GAPS.len()],
    good: [f64; USED_UP.len()],
    /// The most that the bets on `worse` ever had, as a logarithm.
    peak: f64,
}

impl Evidence {
    /// Takes in one block. `before` is what the stable ones had answered until then, `tolerated` the difference of the
    /// shares that is none.
    pub fn add(&mut self, before: Sample, tolerated: f64, stable: Sample, canary: Sample) {
        if stable.of == 0 || canary.of == 0 {
            return;
        }
        let (bad, of) = PRIOR;
        let usual = (before.bad as f64 + bad) / (before.of as f64 + of);
        for (wealth, gap) in self.worse.iter_mut().zip(GAPS) {
            let bet = Bet::on(usual, usual + tolerated + gap, tolerated, stable.of, canary.of);
            *wealth += if bet.canary.stake > 0.0 { bet.gain(stable, canary) } else { 0.0 };
        }
        for (wealth, used_up) in self.good.iter_mut().zip(USED_UP) {
            let bet = Bet::on(usual, usual + tolerated * used_up, tolerated, stable.of, canary.of);
            *wealth += if bet.canary.stake < 0.0 { bet.gain(stable, canary) } else { 0.0 };
        }
        self.peak = self.peak.max(mean_of_exp(&self.worse));
    }

    /// The highest wealth so far of the bets that the canary is worse by more than tolerated: reaches `1/α` with a
    /// probability of at most `α` when it is not.
    pub fn that_it_is_worse(&self) -> f64 {
        bounded_exp(self.peak)
    }

    #[cfg(test)]
    pub(super) fn now_worse(&self) -> f64 {
        bounded_exp(mean_of_exp(&self.worse))
    }

    /// The wealth of the bets that it is worse by less than tolerated.
    pub fn that_it_is_good(&self) -> f64 {
        bounded_exp(mean_of_exp(&self.good))
    }
}

/// What is won or lost with each request of a side.
#[derive(Debug, Clone, Copy)]
struct Side {
    /// The share of bad ones at which nothing is won or lost.
    fair: f64,
    stake: f64,
}

impl Side {
    fn gain(self, sample: Sample) -> f64 {
        let Side { fair, stake } = self;
        let (bad, good) = (sample.bad as f64, (sample.of - sample.bad.min(sample.of)) as f64);
        bad * (stake * (1.0 - fair)).ln_1p() + good * (-stake * fair).ln_1p()
    }
}

#[derive(Debug, Clone, Copy)]
struct Bet {
    stable: Side,
    canary: Side,
}

impl Bet {
    /// The bet that grows fastest when the shares are these: the odds against the closest shares that differ by no more
    /// than is tolerated, weighted by how many requests of each side there are.
    fn on(stable: f64, canary: f64, tolerated: f64, stable_of: u64, canary_of: u64) -> Self {
        let (ns, nc) = (stable_of as f64, canary_of as f64);
        let canary = canary.clamp(EDGE, 1.0 - EDGE);
        let inside = |p: f64| p.clamp(EDGE, (1.0 - EDGE - tolerated).max(EDGE));
        let mut p = inside((ns * stable + nc * (canary - tolerated)) / (ns + nc));
        for _ in 0..STEPS {
            let q = (p + tolerated).min(1.0 - EDGE);
            let (precise_s, precise_c) = (ns / (p * (1.0 - p)), nc / (q * (1.0 - q)));
            p = inside((precise_s * stable + precise_c * (canary - tolerated)) / (precise_s + precise_c));
        }
        let q = p + tolerated;
        let ratio = nc / ns;
        let wanted = (canary - q) / (q * (1.0 - q));
        // Each factor stays positive: for the canary's good or bad requests and for the stable ones, whose stake is the
        // opposite.
        let limit = match wanted > 0.0 {
            true => (1.0 / q).min(1.0 / ((1.0 - p) * ratio)),
            false => (1.0 / (1.0 - q)).min(1.0 / (p * ratio)),
        };
        let stake = wanted.max(-MOST_AT_STAKE * limit).min(MOST_AT_STAKE * limit);
        Self { stable: Side { fair: p, stake: -stake * ratio }, canary: Side { fair: q, stake } }
    }

    fn gain(self, stable: Sample, canary: Sample) -> f64 {
        self.stable.gain(stable) + self.canary.gain(canary)
    }
}

/// The logarithm of the mean of what these are logarithms of.
fn mean_of_exp(logs: &[f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|log| (log - most).exp()).sum();
    most + (sum / logs.len() as f64).ln()
}

/// A number that JSON can hold.
fn bounded_exp(log: f64) -> f64 {
    log.min(300.0).exp()
}
