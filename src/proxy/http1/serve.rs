//! One connection of a client, as long as its requests are plain.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::Method;
use hyper::body::{Body, Frame};
use hyper::header::{CONNECTION, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout};

use super::super::access_log::Sending;
use super::super::answer::Own;
use super::super::forward::{self, Asked};
use super::super::headers::Origin;
use super::super::message::{Reply, RequestHead};
use super::super::relay::BrokenAnswer;
use super::super::server::Proxy;
use super::super::wait::{Timer, Waits};
use super::head;
use super::interims::Interims;
use super::pipe::{self, Pipe};
use super::request::{self, Arrived};
use super::response::{self, Coding};
use super::socket;
use super::spare::Spare;

/// Data of a body that is written together with the head, in one piece.
const JOINED: usize = 16 << 10;
/// How often others get a turn before a head goes without the first bytes of its body. At best the system is asked for news
/// each time.
const TURNS: u8 = 2;
/// A client that ends its side so soon behind its request has said only that this was all; one that does later has left.
pub const HALF_CLOSE: Duration = Duration::from_millis(50);
/// A client that was refused has so long to read of it.
const LINGER: Duration = Duration::from_secs(1);
/// Behind the last chunk of a body (RFC 9112 §7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A client's connection.
pub trait ClientSocket: AsyncRead + AsyncWrite + Unpin {
    /// Where bytes may be read and written past it, when all that was written to it has left; `None` where it changes them, or
    /// has read ahead.
    fn socket(&self) -> Option<&TcpStream>;
}

/// How a connection left here.
#[derive(Debug)]
pub enum Served {
    /// It has ended.
    Ended,
    /// It goes on with a request that is not plain; what was read of it.
    Unusual(BytesMut),
}

/// Answers requests of a client until the connection ends or one of them is not plain.
pub async fn serve<S: ClientSocket>(proxy: &Arc<Proxy>, stream: &mut S, origin: &Arc<Origin>) -> io::Result<Served> {
    let mut input = BytesMut::new();
    let mut origin = Arc::clone(origin);
    let mut waits = Waits::default();
    loop {
        let deadline = Instant::now() + origin.limits.header_timeout;
        let mut seen = 0;
        let (request, is_last) = loop {
            match request::read(&mut input, seen) {
                Arrived::Plain { request, is_last } => break (request, is_last),
                Arrived::Unusual => return Ok(Served::Unusual(input)),
                Arrived::Refused(why) => return refuse(proxy, stream, &origin, &mut input, &why).await,
                Arrived::Partial if input.len() >= origin.limits.max_header_size as usize => {
                    return refuse(proxy, stream, &origin, &mut input, &Own::HeadTooLarge).await;
                }
                Arrived::Partial => seen = input.len(),
            }
            let is_idle = input.is_empty();
            let read = std::future::poll_fn(|cx| {
                // Who has just spoken is answered.
                if let Poll::Ready(read) = poll_input(stream, cx, &mut input) {
                    return Poll::Ready(read.map(Some));
                }
                if is_idle && waits.ear.poll(cx, &proxy.close_idle).is_ready() {
                    return Poll::Ready(Ok(None));
                }
                waits.timer.poll(cx, deadline).map(|()| Err(io::ErrorKind::TimedOut.into()))
            });
            if matches!(read.await?, None | Some(0)) {
                return Ok(Served::Ended);
            }
        };
        if input.is_empty() {
            // What idles holds no memory.
            input = BytesMut::new();
        }
        if let Some(newer) = proxy.fronts.newer(&origin) {
            origin = newer;
        }
        let to_head = request.method == Method::HEAD;
        let mut client = Client::new(&mut *stream, &mut input);
        let Some(mut reply) = answer(proxy, &mut client, &mut waits, &origin, request).await? else {
            return Ok(Served::Ended);
        };
        if is_last {
            reply.head.fields.insert(&CONNECTION, HeaderValue::from_static("close"));
        }
        let closes = reply.head.fields.get(&CONNECTION) == Some(b"close");
        if !send(&mut client, reply, to_head, origin.limits.send_timeout).await? {
            return Ok(Served::Ended);
        }
        if closes || client.has_ended {
            stream.shutdown().await?;
            return Ok(Served::Ended);
        }
    }
}

/// A client that waits for its answer.
struct Client<'a, S> {
    stream: &'a mut S,
    input: &'a mut BytesMut,
    /// When its request was there.
    spoke_at: Instant,
    /// It sends nothing more, and still wants its answer.
    has_ended: bool,
}

impl<'a, S: ClientSocket> Client<'a, S> {
    fn new(stream: &'a mut S, input: &'a mut BytesMut) -> Self {
        Self { stream, input, spoke_at: Instant::now(), has_ended: false }
    }

