//! One receiver's task: the outbox in order, each notice until it is told or nobody wants to know it any more.
//!
//! Nothing that matters is kept in memory. Each attempt reads the outbox and the deployment's record anew, so a
//! message that was held up says what is true when it arrives, and a restart goes on where the cursor on disk stands.
//! A notice is told at least once: an agent that dies between Discord's answer and the cursor's move tells it again,
//! which edits the message; only a first message can come twice (webhooks have no idempotency key).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::discord::Payload;
use super::message::{Message, News, compose};
use super::webhook::{Answer, Webhook};
use super::{Target, canary, certificate, facts, outage, targets};
use crate::config::{Config, NoticeKind};
use crate::journal::{DeployEvent, Journal, Published};
use crate::model::AppName;
use crate::store::{About, CanaryAlert, CertificateAlert, Deployment, Notice, Outage, Store, StoreError};

/// The waits of a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// For one request, answer included.
    pub request: Duration,
    /// After the first failure; doubled with each further one.
    pub first_retry: Duration,
    /// At most between two attempts.
    pub longest_retry: Duration,
    /// The shortest pause after "too many requests", whatever the server says.
    pub shortest_limit: Duration,
    /// How often the outbox is looked at when nothing says that it has grown.
    pub check: Duration,
    /// A notice older than this is not told any more.
    pub max_age: Duration,
    /// How far a receiver may be behind before it is spared what a later notice says as well.
    pub patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(5 * 60),
            shortest_limit: Duration::from_millis(250),
            check: Duration::from_secs(30),
            max_age: Duration::from_secs(24 * 3600),
            patience: Duration::from_secs(10),
        }
    }
}

/// Works through the outbox for one receiver.
pub(super) struct Courier {
    /// The receiver in the outbox.
    name: String,
    store: Store,
    events: broadcast::Receiver<Published>,
    alarms: watch::Receiver<()>,
    config: watch::Receiver<Arc<Config>>,
    timing: Timing,
    /// Made at the first use, and again after a change of the configuration.
    webhook: Option<Webhook>,
    /// Attempts in a row that led to nothing.
    failures: u32,
    /// Notices dropped for their age since the last that was not.
    dropped: u64,
    /// Superseded deployments that were passed over, until one of their app's is told.
    passed_over: HashMap<AppName, u64>,
    /// When the receiver's allowance is renewed.
    rest_until: Option<Instant>,
}

/// What comes after a step.
enum Next {
    /// The next notice.
    GoOn,
    /// Wait for one.
    Idle,
    /// The same notice after a while.
    Retry(Duration),
    /// Nothing until the configuration changes.
    Pause,
    /// The journal is closed.
    End,
}

/// What is to be done with a notice.
enum Verdict {
    /// A message about a deployment.
    Tell(News, Box<Deployment>),
    /// A message about the engine.
    TellOutage(Outage),
    /// A message about a canary.
    TellCanary(CanaryAlert),
    /// A message about a certificate.
    TellCertificate(CertificateAlert),
    /// Nothing: the receiver did not ask for it, or a notice behind it says more.
    NotWanted,
    /// Nothing but a count in a later message about this app.
    ToldWithALaterOne(AppName),
    /// Nothing: nobody wants to know any more.
    TooOld,
}

/// Why a notice could not be told now.
enum Trouble {
    /// Another attempt may succeed after a while that the courier chooses.
    Unavailable(String),
    /// Another attempt may succeed after this.
    Limited(Duration),
    /// No further attempt can succeed.
    WebhookGone(String),
    /// The journal cannot be read or written.
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(err: StoreError) -> Self {
        Self::Store(err)
    }
}

impl Courier {
    /// Listens to the journal from now on.
    pub(super) fn new(
        name: String,
        store: Store,
        journal: Journal,
        config: watch::Receiver<Arc<Config>>,
        timing: Timing,
    ) -> Self {
        let (events, alarms) = (journal.subscribe(), journal.subscribe_alarms());
        let passed_over = HashMap::new();
        Self {
            name,
            store,
            events,
            alarms,
            config,
            timing,
            webhook: None,
            failures: 0,
            dropped: 0,
            passed_over,
            rest_until: None,
        }
    }

