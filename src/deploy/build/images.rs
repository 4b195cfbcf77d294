//! Our images on the engine: how they are named, found again and removed. Only what carries our name, or was built with
//! our labels, is ever removed, one reference at a time and never by force.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerSummary, ImageInspect, ImageSummary};
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptions, ListImagesOptions, RemoveContainerOptions, RemoveImageOptions,
    TagImageOptions,
};

use super::progress::StageImage;
use super::{BuildError, BuildRequest};
use crate::model::{AppName, ImageId};
use crate::runtime::docker::explain::{refusal, status};
use crate::runtime::labels;
use crate::text::with_causes;

/// For the removal of one image.
const REMOVAL: Duration = Duration::from_secs(180);

/// One app's images.
pub(super) struct Images<'a> {
    pub(super) docker: bollard::Docker,
    pub(super) agent: &'a str,
    pub(super) app: &'a AppName,
}

impl Images<'_> {
    /// `longshore-AGENT/APP:0123456789abcdef`
    pub(super) fn reference(&self, key: &str) -> String {
        format!("{}:{}", labels::image_repository(self.agent, self.app), tag(key))
    }

    /// The labels of a new image.
    pub(super) fn labels(&self, request: &BuildRequest<'_>, key: &str) -> BTreeMap<String, String> {
        [
            (labels::AGENT, self.agent.to_owned()),
            (labels::APP, self.app.to_string()),
            (labels::KIND, labels::KIND_BUILD.to_owned()),
            (labels::ARTIFACT, key.to_owned()),
            (labels::COMMIT, request.source.commit.to_string()),
            (labels::DEPLOYMENT, request.deployment.0.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// A host entry that marks the classic builder's containers as ours: they take no labels, and one that outlives
    /// a killed engine is recognised by nothing else.
    pub(super) fn mark(&self) -> String {
        format!("longshore-build.{}.{}:127.0.0.1", self.agent, self.app)
    }

    /// The image of a key.
    pub(super) async fn find(&self, key: &str) -> Result<Option<ImageId>, BuildError> {
        let Some(image) = inspect(&self.docker, &self.reference(key)).await? else { return Ok(None) };
        let all = image.config.and_then(|config| config.labels).unwrap_or_default();
        let is = |name: &str, value: &str| all.get(name).is_some_and(|own| own == value);
        let ours = is(labels::AGENT, self.agent) && is(labels::APP, self.app.as_str());
        Ok(image.id.filter(|_| ours).map(ImageId))
    }

    /// Gives an image one more name of ours.
    pub(super) async fn name(&self, image: &str, tag: String) -> Result<(), BuildError> {
        let options = TagImageOptions { repo: Some(labels::image_repository(self.agent, self.app)), tag: Some(tag) };
        self.docker.tag_image(image, Some(options)).await.map_err(unavailable)
    }

    /// Names what the classic builder left without a name: the earlier stages, or as far as a failed build came. They
    /// are its cache, so they stay for as long as the image that belongs to them; without a name nobody could tell
    /// later that they are ours. What was there before is ours only if it has a name of ours already.
    pub(super) async fn keep_stages(&self, key: &str, result: Option<&ImageId>, stages: &[StageImage]) {
        let is_result = |image: &str| result.is_some_and(|id| id.0.trim_start_matches("sha256:").starts_with(image));
        for (number, stage) in stages.iter().enumerate() {
            if is_result(&stage.image) || (stage.cached && !self.is_named(&stage.image).await) {
                continue;
            }
            if let Err(error) = self.name(&stage.image, format!("{}-stage{number}", tag(key))).await {
                tracing::debug!(%error, image = stage.image, "an image of a build stage could not be named");
            }
        }
    }

    async fn is_named(&self, image: &str) -> bool {
        let prefix = format!("{}:", labels::image_repository(self.agent, self.app));
        let names = inspect(&self.docker, image).await.ok().flatten().and_then(|found| found.repo_tags);
        names.unwrap_or_default().iter().any(|name| name.starts_with(&prefix))
    }

    /// Removes the app's images other than `keep` with the stages that belong to them, and what a killed build left.
    pub(super) async fn prune(&self, keep: &[ImageId]) -> Result<usize, BuildError> {
        let mut gone = self.remove_left_containers().await?;
        let ours = [(labels::AGENT, self.agent), (labels::APP, self.app.as_str())];
        let repository = labels::image_repository(self.agent, self.app);
        let labelled = self.list(labels::filter(&ours)).await?;
        let named = self.list([("reference".to_owned(), vec![repository.clone()])].into()).await?;
        let prefix = format!("{repository}:");
        let our_names = |image: &ImageSummary| -> Vec<String> {
            image.repo_tags.iter().filter(|name| name.starts_with(&prefix)).cloned().collect()
        };
        let is_kept = |image: &ImageSummary| keep.iter().any(|id| id.0 == image.id);
        let kept: Vec<String> = labelled.iter().filter(|image| is_kept(image)).flat_map(our_names).collect();

        let mut names: Vec<String> = labelled.iter().filter(|image| !is_kept(image)).flat_map(our_names).collect();
        // Stages carry our name and no label.
        let stages = named.iter().flat_map(our_names).filter(|name| name.contains("-stage"));
        names.extend(stages.filter(|name| !kept.iter().any(|kept| name.starts_with(&format!("{kept}-stage")))));
        // What was built and has no name at all can only be had by its id.
        let nameless = |image: &&ImageSummary| image.repo_tags.iter().all(|name| name == "<none>:<none>");
        let built = labelled.iter().filter(nameless).filter(|image| !is_kept(image) && is_built(image, &labelled));
        names.extend(built.map(|image| image.id.clone()));
        for name in &names {
            gone += usize::from(self.remove(name).await?);
        }
        Ok(gone)
    }

    async fn list(
        &self,
        filters: std::collections::HashMap<String, Vec<String>>,
    ) -> Result<Vec<ImageSummary>, BuildError> {
        let options = ListImagesOptions { filters: Some(filters), ..Default::default() };
        self.docker.list_images(Some(options)).await.map_err(unavailable)
    }

    /// Whether it went; one that a container uses stays.
    async fn remove(&self, name: &str) -> Result<bool, BuildError> {
        // Layers are deleted before the answer.
        let patient = self.docker.clone().with_timeout(REMOVAL);
        match patient.remove_image(name, None::<RemoveImageOptions>, None).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(false),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn remove_left_containers(&self) -> Result<usize, BuildError> {
        let ended = ["created", "exited", "dead"].map(str::to_owned).to_vec();
        let filters = Some([("status".to_owned(), ended)].into());
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let found = self.docker.list_containers(Some(options)).await.map_err(unavailable)?;
        let mut gone = 0;
        let no_instance = |container: &ContainerSummary| {
            container.labels.as_ref().is_none_or(|all| !all.contains_key(labels::INSTANCE))
        };
        for id in found.into_iter().filter(no_instance).filter_map(|container| container.id) {
            let Ok(container) = self.docker.inspect_container(&id, None::<InspectContainerOptions>).await else {
                continue;
            };
            if self.is_marked(&container) {
                let options = RemoveContainerOptions { v: true, ..Default::default() };
                gone += usize::from(self.docker.remove_container(&id, Some(options)).await.is_ok());
            }
        }
        Ok(gone)
    }

    fn is_marked(&self, container: &ContainerInspectResponse) -> bool {
        let hosts = container.host_config.as_ref().and_then(|config| config.extra_hosts.as_ref());
        hosts.is_some_and(|hosts| hosts.contains(&self.mark()))
    }
}

/// Whether one of those with our labels was built by us. What people make of a container (`docker commit`) or of an image has
/// its labels too: those say then that it is an instance, or another one of ours is its parent.
fn is_built(image: &ImageSummary, labelled: &[ImageSummary]) -> bool {
    let is_build = image.labels.get(labels::KIND).is_some_and(|kind| kind == labels::KIND_BUILD);
    is_build && !labelled.iter().any(|other| other.id == image.parent_id)
}

/// What the engine knows of an image by name or id.
pub(super) async fn inspect(docker: &bollard::Docker, image: &str) -> Result<Option<ImageInspect>, BuildError> {
    match docker.inspect_image(image).await {
        Ok(found) => Ok(Some(found)),
        // 400: not even a name; what stands in a Dockerfile is the builder's to judge.
        Err(error) if matches!(status(&error), Some(400 | 404)) => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// What a failed call that is no build means.
pub(super) fn unavailable(error: Error) -> BuildError {
    match error {
        Error::DockerResponseServerError { message, .. } => BuildError::Failed(refusal(&message)),
        other => BuildError::Unavailable(with_causes(&other)),
    }
}

/// The first half of a key is unique enough and can be read out.
pub(super) fn tag(key: &str) -> &str {
    key.get(..16).unwrap_or(key)
}
