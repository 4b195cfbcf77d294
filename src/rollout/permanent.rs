//! The watch over a permanent canary, an app that gets a fixed share of another one's requests: is it there, and does it
//! answer as well as production? Pure: `now` counts from any fixed moment.
//!
//! ```text
//!             none ready for 3 s                     compares badly
//!            ┌───────────────────── serving ──────────────────────────┐
//!            ▼                       ▲  ▲                             ▼
//!          down ─────────────────────┘  └── on trial ◀─────────── suspended
//!                 ready for 3 s        10 good │      1 min, 2 min …  ▲
//!                                      minutes └──────────────────────┘
//! ```
//!
//! One that is down is not given requests by its readiness alone; only a suspension takes its share away. A new deployment
//! that goes live ends a suspension at once, when it is newer than the one that failed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::DeploymentId;

pub mod comparison;

/// Instances that are away for less are being restarted; as long they must be ready again.
const PATIENCE: Duration = Duration::from_secs(3);
/// From the first suspension to the trial; doubled with each further one.
const FIRST_SUSPENSION: Duration = Duration::from_secs(60);
const LONGEST_SUSPENSION: Duration = Duration::from_secs(30 * 60);
/// A canary that answers well for so long on trial has no history.
const PROBATION: Duration = Duration::from_secs(10 * 60);

/// What there is to know of a canary at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The deployment that is live; `None` while none is, or none of its instances is wanted.
    pub live: Option<DeploymentId>,
    /// The newest deployment among those of the instances that are given requests. Until it is live it is ahead of `live`.
    pub newest: Option<DeploymentId>,
    /// Some of its instances may be given requests.
    pub ready: bool,
    /// Why it is worse than production, if it is.
    pub fails: Option<String>,
}

/// How a canary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It gets its share.
    Serving,
    /// None of its instances is ready.
    Down,
    /// It compared badly, and production gets all requests.
    Suspended,
}

/// What people are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alarm {
    /// It is down.
    Down,
    /// It compared badly. This lasts through its trials, until it is past one.
    Suspended {
        /// How often it did.
        times: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suspension {
    /// How often in a row.
    times: u32,
    /// `Err`: it is on trial, and answers well since then.
    until: Result<Duration, Duration>,
}

/// The watch over one canary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watch {
    /// The deployment that compared badly.
    failed: Option<DeploymentId>,
    down: bool,
    /// Since when its instances say otherwise than `down`.
    turning: Option<Duration>,
    suspension: Option<Suspension>,
    why: Option<String>,
}

impl Watch {
    /// Of a canary that an earlier life of the agent had raised an alarm about, `age` ago at `now`.
    pub fn recalled(alarm: Alarm, failed: Option<DeploymentId>, why: String, age: Duration, now: Duration) -> Self {
        let mut watch = Self { failed, why: Some(why), ..Self::default() };
        match alarm {
            Alarm::Down => watch.down = true,
            Alarm::Suspended { times } => {
                let until = match pause(times).checked_sub(age) {
                    Some(left) => Ok(now + left),
                    None => Err(now),
                };
                watch.suspension = Some(Suspension { times, until });
            }
        }
        watch
    }

    /// Takes what is seen at `now`.
    pub fn see(&mut self, seen: Seen, now: Duration) {
        let Some(live) = seen.live else {
            // Nothing is expected of it.
            return *self = Self::default();
        };
        if self.failed.is_some_and(|failed| failed < live) {
            self.suspension = None;
        }
        self.see_readiness(seen.ready, now);
        match (&mut self.suspension, seen.fails) {
            (Some(Suspension { until: Ok(until), .. }), _) if now < *until => {}
            (Some(suspension @ Suspension { until: Ok(_), .. }), _) => suspension.until = Err(now),
            (suspended, Some(why)) if !self.down => {
                let times = suspended.map_or(0, |before| before.times).saturating_add(1);
                *suspended = Some(Suspension { times, until: Ok(now + pause(times)) });
                (self.why, self.failed) = (Some(why), seen.newest.max(Some(live)));
            }
            // While it is down it proves nothing.
            (Some(suspension), _) if self.down => suspension.until = Err(now),
            (Some(Suspension { until: Err(since), .. }), None) if now.saturating_sub(*since) >= PROBATION => {
                self.suspension = None;
            }
            _ => {}
        }
        if self.suspension.is_none() {
            (self.why, self.failed) = (None, None);
        }
    }

    fn see_readiness(&mut self, ready: bool, now: Duration) {
        if ready != self.down {
            self.turning = None;
            return;
        }
        let since = *self.turning.get_or_insert(now);
        if now.saturating_sub(since) >= PATIENCE {
            (self.down, self.turning) = (!ready, None);
        }
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        match (&self.suspension, self.down) {
            (Some(Suspension { until: Ok(_), .. }), _) => Standing::Suspended,
            (_, true) => Standing::Down,
            (_, false) => Standing::Serving,
        }
    }

    /// What people should know of.
    pub fn alarm(&self) -> Option<Alarm> {
        match self.suspension {
            Some(Suspension { times, .. }) => Some(Alarm::Suspended { times }),
            None => self.down.then_some(Alarm::Down),
        }
    }

    /// Why it was suspended, while that is not forgotten.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// The deployment that was, while that is not forgotten.
    pub fn failed(&self) -> Option<DeploymentId> {
        self.failed
    }
}

/// How long a canary is suspended that is for so many times in a row.
fn pause(times: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(times.saturating_sub(1));
    FIRST_SUSPENSION.saturating_mul(doubled).min(LONGEST_SUSPENSION)
}

#[cfg(test)]
mod tests;
