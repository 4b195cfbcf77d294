//! What every answer has: a request id, the agent's name, and problem bodies for whatever goes wrong.

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::{Problem, new_request_id};
use crate::runtime::RuntimeError;
use crate::store::StoreError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `Server: longshore/0.1.0`, by which a client of another version knows.
const SERVER: &str = concat!("longshore/", env!("CARGO_PKG_VERSION"));
/// The framework's own refusals are one short line.
const PLAIN_LIMIT: usize = 4096;

/// The outermost layer.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    let mut response = as_problem(next.run(request).await).await;
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static(SERVER));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&new_request_id())
    {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// The framework's own refusals (a body too long, a path that is no UTF-8) as problem documents.
async fn as_problem(response: Response) -> Response {
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    if !is_error || content_type.is_some_and(|value| value.as_bytes().ends_with(b"json")) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, PLAIN_LIMIT).await.unwrap_or_default();
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    (parts.headers, Problem::new(parts.status, String::from_utf8_lossy(&text))).into_response()
}

/// Answers paths that are not there.
pub(super) async fn not_found(uri: Uri) -> Problem {
    let path = crate::model::shorten(uri.path(), 200);
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}; see /api/v1/openapi.json"))
}

/// Answers methods that a path does not have; the router adds `Allow`.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let path = crate::model::shorten(uri.path(), 200);
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not answer {method}; see the Allow header"))
}

impl From<StoreError> for Problem {
    fn from(err: StoreError) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, err.to_string())
    }
}

impl From<RuntimeError> for Problem {
    fn from(err: RuntimeError) -> Self {
        let status = match &err {
            RuntimeError::ImageGone(_) => StatusCode::GONE,
            RuntimeError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            RuntimeError::Refused(_) => StatusCode::BAD_GATEWAY,
        };
        Problem::new(status, err.to_string())
    }
}
