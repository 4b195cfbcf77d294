//! API tokens: made, listed, revoked. A token itself is shown once.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;

use super::ApiState;
use super::body::{Fields, wrong};
use super::problem::Problem;
use super::views::TokenView;
use crate::model::shorten;
use crate::store::Scope;

pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<Vec<TokenView>>, Problem> {
    let tokens = api.agent.store.tokens().await?;
    Ok(Json(tokens.into_iter().map(|token| TokenView::of(token, None)).collect()))
}

pub(super) async fn create(
    State(api): State<ApiState>,
    fields: Fields,
) -> Result<(StatusCode, Json<TokenView>), Problem> {
    let fields = fields.only(&["name", "scope", "expires_in_days"])?;
    let name: String = fields.text("name")?.ok_or_else(|| wrong("name", "is missing; say whose or what for"))?;
    let name = name.trim();
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(wrong("name", "must be 1 to 100 printable characters"));
    }
    let scope: Scope = fields.text("scope")?.ok_or_else(|| wrong("scope", "is missing; read, deploy or admin"))?;
    let expires_at = match fields.get("expires_in_days") {
        None => None,
        Some(days) => Some(
            days.as_u64()
                .filter(|days| (1..=3650).contains(days))
                .and_then(|days| i64::try_from(days).ok())
                .and_then(|days| Timestamp::now().checked_add(SignedDuration::from_hours(24 * days)).ok())
                .ok_or_else(|| wrong("expires_in_days", "must be a whole number from 1 to 3650"))?,
        ),
    };
    let (token, secret) = api.agent.store.create_token(name, scope, expires_at).await?;
    Ok((StatusCode::CREATED, Json(TokenView::of(token, Some(secret.expose_secret().to_owned())))))
}

pub(super) async fn revoke(State(api): State<ApiState>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let revoked = match id.parse() {
        Ok(number) => api.agent.store.revoke_token(number).await?,
        Err(_) => false,
    };
    match revoked {
        true => Ok(StatusCode::NO_CONTENT),
        false => {
            let detail = format!("there is no token {:?}; longshore token list shows their numbers", shorten(&id, 40));
            Err(Problem::new(StatusCode::NOT_FOUND, detail).field("id"))
        }
    }
}
