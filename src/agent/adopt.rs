//! What an earlier life of the agent left: asked of the engine until it answers, then adopted or removed. Nothing of an
//! app is deployed before: it would be planned as if nothing ran.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::apps::Shared;
use crate::deploy::spec;
use crate::model::{AppName, DeploymentId, Duty, InstanceId};
use crate::proxy::table::DrainLimits;
use crate::rollout::driver::canary;
use crate::rollout::plan::{self, Current};
use crate::rollout::routes::Routes;
use crate::rollout::stand_ins::Until;
use crate::rollout::{self, Adopted, Driver, ServiceSpec, Share};
use crate::runtime::{Observed, RunState};
use crate::store::Deployment;

/// Between two questions to an engine that does not answer: the first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What was left behind has so long for the requests and streams that it has; the app's deployments wait for it.
const LEAVING: DrainLimits = DrainLimits { requests: Duration::from_secs(10), streams: Duration::from_secs(10) };

/// How far an app's instances are known in this life of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Adoption {
    /// The engine is being asked.
    Asking,
    /// It could not be asked, for this reason, and is asked again.
    Waiting(String),
    /// They are known.
    Done,
}

impl Adoption {
    /// What it keeps from being done, in words.
    pub fn problem(&self, app: &AppName) -> Option<String> {
        match self {
            Self::Asking => Some(format!("the instances of {app} are being looked at; its deployments wait")),
            Self::Waiting(why) => {
                Some(format!("the instances of {app} could not be looked at; its deployments wait: {why}"))
            }
            Self::Done => None,
        }
    }
}

/// Adopts an app's instances, however often it takes. False when `end` came first.
pub(super) async fn until_done(
    agent: Arc<Agent>,
    app: AppName,
    driver: Driver,
    adoption: watch::Sender<Adoption>,
    end: CancellationToken,
) -> bool {
    let (mut pause, longest) = PAUSES;
    loop {
        let adopted = tokio::select! {
            biased;
            () = end.cancelled() => return false,
            adopted = adopt(&agent, &app, &driver) => adopted,
        };
        let Err(err) = adopted else { break };
        let why = format!("{err:#}");
        if adoption.send_replace(Adoption::Waiting(why.clone())) == Adoption::Asking {
            tracing::error!(%app, "its instances could not be looked at, and its deployments wait until they can: {why}");
        }
        tokio::select! {
            () = end.cancelled() => return false,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(longest),
        }
    }
    if adoption.send_replace(Adoption::Done) != Adoption::Asking {
        tracing::info!(%app, "its instances are known now, and its deployments go on");
    }
    true
}

/// Takes over what an earlier life of the agent started; what a failed deployment left behind is removed.
async fn adopt(agent: &Agent, app: &AppName, driver: &Driver) -> Result<()> {
    let shared = agent.parts()?;
    let observed = shared.runtime.list(Some(app)).await?;
    let mut records: BTreeMap<DeploymentId, Deployment> = BTreeMap::new();
    for instance in &observed {
        if let Some(record) = agent.store.deployment(instance.deployment).await? {
            records.insert(record.id, record);
        }
    }
    let current: Vec<Current> = observed.iter().map(current).collect();
    let (mut live, mut left) = plan::live_set(&current, |id| records.get(&id).map(|record| record.status));
    let (mut share, mut replaced, mut ending_now) = (None, Vec::new(), Vec::new());
    if let Some(unfinished) = agent.store.unfinished(app).await? {
        share = share_of(agent, unfinished.id).await?;
        // The engine goes on with a stop whose caller has died: what looks alive now may end at any moment.
        let ending = agent.store.stops_begun(unfinished.id).await?;
        live.retain(|id| !ending.contains(id));
        ending_now.extend(current.iter().map(|c| c.id.clone()).filter(|id| ending.contains(id)));
        let held = held(&shared.routes, app, &live).await;
        // Beside a canary every old one is meant to serve, also one that was not ready.
        if share.is_none() {
            replaced = plan::replaced(&current, |id| held.contains(id));
        }
    }
    let is_canary = agent.config().apps.get(app).is_some_and(|app| app.canary_of.is_some());
    // A canary's requests have its production.
    let standing = if is_canary { Vec::new() } else { stand_ins(agent, shared, app, &observed, &left, &live).await? };
    left.retain(|id| !standing.contains(id));
    left.extend(ending_now);
    for id in &standing {
        tracing::warn!(%app, instance = %id, "left behind by a deployment; it serves until the live release does");
    }
    for id in &left {
        tracing::warn!(%app, instance = %id, "left behind by a deployment; removing it");
    }
    let_go(&shared.routes, app, &left).await;
    for id in &left {
        if let Err(err) = shared.runtime.stop(id, Duration::from_secs(10)).await {
            tracing::error!(%app, instance = %id, %err, "it could not be removed");
        }
    }
    let mut adopted = Vec::new();
    for instance in observed.into_iter().filter(|o| live.contains(&o.id) || standing.contains(&o.id)) {
        let Some(spec) = spec_of(agent, shared, app, &instance).await? else {
            tracing::warn!(%app, instance = %instance.id, "its release is not on record; it is left alone");
            continue;
        };
        let under_way = records.get(&instance.deployment).is_some_and(|record| !record.status.is_terminal());
        let is_idle = under_way || replaced.contains(&instance.id);
        let duty = duty_of(&shared.routes, app, &instance, &spec, is_idle).await;
        let mut stands_in = None;
        if standing.contains(&instance.id) {
            stands_in = Some(match canary::was_canary(&agent.store, instance.deployment).await {
                true => Until::AnyPlaceIsFilled,
                false => Until::ItsPlaceIsFilled,
            });
        }
        // Where others answer meanwhile, one that was not given requests has to be ready before it is.
        let others_answer = is_canary || stands_in.is_some() || share.is_some();
        let trusted = !others_answer || shared.routes.holds(app, &instance.id).await;
        let last_end = agent.store.last_end(instance.deployment, &instance.id).await?;
        adopted.push(Adopted { last_end, observed: instance, spec, duty, trusted, stands_in });
    }
    if !adopted.is_empty() {
        tracing::info!(%app, instances = adopted.len(), "adopted");
    }
    driver.adopt(adopted, share).await;
    Ok(())
}

