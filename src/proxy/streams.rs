//! The streams of one HTTP/2 connection: whether it has any, and which of them its client takes nothing of.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::access_log::Sending;
use super::instance::lock;
use super::relay::BrokenAnswer;

/// The streams of a connection: each that is open holds a handle of it.
#[derive(Debug, Default)]
pub struct Streams {
    begun: AtomicU64,
    /// Those of them whose answer has more than one frame.
    long: Mutex<HashMap<u64, Arc<Mutex<Half>>>>,
}

/// An answer of which there is more to come.
#[derive(Debug)]
struct Half {
    /// Gone when the client took nothing of it for too long: nobody asks for the next frame then, so nobody can be told.
    answer: Option<Sending>,
    /// When the client was given a frame, if it is its turn since then.
    given_at: Option<Instant>,
}

impl Streams {
    /// A request has come; which one it is of this connection.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Relaxed)
    }

    /// Lets go of the answers that the client has taken nothing of for so long, and so of the instances that gave them.
    /// HTTP/2 has a window for each stream (RFC 9113 §5.2), so the connection itself may be as lively as ever.
    pub fn give_up(&self, limit: Duration) {
        let halves: Vec<_> = lock(&self.long).values().cloned().collect();
        for half in halves {
            let mut half = lock(&half);
            if half.given_at.is_some_and(|at| at.elapsed() >= limit) {
                half.answer = None;
            }
        }
    }
}

/// Whether a connection has been of no use from one look to the next.
#[derive(Debug, Default)]
pub struct Idleness {
    begun_before: u64,
}

impl Idleness {
    /// One look.
    pub fn look(&mut self, streams: &Arc<Streams>) -> bool {
        let begun = streams.begun.load(Relaxed);
        let none_began = std::mem::replace(&mut self.begun_before, begun) == begun;
        none_began && Arc::strong_count(streams) == 1
    }
}

/// An answer that keeps its connection from being taken for an idle one.
pub struct StreamAnswer {
    number: u64,
    half: Arc<Mutex<Half>>,
    is_listed: bool,
    streams: Arc<Streams>,
}

impl StreamAnswer {
    /// The answer to the request with this number.
    pub fn new(answer: Sending, number: u64, streams: Arc<Streams>) -> Self {
        let half = Arc::new(Mutex::new(Half { answer: Some(answer), given_at: None }));
        Self { number, half, is_listed: false, streams }
    }
}

impl Body for StreamAnswer {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        let mut half = lock(&self.half);
        let Some(answer) = &mut half.answer else { return Poll::Ready(Some(Err(BrokenAnswer::NotTaken))) };
        let polled = Pin::new(&mut *answer).poll_frame(cx);
        let goes_on = matches!(&polled, Poll::Ready(Some(Ok(_)))) && !answer.is_end_stream();
        half.given_at = goes_on.then(Instant::now);
        drop(half);
        if goes_on && !self.is_listed {
            self.is_listed = true;
            lock(&self.streams.long).insert(self.number, Arc::clone(&self.half));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.half).answer.as_ref().is_some_and(Sending::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.half).answer.as_ref().map(Sending::size_hint).unwrap_or_default()
    }
}

impl Drop for StreamAnswer {
    fn drop(&mut self) {
        if self.is_listed {
            lock(&self.streams.long).remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_idles_when_nothing_began_and_nothing_is_open() {
        let (streams, mut idleness) = (Arc::new(Streams::default()), Idleness::default());
        streams.begin();
        assert!(!idleness.look(&streams), "one began and ended since");
        let open = Arc::clone(&streams);
        assert!(!idleness.look(&streams), "one is open");
        drop(open);
        assert!(idleness.look(&streams));
    }
}
