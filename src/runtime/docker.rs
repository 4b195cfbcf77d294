//! Instances as containers of a Docker engine. See [`super::labels`] for what they are called.

use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptions, LogsOptions, RemoveContainerOptions,
    RestartContainerOptions, StopContainerOptions, WaitContainerOptions,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::{Mutex, mpsc};

use super::{Exited, Happened, ImageGone, InstanceSpec, Observed, Runtime, RuntimeError, Unknown, labels};
use crate::config::MountSource;
use crate::fail_point::hurried;
use crate::model::{AppName, ImageId, InstanceId};
pub use host::EngineHost;
use observe::Whose;
use spec::Kind;

mod exec;
pub(crate) mod explain;
mod files;
pub(crate) mod host;
mod network;
mod observe;
mod once;
mod spec;
mod sweep;
mod watch;

/// For a call that the engine answers at once.
const CALL: Duration = Duration::from_secs(30);
/// For creating and starting a container.
const START: Duration = Duration::from_secs(60);
/// On top of the grace, for the engine to stop a container.
const STOP_MARGIN: Duration = Duration::from_secs(20);
/// For the question whether the engine is there.
const PING: Duration = Duration::from_secs(2);
/// Between two attempts at a name that is taken by what cannot be seen.
const NAME_PAUSE: Duration = Duration::from_millis(50);
/// How many containers are looked at at once.
const PARALLEL: usize = 8;
/// The oldest API that has everything used here: Docker Engine 20.10.
const OLDEST_API: (u32, u32) = (1, 41);

/// A Docker engine, and which of its objects are ours.
#[derive(Clone)]
pub struct Docker {
    client: bollard::Docker,
    host: EngineHost,
    agent_id: String,
    /// Older engines create two networks of one name when asked twice at once.
    networks: std::sync::Arc<Mutex<()>>,
}

impl std::fmt::Debug for Docker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Docker({}, agent {})", self.host, self.agent_id)
    }
}

/// How a container was killed, as far as it shows that afterwards.
#[derive(Default)]
struct Kill {
    /// The kernel did it, for its memory limit.
    for_memory: bool,
    /// Somebody has it removed.
    removed: bool,
    /// It has a memory limit.
    is_limited: bool,
}

impl Docker {
    /// Connects to `docker_host` (`unix:///path` or `tcp://host:port`) and agrees on an API version. Everything made
    /// here is labelled with `agent_id`, and nothing else is touched.
    pub async fn connect(docker_host: &str, agent_id: &str) -> Result<Self, RuntimeError> {
        let host = EngineHost::parse(docker_host).map_err(RuntimeError::Refused)?;
        host.probe().await.map_err(RuntimeError::Unavailable)?;
        let (address, version) = (host.to_string(), bollard::API_DEFAULT_VERSION);
        let client = match &host {
            EngineHost::Unix(_) => bollard::Docker::connect_with_unix(&address, CALL.as_secs(), version),
            EngineHost::Tcp(_) => bollard::Docker::connect_with_http(&address, CALL.as_secs(), version),
        };
        let client = client.map_err(explain::runtime_error)?;
        let client = within(CALL, async { client.negotiate_version().await.map_err(explain::runtime_error) }).await?;
        let version = client.client_version();
        if (version.major_version, version.minor_version) < (OLDEST_API.0 as usize, OLDEST_API.1 as usize) {
            return Err(RuntimeError::Refused(format!(
                "the Docker engine at {host} speaks API {}.{}; 1.41 (Docker 20.10) or newer is needed",
                version.major_version, version.minor_version
            )));
        }
        Ok(Self { client, host, agent_id: agent_id.to_owned(), networks: Default::default() })
    }

    /// Whether the engine answers, in at most two seconds.
    pub async fn ping(&self) -> Result<(), RuntimeError> {
        within(PING, async { self.client.ping().await.map(drop).map_err(explain::runtime_error) }).await
    }

    /// Where the engine keeps images and containers, when that is on this machine and can be seen from here.
    pub async fn storage_root(&self) -> Option<PathBuf> {
        if !self.host.is_local() {
            return None;
        }
        let asked = within(PING, async { self.client.info().await.map_err(explain::runtime_error) }).await;
        asked.ok()?.docker_root_dir.map(PathBuf::from).filter(|root| root.is_dir())
    }

    /// The client behind this, for what is not about instances.
    pub fn client(&self) -> bollard::Docker {
        self.client.clone()
    }

    /// Where the engine is.
    pub fn host(&self) -> &EngineHost {
        &self.host
    }

