//! Certificates that are ordered and renewed by itself (ACME, RFC 8555).
//!
//! The agent orders, one certificate at a time; the proxy answers what the authority asks of a host, and serves what it finds
//! on disk, with or without an agent. `names` says for which hosts, `plan` what is due and when, `news` what people are told
//! (all pure); `shelf` keeps what there is and what has failed; `order` speaks with the authority by `transport`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{AcmeConfig, Config, ProxyConfig};
use crate::fail_point::hurried;
use crate::journal::Journal;
use crate::proxy::certificate::Facts;
use crate::proxy::client::ProxyClient;
use crate::store::{CertificateTrouble, Store, StoreError};

mod names;
mod news;
mod order;
mod plan;
mod shelf;
mod transport;

pub use names::{Names, Skipped};
use news::News;
use order::Tools;
use plan::{Failure, Failures, Held, Next, Pauses, Trouble};
use shelf::Shelf;
pub use transport::examine as examine_roots;

/// After a failure: the first pause, and the longest. Doubled each time, they make five tries in the first hour, as many as
/// Let's Encrypt allows for a host (https://letsencrypt.org/docs/rate-limits/).
const PAUSES: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(12 * 3600));
/// Files and the clock are looked at this often though nothing is due.
const LOOK: Duration = Duration::from_secs(3600);
/// Nothing is ordered without a proxy that can answer for it.
const PROXY_PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with the certificates, for those who ask for the agent's state.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<RwLock<Vec<String>>>);

impl Standing {
    /// One sentence each.
    pub fn warnings(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, warnings: Vec<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = warnings;
    }
}

/// For which hosts of the configuration certificates are ordered, and for which they cannot be. Reads the configured
/// certificates; one that cannot be read covers no host. Blocks.
pub fn names(config: &Config) -> Names {
    let configured: Vec<Facts> = configured(&config.proxy);
    names::tell_apart(config.apps.values().flat_map(|app| app.hosts()), &configured)
}

fn configured(proxy: &ProxyConfig) -> Vec<Facts> {
    // What is wrong with a file is said by the proxy.
    proxy.certificates.iter().filter_map(|files| Facts::read(&files.cert).ok()).collect()
}

/// Orders and renews until the agent ends, and has people told what they should know. As long as `acme` is not configured it
/// does nothing.
pub async fn keep(
    data_dir: PathBuf,
    proxy: ProxyClient,
    outbox: Outbox,
    mut config: watch::Receiver<Arc<Config>>,
    standing: Standing,
    shutdown: CancellationToken,
) {
    let mut keeper = Keeper { shelf: Shelf::new(&data_dir), proxy, standing, outbox, told: Vec::new() };
    let orders = async {
        loop {
            let now = config.borrow_and_update().clone();
            let pause = keeper.turn(&now).await;
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
            }
        }
    };
    shutdown.run_until_cancelled(orders).await;
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// What people were told, and how they are told more.
#[derive(Clone)]
pub struct Outbox {
    /// Where it is on record.
    pub store: Store,
    /// Writes it down.
    pub journal: Journal,
}

struct Keeper {
    shelf: Shelf,
    proxy: ProxyClient,
    standing: Standing,
    outbox: Outbox,
    /// The hosts for which it was said that none is ordered.
    told: Vec<(String, Skipped)>,
}

/// What is on disk, and for which hosts.
struct Seen {
    names: Names,
    held: BTreeMap<String, Held>,
    failures: Failures,
}

impl Keeper {
    /// Does what is due, at most one order; how long to wait before the next look. `None`: until the configuration changes.
    async fn turn(&mut self, config: &Arc<Config>) -> Option<Duration> {
        let Some(acme) = &config.proxy.acme else {
            self.standing.set(Vec::new());
            return self.outbox.end_all().await;
        };
        let (shelf, read, directory) = (self.shelf.clone(), Arc::clone(config), acme.directory_url.clone());
        let seen = tokio::task::spawn_blocking(move || Seen {
            names: names(&read),
            held: shelf.certificates(),
            failures: shelf.failures(&directory),
        });
        let Ok(mut seen) = seen.await else { return Some(PAUSES.0) };
        self.tell_skipped(&seen.names);
        self.forget(&seen, Timestamp::now());
        self.standing.set(warnings(&seen, Timestamp::now()));
        let pause = match plan::next(&seen.names.wanted, &seen.held, &seen.failures, Timestamp::now()) {
            Next::Wait(until) => {
                let left = until.map(|until| Timestamp::now().duration_until(until));
                let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
                // Half a second late rather than a moment early.
                left.map_or(LOOK, |left| (left + Duration::from_millis(500)).min(LOOK))
            }
            Next::Order(_) if !self.proxy.connected(PROXY_PATIENCE).await => Duration::ZERO,
            Next::Order(host) => match self.order(acme, &host, &mut seen).await {
                Ok(()) => Duration::ZERO,
                Err(error) => {
                    tracing::error!(%error, "no certificate is ordered: what is under way cannot be kept on disk");
                    hurried(PAUSES.0)
                }
            },
        };
        self.standing.set(warnings(&seen, Timestamp::now()));
        let told = self.outbox.tell(&seen, Timestamp::now()).await;
        // What could not be recorded is tried again before long.
        Some(if told { pause } else { pause.min(PAUSES.0) })
    }

