//! How many of what, and in which order.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::chance::Chance;

/// How often, and by what chance.
pub struct Plan {
    pub seed: u64,
    deployments: usize,
    rollbacks: usize,
    kills: usize,
    upgrades: usize,
}

/// What replaces the app's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Deploy,
    Rollback,
}

/// What befalls the agent meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// kill -9, and another start.
    Kill,
    /// Told to end; the agent of another binary starts and replaces the proxy.
    Upgrade,
}

/// A change, with what comes in the middle of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub change: Change,
    pub blow: Option<Blow>,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.change {
            Change::Deploy => "deployment",
            Change::Rollback => "rollback",
        })?;
        match self.blow {
            Some(Blow::Kill) => f.write_str(" (agent killed)"),
            Some(Blow::Upgrade) => f.write_str(" (upgraded)"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deployments, rollbacks, kills, upgrades, .. } = self;
        write!(f, "{deployments} deployments, {rollbacks} rollbacks, {kills} kills, {upgrades} upgrades")
    }
}

impl Plan {
    /// The number of deployments gives the others. Without one it is a short form.
    pub fn of_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        let seed = number("LONGSHORE_PROOF_SEED").unwrap_or_else(now);
        match number("LONGSHORE_PROOF_DEPLOYMENTS") {
            None => Self { seed, deployments: 6, rollbacks: 2, kills: 2, upgrades: 1 },
            Some(deployments) => {
                let deployments = deployments.max(1) as usize;
                let (rollbacks, kills) = (deployments / 4, deployments.div_ceil(10));
                let upgrades = deployments.div_ceil(40).min(deployments + rollbacks - kills);
                Self { seed, deployments, rollbacks, kills, upgrades }
            }
        }
    }

    /// All of it in an order by chance: each kill and each upgrade in the middle of another change.
    pub fn turns(&self) -> Vec<Turn> {
        let mut chance = Chance::of(self.seed, "order");
        let mut changes = vec![Change::Deploy; self.deployments];
        changes.resize(self.deployments + self.rollbacks, Change::Rollback);
        let mut blows = vec![Some(Blow::Kill); self.kills];
        blows.resize(self.kills + self.upgrades, Some(Blow::Upgrade));
        blows.resize(changes.len(), None);
        shuffle(&mut changes, &mut chance);
        shuffle(&mut blows, &mut chance);
        changes.into_iter().zip(blows).map(|(change, blow)| Turn { change, blow }).collect()
    }
}

/// Every order is as likely as any other (Fisher and Yates).
fn shuffle<T>(all: &mut [T], chance: &mut Chance) {
    for left in (2..=all.len()).rev() {
        all.swap(left - 1, chance.below(left));
    }
}
