//! One configured app's tasks: its driver, its worker, its reconciliation; and the adoption of what runs already.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Agent, reconcile};
use crate::config::App;
use crate::deploy::build::Builder;
use crate::deploy::source::Mirrors;
use crate::deploy::{Deployer, spec};
use crate::model::{DeploymentId, Duty};
use crate::proxy::client::ProxyClient;
use crate::rollout::driver::Parts;
use crate::rollout::plan::{self, Current};
use crate::rollout::routes::Routes;
use crate::rollout::{Driver, Entrance, ServiceSpec};
use crate::runtime::docker::Docker;
use crate::runtime::{Observed, RunState, Runtime};
use crate::store::Deployment;

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
    /// Keys the digests of settings.
    pub settings_key: String,
}

/// One configured app's tasks.
#[derive(Clone)]
pub(super) struct AppHandle {
    pub driver: Driver,
    pub deployer: Deployer,
    pub wake: Arc<Notify>,
    /// Ends its worker and its reconciliation when the app is no longer configured.
    pub end: CancellationToken,
}

/// Starts an app's tasks and adopts its instances.
pub(super) async fn start(agent: &Arc<Agent>, app: &App) {
    let Some(shared) = agent.parts.get() else { return };
    let parts = Parts {
        runtime: shared.runtime.clone(),
        routes: shared.routes.clone(),
        journal: agent.journal.clone(),
        store: agent.store.clone(),
    };
    let driver = Driver::start(app.name.clone(), Entrance::of(app), parts);
    if let Err(err) = adopt(agent, app, &driver).await {
        tracing::error!(app = %app.name, "its instances could not be adopted: {err:#}");
    }
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
        driver: driver.clone(),
        proxy: shared.proxy.clone(),
        settings_key: shared.settings_key.clone(),
        running: Arc::new(Mutex::new(None)),
        shutdown: end.clone(),
    };
    let wake = Arc::new(Notify::new());
    agent.workers.spawn(deployer.clone().work(wake.clone()));
    let handle = AppHandle { driver, deployer, wake, end: end.clone() };
    agent.apps.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(app.name.clone(), Arc::new(handle));
    tokio::spawn(reconcile::run(agent.clone(), app.name.clone(), end));
}

/// Takes over what an earlier life of the agent started; what a failed deployment left behind is removed.
async fn adopt(agent: &Arc<Agent>, app: &App, driver: &Driver) -> Result<()> {
    let shared = agent.parts()?;
    let observed = shared.runtime.list(Some(&app.name)).await?;
    let mut records: BTreeMap<DeploymentId, Deployment> = BTreeMap::new();
    for instance in &observed {
        if let Some(record) = agent.store.deployment(instance.deployment).await? {
            records.insert(record.id, record);
        }
    }
    let current: Vec<Current> = observed.iter().map(current).collect();
    let (mut live, mut left) = plan::live_set(&current, |id| records.get(&id).map(|record| record.status));
    if let Some(unfinished) = agent.store.unfinished(&app.name).await? {
        // The engine goes on with a stop whose caller has died: what looks alive now may end at any moment.
        let ending = agent.store.stops_begun(unfinished.id).await?;
        live.retain(|id| !ending.contains(id));
        left.extend(current.iter().map(|c| c.id.clone()).filter(|id| ending.contains(id)));
    }
    for id in &left {
        tracing::warn!(app = %app.name, instance = %id, "left behind by a deployment; removing it");
        if let Err(err) = shared.runtime.stop(id, Duration::from_secs(10)).await {
            tracing::error!(app = %app.name, instance = %id, %err, "it could not be removed");
        }
    }
    let mut adopted = Vec::new();
    for instance in observed.into_iter().filter(|o| live.contains(&o.id)) {
        let Some(spec) = spec_of(agent, app, &instance).await? else {
            tracing::warn!(app = %app.name, instance = %instance.id, "its release is not on record; it is left alone");
            continue;
        };
        let under_way = records.get(&instance.deployment).is_some_and(|record| !record.status.is_terminal());
        let duty = duty_of(&shared.routes, app, &instance, &spec, under_way).await;
        adopted.push((instance, spec, duty));
    }
    if !adopted.is_empty() {
        tracing::info!(app = %app.name, instances = adopted.len(), "adopted");
    }
    driver.adopt(adopted).await;
    Ok(())
}

fn current(observed: &Observed) -> Current {
    Current {
        id: observed.id.clone(),
        service: observed.service.clone(),
        slot: observed.slot,
        settings: observed.settings.clone(),
        deployment: observed.deployment,
        running: observed.state == RunState::Running,
    }
}

async fn spec_of(agent: &Arc<Agent>, app: &App, instance: &Observed) -> Result<Option<Arc<ServiceSpec>>> {
    let Some(release) = agent.store.release(&app.name, instance.release).await? else { return Ok(None) };
    match spec::service_specs(&release, &agent.parts()?.settings_key) {
        Ok(specs) => Ok(specs.get(&instance.service).cloned()),
        Err(why) => bail!("{why}"),
    }
}

/// In the middle of a rollout the proxy's table says who serves; otherwise whoever is live does.
async fn duty_of(routes: &Routes, app: &App, instance: &Observed, spec: &ServiceSpec, under_way: bool) -> Duty {
    if !spec.routed || routes.holds(&app.name, &instance.id).await {
        return Duty::Serving;
    }
    if under_way { Duty::Idle } else { Duty::Serving }
}
