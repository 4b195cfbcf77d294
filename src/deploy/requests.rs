//! The requests of the app as the proxy counts them: what became of them while a deployment replaced instances, for its
//! record; and how the app answered before, for the watch to judge by.

use serde::{Deserialize, Serialize};

use super::{Halt, Story};
use crate::histogram::Histogram;
use crate::proxy::control::AppCounts;
use crate::queue::Request;
use crate::rollout::watch::{Answers, History};
use crate::store::{Latency, Requests, Step};
use crate::text::briefly;

/// The step that keeps the proxy's counts from before the rollout.
const COUNTS_STEP: &str = "counts";
/// Fewer answers than this do not say how long they take these days.
const LEAST_TIMED: u64 = 100;

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
    /// The same.
    #[serde(default)]
    retried: Option<u64>,
    /// The same.
    #[serde(default)]
    latency: Option<LatencyBefore>,
    #[serde(default)]
    history: History,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LatencyBefore {
    /// From the deployment's start to its rollout; of all that is counted when that was little.
    usual: Histogram,
    /// All that was counted before the rollout.
    lifetime: Histogram,
}

impl CountsBefore {
    fn at_rollout(begin: Count, start: Option<Count>) -> Self {
        let lifetime = Answers::from(begin.app);
        let start = start.filter(|start| start.boot == begin.boot);
        let recent = start.as_ref().map(|start| lifetime.since(start.app.into())).unwrap_or_default();
        let timed = begin.app.latency;
        let lately = start.map(|start| timed.since(&start.app.latency)).filter(|lately| lately.total() >= LEAST_TIMED);
        let AppCounts { served, failed, server_errors, retried, .. } = begin.app;
        Self {
            boot: begin.boot,
            served,
            failed,
            server_errors: Some(server_errors),
            retried: Some(retried),
            latency: Some(LatencyBefore { usual: lately.unwrap_or(timed), lifetime: timed }),
            history: History { recent, lifetime },
        }
    }
}

impl Story<'_> {
    /// Counts at the deployment's start: what comes from then to the rollout is what is usual.
    pub(super) async fn counts_at_start(&self) -> Option<Count> {
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
        // Those of a canary come in as its production's, and are counted there.
        let app = self.app.canary_of.as_ref().map_or(&self.app.name, |canary| &canary.app);
        let app = counts.apps.get(app).copied().unwrap_or_default();
        Some(Count { boot: counts.boot, app })
    }

    /// Records what became of the requests since the rollout began, as far as that is known.
    pub(super) async fn count_requests(&self, before: Option<CountsBefore>) -> Result<(), Halt> {
        let known = match (before, self.counts_now().await) {
            (Some(before), Some(now)) if before.boot == now.boot => Some(requests_since(before, now.app)),
            _ => None,
        };
        let Some(requests) = known else {
            self.log
                .line("what became of the requests is not known: the proxy was silent, or was started anew meanwhile");
            return Ok(());
        };
        self.deployer.store.set_requests(self.deployment.id, requests).await?;
        said(&requests).into_iter().for_each(|line| self.log.line(line));
        Ok(())
    }
}

/// What the same process has counted after `before`.
fn requests_since(before: CountsBefore, now: AppCounts) -> Requests {
    let served = now.served.saturating_sub(before.served);
    // An answer with 5xx is counted as it begins, and served when it has reached its client.
    let server_errors = before.server_errors.map(|errors| now.server_errors.saturating_sub(errors).min(served));
    let latency = before.latency.as_ref();
    Requests {
        served: Some(served),
        server_errors,
        failed: Some(now.failed.saturating_sub(before.failed)),
        retried: before.retried.map(|retried| now.retried.saturating_sub(retried)),
        latency_before: latency.and_then(|latency| Latency::of(&latency.usual)),
        latency_during: latency.and_then(|latency| Latency::of(&now.latency.since(&latency.lifetime))),
        drains: None,
    }
}

/// Nothing of an app without requests.
fn said(requests: &Requests) -> Vec<String> {
    let Requests { served, server_errors, failed, retried, latency_before, latency_during, .. } = *requests;
    let (Some(served), Some(failed)) = (served, failed) else { return Vec::new() };
    if served + failed == 0 {
        return Vec::new();
    }
    let some = |count: Option<u64>| count.filter(|&count| count > 0);
    let errors = some(server_errors).map(|errors| format!(", {errors} of them with 5xx of the app's own"));
    let retried = some(retried).map(|retried| format!(", {retried} tried a second time"));
    let [errors, retried] = [errors, retried].map(Option::unwrap_or_default);
    let counts = format!("{served} requests answered during the rollout{errors}{retried}, {failed} failed");
    let told = |latency: Latency| format!("{} / {}", briefly(latency.p50()), briefly(latency.p99()));
    let before = latency_before.map_or("before: not known".to_owned(), |before| format!("before: {}", told(before)));
    let latency =
        latency_during.map(|during| format!("answers began after (median / 99 %): {}; {before}", told(during)));
    [Some(counts), latency].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let since = requests_since(before, count("a", 2_666, 1, 2_076).app);
        assert_eq!(
            said(&since),
            ["2566 requests answered during the rollout, 2071 of them with 5xx of the app's own, 0 failed"]
        );
        let without = Requests { server_errors: Some(0), ..since };
        assert_eq!(said(&without), ["2566 requests answered during the rollout, 0 failed"]);
        assert_eq!(said(&Requests { served: Some(0), ..without }), [""; 0]);
    }

    #[test]
    fn the_time_that_answers_took_is_told_beside_the_time_before() {
        let took = |counts: &[(u64, u64)]| {
            let mut count = count("a", 0, 0, 0);
            for &(many, ms) in counts {
                (0..many).for_each(|_| count.app.latency.add(Duration::from_millis(ms)));
                count.app.served += many;
            }
            count
        };
        // Slow as it started, then for 200 requests as fast as it is these days.
        let before = CountsBefore::at_rollout(took(&[(900, 900), (200, 3)]), Some(took(&[(900, 900)])));
        let since = requests_since(before.clone(), took(&[(900, 900), (200, 3), (100, 3), (30, 50)]).app);
        let (before_p50, during_p99) = (since.latency_before.unwrap().p50(), since.latency_during.unwrap().p99());
        assert!(before_p50 <= Duration::from_millis(3), "{since:?}");
        assert!(during_p99 > Duration::from_millis(30) && during_p99 <= Duration::from_millis(50), "{since:?}");
        assert_eq!(said(&since)[1], "answers began after (median / 99 %): 2.6 ms / 49 ms; before: 2.5 ms / 3.0 ms");

        let nothing = requests_since(before, took(&[(900, 900), (200, 3)]).app);
        assert_eq!(nothing.latency_during, None, "of no answer nothing is known");
    }

    #[test]
    fn what_an_earlier_version_did_not_count_is_not_known() {
        let step = r#"{"boot": "a", "served": 7, "failed": 0}"#;
        let before: CountsBefore = serde_json::from_str(step).unwrap();
        let since = requests_since(before, count("a", 9, 0, 3).app);
        assert_eq!((since.served, since.server_errors, since.retried), (Some(2), None, None));
        assert_eq!((since.latency_before, since.latency_during), (None, None));
    }

    #[test]
    fn another_process_has_counted_other_requests() {
        let before = CountsBefore::at_rollout(count("b", 150, 0, 0), Some(count("a", 100, 0, 0)));
        assert_eq!(before.history.recent, Answers::default());
        let nothing = CountsBefore::at_rollout(count("b", 150, 0, 0), None);
        assert_eq!(nothing.history.recent, Answers::default());
    }
}
