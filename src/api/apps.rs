//! `GET /api/v1/apps`, `GET /api/v1/apps/{app}`

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use jiff::Timestamp;

use super::ApiState;
use super::body::closest;
use super::params::Params;
use super::problem::Problem;
use super::views::{AppFacts, AppView, DeploymentView, DriftView, SharesView};
use crate::config::{App, Config};
use crate::model::shorten;
use crate::proxy::Counts;
use crate::queue::Request;

/// Entries of drift that an app is shown with.
const DRIFT_SHOWN: u32 = 5;
/// Entries of drift listed, unless the caller says how many.
const DRIFT_LISTED: u64 = 50;
const MOST_DRIFT: u64 = 1000;

pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<Vec<AppView>>, Problem> {
    let config = api.agent.config();
    // Once for all of them: a proxy that hangs takes a second.
    let counts = api.agent.counts().await;
    let mut apps = Vec::with_capacity(config.apps.len());
    for app in config.apps.values() {
        apps.push(view(&api, &config, app, counts.as_ref()).await?);
    }
    Ok(Json(apps))
}

pub(super) async fn show(State(api): State<ApiState>, Path(name): Path<String>) -> Result<Json<AppView>, Problem> {
    let config = api.agent.config();
    let app = find(&config, &name)?;
    let counts = api.agent.counts().await;
    Ok(Json(view(&api, &config, app, counts.as_ref()).await?))
}

pub(super) async fn drift(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<Vec<DriftView>>, Problem> {
    let config = api.agent.config();
    let app = find(&config, &name)?;
    let limit = Params::of(&uri, &["limit"])?.number("limit", 1..=MOST_DRIFT)?.unwrap_or(DRIFT_LISTED);
    let entries = api.agent.store.drift(&app.name, limit as u32).await?;
    Ok(Json(entries.iter().map(DriftView::of).collect()))
}

/// A configured app by name, or 404 with what there is.
pub(super) fn find<'a>(config: &'a Config, name: &str) -> Result<&'a App, Problem> {
    if let Some(app) = config.apps.values().find(|app| app.name.as_str() == name) {
        return Ok(app);
    }
    let names: Vec<&str> = config.apps.keys().map(|known| known.as_str()).collect();
    let name = shorten(name, 60);
    let detail = match (closest(&name, names.iter().copied()), names.as_slice()) {
        (Some(meant), _) => format!("there is no app {name:?}; did you mean {meant:?}? apps: {}", names.join(", ")),
        (None, []) => format!("there is no app {name:?}; none are configured"),
        (None, _) => format!("there is no app {name:?}; apps: {}", names.join(", ")),
    };
    Err(Problem::new(StatusCode::NOT_FOUND, detail).field("app"))
}

async fn view(api: &ApiState, config: &Config, app: &App, counts: Option<&Counts>) -> Result<AppView, Problem> {
    let store = &api.agent.store;
    let running = store.unfinished(&app.name).await?;
    let mut services = Vec::with_capacity(app.services.len());
    for service in app.services.values() {
        let desired = match running.as_ref().map(|deployment| &deployment.request) {
            Some(Request::Scale { service: scaled, instances }) if *scaled == service.name => *instances,
            _ => store.scale(&app.name, &service.name, service.instances).await?,
        };
        services.push((service, desired));
    }
    let public_url = config.agent.public_url.as_deref();
    let canaries = || config.apps.values().filter_map(|app| Some((app, app.canary_of.as_ref()?)));
    let own = canaries().find(|(_, of)| of.app == app.name);
    let live = store.live_release(&app.name).await?;
    let tip = api.agent.tip_not_live(app, live.as_ref(), running.as_ref()).await?;
    Ok(AppView::of(AppFacts {
        app,
        services,
        live,
        tip,
        tip_unknown: api.agent.tip_unknown(app),
        held: store.held_tip(&app.name).await?,
        instances: api.agent.instances(&app.name).unwrap_or_default(),
        deployment: running.map(|deployment| DeploymentView::of(&deployment, public_url, Timestamp::now())),
        canary: api.agent.canary(&app.name).await?,
        canary_of: app
            .canary_of
            .as_ref()
            .map(|of| SharesView::of(&of.app, of.share, api.agent.canary_standing(&app.name))),
        permanent_canary: own
            .map(|(canary, of)| SharesView::of(&canary.name, of.share, api.agent.canary_standing(&canary.name))),
        maintenance: config.in_maintenance(app),
        counts,
        queued: store.waiting(&app.name).await?.len(),
        drift: store.drift(&app.name, DRIFT_SHOWN).await?,
        waits: api.agent.waits(&app.name),
        proxy: api.agent.proxy_standing(counts),
    }))
}
