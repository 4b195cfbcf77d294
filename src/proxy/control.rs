//! How agent and proxy talk: JSON lines over a Unix socket, each at most 16 MiB.
//!
//! The agent sends [`Order`]s, the proxy answers with [`Report`]s. A connection starts with [`Report::Hello`].
//! Several agents may connect one after another (an upgrade); orders of the newest connection count.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::table::{DrainLimits, Table};
use crate::model::{AppName, InstanceId};

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Replace the table. Answered by [`Report::Applied`] once no request can be given to what left it.
    Apply(Table),
    /// Report when this instance, which left the table, has finished; cut what is left at the limits.
    Drain {
        /// Which.
        instance: InstanceId,
        /// Its budgets.
        limits: DrainLimits,
    },
    /// Answered by [`Report::Counts`].
    Count,
    /// Finish what is under way (at most this long) and end.
    Shutdown {
        /// Milliseconds.
        grace_ms: u64,
    },
}

/// From the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// First line of every connection.
    Hello {
        /// The binary's version.
        version: String,
        /// Process id.
        pid: u32,
        /// Random per process: counts start from zero with each.
        boot: String,
        /// Of the table in force.
        generation: u64,
        /// Addresses it listens on.
        listeners: Vec<String>,
    },
    /// This generation is in force: from now on nothing outside it is chosen.
    Applied {
        /// The table's number.
        generation: u64,
    },
    /// The table was not taken.
    Refused {
        /// The table's number.
        generation: u64,
        /// Why.
        why: String,
    },
    /// An instance has nothing under way any more.
    Drained {
        /// Which.
        instance: InstanceId,
        /// Requests ended by the limit.
        cut_requests: u64,
        /// Streams ended by the limit.
        cut_streams: u64,
        /// How long it took.
        took_ms: u64,
    },
    /// An instance refused connections or broke off before answering.
    UpstreamFailed {
        /// Which.
        instance: InstanceId,
        /// How.
        why: String,
    },
    /// Totals since this process started.
    Counts {
        /// Per app.
        apps: BTreeMap<AppName, AppCounts>,
        /// Requests and streams under way per instance, where there are any.
        in_flight: BTreeMap<InstanceId, u64>,
    },
}

/// Totals of one app since the proxy started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppCounts {
    /// Requests that got one complete answer from an instance (5xx of the app's own included).
    pub served: u64,
    /// Requests that did not: 502/503/504 of the proxy's making, answers cut short.
    pub failed: u64,
    /// Answers that an instance gave with a 5xx status.
    pub server_errors: u64,
    /// Requests given to a second instance.
    pub retried: u64,
}
