//! `GET /api/v1/instances/{id}/logs`

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use std::convert::Infallible;

use super::params::Params;
use super::problem::Problem;
use super::serve::Closing;
use super::{ApiState, sse};
use crate::model::InstanceId;

/// A line without an end is cut here.
const LONGEST_LINE: usize = 16 * 1024;
/// Lines that come first, unless the caller says how many.
const LINES: u64 = 100;
const MOST_LINES: u64 = 10_000;

pub(super) async fn logs(
    State(api): State<ApiState>,
    Path(id): Path<String>,
    closing: Closing,
    uri: Uri,
) -> Result<Response, Problem> {
    let params = Params::of(&uri, &["follow", "tail"])?;
    let follow = params.switch("follow")?;
    let tail = params.number("tail", 0..=MOST_LINES)?.unwrap_or(LINES);
    let no_such = |why: String| Problem::new(StatusCode::NOT_FOUND, why).field("id");
    let id = InstanceId::parse(&id).map_err(|err| no_such(err.to_string()))?;
    let output = api.agent.instance_logs(&id, tail as u32, follow).await?;
    let output = output.ok_or_else(|| no_such(format!("there is no instance {id}")))?;
    if follow {
        return Ok(sse::respond(lines(output).map(|line| sse::text_event(&line)), closing));
    }
    let body = Body::from_stream(output.map(Ok::<Bytes, Infallible>));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// Output cut into lines, without their ends.
fn lines(output: BoxStream<'static, Bytes>) -> impl Stream<Item = String> + Send {
    stream::unfold((output, BytesMut::new(), false), |(mut output, mut buffer, mut ended)| async move {
        loop {
            let newline = buffer.iter().position(|byte| *byte == b'\n').filter(|at| *at <= LONGEST_LINE);
            let line = match newline {
                Some(at) => Some(buffer.split_to(at + 1)),
                None if buffer.len() > LONGEST_LINE => Some(buffer.split_to(LONGEST_LINE)),
                None if ended && !buffer.is_empty() => Some(buffer.split()),
                None => None,
            };
            if let Some(line) = line {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                return Some((text, (output, buffer, ended)));
            }
            if ended {
                return None;
            }
            match output.next().await {
                Some(chunk) => buffer.extend_from_slice(&chunk),
                None => ended = true,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(chunks: Vec<Bytes>) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(lines(stream::iter(chunks).boxed()).collect())
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let cut = collect(vec![Bytes::from(vec![b'x'; LONGEST_LINE * 2 + 1])]);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, LONGEST_LINE, 1]);
    }

    proptest! {
        /// However the engine cuts its chunks, the lines are the same.
        #[test]
        fn lines_do_not_depend_on_chunks(text in "[a-c\n]{0,60}", cuts in prop::collection::vec(1usize..9, 0..40)) {
            let mut rest = text.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (chunk, tail) = rest.split_at(cut.min(rest.len()));
                chunks.push(Bytes::copy_from_slice(chunk));
                rest = tail;
            }
            chunks.push(Bytes::copy_from_slice(rest));
            prop_assert_eq!(collect(chunks), text.lines().collect::<Vec<_>>());
        }
    }
}
