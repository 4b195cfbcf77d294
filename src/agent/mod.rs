//! The agent: what the HTTP handlers call, and the tasks of each configured app.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::Standing;
use crate::config::{self, App, Config, Problems};
use crate::deploy::Running;
use crate::deploy::plan_view::{self, PlanView};
use crate::disk;
use crate::journal::Journal;
use crate::model::{AppName, DeploymentId, InstanceId, ReleaseNumber, ServiceName, Status};
use crate::proxy::{Counts, ProxyClient};
use crate::rollout::canary::Wish;
use crate::rollout::driver::canary::{CanaryState, WishRefused};
use crate::rollout::driver::waiting;
use crate::rollout::{Entrance, InstanceState};
use crate::runtime::presence::{Away, Presence};
use crate::runtime::{Happened, ImageGone, Runtime, RuntimeError};
use crate::store::{Admission, CancelAsked, NewDeployment, Release, Store, StoreError};

pub mod absent;
mod adopt;
pub mod apps;
pub mod canaries;
pub mod certificate_files;
pub mod comparison;
mod departures;
pub mod outage;
mod reconcile;
pub mod tip;
pub mod unconfigured;

use adopt::Adoption;
use apps::AppHandle;
use canaries::CanaryStanding;
use tip::Tips;

/// Why there are no parts yet, when nothing worse is known.
const STARTING: &str = "the agent is still starting";

/// A running agent.
pub struct Agent {
    /// The journal on disk.
    pub store: Store,
    /// What happens, live.
    pub journal: Journal,
    /// Tells this agent's objects on the engine from others'.
    pub id: String,
    /// Whether the engine answers.
    pub presence: Presence,
    /// What is wrong with the certificates that it orders.
    pub certificates: Standing,
    /// What is wrong with those that are configured as files.
    pub certificate_files: certificate_files::Findings,
    /// What still runs of apps that are no longer configured.
    pub unconfigured: unconfigured::Findings,
    config_path: PathBuf,
    config: watch::Sender<Arc<Config>>,
    apps: RwLock<BTreeMap<AppName, Arc<AppHandle>>>,
    /// How the permanent canaries stand.
    canaries: watch::Sender<BTreeMap<AppName, CanaryStanding>>,
    /// Where the apps' branches were last seen.
    tips: Tips,
    /// What keeps them from being compared with the journal.
    comparisons: comparison::Troubles,
    parts: OnceLock<apps::Shared>,
    /// The data plane, which needs no engine.
    proxy: OnceLock<ProxyClient>,
    /// Why there are no parts yet.
    unconnected: RwLock<String>,
    /// The apps' workers: at the end what they do now is finished or left in order.
    workers: TaskTracker,
    shutdown: CancellationToken,
}

/// Whether the agent can do its job now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// What is in the way, one sentence each; empty = ready.
    pub problems: Vec<String>,
    /// What is not, but wants a look.
    pub warnings: Vec<String>,
}

/// Whether the proxy answers. While it does not, nobody knows what it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyStanding {
    /// Whether it answers now.
    pub answers: bool,
    /// Its process id; `None` when none runs.
    pub pid: Option<u32>,
    /// Since when it does not answer: when it last said something.
    pub since: Option<Timestamp>,
}

/// Why an app's deployments wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// In words.
    pub why: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
}

