//! Server-sent events: kept alive, resumable where events have an id, and ended with the agent.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde::Serialize;

use super::last_word::until_the_agent_ends;
use super::serve::Closing;

/// Below the idle limits of the usual reverse proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// nginx would collect the stream otherwise.
const NO_BUFFERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// The last event of a stream that would go on: the agent ends.
pub const SHUTDOWN: &str = "shutdown";
const SHUTDOWN_WORDS: &str = "the agent ends; what is under way goes on when it is back";

/// A stream as the answer. It ends when the agent does, and says so: an open stream must not hold up the shutdown.
pub(super) fn respond(events: impl Stream<Item = Event> + Send + 'static, closing: Closing) -> Response {
    let last = Event::default().event(SHUTDOWN).data(SHUTDOWN_WORDS);
    let events = until_the_agent_ends(events, closing.0, last).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    ([NO_BUFFERING], Sse::new(events).keep_alive(keep_alive)).into_response()
}

/// Where a client that reconnects wants to go on.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// One line of text. A client drops events without data, so an empty line is sent as a blank.
pub(super) fn text_event(line: &str) -> Event {
    Event::default().data(if line.is_empty() { " " } else { line })
}

/// A named event with JSON.
pub(super) fn json_event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    match serde_json::to_string(data) {
        Ok(json) => event.data(json),
        Err(err) => Event::default().event("error").data(err.to_string()),
    }
}
