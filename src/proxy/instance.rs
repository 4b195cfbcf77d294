//! An instance as the proxy knows it: its connections, what it has under way, and whether it failed lately.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::control::InstanceCounts;
use super::counts::Latencies;
use super::pool::Pool;
use super::queue::Queue;
use super::wait::{Bell, Signal};
use crate::model::InstanceId;

/// How long an instance that refused a connection is passed over while others remain.
const EJECTION: Duration = Duration::from_secs(1);
/// The agent hears of one instance's failures at most this often.
const FAILURE_REPORTS: Duration = Duration::from_secs(1);

/// Locks a mutex whose data stays sound even if a holder panicked: every critical section here is a few assignments.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One instance, from its first table until it has nothing under way after its last.
#[derive(Debug)]
pub struct Instance {
    /// Which.
    pub id: InstanceId,
    /// Its idle connections; no other instance's are ever mixed in, because addresses are reused.
    pub pool: Pool,
    /// Whether the newest table has it.
    routed: AtomicBool,
    requests: AtomicU64,
    streams: AtomicU64,
    server_errors: AtomicU64,
    latency: Latencies,
    /// To end open streams one by one; requests have one end for all.
    open_streams: Mutex<OpenStreams>,
    requests_cut: Signal,
    /// Its requests were cut because it cannot answer any more.
    lost: AtomicBool,
    /// Someone waits on `changed`.
    watched: AtomicBool,
    changed: Notify,
    /// Milliseconds since `born`.
    ejected_until: AtomicU64,
    /// Milliseconds since `born`, plus one; 0 = never.
    reported_at: AtomicU64,
    born: Instant,
}

#[derive(Debug, Default)]
struct OpenStreams {
    next: u64,
    cuts: HashMap<u64, CancellationToken>,
}

impl Instance {
    /// A member of a table; the end of its requests is told by `bell`.
    pub fn new(id: InstanceId, pool: Pool, bell: &Bell) -> Arc<Self> {
        Arc::new(Self {
            id,
            pool,
            routed: AtomicBool::new(true),
            requests: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            server_errors: AtomicU64::new(0),
            latency: Latencies::default(),
            open_streams: Mutex::default(),
            requests_cut: Signal::new(bell),
            lost: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            changed: Notify::new(),
            ejected_until: AtomicU64::new(0),
            reported_at: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    /// Requests and streams under way.
    pub fn load(&self) -> u64 {
        self.requests.load(SeqCst) + self.streams.load(SeqCst)
    }

    /// Requests under way, streams not counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    /// Open streams.
    pub fn streams(&self) -> u64 {
        self.streams.load(SeqCst)
    }

    /// It began an answer, with a 5xx status or another, so long after it was given the request.
    pub fn note_answer(&self, is_server_error: bool, took: Duration) {
        self.latency.add(took);
        if is_server_error {
            self.server_errors.fetch_add(1, Release);
        }
    }

    /// What it has answered.
    pub fn counts(&self) -> InstanceCounts {
        // In this order, so that there are never more errors than answers.
        let server_errors = self.server_errors.load(Acquire);
        let latency = self.latency.read();
        InstanceCounts { answered: latency.total(), server_errors, latency }
    }

    /// Whether the newest table has it.
    pub fn is_routed(&self) -> bool {
        self.routed.load(SeqCst)
    }

    /// It left the table or came back.
    pub fn set_routed(&self, routed: bool) {
        self.routed.store(routed, SeqCst);
        match routed {
            true => self.pool.open(),
            false => self.pool.close(),
        }
        self.changed.notify_waiters();
    }

    /// Resolves when `done` holds; asked again whenever a claim ends or the table changes.
    pub async fn until(&self, done: impl Fn(&Self) -> bool) {
        self.watched.store(true, SeqCst);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(self) {
                return;
            }
            changed.await;
        }
    }

    /// That the requests under way are to end.
    pub fn requests_cut(&self) -> &Signal {
        &self.requests_cut
    }

    /// Ends every request under way; answers how many there were.
    pub fn cut_requests(&self) -> u64 {
        self.requests_cut.mark();
        let under_way = self.requests();
        // One that is counted in later looks before it waits.
        if under_way > 0 {
            self.requests_cut.ring();
        }
        under_way
    }

    /// Nothing that it has under way will come to an end: to be said before that is cut.
    pub fn set_lost(&self) {
        self.lost.store(true, SeqCst);
    }

    /// Whether its requests were cut because it cannot answer any more, so that another one may be asked.
    pub fn is_lost(&self) -> bool {
        self.lost.load(SeqCst)
    }

    /// Open streams that were not told to end yet.
    pub fn uncut_streams(&self) -> usize {
        lock(&self.open_streams).cuts.len()
    }

    /// Ends up to `count` open streams; answers how many.
    pub fn cut_streams(&self, count: usize) -> u64 {
        let mut streams = lock(&self.open_streams);
        let chosen: Vec<u64> = streams.cuts.keys().copied().take(count).collect();
        let mut cut = 0;
        for key in chosen {
            if let Some(token) = streams.cuts.remove(&key) {
                token.cancel();
                cut += 1;
            }
        }
        cut
    }

    /// Whether it refused a connection a moment ago.
    pub fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Relaxed);
        until != 0 && self.age() < until
    }

