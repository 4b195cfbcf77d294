//! What people are to be told of certificates, from what has failed and what they were told before. Pure.
//!
//! A first failure may be one that mends itself: a name that leads nowhere yet, an authority that is being restarted. So
//! nothing is told before the third failure in a row, or an hour after the first one. A certificate that is not renewed is no
//! trouble as long as it is good for long: it is told with less than 10 days left, or a third of the time that there was for
//! renewing it, whichever is less. An authority that cannot be used is one trouble and not one for each host.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::plan::{Failure, Failures, Held, Next, next};
use crate::store::CertificateTrouble;

/// Failures in a row.
const TRIES: u32 = 3;
/// Since the first of them.
const PATIENCE: SignedDuration = SignedDuration::from_hours(1);
/// A certificate that is good for less.
const LITTLE: SignedDuration = SignedDuration::from_hours(10 * 24);

/// What is to be put on record, and told if it is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A certificate cannot be had.
    Failed(CertificateTrouble),
    /// It is there; of the authority (`None`): it can be used.
    Issued {
        /// For which host.
        host: Option<String>,
        /// Until when it is good.
        until: Option<Timestamp>,
    },
    /// Nobody wants it any more: that is told to nobody.
    Dropped(Option<String>),
}

/// Decides. `told`: what is on record and not over.
pub fn news(
    wanted: &[String],
    held: &BTreeMap<String, Held>,
    failures: &Failures,
    told: &[CertificateTrouble],
    now: Timestamp,
) -> Vec<News> {
    let mut news = Vec::new();
    for before in told {
        let host = before.host.clone();
        news.extend(match &host {
            Some(name) if !wanted.contains(name) => Some(News::Dropped(host)),
            Some(name) => {
                in_order(held.get(name), failures, now).map(|until| News::Issued { host, until: Some(until) })
            }
            None if wanted.is_empty() || before.directory != failures.directory => Some(News::Dropped(None)),
            // While something is due nobody knows: what had failed may have been forgotten.
            None if failures.authority.is_none() && is_quiet(wanted, held, failures, now) => {
                Some(News::Issued { host: None, until: None })
            }
            None => None,
        });
    }
    let authority = failures.authority.as_ref().filter(|_| !wanted.is_empty()).map(|failure| {
        let ends = wanted.iter().filter_map(|host| held.get(host)).map(|held| held.not_after);
        (None, failure, ends.filter(|end| now < *end).min())
    });
    let hosts = wanted.iter().filter_map(|host| {
        let (held, failure) = (held.get(host), failures.hosts.get(host)?);
        let presses = in_order(held, failures, now).is_none() && leaves_little(held, failures, now);
        presses.then(|| (Some(host.clone()), failure, held.map(|held| held.not_after).filter(|end| now < *end)))
    });
    for (host, failure, good_until) in authority.into_iter().chain(hosts).filter(|(_, failure, _)| lasts(failure, now))
    {
        let on_record = |before: &&CertificateTrouble| before.host == host && before.directory == failures.directory;
        if told.iter().find(on_record).is_some_and(|before| before.times == failure.times) {
            continue;
        }
        let (directory, why) = (failures.directory.clone(), failure.why.clone());
        let (times, since) = (failure.times, failure.since());
        news.push(News::Failed(CertificateTrouble { host, directory, why, times, since, good_until }));
    }
    news
}

/// Whether it is more than a failure that mends itself.
fn lasts(failure: &Failure, now: Timestamp) -> bool {
    failure.times >= TRIES || now.duration_since(failure.since()) >= PATIENCE
}

/// Until when a certificate is good that is not due.
fn in_order(held: Option<&Held>, failures: &Failures, now: Timestamp) -> Option<Timestamp> {
    held.filter(|held| held.directory == failures.directory && now < held.renew_at()).map(|held| held.not_after)
}

/// Whether it presses: there is none of this authority's that clients take, or not for long.
fn leaves_little(held: Option<&Held>, failures: &Failures, now: Timestamp) -> bool {
    let Some(held) = held.filter(|held| held.directory == failures.directory) else { return true };
    let window = held.not_after.duration_since(held.renew_at());
    held.not_after.duration_since(now) < LITTLE.min(window / 3)
}

