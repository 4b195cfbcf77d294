//! Replacing instances: a pure machine, and the driver that performs what it asks for.
pub mod machine;
pub mod plan;

use std::net::SocketAddr;

use jiff::Timestamp;

use crate::model::{CommitSha, DeploymentId, Duty, Health, InstanceId, ReleaseNumber, ServiceName};

/// One instance as the app's driver sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceState {
    /// Which.
    pub id: InstanceId,
    /// Of which service.
    pub service: ServiceName,
    /// Its place, from 1.
    pub slot: u32,
    /// The release it was started for.
    pub release: ReleaseNumber,
    /// Of which commit.
    pub commit: CommitSha,
    /// The deployment that started it.
    pub deployment: DeploymentId,
    /// Where it is reached.
    pub address: Option<SocketAddr>,
    /// Written by the gate.
    pub health: Health,
    /// Written by the machine.
    pub duty: Duty,
    /// Its share; 0 unless serving.
    pub weight: u32,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// How often the runtime restarted it.
    pub restarts: u32,
    /// The last answer of its health check, in words.
    pub last_check: Option<String>,
}
