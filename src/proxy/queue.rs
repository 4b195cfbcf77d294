//! Requests that wait until an instance has room for them: because each has as many as it may, or none runs yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// How many requests an instance is given at a time, and how many more may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLimits {
    /// Under way at one instance, streams not counted; `None` = without a limit.
    pub max_requests: Option<u64>,
    /// Waiting at the route, all together. 0 = what finds no room is turned away at once.
    pub queue: usize,
    /// The longest that one waits.
    pub queue_wait: Duration,
}

impl Default for RouteLimits {
    fn default() -> Self {
        Self { max_requests: None, queue: 0, queue_wait: Duration::from_secs(10) }
    }
}

impl RouteLimits {
    /// Whether an instance with so many under way may be given one more.
    pub fn leave_room(&self, requests: u64) -> bool {
        self.max_requests.is_none_or(|most| requests < most)
    }
}

/// Where the requests of a service wait. It outlives tables: those who wait for the first instance hear of it.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    room: Notify,
}

impl Queue {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// A place at the end; `None` when `most` are waiting already.
    pub fn enter(self: &Arc<Self>, most: usize) -> Option<Place> {
        let entered = self.waiting.fetch_update(SeqCst, SeqCst, |waiting| (waiting < most).then_some(waiting + 1));
        entered.is_ok().then(|| Place { queue: Arc::clone(self) })
    }

    /// A request has ended: the first who waits may try.
    pub fn make_room(&self) {
        self.room.notify_one();
    }

    /// There are other instances: all who wait may try.
    pub fn look_again(&self) {
        self.room.notify_waiters();
    }
}

/// A place in a queue, given up when dropped.
#[derive(Debug)]
pub struct Place {
    queue: Arc<Queue>,
}

impl Place {
    /// Tries whenever there may be room, in the order of coming; gives up with the last reason when it is time.
    pub async fn wait<T, E>(&self, limits: RouteLimits, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        let end = tokio::time::Instant::now() + limits.queue_wait;
        loop {
            let mut room = std::pin::pin!(self.queue.room.notified());
            // From here on no room is missed that is made. What was made a moment before is left to those who came first,
            // if it is not enough for all.
            room.as_mut().enable();
            let passes_nobody = self.queue.waiting() == 1 || limits.max_requests.is_none();
            if passes_nobody && let Ok(done) = attempt() {
                return Ok(done);
            }
            let is_late = tokio::time::timeout_at(end, room).await.is_err();
            match attempt() {
                Err(why) if is_late => return Err(why),
                Err(_) => {}
                done => return done,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicI64;

    use super::*;

    const LIMITS: RouteLimits = RouteLimits { max_requests: Some(1), queue: 9, queue_wait: Duration::from_secs(60) };

    /// Takes one, if there is one.
    fn take(room: &AtomicI64) -> Result<(), ()> {
        room.fetch_update(SeqCst, SeqCst, |room| (room > 0).then_some(room - 1)).map(drop).map_err(drop)
    }

    #[tokio::test]
    async fn who_waits_is_let_in_in_the_order_of_coming() {
        let (queue, room, order) =
            (Arc::<Queue>::default(), Arc::<AtomicI64>::default(), Arc::<Mutex<Vec<u32>>>::default());
        let mut waiting = Vec::new();
        for number in 0..5 {
            let place = queue.enter(5).unwrap();
            let (room, order) = (Arc::clone(&room), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                place.wait(LIMITS, || take(&room)).await.unwrap();
                order.lock().unwrap().push(number);
            }));
            tokio::task::yield_now().await;
        }
        assert!(queue.enter(5).is_none(), "it is full");
        for _ in 0..5 {
            room.fetch_add(1, SeqCst);
            queue.make_room();
            tokio::task::yield_now().await;
        }
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test]
    async fn who_leaves_passes_the_room_on() {
        let (queue, room) = (Arc::<Queue>::default(), Arc::<AtomicI64>::default());
        let wait = || {
            let (place, room) = (queue.enter(9).unwrap(), Arc::clone(&room));
            tokio::spawn(async move { place.wait(LIMITS, || take(&room)).await })
        };
        let (first, second) = (wait(), wait());
        tokio::task::yield_now().await;
        room.fetch_add(1, SeqCst);
        queue.make_room();
        first.abort();
        second.await.unwrap().unwrap();
        assert!(first.await.is_err());
    }

    #[tokio::test]
    async fn nobody_waits_for_longer_than_the_limit() {
        let place = Arc::<Queue>::default().enter(1).unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(
            place
                .wait(RouteLimits { queue_wait: Duration::from_millis(100), ..LIMITS }, || Err::<(), _>("no room"))
                .await,
            Err("no room")
        );
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }
}
