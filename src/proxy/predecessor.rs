//! The process that this one took over from, as long as it finishes what it has. To an agent both are one proxy: an
//! instance is let go of when both have, and what both counted is counted.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::timeout;

use super::client::{Drained, ProxyClient};
use super::control::AppCounts;
use super::instance::lock;
use super::table::{DrainLimits, Route};
use crate::model::{AppName, InstanceId};

/// A table is in force in a moment. One that hangs is let go of: it must not hold up this process.
const APPLY_LIMIT: Duration = Duration::from_secs(2);
/// Less than an agent waits for counts.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

/// The connection to it. What it counted stays when it is gone.
#[derive(Debug)]
pub(super) struct Predecessor {
    client: Mutex<Option<ProxyClient>>,
    totals: Mutex<BTreeMap<AppName, AppCounts>>,
}

impl Predecessor {
    /// On this connection.
    pub fn new(client: ProxyClient) -> Self {
        Self { client: Mutex::new(Some(client)), totals: Mutex::default() }
    }

    /// The connection, unless it has ended.
    fn there(&self) -> Option<ProxyClient> {
        lock(&self.client).clone().filter(|client| client.status().connected)
    }

    /// Whether it still has something.
    pub fn is_there(&self) -> bool {
        self.there().is_some()
    }

    /// Resolves when it has ended.
    pub async fn gone(&self) {
        if let Some(client) = self.there() {
            // An error says the same: nobody keeps the connection any more.
            let _ = client.watch_status().wait_for(|status| !status.connected).await;
        }
    }

    /// It chooses by the same table as this process.
    pub async fn apply(&self, routes: &[Route]) {
        let Some(client) = self.there() else { return };
        match timeout(APPLY_LIMIT, client.apply(routes.to_vec())).await {
            Ok(Ok(_)) => {}
            _ if !self.is_there() => {}
            other => {
                tracing::error!(?other, "the proxy before this one does not take the table; letting go of it");
                self.note(&client);
                *lock(&self.client) = None;
            }
        }
    }

    /// Waits until it has finished what it has with this instance.
    pub async fn drain(&self, instance: &InstanceId, limits: DrainLimits) -> Drained {
        match self.there() {
            Some(client) => client.drain(instance, limits).await,
            None => Drained { cut_requests: 0, cut_streams: 0, took: Duration::ZERO, confirmed: false },
        }
    }

    /// What it has counted, and what it has under way.
    pub async fn counts(&self) -> (BTreeMap<AppName, AppCounts>, BTreeMap<InstanceId, u64>) {
        let client = lock(&self.client).clone();
        let mut in_flight = BTreeMap::new();
        if let Some(client) = client {
            if client.status().connected {
                let _ = timeout(COUNT_LIMIT, client.counts()).await;
            }
            self.note(&client);
            if client.status().connected {
                in_flight = client.last_counts().map(|counts| counts.in_flight).unwrap_or_default();
            }
        }
        (lock(&self.totals).clone(), in_flight)
    }

    fn note(&self, client: &ProxyClient) {
        if let Some(counts) = client.last_counts() {
            *lock(&self.totals) = counts.apps;
        }
    }
}
