//! What happens, written once and read by the pusher's terminal, the API and the notices.
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::model::{AppName, DeploymentId, Duty, Health, InstanceId, ReleaseNumber, ServiceName, Status};
use crate::store::Store;

/// Something that happened in a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum DeployEvent {
    /// It entered a state; terminal states carry the reason.
    Status {
        /// The new state.
        status: Status,
        /// Why, for terminal states other than succeeded.
        reason: Option<String>,
        /// The release it made live, or kept.
        release: Option<ReleaseNumber>,
    },
    /// An instance moved.
    Instance {
        /// Which.
        instance: InstanceId,
        /// Of which service.
        service: ServiceName,
        /// Its place, from 1.
        slot: u32,
        /// Its health now.
        health: Health,
        /// Its duty now.
        duty: Duty,
    },
    /// A line of the log.
    Log {
        /// Counted per deployment, from 1.
        seq: u64,
        /// Without line end.
        line: String,
    },
}

/// An event with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Whose.
    pub app: AppName,
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// What.
    #[serde(flatten)]
    pub event: DeployEvent,
}

/// Where a deployment's log lines go. Cheap to clone; [`DeployLog::line`] never waits.
#[derive(Clone)]
pub struct DeployLog(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for DeployLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeployLog")
    }
}

impl DeployLog {
    /// A log that hands each line to `sink`.
    pub fn new(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Adds one line (without line end).
    pub fn line(&self, text: impl AsRef<str>) {
        (self.0)(text.as_ref());
    }
}
