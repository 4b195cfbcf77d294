//! An answer on its way to the client, and the line that is written when it has ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::{Method, StatusCode};

use super::super::http1::Pipe;
use super::super::relay::{Answer, BrokenAnswer};
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

    /// Whether what comes next is better moved through a pipe than read.
    pub fn is_worth_a_pipe(&self) -> bool {
        self.answer.is_worth_a_pipe()
    }

    /// Moves it there: see [`Answer::poll_pipe`].
    pub fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, BrokenAnswer>>> {
        let polled = self.answer.poll_pipe(cx, pipe);
        if !matches!(polled, Poll::Ready(Some(Ok(_)))) {
            self.note(&polled, |&bytes| bytes);
        }
        polled
    }

    /// So many bytes have left the pipe: see [`Answer::note_piped`].
    pub fn note_piped(&mut self, bytes: usize) {
        self.answer.note_piped();
        self.note(&Poll::Ready(Some(Ok(bytes))), |&bytes| bytes);
    }

    /// See [`Answer::poll_over`].
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<BrokenAnswer>> {
        let over = self.answer.poll_over(cx);
        if over.is_ready() {
            self.visit.ends(End::TimeOver);
        }
        over
    }

    /// What has come, or not, of the answer's body.
    fn note<T>(&mut self, polled: &Poll<Option<Result<T, BrokenAnswer>>>, bytes: impl Fn(&T) -> usize) {
        let Self { answer, visit } = self;
        let Some(open) = &visit.0 else { return };
        match polled {
            Poll::Ready(Some(Ok(piece))) => {
                open.bytes.add_sent(bytes(piece));
                if answer.is_end_stream() {
                    visit.ends(End::Complete);
                }
            }
            Poll::Ready(None) => visit.ends(if answer.is_cut() { End::TimeOver } else { End::Complete }),
            Poll::Ready(Some(Err(BrokenAnswer::Upstream(_)))) => visit.ends(End::InstanceBroke),
            Poll::Ready(Some(Err(BrokenAnswer::DrainLimit))) => visit.ends(End::TimeOver),
            Poll::Ready(Some(Err(BrokenAnswer::File(_)))) => visit.ends(End::Broken),
            // The client is the one who left.
            Poll::Ready(Some(Err(BrokenAnswer::ClientBroke | BrokenAnswer::NotTaken))) | Poll::Pending => {}
        }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.answer).poll_frame(cx);
        this.note(&polled, |frame| frame.data_ref().map_or(0, Bytes::len));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