    /// Whose objects these are.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Creates the container, or finds the one that an earlier attempt created. Its id.
    async fn create(&self, spec: &InstanceSpec, kind: Kind) -> Result<String, RuntimeError> {
        self.ensure_network(&spec.app).await?;
        self.ensure_volumes(spec).await?;
        let name = labels::container_name(&self.agent_id, &spec.app, &spec.id);
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        loop {
            let container = spec::container(&self.agent_id, spec, kind);
            let error = match self.client.create_container(Some(options.clone()), container).await {
                Ok(created) => return Ok(created.id),
                Err(error) => error,
            };
            match explain::status(&error) {
                Some(409) => {}
                Some(404) if error.to_string().contains("No such image") => {
                    let built_from = Some((spec.app.clone(), spec.commit.clone()));
                    return Err(RuntimeError::ImageGone(ImageGone {
                        what: format!("image {}", spec.image),
                        built_from,
                    }));
                }
                _ => return Err(explain::runtime_error(error)),
            }
            if let Some(id) = self.adopt(&name, spec).await? {
                return Ok(id);
            }
            // A name is taken a moment before its container can be seen, and free a moment after it is gone.
            tokio::time::sleep(NAME_PAUSE).await;
        }
    }

    /// The container that has the name already, if it is the very same instance.
    async fn adopt(&self, name: &str, spec: &InstanceSpec) -> Result<Option<String>, RuntimeError> {
        let Some(found) = self.inspect_container(name).await? else { return Ok(None) };
        let ours = observe::observed(&self.agent_id, &found).is_some_and(|observed| observed.id == spec.id);
        if ours {
            return Ok(found.id);
        }
        Err(RuntimeError::Refused(format!(
            "a container named {name} exists that this agent did not start: rename or remove it"
        )))
    }

    async fn ensure_volumes(&self, spec: &InstanceSpec) -> Result<(), RuntimeError> {
        for mount in &spec.volumes {
            let MountSource::Volume(volume) = &mount.source else { continue };
            self.ensure_volume(&spec.app, volume).await?;
        }
        Ok(())
    }

    fn refuse_strangers(
        &self,
        what: &str,
        name: &str,
        found: Option<&std::collections::HashMap<String, String>>,
    ) -> Result<(), RuntimeError> {
        if found.and_then(|all| all.get(labels::AGENT)) == Some(&self.agent_id) {
            return Ok(());
        }
        Err(RuntimeError::Refused(format!(
            "a {what} named {name} exists that this agent did not create: rename or remove it"
        )))
    }

