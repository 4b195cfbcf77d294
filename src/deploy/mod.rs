//! One deployment, told in order: source, build, release command, rollout, watch.
//!
//! Every step writes its intent, acts under a name that makes acting twice harmless, and writes its outcome. A
//! deployment that an earlier life of the agent left unfinished is told again from where it was: before the rollout
//! from the start (nothing was switched, and what is built is not built again), in the rollout from what runs.
//!
//! When the engine goes away in the middle, `outage` breaks the deployment off, and it is told again like that.
//!
//! When a secret is absent that it needs to go on, `secrets` has it wait.
//!
//! When the app is taken out of the configuration, what it has open ends: see `agent::departures`.
//!
//! `worker` takes the next deployment, `running` is the one under way and how it is stopped, after its `deadline` at the
//! latest; `prepare` makes or finds its release, `static_files` has its files where the proxy finds them, `release_command`
//! runs in it, `roll_out` replaces instances, and `prune` removes the images and files that nobody needs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{App, Config};
use crate::journal::{DeployLog, Journal};
use crate::model::{AppName, ServiceName, Status};
use crate::rollout::{Driver, LivePlace, ServiceSpec};
use crate::runtime::Runtime;
use crate::runtime::presence::{Mark, Presence};
use crate::store::{Deployment, Finish, Release, Served, Store, StoreError};

pub mod build;
mod deadline;
mod outage;
pub mod plan_view;
mod prepare;
mod prune;
pub mod redact;
mod release_command;
mod requests;
mod roll_out;
mod running;
mod secrets;
pub mod source;
pub mod spec;
pub mod static_files;
pub mod worker;

use build::Builder;
use outage::Losses;
use redact::Redactor;
pub use running::Running;
use source::Mirrors;
use static_files::StaticStore;

/// Why what an app has open ends when it is no longer configured.
pub const TAKEN_OUT: &str = "cancelled because the app was taken out of deploy.toml";

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
    /// Whether that is there.
    pub presence: Presence,
    /// The app's instances.
    pub driver: Driver,
    /// The data plane.
    pub proxy: crate::proxy::client::ProxyClient,
    /// Where static files are for the proxy.
    pub static_files: StaticStore,
    /// Keys the digests of settings.
    pub settings_key: String,
    /// The deployment under way.
    pub running: Arc<Mutex<Option<Running>>>,
    /// The app as it was last configured: what ends it when it is not any more needs that.
    pub last_configured: Arc<Mutex<App>>,
    /// The app is not configured any more. What is under way is undone, and that is all.
    pub departing: CancellationToken,
    /// The agent is ending.
    pub shutdown: CancellationToken,
}

/// Why a deployment ends before its rollout does.
enum Halt {
    /// It ends so.
    End(Finish),
    /// The agent ends; the deployment goes on when it is back.
    AgentEnds,
    /// The engine went away, for this that is known of it; the deployment goes on when it is back.
    EngineAway(String),
    /// A secret cannot be read, this one and why; the deployment goes on when it can.
    SecretAbsent(String),
    /// The same before anything was replaced: it fails, and its commit has not had its turn.
    WithoutSecret(String),
    /// The journal could not be read or written.
    Journal(StoreError),
    /// It had ended before it began: replaced or cancelled between its choice and its start.
    EndedBefore,
}

impl From<StoreError> for Halt {
    fn from(err: StoreError) -> Self {
        Self::Journal(err)
    }
}

fn failed(reason: String, hold: bool) -> Halt {
    Halt::End(failure(reason, hold))
}

fn failure(reason: String, hold: bool) -> Finish {
    Finish { status: Status::Failed, reason: Some(reason), superseded_by: None, hold }
}

/// Why a deployment that has begun is told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// An earlier life of the agent had begun it.
    AgentRestarted,
    /// The engine went away in the middle of it.
    EngineBack,
    /// The journal failed in the middle of it.
    JournalBack,
    /// A secret that it needs could not be read.
    SecretAbsent,
}

/// How far a deployment was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// To its end.
    Ended,
    /// Until the engine went away.
    BrokenOff,
    /// Until a secret is there that it needs.
    Waits,
    /// Until the agent ends.
    Left,
}

