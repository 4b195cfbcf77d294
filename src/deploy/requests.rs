//! The requests that were answered and lost while a deployment replaced instances, for its record.

use serde::{Deserialize, Serialize};

use super::{Halt, Story};
use crate::store::Step;

/// The step that keeps the proxy's counts from before the rollout.
const COUNTS_STEP: &str = "counts";

/// The proxy's counts of the app before the rollout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CountsBefore {
    boot: String,
    served: u64,
    failed: u64,
}

impl Story<'_> {
    pub(super) async fn counts_before(&self) -> Result<Option<CountsBefore>, Halt> {
        let store = &self.deployer.store;
        let id = self.deployment.id;
        if let Step::Done(counts) = store.begin_step::<Option<CountsBefore>>(id, COUNTS_STEP).await? {
            return Ok(counts);
        }
        let counts = self.counts_now().await;
        store.end_step(id, COUNTS_STEP, &counts).await?;
        Ok(counts)
    }

    async fn counts_now(&self) -> Option<CountsBefore> {
        let counts = self.deployer.proxy.counts().await?;
        let app = counts.apps.get(&self.app.name).copied().unwrap_or_default();
        Some(CountsBefore { boot: counts.boot, served: app.served, failed: app.failed })
    }

    /// Records how many requests were answered and lost since the rollout began.
    pub(super) async fn count_requests(&self, before: Option<CountsBefore>) -> Result<(), Halt> {
        let Some(now) = self.counts_now().await else { return Ok(()) };
        // A proxy that was started anew counts from zero.
        let before = before.filter(|before| before.boot == now.boot);
        let (served, failed) = before.map_or((0, 0), |before| (before.served, before.failed));
        let (served, failed) = (now.served.saturating_sub(served), now.failed.saturating_sub(failed));
        self.deployer.store.add_requests(self.deployment.id, served, failed).await?;
        if served + failed > 0 {
            self.log.line(format!("{served} requests answered during the rollout, {failed} failed"));
        }
        Ok(())
    }
}
