//! Which member gets the next request: shares by integer weight, the least busy among equals. No clock, no chance.

use serde::{Deserialize, Serialize};

/// How the next of several members with one weight is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The one with the fewest requests under way.
    #[default]
    LeastConnections,
    /// One after another.
    RoundRobin,
}

/// Chooses among members known by their position.
///
/// Members of one group and one weight form a class. Classes take turns by smooth weighted round robin, so over any window
/// as long as the sum of weights each class gets exactly its share. Inside a class the least busy member is next,
/// and equally busy ones take turns; or all take turns.
///
/// A class keeps its share while any of its members may be chosen: when some of the old instances are passed over for a
/// moment, those of a canary get no more than before.
#[derive(Debug, Default)]
pub struct Picker {
    balance: Balance,
    classes: Vec<Class>,
}

#[derive(Debug)]
struct Class {
    group: u8,
    /// Of each member.
    weight: i64,
    members: Vec<usize>,
    /// What the class has earned and not yet spent.
    credit: i64,
    /// Where the turn among equally busy members starts.
    next: usize,
}

impl Picker {
    /// For members with these groups and weights; a weight of 0 is never chosen.
    pub fn new(balance: Balance, members: impl IntoIterator<Item = (u8, u32)>) -> Self {
        let mut classes: Vec<Class> = Vec::new();
        for (member, (group, weight)) in members.into_iter().enumerate() {
            let weight = i64::from(weight);
            if weight == 0 {
                continue;
            }
            match classes.iter_mut().find(|class| (class.group, class.weight) == (group, weight)) {
                Some(class) => class.members.push(member),
                None => classes.push(Class { group, weight, members: vec![member], credit: 0, next: 0 }),
            }
        }
        Self { balance, classes }
    }

    /// The next member among those that `may` be chosen; `load` tells how busy one is.
    pub fn choose(&mut self, load: impl Fn(usize) -> u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let class = match self.classes.as_mut_slice() {
            [only] => only,
            classes => next_class(classes, &may)?,
        };
        match self.balance {
            Balance::LeastConnections => class.least_busy(load, may),
            Balance::RoundRobin => class.least_busy(|_| 0, may),
        }
    }
}

fn next_class<'a>(classes: &'a mut [Class], may: &impl Fn(usize) -> bool) -> Option<&'a mut Class> {
    let mut total = 0;
    let mut richest: Option<&mut Class> = None;
    for class in classes {
        if !class.members.iter().any(|&member| may(member)) {
            continue;
        }
        let share = class.weight * i64::try_from(class.members.len()).unwrap_or(i64::MAX / class.weight);
        class.credit += share;
        total += share;
        if richest.as_ref().is_none_or(|best| class.credit > best.credit) {
            richest = Some(class);
        }
    }
    let chosen = richest?;
    chosen.credit -= total;
    Some(chosen)
}