    /// One container by id or name; `None` when there is none.
    async fn inspect_container(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match self.client.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if explain::status(&error) == Some(404) => Ok(None),
            Err(error) => Err(explain::runtime_error(error)),
        }
    }

    /// The engine's id of an instance's or release command's container.
    async fn find(&self, id: &InstanceId) -> Result<Option<String>, RuntimeError> {
        let filters = labels::filter(&[(labels::AGENT, &self.agent_id), (labels::INSTANCE, id.as_str())]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = self.client.list_containers(Some(options)).await.map_err(explain::runtime_error)?;
        // One that only carries the name among its labels is none of ours to stop.
        let ours = |container: &ContainerSummary| match observe::whose_is(&self.agent_id, container) {
            Whose::Instance(_) | Whose::ReleaseCommand(_) => true,
            Whose::Files | Whose::Unknown(_) => false,
        };
        Ok(found.into_iter().filter(ours).find_map(|container| container.id))
    }

    async fn need(&self, id: &InstanceId) -> Result<String, RuntimeError> {
        self.find(id).await?.ok_or_else(|| RuntimeError::Refused(format!("there is no instance {id} any more")))
    }

    /// Containers by label, each as inspect shows it: the list itself may be out of date.
    async fn list_labelled(&self, filter: &[(&str, &str)]) -> Result<Vec<ContainerInspectResponse>, RuntimeError> {
        within(CALL, async {
            let filters = Some(labels::filter(filter));
            let options = ListContainersOptions { all: true, filters, ..Default::default() };
            let found = self.client.list_containers(Some(options)).await.map_err(explain::runtime_error)?;
            stream::iter(found.into_iter().filter_map(|container| container.id))
                .map(|id| async move { self.inspect_container(&id).await })
                .buffered(PARALLEL)
                .try_filter_map(|container| std::future::ready(Ok(container)))
                .try_collect()
                .await
        })
        .await
    }

    /// SIGTERM, `grace`, SIGKILL. Succeeds when the container does not run; an engine that does not answer in time is
    /// asked how it stands, because it goes on with a stop whose caller has left.
    async fn stop_container(&self, container: &str, grace: Duration) -> Result<(), RuntimeError> {
        let deadline = grace.saturating_add(STOP_MARGIN);
        let patient = self.client.clone().with_timeout(deadline);
        let options = StopContainerOptions { t: Some(spec::whole_seconds(grace)), signal: None };
        let stopping = async {
            match patient.stop_container(container, Some(options)).await {
                Err(error) if matches!(explain::status(&error), Some(304 | 404)) => Ok(()),
                stopped => stopped.map_err(explain::runtime_error),
            }
        };
        let Err(error) = within(deadline, stopping).await else { return Ok(()) };
        match within(CALL, self.inspect_container(container)).await? {
            None => Ok(()),
            Some(now) if now.state.as_ref().is_some_and(|state| state.running == Some(false)) => Ok(()),
            Some(_) => Err(error),
        }
    }

    /// Removes a container, by force, with its anonymous volumes; named ones stay. Succeeds when it is gone.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        within(CALL, async {
            let options = RemoveContainerOptions { force: true, v: true, link: false };
            match self.client.remove_container(container, Some(options)).await {
                Ok(()) => Ok(()),
                Err(error) if explain::status(&error) == Some(404) => Ok(()),
                // Somebody else's removal is under way.
                Err(error) if explain::status(&error) == Some(409) => self.wait_until("removed", container).await,
                Err(error) => Err(explain::runtime_error(error)),
            }
        })
        .await
    }

    /// Waits for `not-running` or `removed`. The exit code, which the client reports as an error, is not looked at.
    async fn wait_until(&self, condition: &str, container: &str) -> Result<(), RuntimeError> {
        let options = WaitContainerOptions { condition: condition.to_owned() };
        let mut waiting = std::pin::pin!(self.client.wait_container(container, Some(options)));
        match waiting.next().await {
            None | Some(Ok(_)) | Some(Err(bollard::errors::Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) if explain::status(&error) == Some(404) => Ok(()),
            Some(Err(error)) => Err(explain::runtime_error(error)),
        }
    }

    /// What a container that was killed shows of it.
    async fn shown_of_kill(&self, container: &str) -> Kill {
        match within(CALL, self.inspect_container(container)).await {
            Ok(Some(shown)) => {
                let is_limited = shown.host_config.and_then(|host| host.memory).is_some_and(|bytes| bytes > 0);
                let state = shown.state.unwrap_or_default();
                let removed = observe::is_being_removed(&state);
                Kill { for_memory: state.oom_killed.unwrap_or(false), removed, is_limited }
            }
            Ok(None) => Kill { removed: true, ..Kill::default() },
            Err(_) => Kill::default(),
        }
    }

    async fn start_container(&self, spec: &InstanceSpec) -> Result<Observed, RuntimeError> {
        let container = self.create(spec, Kind::Instance).await?;
        if let Err(error) = self.client.start_container(&container, None).await {
            self.remove_unstarted(&container).await;
            return Err(explain::runtime_error(error));
        }
        let gone = || RuntimeError::Refused(format!("{} was removed while it was started", spec.id));
        let now = self.observe(&container).await?.ok_or_else(gone)?;
        // One that was there already may have been cut off; a start does not mend that.
        if !now.is_cut_off() {
            return Ok(now);
        }
        self.join_network(&container, &now).await
    }

    /// An instance in its app's network, into which it is put back where it was cut off.
    async fn joined(&self, container: &str, id: &InstanceId) -> Result<Observed, RuntimeError> {
        let gone = || RuntimeError::Refused(format!("there is no instance {id} any more"));
        let now = self.observe(container).await?.ok_or_else(gone)?;
        if !now.is_cut_off() {
            return Ok(now);
        }
        self.join_network(container, &now).await
    }

    /// A container as an instance; `None` when it is gone, or is none.
    async fn observe(&self, container: &str) -> Result<Option<Observed>, RuntimeError> {
        let now = self.inspect_container(container).await?;
        Ok(now.and_then(|now| observe::observed(&self.agent_id, &now)))
    }

    /// A container whose start was refused has never run; nothing is lost with it.
    async fn remove_unstarted(&self, container: &str) {
        let state = self.inspect_container(container).await.ok().flatten().and_then(|now| now.state);
        if state.is_some_and(|state| state.running != Some(true))
            && let Err(error) = self.remove(container).await
        {
            tracing::warn!(%error, container, "a container that could not start is left behind");
        }
    }

    /// Output from the beginning or the last `tail` lines.
    fn output(&self, container: &str, tail: Option<u32>, follow: bool) -> BoxStream<'static, Bytes> {
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptions { follow, stdout: true, stderr: true, tail, ..Default::default() };
        self.client
            .logs(container, Some(options))
            .take_while(|item| std::future::ready(item.is_ok()))
            .filter_map(|item| std::future::ready(item.ok()))
            .map(|item| item.into_bytes())
            .boxed()
    }
}

impl Runtime for Docker {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<Observed, RuntimeError>> {
        within(START, self.start_container(spec)).boxed()
    }

