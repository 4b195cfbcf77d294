//! Errors on the wire: RFC 9457 `application/problem+json`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// What went wrong with a request, for the person who sent it.
///
/// Further headers are put in front: `([(header::ALLOW, "POST")], problem).into_response()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The answer's status.
    #[serde(serialize_with = "status_number")]
    pub status: StatusCode,
    /// The status in words (RFC 9457 section 4.2.1); the same for every problem of one status.
    pub title: &'static str,
    /// What is wrong, with the value, and how to mend it. Never a secret.
    pub detail: String,
    /// The field, header or parameter that is to blame, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Finds the request in the agent's log. Also sent as `X-Request-Id`; `None` leaves it to that header alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem with a request id of its own.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status, title, detail: detail.into(), field: None, request_id: Some(new_request_id()) }
    }

    /// Names what is to blame.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Keeps the request id out of the body, so that two such answers are equal byte for byte.
    pub fn uniform(mut self) -> Self {
        self.request_id = None;
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let id = self.request_id.clone().unwrap_or_else(new_request_id);
        if self.status.is_server_error() {
            tracing::error!(request_id = %id, status = self.status.as_u16(), detail = %self.detail, "request failed");
        } else {
            tracing::info!(request_id = %id, status = self.status.as_u16(), detail = %self.detail, "request refused");
        }
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert("x-request-id", id);
        }
        response
    }
}

/// 16 random hexadecimal digits.
pub fn new_request_id() -> String {
    let mut bytes = [0; 8];
    // Without randomness the id is all zeros, which harms nobody: it only finds a line in the log.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}

// The signature is serde's.
fn status_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_what_and_where_as_problem_json() {
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "after has 39 digits").field("after");
        let id = problem.request_id.clone().unwrap();
        let response = problem.into_response();
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["x-request-id"], id.as_str());
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "status": 422, "title": "Unprocessable Entity", "detail": "after has 39 digits", "field": "after",
                "request_id": id,
            })
        );
        assert_eq!(id.len(), 16);
    }
}
