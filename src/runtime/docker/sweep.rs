//! What is left behind, found by its labels and removed on demand.

use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptions, ListImagesOptions, ListNetworksOptions, ListVolumesOptions, RemoveContainerOptions,
    RemoveImageOptions, RemoveVolumeOptions,
};

use super::observe::{self, Whose};
use super::{Docker, explain, within};
use crate::model::AppName;
use crate::runtime::{Observed, RuntimeError, labels};

/// For the removal of all that an agent has on the engine.
const EVERYTHING: Duration = Duration::from_secs(120);

impl Docker {
    /// Stops and removes what is left of release commands and of copying files, of one app or of all, except those that
    /// `keep` wants. Returns how many went.
    pub async fn remove_orphans(
        &self,
        app: Option<&AppName>,
        keep: &(dyn Fn(&Observed) -> bool + Sync),
    ) -> Result<usize, RuntimeError> {
        let mut removed = 0;
        for kind in [labels::KIND_RELEASE_COMMAND, labels::KIND_FILES] {
            let mut filter = vec![(labels::AGENT, self.agent_id.as_str()), (labels::KIND, kind)];
            filter.extend(app.map(|app| (labels::APP, app.as_str())));
            for container in self.list_labelled(&filter).await? {
                // What a person made of a release command's container is not ours to remove.
                if matches!(observe::whose_inspected(&self.agent_id, &container), Whose::Unknown(_)) {
                    continue;
                }
                let wanted = observe::observed(&self.agent_id, &container).is_some_and(|observed| keep(&observed));
                let Some(id) = container.id.filter(|_| !wanted) else { continue };
                self.remove(&id).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes every container, network, volume and image of this agent, running or not, with all data.
    pub async fn remove_everything(&self) -> Result<(), RuntimeError> {
        within(EVERYTHING, async { self.remove_all().await.map_err(explain::runtime_error) }).await
    }

    async fn remove_all(&self) -> Result<(), Error> {
        let filters = Some(labels::filter(&[(labels::AGENT, &self.agent_id)]));
        let containers = ListContainersOptions { all: true, filters: filters.clone(), ..Default::default() };
        for container in self.client.list_containers(Some(containers)).await? {
            let force = RemoveContainerOptions { force: true, v: true, ..Default::default() };
            self.client.remove_container(&container.id.unwrap_or_default(), Some(force)).await?;
        }
        for network in self.client.list_networks(Some(ListNetworksOptions { filters: filters.clone() })).await? {
            self.client.remove_network(&network.id.unwrap_or_default()).await?;
        }
        let volumes = self.client.list_volumes(Some(ListVolumesOptions { filters: filters.clone() })).await?;
        for volume in volumes.volumes.unwrap_or_default() {
            self.client.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await?;
        }
        let images = ListImagesOptions { filters, ..Default::default() };
        for image in self.client.list_images(Some(images)).await? {
            let force = RemoveImageOptions { force: true, ..Default::default() };
            self.client.remove_image(&image.id, Some(force), None).await?;
        }
        Ok(())
    }
}