impl Agent {
    /// An agent without engine and proxy: what is asked of it is put on disk and waits. [`crate::serve`] connects it.
    pub fn detached(id: String, store: Store, config_path: PathBuf, config: Config) -> Self {
        Self {
            journal: Journal::new(store.clone()),
            store,
            id,
            presence: Presence::new(),
            certificates: Standing::default(),
            certificate_files: certificate_files::Findings::default(),
            unconfigured: unconfigured::Findings::default(),
            config_path,
            config: watch::Sender::new(Arc::new(config)),
            apps: RwLock::new(BTreeMap::new()),
            canaries: watch::Sender::new(BTreeMap::new()),
            tips: Tips::default(),
            comparisons: comparison::Troubles::default(),
            parts: OnceLock::new(),
            proxy: OnceLock::new(),
            unconnected: RwLock::new(STARTING.to_owned()),
            workers: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Gives it engine and proxy. Once is enough; a second call changes nothing.
    pub fn connect(&self, parts: apps::Shared) {
        let _ = self.parts.set(parts);
    }

    /// Gives it the proxy, which may be there before the engine. Once is enough; a second call changes nothing.
    pub fn connect_proxy(&self, proxy: ProxyClient) {
        let _ = self.proxy.set(proxy);
    }

    /// Says why it has no engine yet; `None`: it has reached it and is about to be connected.
    pub fn not_connected(&self, err: Option<RuntimeError>) {
        self.presence.saw(&err.clone().map_or(Ok(()), Err), Timestamp::now());
        let why = match err {
            None => STARTING.to_owned(),
            Some(RuntimeError::Unavailable(why)) => why,
            Some(other) => other.to_string(),
        };
        *self.unconnected.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Waits until every app's worker has ended; they do after the shutdown was cancelled.
    pub async fn workers_ended(&self) {
        self.workers.close();
        self.workers.wait().await;
    }

    /// Starts every app's tasks, and waits until what ran before is adopted.
    pub async fn start_apps(self: &Arc<Self>) {
        canaries::recall(self).await;
        for app in self.config().apps.values() {
            apps::start(self, app);
        }
        self.end_what_is_unconfigured().await;
        let adoptions = self.handles().into_iter().map(|app| app.adoption.clone());
        join_all(adoptions.map(|mut adoption| async move {
            // An error is an app that is no longer configured.
            let _ = adoption.wait_for(|adoption| *adoption == Adoption::Done).await;
        }))
        .await;
        tokio::spawn(unconfigured::look(self.clone()));
    }

    /// Hands what happened on the engine to every app; each knows its own instances.
    pub fn happened(&self, happened: &Happened) {
        if *happened == Happened::Interrupted {
            self.presence.broke();
        }
        if let Happened::Removed(id) = happened {
            self.unconfigured.removed(id);
        }
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        for app in apps.values() {
            app.driver.happened(happened.clone());
        }
    }

    /// Engine and proxy, once they are connected.
    fn parts(&self) -> Result<&apps::Shared, RuntimeError> {
        let why = || self.unconnected.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.parts.get().ok_or_else(|| RuntimeError::Unavailable(why()))
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Follows the configuration in force.
    pub fn watch_config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// Cancelled when the agent ends.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    fn app(&self, name: &AppName) -> Option<Arc<AppHandle>> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.get(name).cloned()
    }

    fn handles(&self) -> Vec<Arc<AppHandle>> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.values().cloned().collect()
    }

    fn app_names(&self) -> Vec<AppName> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.keys().cloned().collect()
    }

    /// Puts a request on disk and wakes its app.
    pub async fn submit(self: &Arc<Self>, new: NewDeployment) -> Result<Admission, StoreError> {
        let name = new.app.clone();
        let admission = self.store.admit(new.clone()).await?;
        if !matches!(admission, Admission::Duplicate { .. }) {
            self.saw_push(&new);
        }
        if let Admission::Queued { id, replaced } = &admission {
            for old in replaced {
                self.journal.publish_replaced(&name, *old, *id);
            }
            self.journal.publish_queued(&name, *id);
            if let Some(app) = self.app(&name) {
                app.wake.notify_one();
            }
        }
        // Its app may have been taken out of the configuration since the request was looked at.
        if !self.config().apps.contains_key(&name) {
            self.depart(&name).await;
        }
        Ok(admission)
    }

    /// Asks for a deployment's end. `None` when there is none of that number. A waiting one is cancelled at once, a running
    /// one when it has been undone, unless it ends before otherwise.
    pub async fn cancel(&self, id: DeploymentId, who: &str) -> Result<Option<CancelAsked>, StoreError> {
        let Some(asked) = self.store.ask_cancel(id, who).await? else { return Ok(None) };
        if asked.had_ended {
            return Ok(Some(asked));
        }
        let record = &asked.record;
        if record.status == Status::Cancelled {
            self.journal.publish_end(&record.app, id).await?;
        } else if let Some(running) = self.running(&record.app).filter(|running| running.id == id) {
            running.cancel(format!("cancelled by {who}"));
        } else if let Some(app) = self.app(&record.app) {
            // It may be waiting for the engine.
            app.wake.notify_one();
        }
        Ok(Some(asked))
    }

    fn running(&self, app: &AppName) -> Option<Running> {
        let app = self.app(app)?;
        app.deployer.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An app's instances now; `None` when the app is not configured.
    pub fn instances(&self, app: &AppName) -> Option<Vec<InstanceState>> {
        self.app(app).map(|app| app.driver.instances())
    }

    /// What the proxy has counted, of all apps; `None` when it is not there, or does not answer within a second.
    pub async fn counts(&self) -> Option<Counts> {
        let proxy = self.proxy.get().filter(|proxy| proxy.status().connected)?;
        proxy.counts().await
    }

    /// Whether the proxy answers, given what it said when it was asked now; `None` before there is a way to ask it.
    pub fn proxy_standing(&self, said: Option<&Counts>) -> Option<ProxyStanding> {
        let status = self.proxy.get()?.status();
        let answers = said.is_some();
        let since = status.heard.filter(|_| !answers);
        Some(ProxyStanding { answers, pid: status.runs_as(), since })
    }

    /// An app's canary, if one is under way; as the journal knows it when its rollout does not go on yet.
    pub async fn canary(&self, app: &AppName) -> Result<Option<CanaryState>, StoreError> {
        match self.app(app).and_then(|handle| handle.driver.canary()) {
            Some(canary) => Ok(Some(canary)),
            None => Ok(waiting::on_record(&self.store, app).await?.and_then(|canary| canary.state())),
        }
    }

    /// How an app stands that is a permanent canary, once that is known.
    pub fn canary_standing(&self, app: &AppName) -> Option<CanaryStanding> {
        self.canaries.borrow().get(app).cloned()
    }

    /// Asks something of an app's canary; which deployment it is of. Returns when it is on disk.
    pub async fn ask_canary(&self, app: &AppName, wish: Wish) -> Result<DeploymentId, WishRefused> {
        match self.app(app) {
            Some(handle) => handle.driver.ask(app, wish).await,
            // Until the engine is there nobody rolls out.
            None => waiting::ask_on_record(&self.store, app, &wish).await,
        }
    }

    /// An instance's output: the last `tail` lines, then what follows when asked. `None` when there is no such instance.
    pub async fn instance_logs(
        &self,
        id: &InstanceId,
        tail: u32,
        follow: bool,
    ) -> Result<Option<BoxStream<'static, Bytes>>, RuntimeError> {
        let runtime = &self.parts()?.runtime;
        if runtime.inspect(id).await?.is_none() {
            return Ok(None);
        }
        runtime.logs(id, tail, follow).await.map(Some)
    }

    /// What a deployment of a commit, of a ref, or (with neither) of the branch's tip would do, without doing it.
    pub async fn plan(&self, app: &AppName, want: Option<String>) -> Result<PlanView, String> {
        self.parts().map_err(|err| err.to_string())?;
        let handle = self.app(app).ok_or_else(|| format!("app {app} is not configured"))?;
        let problem = handle.adoption.borrow().problem(app);
        problem.map_or(Ok(()), Err)?;
        plan_view::plan(&handle.deployer, want).await
    }

    /// Numbers new deployments and releases beyond what runs on the engine. The error is the engine's or the journal's.
    pub async fn number_beyond_what_runs(&self, runtime: &dyn Runtime) -> anyhow::Result<()> {
        let observed = runtime.list(None).await?;
        let highest = observed.iter().map(|instance| instance.deployment).max().unwrap_or(DeploymentId(0));
        let mut releases: BTreeMap<AppName, ReleaseNumber> = BTreeMap::new();
        for instance in &observed {
            let number = releases.entry(instance.app.clone()).or_insert(instance.release);
            *number = instance.release.max(*number);
        }
        let settled = self.store.number_beyond(highest, releases).await?;
        if let Some(beyond) = settled.beyond {
            tracing::warn!(%beyond, "the engine runs instances of deployments that are not on record; new ones are numbered beyond");
        }
        if !settled.ended.is_empty() {
            let ended = settled.ended.len();
            tracing::warn!(ended, "the journal was restored: what had not ended when the backup was made is cancelled");
        }
        Ok(())
    }

    /// Why the tip of an app's branch is not known, when the last comparison did not find it.
    pub fn tip_unknown(&self, app: &App) -> Option<comparison::Trouble> {
        self.comparisons.of(app)
    }

    /// Whether a deployment of an app runs or waits.
    pub async fn has_work(&self, app: &AppName) -> Result<bool, StoreError> {
        Ok(self.store.unfinished(app).await?.is_some() || !self.store.waiting(app).await?.is_empty())
    }

    /// Whether the images of a release, or that of one of its services, are still on the engine; without them nothing of
    /// it can be started.
    pub async fn needs_images(&self, release: &Release, of: Option<&ServiceName>) -> Result<(), RuntimeError> {
        for released in release.body.services.iter().filter(|released| of.is_none_or(|of| released.service.name == *of))
        {
            let there = self.parts()?.builder.exists(&released.image).await;
            if !there.map_err(|err| RuntimeError::Unavailable(err.to_string()))? {
                let built_from = Some((release.app.clone(), release.commit.clone()));
                let what = format!("the image of {}", release.number);
                return Err(RuntimeError::ImageGone(ImageGone { what, built_from }));
            }
        }
        Ok(())
    }

    /// Reads the configuration file again. On problems the old one stays in force.
    pub async fn reload(self: &Arc<Self>) -> Result<(), Problems> {
        let path = self.config_path.clone();
        let read = tokio::task::spawn_blocking(move || config::load(&path)).await;
        let fresh = match read {
            Ok(loaded) => Arc::new(loaded?),
            Err(_) => return Ok(()),
        };
        let fixed = changed_until_restart(&self.config(), &fresh);
        if !fixed.is_empty() {
            tracing::warn!("{} changed: that takes effect when longshore is started again", fixed.join(" and "));
        }
        self.config.send_replace(fresh);
        if let Ok(parts) = self.parts() {
            parts.proxy.reload();
        }
        self.follow_config().await;
        tracing::info!("configuration reloaded");
        Ok(())
    }

    /// Puts `fresh` in force, unless `before` is no longer: then whoever replaced it knew better.
    async fn replace_config(self: &Arc<Self>, before: &Arc<Config>, fresh: Config) -> bool {
        let replaced = self.config.send_if_modified(|current| {
            let is_same = Arc::ptr_eq(current, before);
            if is_same {
                *current = Arc::new(fresh);
            }
            is_same
        });
        if replaced {
            self.follow_config().await;
        }
        replaced
    }

    /// Lets go of what is gone, starts what is newly configured and tells the others what changed.
    async fn follow_config(self: &Arc<Self>) {
        let config = self.config();
        for name in self.app_names().into_iter().filter(|name| !config.apps.contains_key(name)) {
            self.depart(&name).await;
        }
        // Before the routes follow: nobody's hosts are taken for another's.
        if let Ok(parts) = self.parts()
            && let Err(err) = parts.routes.set_canaries(&config, BTreeSet::new()).await
        {
            tracing::warn!(%err, "the proxy did not take the canaries' shares");
        }
        for (name, app) in &config.apps {
            match self.app(name) {
                Some(handle) => handle.driver.set_entrance(Entrance::of(app, &config)),
                None => self.take_on(app).await,
            }
        }
        tokio::spawn(unconfigured::look(self.clone()));
    }

    /// What is wrong with the engine, and since when.
    fn since(&self, err: RuntimeError) -> String {
        match self.presence.away() {
            Some(away) => format!("{err}; since {}", at(away.since)),
            None => err.to_string(),
        }
    }

    /// Why no deployment that builds would begin.
    async fn too_little_space(&self) -> Option<String> {
        let engine = match self.parts() {
            Ok(parts) => parts.docker.storage_root().await,
            Err(_) => None,
        };
        let agent = &self.config().agent;
        let shortage = disk::shortage_for_builds(&agent.data_dir, engine.as_deref(), agent.min_free)?;
        Some(format!("deployments that build fail: {shortage}"))
    }

    /// Why an app's deployments wait, when they all do: the engine does not answer, or has not said yet what runs, or the one
    /// under way lacks a secret.
    pub fn waits(&self, app: &AppName) -> Option<Waits> {
        if let Some(Away { since, why }) = self.presence.away() {
            return Some(Waits { why: RuntimeError::Unavailable(why).to_string(), since: Some(since) });
        }
        let why = match (self.parts(), self.app(app)) {
            (Err(_), _) => STARTING.to_owned(),
            (Ok(_), Some(handle)) => match handle.adoption.borrow().problem(app) {
                Some(problem) => problem,
                None => {
                    let (why, since) = self.running(app)?.waits()?;
                    return Some(Waits { why, since: Some(since) });
                }
            },
            (Ok(_), None) => return None,
        };
        Some(Waits { why, since: None })
    }

    /// Whether it can do its job now. What concerns the files of this machine is told only to its users.
    pub async fn readiness(&self, caller_is_local: bool) -> Readiness {
        let mut problems = Vec::new();
        match self.parts() {
            Err(err) => problems.push(self.since(err)),
            Ok(parts) => {
                let answer = parts.docker.ping().await;
                self.presence.saw(&answer, Timestamp::now());
                problems.extend(answer.err().map(|err| self.since(err)));
                let adoptions = self.handles().into_iter().map(|app| (app.adoption.clone(), app.deployer.app.clone()));
                problems.extend(adoptions.filter_map(|(adoption, app)| adoption.borrow().problem(&app)));
                if !parts.proxy.status().connected {
                    problems.extend(self.proxy_standing(None).map(silence));
                }
            }
        }
        problems.extend(self.too_little_space().await);
        if let Err(err) = self.store.tokens().await {
            problems.push(err.to_string());
        } else if let Err(err) = self.store.refuse_while_scarce().await {
            problems.push(format!("nothing new is taken: {err}"));
        }
        problems.extend(self.store.look_for_files().err().map(|err| format!("nothing new is taken: {err}")));
        // One app's fault is none of the others'.
        let config = self.config();
        let absent = config.absent.iter().map(|absent| absent::warning(absent, caller_is_local));
        let files = self.certificate_files.warnings(caller_is_local);
        let departing = self.departures(&config);
        let gone = match self.parts() {
            Ok(parts) => {
                let gets_requests = |instances: &BTreeSet<InstanceId>| parts.routes.leads_to(instances);
                // It may have come back since it was looked for.
                let is_gone = |app: &AppName| {
                    !config.apps.contains_key(app) && !departing.iter().any(|(departing, _)| departing == app)
                };
                self.unconfigured.warnings(&self.id, caller_is_local, is_gone, gets_requests)
            }
            Err(_) => Vec::new(),
        };
        let gone = departing.into_iter().map(|(_, line)| line).chain(gone);
        let uncompared = self.comparisons.warnings(&config, caller_is_local);
        let warnings = absent.chain(files).chain(self.certificates.warnings()).chain(gone).chain(uncompared);
        Readiness { problems, warnings: warnings.collect() }
    }
}

/// The keys that differ and that are read at the start alone.
fn changed_until_restart(before: &Config, now: &Config) -> Vec<&'static str> {
    let differs = [
        ("agent.listen", before.agent.listen != now.agent.listen),
        ("agent.data_dir", before.agent.data_dir != now.agent.data_dir),
        ("proxy.http", before.proxy.http != now.proxy.http),
        ("proxy.https", before.proxy.https != now.proxy.https),
        ("runtime.docker_host", before.runtime.docker_host != now.runtime.docker_host),
    ];
    differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

/// `the proxy does not answer (pid 812); since …`
fn silence(ProxyStanding { pid, since, .. }: ProxyStanding) -> String {
    let who = pid.map_or_else(|| ": none runs".to_owned(), |pid| format!(" (pid {pid})"));
    let since = since.map(|since| format!("; since {}", at(since))).unwrap_or_default();
    format!("the proxy does not answer{who}{since}")
}

fn at(time: Timestamp) -> impl std::fmt::Display {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_waits_for_a_restart_is_named_key_by_key() {
        let read = |text: &str| config::parse_in(text, "deploy.toml", Path::new("/"), &|_: &str| None).unwrap();
        let before = read("[proxy]\nhttp = \"127.0.0.1:80\"\n");
        let now = read("[agent]\nlisten = \"127.0.0.1:9001\"\n[proxy]\nhttp = \"127.0.0.1:81\"\n");
        assert_eq!(changed_until_restart(&before, &now), ["agent.listen", "proxy.http"]);
        assert_eq!(changed_until_restart(&before, &before), Vec::<&str>::new());
    }
}
