//! What every answer has: a request id, the agent's name, and problem bodies for whatever goes wrong.

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::runtime::RuntimeError;
use crate::store::StoreError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `Server: longshore/0.1.0`, by which a client of another version knows.
const SERVER: &str = concat!("longshore/", env!("CARGO_PKG_VERSION"));
/// The framework's own refusals are one short line.
const PLAIN_LIMIT: usize = 4096;

/// The outermost layer.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    let id = request_id();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        response = with_problem(response, &id).await;
    }
    if response.status().is_server_error() {
        tracing::warn!(request_id = %id, %method, path, status = response.status().as_u16(), "a request failed");
    }
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static(SERVER));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// 64 random bits; without randomness an id that says nothing rather than no answer.
fn request_id() -> String {
    let mut random = [0u8; 8];
    match getrandom::fill(&mut random) {
        Ok(()) => hex::encode(random),
        Err(_) => "unknown".into(),
    }
}

/// The same answer as a problem document with the request id; the framework's plain refusals become its detail.
async fn with_problem(response: Response, id: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    let mut problem = match parts.extensions.remove::<Problem>() {
        Some(problem) => problem,
        None => {
            let text = to_bytes(body, PLAIN_LIMIT).await.unwrap_or_default();
            Problem::new(parts.status, String::from_utf8_lossy(&text))
        }
    };
    problem.request_id = Some(id.to_owned());
    let mut answer = problem.into_response();
    *answer.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            answer.headers_mut().append(name, value.clone());
        }
    }
    answer
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
