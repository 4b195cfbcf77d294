//! The beginning of a TLS connection: which certificate, within which time, and how it is refused.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::ACME_TLS;
use super::server::Proxy;

/// For the whole handshake.
const LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at a time, counted from the moment that the client has spoken: those beyond wait.
const AT_ONCE: usize = 512;
/// A fatal alert, unrecognized_name, in a record of its own (RFC 8446 §5.1, §6.2; RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The bound that all handshakes share.
#[derive(Debug)]
pub struct Handshakes(Semaphore);

impl Default for Handshakes {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Handshakes {
    /// Does the handshake, with the certificate for the name that the client asks for. A client that asks for none that
    /// there is a certificate for, or that is too slow, is an error. So is a certificate authority that has seen what it
    /// came for: with that its connection ends (RFC 8737, section 3).
    pub async fn accept(&self, proxy: &Proxy, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let mut start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
            let hello = start.client_hello();
            let host = hello.server_name().map(str::to_ascii_lowercase).unwrap_or_default();
            let validates = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ACME_TLS));
            let _place = self.0.acquire().await.map_err(io::Error::other)?;
            if let Some(validation) = proxy.challenges.handshake(&host).filter(|_| validates) {
                start.into_stream(validation).await?.shutdown().await?;
                return Err(io::Error::other(format!("a certificate authority has validated {host:?}")));
            }
            let Some(certificate) = proxy.fronts.certificate(&host, &proxy.routing) else {
                // A client that has left already does not need it.
                let _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
                let _ = start.io.shutdown().await;
                return Err(io::Error::other(format!("no certificate for {host:?}")));
            };
            start.into_stream(certificate.tls.clone()).await
        };
        timeout(LIMIT, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Whether the handshake ended with HTTP/2 agreed on.
pub fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"h2")
}