fn is_quiet(wanted: &[String], held: &BTreeMap<String, Held>, failures: &Failures, now: Timestamp) -> bool {
    matches!(next(wanted, held, failures, now), Next::Wait(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "https://ca.example/dir";
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Good from the beginning of time.
    fn held(days: i64) -> Held {
        Held { directory: CA.to_owned(), not_before: at(0), not_after: at(days * DAY) }
    }

    fn failed(times: u32, since: i64) -> Failure {
        let (since, later) = (at(since), at(since + 60));
        Failure { why: "no".to_owned(), times, since: Some(since), at: later, again: at(i64::from(u32::MAX)) }
    }

    /// The state of one wanted host.
    #[derive(Default)]
    struct World {
        held: Option<Held>,
        failure: Option<Failure>,
        authority: Option<Failure>,
        told: Vec<CertificateTrouble>,
    }

    impl World {
        fn failing(failure: Failure) -> Self {
            Self { failure: Some(failure), ..Self::default() }
        }

        fn with(self, held: Held) -> Self {
            Self { held: Some(held), ..self }
        }

        fn told(mut self, host: Option<&str>, times: u32) -> Self {
            let (host, directory, why) = (host.map(str::to_owned), CA.to_owned(), "no".to_owned());
            self.told.push(CertificateTrouble { host, directory, why, times, since: at(0), good_until: None });
            self
        }

        fn news_for(&self, wanted: &[&str], now: i64) -> Vec<News> {
            let wanted: Vec<String> = wanted.iter().map(|&host| host.to_owned()).collect();
            let host = "a.test".to_owned();
            let held = self.held.iter().map(|held| (host.clone(), held.clone())).collect();
            let hosts = self.failure.iter().map(|failure| (host.clone(), failure.clone())).collect();
            let failures = Failures { directory: CA.to_owned(), authority: self.authority.clone(), hosts };
            news(&wanted, &held, &failures, &self.told, at(now))
        }

        fn news(&self, now: i64) -> Vec<News> {
            self.news_for(&["a.test"], now)
        }

        /// For which host it is told that there is none, and until when the one that there is is good.
        fn failures(&self, now: i64) -> Vec<(Option<String>, Option<i64>)> {
            let of = |news| match news {
                News::Failed(trouble) => (trouble.host, trouble.good_until.map(Timestamp::as_second)),
                other => panic!("{other:?}"),
            };
            self.news(now).into_iter().map(of).collect()
        }
    }

    fn host() -> Option<String> {
        Some("a.test".to_owned())
    }

    #[test]
    fn a_host_without_a_certificate_is_told_at_the_third_failure_or_after_an_hour() {
        assert_eq!(World::failing(failed(1, 0)).news(HOUR - 1), []);
        assert_eq!(World::failing(failed(2, 0)).news(HOUR - 1), []);
        assert_eq!(World::failing(failed(3, 0)).failures(300), [(host(), None)]);
        assert_eq!(World::failing(failed(1, 0)).failures(HOUR), [(host(), None)]);
        assert_eq!(World::failing(failed(1, 9 * HOUR)).news(0), [], "the clock was set back");
        // One that has expired, or that another authority issued (staging, say), is none.
        assert_eq!(World::failing(failed(3, 90 * DAY)).with(held(90)).failures(90 * DAY), [(host(), None)]);
        let other = Held { directory: "https://staging.example/dir".to_owned(), ..held(90) };
        assert_eq!(World::failing(failed(3, DAY)).with(other).failures(2 * DAY), [(host(), Some(90 * DAY))]);
    }

    #[test]
    fn a_renewal_that_fails_is_told_when_there_is_little_time_left() {
        for (lasts, told_from) in [(90 * DAY, 80 * DAY), (9 * DAY, 8 * DAY), (900 * DAY, 890 * DAY)] {
            let world = World::failing(failed(20, lasts / 3 * 2)).with(held(lasts / DAY));
            assert_eq!(world.news(told_from), [], "{lasts}");
            assert_eq!(world.failures(told_from + 1), [(host(), Some(lasts))]);
        }
        let just_begun = World::failing(failed(1, 85 * DAY)).with(held(90));
        assert_eq!(just_begun.news(85 * DAY + 60), [], "the agent was away; it may work at once");
    }

    #[test]
    fn it_is_told_once_and_its_end_once_and_nothing_of_what_nobody_wants() {
        let told = World::failing(failed(5, 0)).told(Some("a.test"), 5);
        assert_eq!(told.news(DAY), []);
        let again = World::failing(failed(6, 0)).told(Some("a.test"), 5);
        assert_eq!(again.failures(DAY), [(host(), None)], "for the record");
        let issued = World::default().with(held(90)).told(Some("a.test"), 5);
        assert_eq!(issued.news(DAY), [News::Issued { host: host(), until: Some(at(90 * DAY)) }]);
        assert_eq!(issued.news(61 * DAY), [], "it is due: not in order");
        assert_eq!(told.news_for(&["b.test"], DAY), [News::Dropped(host())]);
    }

    #[test]
    fn an_authority_that_cannot_be_used_is_one_trouble() {
        let away = |times| World { authority: Some(failed(times, 0)), ..World::default() };
        assert_eq!(away(2).news(600), []);
        assert_eq!(away(3).with(held(90)).failures(600), [(None, Some(90 * DAY))]);
        assert_eq!(away(3).news_for(&[], 600), [], "nobody needs it");
        assert_eq!(away(3).told(None, 3).news(DAY), []);
        // It has answered: what is held up for another reason, or issued, is not due.
        let back = World::failing(failed(1, 600)).told(None, 3);
        assert_eq!(back.news(700), [News::Issued { host: None, until: None }]);
        // That it failed was forgotten, and nobody has asked it since.
        assert_eq!(World::default().told(None, 3).news(700), []);
        assert_eq!(away(3).told(None, 3).news_for(&[], 600), [News::Dropped(None)]);
        let mut moved = World::failing(failed(1, 600)).told(None, 3);
        moved.told[0].directory = "https://other.example/dir".to_owned();
        assert_eq!(moved.news(700), [News::Dropped(None)]);
    }
}
