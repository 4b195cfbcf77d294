//! `GET /api/v1/openapi.json`: written by hand, kept true by a test that compares it with the table of routes.

use axum::http::header;
use axum::response::IntoResponse;

/// OpenAPI 3.1.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}
