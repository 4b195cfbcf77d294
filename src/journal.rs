//! What happens, written once and read by the pusher's terminal, the API and the notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, Stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::config::CanaryOf;
use crate::model::{AppName, DeploymentId, Duty, Health, InstanceId, ReleaseNumber, ServiceName, Status};
use crate::store::{CertificateTrouble, Deployment, Finish, LogLine, Raised, Served, Store, StoreError};

/// Events that a slow reader may lag behind before it has to read the record again.
const BACKLOG: usize = 1024;
/// Log lines read at once.
const PAGE: u32 = 1000;

/// Something that happened in a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum DeployEvent {
    /// It entered a state; terminal ones carry the reason.
    Status {
        /// The new state.
        status: Status,
        /// Why, for terminal states other than succeeded.
        reason: Option<String>,
        /// The release it made live, or kept.
        release: Option<ReleaseNumber>,
    },
    /// An instance moved.
    Instance {
        /// Which.
        instance: InstanceId,
        /// Of which service.
        service: ServiceName,
        /// Its place, from 1.
        slot: u32,
        /// Its health now.
        health: Health,
        /// Its duty now.
        duty: Duty,
    },
    /// A canary has come so far, was paused or resumed, or its comparison has new figures.
    Canary {
        /// The step it is at or on its way to, from 1.
        step: usize,
        /// How many there are.
        steps: usize,
        /// The new instances' share of the requests in percent.
        share: u32,
        /// A person has it wait.
        paused: bool,
    },
    /// A live instance drifted from what it should be, outside of a deployment.
    Drift {
        /// Which, where it is about one.
        instance: Option<InstanceId>,
        /// What happened and what is done about it.
        what: String,
    },
    /// A line of the log.
    Log {
        /// Counted per deployment, from 1.
        seq: u64,
        /// Without line end.
        line: String,
    },
}

/// An event with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Whose.
    pub app: AppName,
    /// Of which deployment; `None` for what happens to a live instance outside of one.
    pub deployment: Option<DeploymentId>,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: DeployEvent,
}

/// One item of [`Journal::follow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// A line of the log.
    Line(LogLine),
    /// The deployment has ended; the last item.
    Ended(Box<Deployment>),
}

/// Writes what happens to the store and tells it to whoever listens.
#[derive(Clone)]
pub struct Journal {
    store: Store,
    bus: broadcast::Sender<Published>,
    /// Changes when something is to be told that is about no deployment.
    alarms: watch::Sender<()>,
}

