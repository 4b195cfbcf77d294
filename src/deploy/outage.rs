//! The engine goes away in the middle of a deployment: that is no different from an end of the agent. The deployment is
//! broken off where it is, nothing is undone, and it is told again when the engine answers. An engine that goes away in
//! the same deployment again and again may do so because of it: then it is not told again.

use std::time::Duration;

use jiff::Timestamp;

use super::{Deployer, Halt, Story};
use crate::journal::DeployLog;
use crate::model::{DeploymentId, Status};
use crate::runtime::presence::Mark;
use crate::store::{Finish, Step, StoreError};

/// The step that says how often the engine went away: its outcome is in which states.
const STEP: &str = "engine_away";
/// So often a deployment is broken off.
const MOST: usize = 3;

/// In which states of a deployment the engine went away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Losses(Vec<Status>);

impl Losses {
    /// Whether it is broken off when the engine goes away now.
    pub(super) fn allow_another(&self) -> bool {
        self.0.len() < MOST
    }

    pub(super) fn were_in(&self, status: Status) -> bool {
        self.0.contains(&status)
    }
}

impl Deployer {
    pub(super) async fn losses(&self, id: DeploymentId) -> Result<Losses, StoreError> {
        Ok(match self.store.step(id, STEP).await? {
            Step::Done(states) => Losses(states),
            Step::New | Step::Begun => Losses::default(),
        })
    }

    /// Breaks a deployment off; or its end, when it was broken off too often.
    pub(super) async fn break_off(
        &self,
        id: DeploymentId,
        why: &str,
        log: &DeployLog,
    ) -> Result<Option<Finish>, StoreError> {
        let status = self.store.deployment(id).await?.map_or(Status::Preparing, |record| record.status);
        let mut losses = self.losses(id).await?;
        if !losses.allow_another() {
            let reason = format!(
                "the Docker engine went away while this was {status}, as it had {MOST} times before in this \
                 deployment: {why}"
            );
            return Ok(Some(Finish { status: Status::Failed, reason: Some(reason), superseded_by: None, hold: false }));
        }
        // Whoever looked last may have seen it still: it has to say that it is there before anything is told again.
        self.presence.broke();
        // What it lost with the engine is not held against it. So it has its deadline anew, at most as often as this happens.
        self.store.set_time_told(id, Duration::ZERO).await?;
        losses.0.push(status);
        self.store.begin_step::<Vec<Status>>(id, STEP).await?;
        self.store.end_step(id, STEP, &losses.0).await?;
        log.line(format!("the Docker engine went away: {why}"));
        log.line("this deployment goes on by itself when the engine answers again");
        Ok(None)
    }

    /// What was broken off before its release command needs no engine to be cancelled: nothing was begun that could be
    /// under way.
    pub(super) async fn end_cancelled(&self) -> Result<(), StoreError> {
        let Some(broken_off) = self.store.unfinished(&self.app).await? else { return Ok(()) };
        if broken_off.cancel_asked && matches!(broken_off.status, Status::Preparing | Status::Building) {
            let by = self.store.cancelled_by(broken_off.id).await?;
            let reason = Some(format!("{by} while it waited for the Docker engine"));
            let finish = Finish { status: Status::Cancelled, reason, superseded_by: None, hold: false };
            self.journal.finish(&self.app, broken_off.id, finish).await?;
        }
        Ok(())
    }

    /// Returns when the engine answers and has said what there is, if it was lost since `mark`.
    pub(super) async fn until_engine_is_there(&self, mark: &mut Mark) {
        while self.presence.was_lost_since(*mark) {
            self.presence.answers().await;
            let now = self.presence.mark();
            let refreshed = self.driver.refresh().await;
            match refreshed {
                Ok(()) => *mark = now,
                Err(_) => self.presence.saw(&refreshed, Timestamp::now()),
            }
        }
    }
}

impl Story<'_> {
    /// What something that failed comes to: when the engine was away since `mark`, that is why.
    pub(super) async fn unless_engine_was_lost(&self, mark: Mark, why: &str, otherwise: Halt) -> Halt {
        let answer = self.deployer.runtime.ping().await;
        self.deployer.presence.saw(&answer, Timestamp::now());
        if self.deployer.presence.was_lost_since(mark) { Halt::EngineAway(why.to_owned()) } else { otherwise }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_that_takes_the_engine_with_it_is_broken_off_three_times_and_no_more() {
        let mut losses = Losses::default();
        let mut broken_off = 0;
        while losses.allow_another() {
            losses.0.push(Status::Building);
            broken_off += 1;
        }
        assert_eq!(broken_off, 3);
        assert!(losses.were_in(Status::Building) && !losses.were_in(Status::Releasing));
    }
}