    /// Notes a failure: the instance is passed over for a while. Answers whether it is time to tell the agent again.
    pub fn note_failure(&self) -> bool {
        let now = self.age();
        self.ejected_until.fetch_max(now + millis(EJECTION), Relaxed);
        let told = self.reported_at.load(Relaxed);
        let due = told == 0 || now >= told - 1 + millis(FAILURE_REPORTS);
        due && self.reported_at.compare_exchange(told, now + 1, Relaxed, Relaxed).is_ok()
    }

    /// Passed over until it is taken back, while others remain.
    pub fn pass_over(&self) {
        self.ejected_until.store(u64::MAX, Relaxed);
    }

    /// It takes connections again.
    pub fn take_back(&self) {
        self.ejected_until.store(0, Relaxed);
    }

    fn age(&self) -> u64 {
        millis(self.born.elapsed())
    }

    fn release(&self, counter: &AtomicU64) {
        counter.fetch_sub(1, SeqCst);
        if self.watched.load(SeqCst) {
            self.changed.notify_waiters();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A request counted in on an instance; counted out when dropped. Made only under the lock that swaps tables.
#[derive(Debug)]
pub struct Claim {
    instance: Arc<Instance>,
    /// The key among the open streams, once the request has become one.
    stream: Option<u64>,
    /// Who waits for its end.
    queue: Option<Arc<Queue>>,
}

impl Claim {
    /// Counts in. Its end makes room for the next one of the queue.
    pub fn new(instance: &Arc<Instance>, queue: Option<&Arc<Queue>>) -> Self {
        instance.requests.fetch_add(1, SeqCst);
        Self { instance: Arc::clone(instance), stream: None, queue: queue.cloned() }
    }

    /// On whom.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The request turned into an open stream, with a budget of its own. The token fires when it is to end.
    pub fn into_stream(mut self) -> (Self, CancellationToken) {
        let token = CancellationToken::new();
        let mut streams = lock(&self.instance.open_streams);
        streams.next += 1;
        let key = streams.next;
        streams.cuts.insert(key, token.clone());
        drop(streams);
        // Counted in before it is counted out: the sum must not pass through zero.
        self.instance.streams.fetch_add(1, SeqCst);
        self.end_request();
        self.stream = Some(key);
        (self, token)
    }

    fn end_request(&self) {
        self.instance.release(&self.instance.requests);
        if let Some(queue) = &self.queue {
            queue.make_room();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        match self.stream {
            None => self.end_request(),
            Some(key) => {
                lock(&self.instance.open_streams).cuts.remove(&key);
                self.instance.release(&self.instance.streams);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Arc<Instance> {
        Instance::new(InstanceId::parse("d1-web-1").unwrap(), Pool::new(([127, 0, 0, 1], 1).into()), &Bell::default())
    }

    #[test]
    fn a_claim_is_counted_once_whatever_it_becomes() {
        let instance = instance();
        let request = Claim::new(&instance, None);
        let (stream, token) = Claim::new(&instance, None).into_stream();
        assert_eq!((instance.requests(), instance.streams(), instance.load()), (1, 1, 2));
        assert_eq!(instance.cut_streams(5), 1);
        assert!(token.is_cancelled());
        assert_eq!(instance.cut_streams(5), 0, "a stream is cut once");
        drop((request, stream));
        assert_eq!(instance.load(), 0);
    }

    #[tokio::test]
    async fn waiting_sees_the_last_claim_end() {
        let instance = instance();
        let claims: Vec<Claim> = (0..50).map(|_| Claim::new(&instance, None)).collect();
        let idle = tokio::spawn({
            let instance = Arc::clone(&instance);
            async move { instance.until(|i| i.load() == 0).await }
        });
        for claim in claims {
            tokio::task::yield_now().await;
            assert!(!idle.is_finished());
            drop(claim);
        }
        tokio::time::timeout(Duration::from_secs(5), idle).await.unwrap().unwrap();
    }

    #[test]
    fn failures_are_told_once_a_second() {
        let instance = instance();
        assert!(!instance.is_ejected());
        assert!(instance.note_failure());
        assert!(!instance.note_failure());
        assert!(instance.is_ejected());
    }
}
