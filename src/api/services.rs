//! Scaling a service, restarting an app.

use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use tokio::time::timeout;

use super::auth::Caller;
use super::body::{Fields, wrong};
use super::problem::Problem;
use super::{ApiState, apps, deployments};
use crate::model::{AppName, ServiceName, shorten};
use crate::queue::Request;
use crate::runtime::RuntimeError;
use crate::store::Release;

/// The configuration's own bound.
const MOST: u64 = 64;
/// The engine has so long to say which images it has.
const IMAGES: Duration = Duration::from_secs(2);

pub(super) async fn scale(
    State(api): State<ApiState>,
    Path((name, service)): Path<(String, String)>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Result<Response, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    let Some(service) = app.services.keys().find(|known| known.as_str() == service).cloned() else {
        let known: Vec<&str> = app.services.keys().map(|known| known.as_str()).collect();
        let service = shorten(&service, 60);
        let detail = format!("{} has no service {service:?}; services: {}", app.name, known.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail).field("service"));
    };
    let fields = fields.only(&["instances"])?;
    let asked = fields.get("instances").ok_or_else(|| wrong("instances", "is missing; give a number from 0 to 64"))?;
    let instances = asked
        .as_u64()
        .filter(|number| *number <= MOST)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| {
            wrong("instances", format!("must be a whole number from 0 to 64; got {}", shorten(&asked.to_string(), 40)))
        })?;
    let live = live(&api, &app.name).await?;
    let before = app.services.get(&service).map_or(1, |service| service.instances);
    if instances > api.agent.store.scale(&app.name, &service, before).await? {
        refuse_without_images(&api, &live, Some(&service)).await?;
    }
    let request = Request::Scale { service, instances };
    deployments::submit(&api, &app.name, caller.trigger, request, None, caller.name).await
}

pub(super) async fn restart(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Result<Response, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    fields.only(&[])?;
    refuse_without_images(&api, &live(&api, &app.name).await?, None).await?;
    deployments::submit(&api, &app.name, caller.trigger, Request::Restart, None, caller.name).await
}

/// Both act on the live release.
async fn live(api: &ApiState, app: &AppName) -> Result<Release, Problem> {
    let nothing = || Problem::new(StatusCode::CONFLICT, format!("nothing of {app} is live yet; deploy it first"));
    api.agent.store.live_release(app).await?.ok_or_else(nothing)
}

/// It would be tried three times, and undone. What is under way may make another release live, and what an engine has that
/// does not answer is known when it does.
async fn refuse_without_images(api: &ApiState, live: &Release, of: Option<&ServiceName>) -> Result<(), Problem> {
    if api.agent.has_work(&live.app).await? {
        return Ok(());
    }
    match timeout(IMAGES, api.agent.needs_images(live, of)).await {
        Ok(Err(gone @ RuntimeError::ImageGone(_))) => Err(gone.into()),
        _ => Ok(()),
    }
}
