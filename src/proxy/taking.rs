//! An answer in hyper's hands, which is watched while hyper waits for the client to take more of it: hyper asks for nothing
//! then, so nobody would learn that the time of its instance is over, nor that its client takes nothing at all. Also how one
//! breaks off: hyper would throw away what it has not sent yet, the head too.

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

/// So often others get their turn before hyper is told that an answer broke off: the connection, which sends what there is.
const TURNS: u8 = 2;

/// How a client takes its answers, one after another. For the task in which hyper writes them: whatever hyper does comes
/// before its next look, so the two need not wake each other.
#[derive(Debug, Clone)]
pub struct Taking {
    is_stream: bool,
    given: Arc<Mutex<Given>>,
}

#[derive(Debug, Default)]
struct Given {
    /// What is under way.
    answer: Option<Sending>,
    /// When hyper was given its head or a frame, if hyper has not asked for more since then.
    at: Option<Instant>,
    /// Only the end of the connection tells where it ends.
    ends_with_connection: bool,
    /// Why it ended before its end, once it was let go of.
    end: Option<BrokenAnswer>,
    /// The connection ends with it.
    last: Option<Last>,
    turns: u8,
}

/// What is still to be sent of an answer that broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// All there is.
    All,
    /// Nothing: its client is not waited for.
    Nothing,
}

/// How a connection ends with an answer that broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakOff {
    /// It is closed.
    Close,
    /// It is reset, as being closed would say that the answer is whole (RFC 9112 §8).
    Reset,
}

impl Taking {
    /// Of an HTTP/1.x connection, which is to end when [`Self::breaks_off`] says so.
    pub fn of_connection() -> Self {
        Self { is_stream: false, given: Arc::default() }
    }

    /// Of a stream in HTTP/2, which can be reset alone.
    pub fn of_stream() -> Self {
        Self { is_stream: true, given: Arc::default() }
    }

    /// The next answer, for hyper. Without a length, a client of HTTP/1.0 sees its end by the connection's alone.
    pub fn give(&self, answer: Sending, is_for_http10: bool) -> GivenAnswer {
        let ends_with_connection = is_for_http10 && answer.size_hint().exact().is_none();
        let (answer, at) = (Some(answer), Some(Instant::now()));
        *lock(&self.given) = Given { answer, at, ends_with_connection, ..Given::default() };
        GivenAnswer(self.clone())
    }

    /// Resolves once an answer was let go of before its end, and its instance so of the request: the instance's time is over,
    /// or hyper could not get rid of a frame for as long as `patience`. A stream is told when hyper asks for the next frame.
    pub async fn is_over(&self, patience: Option<Duration>) {
        let mut timer = Timer::default();
        poll_fn(|cx| {
            let mut given = lock(&self.given);
            let (Some(at), Some(answer)) = (given.at, &mut given.answer) else { return Poll::Pending };
            let end = match (answer.poll_over(cx), patience) {
                (Poll::Ready(end), _) => end,
                (Poll::Pending, Some(patience)) if timer.poll(cx, at + patience).is_ready() => {
                    Some(BrokenAnswer::NotTaken)
                }
                (Poll::Pending, _) => return Poll::Pending,
            };
            given.let_go(end);
            given.last = Some(Last::Nothing);
            Poll::Ready(())
        })
        .await;
    }

    /// Whether the connection is to end now, all that hyper had to send having been sent, or not.
    pub fn breaks_off(&self, is_sent: bool) -> Option<BreakOff> {
        let given = lock(&self.given);
        let is_due = given.last? == Last::Nothing || is_sent;
        let how = if given.ends_with_connection { BreakOff::Reset } else { BreakOff::Close };
        is_due.then_some(how)
    }
}

impl Given {
    fn let_go(&mut self, end: Option<BrokenAnswer>) {
        (self.answer, self.at, self.end) = (None, None, end);
    }

    /// Tells hyper that there is no more of it.
    fn poll_end(&mut self, cx: &mut Context<'_>, is_stream: bool) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        // A connection ends by whoever sends on it, when that is done.
        let is_told_later = self.end.is_some() && (self.turns > 0 || !is_stream);
        if is_told_later {
            if self.turns > 0 {
                self.turns -= 1;
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        Poll::Ready(self.end.take().map(Err))
    }
}

/// An answer that hyper writes.
#[derive(Debug)]
pub struct GivenAnswer(Taking);

impl Body for GivenAnswer {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        let mut given = lock(&self.0.given);
        if let Some(answer) = &mut given.answer {
            let polled = Pin::new(answer).poll_frame(cx);
            given.at = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
            let Poll::Ready(Some(Err(why))) = polled else { return polled };
            given.let_go(Some(why));
            (given.last, given.turns) = (Some(Last::All), TURNS);
        }
        given.poll_end(cx, self.0.is_stream)
    }

    fn is_end_stream(&self) -> bool {
        let given = lock(&self.0.given);
        given.answer.as_ref().map_or(given.end.is_none(), Sending::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0.given).answer.as_ref().map(Sending::size_hint).unwrap_or_default()
    }
}

impl Drop for GivenAnswer {
    fn drop(&mut self) {
        *lock(&self.0.given) = Given::default();
    }
}
