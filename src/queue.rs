//! Which waiting deployment runs next, and which ones a newer one replaces.
//!
//! Newest wins, with one exception: an older ancestor never replaces a newer commit, unless the branch was rewound
//! on purpose. [`replaced_on_arrival`] decides what is certain without git when a request arrives;
//! [`choose`] decides the rest when an app's turn comes and its mirror can be asked.

use crate::model::{CommitSha, DeploymentId, ReleaseNumber, ServiceName};
use serde::{Deserialize, Serialize};

/// What a deployment is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Request {
    /// Bring a commit live.
    Deploy {
        /// Exactly this one; `None` = the branch's tip when the deployment starts.
        commit: Option<CommitSha>,
        /// What the branch pointed to before, where a push says so.
        before: Option<CommitSha>,
        /// The branch was rewound or rewritten on purpose, or a person named the commit.
        forced: bool,
    },
    /// Bring an earlier release live again.
    Rollback {
        /// Which; `None` = the last one that passed its watch.
        to: Option<ReleaseNumber>,
    },
    /// Run another number of instances.
    Scale {
        /// Of which service.
        service: ServiceName,
        /// How many.
        instances: u32,
    },
    /// Replace every instance by a new one of the same release.
    Restart,
}

impl Request {
    /// Whether it decides which release is live, so that of several only one has to run.
    fn picks_release(&self) -> bool {
        matches!(self, Self::Deploy { .. } | Self::Rollback { .. })
    }

    fn commit(&self) -> Option<&CommitSha> {
        match self {
            Self::Deploy { commit, .. } => commit.as_ref(),
            _ => None,
        }
    }
}

/// How two commits relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestry {
    /// The same commit.
    Same,
    /// The first is an ancestor of the second.
    Ancestor,
    /// The second is an ancestor of the first.
    Descendant,
    /// Neither, or one is not known to whoever was asked.
    Unrelated,
}

/// A deployment that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub id: DeploymentId,
    /// What it is asked to do.
    pub request: Request,
}

/// Which waiting requests an arriving one can replace at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach<'a> {
    /// Any of them.
    All,
    /// Those that name no commit, and those that name one of these.
    Commits([Option<&'a CommitSha>; 2]),
}

/// Says where [`replaced_on_arrival`] needs to look: what is out of reach is never replaced.
pub fn reach(arrival: &Request) -> Reach<'_> {
    match arrival {
        Request::Deploy { commit: Some(commit), before, forced: false } => {
            Reach::Commits([Some(commit), before.as_ref().filter(|before| *before != commit)])
        }
        Request::Deploy { .. } | Request::Rollback { .. } => Reach::All,
        Request::Scale { .. } | Request::Restart => Reach::Commits([None, None]),
    }
}

/// Which of `waiting` an arriving request replaces for certain, before git is asked.
pub fn replaced_on_arrival(waiting: &[Waiting], arrival: &Request) -> Vec<DeploymentId> {
    let replaces = |old: &Request| match (arrival, old) {
        (Request::Rollback { .. }, old) => old.picks_release(),
        (Request::Deploy { commit: None, .. } | Request::Deploy { forced: true, .. }, old) => old.picks_release(),
        (Request::Deploy { .. }, Request::Rollback { .. } | Request::Deploy { commit: None, .. }) => true,
        (Request::Deploy { commit, before, .. }, Request::Deploy { commit: old_commit, .. }) => {
            old_commit == commit || old_commit == before
        }
        (Request::Scale { service, .. }, Request::Scale { service: old_service, .. }) => service == old_service,
        (Request::Restart, Request::Restart) => true,
        _ => false,
    };
    waiting.iter().filter(|old| replaces(&old.request)).map(|old| old.id).collect()
}

/// What runs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// This one runs.
    pub run: DeploymentId,
    /// These do not run any more.
    pub superseded: Vec<Superseded>,
}

/// A waiting deployment that gives way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superseded {
    /// Which.
    pub id: DeploymentId,
    /// In favour of which.
    pub by: DeploymentId,
    /// It arrived later, but its commit is contained in the other's.
    pub contained: bool,
}

/// Whether [`choose`] needs to ask git: several commits wait.
pub fn needs_ancestry(waiting: &[Waiting]) -> bool {
    waiting.iter().filter(|w| w.request.commit().is_some()).count() > 1
}

/// Chooses among `waiting` (oldest first). Operations keep their turn; of the requests that pick a release only one runs.
pub fn choose(waiting: &[Waiting], mut ancestry: impl FnMut(&CommitSha, &CommitSha) -> Ancestry) -> Option<Choice> {
    let first = waiting.first()?;
    if !first.request.picks_release() {
        return Some(Choice { run: first.id, superseded: Vec::new() });
    }
    let candidates: Vec<&Waiting> = waiting.iter().filter(|w| w.request.picks_release()).collect();
    let mut best = *candidates.last()?;
    let mut contained = Vec::new();
    for older in candidates.iter().rev().skip(1).copied() {
        if contains(older, best, &mut ancestry) {
            contained.push(best.id);
            best = older;
        }
    }
    let superseded = candidates
        .iter()
        .filter(|w| w.id != best.id)
        .map(|w| Superseded { id: w.id, by: best.id, contained: contained.contains(&w.id) })
        .collect();
    Some(Choice { run: best.id, superseded })
}

