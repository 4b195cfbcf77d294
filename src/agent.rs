//! The agent: puts the parts together, recovers, serves, ends.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use crate::config::{Config, Problems};
use crate::journal::Journal;
use crate::model::{AppName, DeploymentId, InstanceId};
use crate::rollout::InstanceState;
use crate::runtime::RuntimeError;
use crate::store::{Admission, Deployment, NewDeployment, Store, StoreError};

/// What the HTTP handlers need of a running agent.
pub struct Agent {
    /// The journal on disk.
    pub store: Store,
    /// What happens, live.
    pub journal: Journal,
    config: watch::Sender<Arc<Config>>,
}

/// Whether the agent can do its job now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// What is in the way, one sentence each; empty = ready.
    pub problems: Vec<String>,
}

impl Agent {
    /// An agent without drivers, runtime or proxy: requests are put on disk and stay there.
    pub fn new_detached(store: Store, journal: Journal, config: Config) -> Self {
        Self { store, journal, config: watch::Sender::new(Arc::new(config)) }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Puts a request on disk and wakes its app.
    pub async fn submit(&self, new: NewDeployment) -> Result<Admission, StoreError> {
        self.store.admit(new).await
    }

    /// Asks for a deployment's end. `None` when there is none of that number; the record as it is now otherwise
    /// (a waiting one is cancelled at once, a running one when it has been undone).
    pub async fn cancel(&self, id: DeploymentId, who: &str) -> Result<Option<Deployment>, StoreError> {
        let record = self.store.ask_cancel(id, who).await?;
        if let Some(record) = record.as_ref().filter(|record| record.status.is_terminal()) {
            self.journal.publish_end(&record.app, id).await?;
        }
        Ok(record)
    }

    /// An app's instances now; `None` when the app is not configured.
    pub fn instances(&self, app: &AppName) -> Option<Vec<InstanceState>> {
        self.config().apps.contains_key(app).then(Vec::new)
    }

    /// An instance's output: the last `tail` lines, then what follows when asked. `None` when there is no such instance.
    pub async fn instance_logs(
        &self,
        id: &InstanceId,
        tail: u32,
        follow: bool,
    ) -> Result<Option<BoxStream<'static, Bytes>>, RuntimeError> {
        let _ = (id, tail, follow);
        Ok(None)
    }

    /// What a deployment of `commit_or_ref` would do, without doing it: lines for people and the same as data.
    pub async fn plan(&self, app: &AppName, want: Option<String>) -> Result<serde_json::Value, String> {
        Err(format!("{app} has no driver to plan {}", want.unwrap_or_default()))
    }

    /// Whether images of a release are still on the engine (else a rollback to it cannot work).
    pub async fn images_present(&self, release: &crate::store::Release) -> Result<bool, RuntimeError> {
        Err(RuntimeError::ImageGone(release.body.services[0].image.clone()))
    }

    /// Reads the configuration file again; on problems the old one stays in force.
    pub async fn reload(&self) -> Result<(), Problems> {
        todo!()
    }

    /// Whether it can do its job now.
    pub async fn readiness(&self) -> Readiness {
        Readiness::default()
    }
}
