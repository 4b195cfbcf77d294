//! `POST /api/v1/backup`

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;

use super::ApiState;
use super::body::Fields;
use super::problem::Problem;

/// The journal as it is now, whole: it is copied before the first byte leaves.
pub(super) async fn create(State(api): State<ApiState>, fields: Fields) -> Result<Response, Problem> {
    fields.only(&[])?;
    let copy = api.agent.store.backup().await?;
    let unreadable = |err| Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("the copy cannot be read: {err}"));
    let length = copy.metadata().map_err(unreadable)?.len();
    let headers = [
        (header::CONTENT_TYPE, "application/vnd.sqlite3".to_owned()),
        // By it a reader knows that it has got everything.
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(copy)))).into_response())
}
