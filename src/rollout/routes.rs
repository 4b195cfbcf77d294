//! All apps' routes as the one table that the proxy knows: `parts` joins them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use tokio::sync::Mutex;

use crate::config::Config;
use crate::model::{AppName, InstanceId};
use crate::proxy::client::{ApplyError, ProxyClient};
use crate::proxy::table::{Route, Table};

mod files;
mod parts;

use parts::Parts;
pub use parts::{Beside, Permanent};

/// Every app's part of the route table. Setting one app's part sends the whole.
pub struct Routes {
    proxy: ProxyClient,
    parts: Mutex<Parts>,
    /// Who is in the table that the proxy took last, for those who must not wait for it.
    routed: RwLock<BTreeSet<InstanceId>>,
}

impl Routes {
    /// Starts from the table that the proxy keeps on disk, so that traffic goes on unchanged until each app's
    /// instances have been observed again.
    pub fn new(proxy: ProxyClient, table: Table) -> Self {
        let routed = RwLock::new(members(&table.routes));
        Self { proxy, parts: Mutex::new(Parts::of(table)), routed }
    }

    /// The table that the proxy keeps; empty when there is none or it cannot be read.
    pub fn read_kept(path: &Path) -> Table {
        let text = std::fs::read(path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether an instance is in the table as it is now.
    pub async fn holds(&self, app: &AppName, instance: &InstanceId) -> bool {
        self.parts.lock().await.holds(app, instance)
    }

    /// Whether any of these instances is in the table that the proxy took last.
    pub fn leads_to(&self, instances: &BTreeSet<InstanceId>) -> bool {
        !self.routed.read().unwrap_or_else(PoisonError::into_inner).is_disjoint(instances)
    }

    /// Replaces an app's routes and returns once the proxy has acknowledged them.
    pub async fn set(&self, app: &AppName, routes: Vec<Route>) -> Result<(), ApplyError> {
        // Held until the answer: tables reach the proxy in the order of the changes.
        let mut parts = self.parts.lock().await;
        parts.set(app, routes);
        self.apply(parts.joined()).await
    }

    /// Takes instances that are to end out of an app's routes. Returns those that were in, once the proxy has
    /// acknowledged that it gives them no request any more.
    pub async fn take_out(&self, app: &AppName, leaving: &[InstanceId]) -> Result<Vec<InstanceId>, ApplyError> {
        let mut parts = self.parts.lock().await;
        let taken = parts.take_out(app, leaving);
        if !taken.is_empty() {
            self.apply(parts.joined()).await?;
        }
        Ok(taken)
    }

    /// The app is no longer configured, and has something to end: whoever is configured answers for its hosts before it does.
    /// The share of a canary ends.
    pub async fn depart(&self, app: &AppName) {
        self.go(app, Parts::depart).await;
    }

    /// The app is no longer configured: its routes stay as they are, until another app answers for its hosts; those of a
    /// canary end.
    pub async fn let_go(&self, app: &AppName) {
        self.go(app, Parts::let_go).await;
    }

    async fn go(&self, app: &AppName, how: impl FnOnce(&mut Parts, &AppName)) {
        if let Err(err) = self.change(|parts| how(parts, app)).await {
            tracing::warn!(%app, %err, "the proxy did not take the routes without it");
        }
    }

    /// The app is configured again. Its routes follow when it sets them.
    pub async fn take_on(&self, app: &AppName) {
        self.parts.lock().await.take_on(app);
    }

    /// What the table that the proxy keeps has of an app that has set nothing yet in this life of the agent.
    pub async fn kept(&self, app: &AppName) -> Vec<Route> {
        self.parts.lock().await.kept(app).to_vec()
    }

    /// Says which apps are canaries of which, as it is configured; those among `suspended` get nothing.
    pub async fn set_canaries(&self, config: &Config, suspended: BTreeSet<AppName>) -> Result<(), ApplyError> {
        let permanent = config.apps.values().filter_map(|app| {
            let of = app.canary_of.clone()?;
            Some((app.name.clone(), Permanent { production: of.app, share: of.share }))
        });
        let canaries: BTreeMap<_, _> = permanent.collect();
        self.change(|parts| {
            parts.set_canaries(canaries);
            parts.suspended.extend(suspended);
        })
        .await
    }

    /// Takes a canary's share away, or gives it back, and returns once the proxy has acknowledged it.
    pub async fn suspend(&self, canary: &AppName, suspended: bool) -> Result<(), ApplyError> {
        let result = self.change(|parts| parts.suspend(canary, suspended)).await;
        if result.is_err() {
            // To be asked for again.
            self.parts.lock().await.suspend(canary, !suspended);
        }
        result
    }

    /// What of a canary is in the table.
    pub async fn beside(&self, canary: &AppName) -> Beside {
        self.parts.lock().await.beside(canary)
    }

    /// The instances of the canary of `production` that could be given requests.
    pub async fn canary_of(&self, production: &AppName) -> BTreeSet<InstanceId> {
        self.parts.lock().await.canary_of(production)
    }

    /// Sends the table when a change makes it another one.
    async fn change(&self, change: impl FnOnce(&mut Parts)) -> Result<(), ApplyError> {
        let mut parts = self.parts.lock().await;
        let before = parts.joined();
        change(&mut parts);
        let joined = parts.joined();
        if joined == before { Ok(()) } else { self.apply(joined).await }
    }

    async fn apply(&self, routes: Vec<Route>) -> Result<(), ApplyError> {
        let routed = members(&routes);
        self.proxy.apply(routes).await?;
        *self.routed.write().unwrap_or_else(PoisonError::into_inner) = routed;
        Ok(())
    }

    /// The proxy itself.
    pub fn proxy(&self) -> &ProxyClient {
        &self.proxy
    }
}

fn members(routes: &[Route]) -> BTreeSet<InstanceId> {
    routes.iter().flat_map(|route| &route.members).map(|member| member.instance.clone()).collect()
}
