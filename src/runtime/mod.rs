//! Where instances run, cut at the instance: start, stop, list, watch, logs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::mpsc;

use crate::config::Mount;
use crate::model::{AppName, CommitSha, DeploymentId, ImageId, InstanceId, ReleaseNumber, ServiceName};

pub mod docker;
pub mod labels;
pub(crate) mod output;
pub mod presence;

/// A place where instances run. Every call has a deadline of its own and may be repeated: starting what runs and
/// stopping what is gone succeed.
pub trait Runtime: Send + Sync + 'static {
    /// Starts an instance, or finds it running already. It is in its app's network then.
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<Observed, RuntimeError>>;
    /// SIGTERM, `grace`, SIGKILL, then removes it. Succeeds when it is gone.
    fn stop<'a>(&'a self, id: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// SIGTERM, `grace`, SIGKILL to the very same container, which is then started again with all that it was made with; one
    /// that does not run is only started. It is in its app's network then.
    fn restart<'a>(&'a self, id: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<Observed, RuntimeError>>;
    /// One instance as it is now; `None` when there is none.
    fn inspect<'a>(&'a self, id: &'a InstanceId) -> BoxFuture<'a, Result<Option<Observed>, RuntimeError>>;
    /// Puts an instance that was cut off back into its app's network, which is made anew when it is gone. It goes on
    /// running; its address may be another one.
    fn reconnect<'a>(&'a self, id: &'a InstanceId) -> BoxFuture<'a, Result<Observed, RuntimeError>>;
    /// Every instance of ours, of one app or of all.
    fn list<'a>(&'a self, app: Option<&'a AppName>) -> BoxFuture<'a, Result<Vec<Observed>, RuntimeError>>;
    /// What carries an app's labels and is neither an instance nor one of our one-off containers.
    fn list_unknown<'a>(&'a self, app: &'a AppName) -> BoxFuture<'a, Result<Vec<Unknown>, RuntimeError>>;
    /// Whether it answers, within two seconds.
    fn ping(&self) -> BoxFuture<'_, Result<(), RuntimeError>>;
    /// What happens to instances from now on. Reconnects by itself; [`Happened::Reconnected`] says that something
    /// may have been missed.
    fn watch(&self) -> BoxStream<'static, Happened>;
    /// Output, newest `tail` lines first collected then followed when asked.
    fn logs<'a>(
        &'a self,
        id: &'a InstanceId,
        tail: u32,
        follow: bool,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Bytes>, RuntimeError>>;
    /// Runs a command inside an instance; its exit code and the end of its output.
    fn exec<'a>(
        &'a self,
        id: &'a InstanceId,
        argv: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Exited, RuntimeError>>;
    /// Runs a one-off container to its end (the release command), adopting the one of an earlier life of the agent.
    /// Output lines go to `log`. The container is removed afterwards.
    fn run_once<'a>(
        &'a self,
        spec: &'a InstanceSpec,
        timeout: Duration,
        log: &'a (dyn Fn(&str) + Send + Sync),
    ) -> BoxFuture<'a, Result<Exited, RuntimeError>>;
    /// Removes what is left of an app's one-off containers, when none of them is wanted any more; how many went.
    fn remove_left_over<'a>(&'a self, app: &'a AppName) -> BoxFuture<'a, Result<usize, RuntimeError>>;
    /// Sends a directory of an image as a tar archive, with that directory as its one top entry. Only when this succeeds was
    /// the archive complete.
    fn copy_out<'a>(
        &'a self,
        app: &'a AppName,
        image: &'a ImageId,
        directory: &'a str,
        into: mpsc::Sender<Bytes>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Where an app's volume is on the machine where instances run. It is created when it is missing.
    fn volume_directory<'a>(
        &'a self,
        app: &'a AppName,
        volume: &'a str,
    ) -> BoxFuture<'a, Result<PathBuf, RuntimeError>>;
}

