//! The streams of one HTTP/2 connection: since when it has none.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::instance::lock;

/// The streams of a connection. One ends here when its answer is handed over to the connection, which is before its client
/// has it.
#[derive(Debug)]
pub struct Streams(Mutex<State>);

#[derive(Debug)]
struct State {
    open: usize,
    has_had_any: bool,
    /// Of the last change.
    at: Instant,
}

/// A connection without streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// Since when.
    pub since: Instant,
    /// What it has had may still be on its way.
    pub has_had_any: bool,
}

impl Streams {
    /// Of a connection that begins.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { open: 0, has_had_any: false, at: Instant::now() })))
    }

    /// A request has come.
    pub fn begin(self: &Arc<Self>) -> OpenStream {
        let mut state = lock(&self.0);
        *state = State { open: state.open + 1, has_had_any: true, at: Instant::now() };
        drop(state);
        OpenStream(Arc::clone(self))
    }

    /// `None` while there are any.
    pub fn idle(&self) -> Option<Idle> {
        let state = lock(&self.0);
        (state.open == 0).then_some(Idle { since: state.at, has_had_any: state.has_had_any })
    }
}

/// One that is open.
#[derive(Debug)]
pub struct OpenStream(Arc<Streams>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        state.open -= 1;
        state.at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_idles_from_its_beginning_or_the_end_of_the_last_stream() {
        let streams = Streams::new();
        let began = streams.idle().unwrap();
        assert!(!began.has_had_any);
        let (first, second) = (streams.begin(), streams.begin());
        assert_eq!(streams.idle(), None);
        drop(first);
        assert_eq!(streams.idle(), None);
        let before = Instant::now();
        drop(second);
        let idle = streams.idle().unwrap();
        assert!(idle.since >= before && before > began.since && idle.has_had_any);
        assert_eq!(streams.idle(), Some(idle));
    }
}
