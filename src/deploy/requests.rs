//! The requests of the app as the proxy counts them: answered and lost while a deployment replaced instances, for its
//! record; and how the app answered before, for the watch to judge by.

use serde::{Deserialize, Serialize};

use super::{Halt, Story};
use crate::proxy::control::AppCounts;
use crate::queue::Request;
use crate::rollout::watch::{Answers, History};
use crate::store::{Requests, Step};

/// The step that keeps the proxy's counts from before the rollout.
const COUNTS_STEP: &str = "counts";

/// The proxy's counts of the app at one moment.
pub(super) struct Count {
    /// Which process counted: another one begins at zero.
    boot: String,
    app: AppCounts,
}

/// What was known of the app's requests when the rollout began: a rollout that is resumed goes on with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CountsBefore {
    boot: String,
    served: u64,
    failed: u64,
    /// Not counted by an earlier version.
    #[serde(default)]
    server_errors: Option<u64>,
    #[serde(default)]
    history: History,
}

impl CountsBefore {
    fn at_rollout(begin: Count, start: Option<Count>) -> Self {
        let lifetime = Answers::from(begin.app);
        let start = start.filter(|start| start.boot == begin.boot);
        let recent = start.map(|start| lifetime.since(start.app.into())).unwrap_or_default();
        let AppCounts { served, failed, server_errors, .. } = begin.app;
        Self {
            boot: begin.boot,
            served,
            failed,
            server_errors: Some(server_errors),
            history: History { recent, lifetime },
        }
    }
}

impl Story<'_> {
    /// Counts at the deployment's start, if its watch will judge by what came since.
    pub(super) async fn counts_at_start(&self) -> Option<Count> {
        if !self.judges_errors() {
            return None;
        }
        self.counts_now().await
    }

    pub(super) async fn counts_before(&self, at_start: Option<Count>) -> Result<Option<CountsBefore>, Halt> {
        let store = &self.deployer.store;
        let id = self.deployment.id;
        if let Step::Done(counts) = store.begin_step::<Option<CountsBefore>>(id, COUNTS_STEP).await? {
            return Ok(counts);
        }
        let counts = self.counts_now().await.map(|now| CountsBefore::at_rollout(now, at_start));
        store.end_step(id, COUNTS_STEP, &counts).await?;
        Ok(counts)
    }

    /// What the watch judges errors by; `None` when it does not. Where no release was live there was nothing to answer,
    /// and what failed then says nothing.
    pub(super) fn history(&self, before: Option<&CountsBefore>, was_live: bool) -> Option<History> {
        let known = before.filter(|_| was_live).map(|before| before.history);
        self.judges_errors().then(|| known.unwrap_or_default())
    }

    /// For a new version only. What a person asks for in the middle of an outage (a restart, a rollback) is not to be
    /// undone because of that outage.
    fn judges_errors(&self) -> bool {
        matches!(self.deployment.request, Request::Deploy { .. })
    }

    async fn counts_now(&self) -> Option<Count> {
        let counts = self.deployer.proxy.counts().await?;
        let app = counts.apps.get(&self.app.name).copied().unwrap_or_default();
        Some(Count { boot: counts.boot, app })
    }

    /// Records how many requests were answered and lost since the rollout began.
    pub(super) async fn count_requests(&self, before: Option<CountsBefore>) -> Result<(), Halt> {
        let Some(Count { boot, app: now }) = self.counts_now().await else { return Ok(()) };
        let since = requests_since(before.filter(|before| before.boot == boot), now);
        self.deployer.store.add_requests(self.deployment.id, since).await?;
        if since != Requests::default() {
            self.log.line(said(since));
        }
        Ok(())
    }
}

/// What was counted after `before`; all, where that is not known.
fn requests_since(before: Option<CountsBefore>, now: AppCounts) -> Requests {
    let (served, failed, errors) = before
        .map_or((0, 0, 0), |before| (before.served, before.failed, before.server_errors.unwrap_or(now.server_errors)));
    let served = now.served.saturating_sub(served);
    // An answer with 5xx is counted as it begins, and served when it has reached its client.
    let server_errors = now.server_errors.saturating_sub(errors).min(served);
    Requests { served, server_errors, failed: now.failed.saturating_sub(failed) }
}

fn said(requests: Requests) -> String {
    let Requests { served, server_errors, failed } = requests;
    let errors = (server_errors > 0).then(|| format!(", {server_errors} of them with 5xx of the app's own"));
    format!("{served} requests answered during the rollout{}, {failed} failed", errors.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(boot: &str, served: u64, failed: u64, server_errors: u64) -> Count {
        Count { boot: boot.into(), app: AppCounts { served, failed, server_errors, ..AppCounts::default() } }
    }

    #[test]
    fn what_came_since_the_start_is_the_recent_history() {
        let before = CountsBefore::at_rollout(count("a", 150, 12, 8), Some(count("a", 100, 10, 3)));
        assert_eq!(before.history.recent, Answers { requests: 52, errors: 7 });
        assert_eq!(before.history.lifetime, Answers { requests: 162, errors: 20 });
    }

    #[test]
    fn what_the_app_answered_with_errors_is_said_beside_what_was_not_answered() {
        let before = CountsBefore::at_rollout(count("a", 100, 1, 5), None);
        let since = requests_since(Some(before), count("a", 2_666, 1, 2_076).app);
        assert_eq!(
            said(since),
            "2566 requests answered during the rollout, 2071 of them with 5xx of the app's own, 0 failed"
        );
        assert_eq!(said(Requests { server_errors: 0, ..since }), "2566 requests answered during the rollout, 0 failed");
    }

    #[test]
    fn another_process_has_counted_other_requests() {
        let before = CountsBefore::at_rollout(count("b", 150, 0, 0), Some(count("a", 100, 0, 0)));
        assert_eq!(before.history.recent, Answers::default());
        let nothing = CountsBefore::at_rollout(count("b", 150, 0, 0), None);
        assert_eq!(nothing.history.recent, Answers::default());
    }
}
