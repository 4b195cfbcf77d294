//! `POST /build` with the context streamed as it is read: neither it nor the answer is ever whole in memory.
//!
//! This is a call of our own rather than the client library's, which ends a whole build at the first progress line it
//! cannot decode and offers BuildKit no secrets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::progress::LONGEST_LINE;
use crate::runtime::docker::EngineHost;
use crate::runtime::docker::host::Body;

/// Bytes per piece of the context, and how many pieces may wait.
const PIECE: usize = 64 * 1024;
const PIECES: usize = 8;

/// The builder's parameters, as documented for `POST /build` of the Docker Engine API.
#[derive(Debug, Default)]
pub(super) struct Parameters(String);

impl Parameters {
    /// Adds one; values are percent-encoded.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        let separator = if self.0.is_empty() { '?' } else { '&' };
        let _ = write!(self.0, "{separator}{name}=");
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => self.0.push(char::from(byte)),
                _ => {
                    let _ = write!(self.0, "%{byte:02X}");
                }
            }
        }
    }

    /// Adds a map, as JSON.
    pub(super) fn set_map(&mut self, name: &str, map: &BTreeMap<String, String>) {
        self.set(name, &serde_json::json!(map).to_string());
    }
}

/// A build under way. Dropping it closes the connection, upon which the engine stops the build.
pub(super) struct Running {
    body: Incoming,
    buffer: BytesMut,
    skipping: bool,
    context: JoinHandle<io::Result<u64>>,
    _connection: AbortOnDropHandle<()>,
}

/// Why a build could not begin.
pub(super) enum Refusal {
    /// The engine said no, with a text.
    Engine(String),
    /// The context could not be read.
    Context(io::Error),
    /// No connection.
    Unavailable(String),
}

/// Starts a build of the tar that `write_tar` writes (on a thread of its own).
pub(super) async fn start(
    host: &EngineHost,
    parameters: Parameters,
    write_tar: impl FnOnce(&mut dyn Write) -> io::Result<u64> + Send + 'static,
) -> Result<Running, Refusal> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let context = tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces { sender, piece: Vec::with_capacity(PIECE) };
        let written = write_tar(&mut pieces).and_then(|bytes| pieces.flush().map(|()| bytes));
        if let Err(error) = &written {
            // Without this the engine would take what it has for the whole context.
            let _ = pieces.sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
        }
        written
    });
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/build{}", parameters.0))
        .header(hyper::header::CONTENT_TYPE, "application/x-tar")
        .body(Body::new(StreamBody::new(pieces)))
        .map_err(|error| Refusal::Unavailable(error.to_string()))?;
    let call = match host.send(request).await {
        Ok(call) => call,
        Err(why) => return Err(unsent(context, why).await),
    };
    let (response, connection) = call.into_parts();
    let status = response.status();
    let body = response.into_body();
    if !status.is_success() {
        let text = body.collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
        return Err(Refusal::Engine(message(&text).unwrap_or_else(|| format!("HTTP {status}"))));
    }
    Ok(Running { body, buffer: BytesMut::new(), skipping: false, context, _connection: connection })
}

/// A request that broke off because the context did is the context's fault.
async fn unsent(context: JoinHandle<io::Result<u64>>, why: String) -> Refusal {
    match context.await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Refusal::Context(error),
        _ => Refusal::Unavailable(why),
    }
}

/// The engine's errors are `{"message": "…"}`.
fn message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(value.get("message")?.as_str()?.to_owned())
}

impl Running {
    /// The next line of the answer; `None` at its end. May be given up and called again without losing anything.
    pub(super) async fn line(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                if !std::mem::take(&mut self.skipping) {
                    return Ok(Some(line));
                }
                continue;
            }
            if self.buffer.len() > LONGEST_LINE {
                self.buffer.clear();
                self.skipping = true;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(error.to_string()),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(self.buffer.split().freeze())),
            }
        }
    }

    /// After the last line: how many bytes of context were sent, or what went wrong with reading it.
    pub(super) async fn context(self) -> io::Result<u64> {
        let Self { context, _connection: connection, body, .. } = self;
        drop((body, connection));
        match context.await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            Ok(written) => written,
            Err(panic) => Err(io::Error::other(panic)),
        }
    }
}

