//! What the proxy serves by itself: directories of images, copied out, and where volumes are.

use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, Volume, VolumeCreateRequest};
use bollard::query_parameters::{CreateContainerOptions, DownloadFromContainerOptions};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{CALL, Docker, START, explain, spec, within};
use crate::model::{AppName, ImageId};
use crate::runtime::{ImageGone, RuntimeError, labels};

/// For copying a directory.
const COPY: Duration = Duration::from_secs(600);

/// Sends a directory of an image as a tar archive. The container that it is read from is never started, and removed
/// afterwards; when the caller stops waiting, it is left to be removed with other one-off containers.
pub(super) async fn copy_out(
    docker: &Docker,
    app: &AppName,
    image: &ImageId,
    directory: &str,
    into: mpsc::Sender<Bytes>,
) -> Result<(), RuntimeError> {
    let container = within(START, create(docker, app, image)).await?;
    let copied = within(COPY, send(docker, &container, directory, into)).await;
    if let Err(error) = docker.remove(&container).await {
        tracing::warn!(%error, container, "a container that files were copied from is left behind");
    }
    copied
}

async fn create(docker: &Docker, app: &AppName, image: &ImageId) -> Result<String, RuntimeError> {
    let ours = [(labels::AGENT, docker.agent_id()), (labels::APP, app.as_str()), (labels::KIND, labels::KIND_FILES)];
    let container = ContainerCreateBody {
        image: Some(image.0.clone()),
        // Some images have no command, and without one no container is created.
        entrypoint: Some(vec!["/never-started".to_owned()]),
        labels: Some(ours.map(|(label, value)| (label.to_owned(), value.to_owned())).into()),
        network_disabled: Some(true),
        ..Default::default()
    };
    match docker.client.create_container(None::<CreateContainerOptions>, container).await {
        Ok(created) => Ok(created.id),
        Err(error) if explain::status(&error) == Some(404) => {
            Err(RuntimeError::ImageGone(ImageGone { what: format!("image {image}"), built_from: None }))
        }
        Err(error) => Err(explain::runtime_error(error)),
    }
}

async fn send(
    docker: &Docker,
    container: &str,
    directory: &str,
    into: mpsc::Sender<Bytes>,
) -> Result<(), RuntimeError> {
    let found = docker.inspect_container(container).await?;
    let working = found.and_then(|found| found.config?.working_dir).unwrap_or_default();
    let path = match directory.starts_with('/') {
        true => directory.to_owned(),
        false => format!("{}/{directory}", working.trim_end_matches('/')),
    };
    let options = DownloadFromContainerOptions { path: path.clone() };
    let mut archive = docker.client.download_from_container(container, Some(options));
    while let Some(chunk) = archive.next().await {
        let chunk = chunk.map_err(|error| match explain::status(&error) {
            Some(404) => RuntimeError::Refused(format!("the image has no {path}")),
            _ => explain::runtime_error(error),
        })?;
        if into.send(chunk).await.is_err() {
            // Whoever unpacks it knows why it wants no more.
            return Ok(());
        }
    }
    Ok(())
}

impl Docker {
    /// An app's volume, created when it is missing.
    pub(super) async fn ensure_volume(&self, app: &AppName, volume: &str) -> Result<Volume, RuntimeError> {
        let name = labels::volume_name(&self.agent_id, app, volume);
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(spec::volume_labels(&self.agent_id, app)),
            ..Default::default()
        };
        // Creating one that exists gives the existing one back, with its own labels.
        let found = self.client.create_volume(request).await.map_err(explain::runtime_error)?;
        self.refuse_strangers("volume", &name, Some(&found.labels))?;
        Ok(found)
    }

    /// Where that is on the engine's machine.
    pub(super) async fn volume_directory(&self, app: &AppName, volume: &str) -> Result<PathBuf, RuntimeError> {
        within(CALL, async { Ok(PathBuf::from(self.ensure_volume(app, volume).await?.mountpoint)) }).await
    }
}
