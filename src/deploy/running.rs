//! The deployment under way: what asks for its end, and why it ended before its time.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Halt;
use crate::model::{DeploymentId, Status};
use crate::store::Finish;

/// The deployment under way, for those who want to cancel it.
#[derive(Debug, Clone)]
pub struct Running {
    /// Which.
    pub id: DeploymentId,
    pub(super) stop: CancellationToken,
    cause: Arc<OnceLock<StopCause>>,
    waits: Arc<Mutex<Option<(String, Timestamp)>>>,
}

/// Why a deployment is to end before its time.
#[derive(Debug, Clone)]
enum StopCause {
    /// Somebody cancelled it.
    Cancelled(String),
    /// Its deadline has passed.
    Deadline(String),
}

impl Running {
    pub(super) fn new(id: DeploymentId) -> Self {
        Self { id, stop: CancellationToken::new(), cause: Arc::default(), waits: Arc::default() }
    }

    /// Asks for its end; the first reason counts.
    pub fn cancel(&self, why: String) {
        self.end_early(StopCause::Cancelled(why));
    }

    /// The secret that it waits for, and since when.
    pub fn waits(&self) -> Option<(String, Timestamp)> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that it waits for a secret, this one and why; or that it does no longer.
    pub(super) fn waits_for(&self, secret: Option<&str>) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let since = waits.as_ref().map_or_else(Timestamp::now, |(_, since)| *since);
        *waits = secret.map(|secret| (format!("{} waits for a secret: {secret}", self.id), since));
    }

    /// Its time is over.
    pub(super) fn end_by_deadline(&self, limit: Duration) {
        self.end_early(StopCause::Deadline(format!("it took longer than its deadline of {limit:?}")));
    }

    fn end_early(&self, cause: StopCause) {
        // A second cause changes nothing.
        let _ = self.cause.set(cause);
        self.stop.cancel();
    }

    pub(super) fn why(&self) -> String {
        match self.cause.get() {
            Some(StopCause::Cancelled(why) | StopCause::Deadline(why)) => why.clone(),
            None => "cancelled".into(),
        }
    }

    pub(super) fn by_deadline(&self) -> bool {
        matches!(self.cause.get(), Some(StopCause::Deadline(_)))
    }

    /// The end of a deployment that was stopped before anything was switched.
    pub(super) fn halt(&self) -> Halt {
        let status = if self.by_deadline() { Status::Failed } else { Status::Cancelled };
        Halt::End(Finish { status, reason: Some(self.why()), superseded_by: None, hold: false })
    }
}

pub(super) fn lock(running: &Mutex<Option<Running>>) -> MutexGuard<'_, Option<Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}
