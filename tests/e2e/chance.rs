//! Chance that can be repeated: the same seed and purpose give the same choices.

use std::time::Duration;

/// A sequence of choices (SplitMix64).
pub struct Chance(u64);

impl Chance {
    /// Each purpose has a sequence of its own, so that how often one of them chooses does not change the others.
    pub fn of(seed: u64, purpose: &str) -> Self {
        Self(purpose.bytes().fold(seed, |state, byte| state.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 0 to `end` - 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.next() % (high - low))
    }

    /// One of them, each as likely as its number says.
    pub fn pick<T: Copy>(&mut self, weighted: &[(usize, T)]) -> T {
        let mut left = self.below(weighted.iter().map(|(weight, _)| weight).sum());
        for &(weight, choice) in weighted {
            if left < weight {
                return choice;
            }
            left -= weight;
        }
        unreachable!("the weights were summed")
    }
}
