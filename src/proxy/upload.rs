//! Bodies of requests on their way to an instance, frame by frame and never buffered whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access_log::PassedBytes;
use crate::discard::discard;

/// What a request brings to an instance.
#[derive(Debug)]
pub enum Outgoing {
    /// No body.
    Empty,
    /// The client's body.
    Upload(ClientBody, Arc<Progress>),
}

/// A client's body. Whoever gives it up before its end need not mind the client: the rest is read and forgotten, so
/// that the client gets to the answer.
#[derive(Debug)]
pub struct ClientBody {
    /// `None` when there is none, or once it was given up.
    incoming: Option<Incoming>,
    /// It comes over HTTP/2.
    is_stream: bool,
    /// The client waits for a word before it sends (`Expect: 100-continue`). Asking for the body gives it.
    is_held_back: bool,
    /// So many more bytes may come.
    left: Option<u64>,
    /// Where its bytes are counted, if they are.
    passed: Option<Arc<PassedBytes>>,
}

/// Why a client's body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenUpload {
    /// It broke off, or is malformed.
    #[error(transparent)]
    Client(#[from] hyper::Error),
    /// Its stream was reset without an error, which is no end of it (RFC 9113 §8.1).
    #[error("the request's body has no end")]
    Unfinished,
    /// It has more bytes than it may.
    #[error("the request's body is larger than max_body_size")]
    TooLarge,
}

impl ClientBody {
    /// As it comes from the client's connection, if the request has one.
    pub fn new(
        incoming: Option<Incoming>,
        is_stream: bool,
        is_held_back: bool,
        most: Option<u64>,
        passed: Option<Arc<PassedBytes>>,
    ) -> Self {
        Self { incoming, is_stream, is_held_back, left: most, passed }
    }

    /// Its client is not to be heard out.
    fn forget(&mut self) {
        self.incoming = None;
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BrokenUpload;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        self.is_held_back = false;
        let polled = self.incoming.as_mut().map_or(Poll::Ready(None), |incoming| Pin::new(incoming).poll_frame(cx));
        if let (Some(passed), Poll::Ready(Some(Ok(frame)))) = (&self.passed, &polled) {
            passed.add_received(frame.data_ref().map_or(0, Bytes::len));
        }
        if let (Some(left), Poll::Ready(Some(Ok(frame)))) = (self.left, &polled) {
            match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
                None => return Poll::Ready(Some(Err(BrokenUpload::TooLarge))),
                left => self.left = left,
            }
        }
        match polled {
            // hyper takes such a reset for the end.
            Poll::Ready(None) if self.is_stream && !self.is_end_stream() => {
                Poll::Ready(Some(Err(BrokenUpload::Unfinished)))
            }
            polled => polled.map_err(BrokenUpload::Client),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && !self.is_held_back
        {
            discard(incoming);
        }
    }
}

/// How an upload fares; read by whoever waits for the answer.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// When a frame was passed on last, in milliseconds since.
    moved: AtomicU64,
    waiting_for_client: AtomicBool,
    done: AtomicBool,
    broken: AtomicBool,
    too_large: AtomicBool,
    given_up: CancellationToken,
}

impl Progress {
    /// Of an upload that begins.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            waiting_for_client: AtomicBool::new(false),
            done: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            too_large: AtomicBool::new(false),
            given_up: CancellationToken::new(),
        }
    }

    /// When something of it was passed on last, or when it began.
    pub fn moved_at(&self) -> Instant {
        self.began + Duration::from_millis(self.moved.load(Relaxed))
    }

    /// The instance would take more, but the client sends nothing.
    pub fn is_waiting_for_client(&self) -> bool {
        self.waiting_for_client.load(Relaxed)
    }

    /// Everything was passed on.
    pub fn is_done(&self) -> bool {
        self.done.load(Relaxed)
    }

    /// The client's body has more bytes than it may.
    pub fn is_too_large(&self) -> bool {
        self.too_large.load(Relaxed)
    }

    /// The client's body broke off or was malformed.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Nobody is to have the rest of it.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Resolves when that was said.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Self::Upload(incoming, progress) = self
            && progress.given_up.is_cancelled()
        {
            incoming.forget();
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BrokenUpload;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        let Self::Upload(incoming, progress) = self.get_mut() else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *incoming).poll_frame(cx);
        progress.waiting_for_client.store(polled.is_pending(), Relaxed);
        match &polled {
            Poll::Ready(Some(Ok(_))) => {
                progress.moved.store(progress.began.elapsed().as_millis() as u64, Relaxed);
                if incoming.is_end_stream() {
                    progress.done.store(true, Relaxed);
                }
            }
            Poll::Ready(Some(Err(why))) => {
                progress.too_large.store(matches!(why, BrokenUpload::TooLarge), Relaxed);
                progress.broken.store(true, Relaxed);
            }
            Poll::Ready(None) => progress.done.store(true, Relaxed),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Upload(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Upload(incoming, _) => incoming.size_hint(),
        }
    }
}
