//! A client's connection in hyper's hands, which is watched while hyper does not read, whether the client leaves; and which ends
//! with an answer that breaks off.
//!
//! hyper takes every end of a client's side for its leaving, or none. The rule of [`super::http1`] is put in between: an end
//! that comes right behind a request says that this was all, and one that comes later that nobody waits any more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::http1::{ClientSocket, HALF_CLOSE};
use super::taking::{BreakOff, Taking};

/// A client's connection, for hyper with `half_close`: it reads no further than the request that it is to answer, and flushes
/// whenever it is woken. That is when this looks whether the client has left, which it tells as an error.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    /// Read to see whether there is an end, and not yet used.
    ahead: Option<u8>,
    /// hyper waits for bytes: it sees an end itself.
    is_read: bool,
    /// When bytes came last.
    spoke_at: Instant,
    /// The client sends nothing more, and has not left for all that is known.
    has_ended: bool,
    has_switched: Switched,
    taking: Taking,
}

/// The connection speaks another protocol from now on, and each side of it may end when it likes.
#[derive(Debug, Clone, Default)]
pub struct Switched(Arc<AtomicBool>);

impl Switched {
    /// Says so.
    pub fn tell(&self) {
        self.0.store(true, Relaxed);
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// A connection on which a client has just spoken.
    pub fn new(stream: S, has_switched: Switched, taking: Taking) -> Self {
        Self { stream, ahead: None, is_read: false, spoke_at: Instant::now(), has_ended: false, has_switched, taking }
    }

    /// Looks whether the client has left, where nobody else would see it. Leaves a waker if not.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.is_read || self.has_ended || self.ahead.is_some() || self.has_switched.0.load(Relaxed) {
            return Ok(());
        }
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        if Pin::new(&mut self.stream).poll_read(cx, &mut read)?.is_pending() {
            return Ok(());
        }
        self.ahead = read.filled().first().copied();
        if self.ahead.is_some() {
            self.spoke_at = Instant::now();
            return Ok(());
        }
        self.has_ended = self.spoke_at.elapsed() < HALF_CLOSE;
        match self.has_ended {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client left before its answer")),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        if into.remaining() > 0
            && let Some(byte) = this.ahead.take()
        {
            into.put_slice(&[byte]);
        }
        if this.has_ended {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut this.stream).poll_read(cx, into)?;
        let has_come = into.filled().len() > before;
        this.is_read = polled.is_pending() && !has_come;
        if has_come {
            this.spoke_at = Instant::now();
            return Poll::Ready(Ok(()));
        }
        // Who is shown the end knows it.
        this.has_ended = polled.is_ready() && into.remaining() > 0;
        polled.map(Ok)
    }
}

impl<S: ClientSocket> Watched<S> {
    /// Ends with an answer that broke off, when it is time.
    fn check_answer(&self, is_sent: bool) -> io::Result<()> {
        let Some(how) = self.taking.breaks_off(is_sent) else { return Ok(()) };
        if let (BreakOff::Reset, Some(socket)) = (how, self.stream.socket()) {
            // Over TLS an end without close_notify says the same (RFC 9112 §9.8).
            SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its answer broke off"))
    }
}

impl<S: ClientSocket> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_answer(false)?;
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_answer(false)?;
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.check_answer(true)?;
        Poll::Ready(this.look(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpStream;

    use super::*;

    impl ClientSocket for DuplexStream {
        fn socket(&self) -> Option<&TcpStream> {
            None
        }
    }

    fn watched() -> (DuplexStream, Watched<DuplexStream>, Switched) {
        let ((client, server), switched) = (duplex(64), Switched::default());
        (client, Watched::new(server, switched.clone(), Taking::of_connection()), switched)
    }

    #[tokio::test]
    async fn an_end_right_behind_the_last_bytes_is_no_leaving() {
        let (mut client, mut watched, _) = watched();
        client.write_all(b"whole").await.unwrap();
        watched.read_exact(&mut [0; 4]).await.unwrap();
        tokio::time::sleep(HALF_CLOSE * 2).await;
        watched.flush().await.unwrap();
        client.shutdown().await.unwrap();
        // The last byte was read just now.
        watched.flush().await.unwrap();
        let mut rest = Vec::new();
        watched.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"e");
        tokio::time::sleep(HALF_CLOSE * 2).await;
        watched.flush().await.unwrap();
    }

    #[tokio::test]
    async fn a_later_one_is_unless_somebody_reads_or_the_protocol_is_another() {
        for (reads, switches, leaves) in [(false, false, true), (true, false, false), (false, true, false)] {
            let (mut client, mut watched, switched) = watched();
            if reads {
                let reading = tokio::time::timeout(HALF_CLOSE, watched.read_u8()).await;
                assert!(reading.is_err());
            }
            if switches {
                switched.tell();
            }
            tokio::time::sleep(HALF_CLOSE * 2).await;
            client.shutdown().await.unwrap();
            assert_eq!(watched.flush().await.is_err(), leaves, "{reads} {switches}");
            assert_eq!(watched.read(&mut [0]).await.unwrap(), 0, "the end is there to be read");
        }
    }
}
