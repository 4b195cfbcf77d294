//! Releases: listed, and returned to.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;

use super::auth::Caller;
use super::body::{Fields, wrong};
use super::problem::Problem;
use super::views::ReleaseView;
use super::{ApiState, apps, deployments};
use crate::model::{AppName, ReleaseNumber, Trigger};
use crate::queue::Request;
use crate::store::Release;

/// More than are ever kept with their images.
const LISTED: u32 = 50;

pub(super) async fn list(
    State(api): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Json<Vec<ReleaseView>>, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    let live = api.agent.store.live_release(&app.name).await?.map(|release| release.number);
    let releases = api.agent.store.releases(&app.name, LISTED).await?;
    Ok(Json(releases.iter().map(|release| ReleaseView::of(release, live == Some(release.number))).collect()))
}

pub(super) async fn rollback(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Result<Response, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    let to = wanted(&fields.only(&["to"])?)?;
    let store = &api.agent.store;
    let live = store.live_release(&app.name).await?.map(|release| release.number);
    let releases = store.releases(&app.name, LISTED).await?;
    let asked = match to {
        Some(number) => store.release(&app.name, number).await?,
        None => None,
    };
    let under_way = api.agent.has_work(&app.name).await?;
    let target = match (to, asked) {
        (Some(number), _) if live == Some(number) => {
            return Err(Problem::new(StatusCode::CONFLICT, format!("{number} is live already")).field("to"));
        }
        (Some(_), Some(release)) => Some(release),
        (Some(number), None) => return Err(no_such(&app.name, &format!("no release {number}"), &releases, live)),
        // What the last good one is may change until this rollback's turn comes; then it is decided.
        (None, _) => match store.last_good_release(&app.name).await? {
            None if !under_way => return Err(no_such(&app.name, "no earlier good release", &releases, live)),
            found => found,
        },
    };
    if let Some(release) = &target
        && let Err(err) = api.agent.needs_images(release, None).await
    {
        return Err(Problem::from(err).field("to"));
    }
    deployments::submit(&api, &app.name, Trigger::Rollback, Request::Rollback { to }, None, caller.name).await
}

/// `6`, `"6"` or `"v6"`.
fn wanted(fields: &Fields) -> Result<Option<ReleaseNumber>, Problem> {
    match fields.get("to") {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
            number.map(|number| Some(ReleaseNumber(number))).ok_or_else(|| wrong("to", "is not a release's number"))
        }
        Some(_) => fields.text("to"),
    }
}

fn no_such(app: &AppName, what: &str, releases: &[Release], live: Option<ReleaseNumber>) -> Problem {
    let word = |release: &Release| match live == Some(release.number) {
        true => format!("{} (live)", release.number),
        false => release.number.to_string(),
    };
    let served = |release: &&Release| release.good_at.is_some() || live == Some(release.number);
    let words: Vec<String> = releases.iter().filter(served).map(word).collect();
    let available = match words.as_slice() {
        [] => "it has no release to go back to".to_owned(),
        some => format!("available: {}", some.join(", ")),
    };
    Problem::new(StatusCode::NOT_FOUND, format!("{app} has {what}; {available}")).field("to")
}
