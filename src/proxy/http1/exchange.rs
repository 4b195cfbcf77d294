//! One connection to an instance, and one exchange after another on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use hyper::{Method, StatusCode};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::super::message::{AnswerHead, RequestHead};
use super::chunked::{Chunked, Piece};
use super::interims::Interims;
use super::pipe::{self, Filled, Pipe};
use super::request;
use super::response::{self, Head, Length};
use super::socket;
use super::spare::Spare;

/// The largest head of an answer, whoever reads it.
pub const LARGEST_HEAD: usize = 256 << 10;
/// What is read at a time: a head and a small body, and as much of a large one as is worth a call. With both in one buffer,
/// which is kept, the next answer of 64 KiB is read with its head at once.
const READ: usize = 8 << 10;
const READ_OF_BODY: usize = READ + (64 << 10);

/// Why an instance gave no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Said by hyper.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    /// Said by the system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It closed the connection instead.
    #[error("it closed the connection before its answer was whole")]
    Closed,
    /// It is no HTTP/1.1.
    #[error("its answer is malformed: {0}")]
    Malformed(&'static str),
    /// What it has under way is to end.
    #[error("its time is over")]
    Cut,
}

/// How a request fared that got no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub error: LinkError,
    /// Nothing of it was written.
    pub is_unsent: bool,
    /// Not one byte of an answer had come.
    pub is_silent: bool,
}

/// A connection that is idle or has one exchange under way.
#[derive(Debug)]
pub struct Exchange {
    socket: TcpStream,
    input: BytesMut,
    rest: Rest,
    /// Whether it can be used again when the answer is whole.
    keeps: bool,
}