    fn stop<'a>(&'a self, id: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let Some(container) = within(CALL, self.find(id)).await? else { return Ok(()) };
            match self.stop_container(&container, grace).await {
                // Removing by force takes another way, which may be open: an engine that was killed while it restarted a
                // container may wait for the end of a process that there is not.
                Err(RuntimeError::Refused(why)) => {
                    self.remove(&container).await.map_err(|_| RuntimeError::Refused(why))
                }
                stopped => {
                    stopped?;
                    self.remove(&container).await
                }
            }
        }
        .boxed()
    }

    fn restart<'a>(&'a self, id: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<Observed, RuntimeError>> {
        let deadline = grace.saturating_add(START);
        within(deadline, async move {
            let container = self.need(id).await?;
            let options = RestartContainerOptions { t: Some(spec::whole_seconds(grace)), signal: None };
            let patient = self.client.clone().with_timeout(deadline);
            patient.restart_container(&container, Some(options)).await.map_err(explain::runtime_error)?;
            self.joined(&container, id).await
        })
        .boxed()
    }

    fn inspect<'a>(&'a self, id: &'a InstanceId) -> BoxFuture<'a, Result<Option<Observed>, RuntimeError>> {
        within(CALL, async move {
            let Some(container) = self.find(id).await? else { return Ok(None) };
            self.observe(&container).await
        })
        .boxed()
    }

    fn reconnect<'a>(&'a self, id: &'a InstanceId) -> BoxFuture<'a, Result<Observed, RuntimeError>> {
        within(CALL, async move {
            let container = self.need(id).await?;
            self.joined(&container, id).await
        })
        .boxed()
    }

    fn list<'a>(&'a self, app: Option<&'a AppName>) -> BoxFuture<'a, Result<Vec<Observed>, RuntimeError>> {
        async move {
            let mut filter = vec![(labels::AGENT, self.agent_id.as_str()), (labels::KIND, labels::KIND_INSTANCE)];
            filter.extend(app.map(|app| (labels::APP, app.as_str())));
            let found = self.list_labelled(&filter).await?;
            Ok(found.iter().filter_map(|container| observe::observed(&self.agent_id, container)).collect())
        }
        .boxed()
    }

    fn list_unknown<'a>(&'a self, app: &'a AppName) -> BoxFuture<'a, Result<Vec<Unknown>, RuntimeError>> {
        within(CALL, async move {
            let filters = Some(labels::filter(&[(labels::AGENT, &self.agent_id), (labels::APP, app.as_str())]));
            let options = ListContainersOptions { all: true, filters, ..Default::default() };
            let found = self.client.list_containers(Some(options)).await.map_err(explain::runtime_error)?;
            Ok(found.into_iter().filter_map(|container| observe::unknown(&self.agent_id, container)).collect())
        })
        .boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Docker::ping(self).boxed()
    }

    fn watch(&self) -> BoxStream<'static, Happened> {
        let (sender, receiver) = mpsc::channel(256);
        let docker = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = watch::follow(&docker, &sender) => {}
            }
        });
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
    }

    fn logs<'a>(
        &'a self,
        id: &'a InstanceId,
        tail: u32,
        follow: bool,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Bytes>, RuntimeError>> {
        within(CALL, async move { Ok(self.output(&self.need(id).await?, Some(tail), follow)) }).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a InstanceId,
        argv: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Exited, RuntimeError>> {
        async move {
            let container = within(CALL, self.need(id)).await?;
            exec::exec(&self.client, &container, argv, timeout).await
        }
        .boxed()
    }

    fn run_once<'a>(
        &'a self,
        spec: &'a InstanceSpec,
        timeout: Duration,
        log: &'a (dyn Fn(&str) + Send + Sync),
    ) -> BoxFuture<'a, Result<Exited, RuntimeError>> {
        once::run(self, spec, timeout, log).boxed()
    }

    fn remove_left_over<'a>(&'a self, app: &'a AppName) -> BoxFuture<'a, Result<usize, RuntimeError>> {
        self.remove_orphans(Some(app), &|_| false).boxed()
    }

    fn copy_out<'a>(
        &'a self,
        app: &'a AppName,
        image: &'a ImageId,
        directory: &'a str,
        into: mpsc::Sender<Bytes>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        files::copy_out(self, app, image, directory, into).boxed()
    }

    fn volume_directory<'a>(
        &'a self,
        app: &'a AppName,
        volume: &'a str,
    ) -> BoxFuture<'a, Result<PathBuf, RuntimeError>> {
        Docker::volume_directory(self, app, volume).boxed()
    }
}

/// The call's result, or [`RuntimeError::Unavailable`] after `deadline`.
async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
    match tokio::time::timeout(hurried(deadline), call).await {
        Ok(result) => result,
        Err(_) => Err(RuntimeError::Unavailable(format!("no answer within {} s", deadline.as_secs()))),
    }
}
