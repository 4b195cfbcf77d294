//! `GET /api/v1/apps`, `GET /api/v1/apps/{app}`

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;

use super::ApiState;
use super::body::closest;
use super::problem::Problem;
use super::views::{AppFacts, AppView, DeploymentView};
use crate::config::{App, Config};
use crate::model::shorten;

pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<Vec<AppView>>, Problem> {
    let config = api.agent.config();
    let mut apps = Vec::with_capacity(config.apps.len());
    for app in config.apps.values() {
        apps.push(view(&api, &config, app).await?);
    }
    Ok(Json(apps))
}

pub(super) async fn show(State(api): State<ApiState>, Path(name): Path<String>) -> Result<Json<AppView>, Problem> {
    let config = api.agent.config();
    let app = find(&config, &name)?;
    Ok(Json(view(&api, &config, app).await?))
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

async fn view(api: &ApiState, config: &Config, app: &App) -> Result<AppView, Problem> {
    let store = &api.agent.store;
    let mut services = Vec::with_capacity(app.services.len());
    for service in app.services.values() {
        services.push((service, store.scale(&app.name, &service.name, service.instances).await?));
    }
    let running = store.unfinished(&app.name).await?;
    let public_url = config.agent.public_url.as_deref();
    Ok(AppView::of(AppFacts {
        app,
        services,
        live: store.live_release(&app.name).await?,
        held: store.held_tip(&app.name).await?,
        instances: api.agent.instances(&app.name).unwrap_or_default(),
        deployment: running.map(|deployment| DeploymentView::of(&deployment, public_url, Timestamp::now())),
        queued: store.waiting(&app.name).await?.len(),
    }))
}
