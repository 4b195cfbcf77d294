//! What became of each request, per app, and how long its answer took to begin. Every request that found a route to instances
//! ends in exactly one of served, failed and client_aborted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::control::AppCounts;
use crate::histogram::{BUCKETS, Histogram, bucket_of};

/// A histogram that many may add to at once.
#[derive(Debug, Default)]
pub struct Latencies {
    counts: [AtomicU64; BUCKETS],
}

impl Latencies {
    /// Counts one more.
    pub fn add(&self, took: Duration) {
        self.counts[bucket_of(took)].fetch_add(1, Relaxed);
    }

    /// As it is now.
    pub fn read(&self) -> Histogram {
        Histogram::of(std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)))
    }
}

/// Totals of one app.
#[derive(Debug, Default)]
pub struct Counters {
    served: AtomicU64,
    failed: AtomicU64,
    nobody: AtomicU64,
    server_errors: AtomicU64,
    retried: AtomicU64,
    client_aborted: AtomicU64,
    files: AtomicU64,
    latency: Latencies,
}

impl Counters {
    /// The totals as they are now.
    pub fn read(&self) -> AppCounts {
        AppCounts {
            served: self.served.load(Relaxed),
            failed: self.failed.load(Relaxed),
            nobody: self.nobody.load(Relaxed),
            server_errors: self.server_errors.load(Relaxed),
            retried: self.retried.load(Relaxed),
            client_aborted: self.client_aborted.load(Relaxed),
            files: self.files.load(Relaxed),
            latency: self.latency.read(),
        }
    }

    /// A request that is answered with a static file, or with there being none.
    pub fn file(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    /// A request that no instance had room for.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// A request whose route has no instance.
    pub fn nobody(&self) {
        self.failed.fetch_add(1, Relaxed);
        self.nobody.fetch_add(1, Relaxed);
    }
}

/// One request, to be counted once. Dropped without a word it counts as left by its client: every other end is told.
#[derive(Debug)]
pub struct Tally(Option<Arc<Counters>>);

impl Tally {
    /// For a request of the app with these totals.
    pub fn new(counters: &Arc<Counters>) -> Self {
        Self(Some(Arc::clone(counters)))
    }

    /// An instance began its answer, so long after the request's head.
    pub fn answered(&self, took: Duration) {
        if let Some(counters) = &self.0 {
            counters.latency.add(took);
        }
    }

    /// An instance answered with a 5xx.
    pub fn server_error(&self) {
        self.add(|counters| &counters.server_errors);
    }

    /// The request is given to a second instance.
    pub fn retried(&self) {
        self.add(|counters| &counters.retried);
    }

    /// One complete answer of an instance went to the client.
    pub fn served(&mut self) {
        self.end(|counters| &counters.served);
    }

    /// It did not, and the client is not to blame.
    pub fn failed(&mut self) {
        self.end(|counters| &counters.failed);
    }

    /// Another one counts this request.
    pub fn forget(mut self) {
        self.0 = None;
    }

    fn add(&self, which: impl Fn(&Counters) -> &AtomicU64) {
        if let Some(counters) = &self.0 {
            which(counters).fetch_add(1, Relaxed);
        }
    }

    fn end(&mut self, which: impl Fn(&Counters) -> &AtomicU64) {
        self.add(which);
        self.0 = None;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.add(|counters| &counters.client_aborted);
    }
}
