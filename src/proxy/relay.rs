//! Bodies of answers on their way to a client, frame by frame and never buffered whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::AbortOnDropHandle;

use super::counts::Tally;
use super::files::FileBody;
use super::http1::{LinkError, Pipe};
use super::instance::Claim;
use super::pool::Link;
use super::upload::Progress;
use super::wait::Ear;

/// What goes back to a client.
#[derive(Debug)]
pub enum Answer {
    /// Of the proxy's own making; `None` once it is sent.
    Own(Option<Bytes>),
    /// From an instance.
    Relayed(Relay),
    /// A large static file.
    File(FileBody),
}

/// An instance's answer on its way. Holds the claim until its last frame is handed over, it breaks, or the client
/// goes away.
#[derive(Debug)]
pub struct Relay {
    source: Source,
    link: Option<Carrier>,
    claim: Option<Claim>,
    tally: Tally,
    /// The end of an event stream; any other answer ends with the requests of its instance.
    stream: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// For that.
    ear: Ear,
    /// What is still on its way to the instance.
    upload: Option<Arc<Progress>>,
    /// It has ended because the instance's time to finish is over.
    is_cut: bool,
}

/// Where an answer's body is read.
#[derive(Debug)]
pub enum Source {
    /// On its connection.
    Link,
    /// At hyper, which reads it there.
    Incoming(Incoming),
}

impl Source {
    fn poll_frame(
        &mut self,
        link: Option<&mut Carrier>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        match (self, link) {
            (Self::Link, Some(Carrier::Here(link))) => link.poll_frame(cx),
            (Self::Link, _) => Poll::Ready(None),
            (Self::Incoming(incoming), link) => {
                if let Some(Carrier::Here(link)) = link {
                    link.drive(cx);
                }
                Pin::new(incoming).poll_frame(cx).map_err(LinkError::Hyper)
            }
        }
    }

    fn is_at_end(&self, link: Option<&Carrier>) -> bool {
        match self {
            Self::Link => self.size_hint(link).exact() == Some(0),
            Self::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self, link: Option<&Carrier>) -> SizeHint {
        match (self, link) {
            (Self::Link, Some(Carrier::Here(link))) => link.left().map(SizeHint::with_exact).unwrap_or_default(),
            (Self::Link, _) => SizeHint::with_exact(0),
            (Self::Incoming(incoming), _) => incoming.size_hint(),
        }
    }
}

/// The connection that an answer comes over.
#[derive(Debug)]
pub enum Carrier {
    /// Moved by whoever reads the answer.
    Here(Box<Link>),
    /// Moves by itself, because an upload is still under way. It ends with the answer, unless that is whole.
    ByItself(AbortOnDropHandle<()>),
}

impl Relay {
    /// An answer whose body is still to come (or empty).
    pub fn new(
        source: Source,
        link: Carrier,
        claim: Claim,
        tally: Tally,
        is_stream: bool,
        upload: Option<Arc<Progress>>,
    ) -> Self {
        let (claim, stream) = match is_stream {
            true => {
                let (claim, token) = claim.into_stream();
                (claim, Some(Box::pin(token.cancelled_owned())))
            }
            false => (claim, None),
        };
        let mut relay = Self {
            source,
            link: Some(link),
            claim: Some(claim),
            tally,
            stream,
            ear: Ear::default(),
            upload,
            is_cut: false,
        };
        if relay.source.is_at_end(relay.link.as_ref()) {
            relay.complete();
        }
        relay
    }

    fn complete(&mut self) {
        self.tally.served();
        // The rest of it may still be wanted.
        self.upload = None;
        let claim = self.claim.take();
        match self.link.take() {
            Some(Carrier::Here(link)) => {
                if let Some(claim) = claim {
                    claim.instance().pool.put(link);
                }
            }
            Some(Carrier::ByItself(upload)) => drop(upload.detach()),
            None => {}
        }
    }

    fn fail(&mut self) {
        self.tally.failed();
        self.claim = None;
        self.link = None;
    }

    /// Whether the limit of a drain has come. To be asked only when there is something to wait for: most answers never need it.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(claim) = &self.claim else { return Poll::Pending };
        match &mut self.stream {
            Some(is_cut) => is_cut.as_mut().poll(cx),
            None => self.ear.poll(cx, claim.instance().requests_cut()),
        }
    }

