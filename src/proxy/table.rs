//! The route table: replaced whole, never edited.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{AppName, InstanceId, ServiceName};

/// Everything the proxy routes by. The agent numbers each table it sends; the proxy keeps the newest on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Grows with every table.
    pub generation: u64,
    /// One per routed service.
    pub routes: Vec<Route>,
}

/// One host's way to the instances of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Lower-case host names, without port.
    pub hosts: Vec<String>,
    /// Whose: requests are counted per app.
    pub app: AppName,
    /// Which service.
    pub service: ServiceName,
    /// The instances that are chosen.
    pub members: Vec<Member>,
}

/// An instance that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which.
    pub instance: InstanceId,
    /// Where.
    pub address: SocketAddr,
    /// Its integer share, 1 and up.
    pub weight: u32,
}

/// How long an instance that left the table may finish what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainLimits {
    /// For requests.
    pub requests: Duration,
    /// For open streams.
    pub streams: Duration,
}