/// All that is needed to start one instance.
#[derive(Debug, Clone)]
pub struct InstanceSpec {
    /// Its name.
    pub id: InstanceId,
    /// Whose.
    pub app: AppName,
    /// Which process type.
    pub service: ServiceName,
    /// Which of the N places, from 1.
    pub slot: u32,
    /// Which release.
    pub release: ReleaseNumber,
    /// Which deployment starts it.
    pub deployment: DeploymentId,
    /// Of which commit.
    pub commit: CommitSha,
    /// Keyed digest of everything it runs with: equal means that rolling it would change nothing.
    pub settings: String,
    /// By content.
    pub image: ImageId,
    /// argv; `None` = the image's own.
    pub command: Option<Vec<String>>,
    /// Resolved environment.
    pub env: BTreeMap<String, SecretString>,
    /// The port it listens on.
    pub port: Option<u16>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Between SIGTERM and SIGKILL, also when the engine itself stops it.
    pub stop_grace: Duration,
    /// Mounts.
    pub volumes: Vec<Mount>,
}

/// An instance as the runtime shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its name.
    pub id: InstanceId,
    /// The runtime's own name for it, which no other one ever has.
    pub container: String,
    /// Whose.
    pub app: AppName,
    /// Which process type.
    pub service: ServiceName,
    /// Which of the N places.
    pub slot: u32,
    /// Which release it was started for.
    pub release: ReleaseNumber,
    /// Which deployment started it.
    pub deployment: DeploymentId,
    /// Of which commit.
    pub commit: CommitSha,
    /// See [`InstanceSpec::settings`].
    pub settings: String,
    /// Running or how it ended.
    pub state: RunState,
    /// Where it can be reached in its app's network; only of a running one.
    pub address: Option<IpAddr>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// How often the runtime restarted it.
    pub restarts: u32,
    /// The image has a HEALTHCHECK of its own: what the engine says of it.
    pub image_health: Option<bool>,
    /// The image declares a HEALTHCHECK.
    pub has_healthcheck: bool,
}

/// Something with our labels that is no instance: they say not which one it is, or it does not have that one's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The runtime's own name for it.
    pub container: String,
    /// What people call it.
    pub name: String,
    /// Why it is none, in words.
    pub wrong: String,
}

impl Observed {
    /// Whether it runs and is not in its app's network.
    pub fn is_cut_off(&self) -> bool {
        self.state == RunState::Running && self.address.is_none()
    }
}

/// Running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Created, not started.
    Created,
    /// Running.
    Running,
    /// Ended (also while the engine is about to restart it).
    Exited(Exited),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Exit code; 128 + n for signal n.
    pub code: i64,
    /// The kernel ended it for its memory limit.
    pub oom: bool,
    /// Somebody has its container removed, which ended it.
    pub removed: bool,
    /// The last lines it wrote, where they were asked for.
    pub output: Vec<String>,
}

/// Something that happened to an instance, from the runtime's own events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// It was started (first or again).
    Started(InstanceId),
    /// Something was started that carries this app's labels and is no instance ([`Unknown`]).
    StartedUnknown(AppName),
    /// It ended.
    Exited(InstanceId, Exited),
    /// Its own HEALTHCHECK passed or failed.
    ImageHealth(InstanceId, bool),
    /// It is gone.
    Removed(InstanceId),
    /// It was connected to its app's network, or cut off from it: as it is now.
    Rewired(Box<Observed>),
    /// The stream was interrupted, as when the engine ends.
    Interrupted,
    /// It is back: list again.
    Reconnected,
}

/// An image that was removed from the machine by hand, and what builds it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not on this machine any more{}", .built_from.as_ref().map(rebuild).unwrap_or_default())]
pub struct ImageGone {
    /// The image, or whose it was.
    pub what: String,
    /// Of which app and from which commit it was built, where that is known.
    pub built_from: Option<(AppName, CommitSha)>,
}

fn rebuild((app, commit): &(AppName, CommitSha)) -> String {
    format!("; to build it again: longshore deploy {app} --commit {commit}")
}

/// Why a call to the runtime failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No answer within the call's deadline, or no connection.
    #[error("the Docker engine does not answer: {0}")]
    Unavailable(String),
    /// The image is not there any more.
    #[error("{0}")]
    ImageGone(ImageGone),
    /// The engine refused.
    #[error("{0}")]
    Refused(String),
}