    /// Whether it leaves. One that sends its next request meanwhile does not.
    fn poll_leaves(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_ended || !self.input.is_empty() {
            return Poll::Pending;
        }
        if ready!(poll_input(self.stream, cx, self.input))? == 0 {
            self.has_ended = self.spoke_at.elapsed() < HALF_CLOSE;
            if !self.has_ended {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }
}

/// Asks for the answer, and passes interim ones on; `None` when the client leaves meanwhile.
async fn answer<S: ClientSocket>(
    proxy: &Proxy,
    client: &mut Client<'_, S>,
    waits: &mut Waits,
    origin: &Origin,
    request: Box<RequestHead>,
) -> io::Result<Option<Reply<Sending>>> {
    let interims = Interims::default();
    let asked = Asked::plainly(request, &interims, waits, client.spoke_at.into_std());
    let mut answer = pin!(forward::answer(proxy, origin, asked));
    loop {
        let waited = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Ok(Waited::Answered(reply))),
            Poll::Pending if interims.are_there() => Poll::Ready(Ok(Waited::Interim)),
            Poll::Pending => client.poll_leaves(cx).map(|left| left.map(|()| Waited::Left)),
        });
        let waited = waited.await?;
        if interims.are_there() {
            client.stream.write_all(&interims.take()).await?;
            client.stream.flush().await?;
        }
        match waited {
            Waited::Answered(reply) => return Ok(Some(reply)),
            Waited::Left => return Ok(None),
            Waited::Interim => {}
        }
    }
}

/// What comes while a client waits.
enum Waited {
    Answered(Reply<Sending>),
    Interim,
    Left,
}

/// Says why what has come is no request, and ends the connection.
async fn refuse<S: ClientSocket>(
    proxy: &Proxy,
    stream: &mut S,
    origin: &Origin,
    input: &mut BytesMut,
    why: &Own,
) -> io::Result<Served> {
    let reply = forward::refuse(proxy, origin, input, why);
    let to_head = matches!(request::first_line(input), Some((b"HEAD", ..)));
    send(&mut Client::new(stream, input), reply, to_head, origin.limits.send_timeout).await?;
    stream.shutdown().await?;
    // Closed while the client still sends, the connection would be reset under the answer.
    let forgetting = async {
        while std::future::poll_fn(|cx| poll_input(stream, cx, input)).await? > 0 {
            input.clear();
        }
        io::Result::Ok(Served::Ended)
    };
    timeout(LINGER, forgetting).await.unwrap_or(Ok(Served::Ended))
}

/// Sends an answer; `false` when the client leaves, or the answer breaks off, before its end. A client that takes nothing for
/// longer than its patience is an error.
async fn send<S: ClientSocket>(
    client: &mut Client<'_, S>,
    mut reply: Reply<Sending>,
    to_head: bool,
    patience: Duration,
) -> io::Result<bool> {
    let length = reply.body.size_hint().exact();
    let output = &mut Spare::take();
    // A small one goes with the head.
    output.reserve(head::ROOM + length.filter(|&length| length <= JOINED as u64).unwrap_or_default() as usize);
    let coding = response::write(&mut reply.head, length, to_head, output);
    let mut body = reply.body;
    if coding == Coding::None {
        write(client.stream, output, Bytes::new(), b"").await?;
        return Ok(true);
    }
    let (mut is_over, mut turns) = (body.is_end_stream(), TURNS);
    if is_over && coding == Coding::Chunked {
        output.extend_from_slice(LAST_CHUNK);
    }
    while !is_over {
        let can_pipe = coding == Coding::Plain && client.stream.socket().is_some();
        let next = std::future::poll_fn(|cx| match poll_next(&mut body, cx, can_pipe) {
            Poll::Ready(Some(Ok(next))) => Poll::Ready(next),
            Poll::Ready(Some(Err(_))) => Poll::Ready(Next::Broken),
            Poll::Ready(None) => Poll::Ready(Next::End),
            // The head need not wait for the first bytes of a slow body.
            Poll::Pending if !output.is_empty() => Poll::Ready(Next::Later),
            Poll::Pending => client.poll_leaves(cx).map(Next::Left),
        });
        let frame = match next.await {
            Next::Frame(frame) => frame,
            Next::Piped(pipe) => {
                let moved = pipe.len();
                if let Some(socket) = client.stream.socket()
                    && !in_time(&mut body, write_piped(socket, output, pipe, patience)).await?
                {
                    return Ok(false);
                }
                body.note_piped(moved);
                is_over = body.is_end_stream();
                continue;
            }
            Next::End => Frame::data(Bytes::new()),
            // Servers that write the two apart are only just behind: in two packets an answer costs a third more.
            Next::Later if turns > 0 => {
                turns -= 1;
                tokio::task::yield_now().await;
                continue;
            }
            Next::Later => match in_time(&mut body, write(client.stream, output, Bytes::new(), b"")).await? {
                true => continue,
                false => return Ok(false),
            },
            Next::Broken => {
                // It must not look whole: what there is of it goes out, and then the connection ends.
                write(client.stream, output, Bytes::new(), b"").await?;
                return Ok(false);
            }
            Next::Left(how) => return how.map(|()| false),
        };
        is_over = body.is_end_stream();
        // Its client did not say that it reads trailers (`TE`), so they may go (RFC 9110 §6.5.1).
        let data = frame.into_data().unwrap_or_default();
        if can_pipe && body.is_worth_a_pipe() && output.len() + data.len() <= JOINED {
            // It goes with what is next to come, if that is there.
            output.extend_from_slice(&data);
            continue;
        }
        let mut tail = &b""[..];
        if coding == Coding::Chunked {
            if !data.is_empty() {
                output.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            }
            tail = match (data.is_empty(), is_over) {
                (true, false) => b"",
                (true, true) => LAST_CHUNK,
                (false, false) => b"\r\n",
                (false, true) => b"\r\n0\r\n\r\n",
            };
        }
        if !in_time(&mut body, write(client.stream, output, data, tail)).await? {
            return Ok(false);
        }
    }
    write(client.stream, output, Bytes::new(), b"").await?;
    Ok(true)
}

