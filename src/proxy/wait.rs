//! What may end a wait early, for waits that follow one another. Nearly all waits end by themselves and long before, so
//! what is waited for besides stays registered from one wait to the next, and is asked only when it has called.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{AcqRel, SeqCst},
};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// What may end the waits of one task.
#[derive(Debug, Default)]
pub struct Waits {
    /// Their time-outs.
    pub timer: Timer,
    /// For all else.
    pub ear: Ear,
}

/// Deadlines, one after another. The first waited for is set, and set anew when it rings or a sooner one comes.
#[derive(Debug, Default)]
pub struct Timer(Option<Sparing<Sleep>>);

impl Timer {
    /// Ready from `deadline` on.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Sparing::new(sleep_until(deadline), cx));
        if sleep.future.deadline() > deadline {
            sleep.future.as_mut().reset(deadline);
            sleep.alarm.ring();
        }
        while sleep.poll(cx).is_ready() {
            if sleep.future.deadline() >= deadline {
                // Asked again, it says so again.
                sleep.alarm.ring();
                return Poll::Ready(());
            }
            sleep.future.as_mut().reset(deadline);
            sleep.alarm.ring();
        }
        Poll::Pending
    }
}

/// Rings for all signals that were made with it: whoever listens looks whether it was his. So one registration does for
/// whatever a task waits for, which is worth the needless looks as long as it rings seldom.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<Notify>);

/// Something that happens once.
#[derive(Debug)]
pub struct Signal {
    is_set: AtomicBool,
    bell: Bell,
}

impl Signal {
    /// One that is told by `bell`.
    pub fn new(bell: &Bell) -> Self {
        Self { is_set: AtomicBool::new(false), bell: bell.clone() }
    }

    /// It happens.
    pub fn set(&self) {
        self.mark();
        self.ring();
    }

    /// It happens, and nobody is told.
    pub fn mark(&self) {
        self.is_set.store(true, SeqCst);
    }

    /// Tells whoever listens.
    pub fn ring(&self) {
        self.bell.0.notify_waiters();
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        self.is_set.load(SeqCst)
    }

    /// Resolves when it has.
    pub async fn wait(&self) {
        let mut ear = Ear::default();
        poll_fn(|cx| ear.poll(cx, self)).await;
    }
}

/// Listens to a bell.
#[derive(Debug, Default)]
pub struct Ear(Option<(Bell, Sparing<OwnedNotified>)>);

impl Ear {
    /// Ready once `signal` is set. What it listens to changes only with the signal's bell.
    pub fn poll(&mut self, cx: &mut Context<'_>, signal: &Signal) -> Poll<()> {
        loop {
            self.0.take_if(|(bell, _)| !Arc::ptr_eq(&bell.0, &signal.bell.0));
            let listening = || (signal.bell.clone(), Sparing::new(Arc::clone(&signal.bell.0).notified_owned(), cx));
            let has_rung = self.0.get_or_insert_with(listening).1.poll(cx).is_ready();
            if has_rung {
                self.0 = None;
            }
            // It was listened for before it is looked at, so that nothing falls between.
            if signal.is_set() {
                return Poll::Ready(());
            }
            if !has_rung {
                return Poll::Pending;
            }
        }
    }
}

/// Runs until `token` is cancelled: `None` then. Pinned by its owner, the future is not there twice.
pub async fn unless_cancelled<F: Future>(token: &CancellationToken, mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut cancelled = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let is_cancelled = || Sparing::new(token.clone().cancelled_owned(), cx);
        cancelled.get_or_insert_with(is_cancelled).poll(cx).map(|()| None)
    })
    .await
}

/// A future that is polled only when it has asked for that, or another task waits for it: an answer may bring its task back
/// a dozen times meanwhile.
#[derive(Debug)]
struct Sparing<F> {
    future: Pin<Box<F>>,
    alarm: Arc<Alarm>,
}

