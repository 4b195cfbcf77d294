//! The first half of a deployment: the release that it is about, fetched and built where it is new.

use std::time::Instant;

use super::build::{Artifact, BuildError, BuildRequest};
use super::source::{Source, SourceError, Want};
use super::{Halt, Story, failed, spec};
use crate::disk;
use crate::model::{CommitSha, ReleaseNumber, Status, Trigger, shorten};
use crate::queue::{Ancestry, Request};
use crate::store::{Finish, Release, ReleaseBody, ReleasedService};

/// The release that a deployment brings live, and how.
pub(super) struct Target {
    pub(super) release: Release,
    /// Instances are replaced even where nothing changed.
    pub(super) renew: bool,
    /// The release command runs first.
    pub(super) run_command: bool,
}

impl Story<'_> {
    /// The release that an unfinished rollout was about.
    pub(super) async fn target_under_way(&self) -> Result<Target, Halt> {
        let number = self.deployment.release.ok_or_else(|| failed("its release is not on record".into(), false))?;
        let release = self.release(number).await?;
        Ok(Target { release, renew: self.deployment.request == Request::Restart, run_command: false })
    }

    async fn release(&self, number: ReleaseNumber) -> Result<Release, Halt> {
        let found = self.deployer.store.release(&self.app.name, number).await?;
        found.ok_or_else(|| failed(format!("there is no release {number}"), false))
    }

    /// Makes or finds the release to bring live.
    pub(super) async fn target(&self, live: Option<&Release>) -> Result<Target, Halt> {
        self.advance(Status::Preparing).await?;
        let id = self.deployment.id;
        let (release, renew) = match &self.deployment.request {
            Request::Deploy { commit, before, forced } => {
                self.refuse_without_secrets()?;
                self.refuse_without_space().await?;
                let source = self.source(commit.as_ref()).await?;
                self.refuse_contained(&source, before.as_ref(), *forced, live).await?;
                let body = self.build(&source).await?;
                // The same commit with the same artifacts and settings is the same release.
                if let Some(live) = live.filter(|live| live.commit == source.commit && live.body == body) {
                    self.deployer.store.set_release(id, live.number).await?;
                    return Ok(Target { release: live.clone(), renew: false, run_command: false });
                }
                let made = self.deployer.store.create_release(&self.app.name, id, &source.commit, body).await?;
                return Ok(Target { release: made, renew: false, run_command: true });
            }
            Request::Rollback { to } => (self.rollback_target(*to).await?, false),
            Request::Scale { .. } => (live.cloned().ok_or_else(nothing_live)?, false),
            Request::Restart => (live.cloned().ok_or_else(nothing_live)?, true),
        };
        self.deployer.store.set_release(id, release.number).await?;
        let body = &release.body;
        self.deployer.store.describe(id, &release.commit, &body.author, &body.subject).await?;
        Ok(Target { release, renew, run_command: false })
    }

    async fn rollback_target(&self, to: Option<ReleaseNumber>) -> Result<Release, Halt> {
        let target = match to {
            Some(number) => self.release(number).await?,
            None => {
                let last_good = self.deployer.store.last_good_release(&self.app.name).await?;
                last_good.ok_or_else(|| failed("there is no earlier release that passed its watch".into(), false))?
            }
        };
        for released in &target.body.services {
            let there = self.deployer.builder.exists(&released.image).await.map_err(|err| match err {
                BuildError::Unavailable(why) => Halt::EngineAway(why),
                other => failed(other.to_string(), false),
            })?;
            if !there {
                let service = &released.service.name;
                return Err(failed(format!("the image of {service} in {} was pruned", target.number), false));
            }
        }
        Ok(target)
    }

    /// What could not be started need not be built. It is not the commit's fault.
    fn refuse_without_secrets(&self) -> Result<(), Halt> {
        spec::absent_secret(self.app).map_or(Ok(()), |why| Err(Halt::WithoutSecret(why)))
    }

    /// A build that fills the disk would take the engine and the journal with it. It is not the commit's fault.
    async fn refuse_without_space(&self) -> Result<(), Halt> {
        let agent = self.deployer.config.borrow().agent.clone();
        let engine = self.deployer.builder.storage_root().await;
        let shortage = disk::shortage_for_builds(&agent.data_dir, engine.as_deref(), agent.min_free);
        shortage.map_or(Ok(()), |shortage| Err(failed(shortage.to_string(), false)))
    }

    /// Fetches exactly the commit that was asked for.
    async fn source(&self, asked: Option<&CommitSha>) -> Result<Source, Halt> {
        // A tip that an earlier life of the agent resolved stays what this deployment is about.
        let want = match asked.or(self.deployment.commit.as_ref()) {
            Some(commit) => Want::Commit(commit.clone()),
            None => self.want_of_ref(),
        };
        let began = Instant::now();
        let fetched = self.deployer.mirrors.fetch(self.app, &want, self.log, &self.running.stop);
        let source = self.unless_agent_ends(fetched).await?.map_err(|err| match err {
            SourceError::Cancelled => self.running.halt(),
            other if self.app.credential.is_absent() => Halt::WithoutSecret(other.to_string()),
            other => failed(other.to_string(), false),
        })?;
        let (id, commit) = (self.deployment.id, &source.commit);
        self.deployer.store.describe(id, commit, &source.author, &source.subject).await?;
        self.log.line(format!(
            "{} \"{}\" by {}, fetched in {:.2} s",
            commit.short(),
            shorten(&source.subject, 72),
            source.author,
            began.elapsed().as_secs_f64()
        ));
        Ok(source)
    }

    fn want_of_ref(&self) -> Want {
        match &self.deployment.git_ref {
            Some(git_ref) => match (git_ref.branch(), git_ref.as_str().strip_prefix("refs/tags/")) {
                (Some(branch), _) => Want::Branch(branch.to_owned()),
                (None, Some(tag)) => Want::Tag(tag.to_owned()),
                (None, None) => Want::Branch(self.app.branch.clone()),
            },
            None => Want::Branch(self.app.branch.clone()),
        }
    }

    /// A delivery that comes late never replaces a newer commit by one that it contains.
    async fn refuse_contained(
        &self,
        source: &Source,
        before: Option<&CommitSha>,
        forced: bool,
        live: Option<&Release>,
    ) -> Result<(), Halt> {
        let by_itself = matches!(self.deployment.trigger, Trigger::Push | Trigger::PostReceive | Trigger::Reconcile);
        let Some(live) = live.filter(|_| by_itself && !forced) else { return Ok(()) };
        let is_in = |other: CommitSha| async move {
            self.deployer.mirrors.ancestry(self.app, &source.commit, &other).await == Ancestry::Ancestor
        };
        if !is_in(live.commit.clone()).await {
            return Ok(());
        }
        // The push itself went back on the branch: that is on purpose.
        if let Some(before) = before
            && is_in(before.clone()).await
        {
            return Ok(());
        }
        let reason = format!("{}, which is live, already contains {}", live.number, source.commit.short());
        Err(Halt::End(Finish { status: Status::Superseded, reason: Some(reason), superseded_by: None, hold: false }))
    }

    /// Builds each service's image, each distinct build once.
    async fn build(&self, source: &Source) -> Result<ReleaseBody, Halt> {
        self.advance(Status::Building).await?;
        // Other apps' builds may take long; a deployment that waits for them can be cancelled.
        let slot = tokio::select! {
            biased;
            () = self.running.stop.cancelled() => return Err(self.running.halt()),
            slot = self.unless_agent_ends(self.deployer.build_slots.acquire()) => slot?,
        };
        let mut built: Vec<(&crate::config::Build, Artifact)> = Vec::new();
        let mut services = Vec::new();
        for service in self.app.services.values() {
            let known = built.iter().find(|(build, _)| **build == service.build).map(|(_, artifact)| artifact.clone());
            let artifact = match known {
                Some(artifact) => artifact,
                None => {
                    let artifact = self.build_one(source, service).await?;
                    built.push((&service.build, artifact.clone()));
                    artifact
                }
            };
            services.push(ReleasedService {
                service: service.clone(),
                image: artifact.image,
                artifact: artifact.key,
                base: artifact.base,
            });
        }
        drop(slot);
        Ok(ReleaseBody {
            services,
            release_command: self.app.release.clone(),
            rollout: self.app.rollout.clone(),
            author: source.author.clone(),
            subject: source.subject.clone(),
        })
    }

    async fn build_one(&self, source: &Source, service: &crate::config::Service) -> Result<Artifact, Halt> {
        let request =
            BuildRequest { app: &self.app.name, deployment: self.deployment.id, source, build: &service.build };
        let (began, engine) = (Instant::now(), self.deployer.presence.mark());
        let build = self.deployer.builder.build(request, self.log, &self.running.stop);
        let limit = self.app.build_timeout;
        // Dropping the build ends it in the engine too.
        let built = self.unless_agent_ends(tokio::time::timeout(limit, build)).await?;
        let (why, hold) = match built {
            Ok(Ok(artifact)) => return Ok(self.describe_build(service, artifact, began)),
            Ok(Err(BuildError::Cancelled)) => return Err(self.running.halt()),
            Ok(Err(BuildError::Unavailable(why))) => return Err(Halt::EngineAway(why)),
            Ok(Err(BuildError::Failed(why))) => {
                let hold = !disk::says_full(&why);
                (format!("the build of {} failed: {why}", service.name), hold)
            }
            Err(_) => (format!("the build of {} took longer than {limit:?} and was stopped", service.name), true),
        };
        Err(self.unless_engine_was_lost(engine, &why, failed(why.clone(), hold)).await)
    }

    fn describe_build(&self, service: &crate::config::Service, artifact: Artifact, began: Instant) -> Artifact {
        let seconds = began.elapsed().as_secs_f64();
        let base = artifact.base.as_ref().map(|base| format!(", base {}", shorten(base, 19))).unwrap_or_default();
        self.log.line(if artifact.built {
            format!("{}: built {} in {seconds:.1} s{base}", service.name, shorten(&artifact.image.0, 19))
        } else {
            format!("{}: content unchanged, nothing to build", service.name)
        });
        artifact
    }
}

fn nothing_live() -> Halt {
    failed("no release is live yet; deploy one first".into(), false)
}
