//! Which images stay when a deployment has ended.

use super::Deployer;
use crate::config::App;
use crate::journal::DeployLog;
use crate::model::ImageId;
use crate::store::{Release, StoreError};

impl Deployer {
    /// Removes images that no kept release needs.
    pub(super) async fn prune(&self, app: &App, log: &DeployLog) {
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
    async fn images_to_keep(&self, app: &App) -> Result<Vec<ImageId>, StoreError> {
        let releases = self.store.releases(&self.app, 1000).await?;
        let live = self.store.live_release(&self.app).await?.map(|release| release.number);
        let good = releases.iter().filter(|release| release.good_at.is_some());
        let mut kept: Vec<&Release> = good.take(app.keep_releases.max(2) as usize).collect();
        kept.extend(releases.iter().filter(|release| Some(release.number) == live));
        let images = kept.iter().flat_map(|release| &release.body.services).map(|released| released.image.clone());
        Ok(images.collect())
    }
}