impl Journal {
    /// A journal on `store`.
    pub fn new(store: Store) -> Self {
        Self { store, bus: broadcast::Sender::new(BACKLOG), alarms: watch::Sender::new(()) }
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Published> {
        self.bus.subscribe()
    }

    /// Changes whenever an outage of the engine, or an alert about a canary or a certificate, begins or ends.
    pub fn subscribe_alarms(&self) -> watch::Receiver<()> {
        self.alarms.subscribe()
    }

    /// Records that the engine has not answered for too long, once for as long as it lasts.
    pub async fn begin_outage(&self, address: &str, why: &str, since: Timestamp) -> Result<bool, StoreError> {
        let begun = self.store.begin_outage(address, why, since).await?;
        self.alarms.send_replace(());
        Ok(begun)
    }

    /// Records that it answers again.
    pub async fn end_outage(&self) -> Result<bool, StoreError> {
        let ended = self.store.end_outage().await?;
        self.alarms.send_replace(());
        Ok(ended)
    }

    /// Records that a canary fails or is down, and tells it once for as long as it lasts.
    pub async fn raise_canary_alert(&self, app: &AppName, of: &CanaryOf, raised: &Raised) -> Result<bool, StoreError> {
        let begun = self.store.raise_canary_alert(app, of, raised).await?;
        self.alarms.send_replace(());
        Ok(begun)
    }

    /// Records that it is over.
    pub async fn end_canary_alert(&self, app: &AppName, tell: bool) -> Result<bool, StoreError> {
        let ended = self.store.end_canary_alert(app, tell).await?;
        self.alarms.send_replace(());
        Ok(ended)
    }

    /// Records that a certificate cannot be had, and tells it once for as long as it lasts.
    pub async fn raise_certificate_alert(&self, trouble: &CertificateTrouble) -> Result<bool, StoreError> {
        let begun = self.store.raise_certificate_alert(trouble).await?;
        self.alarms.send_replace(());
        Ok(begun)
    }

    /// Records that it is over.
    pub async fn end_certificate_alert(
        &self,
        host: Option<&str>,
        issued_until: Option<Timestamp>,
        tell: bool,
    ) -> Result<bool, StoreError> {
        let ended = self.store.end_certificate_alert(host, issued_until, tell).await?;
        self.alarms.send_replace(());
        Ok(ended)
    }

    /// Tells what happened to those who listen now; states are written by [`Journal::advance`] and [`Journal::finish`].
    pub fn publish(&self, app: &AppName, deployment: Option<DeploymentId>, event: DeployEvent) {
        // No receiver is no error: nobody is watching.
        let _ = self.bus.send(Published { app: app.clone(), deployment, at: Timestamp::now(), event });
    }

    /// Moves a deployment into a state that is not terminal. False when it has ended.
    pub async fn advance(&self, app: &AppName, id: DeploymentId, status: Status) -> Result<bool, StoreError> {
        let moved = self.store.advance(id, status).await?;
        if moved {
            self.publish(app, Some(id), DeployEvent::Status { status, reason: None, release: None });
        }
        Ok(moved)
    }

    /// Ends a deployment. False when it had ended before.
    pub async fn finish(&self, app: &AppName, id: DeploymentId, finish: Finish) -> Result<bool, StoreError> {
        self.finish_with(app, id, finish, None).await
    }

    /// The same, with how much of the live release serves now.
    pub async fn finish_with(
        &self,
        app: &AppName,
        id: DeploymentId,
        finish: Finish,
        served: Option<Served>,
    ) -> Result<bool, StoreError> {
        let ended = self.store.finish_with(id, finish, served).await?;
        if ended {
            self.publish_end(app, id).await?;
        }
        Ok(ended)
    }

    /// Records drift and tells it.
    pub async fn drift(&self, app: &AppName, instance: Option<InstanceId>, what: String) -> Result<(), StoreError> {
        tracing::warn!(%app, instance = instance.as_ref().map(InstanceId::as_str), "{what}");
        self.store.add_drift(app, instance.as_ref(), what.clone()).await?;
        self.publish(app, None, DeployEvent::Drift { instance, what });
        Ok(())
    }

    /// Records a container that no deployment on record has started, and tells it, once.
    pub async fn stranger(
        &self,
        app: &AppName,
        container: &str,
        instance: Option<InstanceId>,
        what: String,
    ) -> Result<(), StoreError> {
        if let Some(drift) = self.store.add_stranger(app, container, instance.as_ref(), what).await? {
            let (instance, what) = (drift.instance, drift.what);
            tracing::warn!(%app, instance = instance.as_ref().map(InstanceId::as_str), "{what}");
            self.publish(app, None, DeployEvent::Drift { instance, what });
        }
        Ok(())
    }

    /// Tells that a deployment waits.
    pub fn publish_queued(&self, app: &AppName, id: DeploymentId) {
        self.publish(app, Some(id), DeployEvent::Status { status: Status::Queued, reason: None, release: None });
    }

    /// Tells that a deployment gave way while it waited.
    pub fn publish_replaced(&self, app: &AppName, id: DeploymentId, newer: DeploymentId) {
        let Finish { status, reason, .. } = Finish::replaced_by(newer);
        self.publish(app, Some(id), DeployEvent::Status { status, reason, release: None });
    }

    /// Tells that a deployment has ended, from its record.
    pub async fn publish_end(&self, app: &AppName, id: DeploymentId) -> Result<(), StoreError> {
        if let Some(record) = self.store.deployment(id).await? {
            let event = DeployEvent::Status { status: record.status, reason: record.reason, release: record.release };
            self.publish(app, Some(id), event);
        }
        Ok(())
    }

    /// The log of a deployment, going on where an earlier life of the agent stopped.
    pub async fn log(&self, app: &AppName, id: DeploymentId) -> Result<DeployLog, StoreError> {
        let seq = AtomicU64::new(self.store.last_log_seq(id).await?);
        let (journal, app) = (self.clone(), app.clone());
        Ok(DeployLog::new(move |line| {
            let seq = seq.fetch_add(1, Ordering::Relaxed) + 1;
            journal.store.post_log(id, seq, line.to_owned());
            journal.publish(&app, Some(id), DeployEvent::Log { seq, line: line.to_owned() });
        }))
    }

    /// A deployment's log from line `after` on, as it grows, until the deployment ends.
    pub fn follow(
        &self,
        id: DeploymentId,
        after: u64,
    ) -> impl Stream<Item = Result<Followed, StoreError>> + Send + use<> {
        let follower = Follower {
            journal: self.clone(),
            // Subscribed before the record is read, so that nothing falls between the two.
            events: self.bus.subscribe(),
            id,
            last: after,
            pending: Vec::new().into_iter(),
            state: FollowState::Read,
        };
        stream::try_unfold(
            follower,
            |mut follower| async move { Ok(follower.next().await?.map(|item| (item, follower))) },
        )
    }
}

#[derive(PartialEq)]
enum FollowState {
    /// The record must be read.
    Read,
    /// The record is read; live events follow.
    Live,
    /// Ended.
    Done,
}

struct Follower {
    journal: Journal,
    events: broadcast::Receiver<Published>,
    id: DeploymentId,
    last: u64,
    pending: std::vec::IntoIter<LogLine>,
    state: FollowState,
}

impl Follower {
    async fn next(&mut self) -> Result<Option<Followed>, StoreError> {
        loop {
            if let Some(line) = self.pending.next() {
                self.last = line.seq;
                return Ok(Some(Followed::Line(line)));
            }
            match self.state {
                FollowState::Done => return Ok(None),
                FollowState::Read => {
                    // The record first: a deployment that has ended writes no more lines.
                    let record = self.journal.store.deployment(self.id).await?;
                    let lines = self.journal.store.log_lines(self.id, self.last, PAGE).await?;
                    let all = (lines.len() as u32) < PAGE;
                    self.pending = lines.into_iter();
                    if !all {
                        continue;
                    }
                    match record {
                        None => return Ok(None),
                        Some(record) if record.status.is_terminal() => return self.end_with(record),
                        Some(_) => self.state = FollowState::Live,
                    }
                }
                FollowState::Live => match self.events.recv().await {
                    Ok(published) if published.deployment == Some(self.id) => {
                        if let Some(line) = self.live(published) {
                            return Ok(Some(Followed::Line(line)));
                        }
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.state = FollowState::Read,
                    Err(RecvError::Closed) => return Ok(None),
                },
            }
        }
    }

    fn live(&mut self, published: Published) -> Option<LogLine> {
        match published.event {
            DeployEvent::Log { seq, line } if seq == self.last + 1 => {
                self.last = seq;
                Some(LogLine { seq, at: published.at, line })
            }
            // A gap, or the end: the record has it in order.
            DeployEvent::Log { seq, .. } if seq > self.last => {
                self.state = FollowState::Read;
                None
            }
            DeployEvent::Status { status, .. } if status.is_terminal() => {
                self.state = FollowState::Read;
                None
            }
            _ => None,
        }
    }

    /// Hands out the lines still pending, then the end.
    fn end_with(&mut self, record: Deployment) -> Result<Option<Followed>, StoreError> {
        if let Some(line) = self.pending.next() {
            self.last = line.seq;
            return Ok(Some(Followed::Line(line)));
        }
        self.state = FollowState::Done;
        Ok(Some(Followed::Ended(Box::new(record))))
    }
}

/// Where a deployment's log lines go. Cheap to clone; [`DeployLog::line`] never waits.
#[derive(Clone)]
pub struct DeployLog(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for DeployLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeployLog")
    }
}

impl DeployLog {
    /// A log that hands each line to `sink`.
    pub fn new(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Adds one line (without line end).
    pub fn line(&self, text: impl AsRef<str>) {
        (self.0)(text.as_ref());
    }
}