/// Those that were left behind and serve on, or are to again, as nobody of the live release does in their places. What they
/// were started with has to be on record.
async fn stand_ins(
    agent: &Agent,
    shared: &Shared,
    app: &AppName,
    observed: &[Observed],
    left: &[InstanceId],
    live: &[InstanceId],
) -> Result<Vec<InstanceId>> {
    let current: Vec<Current> = observed.iter().map(current).collect();
    let all: Vec<InstanceId> = current.iter().map(|c| c.id.clone()).collect();
    let held = held(&shared.routes, app, &all).await;
    let deployments: BTreeSet<DeploymentId> =
        current.iter().filter(|c| left.contains(&c.id)).map(|c| c.deployment).collect();
    let mut named = BTreeSet::new();
    for deployment in deployments {
        named.extend(agent.store.stand_ins(deployment).await?);
    }
    let holds = |id: &InstanceId| held.contains(id);
    let mut standing = rollout::stand_ins::stand_ins(&current, left, live, holds, |id| named.contains(id));
    for instance in observed {
        if !standing.contains(&instance.id) {
            continue;
        }
        match spec_of(agent, shared, app, instance).await? {
            None => standing.retain(|id| *id != instance.id),
            // The table forgets those that end while this agent lives.
            Some(_) if named.contains(&instance.id) => {}
            Some(_) => agent.store.record_stand_ins(instance.deployment, std::slice::from_ref(&instance.id)).await?,
        }
    }
    Ok(standing)
}

/// The share of the requests that a canary had when the agent ended. Until its rollout goes on it gets no more.
async fn share_of(agent: &Agent, deployment: DeploymentId) -> Result<Option<Share>> {
    let standing = canary::share_left(&agent.store, deployment).await?;
    let percent = standing.map(|standing| standing.share).filter(|percent| (1..100).contains(percent));
    Ok(percent.map(|percent| Share { deployment, percent }))
}

/// One that is removed may still get requests: when the engine was away as its deployment was undone, nothing could take
/// its place. It finishes those that it has.
async fn let_go(routes: &Routes, app: &AppName, leaving: &[InstanceId]) {
    match routes.take_out(app, leaving).await {
        Ok(routed) => {
            let drains = routed.iter().map(|id| routes.proxy().drain(id, LEAVING));
            join_all(drains).await;
        }
        // A proxy that does not answer gives nothing to anybody either, or is stopped.
        Err(err) => tracing::warn!(%app, %err, "instances are removed that may still get requests"),
    }
}

fn current(observed: &Observed) -> Current {
    Current {
        id: observed.id.clone(),
        service: observed.service.clone(),
        slot: observed.slot,
        settings: Some(observed.settings.clone()),
        deployment: observed.deployment,
        running: observed.state == RunState::Running,
        // Nobody has looked yet.
        proven: false,
        ready: false,
    }
}

async fn spec_of(
    agent: &Agent,
    shared: &Shared,
    app: &AppName,
    instance: &Observed,
) -> Result<Option<Arc<ServiceSpec>>> {
    let release = agent.store.release(app, instance.release).await?;
    let (key, files) = (&shared.settings_key, &shared.static_files);
    Ok(release.and_then(|release| spec::of_running(&release, &instance.service, key, files)).map(Arc::new))
}

/// Those of them that the table has.
async fn held(routes: &Routes, app: &AppName, all: &[InstanceId]) -> BTreeSet<InstanceId> {
    let mut held = BTreeSet::new();
    for id in all {
        if routes.holds(app, id).await {
            held.insert(id.clone());
        }
    }
    held
}

/// In the middle of a rollout the proxy's table says who serves; otherwise whoever is live does.
async fn duty_of(routes: &Routes, app: &AppName, instance: &Observed, spec: &ServiceSpec, is_idle: bool) -> Duty {
    if !spec.routed || routes.holds(app, &instance.id).await {
        return Duty::Serving;
    }
    if is_idle { Duty::Idle } else { Duty::Serving }
}
