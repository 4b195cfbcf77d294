//! A client that speaks HTTP/2 without TLS (RFC 9113 §3.3), as one that knows its server does.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::http::Response;

/// A kept connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

/// Why there is no answer.
pub enum Error {
    /// The other side has not looked at it: it was not sent, or crossed the last word on this connection, which says what
    /// was looked at (RFC 9113 §6.8). It is to be sent over another one.
    GivenBack,
    Broken(String),
}

impl Connection {
    pub async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends a request in origin form and reads the whole answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response, Error> {
        let broken = |error: hyper::Error| Error::Broken(format!("{error:?}"));
        // An error of `ready` says that the connection is closed: nothing was sent.
        self.sender.ready().await.map_err(|_| Error::GivenBack)?;
        let answer = self.sender.try_send_request(absolute(request)).await;
        let answer = answer.map_err(|mut error| match error.take_message() {
            Some(_) => Error::GivenBack,
            None => {
                let error = error.into_error();
                if was_passed_over(&error) { Error::GivenBack } else { broken(error) }
            }
        })?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        Ok(Response { status: head.status, headers: head.headers, body })
    }
}

/// Whether the server's last word names only requests before this one.
fn was_passed_over(error: &hyper::Error) -> bool {
    let why = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    why.is_some_and(|why| why.is_go_away() && why.is_remote() && why.reason() == Some(h2::Reason::NO_ERROR))
}

/// With the host in the target, where HTTP/2 has it (RFC 9113 §8.3.1).
fn absolute(request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    let host = head.headers.remove("host").expect("a host");
    let uri = format!("http://{}{}", host.to_str().expect("a host's name"), head.uri);
    head.uri = uri.parse().expect("a target");
    Request::from_parts(head, body)
}
