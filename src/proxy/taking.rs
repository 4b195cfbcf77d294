//! An answer in hyper's hands, which is watched while hyper waits for the client to take more of it: hyper asks for nothing
//! then, so nobody would learn that the time of its instance is over, nor that its client takes nothing at all.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::access_log::Sending;
use super::instance::lock;
use super::relay::BrokenAnswer;
use super::wait::Timer;

/// How a client takes its answers, one after another. For the task in which hyper writes them: whatever hyper does comes
/// before its next look, so the two need not wake each other.
#[derive(Debug, Clone, Default)]
pub struct Taking(Arc<Mutex<Given>>);

#[derive(Debug, Default)]
struct Given {
    /// What is under way.
    answer: Option<Sending>,
    /// When hyper was given its head or a frame, if hyper has not asked for more since then.
    at: Option<Instant>,
    /// What hyper is to be told when it asks again, once the answer was let go of.
    end: Option<BrokenAnswer>,
}

impl Taking {
    /// The next answer, for hyper.
    pub fn give(&self, answer: Sending) -> GivenAnswer {
        *lock(&self.0) = Given { answer: Some(answer), at: Some(Instant::now()), end: None };
        GivenAnswer(self.clone())
    }

    /// Resolves once an answer was let go of before its end, and its instance so of the request: the instance's time is over,
    /// or hyper could not get rid of a frame for as long as `patience`. hyper learns of it when it asks for the next one.
    pub async fn is_over(&self, patience: Option<Duration>) {
        let mut timer = Timer::default();
        poll_fn(|cx| {
            let mut given = lock(&self.0);
            let (Some(at), Some(answer)) = (given.at, &mut given.answer) else { return Poll::Pending };
            let end = match (answer.poll_over(cx), patience) {
                (Poll::Ready(end), _) => end,
                (Poll::Pending, Some(patience)) if timer.poll(cx, at + patience).is_ready() => {
                    Some(BrokenAnswer::NotTaken)
                }
                (Poll::Pending, _) => return Poll::Pending,
            };
            *given = Given { end, ..Given::default() };
            Poll::Ready(())
        })
        .await;
    }
}

/// An answer that hyper writes.
#[derive(Debug)]
pub struct GivenAnswer(Taking);

impl Body for GivenAnswer {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        let mut given = lock(&self.0.0);
        let Some(answer) = &mut given.answer else { return Poll::Ready(given.end.take().map(Err)) };
        let polled = Pin::new(answer).poll_frame(cx);
        given.at = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let given = lock(&self.0.0);
        given.answer.as_ref().map_or(given.end.is_none(), Sending::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0.0).answer.as_ref().map(Sending::size_hint).unwrap_or_default()
    }
}

impl Drop for GivenAnswer {
    fn drop(&mut self) {
        *lock(&self.0.0) = Given::default();
    }
}
