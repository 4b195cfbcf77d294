//! One deployment, told in order: source, build, release command, rollout, watch.
//!
//! Every step writes its intent, acts under a name that makes acting twice harmless, and writes its outcome. A
//! deployment that an earlier life of the agent left unfinished is told again from where it was: before the rollout
//! from the start (nothing was switched, and what is built is not built again), in the rollout from what runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{App, Config};
use crate::journal::{DeployLog, Journal};
use crate::model::{
    AppName, CommitSha, DeploymentId, InstanceId, ReleaseNumber, ServiceName, Status, Trigger, shorten,
};
use crate::queue::Request;
use crate::rollout::driver::REVERT_STEP;
use crate::rollout::machine::{Failure, Outcome, Policy, ServicePolicy};
use crate::rollout::plan::{self, Plan, Wanted, Way};
use crate::rollout::{Driver, Order, ServiceSpec};
use crate::runtime::Runtime;
use crate::store::{Deployment, Finish, Release, ReleaseBody, ReleasedService, Step, Store, StoreError};

pub mod build;
pub mod plan_view;
pub mod redact;
pub mod source;
pub mod spec;
pub mod worker;

use build::{Artifact, BuildError, BuildRequest, Builder};
use redact::Redactor;
use source::{Ancestry, Mirrors, Source, SourceError, Want};

/// The step of the release command; its outcome is the exit code.
const RELEASE_COMMAND_STEP: &str = "release_command";
/// The step that keeps the proxy's counts from before the rollout.
const COUNTS_STEP: &str = "counts";

/// What deployments of one app need.
#[derive(Clone)]
pub struct Deployer {
    /// Of which app.
    pub app: AppName,
    /// The configuration in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// The journal on disk.
    pub store: Store,
    /// What happens, live.
    pub journal: Journal,
    /// The source.
    pub mirrors: Mirrors,
    /// The build.
    pub builder: Builder,
    /// At most so many builds run at a time, over all apps.
    pub build_slots: Arc<Semaphore>,
    /// Where instances run.
    pub runtime: Arc<dyn Runtime>,
    /// The app's instances.
    pub driver: Driver,
    /// The data plane.
    pub proxy: crate::proxy::client::ProxyClient,
    /// Keys the digests of settings.
    pub settings_key: String,
    /// The deployment under way.
    pub running: Arc<Mutex<Option<Running>>>,
    /// The agent is ending.
    pub shutdown: CancellationToken,
}

/// The deployment under way, for those who want to cancel it.
#[derive(Debug, Clone)]
pub struct Running {
    /// Which.
    pub id: DeploymentId,
    stop: CancellationToken,
    cause: Arc<OnceLock<StopCause>>,
}

/// Why a deployment is to end before its time.
#[derive(Debug, Clone)]
enum StopCause {
    /// Somebody cancelled it.
    Cancelled(String),
    /// Its deadline has passed.
    Deadline(String),
}

impl Running {
    fn new(id: DeploymentId) -> Self {
        Self { id, stop: CancellationToken::new(), cause: Arc::new(OnceLock::new()) }
    }

    /// Asks for its end; the first reason counts.
    pub fn cancel(&self, why: String) {
        self.end_early(StopCause::Cancelled(why));
    }

    fn end_early(&self, cause: StopCause) {
        // A second cause changes nothing.
        let _ = self.cause.set(cause);
        self.stop.cancel();
    }

    fn why(&self) -> String {
        match self.cause.get() {
            Some(StopCause::Cancelled(why) | StopCause::Deadline(why)) => why.clone(),
            None => "cancelled".into(),
        }
    }

    fn by_deadline(&self) -> bool {
        matches!(self.cause.get(), Some(StopCause::Deadline(_)))
    }

    /// The end of a deployment that was stopped before anything was switched.
    fn halt(&self) -> Halt {
        let status = if self.by_deadline() { Status::Failed } else { Status::Cancelled };
        Halt::End(Finish { status, reason: Some(self.why()), superseded_by: None, hold: false })
    }
}

