//! The streams of one HTTP/2 connection: whether it has any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The streams of a connection.
#[derive(Debug, Default)]
pub struct Streams {
    begun: AtomicU64,
    open: Arc<()>,
}

/// An open stream.
#[derive(Debug)]
pub struct OpenStream {
    _counted: Arc<()>,
}

impl Streams {
    /// A request has come.
    pub fn begin(&self) -> OpenStream {
        self.begun.fetch_add(1, Relaxed);
        OpenStream { _counted: Arc::clone(&self.open) }
    }
}

/// Whether a connection has been of no use from one look to the next.
#[derive(Debug, Default)]
pub struct Idleness {
    begun_before: u64,
}

impl Idleness {
    /// One look.
    pub fn look(&mut self, streams: &Streams) -> bool {
        let begun = streams.begun.load(Relaxed);
        let none_began = std::mem::replace(&mut self.begun_before, begun) == begun;
        none_began && Arc::strong_count(&streams.open) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_idles_when_nothing_began_and_nothing_is_open() {
        let (streams, mut idleness) = (Streams::default(), Idleness::default());
        let open = streams.begin();
        assert!(!idleness.look(&streams), "one began since");
        assert!(!idleness.look(&streams), "one is open");
        drop(open);
        assert!(idleness.look(&streams));
        drop(streams.begin());
        assert!(!idleness.look(&streams), "one began and ended since");
    }
}