/// Whether a piece of an answer was written before the time of its instance was over.
async fn in_time(body: &mut Sending, writing: impl Future<Output = io::Result<()>>) -> io::Result<bool> {
    let mut writing = pin!(writing);
    std::future::poll_fn(|cx| match writing.as_mut().poll(cx) {
        Poll::Ready(written) => Poll::Ready(written.map(|()| true)),
        Poll::Pending => body.poll_over(cx).map(|_| Ok(false)),
    })
    .await
}

/// What comes next of a body.
enum Next {
    Frame(Frame<Bytes>),
    /// Moved into a pipe.
    Piped(Pipe),
    End,
    /// Not now.
    Later,
    Broken,
    /// The client leaves, or its connection breaks.
    Left(io::Result<()>),
}

fn poll_next(body: &mut Sending, cx: &mut Context<'_>, can_pipe: bool) -> Poll<Option<Result<Next, BrokenAnswer>>> {
    if can_pipe
        && body.is_worth_a_pipe()
        && let Some(mut pipe) = Pipe::take()
    {
        return body.poll_pipe(cx, &mut pipe).map(|moved| moved.map(|moved| moved.map(|_| Next::Piped(pipe))));
    }
    Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map(Next::Frame)))
}

/// Writes what is in `output`, which is empty then, and what is in the pipe.
async fn write_piped(socket: &TcpStream, output: &mut Vec<u8>, mut pipe: Pipe, patience: Duration) -> io::Result<()> {
    let mut timer = Timer::default();
    let mut written = 0;
    while written < output.len() || !pipe.is_empty() {
        let deadline = Instant::now() + patience;
        std::future::poll_fn(|cx| match socket.poll_write_ready(cx) {
            Poll::Ready(ready) => Poll::Ready(ready),
            Poll::Pending => timer.poll(cx, deadline).map(|()| Err(io::ErrorKind::TimedOut.into())),
        })
        .await?;
        let wrote = match written < output.len() {
            true if pipe.is_empty() => socket.try_write(&output[written..]).map(|bytes| written += bytes),
            true => pipe::write_ahead(socket, &output[written..]).map(|bytes| written += bytes),
            false => pipe.drain(socket),
        };
        match wrote {
            Err(error) if pipe::is_to_be_repeated(&error) => {}
            wrote => wrote?,
        }
    }
    output.clear();
    Ok(())
}

/// Writes what is in `output`, which is empty then, the data and what belongs behind it.
async fn write<S>(stream: &mut S, output: &mut Vec<u8>, data: Bytes, tail: &'static [u8]) -> io::Result<()>
where
    S: ClientSocket,
{
    if output.len() + data.len() <= JOINED {
        output.extend_from_slice(&data);
        output.extend_from_slice(tail);
        drop(data);
        let written = match stream.socket() {
            Some(socket) if !output.is_empty() => {
                // As a poll of the stream would: one that never waits for its client lets others have their turn.
                consume_budget().await;
                socket::write_now(socket, output)?
            }
            _ => 0,
        };
        stream.write_all(&output[written..]).await?;
    } else {
        stream.write_all_buf(&mut output.as_slice().chain(data).chain(tail)).await?;
    }
    output.clear();
    // TLS keeps what the socket did not take.
    stream.flush().await
}

/// Adds what there is to `input`.
fn poll_input<S: ClientSocket>(stream: &mut S, cx: &mut Context<'_>, input: &mut BytesMut) -> Poll<io::Result<usize>> {
    match stream.socket() {
        Some(socket) => socket::poll_read(socket, cx, input),
        None => poll_plaintext(stream, cx, input),
    }
}

/// Through a buffer that is there only meanwhile.
#[inline(never)]
fn poll_plaintext<S: ClientSocket>(
    stream: &mut S,
    cx: &mut Context<'_>,
    input: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    let mut space = [const { MaybeUninit::uninit() }; socket::READ];
    let mut read = ReadBuf::uninit(&mut space);
    ready!(Pin::new(stream).poll_read(cx, &mut read))?;
    input.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}
