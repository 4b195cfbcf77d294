//! An answer on its way to the client, and the line that is written when it has ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::{Method, StatusCode};

use super::super::body::{Answer, BrokenAnswer};
use super::{End, Visit};

/// An answer's body with the visit that it belongs to. Of the answer itself it changes nothing.
#[derive(Debug)]
pub struct Sending {
    answer: Answer,
    visit: Visit,
}

impl Sending {
    /// The answer to a request with this method.
    pub fn new(answer: Answer, visit: Visit, method: &Method, status: StatusCode) -> Self {
        let mut sending = Self { answer, visit };
        // Nobody asks for the body of such an answer (RFC 9110 §6.4.1), so nobody learns that it ended.
        let is_bodiless = method == Method::HEAD || matches!(status.as_u16(), 101 | 204 | 304);
        if is_bodiless || sending.answer.is_end_stream() {
            sending.visit.ends(End::Complete);
        }
        sending
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        let Self { answer, visit } = self.get_mut();
        let polled = Pin::new(&mut *answer).poll_frame(cx);
        if visit.0.is_none() {
            return polled;
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(open)) = (frame.data_ref(), &visit.0) {
                    open.bytes.add_sent(data.len());
                }
                if answer.is_end_stream() {
                    visit.ends(End::Complete);
                }
            }
            Poll::Ready(None) => visit.ends(End::Complete),
            Poll::Ready(Some(Err(BrokenAnswer::Upstream(_)))) => visit.ends(End::InstanceBroke),
            Poll::Ready(Some(Err(BrokenAnswer::DrainLimit))) => visit.ends(End::TimeOver),
            Poll::Ready(Some(Err(BrokenAnswer::File(_)))) => visit.ends(End::Broken),
            // The client is the one who left.
            Poll::Ready(Some(Err(BrokenAnswer::NotTaken))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
