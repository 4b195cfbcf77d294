//! A secret is absent that a deployment needs which may have begun to act: it can neither go on nor fail, so it waits, as long
//! as its deadline allows. Its end needs no secret: the release command is stopped, what was replaced is put back from what runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Halt, Story, failed, spec};
use crate::config::ReleaseCommand;
use crate::model::Status;
use crate::rollout::driver::REVERT_STEP;
use crate::rollout::machine::{Cause, Failure};
use crate::runtime::RunState;
use crate::store::{Finish, Step};

/// Between two looks. Where secrets lie may be mounted any moment, which no event of a file tells.
const PAUSE: Duration = Duration::from_secs(2);

/// Returns when it is time for a look, or its canary is to be undone.
async fn look_again(undone: &Notify) {
    tokio::select! {
        () = sleep(PAUSE) => {}
        () = undone.notified() => {}
    }
}

impl Story<'_> {
    /// Returns when the deployment can be told on: forward, or back when it was stopped meanwhile.
    pub(super) async fn until_secrets_are_there(&self) -> Result<(), Halt> {
        let Some(mut why) = self.absent_secret().await? else { return Ok(()) };
        let (app, id) = (&self.app.name, self.deployment.id);
        tracing::warn!(%app, %id, "the deployment goes on when its secrets can be read: {why}");
        self.log.line(format!("it waits for a secret, and goes on by itself when that can be read: {why}"));
        let undone = Arc::new(Notify::new());
        if self.in_rollout() {
            self.deployer.driver.wait(id, self.log.clone(), undone.clone());
        }
        let command = self.command_begun().await?;
        let late = Instant::now() + command.as_ref().map_or(Duration::ZERO, |command| command.timeout);
        let mut is_late = command.is_none();
        loop {
            self.running.waits_for(Some(&why));
            tokio::select! {
                biased;
                () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
                () = self.running.stop.cancelled() => {
                    self.running.waits_for(None);
                    return self.end_without(&why, command.as_ref()).await;
                }
                () = sleep_until(late), if !is_late => {
                    is_late = true;
                    if let Some(command) = &command {
                        self.end_late_command(command).await?;
                    }
                }
                () = look_again(&undone) => match self.absent_secret().await? {
                    Some(now) => why = now,
                    None => break,
                }
            }
        }
        self.running.waits_for(None);
        if !self.is_undone().await? {
            self.log.line(format!("its secrets can be read again; going on from {}", self.deployment.status));
        }
        Ok(())
    }

    async fn is_undone(&self) -> Result<bool, Halt> {
        let step = self.deployer.store.step::<Failure>(self.deployment.id, REVERT_STEP).await?;
        Ok(matches!(step, Step::Done(_)))
    }

    /// Which secret cannot be read now. What is being undone does without.
    async fn absent_secret(&self) -> Result<Option<String>, Halt> {
        let store = &self.deployer.store;
        match self.deployment.status {
            Status::Releasing => Ok(spec::absent_secret(self.app)),
            Status::RollingOut | Status::Watching => {
                if self.is_undone().await? {
                    return Ok(None);
                }
                let live = store.live_release(&self.app.name).await?;
                let target = self.target_under_way().await?.release;
                let (key, files) = (&self.deployer.settings_key, &self.deployer.static_files);
                Ok([Some(&target), live.as_ref()]
                    .into_iter()
                    .flatten()
                    .find_map(|release| spec::service_specs(release, key, files).err()))
            }
            _ => Ok(None),
        }
    }

    /// The release command that may be running.
    async fn command_begun(&self) -> Result<Option<ReleaseCommand>, Halt> {
        if self.deployment.status != Status::Releasing {
            return Ok(None);
        }
        Ok(self.target_under_way().await?.release.body.release_command)
    }

    /// A command that runs has its time, whether or not anybody may start another.
    async fn end_late_command(&self, command: &ReleaseCommand) -> Result<(), Halt> {
        let found = self.deployer.runtime.inspect(&self.command_instance(command)).await;
        if !matches!(found, Ok(Some(observed)) if observed.state == RunState::Running) {
            return Ok(());
        }
        self.stop_command(command).await;
        let limit = command.timeout.as_secs();
        Err(failed(
            format!("the release command did not end within {limit} s and was stopped; nothing was switched"),
            false,
        ))
    }

    /// It is to end before its time: at once where nothing was replaced, else on the way back.
    async fn end_without(&self, secret: &str, command: Option<&ReleaseCommand>) -> Result<(), Halt> {
        let (by_deadline, mut why) = (self.running.by_deadline(), self.running.why());
        if by_deadline {
            why = format!("{why}, as it waited for a secret: {secret}");
        }
        if !self.in_rollout() {
            if let Some(command) = command {
                self.stop_command(command).await;
            }
            let status = if by_deadline { Status::Failed } else { Status::Cancelled };
            return Err(Halt::End(Finish { status, reason: Some(why), superseded_by: None, hold: false }));
        }
        self.log.line(format!("undoing: {why}"));
        // A secret that is absent says nothing about the release.
        let cause = if by_deadline { Cause::Surroundings } else { Cause::Cancelled };
        let (store, id) = (&self.deployer.store, self.deployment.id);
        if by_deadline {
            store.lacks_secret(id, secret).await?;
        }
        store.begin_step::<Failure>(id, REVERT_STEP).await?;
        store.end_step(id, REVERT_STEP, &Failure { why, instance: None, cause }).await?;
        Ok(())
    }
}
