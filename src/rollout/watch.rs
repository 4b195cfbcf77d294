//! Whether a release answers with errors that the one before it did not, as health checks cannot see: judged by what
//! each service's new instances answer from the first on, and in the watch by what the whole app does.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::model::ServiceName;
use crate::proxy::control::{AppCounts, InstanceCounts};

/// Fewer errors than this are no jump, whatever their share.
const LEAST_ERRORS: u64 = 10;
/// A smaller share of errors is no jump (thousandths).
const LEAST_SHARE: u64 = 100;
/// A jump is at least so many times the share of errors before the rollout.
const FACTOR: u64 = 3;
/// Fewer requests than this say nothing of how the app usually answers.
const LEAST_HISTORY: u64 = 20;

/// Requests of an app or of some of its instances, counted from some moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answers {
    /// All of them.
    pub requests: u64,
    /// Those answered with 5xx, by an instance or by the proxy in its place.
    pub errors: u64,
}

impl Answers {
    /// What came after `earlier`, of the same counter.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
        }
    }

    /// The share of errors in thousandths, when there are enough to say what is usual.
    fn usual(self) -> Option<u64> {
        (self.requests >= LEAST_HISTORY).then(|| self.share())
    }

    /// The share of errors in thousandths.
    fn share(self) -> u64 {
        self.errors * 1000 / self.requests.max(1)
    }
}

/// Without those that nobody was asked to answer: that a service runs no instance, as one that is switched off, says nothing of a
/// release.
impl From<AppCounts> for Answers {
    fn from(counts: AppCounts) -> Self {
        let failed = counts.failed.saturating_sub(counts.nobody);
        Self { requests: counts.served + failed, errors: counts.server_errors + failed }
    }
}

impl From<InstanceCounts> for Answers {
    fn from(counts: InstanceCounts) -> Self {
        Self { requests: counts.answered, errors: counts.server_errors }
    }
}

impl AddAssign for Answers {
    fn add_assign(&mut self, more: Self) {
        let Self { requests, errors } = more;
        self.requests += requests;
        self.errors += errors;
    }
}

/// How an app answered before its rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// From the deployment's start to the rollout's begin: what it does these days.
    pub recent: Answers,
    /// Since the proxy counts, for an app with few requests. An outage of last week is in it.
    pub lifetime: Answers,
}

impl History {
    /// The usual share of errors in thousandths; of an app that nothing is known of, none.
    fn usual(self) -> u64 {
        self.recent.usual().or(self.lifetime.usual()).unwrap_or(0)
    }
}

/// Says in words when the errors in the watch are a jump over those before the rollout.
pub fn errors_jumped(history: History, in_watch: Answers) -> Option<String> {
    jump(history.usual(), in_watch, "requests in the watch")
}

/// Says in words when the new instances of a service answer with many more errors than is usual: of the app, and of the
/// service, whose share among the app's requests changes while it is replaced.
pub fn new_instances_fail(history: History, service: &ServiceName, old: Answers, new: Answers) -> Option<String> {
    let usual = history.usual().max(old.usual().unwrap_or(0));
    jump(usual, new, &format!("requests to the new {service}"))
}

fn jump(usual: u64, now: Answers, what: &str) -> Option<String> {
    // An app that fails often cannot fail three times as often: then half of what was left to fail is a jump.
    let much_more = (usual * FACTOR).min((usual + 1000) / 2).max(usual + LEAST_SHARE);
    let jumped = now.errors >= LEAST_ERRORS && now.share() >= much_more;
    jumped.then(|| {
        format!(
            "{} of {} {what} were answered with an error ({}.{} %), before the rollout {}.{} %",
            now.errors,
            now.requests,
            now.share() / 10,
            now.share() % 10,
            usual / 10,
            usual % 10
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(requests: u64, errors: u64) -> Answers {
        Answers { requests, errors }
    }

    /// An app that has answered so for as long as is known.
    fn always(requests: u64, errors: u64) -> History {
        History { recent: answers(0, 0), lifetime: answers(requests, errors) }
    }

    #[test]
    fn a_release_that_fails_where_the_old_one_did_not_is_seen() {
        let said = errors_jumped(always(10_000, 3), answers(100, 40)).unwrap();
        assert_eq!(
            said,
            "40 of 100 requests in the watch were answered with an error (40.0 %), before the rollout 0.0 %"
        );
        assert!(errors_jumped(History::default(), answers(12, 12)).is_some());
    }

    #[test]
    fn what_is_usual_or_rare_is_no_jump() {
        assert_eq!(errors_jumped(always(1000, 200), answers(100, 30)), None, "it has always failed a lot");
        assert_eq!(errors_jumped(always(1000, 1000), answers(100, 100)), None, "it never worked");
        assert!(errors_jumped(always(1000, 400), answers(100, 80)).is_some(), "it fails much more");
        assert_eq!(errors_jumped(always(1000, 0), answers(9, 9)), None, "too few to say");
        assert_eq!(errors_jumped(always(1000, 0), answers(1000, 50)), None, "a small share");
        assert_eq!(errors_jumped(always(1000, 0), answers(0, 0)), None);
    }

    #[test]
    fn these_days_count_and_not_an_outage_of_long_ago() {
        let mended = History { recent: answers(200, 0), lifetime: answers(10_000, 6_000) };
        let said = errors_jumped(mended, answers(100, 40)).unwrap();
        assert!(said.ends_with("before the rollout 0.0 %"), "{said}");
        let failing = History { recent: answers(200, 120), lifetime: answers(1_000_000, 120) };
        assert_eq!(errors_jumped(failing, answers(100, 60)), None, "it failed like that just before the rollout");
    }

    #[test]
    fn too_few_recent_requests_leave_it_to_the_lifetime() {
        let quiet = |recent| History { recent, lifetime: answers(1000, 500) };
        assert_eq!(errors_jumped(quiet(answers(19, 0)), answers(100, 50)), None);
        assert!(errors_jumped(quiet(answers(20, 0)), answers(100, 50)).is_some());
    }

    #[test]
    fn new_instances_are_judged_by_the_app_and_by_those_they_replace() {
        let web: ServiceName = "web".parse().unwrap();
        let said = new_instances_fail(always(1000, 3), &web, answers(900, 0), answers(12, 12)).unwrap();
        assert_eq!(
            said,
            "12 of 12 requests to the new web were answered with an error (100.0 %), before the rollout 0.3 %"
        );
        let fails_as_ever = new_instances_fail(always(1000, 10), &web, answers(50, 20), answers(100, 40));
        assert_eq!(fails_as_ever, None, "this service of the app always failed like that");
        let in_an_outage = new_instances_fail(always(1000, 900), &web, answers(1000, 0), answers(100, 90));
        assert_eq!(in_an_outage, None, "the app fails these days, whoever answers");
        let hardly_known = new_instances_fail(always(1000, 0), &web, answers(19, 19), answers(10, 10));
        assert!(hardly_known.is_some(), "too little is known of the old ones");
        assert_eq!(new_instances_fail(always(1000, 0), &web, answers(900, 0), answers(9, 9)), None, "too few to say");
    }

    #[test]
    fn counters_that_began_again_are_no_errors() {
        assert_eq!(answers(5, 1).since(answers(100, 50)), answers(0, 0));
    }
}
