//! Bodies that take seconds, in either direction.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::support::http::Response;

/// From the first piece of a body to its last.
pub const TRANSFER_MS: u64 = 2500;
const BYTES: usize = 64 * 1024;
const PIECES: usize = 25;

/// What request `id` sends or gets: no two have the same.
pub fn content(id: u64) -> Bytes {
    let word = format!("{id:015}.");
    word.repeat(BYTES / word.len()).into()
}

/// What asks the site for [`content`] in pieces: it takes the number from `X-Load-Id`.
pub fn download() -> String {
    format!("/download?ms={TRANSFER_MS}&pieces={PIECES}&bytes={BYTES}")
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// A kept connection whose requests come in pieces.
pub struct Connection {
    sender: SendRequest<StreamBody<Pieces>>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends a POST slowly and reads the whole answer.
    pub async fn send(&mut self, host: &str, path: &str, id: &str, body: &Bytes) -> Result<Response, String> {
        let request = Request::post(path)
            .header(header::HOST, host)
            .header("x-load-id", id)
            .header(header::CONTENT_LENGTH, body.len())
            .body(StreamBody::new(pieces(body.clone())))
            .map_err(|error| error.to_string())?;
        let told = |error: hyper::Error| format!("{error:?}");
        self.sender.ready().await.map_err(told)?;
        let (head, body) = self.sender.send_request(request).await.map_err(told)?.into_parts();
        let body = body.collect().await.map_err(told)?.to_bytes();
        Ok(Response { status: head.status, headers: head.headers, body })
    }
}

fn pieces(body: Bytes) -> Pieces {
    let size = body.len().div_ceil(PIECES);
    let all: Vec<Bytes> = (0..body.len()).step_by(size).map(|at| body.slice(at..body.len().min(at + size))).collect();
    let between = Duration::from_millis(TRANSFER_MS) / PIECES as u32;
    let slowly = stream::iter(all).then(move |piece| async move {
        tokio::time::sleep(between).await;
        Ok(Frame::data(piece))
    });
    Box::pin(slowly)
}
