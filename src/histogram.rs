//! How long answers took, in a few counters: cheap to keep, to send, to add up and to subtract.

use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many buckets there are: one up to each bound, one for what took longer than the last.
pub const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// The most that is counted in each bucket, in milliseconds. Agent and proxy may be of different versions: these bounds
/// are part of what they say to each other and stay as they are.
const BOUNDS_MS: [u64; 28] = [
    1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 7_000,
    10_000, 15_000, 20_000, 30_000, 60_000,
];

/// Durations counted in buckets from 1 ms to 60 s, each at most twice as wide as the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    counts: [u64; BUCKETS],
}

impl Histogram {
    /// With these counts, one per bucket.
    pub fn of(counts: [u64; BUCKETS]) -> Self {
        Self { counts }
    }

    /// Counts one more.
    pub fn add(&mut self, took: Duration) {
        self.counts[bucket_of(took)] += 1;
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        sum(&self.counts)
    }

    /// What was counted after `earlier`, of the same counter.
    pub fn since(&self, earlier: &Self) -> Self {
        Self { counts: std::array::from_fn(|bucket| self.counts[bucket].saturating_sub(earlier.counts[bucket])) }
    }

    /// Both together.
    pub fn merge(mut self, other: &Self) -> Self {
        self += *other;
        self
    }

    /// The duration that the share `q` (0 to 1) of all was at most, to the width of its bucket; what lies inside a bucket
    /// is taken for spread evenly. Beyond the last bound it is that bound. `None` of nothing.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * total as f64).ceil().max(1.0);
        let mut below = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            let up_to_here = count.saturating_add(below);
            if up_to_here as f64 >= rank {
                let from = bucket.checked_sub(1).map_or(0, |before| BOUNDS_MS[before]);
                let to = BOUNDS_MS.get(bucket).copied().unwrap_or(from);
                let inside = (rank - below as f64) / count as f64;
                return Some(Duration::from_millis(from) + Duration::from_millis(to - from).mul_f64(inside));
            }
            below = up_to_here;
        }
        None
    }

    /// How many took longer than this bound (see [`bound_above`](Self::bound_above)); in between, than the next bound
    /// above it.
    pub fn slower_than(&self, bound: Duration) -> u64 {
        sum(&self.counts[bucket_of(bound) + 1..])
    }

    /// The least bound that at most the share `q` of all took longer than; `None` when that is more than the last bound,
    /// or of nothing.
    pub fn bound_above(&self, q: f64) -> Option<Duration> {
        let total = self.total();
        let allowed = q * total as f64;
        let is_above = |bound: &Duration| self.slower_than(*bound) as f64 <= allowed;
        BOUNDS_MS.map(Duration::from_millis).into_iter().find(is_above).filter(|_| total > 0)
    }
}

impl AddAssign for Histogram {
    fn add_assign(&mut self, more: Self) {
        self.counts.iter_mut().zip(more.counts).for_each(|(count, more)| *count = count.saturating_add(more));
    }
}

/// Counts come from another process: whatever they are, there is a sum.
fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
}

/// A list of counts; empty buckets at its end are left out.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let used = self.counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        self.counts[..used].serialize(serializer)
    }
}

/// What a later version may count beyond our last bucket belongs into it.
impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut counts = [0_u64; BUCKETS];
        for (bucket, count) in Vec::<u64>::deserialize(deserializer)?.into_iter().enumerate() {
            let own = &mut counts[bucket.min(BUCKETS - 1)];
            *own = own.saturating_add(count);
        }
        Ok(Self { counts })
    }
}

/// In which bucket a duration is counted.
pub fn bucket_of(took: Duration) -> usize {
    let micros = took.as_micros();
    BOUNDS_MS.partition_point(|&bound| u128::from(bound) * 1000 < micros)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LAST: Duration = Duration::from_secs(60);

    fn of(micros: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        micros.iter().for_each(|&took| histogram.add(Duration::from_micros(took)));
        histogram
    }

    #[test]
    fn bounds_belong_to_the_bucket_below_them() {
        let histogram = of(&[0, 1_000, 1_001, 60_000_000, 60_000_001]);
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!(histogram.counts[BUCKETS - 2..], [1, 1]);
        assert_eq!(histogram.quantile(1.0), Some(LAST), "how long the longest took is not known");
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::default().bound_above(0.5), None);
    }

    #[test]
    fn versions_with_more_and_fewer_buckets_understand_each_other() {
        let histogram = of(&[500, 1_500, 1_500]);
        assert_eq!(serde_json::to_string(&histogram).unwrap(), "[1,2]");
        let longer = serde_json::to_string(&[1_u64; BUCKETS + 3]).unwrap();
        let read: Histogram = serde_json::from_str(&longer).unwrap();
        assert_eq!((read.total(), read.counts[BUCKETS - 1]), (BUCKETS as u64 + 3, 4));
    }

    /// From below the first bound to beyond the last.
    fn durations() -> impl Strategy<Value = Vec<u64>> {
        vec((0_u32..27, 0_u64..1 << 26).prop_map(|(shift, took)| took >> shift), 1..200)
    }

    proptest! {
        #[test]
        fn a_quantile_is_in_the_bucket_of_the_true_one(mut micros in durations(), q in 0.0_f64..=1.0) {
            let histogram = of(&micros);
            micros.sort_unstable();
            let rank = ((q * (micros.len() as f64)).ceil() as usize).max(1);
            let exact = Duration::from_micros(micros[rank - 1]).min(LAST);
            prop_assert_eq!(bucket_of(histogram.quantile(q).unwrap()), bucket_of(exact));
        }

        #[test]
        fn quantiles_grow(micros in durations(), a in 0.0_f64..=1.0, b in 0.0_f64..=1.0) {
            let histogram = of(&micros);
            let (less, more) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(histogram.quantile(less) <= histogram.quantile(more));
        }

        #[test]
        fn what_came_since_and_what_was_before_are_all(before in durations(), after in durations()) {
            let (earlier, later) = (of(&before), of(&after));
            let all = earlier.merge(&later);
            prop_assert_eq!(all.since(&earlier), later);
            prop_assert_eq!(all, of(&[before, after].concat()));
            prop_assert_eq!(serde_json::from_str::<Histogram>(&serde_json::to_string(&all).unwrap()).unwrap(), all);
        }

        #[test]
        fn at_most_the_asked_share_is_above_a_bound(micros in durations(), q in 0.0_f64..1.0) {
            let histogram = of(&micros);
            let above = |bound: Duration| micros.iter().filter(|&&took| Duration::from_micros(took) > bound).count();
            match histogram.bound_above(q) {
                Some(bound) => {
                    prop_assert_eq!(histogram.slower_than(bound), above(bound) as u64);
                    prop_assert!(above(bound) as f64 <= q * micros.len() as f64);
                }
                None => prop_assert!(above(LAST) as f64 > q * micros.len() as f64),
            }
        }
    }
}
