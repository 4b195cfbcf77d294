//! A canary whose rollout does not go on yet: the agent has just been started, the engine is away, a secret is absent. The journal
//! knows how far it had come, and the proxy gives it its share. So it is shown, it can be asked what it could be asked
//! before, and it is compared as long as its instances are known.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::analysis::Analysis;
use super::canary::{CANARY_STEP, CanaryState, WishRefused, share_left};
use super::counting::Count;
use super::{DriverTask, REVERT_STEP, Round};
use crate::config::Strategy;
use crate::journal::DeployLog;
use crate::model::{AppName, CanaryAction, DeploymentId, Duty, ReleaseNumber, Status};
use crate::rollout::canary::{Standing, Wish, refuses, wished};
use crate::rollout::driver::Assignment;
use crate::rollout::fleet::{Member, Task};
use crate::rollout::machine::{Cause, Event, Failure};
use crate::store::{Step, Store, StoreError};

/// A canary as the journal knows it.
#[derive(Debug, Clone)]
pub struct OnRecord {
    deployment: DeploymentId,
    release: ReleaseNumber,
    standing: Standing,
    /// How many shares there are.
    shares: usize,
    analysis: bool,
    /// Since when it is shown like that.
    since: Timestamp,
    is_undone: bool,
}

/// The canary of the deployment that has begun and not ended, also one that is being undone.
pub async fn on_record(store: &Store, app: &AppName) -> Result<Option<OnRecord>, StoreError> {
    let Some(record) = store.unfinished(app).await?.filter(|record| record.status == Status::RollingOut) else {
        return Ok(None);
    };
    let Some(number) = record.release else { return Ok(None) };
    let standing = share_left(store, record.id).await?.filter(|standing| standing.share < 100);
    let (Some(standing), Some(release)) = (standing, store.release(app, number).await?) else { return Ok(None) };
    let Strategy::Canary(policy) = &release.body.rollout.strategy else { return Ok(None) };
    Ok(Some(OnRecord {
        deployment: record.id,
        release: number,
        standing,
        shares: policy.steps.len(),
        analysis: policy.analysis,
        since: record.started_at.unwrap_or(record.queued_at),
        is_undone: failure(store, record.id).await?.is_some(),
    }))
}

impl OnRecord {
    /// As others see it; `None` when it is being undone.
    pub fn state(&self) -> Option<CanaryState> {
        let steps = self.shares + 1;
        (!self.is_undone).then(|| CanaryState {
            deployment: self.deployment,
            release: self.release,
            step: self.standing.step.min(self.shares) + 1,
            steps,
            share: self.standing.share,
            since: self.since,
            next_at: None,
            paused: self.standing.held,
            comparison: None,
        })
    }
}

/// Writes down what a person asks of a canary whose rollout does not go on yet: it does so when it goes on, or back.
pub async fn ask_on_record(store: &Store, app: &AppName, wish: &Wish) -> Result<DeploymentId, WishRefused> {
    let canary = on_record(store, app).await.map_err(WishRefused::Journal)?;
    let Some(canary) = canary else { return Err(WishRefused::NoCanary(app.clone())) };
    let why = match canary.is_undone {
        true => Some("it is being undone"),
        false => refuses(canary.standing, canary.shares, wish.action),
    };
    if let Some(why) = why {
        return Err(WishRefused::Senseless(app.clone(), why));
    }
    let (id, share) = (canary.deployment, canary.standing.share);
    let written = match wish.action {
        CanaryAction::Abort => {
            let why = format!("the canary was aborted by {} at {share} % of the requests", wish.by);
            record_failure(store, id, &Failure { why, instance: None, cause: Cause::Release }).await
        }
        action => store.end_step(id, CANARY_STEP, &wished(canary.standing, canary.shares, action)).await,
    };
    written.map(|()| id).map_err(WishRefused::Journal)
}

async fn record_failure(store: &Store, id: DeploymentId, failure: &Failure) -> Result<(), StoreError> {
    store.begin_step::<Failure>(id, REVERT_STEP).await?;
    store.end_step(id, REVERT_STEP, failure).await
}

async fn failure(store: &Store, id: DeploymentId) -> Result<Option<Failure>, StoreError> {
    Ok(match store.step::<Failure>(id, REVERT_STEP).await? {
        Step::Done(failure) => Some(failure),
        Step::New | Step::Begun => None,
    })
}

/// The comparison of a canary that waits.
pub(super) struct Watched {
    pub round: Round,
    deployment: DeploymentId,
    /// `None`: it is not to be compared.
    compared: Option<(Analysis, Task)>,
    log: DeployLog,
    /// Who waits until it can go on.
    wake: Arc<Notify>,
}