impl Class {
    fn least_busy(&mut self, load: impl Fn(usize) -> u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.members.len();
        let turn = (0..count).map(|step| (self.next + step) % count);
        let (place, member) = turn
            .map(|place| (place, self.members[place]))
            .filter(|&(_, member)| may(member))
            .min_by_key(|&(_, member)| load(member))?;
        self.next = (place + 1) % count;
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(weights: &[u32], picks: usize) -> Vec<usize> {
        let mut picker = Picker::new(Balance::LeastConnections, weights.iter().map(|&weight| (0, weight)));
        (0..picks).filter_map(|_| picker.choose(|_| 0, |_| true)).collect()
    }

    #[test]
    fn a_tenth_is_a_tenth_and_evenly_spread() {
        let order = run(&[10, 90], 100);
        assert_eq!(order.iter().filter(|&&member| member == 0).count(), 10);
        assert!(order.chunks(10).all(|ten| ten.iter().filter(|&&member| member == 0).count() == 1), "{order:?}");
    }

    #[test]
    fn the_least_busy_of_equals_is_next() {
        let mut picker = Picker::new(Balance::LeastConnections, [(0, 1); 3]);
        let busy = [3, 1, 2];
        for _ in 0..5 {
            assert_eq!(picker.choose(|member| busy[member], |_| true), Some(1));
        }
        assert_eq!(picker.choose(|member| busy[member], |member| member != 1), Some(2));
    }

    #[test]
    fn in_turn_means_however_busy() {
        let mut picker = Picker::new(Balance::RoundRobin, [(0, 1); 3]);
        let order: Vec<_> = (0..6).filter_map(|_| picker.choose(|member| [9, 0, 4][member], |_| true)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn groups_of_one_weight_share_exactly_however_busy() {
        let mut picker = Picker::new(Balance::LeastConnections, [(0, 1), (1, 1)]);
        let busy = [9, 0];
        let order: Vec<_> = (0..6).filter_map(|_| picker.choose(|member| busy[member], |_| true)).collect();
        assert_eq!(order.iter().filter(|&&member| member == 1).count(), 3, "{order:?}");
    }

    #[test]
    fn a_group_gets_no_more_while_some_of_the_other_are_passed_over() {
        let mut picker = Picker::new(Balance::LeastConnections, [(0, 9), (0, 9), (1, 2)]);
        let picked = (0..200).filter_map(|_| picker.choose(|_| 0, |member| member != 0));
        assert_eq!(picked.filter(|&member| member == 2).count(), 20);
        assert_eq!(picker.choose(|_| 0, |member| member == 2), Some(2), "nobody else may be chosen");
    }

    #[test]
    fn nobody_means_nobody() {
        assert_eq!(Picker::new(Balance::LeastConnections, []).choose(|_| 0, |_| true), None);
        assert_eq!(Picker::new(Balance::LeastConnections, [(0, 0); 2]).choose(|_| 0, |_| true), None);
        assert_eq!(Picker::new(Balance::LeastConnections, [(0, 1), (0, 2)]).choose(|_| 0, |_| false), None);
    }

    proptest! {
        /// Over any window of one round, every member gets exactly its weight.
        #[test]
        fn shares_are_exact_over_every_window(weights in proptest::collection::vec(0u32..12, 1..8), rounds in 1usize..4) {
            let round = weights.iter().sum::<u32>() as usize;
            let order = run(&weights, round * (rounds + 1));
            prop_assert_eq!(order.len(), round * (rounds + 1));
            for class in weights.iter().copied().filter(|&w| w > 0).collect::<std::collections::BTreeSet<_>>() {
                let of_class = |member: usize| weights[member] == class;
                let share = weights.iter().filter(|&&w| w == class).sum::<u32>() as usize;
                for window in order.windows(round) {
                    prop_assert_eq!(window.iter().filter(|&&m| of_class(m)).count(), share);
                }
            }
            for (member, &weight) in weights.iter().enumerate() {
                let got = order[..round].iter().filter(|&&m| m == member).count();
                prop_assert_eq!(got, weight as usize);
            }
        }

        /// Whatever is busy or barred when: what may not be chosen is not, and someone is while anyone may.
        #[test]
        fn only_who_may_is_chosen(
            weights in proptest::collection::vec(0u32..5, 1..8),
            steps in proptest::collection::vec((any::<u8>(), proptest::collection::vec(0u64..9, 8)), 1..60),
        ) {
            let mut picker = Picker::new(Balance::LeastConnections, weights.iter().map(|&weight| (0, weight)));
            for (mask, loads) in steps {
                let may = |member: usize| mask & (1 << member) != 0;
                let candidates: Vec<usize> = (0..weights.len()).filter(|&m| weights[m] > 0 && may(m)).collect();
                match picker.choose(|member| loads[member], may) {
                    None => prop_assert!(candidates.is_empty()),
                    Some(chosen) => {
                        prop_assert!(candidates.contains(&chosen));
                        let peers = candidates.iter().filter(|&&m| weights[m] == weights[chosen]);
                        prop_assert_eq!(loads[chosen], peers.map(|&m| loads[m]).min().unwrap());
                    }
                }
            }
        }
    }
}
