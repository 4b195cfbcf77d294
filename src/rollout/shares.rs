//! How a share of the requests becomes weights. Whole numbers alone: a share is exact or it is none.

use crate::config::Fraction;

/// The weights of each old and of each new instance with which the new ones together get exactly `percent` of the
/// requests, over any window of one round (as many requests as all weights together). As small as can be.
///
/// Where one side is empty the other one gets everything, with weight 1; so it is at 0 and at 100 percent, where the side
/// without a share has weight 0.
pub fn shares(old: usize, new: usize, percent: u32) -> (u32, u32) {
    let percent = percent.min(100);
    if old == 0 || percent == 100 && new > 0 {
        return (0, 1);
    }
    if new == 0 || percent == 0 {
        return (1, 0);
    }
    // In one round old × each_old : new × each_new = (100 − percent) : percent.
    let [old, new] = [old, new].map(|count| u32::try_from(count).unwrap_or(u32::MAX / 100));
    let (each_old, each_new) = ((100 - percent) * new, percent * old);
    let common = gcd(each_old, each_new);
    (each_old / common, each_new / common)
}

/// How many of a service's `instances` are new at a share: as many percent of them, rounded up, and at least one.
pub fn needed(instances: usize, percent: u32) -> usize {
    (instances * percent.min(100) as usize).div_ceil(100).max(1).min(instances)
}

/// The weights of the members of production, and the one of each member of a permanent canary, with which the canary's
/// together get exactly `share` of the requests and production's share the rest as before. As small as can be.
///
/// Where one side is empty the other one gets everything. `None` when the numbers are too large for a weight.
pub fn beside(production: &[u32], canaries: usize, share: Fraction) -> Option<(Vec<u32>, u32)> {
    let all: u64 = production.iter().copied().map(u64::from).sum();
    if canaries == 0 || all == 0 {
        return Some((production.to_vec(), u32::from(canaries > 0)));
    }
    // In one round production : canary = all × (of − part) × n : n × all × part.
    let (part, of) = (u64::from(share.part), u64::from(share.of));
    let each = of.checked_sub(part)?.checked_mul(u64::try_from(canaries).ok()?)?;
    let canary = all.checked_mul(part)?;
    let production: Option<Vec<u64>> = production.iter().map(|&weight| u64::from(weight).checked_mul(each)).collect();
    let production = production?;
    let common = production.iter().fold(canary, |common, &weight| gcd(common, weight)).max(1);
    let smaller = |weight: u64| u32::try_from(weight / common).ok();
    let production: Option<Vec<u32>> = production.into_iter().map(smaller).collect();
    Some((production?, smaller(canary)?))
}

fn gcd<T: Copy + Default + PartialEq + std::ops::Rem<Output = T>>(a: T, b: T) -> T {
    if b == T::default() { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_in_small_numbers() {
        assert_eq!(shares(2, 1, 10), (9, 2), "of 20 requests the new one gets 2");
        assert_eq!(shares(1, 1, 50), (1, 1));
        assert_eq!(shares(4, 2, 50), (1, 2));
        assert_eq!(shares(1, 1, 33), (67, 33));
        assert_eq!(shares(3, 0, 10), (1, 0));
        assert_eq!(shares(0, 2, 10), (0, 1));
        assert_eq!(shares(3, 2, 100), (0, 1));
        assert_eq!(shares(3, 2, 0), (1, 0));
    }

    #[test]
    fn as_many_new_ones_as_the_share_needs() {
        assert_eq!([1, 10, 11, 50, 99, 100].map(|percent| needed(10, percent)), [1, 1, 2, 5, 10, 10]);
        assert_eq!(needed(1, 10), 1);
        assert_eq!(needed(0, 10), 0);
    }

    #[test]
    fn a_permanent_canary_beside_production_in_small_numbers() {
        let third = Fraction { part: 1, of: 3 };
        assert_eq!(beside(&[1, 1], 1, third), Some((vec![1, 1], 1)));
        assert_eq!(beside(&[1, 1], 2, third), Some((vec![2, 2], 1)), "of 6 requests each canary gets 1");
        assert_eq!(beside(&[9, 9, 2], 1, Fraction { part: 1, of: 2 }), Some((vec![9, 9, 2], 20)));
        assert_eq!(beside(&[4, 4], 0, third), Some((vec![4, 4], 0)), "as they were");
        assert_eq!(beside(&[], 2, third), Some((vec![], 1)));
        assert_eq!(beside(&[u32::MAX, 1], 1, Fraction { part: 1, of: 100 }), None);
    }

    proptest! {
        /// The canary gets exactly its share of one round, the members of production share the rest as they did alone, and
        /// there are no smaller numbers.
        #[test]
        fn a_permanent_canarys_share_is_exact_over_one_round(
            production in proptest::collection::vec(1u32..=6400, 1..20),
            canaries in 1usize..=64,
            (part, of) in (2u32..=100).prop_flat_map(|of| (1..of, Just(of))),
        ) {
            let (weights, each) = beside(&production, canaries, Fraction { part, of }).unwrap();
            prop_assert!(each > 0 && weights.iter().all(|&weight| weight > 0));
            let round: u64 = weights.iter().copied().map(u64::from).sum::<u64>() + u64::from(each) * canaries as u64;
            prop_assert_eq!(u64::from(each) * canaries as u64 * u64::from(of), round * u64::from(part));
            for (before, after) in production.iter().zip(&weights) {
                let as_before = u64::from(*before) * u64::from(weights[0]) == u64::from(*after) * u64::from(production[0]);
                prop_assert!(as_before, "{production:?} became {weights:?}");
            }
            prop_assert_eq!(weights.iter().fold(each, |common, &weight| gcd(common, weight)), 1);
        }

        /// The share is exact over one round, everybody gets something, and there are no smaller numbers.
        #[test]
        fn a_share_is_exact_over_one_round(old in 1usize..=64, new in 1usize..=64, percent in 1u32..100) {
            let (each_old, each_new) = shares(old, new, percent);
            prop_assert!(each_old > 0 && each_new > 0);
            let (olds, news) = (u64::from(each_old) * old as u64, u64::from(each_new) * new as u64);
            prop_assert_eq!(news * 100, (olds + news) * u64::from(percent));
            prop_assert_eq!(gcd(each_old, each_new), 1);
            prop_assert!(olds + news <= 100 * 64 * 64);
        }

        #[test]
        fn a_greater_share_never_needs_fewer(instances in 1usize..=64, percent in 1u32..100) {
            prop_assert!(needed(instances, percent) <= needed(instances, percent + 1));
            prop_assert!(needed(instances, percent) * 100 >= instances * percent as usize);
        }
    }
}
