//! What may end a wait early, for waits that follow one another on a connection. Each stays registered from one to the
//! next, as nearly all waits end by themselves and long before.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Deadlines, one after another. The first waited for is set, and set anew only when it rings.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready from `deadline` on.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// That what is under way at an instance is to end: always the same instance's.
#[derive(Debug, Default)]
pub struct Cut(Option<Pin<Box<WaitForCancellationFutureOwned>>>);

impl Cut {
    /// Ready once `cut` is cancelled.
    pub fn poll(&mut self, cx: &mut Context<'_>, cut: &CancellationToken) -> Poll<()> {
        self.0.get_or_insert_with(|| Box::pin(cut.clone().cancelled_owned())).as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;
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
    async fn a_cut_ends_the_wait_under_way_and_all_that_follow() {
        let token = CancellationToken::new();
        let mut cut = Cut::default();
        assert!(cut.poll(&mut Context::from_waker(Waker::noop()), &token).is_pending());
        let later = token.clone();
        let cutting = tokio::spawn(async move { later.cancel() });
        poll_fn(|cx| cut.poll(cx, &token)).await;
        cutting.await.unwrap();
        poll_fn(|cx| cut.poll(cx, &token)).await;
    }
}
