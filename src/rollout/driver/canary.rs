//! A canary as the driver performs it: how far it has come, on disk and for whoever looks; and what a person asks of it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{DriverTask, REVERT_STEP};
use crate::journal::DeployEvent;
use crate::model::{DeploymentId, ReleaseNumber};
use crate::rollout::canary::{Course, Standing, Wish};
use crate::rollout::machine::Event;
use crate::store::{Step, Store, StoreError};

/// The step that says how far a canary has come.
pub const CANARY_STEP: &str = "canary";

/// A rollout that shares the requests.
#[derive(Debug, Clone)]
pub struct CanaryPlan {
    /// In these steps.
    pub course: Course,
    /// How far an earlier life of the agent had come.
    pub standing: Option<Standing>,
    /// New and old instances are compared.
    pub analysis: bool,
    /// What it brings.
    pub release: ReleaseNumber,
}

/// A canary as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryState {
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// What it brings.
    pub release: ReleaseNumber,
    /// The step it is at or on its way to, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// The new instances' share of the requests in percent, as the proxy has it.
    pub share: u32,
    /// Since when.
    pub since: Timestamp,
    /// When the next step begins, if nothing is in the way; `None` when nothing is waited for, or a person.
    pub next_at: Option<Timestamp>,
    /// A person has it wait.
    pub paused: bool,
    /// How new and old instances compare, in words.
    pub comparison: Option<String>,
}

impl From<&CanaryState> for DeployEvent {
    fn from(state: &CanaryState) -> Self {
        Self::Canary { step: state.step, steps: state.steps, share: state.share, paused: state.paused }
    }
}

/// Why something could not be asked of a canary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishRefused {
    /// There is none.
    #[error("no canary of {0} is under way")]
    NoCanary(crate::model::AppName),
    /// It makes no sense now, for this reason.
    #[error("the canary of {0} cannot do that now: {1}")]
    Senseless(crate::model::AppName, &'static str),
    /// It is done, but not on disk.
    #[error("it is done, but could not be written down, and a restart of the agent would forget it: {0}")]
    Unrecorded(StoreError),
    /// The journal failed.
    #[error("nothing was done, as the journal failed: {0}")]
    Journal(StoreError),
}

/// How far the canary of a deployment had come, when none of it has been undone.
pub async fn standing(store: &Store, id: DeploymentId) -> Result<Option<Standing>, StoreError> {
    if let Step::Done(_) = store.step::<serde_json::Value>(id, REVERT_STEP).await? {
        return Ok(None);
    }
    share_left(store, id).await
}

/// How far the canary of a deployment had come, also when it was being undone: its new instances may still be in the table.
pub async fn share_left(store: &Store, id: DeploymentId) -> Result<Option<Standing>, StoreError> {
    match store.step::<Standing>(id, CANARY_STEP).await? {
        Step::Done(standing) => Ok(Some(standing)),
        Step::New | Step::Begun => Ok(None),
    }
}

/// Whether a deployment that is undone, or was, was a canary and not promoted. One that cannot be read counts as none.
pub async fn was_canary(store: &Store, id: DeploymentId) -> bool {
    matches!(share_left(store, id).await, Ok(Some(standing)) if standing.share < 100)
}

impl DriverTask {
    /// The canary has come so far: on disk first, then for whoever looks.
    pub(super) async fn stand(&mut self, standing: Standing) {
        let Some(active) = &mut self.rollout else { return };
        let id = active.assignment.deployment;
        let recorded = async {
            self.parts.store.begin_step::<Standing>(id, CANARY_STEP).await?;
            self.parts.store.end_step(id, CANARY_STEP, &standing).await
        };
        active.unrecorded = recorded.await.err();
        if let Some(err) = &active.unrecorded {
            // A crash now would lead to an earlier step, which is then taken once more.
            tracing::error!(app = %self.app, %err, "the canary's step could not be recorded");
        }
        self.end_analysis();
        let Some(active) = &self.rollout else { return };
        let Some(plan) = &active.assignment.canary else { return };
        let now = Timestamp::now();
        let before = self.canary.borrow().clone().filter(|before| before.deployment == id);
        let since = before.as_ref().filter(|before| before.share == standing.share).map_or(now, |before| before.since);
        let pausing = active.machine.canary().and_then(|canary| canary.next_step_at());
        let next_at = pausing.and_then(|at| later(now, at.saturating_sub(active.began.elapsed())));
        let (share, paused, steps) = (standing.share, standing.held, plan.course.steps.len() + 1);
        let step = standing.step + 1;
        let comparison = before.filter(|before| before.step == step).and_then(|before| before.comparison);
        let state = CanaryState {
            deployment: id,
            release: plan.release,
            step,
            steps,
            share,
            since,
            next_at,
            paused,
            comparison,
        };
        let event = DeployEvent::from(&state);
        self.canary.send_replace(Some(state));
        self.parts.journal.publish(&self.app, Some(id), event);
    }

    /// What a person asks. The answer comes when it is on disk.
    pub(super) async fn asked(&mut self, wish: Wish, answer: oneshot::Sender<Result<DeploymentId, WishRefused>>) {
        let under_way = self.rollout.as_ref().and_then(|active| Some((active, active.machine.canary()?)));
        let result = match under_way {
            None => {
                let result = match self.rollout {
                    None => self.asked_waiting(&wish).await,
                    Some(_) => Err(self.refusal().await),
                };
                let _ = answer.send(result);
                return;
            }
            Some((active, canary)) => match canary.refuses(wish.action) {
                Some(why) => Err(WishRefused::Senseless(self.app.clone(), why)),
                None => Ok(active.assignment.deployment),
            },
        };
        let result = match result {
            Err(refused) => Err(refused),
            Ok(id) => {
                self.feed(Event::Asked(wish)).await;
                match self.rollout.as_mut().and_then(|active| active.unrecorded.take()) {
                    Some(err) => Err(WishRefused::Unrecorded(err)),
                    None => Ok(id),
                }
            }
        };
        // A caller that went away is told nothing.
        let _ = answer.send(result);
    }

    /// Why nothing can be asked of a rollout without a canary: it may undo one.
    async fn refusal(&self) -> WishRefused {
        let undone = self.rollout.as_ref().filter(|active| active.assignment.reverting.is_some());
        match undone {
            Some(active) if was_canary(&self.parts.store, active.assignment.deployment).await => {
                WishRefused::Senseless(self.app.clone(), "it is being undone")
            }
            _ => WishRefused::NoCanary(self.app.clone()),
        }
    }
}

fn later(now: Timestamp, by: Duration) -> Option<Timestamp> {
    now.checked_add(jiff::SignedDuration::try_from(by).ok()?).ok()
}
