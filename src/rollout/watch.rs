//! Whether a release answers with errors that the one before it did not: the part of the watch that health checks
//! cannot see.

/// Fewer errors than this are no jump, whatever their share.
const LEAST_ERRORS: u64 = 10;
/// A smaller share of errors is no jump (thousandths).
const LEAST_SHARE: u64 = 100;
/// A jump is at least so many times the share of errors before the rollout.
const FACTOR: u64 = 3;
/// With fewer requests than this before the rollout nothing is known of how the app usually answers.
const LEAST_HISTORY: u64 = 20;

/// Requests of an app, counted from some moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    /// All of them.
    pub requests: u64,
    /// Those answered with 5xx, by an instance or by the proxy.
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

    /// The share of errors in thousandths.
    fn share(self) -> u64 {
        self.errors * 1000 / self.requests.max(1)
    }
}

/// Says in words when the errors in the watch are a jump over those before the rollout.
pub fn errors_jumped(before: Answers, in_watch: Answers) -> Option<String> {
    let usual = if before.requests >= LEAST_HISTORY { before.share() } else { 0 };
    let jumped = in_watch.errors >= LEAST_ERRORS && in_watch.share() >= LEAST_SHARE.max(usual * FACTOR);
    jumped.then(|| {
        format!(
            "{} of {} requests in the watch were answered with an error ({}.{} %), before the rollout {}.{} %",
            in_watch.errors,
            in_watch.requests,
            in_watch.share() / 10,
            in_watch.share() % 10,
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

    #[test]
    fn a_release_that_fails_where_the_old_one_did_not_is_seen() {
        let said = errors_jumped(answers(10_000, 3), answers(100, 40)).unwrap();
        assert_eq!(
            said,
            "40 of 100 requests in the watch were answered with an error (40.0 %), before the rollout 0.0 %"
        );
        assert!(errors_jumped(answers(0, 0), answers(12, 12)).is_some());
    }

    #[test]
    fn what_is_usual_or_rare_is_no_jump() {
        assert_eq!(errors_jumped(answers(1000, 200), answers(100, 30)), None, "it has always failed a lot");
        assert_eq!(errors_jumped(answers(1000, 0), answers(9, 9)), None, "too few to say");
        assert_eq!(errors_jumped(answers(1000, 0), answers(1000, 50)), None, "a small share");
        assert_eq!(errors_jumped(answers(1000, 0), answers(0, 0)), None);
    }

    #[test]
    fn counters_that_began_again_are_no_errors() {
        assert_eq!(answers(5, 1).since(answers(100, 50)), answers(0, 0));
    }
}
