//! How a share of the requests becomes weights. Whole numbers alone: a share is exact or it is none.

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

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
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

    proptest! {
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
