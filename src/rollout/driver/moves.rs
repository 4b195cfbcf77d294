//! The machine of a rollout: the rolling one, or that of a canary.

use std::collections::BTreeSet;

use crate::model::InstanceId;
use crate::rollout::canary::Canary;
use crate::rollout::machine::{Action, Event, Now, Rollout};

/// Which machine moves the instances.
pub(super) enum Moves {
    Rolling(Rollout),
    Canary(Box<Canary>),
}

impl Moves {
    pub fn on(&mut self, event: Event, now: Now) -> Vec<Action> {
        match self {
            Self::Rolling(rollout) => rollout.on(event, now),
            Self::Canary(canary) => canary.on(event, now),
        }
    }

    /// Says which new instances serve where no old one could; see [`Canary::set_alone`].
    pub fn set_alone(&mut self, alone: BTreeSet<InstanceId>) {
        if let Self::Canary(canary) = self {
            canary.set_alone(alone);
        }
    }

    pub fn depends_on(&self, id: &InstanceId) -> bool {
        match self {
            Self::Rolling(rollout) => rollout.depends_on(id),
            Self::Canary(canary) => canary.depends_on(id),
        }
    }

    pub fn is_watching(&self) -> bool {
        match self {
            Self::Rolling(rollout) => rollout.is_watching(),
            Self::Canary(canary) => canary.is_watching(),
        }
    }

    /// Whether the old instances serve as ever, and are to be kept up.
    pub fn keeps_old(&self) -> bool {
        self.canary().is_some_and(Canary::keeps_old)
    }

    pub fn canary(&self) -> Option<&Canary> {
        match self {
            Self::Rolling(_) => None,
            Self::Canary(canary) => Some(canary),
        }
    }
}
