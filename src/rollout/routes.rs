//! All apps' routes as the one table that the proxy knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::sync::Mutex;

use crate::model::{AppName, InstanceId};
use crate::proxy::client::{ApplyError, ProxyClient};
use crate::proxy::table::{Route, Table};

/// Every app's part of the route table. Setting one app's part sends the whole.
pub struct Routes {
    proxy: ProxyClient,
    parts: Mutex<Parts>,
}

struct Parts {
    /// From the table that the proxy keeps, of apps that have not been observed in this life of the agent.
    kept: BTreeMap<AppName, Vec<Route>>,
    set: BTreeMap<AppName, Vec<Route>>,
}

impl Parts {
    /// What the apps have set; of kept routes what does not contradict it.
    fn joined(&self) -> Vec<Route> {
        let claimed: BTreeSet<&String> = self.set.values().flatten().flat_map(|route| &route.hosts).collect();
        let kept = self.kept.values().flatten().map(|route| {
            let hosts = route.hosts.iter().filter(|host| !claimed.contains(host)).cloned().collect();
            Route { hosts, ..route.clone() }
        });
        self.set.values().flatten().cloned().chain(kept.filter(|route| !route.hosts.is_empty())).collect()
    }
}

impl Routes {
    /// Starts from the table that the proxy keeps on disk, so that traffic goes on unchanged until each app's
    /// instances have been observed again.
    pub fn new(proxy: ProxyClient, table: Table) -> Self {
        let mut kept: BTreeMap<AppName, Vec<Route>> = BTreeMap::new();
        for route in table.routes {
            kept.entry(route.app.clone()).or_default().push(route);
        }
        Self { proxy, parts: Mutex::new(Parts { kept, set: BTreeMap::new() }) }
    }

    /// The table that the proxy keeps; empty when there is none or it cannot be read.
    pub fn read_kept(path: &Path) -> Table {
        let text = std::fs::read(path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether an instance is in the table as it is now.
    pub async fn holds(&self, app: &AppName, instance: &InstanceId) -> bool {
        let parts = self.parts.lock().await;
        let routes = parts.set.get(app).or_else(|| parts.kept.get(app));
        routes.into_iter().flatten().flat_map(|route| &route.members).any(|member| member.instance == *instance)
    }

    /// Replaces an app's routes and returns once the proxy has acknowledged them.
    pub async fn set(&self, app: &AppName, routes: Vec<Route>) -> Result<(), ApplyError> {
        // Held until the answer: tables reach the proxy in the order of the changes.
        let mut parts = self.parts.lock().await;
        parts.kept.remove(app);
        parts.set.insert(app.clone(), routes);
        self.proxy.apply(parts.joined()).await.map(drop)
    }

    /// The proxy itself.
    pub fn proxy(&self) -> &ProxyClient {
        &self.proxy
    }
}
