//! What became of the requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Kind;

/// What came instead of the wanted answer.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "told by the failed test")]
pub enum What {
    /// Another status.
    Status { status: u16, version: String, text: String },
    /// No complete answer.
    Broken(String),
    /// An answer to something else.
    Wrong(String),
}

/// A request that did not get its answer.
#[derive(Debug, Clone)]
pub struct Failure {
    pub id: u64,
    pub host: &'static str,
    pub kind: Kind,
    /// When its connection was made; `None`: it was not.
    pub connected: Option<Instant>,
    pub began: Instant,
    pub ended: Instant,
    pub what: What,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, host, kind, connected, began, ended, what } = self;
        let age = connected.map(|connected| began.saturating_duration_since(connected));
        let took = *ended - *began;
        write!(f, "{kind:?} {id} of {host}, {took:.2?} long on a connection {age:.2?} old: {what:?}")
    }
}

/// What happened to WebSockets once they were open.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    /// Messages that came back as they were sent.
    pub echoed: u64,
    /// Connections that ended between two messages.
    pub ended: u64,
    /// Connections that ended with a message under way.
    pub ended_with_message: u64,
    /// Those of both that were asked in a frame to come back (close code 1012).
    pub told: u64,
    /// Those of both that were reset rather than closed.
    pub reset: u64,
    /// The age of the youngest one that ended.
    pub youngest: Option<Duration>,
    /// Those of them whose last message had not been answered for longer than a proxy waits for it.
    pub unanswered: BTreeSet<u64>,
    /// How many bytes came back over each, by the number of the request that opened it.
    pub bytes: BTreeMap<u64, u64>,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Report {
    pub answered: BTreeMap<Kind, u64>,
    pub failures: Vec<Failure>,
    pub sockets: Sockets,
    /// When each version answered.
    pub versions: BTreeMap<String, Vec<Instant>>,
    /// The longest that an answer took, beyond what the app itself takes.
    pub slowest: Duration,
    /// The numbers of all POSTs, answered or not.
    pub posts: BTreeSet<u64>,
    /// Requests that HTTP/2 gave back, because the connection was being closed: sent on another one.
    pub given_back: u64,
}