/// Why a deployment ends before its rollout does.
enum Halt {
    /// It ends so.
    End(Finish),
    /// The agent ends; the deployment goes on when it is back.
    AgentEnds,
    /// It had ended before it began: replaced or cancelled between its choice and its start.
    EndedBefore,
}

impl From<StoreError> for Halt {
    fn from(err: StoreError) -> Self {
        failed(format!("the journal failed: {err}"), false)
    }
}

fn failed(reason: String, hold: bool) -> Halt {
    Halt::End(Finish { status: Status::Failed, reason: Some(reason), superseded_by: None, hold })
}

/// The release that a deployment brings live, and how.
struct Target {
    release: Release,
    /// Instances are replaced even where nothing changed.
    renew: bool,
    /// The release command runs first.
    run_command: bool,
}

/// How a rollout came out.
struct Rolled {
    outcome: Outcome,
    /// There was nothing to replace.
    unchanged: bool,
}

/// The proxy's counts of the app before the rollout.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct CountsBefore {
    boot: String,
    served: u64,
    failed: u64,
}

impl Deployer {
    /// Runs a deployment to its end, or until the agent ends.
    async fn run(&self, deployment: Deployment) -> Result<(), StoreError> {
        let id = deployment.id;
        let Some(app) = self.config.borrow().apps.get(&self.app).cloned() else { return Ok(()) };
        let running = Running::new(id);
        if deployment.cancel_asked {
            running.cancel("cancelled".into());
        }
        *lock(&self.running) = Some(running.clone());
        let deadline = tokio::spawn(enforce_deadline(app.deadline, running.clone()));
        let redactor = Redactor::of_app(&app);
        let log = redactor.log(self.journal.log(&self.app, id).await?);

        let story = Story { deployer: self, app: &app, deployment: &deployment, running: &running, log: &log };
        let ended = story.tell().await;

        deadline.abort();
        *lock(&self.running) = None;
        let mut finish = match ended {
            Ok(finish) | Err(Halt::End(finish)) => finish,
            Err(Halt::AgentEnds | Halt::EndedBefore) => return Ok(()),
        };
        finish.reason = finish.reason.map(|reason| redactor.clean(&reason));
        self.journal.finish(&self.app, id, finish).await?;
        self.prune(&app, &log).await;
        Ok(())
    }

    /// Removes images that no kept release needs.
    async fn prune(&self, app: &App, log: &DeployLog) {
        let keep = match self.images_to_keep(app).await {
            Ok(keep) => keep,
            Err(err) => return tracing::warn!(app = %self.app, %err, "images are not pruned"),
        };
        match self.builder.prune(&self.app, &keep).await {
            Ok(0) => {}
            Ok(n) => log.line(format!("removed {n} image(s) of old releases")),
            Err(err) => tracing::warn!(app = %self.app, %err, "images are not pruned"),
        }
    }

    /// The images of the live release, of the last good ones and of what waits to be rolled out.
    async fn images_to_keep(&self, app: &App) -> Result<Vec<crate::model::ImageId>, StoreError> {
        let releases = self.store.releases(&self.app, 1000).await?;
        let live = self.store.live_release(&self.app).await?.map(|release| release.number);
        let good = releases.iter().filter(|release| release.good_at.is_some());
        let mut kept: Vec<&Release> = good.take(app.keep_releases.max(2) as usize).collect();
        kept.extend(releases.iter().filter(|release| Some(release.number) == live));
        let images = kept.iter().flat_map(|release| &release.body.services).map(|released| released.image.clone());
        Ok(images.collect())
    }
}

async fn enforce_deadline(limit: Duration, running: Running) {
    tokio::time::sleep(limit).await;
    running.end_early(StopCause::Deadline(format!("it took longer than its deadline of {limit:?}")));
}

fn lock(running: &Mutex<Option<Running>>) -> std::sync::MutexGuard<'_, Option<Running>> {
    running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One deployment being told.
