//! `GET /api/v1/events`: everything that happens, as it happens.

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use super::params::Params;
use super::problem::Problem;
use super::serve::Closing;
use super::{ApiState, apps, sse};
use crate::journal::{DeployEvent, Published};
use crate::model::AppName;

pub(super) async fn stream(State(api): State<ApiState>, closing: Closing, uri: Uri) -> Result<Response, Problem> {
    let only: Option<AppName> = match Params::of(&uri, &["app"])?.text("app") {
        Some(name) => Some(apps::find(&api.agent.config(), name)?.name.clone()),
        None => None,
    };
    let events = stream::unfold((api.agent.journal.subscribe(), only), |(mut events, only)| async move {
        loop {
            match events.recv().await {
                Ok(published) if only.as_ref().is_none_or(|app| *app == published.app) => {
                    return Some((event(&published), (events, only)));
                }
                Ok(_) => {}
                // Too slow: what was missed is in the records, which the client is to read again.
                Err(RecvError::Lagged(missed)) => {
                    let resync = Event::default().event("resync").data(format!("{{\"missed\":{missed}}}"));
                    return Some((resync, (events, only)));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok(sse::respond(events, closing))
}

fn event(published: &Published) -> Event {
    let name = match published.event {
        DeployEvent::Status { .. } => "status",
        DeployEvent::Instance { .. } => "instance",
        DeployEvent::Canary { .. } => "canary",
        DeployEvent::Drift { .. } => "drift",
        DeployEvent::Log { .. } => "log",
    };
    sse::json_event(name, published)
}
