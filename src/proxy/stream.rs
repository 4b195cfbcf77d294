//! A client's bytes, plain or out of TLS: and which version of HTTP they begin with, without taking them from whoever
//! serves it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a client that knows of HTTP/2 sends first (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection, with what was read of it ahead of time in front.
#[derive(Debug)]
pub struct ClientStream {
    socket: Socket,
    /// Read, and not yet used. Empty but for a client whose first packet ended inside the preface, or one that changed
    /// hands.
    ahead: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    /// On a socket without TLS.
    pub fn plain(socket: TcpStream) -> Self {
        Self { socket: Socket::Plain(socket), ahead: Vec::new() }
    }

    /// With TLS, after the handshake.
    pub fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self { socket: Socket::Tls(Box::new(stream)), ahead: Vec::new() }
    }

    /// Whether the client begins with HTTP/2's preface, where nothing was read before. Waits for its first bytes.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        if let Socket::Plain(socket) = &self.socket {
            let mut first = [0; PREFACE.len()];
            let seen = socket.peek(&mut first).await?;
            match first.get(..seen).unwrap_or_default() {
                // The usual cases: nothing is taken off the socket.
                bytes if bytes == PREFACE => return Ok(true),
                bytes if bytes.is_empty() || !PREFACE.starts_with(bytes) => return Ok(false),
                // Looking again would not wait for more.
                _ => {}
            }
        }
        let mut begun = Vec::with_capacity(PREFACE.len());
        while begun.len() < PREFACE.len() && PREFACE.starts_with(&begun) {
            let missing = PREFACE.len() - begun.len();
            if (&mut *self).take(missing as u64).read_buf(&mut begun).await? == 0 {
                break;
            }
        }
        let is_http2 = begun == PREFACE;
        self.put_back(&begun);
        Ok(is_http2)
    }

    /// Its socket, where nothing stands between that and the client.
    pub fn socket(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Plain(socket) if self.ahead.is_empty() => Some(socket),
            Socket::Plain(_) | Socket::Tls(_) => None,
        }
    }

    /// What was read last is read again.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.ahead.splice(..0, bytes.iter().copied());
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let fits = this.ahead.len().min(into.remaining());
            into.put_slice(&this.ahead[..fits]);
            this.ahead.drain(..fits);
            return Poll::Ready(Ok(()));
        }
        match &mut this.socket {
            Socket::Plain(plain) => Pin::new(plain).poll_read(cx, into),
            Socket::Tls(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Plain(plain) => Pin::new(plain).poll_write(cx, bytes),
            Socket::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Plain(plain) => Pin::new(plain).poll_write_vectored(cx, parts),
            Socket::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(plain) => plain.is_write_vectored(),
            Socket::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Plain(plain) => Pin::new(plain).poll_flush(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Plain(plain) => Pin::new(plain).poll_shutdown(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Sends these packets; answers whether it was taken for HTTP/2, and all that is read afterwards.
    async fn seen(packets: &[&[u8]]) -> (bool, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let mut stream = ClientStream::plain(listener.accept().await.unwrap().0);
        let sending = async {
            for packet in packets {
                client.write_all(packet).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            client.shutdown().await.unwrap();
        };
        let reading = async {
            let is_http2 = stream.speaks_http2().await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            (is_http2, bytes)
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn the_first_bytes_tell_the_version_and_stay_there() {
        let whole = [&PREFACE[..], b"rest"].concat();
        for (packets, is_http2) in [
            (&[&whole[..]][..], true),
            (&[&whole[..1], &whole[1..10], &whole[10..]], true),
            (&[b"GET / HTTP/1.1\r\n"], false),
            (&[b"P", b"OST / HTTP/1.1\r\n"], false),
            (&[b"PRI * HTTP/2.0\r\n\r\n", b"XX\r\n\r\nand more than that"], false),
            (&[b"PRI"], false),
            (&[], false),
        ] {
            assert_eq!(seen(packets).await, (is_http2, packets.concat()), "{packets:?}");
        }
    }
}