/// What is still to come of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing.
    Done,
    Exact(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Exchange {
    /// On a fresh connection.
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, input: BytesMut::new(), rest: Rest::Done, keeps: true }
    }

    /// Sends the head of a request that has no body, and waits for the head of the answer. To be called when
    /// [`Self::is_ready`].
    pub async fn send(
        &mut self,
        request: &RequestHead,
        interims: Option<&Interims>,
    ) -> Result<Box<AnswerHead>, Unanswered> {
        // Until the answer is whole. A caller that gives up leaves it like this.
        self.keeps = false;
        let mut output = Spare::take();
        request::write(request, &mut output);
        let mut written = 0;
        while written < output.len() {
            match socket::write(&self.socket, &output[written..]).await {
                Ok(bytes) => written += bytes,
                Err(error) => return Err(Unanswered { error: error.into(), is_unsent: written == 0, is_silent: true }),
            }
        }
        drop(output);
        let answered = self.head(request.method == Method::HEAD, interims).await;
        let Head { head, length, keeps } = answered.map_err(|error| {
            let is_silent = self.input.is_empty() && !matches!(error, LinkError::Malformed(_));
            Unanswered { error, is_unsent: false, is_silent }
        })?;
        self.rest = match length {
            Length::Exact(0) => Rest::Done,
            Length::Exact(bytes) => Rest::Exact(bytes),
            Length::Chunked => Rest::Chunked(Chunked::default()),
            Length::UntilClose => Rest::UntilClose,
        };
        self.keeps = keeps;
        Ok(head)
    }

    /// Sends it, and gives it up when `cut` comes before the head of the answer is there.
    pub async fn send_until(
        &mut self,
        request: &RequestHead,
        interims: Option<&Interims>,
        cut: impl Future<Output = ()>,
    ) -> Result<Box<AnswerHead>, Unanswered> {
        tokio::select! {
            biased;
            answered = self.send(request, interims) => return answered,
            () = cut => {}
        }
        Err(Unanswered { error: LinkError::Cut, is_unsent: false, is_silent: self.input.is_empty() })
    }

    /// The head of the answer. Interim ones before it are for the client too, but for one that it did not ask for.
    async fn head(&mut self, to_head: bool, interims: Option<&Interims>) -> Result<Head, LinkError> {
        let mut seen = 0;
        loop {
            match response::read(&mut self.input, seen, to_head).map_err(|why| LinkError::Malformed(why.0))? {
                Some(head) if is_interim(head.head.status) => {
                    if let Some(interims) = interims.filter(|_| head.head.status != StatusCode::CONTINUE) {
                        interims.add(head.head);
                    }
                    seen = 0;
                    continue;
                }
                Some(head) => return Ok(head),
                None if self.input.len() > LARGEST_HEAD => return Err(LinkError::Malformed("its head is too large")),
                None => seen = self.input.len(),
            }
            if std::future::poll_fn(|cx| self.poll_input(cx, READ)).await? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }

    fn poll_input(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        self.input.reserve(most);
        poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.input)
    }

    /// How much of the answer's body is still to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self.rest {
            Rest::Done => Some(0),
            Rest::Exact(left) => Some(left),
            Rest::Chunked(_) | Rest::UntilClose => None,
        }
    }

    /// The next piece of the answer's body. After `None` or an error there is no more.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        let polled = ready!(self.poll_rest(cx));
        if !matches!(polled, Ok(Some(_))) {
            self.keeps &= polled.is_ok();
            self.rest = Rest::Done;
        }
        Poll::Ready(polled.transpose())
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, LinkError>> {
        loop {
            let wanted = match &mut self.rest {
                Rest::Done => return Poll::Ready(Ok(None)),
                Rest::Exact(left) if !self.input.is_empty() => {
                    let there = (*left).min(self.input.len() as u64);
                    *left -= there;
                    if *left == 0 {
                        self.rest = Rest::Done;
                    }
                    return Poll::Ready(Ok(Some(Frame::data(self.input.split_to(there as usize).freeze()))));
                }
                // With room for one byte more, so that a read says that there is none: that saves asking for it.
                Rest::Exact(left) => {
                    usize::try_from(*left).unwrap_or(READ_OF_BODY).saturating_add(1).clamp(READ, READ_OF_BODY)
                }
                Rest::UntilClose if !self.input.is_empty() => {
                    return Poll::Ready(Ok(Some(Frame::data(self.input.split().freeze()))));
                }
                Rest::UntilClose => READ_OF_BODY,
                Rest::Chunked(chunked) => match chunked.read(&mut self.input) {
                    Ok(Piece::Data(data)) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                    Ok(Piece::End(trailers)) => {
                        self.rest = Rest::Done;
                        return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                    }
                    Ok(Piece::Partial) => READ_OF_BODY / 4,
                    Err(_) => return Poll::Ready(Err(LinkError::Malformed("its chunks are malformed"))),
                },
            };
            if ready!(self.poll_input(cx, wanted))? == 0 {
                return Poll::Ready(match self.rest {
                    Rest::UntilClose => Ok(None),
                    _ => Err(LinkError::Closed),
                });
            }
        }
    }

    /// Whether what comes next of the answer's body is so much that it is better moved through a pipe.
    pub fn is_worth_a_pipe(&self) -> bool {
        matches!(self.rest, Rest::Exact(left) if left >= pipe::WORTH) && self.input.is_empty()
    }

    /// Moves the next bytes of such a body into an empty pipe, unless that is refused: then they are to be read.
    pub fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, LinkError>>> {
        let Rest::Exact(left) = self.rest else { return Poll::Ready(None) };
        let filled = loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match pipe.fill(&self.socket, left) {
                Err(error) if pipe::is_to_be_repeated(&error) => {}
                filled => break filled.map_err(LinkError::from),
            }
        };
        let moved = match filled {
            Ok(Filled::Refused) => return Poll::Ready(Some(Ok(0))),
            Ok(Filled::With(0)) => Err(LinkError::Closed),
            Ok(Filled::With(bytes)) => Ok(bytes),
            Err(error) => Err(error),
        };
        self.rest = match moved {
            Ok(bytes) if (bytes as u64) < left => Rest::Exact(left - bytes as u64),
            Ok(_) => Rest::Done,
            Err(_) => {
                self.keeps = false;
                Rest::Done
            }
        };
        Poll::Ready(Some(moved))
    }

    /// Whether it can take a request: the answer before is whole, nothing came behind it, and the instance did not close.
    pub fn is_ready(&self) -> bool {
        let is_quiet =
            || matches!(self.socket.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.keeps && self.rest == Rest::Done && self.input.is_empty() && is_quiet()
    }

    /// Gives the connection back.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }
}