impl DriverTask {
    /// From now on until it is rolled out further or back, this canary waits.
    pub(super) async fn watch_waiting(&mut self, deployment: DeploymentId, log: DeployLog, wake: Arc<Notify>) {
        let canary = match on_record(&self.parts.store, &self.app).await {
            Ok(canary) => canary.filter(|canary| canary.deployment == deployment),
            Err(err) => return tracing::error!(app = %self.app, %err, "its canary could not be read"),
        };
        let Some((canary, state)) = canary.and_then(|canary| Some((canary.clone(), canary.state()?))) else { return };
        self.rounds += 1;
        let round = Round(self.rounds);
        let step = canary.standing.step;
        let is_shared = (1..100).contains(&canary.standing.share);
        let compared = (canary.analysis && is_shared)
            .then(|| (Analysis::new(step, canary.shares), self.count_again_and_again(round)));
        self.canary.send_replace(Some(state));
        self.watched = Some(Watched { round, deployment, compared, log, wake });
    }

    /// Compares a canary that waits, and has it undone when it is bad.
    pub(super) async fn counted_waiting(&mut self, count: &Count) {
        let Some(Watched { deployment, compared: Some((analysis, _)), .. }) = &mut self.watched else { return };
        let deployment = *deployment;
        let looked = analysis.look(count, &self.members, deployment);
        self.canary.send_modify(|state| {
            if let Some(state) = state {
                state.comparison = Some(looked.words.clone());
            }
        });
        let Some(why) = looked.is_worse else { return };
        let share = self.canary.borrow().as_ref().map_or(0, |state| state.share);
        let why = format!("the canary is worse than what it replaces, at {share} % of the requests: {why}");
        let failure = Failure { why, instance: None, cause: Cause::Release };
        match record_failure(&self.parts.store, deployment, &failure).await {
            Ok(()) => self.undo_waiting(deployment, &failure.why),
            // The next look tries again.
            Err(err) => tracing::error!(app = %self.app, %err, "the canary is bad, and that could not be recorded"),
        }
    }

    /// What a person asks while no rollout goes on.
    pub(super) async fn asked_waiting(&mut self, wish: &Wish) -> Result<DeploymentId, WishRefused> {
        let id = ask_on_record(&self.parts.store, &self.app, wish).await?;
        match wish.action {
            CanaryAction::Abort => self.undo_waiting(id, &format!("the canary was aborted by {}", wish.by)),
            action => {
                if let Ok(Some(canary)) = on_record(&self.parts.store, &self.app).await {
                    self.canary.send_replace(canary.state());
                }
                if let Some(watched) = self.watched.as_ref().filter(|watched| watched.deployment == id) {
                    watched.log.line(format!("canary: {action} asked by {}; it counts when this goes on", wish.by));
                }
            }
        }
        Ok(id)
    }

    /// It is on disk that it is undone: it has no requests from now on, where others have.
    fn undo_waiting(&mut self, deployment: DeploymentId, why: &str) {
        let alone = self.alone(deployment);
        let serves = |m: &Member| m.deployment == deployment && m.duty == Duty::Serving;
        for (_, member) in self.members.iter_mut().filter(|(id, m)| serves(m) && !alone.contains(*id)) {
            member.duty = Duty::Draining;
        }
        self.push_routes();
        self.canary.send_replace(None);
        if let Some(watched) = self.watched.take_if(|watched| watched.deployment == deployment) {
            watched.log.line(format!("undoing: {why}"));
            watched.wake.notify_one();
        }
    }

    /// What was asked of its canary after a rollout was planned. A failure is why it is undone as soon as it has begun.
    pub(super) async fn asked_meanwhile(&self, assignment: &mut Assignment) -> Option<Failure> {
        if !assignment.resumed || assignment.reverting.is_some() {
            return None;
        }
        let (store, id) = (&self.parts.store, assignment.deployment);
        let asked = async { Ok::<_, StoreError>((failure(store, id).await?, share_left(store, id).await?)) };
        match asked.await {
            Ok((failure, standing)) => {
                if let Some(plan) = &mut assignment.canary {
                    plan.standing = standing.or(plan.standing);
                }
                failure
            }
            Err(err) => {
                tracing::error!(app = %self.app, %err, "what was asked of the canary could not be read");
                None
            }
        }
    }

    /// Has a rollout undone that was planned forward before somebody asked for the contrary.
    pub(super) async fn undo_planned(&mut self, failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.ask_machine(Event::ErrorsJumped(failure.why)).await;
        }
    }
}
