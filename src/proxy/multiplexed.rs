//! HTTP/2 to an instance that speaks it without TLS, as gRPC servers do (RFC 9113 §3.3, with prior knowledge): one
//! connection for all requests.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::{Request, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::body::{Outgoing, Source};
use super::http1::LinkError;
use super::instance::lock;
use super::message::Reply;
use super::pool::{SendError, without_body};

/// What an instance may send of one answer before its client takes it. An answer holds no more memory than this.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all answers of a connection: no limit (it is the largest that there is, RFC 9113 §6.9.1). With a lower one a
/// few answers that nobody takes would use it up, and stop all others. What is kept is bounded all the same, by a window
/// for each request under way.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// The largest head of an answer, and the largest trailers, as of an instance that speaks HTTP/1.1. Of trailers beyond it h2 drops
/// fields and tells nobody.
const LARGEST_HEAD: u32 = 256 << 10;

/// The connection to one instance, while there is one.
#[derive(Debug, Default)]
pub struct Multiplexed {
    open: Mutex<Option<SendRequest<Outgoing>>>,
}

/// A request's part of it.
#[derive(Debug)]
pub struct Stream {
    sender: SendRequest<Outgoing>,
    of: Arc<Multiplexed>,
}

impl Multiplexed {
    /// On the connection that is there and not known to be closed, if there is one.
    pub fn share(self: &Arc<Self>) -> Option<Stream> {
        let sender = lock(&self.open).clone().filter(|sender| !sender.is_closed())?;
        Some(Stream { sender, of: Arc::clone(self) })
    }

    /// On a new connection, over this socket, which the next requests share.
    pub async fn begin(self: &Arc<Self>, address: SocketAddr, socket: TcpStream) -> io::Result<Stream> {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(LARGEST_HEAD)
            .handshake(TokioIo::new(socket));
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        // It ends by itself when nobody can send on it any more and all answers are there.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "connection to an instance ended");
            }
        });
        *lock(&self.open) = Some(sender.clone());
        Ok(Stream { sender, of: Arc::clone(self) })
    }

    /// What is under way ends there; the next request takes a new connection.
    pub fn forget(&self) {
        drop(lock(&self.open).take());
    }
}

impl Stream {
    /// Sends a request and waits for the head of the answer until `cut` comes. One that `is_kept` has no body and comes
    /// back when it is not answered.
    pub async fn send(
        &mut self,
        request: Request<Outgoing>,
        is_kept: bool,
        cut: impl Future<Output = ()>,
    ) -> Result<Reply<Source>, SendError> {
        let kept = is_kept.then(|| without_body(&request));
        let answered = tokio::select! {
            biased;
            answered = self.sender.try_send_request(in_http2(request)) => answered,
            () = cut => {
                let request = kept.map(|request| Box::new(request.into()));
                return Err(SendError::Broken { error: LinkError::Cut, silent: true, request });
            }
        };
        match answered {
            Ok(answer) => Ok(answer.map(Source::Incoming).into()),
            Err(mut error) => {
                self.of.forget();
                Err(match error.take_message() {
                    Some(unsent) => SendError::NotSent(Box::new(in_http1(unsent).into()), error.into_error().into()),
                    None => SendError::Broken {
                        error: error.into_error().into(),
                        silent: true,
                        request: kept.map(|request| Box::new(request.into())),
                    },
                })
            }
        }
    }
}

/// The host goes into the target (RFC 9113 §8.3.1), and nothing is said of the connection (§8.2.2).
fn in_http2(mut request: Request<Outgoing>) -> Request<Outgoing> {
    let host = request.headers_mut().remove(HOST);
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().remove(TRANSFER_ENCODING);
    let path = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    if let Ok(target) = Uri::builder().scheme("http").authority(host).path_and_query(path).build() {
        *request.uri_mut() = target;
    }
    *request.version_mut() = Version::HTTP_2;
    request
}

/// As it was before.
fn in_http1(mut request: Request<Outgoing>) -> Request<Outgoing> {
    let authority = request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    if let Some(Ok(host)) = authority {
        request.headers_mut().insert(HOST, host);
    }
    let target = request.uri().path_and_query().cloned();
    *request.uri_mut() = target.map(Uri::from).unwrap_or_default();
    *request.version_mut() = Version::HTTP_11;
    request
}
