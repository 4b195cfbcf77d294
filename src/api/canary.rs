//! `POST /api/v1/apps/{app}/canary`: what a person wants of the canary under way.

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::auth::Caller;
use super::body::{Fields, wrong};
use super::problem::Problem;
use super::{ApiState, apps, deployments};
use crate::model::CanaryAction;
use crate::rollout::canary::Wish;
use crate::rollout::driver::canary::WishRefused;

pub(super) async fn act(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Result<Response, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    let fields = fields.only(&["action"])?;
    let action: Option<CanaryAction> = fields.text("action")?;
    let action = action.ok_or_else(|| wrong("action", "is missing; give promote, abort, pause or resume"))?;
    let asked = api.agent.ask_canary(&app.name, Wish { action, by: caller.name }).await;
    let id = asked.map_err(|refused| match &refused {
        WishRefused::Unrecorded(_) | WishRefused::Journal(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string())
        }
        WishRefused::NoCanary(_) | WishRefused::Senseless(..) => {
            Problem::new(StatusCode::CONFLICT, refused.to_string())
        }
    })?;
    deployments::accepted_now(&api, id).await
}