impl Deployer {
    /// Runs a deployment to its end, or until the agent ends or the engine goes away.
    async fn run(&self, deployment: Deployment, again: Again) -> Result<Told, StoreError> {
        let id = deployment.id;
        let app = self.as_configured();
        let running = Running::new(id);
        *running::lock(&self.running) = Some(running.clone());
        // Read again: whoever asked before it was known to run has found nothing to cancel.
        let asked = self.store.deployment(id).await?.is_some_and(|record| record.cancel_asked);
        if asked {
            running.cancel(self.store.cancelled_by(id).await?);
        } else if self.departing.is_cancelled() {
            running.cancel(TAKEN_OUT.to_owned());
        }
        let deadline = self.deadline(id, app.deadline).await?;
        let deadline = tokio::spawn(deadline.enforce(running.clone()));
        let redactor = Redactor::of_app(&app);
        let log = redactor.log(self.journal.log(&self.app, id).await?);

        let losses = self.losses(id).await?;
        let engine = self.presence.mark();
        let story = Story {
            deployer: self,
            app: &app,
            deployment: &deployment,
            running: &running,
            log: &log,
            again,
            losses,
            engine,
            has_begun_rollout: AtomicBool::new(false),
        };
        let ended = story.tell().await;

        deadline.abort();
        *running::lock(&self.running) = None;
        let ended = match ended {
            // Waiting for an engine that hangs is not what a deadline is for.
            Err(Halt::End(_)) if running.by_deadline() && self.presence.away().is_some() => {
                Err(Halt::EngineAway(running.why()))
            }
            ended => ended,
        };
        let mut finish = match ended {
            Ok(finish) | Err(Halt::End(finish)) => finish,
            Err(Halt::AgentEnds) => return Ok(Told::Left),
            Err(Halt::SecretAbsent(why)) => {
                log.line(format!("this deployment goes on by itself when its secrets can be read: {why}"));
                return Ok(Told::Waits);
            }
            Err(Halt::WithoutSecret(why)) => {
                self.store.lacks_secret(id, &redactor.clean(&why)).await?;
                failure(why, false)
            }
            // Instances were replaced, so it has not simply failed: it is told again, from what runs.
            Err(Halt::Journal(err)) if story.may_have_replaced() => return Err(err),
            Err(Halt::Journal(err)) => failure(format!("the journal failed: {err}"), false),
            Err(Halt::EndedBefore) => return Ok(Told::Ended),
            Err(Halt::EngineAway(why)) => match self.break_off(id, &redactor.clean(&why), &log).await? {
                Some(finish) => finish,
                None => return Ok(Told::BrokenOff),
            },
        };
        finish.reason = finish.reason.map(|reason| redactor.clean(&reason));
        let served = match finish.status {
            Status::Failed | Status::RolledBack | Status::Cancelled => self.served(&redactor).await,
            _ => None,
        };
        self.journal.finish_with(&self.app, id, finish, served).await?;
        self.expect_live().await;
        Ok(Told::Ended)
    }

    /// The app as it is configured, or as it last was.
    fn as_configured(&self) -> App {
        let mut last = self.last_configured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(app) = self.config.borrow().apps.get(&self.app) {
            last.clone_from(app);
        }
        last.clone()
    }

    /// Tells the driver where instances of the live release are meant to be, now that no deployment moves any.
    async fn expect_live(&self) {
        match self.live_places().await {
            Ok(places) => self.driver.expect(places),
            Err(why) => tracing::error!(app = %self.app, %why, "what should be live could not be found out"),
        }
    }

    /// How much of the live release serves now. `None`: there is none, or nobody knows where it should.
    async fn served(&self, redactor: &Redactor) -> Option<Served> {
        let places = self.live_places().await.ok().filter(|places| !places.is_empty())?;
        let served = self.driver.served(places).await?;
        let why = served.why.map(|why| redactor.clean(&why));
        Some(Served { why, ..served })
    }

    async fn live_places(&self) -> Result<Vec<LivePlace>, String> {
        let live = self.store.live_release(&self.app).await.map_err(|err| err.to_string())?;
        let instances = self.store.live_instances(&self.app).await.map_err(|err| err.to_string())?;
        let (Some(live), Some((deployment, instances))) = (live, instances) else { return Ok(Vec::new()) };
        let specs = spec::of_live(&live, &self.settings_key, &self.static_files);
        let places = specs.into_iter().flat_map(|(service, spec)| {
            let count = instances.get(&service).copied().unwrap_or(0);
            (1..=count).map(move |slot| LivePlace { spec: spec.clone(), slot, deployment })
        });
        Ok(places.collect())
    }
}

/// One deployment being told.
struct Story<'a> {
    deployer: &'a Deployer,
    app: &'a App,
    deployment: &'a Deployment,
    running: &'a Running,
    log: &'a DeployLog,
    again: Again,
    /// How often the engine went away in this deployment.
    losses: Losses,
    /// The engine's life when it was begun to be told.
    engine: Mark,
    /// This time: it may replace instances from now on.
    has_begun_rollout: AtomicBool,
}

impl Story<'_> {
    async fn tell(&self) -> Result<Finish, Halt> {
        let in_rollout = self.in_rollout();
        if self.deployment.status != Status::Queued {
            let back = match self.again {
                Again::AgentRestarted => "the agent was restarted",
                Again::EngineBack => "the Docker engine answers again",
                Again::JournalBack => "the journal can be written again",
                Again::SecretAbsent => "a secret could not be read",
            };
            self.log.line(format!("{back}; going on from {}", self.deployment.status));
            self.until_secrets_are_there().await?;
        }
        let at_start = self.counts_at_start().await;
        let live = self.deployer.store.live_release(&self.app.name).await?;
        let target = if in_rollout { self.target_under_way().await? } else { self.target(live.as_ref()).await? };
        if !in_rollout {
            self.check_cancelled()?;
            self.static_files(&target).await?;
            self.release_command(&target, live.as_ref()).await?;
        }
        self.roll_out(&target, live.as_ref(), at_start).await
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

    /// Whether instances may have been replaced when it was told before.
    fn in_rollout(&self) -> bool {
        matches!(self.deployment.status, Status::RollingOut | Status::Watching)
    }

    /// The same, or now.
    fn may_have_replaced(&self) -> bool {
        self.in_rollout() || self.has_begun_rollout.load(Relaxed)
    }

    fn specs(&self, release: &Release) -> Result<BTreeMap<ServiceName, Arc<ServiceSpec>>, Halt> {
        let Deployer { settings_key, static_files, .. } = self.deployer;
        spec::service_specs(release, settings_key, static_files).map_err(|why| self.without_secret(why))
    }

    /// A secret cannot be read. That is nobody's commit's fault; where instances may have been replaced already it has not
    /// simply failed either, and goes on when the secret is there.
    fn without_secret(&self, why: String) -> Halt {
        if self.may_have_replaced() { Halt::SecretAbsent(why) } else { Halt::WithoutSecret(why) }
    }
}