    /// Places one order. The error is that of the disk.
    async fn order(&self, acme: &AcmeConfig, host: &str, seen: &mut Seen) -> std::io::Result<()> {
        let pauses = || Pauses { first: hurried(PAUSES.0), longest: PAUSES.1, chance: chance() };
        seen.failures.forget(&seen.names.wanted, Timestamp::now());
        // Before it is placed: whatever becomes of this process, the authority is not asked again at once.
        self.shelf.keep_failures(&seen.failures.with_unfinished(host, Timestamp::now(), pauses()))?;
        let (directory, challenge) = (&acme.directory_url, acme.challenge.as_str());
        tracing::info!(host, directory, challenge, "ordering a certificate");
        let tools = Tools { config: acme, shelf: &self.shelf, proxy: &self.proxy };
        let ordered = tools.order(host).await;
        if let Ok(held) = &ordered {
            tracing::info!(host, not_after = %held.not_after, "a certificate was issued");
            // It would find the file by itself, a little later.
            self.proxy.reload();
        }
        let outcome = ordered.as_ref().map_err(Trouble::clone);
        if let Some(Failure { why, times, again, .. }) = seen.failures.settle(host, outcome, Timestamp::now(), pauses())
        {
            let what = match ordered {
                Err(Trouble::Authority(_)) => "the certificate authority cannot be used",
                _ => "no certificate",
            };
            tracing::error!(host, times, again = %clock(*again), "{what}: {why}");
        }
        seen.held.extend(ordered.ok().map(|held| (host.to_owned(), held)));
        self.shelf.keep_failures(&seen.failures)
    }

    /// Once for each.
    fn tell_skipped(&mut self, names: &Names) {
        for (host, why) in names.skipped.iter().filter(|skipped| !self.told.contains(skipped)) {
            tracing::warn!(host, "no certificate is ordered: {why}");
        }
        self.told.clone_from(&names.skipped);
    }

    /// Lets go of what nobody wants and no client takes any more.
    fn forget(&self, seen: &Seen, now: Timestamp) {
        let is_over = |(host, held): &(&String, &Held)| held.not_after < now && !seen.names.wanted.contains(host);
        for (host, _) in seen.held.iter().filter(is_over) {
            match self.shelf.remove(host) {
                Ok(()) => tracing::info!(host, "removed an expired certificate of a host that is not configured"),
                Err(error) => tracing::warn!(host, %error, "an expired certificate cannot be removed"),
            }
        }
    }
}

impl Outbox {
    /// Has on record what people are to know, and tells them when that is new. False when it could not be recorded.
    async fn tell(&self, seen: &Seen, now: Timestamp) -> bool {
        is_recorded(self.record(seen, now).await)
    }

    async fn record(&self, seen: &Seen, now: Timestamp) -> Result<(), StoreError> {
        let told = self.on_record().await?;
        for news in news::news(&seen.names.wanted, &seen.held, &seen.failures, &told, now) {
            match news {
                News::Failed(trouble) => self.journal.raise_certificate_alert(&trouble).await?,
                News::Issued { host, until } => {
                    self.journal.end_certificate_alert(host.as_deref(), until, true).await?
                }
                News::Dropped(host) => self.journal.end_certificate_alert(host.as_deref(), None, false).await?,
            };
        }
        Ok(())
    }

    /// Nothing is ordered any more, so there is nothing to tell. When it is tried again, if that could not be recorded.
    async fn end_all(&self) -> Option<Duration> {
        (!is_recorded(self.drop_all().await)).then_some(PAUSES.0)
    }

