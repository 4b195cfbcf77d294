//! What the agent was asked and what it said: what it must be held to afterwards.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// How a pushed version behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Good,
    ExitsAtOnce,
    NeverReady,
    /// One instance answers every page with 500 and passes its health checks.
    Answers500,
    /// One instance crashes a second after it became ready, again and again.
    Crashes,
    BuildFails,
    ReleaseFails,
}

impl Version {
    /// Whether it may go live.
    pub fn is_good(self) -> bool {
        self == Self::Good
    }

    /// Whether it may answer a request: one that passes its gate does, until it is undone.
    pub fn may_serve(self) -> bool {
        matches!(self, Self::Good | Self::Answers500 | Self::Crashes)
    }
}

/// A pushed commit.
#[derive(Debug, Clone)]
pub struct Pushed {
    pub app: &'static str,
    /// What its instances answer.
    pub name: String,
    pub version: Version,
    pub commit: String,
    /// The delivery's id.
    pub delivery: String,
    /// The deployment it became; `None`: nobody took it yet.
    pub deployment: Option<u64>,
}

#[derive(Default)]
pub struct Entries {
    pub pushes: Vec<Pushed>,
    /// Deployments of rollbacks, scales and restarts, with their apps.
    pub operations: Vec<(&'static str, u64)>,
    /// Deployments that somebody asked to end.
    pub cancelled: BTreeSet<u64>,
    /// Times that a delivery had to be sent again because nobody answered or took it.
    pub redelivered: u64,
    /// Deliveries that came a second time on purpose.
    pub duplicates: u64,
    /// Operations and cancellations that nobody answered.
    pub unanswered: u64,
    /// What was answered as it must not be.
    pub wrong: Vec<String>,
}

/// Shared by those who write it.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Entries>>);

impl Ledger {
    pub fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap()
    }

    /// A delivery was taken; twice it must be the same deployment.
    pub fn accepted(&self, delivery: &str, deployment: u64) {
        let mut entries = self.entries();
        let pushed = entries.pushes.iter_mut().find(|pushed| pushed.delivery == delivery).expect("it was written down");
        match pushed.deployment.replace(deployment) {
            Some(before) if before != deployment => {
                entries.wrong.push(format!("delivery {delivery} became deployments {before} and {deployment}"));
            }
            _ => {}
        }
    }
}