    /// Whether the limit has come, be there more of it or not. What a lost instance has said is passed on to its end.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(claim) = &self.claim else { return false };
        let is_cut = match &mut self.stream {
            Some(is_cut) => is_cut.as_mut().poll(cx).is_ready(),
            None => claim.instance().requests_cut().is_set(),
        };
        is_cut && !claim.instance().is_lost()
    }

    /// Ready once it has ended because the limit has come while its client was waited for; how it has.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<BrokenAnswer>> {
        if self.poll_cut(cx).is_ready() && self.is_over(cx) {
            return Poll::Ready(self.cut_off());
        }
        Poll::Pending
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        if self.is_over(cx) {
            return Poll::Ready(self.cut_off().map(Err));
        }
        let polled = self.source.poll_frame(self.link.as_mut(), cx);
        self.note(cx, polled)
    }

    fn is_worth_a_pipe(&self) -> bool {
        matches!((&self.source, &self.link), (Source::Link, Some(Carrier::Here(link))) if link.is_worth_a_pipe())
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, BrokenAnswer>>> {
        if self.is_over(cx) {
            return Poll::Ready(self.cut_off().map(Err));
        }
        let Some(Carrier::Here(link)) = &mut self.link else { return Poll::Ready(None) };
        match link.poll_pipe(cx, pipe) {
            // It is not handed over yet.
            Poll::Ready(Some(Ok(bytes))) => Poll::Ready(Some(Ok(bytes))),
            polled => self.note(cx, polled),
        }
    }

    fn note_piped(&mut self) {
        if self.source.is_at_end(self.link.as_ref()) {
            self.complete();
        }
    }

    /// What has come, or not, of its body.
    fn note<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<Option<Result<T, LinkError>>>,
    ) -> Poll<Option<Result<T, BrokenAnswer>>> {
        match polled {
            Poll::Ready(Some(Ok(piece))) => {
                if self.source.is_at_end(self.link.as_ref()) {
                    self.complete();
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Poll::Ready(None) if !self.is_whole() => {
                self.fail();
                Poll::Ready(Some(Err(BrokenAnswer::Upstream(LinkError::Malformed("it ends before its end")))))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            // The instance is not to blame for what its client did not send.
            Poll::Ready(Some(Err(_))) if self.upload.as_ref().is_some_and(|upload| upload.is_broken()) => {
                self.claim = None;
                self.link = None;
                Poll::Ready(Some(Err(BrokenAnswer::ClientBroke)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail();
                Poll::Ready(Some(Err(BrokenAnswer::Upstream(error))))
            }
            Poll::Pending => match self.poll_cut(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => Poll::Ready(self.cut_off().map(Err)),
            },
        }
    }

    /// Whether the end that hyper sees is the answer's: it takes a stream that was reset without an error for one that has ended.
    fn is_whole(&self) -> bool {
        match (&self.source, &self.link) {
            (Source::Incoming(incoming), Some(Carrier::Here(link))) if link.moves_by_itself() => {
                incoming.is_end_stream()
            }
            _ => true,
        }
    }

    /// Ends it before its end. An event stream usually has none of its own: being closed is how it ends, and clients come back.
    fn cut_off(&mut self) -> Option<BrokenAnswer> {
        self.is_cut = true;
        if self.stream.is_none() {
            self.fail();
            return Some(BrokenAnswer::DrainLimit);
        }
        // One that has told its length must not look whole: what comes next to its client would be taken for the rest of it.
        let is_told = self.source.size_hint(self.link.as_ref()).exact().is_some();
        self.tally.served();
        self.claim = None;
        self.link = None;
        is_told.then_some(BrokenAnswer::DrainLimit)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Whoever broke off his answer has no use for the request either.
        if let Some(upload) = &self.upload {
            upload.give_up();
        }
    }
}

/// Why an answer ends before it is complete; the client's connection is closed, so that it can tell.
#[derive(Debug, thiserror::Error)]
pub enum BrokenAnswer {
    /// The instance broke off.
    #[error("the instance broke off its answer: {0}")]
    Upstream(LinkError),
    /// The instance left, and its budget for requests is over.
    #[error("the instance's time to finish is over")]
    DrainLimit,
    /// The client left, or erred, in the middle of its request.
    #[error("the request was broken off")]
    ClientBroke,
    /// The client took nothing of it for too long.
    #[error("the client takes nothing of it")]
    NotTaken,
    /// A static file could not be read to its end.
    #[error("the file cannot be read: {0}")]
    File(std::io::Error),
}

impl Answer {
    /// Whether what comes next is better moved through a pipe than read.
    pub fn is_worth_a_pipe(&self) -> bool {
        matches!(self, Self::Relayed(relay) if relay.is_worth_a_pipe())
    }

    /// Moves it there; how many bytes that were, 0 when it is to be read after all. When the client has them,
    /// [`Self::note_piped`] is to be told.
    pub fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, BrokenAnswer>>> {
        match self {
            Self::Relayed(relay) => relay.poll_pipe(cx, pipe),
            Self::Own(_) | Self::File(_) => Poll::Ready(None),
        }
    }

    /// To be asked while its client is waited for: ready once it has ended, with the time that its instance had. Its client must
    /// learn that it is not whole, if it says why.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<BrokenAnswer>> {
        match self {
            Self::Relayed(relay) => relay.poll_over(cx),
            Self::Own(_) | Self::File(_) => Poll::Pending,
        }
    }

    /// Whether it has ended before its end, with the time that its instance had.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Relayed(relay) if relay.is_cut)
    }

    /// What was moved into a pipe has left it.
    pub fn note_piped(&mut self) {
        if let Self::Relayed(relay) = self {
            relay.note_piped();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        match self.get_mut() {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Relayed(relay) => relay.poll_frame(cx),
            Self::File(file) => {
                file.poll_piece(cx).map(|piece| Some(piece?.map(Frame::data).map_err(BrokenAnswer::File)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.as_ref().is_none_or(Bytes::is_empty),
            // Its claim goes with its last frame.
            Self::Relayed(relay) => relay.claim.is_none(),
            Self::File(file) => file.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Relayed(relay) => relay.source.size_hint(relay.link.as_ref()),
            Self::File(file) => SizeHint::with_exact(file.left()),
        }
    }
}
