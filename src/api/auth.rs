//! Who calls, and whether they may. The only place that decides it.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;

use super::ApiState;
use super::problem::Problem;
use super::table::Access;
use crate::model::{Trigger, shorten};
use crate::store::{Scope, StoreError, TokenCheck};

/// The process at the other end of the agent's own socket: root or the agent's own user, checked by whoever accepted
/// the connection. It has every right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPeer {
    /// Its user.
    pub uid: u32,
    /// Its process, where the kernel says.
    pub pid: Option<i32>,
}

/// Who makes a request that has passed [`authorize`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// A token's name or a local user's, for the record.
    pub name: String,
    /// What made the request: our command line or anything else.
    pub trigger: Trigger,
}

/// The guard of every route.
pub(super) async fn authorize(
    State((api, access)): State<(ApiState, Access)>,
    request: Request,
    next: Next,
) -> Response {
    if carries_token(request.uri()) {
        let detail = "tokens are not accepted in URLs, where logs and histories keep them; \
                      send the header Authorization: Bearer lsh_… and revoke this token";
        return Problem::new(StatusCode::BAD_REQUEST, detail).into_response();
    }
    let Access::Needs(needed) = access else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    match identify(&api, &parts, needed).await {
        Ok(name) => {
            let trigger = trigger_of(&parts.headers);
            parts.extensions.insert(Caller { name, trigger });
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Why a caller is turned away.
enum Refusal {
    NoToken,
    BadToken(String),
    TooMany(u64),
    Scope { has: Scope, needs: Scope },
    Journal(StoreError),
}

async fn identify(api: &ApiState, request: &Parts, needed: Scope) -> Result<String, Refusal> {
    if let Some(peer) = request.extensions.get::<LocalPeer>() {
        return Ok(user_name(peer.uid));
    }
    let presented = bearer(&request.headers)?;
    match api.agent.store.check_token(&presented).await.map_err(Refusal::Journal)? {
        TokenCheck::Valid(token) if token.scope >= needed => Ok(token.name),
        TokenCheck::Valid(token) => Err(Refusal::Scope { has: token.scope, needs: needed }),
        TokenCheck::Expired(at) => Err(failed(api, request, format!("this token expired on {at}"))),
        TokenCheck::Unknown => Err(failed(api, request, "this token is unknown or revoked".into())),
    }
}

/// The one `Authorization: Bearer …` header.
fn bearer(headers: &HeaderMap) -> Result<SecretString, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::NoToken) };
    let text = value.to_str().map_err(|_| Refusal::NoToken)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refusal::NoToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::NoToken);
    }
    Ok(token.trim().to_owned().into())
}

/// Counts a token that is not valid. The peer is the socket's: headers such as X-Forwarded-For are the caller's word.
fn failed(api: &ApiState, request: &Parts, why: String) -> Refusal {
    let Some(ConnectInfo(peer)) = request.extensions.get::<ConnectInfo<SocketAddr>>() else {
        return Refusal::BadToken(why);
    };
    match api.failures.count(peer.ip(), Instant::now()) {
        Ok(()) => Refusal::BadToken(why),
        Err(wait) => {
            tracing::warn!(peer = %peer.ip(), "too many tokens that are not valid");
            Refusal::TooMany(wait.as_secs() + 1)
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, detail) = match &self {
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "no token; send the header Authorization: Bearer lsh_… (longshore token create makes one)".into(),
            ),
            Self::BadToken(why) => (StatusCode::UNAUTHORIZED, why.clone()),
            Self::TooMany(seconds) => (
                StatusCode::TOO_MANY_REQUESTS,
                format!("too many tokens that are not valid from this address; wait {seconds} s"),
            ),
            Self::Scope { has, needs } => {
                (StatusCode::FORBIDDEN, format!("this needs {needs} scope; the token has {has}"))
            }
            Self::Journal(err) => (StatusCode::SERVICE_UNAVAILABLE, err.to_string()),
        };
        let mut response = Problem::new(status, detail).into_response();
        let headers = response.headers_mut();
        match self {
            Self::NoToken => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"longshore\""));
            }
            Self::BadToken(_) => {
                let challenge = HeaderValue::from_static("Bearer realm=\"longshore\", error=\"invalid_token\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Self::Scope { .. } => {
                let challenge = HeaderValue::from_static("Bearer realm=\"longshore\", error=\"insufficient_scope\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Self::TooMany(seconds) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            Self::Journal(_) => {}
        }
        response
    }
}

/// Whether the query holds a token by its name or by its looks.
fn carries_token(uri: &Uri) -> bool {
    let named =
        |key: &str| ["token", "access_token", "api_token", "bearer"].iter().any(|n| key.eq_ignore_ascii_case(n));
    uri.query().unwrap_or_default().split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        named(key) || value.starts_with("lsh_")
    })
}

/// Our own command line says so; it is shown, never trusted.
fn trigger_of(headers: &HeaderMap) -> Trigger {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if agent.starts_with("longshore-cli/") { Trigger::Cli } else { Trigger::Api }
}

fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => shorten(&user.name, 64),
        _ => format!("uid {uid}"),
    }
}