    async fn drop_all(&self) -> Result<(), StoreError> {
        for trouble in self.on_record().await? {
            self.journal.end_certificate_alert(trouble.host.as_deref(), None, false).await?;
        }
        Ok(())
    }

    async fn on_record(&self) -> Result<Vec<CertificateTrouble>, StoreError> {
        let open = self.store.open_certificate_alerts().await?;
        Ok(open.into_iter().map(|alert| alert.trouble).collect())
    }
}

fn is_recorded(recorded: Result<(), StoreError>) -> bool {
    match recorded {
        Ok(()) | Err(StoreError::Closed) => true,
        Err(error) => {
            tracing::error!(%error, "how the certificates stand could not be recorded; it is tried again");
            false
        }
    }
}

/// What is to be said of the state of things.
fn warnings(seen: &Seen, now: Timestamp) -> Vec<String> {
    let again = |failure: &Failure| format!("{}; tried again at {}", failure.why, clock(failure.again));
    let authority = seen.failures.authority.iter().map(|failure| {
        format!("the certificate authority {} cannot be used: {}", seen.failures.directory, again(failure))
    });
    let wanted = |host: &String| seen.names.wanted.contains(host);
    let hosts = seen.failures.hosts.iter().filter(|(host, _)| wanted(host)).map(|(host, failure)| {
        let lacks = match seen.held.get(host) {
            Some(held) if now < held.not_after => {
                format!("the certificate, good until {}, is not renewed", clock(held.not_after))
            }
            _ => "there is no certificate".to_owned(),
        };
        format!("{host}: {lacks}: {}", again(failure))
    });
    authority.chain(hosts).collect()
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn chance() -> u8 {
    let mut byte = [0];
    // Without any, all pauses are the shortest.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NoticeKind;
    use crate::store::About;

    fn seen(held: &[(&str, Held)], failed: &[&str], now: Timestamp) -> Seen {
        let failure = Failure { why: "no".into(), times: 3, since: Some(now), at: now, again: Timestamp::MAX };
        Seen {
            names: Names { wanted: vec!["a.test".into(), "b.test".into()], skipped: Vec::new() },
            held: held.iter().map(|(host, held)| ((*host).to_owned(), held.clone())).collect(),
            failures: Failures {
                directory: "https://ca.example/dir".into(),
                authority: None,
                hosts: failed.iter().map(|host| ((*host).to_owned(), failure.clone())).collect(),
            },
        }
    }

    #[tokio::test]
    async fn people_are_told_once_whatever_becomes_of_the_agent_and_once_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        assert_eq!(store.next_notice("discord").await.unwrap(), None);
        let agent = || Outbox { store: store.clone(), journal: Journal::new(store.clone()) };
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let good = Held {
            directory: "https://ca.example/dir".into(),
            not_before: now,
            not_after: Timestamp::from_second(1_790_000_000 + 90 * 24 * 3600).unwrap(),
        };
        let both_fail = seen(&[], &["a.test", "b.test"], now);
        assert!(agent().tell(&both_fail, now).await);
        assert!(agent().tell(&both_fail, now).await, "as an agent would that was started again");
        let one_is_issued = seen(&[("a.test", good.clone())], &["b.test"], now);
        assert!(agent().tell(&one_is_issued, now).await);
        assert_eq!(agent().end_all().await, None, "nothing is ordered any more");
        assert!(agent().tell(&seen(&[("a.test", good.clone()), ("b.test", good)], &[], now), now).await);

        let mut told = Vec::new();
        while let Some(notice) = store.next_notice("discord").await.unwrap() {
            let About::CertificateAlert(id) = notice.about else { panic!("{notice:?}") };
            let alert = store.certificate_alert(id).await.unwrap().unwrap();
            told.push((notice.kind, alert.trouble.host.unwrap(), alert.issued_until.is_some()));
            store.notice_done("discord", &notice, None).await.unwrap();
        }
        let (failed, issued) = (NoticeKind::CertificateFailed, NoticeKind::CertificateIssued);
        let expected = [(failed, "a.test", true), (failed, "b.test", false), (issued, "a.test", true)];
        assert_eq!(told, expected.map(|(kind, host, until)| (kind, host.to_owned(), until)));
        assert_eq!(store.open_certificate_alerts().await.unwrap(), []);
    }
}