    /// Delivers until `stop`. A request under way is given up then; the notice stays in the outbox.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.deliver()).await;
    }

    async fn deliver(&mut self) {
        loop {
            if let Some(rest) = self.rest_until.take() {
                sleep_until(rest).await;
            }
            match self.step().await {
                Next::GoOn => {}
                Next::Idle => self.wait_for_news().await,
                Next::Retry(wait) => sleep(wait).await,
                Next::Pause => {
                    if self.config.changed().await.is_err() {
                        // Nothing will ever change; until the agent ends there is nothing to do.
                        return;
                    }
                    self.webhook = None;
                }
                Next::End => return,
            }
        }
    }

    /// One notice, or one attempt at it.
    async fn step(&mut self) -> Next {
        if self.config.has_changed().unwrap_or(false) {
            self.webhook = None;
        }
        let config = self.config.borrow_and_update().clone();
        // A receiver that is no longer configured is about to be stopped.
        let Some(target) = targets(&config).remove(&self.name) else { return Next::Pause };

        match self.attempt(&config, &target).await {
            Ok(true) => {
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!(receiver = self.name, "notifications are delivered again");
                }
                Next::GoOn
            }
            Ok(false) => {
                self.report_dropped();
                Next::Idle
            }
            Err(trouble) => self.after(trouble),
        }
    }

    /// Tells the next notice, or passes over it. False when there is none.
    async fn attempt(&mut self, config: &Config, target: &Target) -> Result<bool, Trouble> {
        let Some(notice) = self.store.next_notice(&self.name).await? else { return Ok(false) };
        let mut told = None;
        match self.judge(&notice, target).await? {
            Verdict::NotWanted => {}
            Verdict::TooOld => self.dropped += 1,
            Verdict::ToldWithALaterOne(app) => *self.passed_over.entry(app).or_default() += 1,
            Verdict::Tell(news, record) => {
                self.report_dropped();
                told = self.tell(config, target, &notice, news, *record).await?;
            }
            Verdict::TellOutage(outage) => {
                self.report_dropped();
                let tell = if notice.kind == NoticeKind::EngineUp { outage::up } else { outage::down };
                let message = tell(&outage, config.agent.public_url.clone());
                // Each is a message of its own: an edit would make no phone ring.
                self.send(target, &notice, &message, None).await?;
            }
            Verdict::TellCanary(alert) => {
                self.report_dropped();
                let tell = if notice.kind == NoticeKind::CanaryUp { canary::up } else { canary::down };
                let message = tell(&alert, config.agent.public_url.clone());
                self.send(target, &notice, &message, None).await?;
            }
            Verdict::TellCertificate(alert) => {
                self.report_dropped();
                let is_over = notice.kind == NoticeKind::CertificateIssued;
                let tell = if is_over { certificate::issued } else { certificate::failed };
                let message = tell(&alert, config.agent.public_url.clone());
                self.send(target, &notice, &message, None).await?;
            }
        }
        self.store.notice_done(&self.name, &notice, told).await?;
        Ok(true)
    }

    /// Whether a notice is worth a message, by what is known now.
    async fn judge(&self, notice: &Notice, target: &Target) -> Result<Verdict, StoreError> {
        let is_older_than = |age| is_older(notice.at, Timestamp::now(), age);
        if is_older_than(self.timing.max_age) {
            return Ok(Verdict::TooOld);
        }
        if !target.events.contains(&notice.kind) {
            return Ok(Verdict::NotWanted);
        }
        let (news, id) = match (notice.about, News::of(notice.kind)) {
            (About::Deployment(id), Some(news)) => (news, id),
            (About::Outage(id), _) => return self.judge_outage(notice, id, target).await,
            (About::CanaryAlert(id), _) => {
                let alert = self.store.canary_alert(id).await?;
                return Ok(alert.map_or(Verdict::NotWanted, Verdict::TellCanary));
            }
            (About::CertificateAlert(id), _) => return self.judge_certificate(notice, id, target).await,
            (About::Deployment(_), None) => return Ok(Verdict::NotWanted),
        };
        let Some(record) = self.store.deployment(id).await? else { return Ok(Verdict::NotWanted) };
        if facts::is_overtaken(notice.kind, record.status, &target.events) {
            return Ok(Verdict::NotWanted);
        }
        // Hundreds of pushes in a row would keep a channel that takes 30 messages a minute from the news for an hour.
        if is_older_than(self.timing.patience) && facts::is_link_of_a_chain(&self.store, &record).await? {
            return Ok(Verdict::ToldWithALaterOne(record.app));
        }
        Ok(Verdict::Tell(news, Box::new(record)))
    }

    /// An outage that is over before it was told is told by its end.
    async fn judge_outage(&self, notice: &Notice, id: i64, target: &Target) -> Result<Verdict, StoreError> {
        let Some(outage) = self.store.outage(id).await? else { return Ok(Verdict::NotWanted) };
        let overtaken = notice.kind == NoticeKind::EngineDown
            && outage.ended_at.is_some()
            && target.events.contains(&NoticeKind::EngineUp);
        Ok(if overtaken { Verdict::NotWanted } else { Verdict::TellOutage(outage) })
    }

    /// So is a certificate that could not be had for a while; and of one that is not wanted any more there is nothing to tell.
    async fn judge_certificate(&self, notice: &Notice, id: i64, target: &Target) -> Result<Verdict, StoreError> {
        let Some(alert) = self.store.certificate_alert(id).await? else { return Ok(Verdict::NotWanted) };
        let overtaken = notice.kind == NoticeKind::CertificateFailed
            && alert.ended_at.is_some()
            && target.events.contains(&NoticeKind::CertificateIssued);
        Ok(if overtaken { Verdict::NotWanted } else { Verdict::TellCertificate(alert) })
    }

    /// Tells a notice, and returns the id of a message that is new.
    async fn tell(
        &mut self,
        config: &Config,
        target: &Target,
        notice: &Notice,
        news: News,
        record: Deployment,
    ) -> Result<Option<String>, Trouble> {
        let superseded = news == News::Superseded;
        let (id, app) = (record.id, record.app.clone());
        let before = self.passed_over.get(&app).copied().filter(|_| superseded).unwrap_or_default();
        let message = compose(&facts::gather(&self.store, config, news, record, before).await?);
        let known = self.store.notice_message(&self.name, id).await?;
        let told = self.send(target, notice, &message, known.as_deref()).await?;
        if superseded {
            self.passed_over.remove(&app);
        }
        Ok(told)
    }

    /// Edits the deployment's message, or posts one; the plainest form when the full one is refused. Returns the id
    /// of a message that is new.
    async fn send(
        &mut self,
        target: &Target,
        notice: &Notice,
        message: &Message,
        known: Option<&str>,
    ) -> Result<Option<String>, Trouble> {
        let webhook = match self.webhook.take() {
            Some(webhook) => webhook,
            None => Webhook::new(target, self.timing.request).map_err(Trouble::WebhookGone)?,
        };
        let webhook = self.webhook.insert(webhook);
        let (full, plain) = (Payload::new(message), Payload::minimal(message));
        let attempts: &[(Option<&str>, &Payload)] = match known {
            Some(id) => &[(Some(id), &full), (None, &full), (None, &plain)],
            None => &[(None, &full), (None, &plain)],
        };
        for (edited, payload) in attempts {
            let answer = match edited {
                Some(id) => webhook.edit(id, payload).await,
                None => webhook.post(payload).await,
            };
            match answer {
                Answer::Told { message, rest } => {
                    self.rest_until = rest.map(|rest| Instant::now() + rest);
                    return Ok(message);
                }
                // It was deleted in Discord: the end of the story is told anew.
                Answer::MessageGone => {}
                Answer::Refused(why) => {
                    let (receiver, about) = (&self.name, notice.about);
                    tracing::error!(receiver, ?about, why, "Discord refused a notification; a plainer one is tried");
                }
                Answer::Limited(wait) => return Err(Trouble::Limited(wait)),
                Answer::Unavailable(why) => return Err(Trouble::Unavailable(why)),
                Answer::WebhookGone(why) => return Err(Trouble::WebhookGone(why)),
            }
        }
        let (receiver, about) = (&self.name, notice.about);
        tracing::error!(receiver, ?about, "Discord refused the plainest form too: the notification is given up");
        Ok(None)
    }

    /// What to do about a failed attempt; the first of a series is logged as a warning.
    fn after(&mut self, trouble: Trouble) -> Next {
        let receiver = &self.name;
        if !matches!(trouble, Trouble::Limited(_)) {
            self.failures = self.failures.saturating_add(1);
        }
        let wait = backoff(self.failures, jitter(), &self.timing);
        match trouble {
            Trouble::Limited(asked) => {
                tracing::debug!(receiver, ?asked, "too many notifications for Discord");
                Next::Retry(asked.max(self.timing.shortest_limit))
            }
            Trouble::Unavailable(why) if self.failures == 1 => {
                tracing::warn!(receiver, why, "a notification cannot be delivered now; it is tried again until it can");
                Next::Retry(wait)
            }
            Trouble::Unavailable(why) => {
                tracing::debug!(receiver, why, ?wait, "still no delivery");
                Next::Retry(wait)
            }
            Trouble::WebhookGone(why) => {
                let hours = self.timing.max_age.as_secs() / 3600;
                tracing::warn!(
                    receiver,
                    why,
                    "this [[notify]] entry does not work and is left alone until the configuration is reloaded; what \
                     happened less than {hours} h before is told then"
                );
                Next::Pause
            }
            Trouble::Store(StoreError::Closed) => Next::End,
            Trouble::Store(err) => {
                tracing::error!(receiver, %err, "the outbox cannot be read");
                Next::Retry(wait)
            }
        }
    }

    fn report_dropped(&mut self) {
        let count = std::mem::take(&mut self.dropped);
        if count > 0 {
            let hours = self.timing.max_age.as_secs() / 3600;
            tracing::warn!(receiver = self.name, count, "notifications older than {hours} h were dropped");
        }
    }

    /// Returns when a deployment changed its state, or an outage or an alert began or ended, and at the latest after the check
    /// interval.
    async fn wait_for_news(&mut self) {
        let check = sleep(self.timing.check);
        tokio::pin!(check);
        loop {
            tokio::select! {
                () = &mut check => return,
                changed = self.alarms.changed() => match changed {
                    Ok(()) => return,
                    Err(_) => return check.await,
                },
                event = self.events.recv() => match event {
                    Ok(Published { event: DeployEvent::Status { .. }, .. }) | Err(RecvError::Lagged(_)) => return,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return check.await,
                }
            }
        }
    }
}

