//! Apps that are taken out of the configuration. Before one is let go, what it has open ends: what waits at once, and what is
//! under way as if somebody had cancelled it, undone by the driver and the worker that it has. That is on disk first, so
//! nothing goes on when the agent is restarted or the name comes back. What serves in the end runs on.

use std::sync::{Arc, PoisonError};

use super::{Agent, apps};
use crate::config::{App, Config};
use crate::deploy::TAKEN_OUT;
use crate::model::{AppName, DeploymentId};
use crate::rollout::Entrance;
use crate::store::{Deployment, StoreError};

impl Agent {
    /// Ends what an app has open that is not configured any more, and lets it go: at once when nothing is under way.
    /// May be repeated.
    pub(super) async fn depart(self: &Arc<Self>, name: &AppName) {
        let open = match self.store.cancel_open(name, TAKEN_OUT).await {
            Ok(open) => open,
            Err(err) => {
                // What is under way ends all the same, and the rest is looked for again.
                tracing::error!(app = %name, %err, "no longer configured, and what it has open could not be ended");
                if self.app(name).is_some() {
                    self.begin_departure(name, None).await;
                }
                return;
            }
        };
        for id in open.ended {
            if let Err(err) = self.journal.publish_end(name, id).await {
                tracing::warn!(app = %name, deployment = %id, %err, "it is cancelled, which could not be told");
            }
        }
        match (self.app(name).is_some(), open.under_way) {
            (true, Some(id)) => self.begin_departure(name, Some(id)).await,
            (true, None) => self.let_go(name).await,
            (false, Some(id)) => self.take_up_departing(name, id).await,
            (false, None) => {}
        }
    }

    /// The same for every app that has something open and is not configured, whenever it was taken out.
    pub(super) async fn end_what_is_unconfigured(self: &Arc<Self>) {
        let open = match self.store.apps_with_open().await {
            Ok(open) => open,
            Err(err) => return tracing::error!(%err, "which apps have deployments open could not be read"),
        };
        let config = self.config();
        for name in open.iter().filter(|name| !config.apps.contains_key(*name)) {
            self.depart(name).await;
        }
    }

    /// The worker undoes what is under way, and ends.
    async fn begin_departure(&self, name: &AppName, under_way: Option<DeploymentId>) {
        let Some(app) = self.app(name) else { return };
        if !app.deployer.departing.is_cancelled() {
            app.deployer.departing.cancel();
            let deployment = under_way.map(tracing::field::display);
            tracing::warn!(app = %name, deployment, "no longer configured: what is under way of it is undone first");
            if let Ok(parts) = self.parts() {
                parts.routes.depart(name).await;
            }
        }
        if let Some(running) = self.running(name) {
            running.cancel(TAKEN_OUT.to_owned());
        }
        // It may be waiting: for the engine, or for nothing.
        app.wake.notify_one();
    }

    /// What an earlier life of the agent left under way, of an app that this one was not told of.
    async fn take_up_departing(self: &Arc<Self>, name: &AppName, id: DeploymentId) {
        // Without the engine nothing can be undone; it is looked for again.
        let Ok(parts) = self.parts() else { return };
        let app = match self.app_on_record(name).await {
            Ok(app) => app,
            Err(err) => return tracing::error!(app = %name, %err, "what it has open waits for the journal"),
        };
        tracing::warn!(app = %name, deployment = %id, "not configured any more: what was under way of it is undone");
        let entrance = Entrance::of_kept(&parts.routes.kept(name).await);
        parts.routes.depart(name).await;
        apps::start_departing(self, &app, entrance);
    }

    /// As much as the releases say that are needed to undo what is under way.
    async fn app_on_record(&self, name: &AppName) -> Result<App, StoreError> {
        let live = self.store.live_release(name).await?;
        let under_way = match self.store.unfinished(name).await? {
            Some(Deployment { release: Some(number), .. }) => self.store.release(name, number).await?,
            _ => None,
        };
        // In this order: what is live counts.
        let services = under_way.into_iter().chain(live).flat_map(|release| release.body.services);
        Ok(App::on_record(name.clone(), services.map(|released| released.service)))
    }

    /// Nothing of the app is under way any more. If the name is configured again, its tasks begin anew.
    pub(super) async fn departed(self: &Arc<Self>, name: &AppName) {
        if self.app(name).is_some_and(|app| app.deployer.departing.is_cancelled()) {
            self.let_go(name).await;
        }
        self.follow_config().await;
    }

    async fn let_go(&self, name: &AppName) {
        let gone = self.apps.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(gone) = gone else { return };
        gone.end.cancel();
        if let Ok(parts) = self.parts() {
            parts.routes.let_go(name).await;
        }
        let then = if self.canary_standing(name).is_some() { "getting no requests" } else { "serving" };
        tracing::warn!(app = %name, "no longer configured: its instances go on running and {then}, nothing is deployed to it");
    }

    /// Starts the tasks of an app that is configured, if it has none.
    pub(super) async fn take_on(self: &Arc<Self>, app: &App) {
        if let Ok(parts) = self.parts() {
            parts.routes.take_on(&app.name).await;
        }
        apps::start(self, app);
    }

    /// A line for each app that is about to be let go, be it configured again meanwhile.
    pub(super) fn departures(&self, config: &Config) -> Vec<(AppName, String)> {
        let departing = self.handles().into_iter().filter(|app| app.deployer.departing.is_cancelled());
        let line = |name: AppName| {
            let what = self.running(&name).map_or("what was under way".to_owned(), |running| running.id.to_string());
            let waits = self.waits(&name).map(|waits| format!("; it waits: {}", waits.why)).unwrap_or_default();
            let (now, next) = match config.apps.contains_key(&name) {
                true => ("is configured again", "begins anew"),
                false => ("is not configured any more", "is let go"),
            };
            let line = format!("{name} {now}; {what} of it is being undone before it {next}{waits}");
            (name, line)
        };
        departing.map(|app| line(app.deployer.app.clone())).collect()
    }
}
