//! `GET /livez`, `GET /readyz`

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::problem::Problem;
use super::{ApiState, LocalPeer};
use crate::agent::Readiness;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// It answers, so it lives.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "status": "live", "version": VERSION }))
}

/// Whether it can do its job, and what is in the way.
pub(super) async fn ready(
    State(api): State<ApiState>,
    peer: Option<Extension<LocalPeer>>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let Readiness { problems, warnings } = api.agent.readiness(peer.is_some()).await;
    let agent = api.agent.id.clone();
    let (status, word) = match problems.is_empty() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unready"),
    };
    let said = json!({
        "status": word, "agent": agent, "version": VERSION, "problems": problems, "warnings": warnings,
    });
    Ok((status, Json(said)))
}
