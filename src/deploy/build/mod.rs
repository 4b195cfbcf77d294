//! From a [`Source`] to an image on the engine, the same content never twice.

pub mod context;
mod context_tree;
pub mod dockerignore;

use tokio_util::sync::CancellationToken;

use super::source::Source;
use crate::config::Build;
use crate::journal::DeployLog;
use crate::model::{AppName, DeploymentId, ImageId};

/// Builds images on one engine.
#[derive(Clone)]
pub struct Builder {
    docker: bollard::Docker,
    agent_id: String,
}

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct BuildRequest<'a> {
    /// For whom: part of the image's name and labels.
    pub app: &'a AppName,
    /// Which deployment asks.
    pub deployment: DeploymentId,
    /// From what.
    pub source: &'a Source,
    /// How.
    pub build: &'a Build,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Digest of everything it is made of: context after `.dockerignore`, Dockerfile, target, args, base.
    pub key: String,
    /// By content.
    pub image: ImageId,
    /// The base image's digest or id, as far as the Dockerfile names one that is on the engine.
    pub base: Option<String>,
    /// False when an image of the same key was there already.
    pub built: bool,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The deployment was cancelled; the engine's build is stopped.
    #[error("cancelled")]
    Cancelled,
    /// The build, its Dockerfile or its context is at fault, in one line; the rest is in the log.
    #[error("{0}")]
    Failed(String),
    /// The engine is.
    #[error("the Docker engine does not answer: {0}")]
    Unavailable(String),
}

impl Builder {
    /// A builder on `docker` whose images carry `agent_id` in name and labels.
    pub fn new(docker: bollard::Docker, agent_id: String) -> Self {
        Self { docker, agent_id }
    }

    /// The key of what would be built, without building: no upload, no engine call beyond looking up the base.
    pub async fn key(&self, request: BuildRequest<'_>) -> Result<String, BuildError> {
        let _ = request;
        todo!()
    }

    /// The image for `request`: found by its key, or built. Live output goes to `log`; cancelling stops the engine's build.
    pub async fn build(
        &self,
        request: BuildRequest<'_>,
        log: &DeployLog,
        cancel: &CancellationToken,
    ) -> Result<Artifact, BuildError> {
        let _ = (request, log, cancel, &self.docker, &self.agent_id);
        todo!()
    }

    /// Whether the image is on the engine.
    pub async fn exists(&self, image: &ImageId) -> Result<bool, BuildError> {
        let _ = image;
        todo!()
    }

    /// Removes our images of `app` that are not in `keep`; and what a killed build left behind. Returns how many went.
    pub async fn prune(&self, app: &AppName, keep: &[ImageId]) -> Result<usize, BuildError> {
        let _ = (app, keep);
        todo!()
    }
}
