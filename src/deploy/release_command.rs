//! The release command: once, in the new image, before any instance is touched.

use std::time::{Duration, Instant};

use super::prepare::Target;
use super::{Halt, Story, failed};
use crate::config::ReleaseCommand;
use crate::model::{InstanceId, Status};
use crate::runtime::RuntimeError;
use crate::store::{Release, Step};

/// The step of the release command; its outcome is the exit code.
const RELEASE_COMMAND_STEP: &str = "release_command";

impl Story<'_> {
    /// Runs the release command once in the new image; its failure leaves everything as it is.
    pub(super) async fn release_command(&self, target: &Target, live: Option<&Release>) -> Result<(), Halt> {
        let Some(command) = target.release.body.release_command.clone().filter(|_| target.run_command) else {
            return Ok(());
        };
        let image = |release: &Release| release.body.service(&command.service).map(|r| r.image.clone());
        if live.is_some_and(|live| image(live) == image(&target.release)) {
            self.log.line("release command: the image is unchanged, not run again");
            return Ok(());
        }
        self.advance(Status::Releasing).await?;
        let store = &self.deployer.store;
        let id = self.deployment.id;
        let code = match store.begin_step::<i64>(id, RELEASE_COMMAND_STEP).await? {
            Step::Done(code) => code,
            Step::New | Step::Begun => {
                let code = self.run_release_command(target, &command).await?;
                store.end_step(id, RELEASE_COMMAND_STEP, &code).await?;
                code
            }
        };
        if code == 0 {
            return Ok(());
        }
        let words = command.command.join(" ");
        if self.losses.were_in(Status::Releasing) || self.deployer.presence.was_lost_since(self.engine) {
            let reason = format!(
                "the release command `{words}` was under way when the Docker engine went away, and exited with code \
                 {code}; it is not run a second time by itself, and nothing was switched"
            );
            return Err(failed(reason, false));
        }
        Err(failed(format!("the release command `{words}` exited with code {code}; nothing was switched"), true))
    }

    /// What a release command runs in.
    pub(super) fn command_instance(&self, command: &ReleaseCommand) -> InstanceId {
        InstanceId::new(self.deployment.id, &command.service, 0, 0)
    }

    pub(super) async fn stop_command(&self, command: &ReleaseCommand) {
        let stopped = self.deployer.runtime.stop(&self.command_instance(command), Duration::from_secs(10)).await;
        if let Err(err) = stopped {
            self.log.line(format!("the release command could not be stopped: {err}"));
        }
    }

    async fn run_release_command(&self, target: &Target, command: &ReleaseCommand) -> Result<i64, Halt> {
        let specs = self.specs(&target.release)?;
        let spec = specs
            .get(&command.service)
            .ok_or_else(|| failed(format!("the release command's service {} does not exist", command.service), true))?;
        let id = self.deployment.id;
        let instance = spec.instance(&self.app.name, id, self.command_instance(command), 0);
        let mut instance = instance.map_err(|why| failed(why.to_string(), false))?;
        instance.command = Some(command.command.clone());
        self.log.line(format!("release command: {}", command.command.join(" ")));
        let began = Instant::now();
        let say = |line: &str| self.log.line(format!("  {line}"));
        let run = self.deployer.runtime.run_once(&instance, command.timeout, &say);
        let ended = tokio::select! {
            biased;
            () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
            () = self.running.stop.cancelled() => {
                self.stop_command(command).await;
                return Err(self.running.halt());
            }
            ended = run => ended,
        };
        let exited = ended.map_err(|err| match err {
            // Whether it ran is asked when the engine is back: its container is adopted.
            RuntimeError::Unavailable(why) => Halt::EngineAway(why),
            other => failed(format!("the release command could not be run: {other}"), false),
        })?;
        self.log.line(format!(
            "release command: exited with {} after {:.1} s",
            exited.code,
            began.elapsed().as_secs_f64()
        ));
        Ok(exited.code)
    }
}
