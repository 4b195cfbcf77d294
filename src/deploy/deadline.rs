//! A deployment's deadline. What counts is the time in which it was told, over all lives of the agent: so it is on record, and
//! no sequence of restarts keeps a deployment going for ever. The time in which no agent ran does not count.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Deployer, Running};
use crate::model::DeploymentId;
use crate::store::{Store, StoreError};

/// So often the time is written down, or twenty times within the deadline. Each life of the agent is charged at least this.
const BEAT: Duration = Duration::from_secs(10);
/// For writing it: a journal that hangs is asked again.
const WRITING: Duration = Duration::from_secs(5);

/// What is left of a deployment's deadline.
pub(super) struct Deadline {
    store: Store,
    id: DeploymentId,
    limit: Duration,
    /// By earlier tellings.
    spent: Duration,
    begun: Instant,
}

fn beat(limit: Duration) -> Duration {
    BEAT.min(limit / 20)
}

impl Deployer {
    /// The deadline of a deployment that is told from now on. Charged before it is told: an agent that ends at once, again
    /// and again, uses it up as well.
    pub(super) async fn deadline(&self, id: DeploymentId, limit: Duration) -> Result<Deadline, StoreError> {
        let spent = self.store.time_told(id).await?;
        let deadline = Deadline { store: self.store.clone(), id, limit, spent, begun: Instant::now() };
        self.store.set_time_told(id, deadline.told() + beat(limit)).await?;
        Ok(deadline)
    }
}

impl Deadline {
    fn told(&self) -> Duration {
        self.spent + self.begun.elapsed()
    }

    /// Ends the deployment when its time is over.
    pub(super) async fn enforce(self, running: Running) {
        let left = self.limit.saturating_sub(self.spent);
        tokio::select! {
            () = sleep_until(self.begun + left) => {}
            () = self.count() => {}
        }
        running.end_by_deadline(self.limit);
    }

    /// Writes down how long it has been told, without an end. A time that cannot be written is in the next one.
    async fn count(&self) {
        loop {
            sleep(beat(self.limit)).await;
            let told = self.told() + beat(self.limit);
            match timeout(WRITING, self.store.set_time_told(self.id, told)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::debug!(deployment = %self.id, %err, "its time could not be written"),
                Err(_) => tracing::debug!(deployment = %self.id, "its time was not written within {WRITING:?}"),
            }
        }
    }
}