/// Whether `newer` brings nothing that `older` does not have, without having rewound the branch on purpose.
fn contains(older: &Waiting, newer: &Waiting, ancestry: &mut impl FnMut(&CommitSha, &CommitSha) -> Ancestry) -> bool {
    let Request::Deploy { commit: Some(new), before, forced: false } = &newer.request else { return false };
    let Some(old) = older.request.commit() else { return false };
    let rewound = before.as_ref().is_some_and(|before| ancestry(new, before) == Ancestry::Ancestor);
    !rewound && ancestry(new, old) == Ancestry::Ancestor
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sha(n: u64) -> CommitSha {
        format!("{n:040x}").parse().unwrap()
    }

    fn deploy(commit: u64, before: u64, forced: bool) -> Request {
        Request::Deploy { commit: Some(sha(commit)), before: Some(sha(before)), forced }
    }

    fn waiting(requests: Vec<Request>) -> Vec<Waiting> {
        requests
            .into_iter()
            .enumerate()
            .map(|(i, request)| Waiting { id: DeploymentId(i as i64 + 1), request })
            .collect()
    }

    /// A branch whose commits are numbered in order.
    fn linear(first: &CommitSha, second: &CommitSha) -> Ancestry {
        match first.as_str().cmp(second.as_str()) {
            std::cmp::Ordering::Less => Ancestry::Ancestor,
            std::cmp::Ordering::Equal => Ancestry::Same,
            std::cmp::Ordering::Greater => Ancestry::Descendant,
        }
    }

    #[test]
    fn a_push_replaces_the_one_it_builds_on() {
        let queue = waiting(vec![deploy(2, 1, false)]);
        assert_eq!(replaced_on_arrival(&queue, &deploy(3, 2, false)), [DeploymentId(1)]);
        assert_eq!(replaced_on_arrival(&queue, &deploy(1, 0, false)), []);
        assert_eq!(replaced_on_arrival(&queue, &Request::Rollback { to: None }), [DeploymentId(1)]);
        assert_eq!(replaced_on_arrival(&queue, &Request::Restart), []);
    }

    #[test]
    fn a_late_older_push_does_not_replace_a_newer_commit() {
        let queue = waiting(vec![deploy(3, 2, false), deploy(2, 1, false)]);
        let choice = choose(&queue, linear).unwrap();
        assert_eq!(choice.run, DeploymentId(1));
        assert_eq!(choice.superseded, [Superseded { id: DeploymentId(2), by: DeploymentId(1), contained: true }]);
    }

    #[test]
    fn a_rewound_branch_deploys_the_older_commit() {
        let forced = waiting(vec![deploy(3, 2, false), deploy(2, 9, true)]);
        assert_eq!(choose(&forced, linear).unwrap().run, DeploymentId(2));
        let from_it = waiting(vec![deploy(3, 2, false), deploy(2, 3, false)]);
        assert_eq!(choose(&from_it, linear).unwrap().run, DeploymentId(2));
    }

    #[test]
    fn operations_keep_their_turn() {
        let queue = waiting(vec![Request::Restart, deploy(2, 1, false)]);
        assert_eq!(choose(&queue, linear).unwrap(), Choice { run: DeploymentId(1), superseded: vec![] });
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let commit = || prop::option::of((0u64..4).prop_map(sha));
        prop_oneof![
            (commit(), commit(), any::<bool>()).prop_map(|(commit, before, forced)| Request::Deploy {
                commit,
                before,
                forced
            }),
            prop::option::of((1u32..3).prop_map(ReleaseNumber)).prop_map(|to| Request::Rollback { to }),
            (prop_oneof!["web", "worker"], 0u32..3)
                .prop_map(|(service, instances)| Request::Scale { service: service.parse().unwrap(), instances }),
            Just(Request::Restart),
        ]
    }

    proptest! {
        /// Looking only where an arrival reaches finds all that it replaces.
        #[test]
        fn what_is_out_of_reach_is_never_replaced(
            queue in prop::collection::vec(any_request(), 0..12).prop_map(waiting),
            arrival in any_request(),
        ) {
            let near: Vec<Waiting> = match reach(&arrival) {
                Reach::All => queue.clone(),
                Reach::Commits(commits) => {
                    let reached = |w: &&Waiting| w.request.commit().is_none_or(|commit| commits.contains(&Some(commit)));
                    queue.iter().filter(reached).cloned().collect()
                }
            };
            prop_assert_eq!(replaced_on_arrival(&near, &arrival), replaced_on_arrival(&queue, &arrival));
        }

        /// However deliveries of one branch are shuffled and cut into arrivals, the newest commit is what runs last
        /// or is the one chosen, and no waiting request is forgotten.
        #[test]
        fn the_newest_commit_wins_in_any_order(order in Just((2u64..9).collect::<Vec<_>>()).prop_shuffle()) {
            let mut queue: Vec<Waiting> = Vec::new();
            for (i, &n) in order.iter().enumerate() {
                let request = deploy(n, n - 1, false);
                let replaced = replaced_on_arrival(&queue, &request);
                for id in &replaced {
                    let old = queue.iter().find(|w| w.id == *id).unwrap();
                    prop_assert_eq!(old.request.commit().unwrap(), &sha(n - 1));
                }
                queue.retain(|w| !replaced.contains(&w.id));
                queue.push(Waiting { id: DeploymentId(i as i64), request });
            }
            let choice = choose(&queue, linear).unwrap();
            let run = queue.iter().find(|w| w.id == choice.run).unwrap();
            prop_assert_eq!(run.request.commit().unwrap(), &sha(8));
            prop_assert_eq!(choice.superseded.len() + 1, queue.len());
        }
    }
}