/// Between half and the whole of the doubled wait, so that several receivers do not come back at the same moment.
/// `jitter` is 0 to 1.
fn backoff(failures: u32, jitter: f64, timing: &Timing) -> Duration {
    let doubled = timing.first_retry.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(timing.longest_retry).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

fn jitter() -> f64 {
    // Without randomness the waits are only less spread.
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

/// `false` for a notice from the future: a clock that was set back loses nothing.
fn is_older(at: Timestamp, now: Timestamp, max_age: Duration) -> bool {
    Duration::try_from(now.duration_since(at)).is_ok_and(|age| age > max_age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let timing = Timing::default();
        let whole = |failures| backoff(failures, 1.0, &timing).as_secs();
        assert_eq!([1, 2, 3, 8, 9, 10, 1000, u32::MAX].map(whole), [1, 2, 4, 128, 256, 300, 300, 300]);
        assert_eq!(backoff(1, 0.0, &timing), Duration::from_millis(500));
        assert_eq!(backoff(u32::MAX, 0.0, &timing), Duration::from_secs(150));
    }

    #[test]
    fn age_is_judged_by_a_clock_that_may_step() {
        let (day, at) = (Duration::from_secs(86_400), Timestamp::from_second(1_700_000_000).unwrap());
        let later = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        assert!(!is_older(at, later(86_400), day));
        assert!(is_older(at, later(86_401), day));
        assert!(!is_older(at, later(-1_000_000_000), day));
    }
}
