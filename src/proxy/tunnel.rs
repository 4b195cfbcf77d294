//! After a 101: bytes both ways until both sides have ended, or the instance's budget for streams has.
//!
//! A stream whose budget is over is closed between two messages, as far as that can be seen from bytes. As soon as the
//! instance has spoken last nothing more is taken from the client, and when the instance has been quiet for a moment the
//! stream is closed. So what the client has sent is answered, and what it sends from then on reaches nobody: it may be
//! sent again over another connection. Of a WebSocket both sides are told so, by a frame.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy, copy_bidirectional, sink};
use tokio::time::{sleep, timeout};
use tokio_util::io::{InspectReader, InspectWriter};
use tokio_util::sync::CancellationToken;

use super::access_log::{End, PassedBytes, Visit};
use super::instance::Claim;
use super::pool::Link;
use super::server::Proxy;
use super::websocket::{self, Frames};

/// Without a byte for so long it is taken to be between two messages.
const QUIET: Duration = Duration::from_millis(10);
/// It is waited for that no longer: two that never pause are closed in the middle.
pub(super) const QUIET_LIMIT: Duration = Duration::from_secs(2);
/// A client whose stream was closed gets so long to close its side. Closing before it would reset the
/// connection under what it is just sending.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Runs it beside the client's connection.
// Made where it is needed, its kilobytes would be on the stack of each request.
#[inline(never)]
pub fn spawn(proxy: &Proxy, client: OnUpgrade, link: Box<Link>, claim: Claim, is_websocket: bool, visit: Visit) {
    proxy.spawn(run(client, link, claim, is_websocket, visit));
}

/// Joins the client's side, once the 101 is on its way, to the instance's. Holds the claim as long as both are joined.
async fn run(client: OnUpgrade, link: Box<Link>, claim: Claim, is_websocket: bool, mut visit: Visit) {
    let (claim, cut) = claim.into_stream();
    // Dropped in the middle, it is the proxy that goes.
    visit.ends(End::TimeOver);
    let instance = claim.instance().id.clone();
    match join(client, link, claim, is_websocket, &cut, visit.bytes().unwrap_or_default()).await {
        Ok(Joined::Ended) => visit.ends(End::Complete),
        Ok(Joined::Cut) => tracing::debug!(%instance, "tunnel closed at the end of its budget"),
        Err(error) => {
            visit.ends(End::Broken);
            tracing::debug!(%instance, %error, "tunnel broke");
        }
    }
}

/// How it came to an end.
enum Joined {
    /// Both sides had ended.
    Ended,
    /// The budget was over.
    Cut,
}

/// Who has spoken.
#[derive(Debug, Default)]
struct Talk {
    pieces: AtomicU64,
    client_waits: AtomicBool,
    /// The budget is over.
    ends: AtomicBool,
}

impl Talk {
    fn heard(&self, is_client: bool) {
        self.client_waits.store(is_client, Relaxed);
        self.pieces.fetch_add(1, Relaxed);
    }

    /// Whether nothing more is taken from the client. It stays so: only the instance may still speak.
    fn is_client_done(&self) -> bool {
        self.ends.load(Relaxed) && !self.client_waits.load(Relaxed)
    }

    /// Resolves between two messages, or at the limit.
    async fn pauses(&self) {
        self.ends.store(true, Relaxed);
        let pause = async {
            loop {
                let before = self.pieces.load(Relaxed);
                sleep(QUIET).await;
                if self.pieces.load(Relaxed) == before && !self.client_waits.load(Relaxed) {
                    return;
                }
            }
        };
        let _ = timeout(QUIET_LIMIT, pause).await;
    }
}

/// What a client says, for as long as it is listened to.
struct Listened<'a, R> {
    client: R,
    talk: &'a Talk,
}

impl<R: AsyncRead + Unpin> AsyncRead for Listened<'_, R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.talk.is_client_done() {
            // Nobody is woken: the stream is closed by whoever waits for the pause.
            return Poll::Pending;
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut self.client).poll_read(cx, into);
        if into.filled().len() > before {
            self.talk.heard(true);
        }
        polled
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Listened<'_, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.client).poll_write(cx, bytes);
        if matches!(polled, Poll::Ready(Ok(1..))) {
            self.talk.heard(false);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}

async fn join(
    client: OnUpgrade,
    link: Box<Link>,
    claim: Claim,
    is_websocket: bool,
    cut: &CancellationToken,
    passed: Arc<PassedBytes>,
) -> io::Result<Joined> {
    let talk = Talk::default();
    let opening = async {
        let Some((instance, first_bytes)) = link.into_socket().await else { return Ok(None) };
        let client = TokioIo::new(client.await.map_err(io::Error::other)?);
        io::Result::Ok(Some((client, instance, first_bytes)))
    };
    let Some(opened) = cut.run_until_cancelled(opening).await else { return Ok(Joined::Cut) };
    let Some((client, instance, first_bytes)) = opened? else { return Ok(Joined::Ended) };
    let client = InspectReader::new(client, |bytes: &[u8]| passed.add_received(bytes.len()));
    let client = InspectWriter::new(client, |bytes: &[u8]| passed.add_sent(bytes.len()));
    let (mut for_client, mut for_instance) = (Frames::default(), Frames::default());
    let client = InspectWriter::new(client, |bytes: &[u8]| {
        if is_websocket {
            for_client.follow(bytes)
        }
    });
    let mut client = Listened { client, talk: &talk };
    let mut instance = InspectWriter::new(instance, |bytes: &[u8]| {
        if is_websocket {
            for_instance.follow(bytes)
        }
    });
    let copying = async {
        client.write_all(&first_bytes).await?;
        copy_bidirectional(&mut client, &mut instance).await
    };
    let cutting = async {
        cut.cancelled().await;
        talk.pauses().await;
    };
    tokio::select! {
        // What has come is passed on before it is judged whether anything has.
        biased;
        copied = copying => return copied.map(|_| Joined::Ended),
        () = cutting => {}
    }
    drop(claim);
    let (client, instance) = (client.client.into_inner(), instance.into_inner());
    let goodbye = |frames: Frames, frame: Vec<u8>| if is_websocket && frames.may_close() { frame } else { Vec::new() };
    let told_client = goodbye(for_client, websocket::close_for_client());
    let told_instance = goodbye(for_instance, websocket::close_for_server(mask()));
    let parting = async { tokio::join!(part(client, &told_client), part(instance, &told_instance)) };
    let _ = timeout(LINGER, parting).await;
    Ok(Joined::Cut)
}

/// Says that nothing more comes, and forgets what does until the other side has closed its own too.
async fn part(mut side: impl AsyncRead + AsyncWrite + Unpin, last_words: &[u8]) -> io::Result<()> {
    side.write_all(last_words).await?;
    side.shutdown().await?;
    copy(&mut side, &mut sink()).await.map(drop)
}

/// Against caches that take frames for requests (RFC 6455 §10.3); ours has nothing that anybody chose.
fn mask() -> [u8; 4] {
    getrandom::u32().unwrap_or_default().to_ne_bytes()
}