#[derive(Debug)]
struct Alarm {
    has_rung: AtomicBool,
    task: Waker,
}

impl<F: Future> Sparing<F> {
    fn new(future: F, cx: &Context<'_>) -> Self {
        Self { future: Box::pin(future), alarm: Alarm::new(cx) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.alarm.task.will_wake(cx.waker()) {
            self.alarm = Alarm::new(cx);
        }
        if !self.alarm.has_rung.load(SeqCst) || !self.alarm.has_rung.swap(false, AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.alarm));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Alarm {
    /// It has rung, as nobody has asked yet.
    fn new(cx: &Context<'_>) -> Arc<Self> {
        Arc::new(Self { has_rung: AtomicBool::new(true), task: cx.waker().clone() })
    }

    fn ring(&self) {
        self.has_rung.store(true, SeqCst);
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_deadline_is_kept_whether_it_is_later_or_sooner_than_the_one_before() {
        let mut timer = Timer::default();
        for (patience, waited) in [(50, 10), (50, 10), (50, 50), (200, 200), (60_000, 5), (20, 20), (100, 100)] {
            let [patience, waited] = [patience, waited].map(Duration::from_millis);
            let begin = Instant::now();
            let has_rung = tokio::select! {
                biased;
                () = tokio::time::sleep(waited), if waited < patience => false,
                () = poll_fn(|cx| timer.poll(cx, begin + patience)) => true,
                () = tokio::time::sleep(Duration::from_secs(10)) => panic!("{patience:?} have not rung"),
            };
            assert_eq!(has_rung, waited == patience);
            assert!(begin.elapsed() >= waited);
        }
    }

    #[tokio::test]
    async fn a_deadline_that_is_over_is_over_for_whoever_asks_again() {
        let mut timer = Timer::default();
        let begin = Instant::now();
        poll_fn(|cx| timer.poll(cx, begin)).await;
        poll_fn(|cx| timer.poll(cx, begin)).await;
        // A task of its own, with a waker of its own.
        tokio::spawn(async move { poll_fn(|cx| timer.poll(cx, begin + Duration::from_millis(20))).await })
            .await
            .unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_own_signal_alone_and_all_that_follow_do_too() {
        let bell = Bell::default();
        let signals: Arc<[Signal]> = (0..50).map(|_| Signal::new(&bell)).collect();
        let mut ear = Ear::default();
        let setting = tokio::spawn({
            let signals = Arc::clone(&signals);
            async move {
                for signal in &signals[1..] {
                    signal.set();
                    tokio::task::yield_now().await;
                }
            }
        });
        for signal in &signals[1..] {
            poll_fn(|cx| ear.poll(cx, signal)).await;
            assert!(signal.is_set());
        }
        setting.await.unwrap();
        assert!(ear.poll(&mut Context::from_waker(Waker::noop()), &signals[0]).is_pending(), "it was not set");
        let last = Arc::clone(&signals);
        let later = tokio::spawn(async move { poll_fn(|cx| ear.poll(cx, &last[0])).await });
        tokio::task::yield_now().await;
        assert!(!later.is_finished());
        signals[0].set();
        later.await.unwrap();
        signals[0].wait().await;
    }

    /// The one that sets runs at any moment of the one that listens.
    #[test]
    fn no_signal_is_missed() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let bell = Bell::default();
        let mut ear = Ear::default();
        for round in 0..2_000_u32 {
            let signals: Arc<[Signal]> = (0..3).map(|_| Signal::new(&bell)).collect();
            let setting = Arc::clone(&signals);
            let setter = std::thread::spawn(move || {
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                setting.iter().for_each(Signal::set);
            });
            let heard = async {
                for signal in signals.iter().rev() {
                    poll_fn(|cx| ear.poll(cx, signal)).await;
                }
            };
            runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(10), heard).await })
                .expect("it is heard");
            setter.join().unwrap();
        }
    }
}
