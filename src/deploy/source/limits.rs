//! How long the git side may take, and how it is stopped.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::SourceError;
use crate::model::shorten;
use crate::text;

/// The time-outs of one fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection to be made. Default 10 s.
    pub connect: Duration,
    /// Without a single byte from the server. Default 30 s.
    pub idle: Duration,
    /// For the whole fetch. Default 10 min.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), idle: Duration::from_secs(30), total: Duration::from_secs(600) }
    }
}

/// Why a step of a fetch did not succeed; becomes a [`SourceError`] unless the fetch knows a way on.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The deployment was cancelled.
    Cancelled,
    /// The server has no such object, or does not give it out by id.
    NotGiven,
    /// The connection ended before the answer did.
    Closed(String),
    /// Our own mirror is at fault: cloning it anew helps.
    Damaged(String),
    /// Anything else, in one line.
    Failed(String),
}

impl Trouble {
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }
}

impl From<Trouble> for SourceError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Cancelled => Self::Cancelled,
            Trouble::NotGiven => Self::NoSuchCommit("the server does not give out this commit".to_owned()),
            Trouble::Damaged(why) => Self::Failed(format!("the mirror is damaged: {why}")),
            Trouble::Failed(why) | Trouble::Closed(why) => Self::Failed(why),
        }
    }
}

/// The time-outs of the fetch under way and the token that cancels it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub timeouts: Timeouts,
    deadline: Instant,
    cancel: CancellationToken,
}

impl Limits {
    /// Limits that begin to count now.
    pub fn start(timeouts: Timeouts, cancel: &CancellationToken) -> Self {
        Self { timeouts, deadline: Instant::now() + timeouts.total, cancel: cancel.clone() }
    }

    /// Awaits one piece of input or output of `host`, no longer than the idle time and the deadline.
    pub async fn io<T>(&self, host: &str, work: impl Future<Output = T>) -> Result<T, Trouble> {
        let idle = Instant::now() + self.timeouts.idle;
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Trouble::Cancelled),
            done = timeout_at(idle.min(self.deadline), work) => done.map_err(|_| {
                if idle < self.deadline {
                    Trouble::Failed(format!("{host} has sent nothing for {:?}", self.timeouts.idle))
                } else {
                    self.too_long()
                }
            }),
        }
    }

    /// Awaits something of our own (a lock), no longer than the deadline.
    pub async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Trouble> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Trouble::Cancelled),
            done = timeout_at(self.deadline, work) => done.map_err(|_| self.too_long()),
        }
    }

    /// For loops that block: an error once the fetch is cancelled or out of time.
    pub fn check(&self) -> Result<(), Trouble> {
        if self.cancel.is_cancelled() {
            return Err(Trouble::Cancelled);
        }
        if Instant::now() >= self.deadline {
            return Err(self.too_long());
        }
        Ok(())
    }

    fn too_long(&self) -> Trouble {
        Trouble::Failed(format!("the fetch took longer than {:?}", self.timeouts.total))
    }
}

/// Runs blocking git work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Trouble::Failed(format!("reading the mirror did not end well: {error}"))),
    }
}

/// Text of a server, fit for one line of a log: no control characters, not endless.
pub(super) fn one_line(text: &[u8]) -> String {
    shorten(&text::one_line(&String::from_utf8_lossy(text)), 300)
}