/// Whether another answer follows: of 101 the rest of the connection is something else.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn request(method: Method) -> RequestHead {
        let request = Request::builder().method(method).uri("/a?b").header("host", "a").body(()).unwrap();
        request.into_parts().0.into()
    }

    /// An instance that answers with these packets and then closes; what comes of it.
    async fn answered(method: Method, packets: &'static [&'static str]) -> Result<(u16, String, bool), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut instance, _) = listener.accept().await.unwrap();
        instance.set_nodelay(true).unwrap();
        let (done, is_done) = tokio::sync::oneshot::channel::<()>();
        let instance = tokio::spawn(async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert_ne!(instance.read_buf(&mut asked).await.unwrap(), 0);
            }
            for packet in packets.iter().filter(|packet| !packet.is_empty()) {
                instance.write_all(packet.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            // An empty packet: the connection stays.
            if packets.last().is_some_and(|last| last.is_empty()) {
                let _ = is_done.await;
            }
        });
        let mut exchange = Exchange::new(socket);
        let request = request(method);
        let answer = async {
            let head = exchange.send(&request, None).await.map_err(|why| format!("{why:?}"))?;
            let mut body = Vec::new();
            while let Some(frame) = std::future::poll_fn(|cx| exchange.poll_frame(cx)).await {
                let frame = frame.map_err(|why| why.to_string())?;
                body.extend_from_slice(frame.data_ref().map_or(b"trailers", |data| data));
            }
            Ok((head.status.as_u16(), String::from_utf8(body).unwrap(), exchange.is_ready()))
        };
        let answer = answer.await;
        drop(done);
        instance.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_are_read_to_their_end_and_not_beyond() {
        let (get, head) = (Method::GET, Method::HEAD);
        for (method, packets, expected) in [
            (&get, &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ""][..], (200, "hello", true)),
            (&get, &["HTTP/1.1 200 OK\r\nConte", "nt-Length: 5\r\n\r\nhe", "llo", ""], (200, "hello", true)),
            (
                &get,
                &[
                    "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
                    "HTTP/1.1 204 No Content\r\n\r\n",
                    "",
                ],
                (204, "", true),
            ),
            (&head, &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", ""], (200, "", true)),
            (
                &get,
                &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r", "\n2\r\nlo\r\n0\r\n\r\n", ""],
                (200, "hello", true),
            ),
            (
                &get,
                &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n", "\r\n", ""],
                (200, "trailers", true),
            ),
            (&get, &["HTTP/1.1 200 OK\r\n\r\nhe", "llo"], (200, "hello", false)),
            (&get, &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello", ""], (200, "he", false)),
            (&get, &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhe"], (200, "he", false)),
        ] {
            let (status, body, is_ready) = answered(method.clone(), packets).await.unwrap();
            assert_eq!((status, body.as_str(), is_ready), expected, "{packets:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
        for (packets, expected) in [
            (&["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"][..], "before its answer was whole"),
            (&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n"], "before its answer was whole"),
            (&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n"], "chunks are malformed"),
            (&["HTTP/1.1 200 OK\r\nContent-"], "Closed, is_unsent: false, is_silent: false"),
            (&["nonsense\r\n\r\n"], "is_unsent: false, is_silent: false"),
        ] {
            let why = answered(Method::GET, packets).await.unwrap_err();
            assert!(why.contains(expected), "{packets:?} {why}");
        }
    }

    #[tokio::test]
    async fn the_rest_of_a_large_answer_goes_through_a_pipe() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut instance, _) = listener.accept().await.unwrap();
        let mut exchange = Exchange::new(socket);
        let page: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", &page[..]].concat();
        let request = request(Method::GET);
        let (answered, written) = tokio::join!(exchange.send(&request, None), instance.write_all(&answer));
        answered.unwrap();
        written.unwrap();
        let (into, mut from) = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let into = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (into, listener.accept().await.unwrap().0)
        };
        let mut got = Vec::new();
        let mut piped = 0;
        while exchange.left() != Some(0) {
            if !exchange.is_worth_a_pipe() {
                let frame = std::future::poll_fn(|cx| exchange.poll_frame(cx)).await.unwrap().unwrap();
                got.extend_from_slice(frame.data_ref().unwrap());
                continue;
            }
            let mut pipe = Pipe::take().unwrap();
            let moved = std::future::poll_fn(|cx| exchange.poll_pipe(cx, &mut pipe)).await.unwrap().unwrap();
            while !pipe.is_empty() {
                into.writable().await.unwrap();
                pipe.drain(&into).unwrap();
            }
            let at = got.len();
            got.resize(at + moved, 0);
            from.read_exact(&mut got[at..]).await.unwrap();
            piped += moved;
        }
        assert!(got == page);
        assert!(piped >= 60_000, "{piped}");
        assert!(exchange.is_ready());
    }

    #[tokio::test]
    async fn a_connection_that_closes_as_it_is_used_has_said_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut exchange = Exchange::new(socket);
        assert!(exchange.is_ready());
        drop(listener.accept().await.unwrap());
        let why = exchange.send(&request(Method::GET), None).await.unwrap_err();
        assert!(why.is_silent, "{why:?}");
        assert!(!exchange.is_ready());
    }
}