/// Hands the tar over in pieces, waiting while the engine is slower.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// An engine that reads a request up to `until`, gives this answer and hangs up. What it was sent comes back.
    fn engine(directory: &Path, until: &'static str, answer: &'static str) -> (EngineHost, JoinHandle<String>) {
        let path = directory.join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (mut seen, mut buffer) = (Vec::new(), vec![0; 4096]);
            while !String::from_utf8_lossy(&seen).contains(until) {
                match socket.read(&mut buffer).await.unwrap() {
                    0 => break,
                    n => seen.extend_from_slice(&buffer[..n]),
                }
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&seen).into_owned()
        });
        (EngineHost::Unix(path), serving)
    }

    async fn send(host: &EngineHost, content: &'static [u8]) -> Result<Running, Refusal> {
        start(host, Parameters::default(), |out| out.write_all(content).map(|()| content.len() as u64)).await
    }

    async fn lines(running: &mut Running) -> Vec<Result<Bytes, String>> {
        let mut lines = Vec::new();
        while let Some(line) = running.line().await.transpose() {
            let broken = line.is_err();
            lines.push(line);
            if broken {
                break;
            }
        }
        lines
    }

    #[tokio::test]
    async fn the_answer_comes_line_by_line_and_the_context_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n5\r\n\r\ntwo\r\n0\r\n\r\n";
        let (host, serving) = engine(directory.path(), "\r\n0\r\n\r\n", answer);
        let mut running = send(&host, b"the tar").await.ok().unwrap();
        assert_eq!(lines(&mut running).await, [Ok(Bytes::from("one\r\n")), Ok(Bytes::from("two"))]);
        assert_eq!(running.context().await.unwrap(), 7);
        let seen = serving.await.unwrap();
        assert!(seen.starts_with("POST /build HTTP/1.1\r\n") && seen.contains("the tar"), "{seen}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n";
        let (host, _serving) = engine(directory.path(), "\r\n0\r\n\r\n", answer);
        let mut running = send(&host, b"the tar").await.ok().unwrap();
        let lines = lines(&mut running).await;
        assert!(lines.len() == 2 && lines[1].is_err(), "{lines:?}");
    }

    #[tokio::test]
    async fn a_refusal_has_the_engines_text() {
        let directory = tempfile::tempdir().unwrap();
        let answer = "HTTP/1.1 400 Bad Request\r\nContent-Length: 17\r\n\r\n{\"message\":\"why\"}";
        let (host, _serving) = engine(directory.path(), "\r\n\r\n", answer);
        assert!(matches!(send(&host, b"the tar").await, Err(Refusal::Engine(text)) if text == "why"));
    }

    #[tokio::test]
    async fn half_a_context_is_never_taken_for_all_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let (host, serving) = engine(directory.path(), "never", "");
        let broken = |out: &mut dyn Write| {
            out.write_all(b"half")?;
            out.flush()?;
            Err(io::Error::other("a blob is missing"))
        };
        let refusal = start(&host, Parameters::default(), broken).await.err().unwrap();
        assert!(matches!(refusal, Refusal::Context(error) if error.to_string() == "a blob is missing"));
        assert!(!serving.await.unwrap().contains("\r\n0\r\n"), "the request has no proper end");
    }

    #[test]
    fn parameters_are_encoded() {
        let mut parameters = Parameters::default();
        parameters.set("t", "a/b:c");
        parameters.set_map("buildargs", &BTreeMap::from([("A".to_owned(), "1 & ü".to_owned())]));
        assert_eq!(parameters.0, "?t=a%2Fb%3Ac&buildargs=%7B%22A%22%3A%221%20%26%20%C3%BC%22%7D");
    }
}
