//! What goes when a deployment has ended, and which images and static files stay.

use anyhow::{Context, Result};

use super::Deployer;
use crate::config::App;
use crate::model::{ImageId, ReleaseNumber};
use crate::queue::{Request, Waiting};
use crate::store::{Release, StoreError};

/// More than can be on record with an image that is still there.
const LOOKED_AT: u32 = 1000;
/// The live release and one to go back to, whatever is configured.
const LEAST_KEPT: u32 = 2;

impl Deployer {
    /// Removes what is left of release commands, and images and static files that no kept release needs. Only between deployments.
    pub(super) async fn clear_up(&self) -> Result<()> {
        let app = self.as_configured();
        // First, as an image stays while a container is made of it.
        let left = self.runtime.remove_left_over(&self.app).await.context("what is left of release commands stays")?;
        if left > 0 {
            tracing::info!(app = %self.app, containers = left, "removed what was left of release commands");
        }
        let keep = self.releases_to_keep(&app).await.context("images are not pruned")?;
        let bodies = keep.iter().flat_map(|release| &release.body.services);
        let images: Vec<ImageId> = bodies.map(|released| released.image.clone()).collect();
        let images = self.builder.prune(&self.app, &images).await.context("images are not pruned")?;
        if images > 0 {
            tracing::info!(app = %self.app, images, "removed images of old releases");
        }
        let (files, name) = (self.static_files.clone(), self.app.clone());
        let pruned = tokio::task::spawn_blocking(move || files.prune(&name, keep.iter())).await?;
        let directories = pruned.context("static files are not pruned")?;
        if directories > 0 {
            tracing::info!(app = %self.app, directories, "removed static files of old releases");
        }
        Ok(())
    }

    async fn releases_to_keep(&self, app: &App) -> Result<Vec<Release>, StoreError> {
        let releases = self.store.releases(&self.app, LOOKED_AT).await?;
        let live = self.store.live_release(&self.app).await?.map(|release| release.number);
        let waiting = self.store.waiting(&self.app).await?;
        Ok(kept(&releases, live, &waiting, app.keep_releases).into_iter().cloned().collect())
    }
}

/// Of `releases` (newest first): the live one, the last good ones, and those that a waiting rollback names.
fn kept<'a>(releases: &'a [Release], live: Option<ReleaseNumber>, waiting: &[Waiting], keep: u32) -> Vec<&'a Release> {
    let named: Vec<ReleaseNumber> = waiting
        .iter()
        .filter_map(|waiting| match waiting.request {
            Request::Rollback { to } => to,
            _ => None,
        })
        .collect();
    let mut good_left = keep.max(LEAST_KEPT);
    let stays = |release: &&Release| {
        let among_good = release.good_at.is_some() && good_left > 0;
        good_left -= u32::from(among_good);
        among_good || live == Some(release.number) || named.contains(&release.number)
    };
    releases.iter().filter(stays).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::config::{Order, RolloutPolicy, Strategy};
    use crate::model::DeploymentId;
    use crate::store::ReleaseBody;

    fn release(number: u32, good: bool) -> Release {
        Release {
            app: "shop".parse().unwrap(),
            number: ReleaseNumber(number),
            deployment: DeploymentId(number.into()),
            commit: format!("{number:040x}").parse().unwrap(),
            body: ReleaseBody {
                services: Vec::new(),
                release_command: None,
                rollout: RolloutPolicy { strategy: Strategy::Rolling, order: Order::StartFirst, watch: Duration::ZERO },
                author: String::new(),
                subject: String::new(),
            },
            created_at: Timestamp::UNIX_EPOCH,
            live_at: None,
            good_at: good.then_some(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn what_is_live_or_good_or_asked_for_stays() {
        let releases: Vec<_> = (1..=8).rev().map(|number| release(number, ![4, 6].contains(&number))).collect();
        let rollback = |to: Option<u32>| Request::Rollback { to: to.map(ReleaseNumber) };
        let kept = |live: u32, waiting: &[Request], keep: u32| -> Vec<u32> {
            let waiting: Vec<_> =
                waiting.iter().map(|request| Waiting { id: DeploymentId(99), request: request.clone() }).collect();
            let kept = kept(&releases, Some(ReleaseNumber(live)), &waiting, keep);
            kept.into_iter().map(|release| release.number.0).collect()
        };
        assert_eq!(kept(8, &[], 3), [8, 7, 5], "what never was good goes");
        assert_eq!(kept(8, &[], 1), [8, 7], "one to go back to stays");
        assert_eq!(kept(1, &[], 2), [8, 7, 1], "the live one stays however old it is");
        assert_eq!(kept(6, &[], 2), [8, 7, 6], "the live one stays even when it never was good");
        assert_eq!(kept(8, &[rollback(Some(2)), Request::Restart, rollback(None)], 2), [8, 7, 2]);
    }
}
