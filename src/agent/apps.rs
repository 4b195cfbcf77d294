//! One configured app's tasks: its driver, its worker, its reconciliation.

use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::adopt::{self, Adoption};
use super::{Agent, reconcile};
use crate::config::App;
use crate::deploy::Deployer;
use crate::deploy::build::Builder;
use crate::deploy::source::Mirrors;
use crate::deploy::spec;
use crate::deploy::static_files::StaticStore;
use crate::proxy::client::ProxyClient;
use crate::rollout::driver::Parts;
use crate::rollout::routes::Routes;
use crate::rollout::{Driver, Entrance};
use crate::runtime::Runtime;
use crate::runtime::docker::Docker;

/// What all apps share.
#[derive(Clone)]
pub struct Shared {
    /// Where instances run.
    pub runtime: Arc<dyn Runtime>,
    /// The engine behind it.
    pub docker: Docker,
    /// Builds images on it.
    pub builder: Builder,
    /// The sources.
    pub mirrors: Mirrors,
    /// The data plane.
    pub proxy: ProxyClient,
    /// Its table, of all apps.
    pub routes: Arc<Routes>,
    /// Builds at a time, over all apps.
    pub build_slots: Arc<Semaphore>,
    /// Where static files are for the proxy.
    pub static_files: StaticStore,
    /// Keys the digests of settings.
    pub settings_key: String,
}

/// One configured app's tasks.
#[derive(Clone)]
pub(super) struct AppHandle {
    pub driver: Driver,
    pub deployer: Deployer,
    pub wake: Arc<Notify>,
    /// Ends its worker and its reconciliation when the app is let go.
    pub end: CancellationToken,
    /// Whether the worker has begun or waits for the engine.
    pub adoption: watch::Receiver<Adoption>,
}

/// Starts an app's tasks, unless it has them already. Its deployments wait until its instances are adopted.
pub(super) fn start(agent: &Arc<Agent>, app: &App) {
    if let Some(end) = begin(agent, app, Entrance::of(app, &agent.config()), false) {
        tokio::spawn(reconcile::run(agent.clone(), app.name.clone(), end));
    }
}

/// Starts those of an app that is not configured any more and has something to end: what ran is adopted, as ever.
pub(super) fn start_departing(agent: &Arc<Agent>, app: &App, entrance: Option<Entrance>) {
    begin(agent, app, entrance, true);
}

/// What ends the app's tasks; `None` when it has them already.
fn begin(agent: &Arc<Agent>, app: &App, entrance: Option<Entrance>, departs: bool) -> Option<CancellationToken> {
    let shared = agent.parts.get()?;
    let mut apps = agent.apps.write().unwrap_or_else(PoisonError::into_inner);
    let Entry::Vacant(place) = apps.entry(app.name.clone()) else { return None };
    let parts = Parts {
        runtime: shared.runtime.clone(),
        routes: shared.routes.clone(),
        journal: agent.journal.clone(),
        store: agent.store.clone(),
        presence: agent.presence.clone(),
        prepare: {
            let key = shared.settings_key.clone();
            Arc::new(move |spec| spec::prepare(&spec.service, &spec.image, &key))
        },
    };
    let driver = Driver::start(app.name.clone(), entrance, parts);
    let end = agent.shutdown.child_token();
    let deployer = Deployer {
        app: app.name.clone(),
        config: agent.watch_config(),
        store: agent.store.clone(),
        journal: agent.journal.clone(),
        mirrors: shared.mirrors.clone(),
        builder: shared.builder.clone(),
        build_slots: shared.build_slots.clone(),
        runtime: shared.runtime.clone(),
        presence: agent.presence.clone(),
        driver: driver.clone(),
        proxy: shared.proxy.clone(),
        static_files: shared.static_files.clone(),
        settings_key: shared.settings_key.clone(),
        running: Arc::new(Mutex::new(None)),
        last_configured: Arc::new(Mutex::new(app.clone())),
        departing: CancellationToken::new(),
        shutdown: end.clone(),
    };
    if departs {
        deployer.departing.cancel();
    }
    let wake = Arc::new(Notify::new());
    let (adopting, adoption) = watch::channel(Adoption::Asking);
    let handle = AppHandle { driver, deployer: deployer.clone(), wake: wake.clone(), end: end.clone(), adoption };
    place.insert(Arc::new(handle));
    let adopted =
        adopt::until_done(agent.clone(), deployer.app.clone(), deployer.driver.clone(), adopting, end.clone());
    let (agent, ended) = (agent.clone(), end.clone());
    agent.clone().workers.spawn(async move {
        let (name, departing) = (deployer.app.clone(), deployer.departing.clone());
        if adopted.await {
            deployer.work(wake).await;
        }
        if departing.is_cancelled() && !ended.is_cancelled() {
            agent.departed(&name).await;
        }
    });
    Some(end)
}