struct Story<'a> {
    deployer: &'a Deployer,
    app: &'a App,
    deployment: &'a Deployment,
    running: &'a Running,
    log: &'a DeployLog,
}

impl Story<'_> {
    async fn tell(&self) -> Result<Finish, Halt> {
        let in_rollout = self.in_rollout();
        if self.deployment.status != Status::Queued {
            self.log.line(format!("the agent was restarted; going on from {}", self.deployment.status));
        }
        let live = self.deployer.store.live_release(&self.app.name).await?;
        let target = if in_rollout { self.target_under_way().await? } else { self.target(live.as_ref()).await? };
        if !in_rollout {
            self.check_cancelled()?;
            self.release_command(&target, live.as_ref()).await?;
        }
        self.roll_out(&target, live.as_ref()).await
    }

    async fn advance(&self, status: Status) -> Result<(), Halt> {
        match self.deployer.journal.advance(&self.app.name, self.deployment.id, status).await? {
            true => Ok(()),
            false => Err(Halt::EndedBefore),
        }
    }

    fn check_cancelled(&self) -> Result<(), Halt> {
        if self.deployer.shutdown.is_cancelled() {
            return Err(Halt::AgentEnds);
        }
        if self.running.stop.is_cancelled() {
            return Err(self.running.halt());
        }
        Ok(())
    }

    /// Runs `work` unless the agent ends first. Whatever may be cancelled watches `running.stop` itself.
    async fn unless_agent_ends<T>(&self, work: impl Future<Output = T>) -> Result<T, Halt> {
        tokio::select! {
            biased;
            () = self.deployer.shutdown.cancelled() => Err(Halt::AgentEnds),
            done = work => Ok(done),
        }
    }

    /// The release that an unfinished rollout was about.
    async fn target_under_way(&self) -> Result<Target, Halt> {
        let number = self.deployment.release.ok_or_else(|| failed("its release is not on record".into(), false))?;
        let release = self.release(number).await?;
        Ok(Target { release, renew: self.deployment.request == Request::Restart, run_command: false })
    }

    async fn release(&self, number: ReleaseNumber) -> Result<Release, Halt> {
        let found = self.deployer.store.release(&self.app.name, number).await?;
        found.ok_or_else(|| failed(format!("there is no release {number}"), false))
    }

    /// Makes or finds the release to bring live.
    async fn target(&self, live: Option<&Release>) -> Result<Target, Halt> {
        self.advance(Status::Preparing).await?;
        let id = self.deployment.id;
        let (release, renew) = match &self.deployment.request {
            Request::Deploy { commit, before, forced } => {
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
            Request::Rollback { to } => (self.rollback_target(*to, live).await?, false),
            Request::Scale { .. } => (live.cloned().ok_or_else(nothing_live)?, false),
            Request::Restart => (live.cloned().ok_or_else(nothing_live)?, true),
        };
        self.deployer.store.set_release(id, release.number).await?;
        let body = &release.body;
        self.deployer.store.describe(id, &release.commit, &body.author, &body.subject).await?;
        Ok(Target { release, renew, run_command: false })
    }

    async fn rollback_target(&self, to: Option<ReleaseNumber>, live: Option<&Release>) -> Result<Release, Halt> {
        let target = match to {
            Some(number) => self.release(number).await?,
            None => {
                let all = self.deployer.store.releases(&self.app.name, 1000).await?;
                let before = |r: &Release| r.good_at.is_some() && live.is_none_or(|live| r.number < live.number);
                let last_good = all.into_iter().find(before);
                last_good.ok_or_else(|| failed("there is no earlier release that passed its watch".into(), false))?
            }
        };
        for released in &target.body.services {
            let there =
                self.deployer.builder.exists(&released.image).await.map_err(|err| failed(err.to_string(), false))?;
            if !there {
                let service = &released.service.name;
                return Err(failed(format!("the image of {service} in {} was pruned", target.number), false));
            }
        }
        Ok(target)
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
            rollout: self.app.rollout,
            author: source.author.clone(),
            subject: source.subject.clone(),
        })
    }

    async fn build_one(&self, source: &Source, service: &crate::config::Service) -> Result<Artifact, Halt> {
        let request =
            BuildRequest { app: &self.app.name, deployment: self.deployment.id, source, build: &service.build };
        let began = Instant::now();
        let build = self.deployer.builder.build(request, self.log, &self.running.stop);
        let limit = self.app.build_timeout;
        // Dropping the build ends it in the engine too.
        let Ok(result) = self.unless_agent_ends(tokio::time::timeout(limit, build)).await? else {
            return Err(failed(
                format!("the build of {} took longer than {limit:?} and was stopped", service.name),
                true,
            ));
        };
        let artifact = result.map_err(|err| match err {
            BuildError::Cancelled => self.running.halt(),
            BuildError::Failed(why) => failed(format!("the build of {} failed: {why}", service.name), true),
            other @ BuildError::Unavailable(_) => failed(other.to_string(), false),
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let base = artifact.base.as_ref().map(|base| format!(", base {}", shorten(base, 19))).unwrap_or_default();
        self.log.line(if artifact.built {
            format!("{}: built {} in {seconds:.1} s{base}", service.name, shorten(&artifact.image.0, 19))
        } else {
            format!("{}: content unchanged, nothing to build", service.name)
        });
        Ok(artifact)
    }

    /// Runs the release command once in the new image; its failure leaves everything as it is.
    async fn release_command(&self, target: &Target, live: Option<&Release>) -> Result<(), Halt> {
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
        Err(failed(format!("the release command `{words}` exited with code {code}; nothing was switched"), true))
    }

    async fn run_release_command(&self, target: &Target, command: &crate::config::ReleaseCommand) -> Result<i64, Halt> {
        let specs = self.specs(&target.release)?;
        let spec = specs
            .get(&command.service)
            .ok_or_else(|| failed(format!("the release command's service {} does not exist", command.service), true))?;
        let id = self.deployment.id;
        let mut instance = spec.instance(&self.app.name, id, InstanceId::new(id, &command.service, 0, 0), 0);
        instance.command = Some(command.command.clone());
        self.log.line(format!("release command: {}", command.command.join(" ")));
        let began = Instant::now();
        let say = |line: &str| self.log.line(format!("  {line}"));
        let run = self.deployer.runtime.run_once(&instance, command.timeout, &say);
        let ended = tokio::select! {
            biased;
            () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
            () = self.running.stop.cancelled() => {
                let stopped = self.deployer.runtime.stop(&instance.id, Duration::from_secs(10)).await;
                if let Err(err) = stopped {
                    self.log.line(format!("the release command could not be stopped: {err}"));
                }
                return Err(self.running.halt());
            }
            ended = run => ended,
        };
        let exited = ended.map_err(|err| failed(format!("the release command could not be run: {err}"), false))?;
        self.log.line(format!(
            "release command: exited with {} after {:.1} s",
            exited.code,
            began.elapsed().as_secs_f64()
        ));
        Ok(exited.code)
    }

    fn specs(&self, release: &Release) -> Result<BTreeMap<ServiceName, Arc<ServiceSpec>>, Halt> {
        spec::service_specs(release, &self.deployer.settings_key).map_err(|why| failed(why, false))
    }

    async fn roll_out(&self, target: &Target, live: Option<&Release>) -> Result<Finish, Halt> {
        let recorded = match self.deployer.store.step::<Failure>(self.deployment.id, REVERT_STEP).await? {
            Step::Done(failure) => Some(failure),
            Step::New | Step::Begun => None,
        };
        let before = self.counts_before().await?;
        let mut rolled = self.roll(target, live, recorded).await?;
        if let Outcome::TurnBack(failure) = rolled.outcome {
            rolled = self.roll(target, live, Some(failure)).await?;
        }
        self.count_requests(before).await?;
        match rolled.outcome {
            Outcome::Succeeded => {
                self.keep_scale(target).await?;
                self.deployer.store.set_live(&self.app.name, target.release.number).await?;
                let reason = rolled.unchanged.then(|| "unchanged: the same content and settings are live".to_owned());
                Ok(Finish { status: Status::Succeeded, reason, superseded_by: None, hold: false })
            }
            Outcome::Undone { failure, left } => Ok(self.undone(failure, &left)),
            Outcome::TurnBack(failure) => Ok(self.undone(failure, &[])),
        }
    }

    /// Plans from what runs, forward or (with a failure) back, and has the driver perform it.
    async fn roll(&self, target: &Target, live: Option<&Release>, reverting: Option<Failure>) -> Result<Rolled, Halt> {
        let id = self.deployment.id;
        let new = self.specs(&target.release)?;
        let old = match live {
            Some(live) => self.specs(live)?,
            None => BTreeMap::new(),
        };
        let (towards, way) = match (&reverting, target.renew) {
            (Some(_), _) => (&old, Way::Back),
            (None, true) => (&new, Way::Renew),
            (None, false) => (&new, Way::Forward),
        };
        let plan = self.plan(towards, &target.release, way).await?;
        match (plan.slots.is_empty(), way) {
            (true, Way::Back) => {}
            (true, _) => {
                let (release, stay) = (target.release.number, plan.kept.len());
                self.log.line(format!("{release}: nothing to replace, {stay} instances stay"));
            }
            (false, _) => {
                self.advance(Status::RollingOut).await?;
                self.log.line(describe(&plan, target.release.number, way));
            }
        }
        let unchanged = plan.slots.is_empty() && reverting.is_none() && self.deployment.status == Status::Queued;
        let policy = Policy {
            deployment: id,
            // What did not change has been watched before.
            watch: if unchanged { Duration::ZERO } else { target.release.body.rollout.watch },
            services: new.iter().map(|(name, spec)| (name.clone(), policy_of(spec))).collect(),
            default_start_deadline: Duration::from_secs(60),
        };
        let redactor = Redactor::of(self.app, &target.release);
        let redact = Arc::new(move |text: &str| redactor.clean(text));
        let (resumed, log) = (self.in_rollout(), self.log.clone());
        let order = Order { deployment: id, plan, policy, new, old, reverting, resumed, redact, log };
        let rolled = self.deployer.driver.roll(order);
        tokio::pin!(rolled);
        let outcome = tokio::select! {
            // In this order: the driver has the order before it may hear that it is cancelled.
            biased;
            () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
            outcome = &mut rolled => outcome,
            () = self.running.stop.cancelled() => {
                self.deployer.driver.cancel(id, self.running.why());
                tokio::select! {
                    () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
                    outcome = &mut rolled => outcome,
                }
            }
        };
        Ok(Rolled { outcome: outcome.ok_or(Halt::AgentEnds)?, unchanged })
    }

    fn undone(&self, mut failure: Failure, left: &[String]) -> Finish {
        failure.cancelled &= !self.running.by_deadline();
        undone(failure, left, &self.deployment.request)
    }

    /// Whether an earlier life of the agent had begun to replace instances.
    fn in_rollout(&self) -> bool {
        matches!(self.deployment.status, Status::RollingOut | Status::Watching)
    }

    async fn plan(
        &self,
        specs: &BTreeMap<ServiceName, Arc<ServiceSpec>>,
        release: &Release,
        way: Way,
    ) -> Result<Plan, Halt> {
        let mut wanted = Vec::new();
        for (name, spec) in specs {
            let configured = self.configured(name, spec.service.instances);
            let instances = match &self.deployment.request {
                Request::Scale { service, instances } if service == name && way != Way::Back => *instances,
                _ => self.deployer.store.scale(&self.app.name, name, configured).await?,
            };
            wanted.push(Wanted {
                service: name.clone(),
                settings: spec.settings.clone(),
                instances,
                routed: spec.routed,
                order: release.body.rollout.order,
            });
        }
        let current = self.deployer.driver.current().await;
        Ok(plan::plan(&current, &wanted, self.deployment.id, way))
    }

    /// How many instances the configuration asks for; a service that is no longer in it keeps its release's number.
    fn configured(&self, service: &ServiceName, released: u32) -> u32 {
        self.app.services.get(service).map_or(released, |service| service.instances)
    }

    /// A scale counts from when it has gone well: one that is undone leaves the number that was.
    async fn keep_scale(&self, target: &Target) -> Result<(), Halt> {
        let Request::Scale { service, instances } = &self.deployment.request else { return Ok(()) };
        let released = target.release.body.service(service).map_or(*instances, |r| r.service.instances);
        let configured = self.configured(service, released);
        Ok(self.deployer.store.set_scale(&self.app.name, service, configured, *instances).await?)
    }

    async fn counts_before(&self) -> Result<Option<CountsBefore>, Halt> {
        let store = &self.deployer.store;
        let id = self.deployment.id;
        if let Step::Done(counts) = store.begin_step::<Option<CountsBefore>>(id, COUNTS_STEP).await? {
            return Ok(counts);
        }
        let counts = self.counts_now().await;
        store.end_step(id, COUNTS_STEP, &counts).await?;
        Ok(counts)
    }

    async fn counts_now(&self) -> Option<CountsBefore> {
        let counts = self.deployer.proxy.counts().await?;
        let app = counts.apps.get(&self.app.name).copied().unwrap_or_default();
        Some(CountsBefore { boot: counts.boot, served: app.served, failed: app.failed })
    }

    /// Records how many requests were answered and lost since the rollout began.
    async fn count_requests(&self, before: Option<CountsBefore>) -> Result<(), Halt> {
        let Some(now) = self.counts_now().await else { return Ok(()) };
        // A proxy that was started anew counts from zero.
        let before = before.filter(|before| before.boot == now.boot);
        let (served, failed) = before.map_or((0, 0), |before| (before.served, before.failed));
        let (served, failed) = (now.served.saturating_sub(served), now.failed.saturating_sub(failed));
        self.deployer.store.add_requests(self.deployment.id, served, failed).await?;
        if served + failed > 0 {
            self.log.line(format!("{served} requests answered during the rollout, {failed} failed"));
        }
        Ok(())
    }
}

fn nothing_live() -> Halt {
    failed("no release is live yet; deploy one first".into(), false)
}

fn policy_of(spec: &ServiceSpec) -> ServicePolicy {
    ServicePolicy { start_deadline: spec.service.health.start_deadline }
}

fn undone(failure: Failure, left: &[String], request: &Request) -> Finish {
    let mut reason = failure.why;
    for line in left {
        reason.push_str("\n  ");
        reason.push_str(line);
    }
    let status = if failure.cancelled { Status::Cancelled } else { Status::RolledBack };
    // A release that failed is not tried again by itself; what a person asked for is theirs to repeat.
    let hold = !failure.cancelled && matches!(request, Request::Deploy { .. });
    Finish { status, reason: Some(reason), superseded_by: None, hold }
}

fn describe(plan: &Plan, release: ReleaseNumber, way: Way) -> String {
    let mut counts: BTreeMap<&ServiceName, (u32, u32)> = BTreeMap::new();
    for slot in &plan.slots {
        let (new, gone) = counts.entry(&slot.service).or_default();
        *new += u32::from(slot.incoming.is_some());
        *gone += u32::from(slot.incoming.is_none());
    }
    let parts = counts.iter().map(|(service, (new, gone))| match (new, gone) {
        (new, 0) => format!("{service}: {new} to start"),
        (0, gone) => format!("{service}: {gone} to stop"),
        (new, gone) => format!("{service}: {new} to start, {gone} to stop"),
    });
    let parts = parts.collect::<Vec<_>>().join("; ");
    match way {
        Way::Back => format!("undoing {release} ({parts})"),
        Way::Forward | Way::Renew => format!("rolling out {release}, one instance at a time ({parts})"),
    }
}
