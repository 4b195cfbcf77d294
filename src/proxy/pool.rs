//! Connections to one instance. A connection lives in exactly one place: the pool while idle, else the request that
//! uses it, which also drives it. Nothing is spawned for it until it ends, and a broken one is seen the moment it is
//! taken.
//!
//! A request that takes idle connections makes one only when there is none, so these are never more than were lately
//! in use at once. Requests with a connection of their own would add one each; theirs are kept up to [`ENOUGH`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Request;
use hyper::body::Frame;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::http1::{Exchange, Interims, LARGEST_HEAD, LinkError, Pipe, Unanswered};
use super::instance::lock;
use super::message::{ForInstance, Reply};
use super::multiplexed::{Multiplexed, Stream};
use super::relay::Source;
use super::upload::Outgoing;

/// How long a connection may idle: below the keep-alive limits of common servers (Node closes after 5 s).
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// With this many idle connections, those of requests that take none are not kept.
const ENOUGH: usize = 32;
/// How long an instance may take to close a connection after its last answer.
const LEAVE_LIMIT: Duration = Duration::from_millis(100);
/// A stopped container's address does not refuse, it is silent.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(1);

type Io = TokioIo<TcpStream>;

/// How a request is said to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// In HTTP/1.1, without a body or an upgrade: on the shorter way.
    Plain,
    /// In HTTP/1.1.
    Any,
    /// In HTTP/2.
    Http2,
}

/// The connections of one instance that are idle, and those that are shared.
#[derive(Debug)]
pub struct Pool {
    address: SocketAddr,
    http2: OnceLock<Arc<Multiplexed>>,
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    /// Closed when the instance leaves the table: what comes back then is dropped.
    open: bool,
    #[expect(clippy::vec_box, reason = "a link is large and moves between the pool and requests all the time")]
    links: Vec<Box<Link>>,
}

impl Pool {
    /// Of the instance at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, http2: OnceLock::new(), idle: Mutex::new(Idle { open: true, links: Vec::new() }) }
    }

    /// Where the instance is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An idle connection that is not known to be closed; the one used last, so that the others may age. `now` may be of
    /// a moment ago.
    pub fn take(&self, speech: Speech, now: Instant) -> Option<Box<Link>> {
        if speech == Speech::Http2 {
            return self.http2.get()?.share().map(|stream| Link::new(Wire::Http2(stream), true));
        }
        loop {
            let mut link = lock(&self.idle).links.pop()?;
            if link.is_usable(now) {
                return Some(link);
            }
        }
    }

    /// A new connection, by hand of the request that needs it.
    pub async fn connect(&self, speech: Speech) -> io::Result<Box<Link>> {
        let wire = match speech {
            Speech::Plain => Wire::Plain(Exchange::new(dial(self.address).await?)),
            Speech::Any => {
                let socket = TokioIo::new(dial(self.address).await?);
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(LARGEST_HEAD)
                    .handshake(socket)
                    .await
                    .map_err(io::Error::other)?;
                Wire::Any(Any { sender, connection: Some(connection), closed: None })
            }
            Speech::Http2 => Wire::Http2(self.http2.get_or_init(Arc::default).begin(self.address).await?),
        };
        Ok(Link::new(wire, false))
    }

    /// Keeps a connection for the next request, if it can take one.
    pub fn put(&self, mut link: Box<Link>) {
        if link.ends || !link.is_ready() || link.idle_limit.is_zero() {
            link.leave();
            return;
        }
        let is_extra = std::mem::take(&mut link.is_extra);
        link.reused = true;
        link.idle_since = Instant::now();
        let mut idle = lock(&self.idle);
        if idle.open && !(is_extra && idle.links.len() >= ENOUGH) {
            idle.links.push(link);
        }
    }

    /// Whether requests that take no idle connection need not leave theirs.
    pub fn has_enough(&self) -> bool {
        lock(&self.idle).links.len() >= ENOUGH
    }

    /// Closes what is idle, now and from now on.
    pub fn close(&self) {
        let mut idle = lock(&self.idle);
        idle.open = false;
        let links = std::mem::take(&mut idle.links);
        drop(idle);
        drop(links);
        if let Some(http2) = self.http2.get() {
            http2.forget();
        }
    }

    /// Takes connections back again.
    pub fn open(&self) {
        lock(&self.idle).open = true;
    }

    /// Closes what idled too long or was closed from the other side.
    pub fn sweep(&self) {
        if let Some(http2) = self.http2.get() {
            http2.sweep();
        }
        let mut idle = lock(&self.idle);
        if !idle.links.is_empty() {
            let now = Instant::now();
            idle.links.retain_mut(|link| link.is_usable(now));
        }
    }
}

/// A socket to an instance.
pub(super) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let connecting = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address));
    let socket = connecting.await.map_err(|_| not_in_time())??;
    socket.set_nodelay(true)?;
    Ok(socket)
}

pub(super) fn not_in_time() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_LIMIT:?}"))
}

/// One connection to an instance.
pub struct Link {
    wire: Wire,
    /// Whether it has carried a request before, so that its other side may have been closing it.
    pub reused: bool,
    /// Made although there may have been idle ones.
    pub is_extra: bool,
    /// The instance was asked to close it after its answer.
    pub ends: bool,
    idle_since: Instant,
    idle_limit: Duration,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("reused", &self.reused).finish_non_exhaustive()
    }
}

/// Who speaks on a connection.
#[expect(clippy::large_enum_variant, reason = "a link is boxed")]
enum Wire {
    /// For requests without a body.
    Plain(Exchange),
    /// hyper, for all.
    Any(Any),
    /// On one that others share.
    Http2(Stream),
}

struct Any {
    sender: SendRequest<Outgoing>,
    /// Gone once the connection has ended.
    connection: Option<Connection<Io, Outgoing>>,
    /// What was left when it ended: the socket and bytes that were read but not understood.
    closed: Option<Parts<Io>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum SendError {
    /// Nothing of the request was written: here it is again.
    NotSent(Box<ForInstance>, LinkError),
    /// The connection ended after (part of) the request was written.
    Broken {
        /// How.
        error: LinkError,
        /// Not one byte of an answer had come, or none that anybody was shown.
        silent: bool,
        /// The request again, if it was to be kept.
        request: Option<Box<ForInstance>>,
    },
}

impl Link {
    fn new(wire: Wire, reused: bool) -> Box<Self> {
        Box::new(Self {
            wire,
            reused,
            is_extra: false,
            ends: false,
            idle_since: Instant::now(),
            idle_limit: IDLE_LIMIT,
        })
    }

    /// Sends a request and waits for the head of the answer until `cut` comes, moving the connection's bytes meanwhile. A
    /// request that has no body and `is_kept` comes back when it is not answered. Interim answers are added to `interims`,
    /// but for those that hyper reads: it shows them to nobody.
    pub async fn send(
        &mut self,
        request: ForInstance,
        is_kept: bool,
        interims: Option<&Interims>,
        cut: impl Future<Output = ()>,
    ) -> Result<Reply<Source>, SendError> {
        match &mut self.wire {
            Wire::Plain(exchange) => match exchange.send_until(&request.head, interims, cut).await {
                Ok(head) => Ok(Reply { head, body: Source::Link }),
                Err(Unanswered { error, is_unsent: true, .. }) => Err(SendError::NotSent(Box::new(request), error)),
                Err(Unanswered { error, is_silent, .. }) => {
                    let request = is_kept.then(|| Box::new(request));
                    Err(SendError::Broken { error, silent: is_silent, request })
                }
            },
            Wire::Any(any) => any.send(request.into_request(), is_kept, cut).await,
            Wire::Http2(stream) => stream.send(request.into_request(), is_kept, cut).await,
        }
    }

    /// Moves the connection's bytes; to be called before its answer's body is polled.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Wire::Any(any) = &mut self.wire {
            any.drive(cx);
        }
    }

    /// The next piece of an answer that is read on the link itself ([`Source::Link`]).
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        match &mut self.wire {
            Wire::Plain(exchange) => exchange.poll_frame(cx),
            Wire::Any(_) | Wire::Http2(_) => Poll::Ready(None),
        }
    }

    /// Whether such a piece is better moved through a pipe.
    pub fn is_worth_a_pipe(&self) -> bool {
        matches!(&self.wire, Wire::Plain(exchange) if exchange.is_worth_a_pipe())
    }

    /// Moves it there; how many bytes that were, 0 when it is to be read after all.
    pub fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, LinkError>>> {
        match &mut self.wire {
            Wire::Plain(exchange) => exchange.poll_pipe(cx, pipe),
            Wire::Any(_) | Wire::Http2(_) => Poll::Ready(None),
        }
    }

    /// How much of such an answer is still to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match &self.wire {
            Wire::Plain(exchange) => exchange.left(),
            Wire::Any(_) | Wire::Http2(_) => Some(0),
        }
    }

    /// Whether it can take a request at once.
    pub fn is_ready(&self) -> bool {
        match &self.wire {
            Wire::Plain(exchange) => exchange.is_ready(),
            Wire::Any(any) => any.is_ready(),
            // It is nobody's to keep.
            Wire::Http2(_) => false,
        }
    }

    /// The instance announced how long it keeps idle connections (`Keep-Alive: timeout=…`): stay well below.
    pub fn keep_at_most(&mut self, announced: Duration) {
        self.idle_limit = IDLE_LIMIT.min(announced.mul_f32(0.8));
    }

    /// Whether its bytes move although nobody drives it.
    pub fn moves_by_itself(&self) -> bool {
        matches!(self.wire, Wire::Http2(_))
    }

    /// Lets the connection go on by itself until the exchange under way ends, then closes it.
    /// Dropping what is returned breaks it off.
    // Made where it is needed, the task's kilobytes would be on the stack of each request.
    #[inline(never)]
    pub fn detach(self: Box<Self>) -> AbortOnDropHandle<()> {
        let connection = match self.wire {
            Wire::Any(any) => any.without_sender(),
            Wire::Plain(_) | Wire::Http2(_) => None,
        };
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(connection) = connection
                && let Err(error) = connection.await
            {
                tracing::debug!(%error, "connection to an instance ended");
            }
        }))
    }

    /// Lets the instance close first: who does so keeps the port for a minute, and this side runs out of them.
    // As with `detach`.
    #[inline(never)]
    fn leave(self: Box<Self>) {
        let wire = self.wire;
        if let Wire::Http2(_) = wire {
            return;
        }
        tokio::spawn(tokio::time::timeout(LEAVE_LIMIT, async move {
            let socket = match wire {
                Wire::Plain(exchange) => Some(exchange.into_socket()),
                Wire::Any(any) => any.into_socket().await.map(|(socket, _)| socket),
                Wire::Http2(_) => None,
            };
            if let Some(mut socket) = socket {
                while matches!(socket.read(&mut [0; 512]).await, Ok(1..)) {}
            }
        }));
    }

    /// After a 101: the bare socket, and what came behind the head.
    pub async fn into_socket(self: Box<Self>) -> Option<(TcpStream, Bytes)> {
        match self.wire {
            // Nobody asks for an upgrade there.
            Wire::Plain(_) | Wire::Http2(_) => None,
            Wire::Any(any) => any.into_socket().await,
        }
    }

    fn is_usable(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.idle_since) >= self.idle_limit {
            return false;
        }
        // Reads, so an end of the stream that has arrived is found.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.is_ready()
    }
}

impl Any {
    async fn send(
        &mut self,
        request: Request<Outgoing>,
        is_kept: bool,
        cut: impl Future<Output = ()>,
    ) -> Result<Reply<Source>, SendError> {
        let kept = is_kept.then(|| without_body(&request));
        let mut answer = pin!(self.sender.try_send_request(request));
        let outcome = std::future::poll_fn(|cx| {
            drive(&mut self.connection, &mut self.closed, cx);
            answer.as_mut().poll(cx)
        });
        tokio::select! {
            biased;
            answered = outcome => {
                answered.map(|answer| answer.map(Source::Incoming).into()).map_err(|error| self.explain(error, kept))
            }
            // Only hyper knows whether a byte of the head has come; nobody has been shown one.
            () = cut => {
                let request = kept.map(|request| Box::new(request.into()));
                Err(SendError::Broken { error: LinkError::Cut, silent: true, request })
            }
        }
    }

    fn explain(&self, mut error: TrySendError<Request<Outgoing>>, kept: Option<Request<Outgoing>>) -> SendError {
        match error.take_message() {
            Some(request) => SendError::NotSent(Box::new(request.into()), error.into_error().into()),
            None => {
                let error = error.into_error();
                let nothing_read = self.closed.as_ref().is_some_and(|parts| parts.read_buf.is_empty());
                let silent = nothing_read && !error.is_parse();
                SendError::Broken { error: error.into(), silent, request: kept.map(|request| Box::new(request.into())) }
            }
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, &mut self.closed, cx);
    }

    fn is_ready(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// It ends by itself after the exchange under way.
    fn without_sender(self) -> Option<Connection<Io, Outgoing>> {
        self.connection
    }

    /// When the exchange under way has ended: the bare socket, and what came behind it.
    async fn into_socket(self) -> Option<(TcpStream, Bytes)> {
        let Self { sender, mut connection, mut closed } = self;
        // Without a sender the connection ends by itself.
        drop(sender);
        std::future::poll_fn(|cx| {
            drive(&mut connection, &mut closed, cx);
            if connection.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        closed.map(|parts| (parts.io.into_inner(), parts.read_buf))
    }
}

/// The same head, to be sent again.
pub(super) fn without_body(request: &Request<Outgoing>) -> Request<Outgoing> {
    let mut copy = Request::new(Outgoing::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn drive(connection: &mut Option<Connection<Io, Outgoing>>, closed: &mut Option<Parts<Io>>, cx: &mut Context<'_>) {
    let Some(running) = connection else { return };
    // Its end is not announced to the other side: `leave` lets that one go first, and all others drop the socket.
    if running.poll_without_shutdown(cx).is_ready() {
        // Taking it apart also answers a request that was still queued.
        *closed = connection.take().map(Connection::into_parts);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A connection that has had its request.
    async fn used(pool: &Pool, is_extra: bool) -> Box<Link> {
        let mut link = pool.connect(if is_extra { Speech::Any } else { Speech::Plain }).await.unwrap();
        link.drive(&mut Context::from_waker(Waker::noop()));
        link.is_extra = is_extra;
        link
    }

    #[tokio::test]
    async fn connections_of_single_requests_are_kept_up_to_a_bound_and_others_beyond_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Pool::new(listener.local_addr().unwrap());
        for kept in 0..ENOUGH {
            assert!(!pool.has_enough(), "{kept}");
            pool.put(used(&pool, true).await);
        }
        assert!(pool.has_enough());
        pool.put(used(&pool, true).await);
        assert_eq!(lock(&pool.idle).links.len(), ENOUGH, "one more is closed");

        let shared = used(&pool, false).await;
        let taken = pool.take(Speech::Plain, Instant::now()).unwrap();
        assert!(taken.reused && !taken.is_extra, "it is like any other now");
        pool.put(taken);
        pool.put(shared);
        assert_eq!(lock(&pool.idle).links.len(), ENOUGH + 1);
    }

    #[tokio::test]
    async fn a_connection_that_ends_is_closed_by_the_instance() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Pool::new(listener.local_addr().unwrap());
        let mut link = used(&pool, true).await;
        let (mut instance, _) = listener.accept().await.unwrap();
        link.ends = true;
        pool.put(link);
        tokio::task::yield_now().await;
        let too_early = instance.try_read(&mut [0]).unwrap_err();
        assert_eq!(too_early.kind(), io::ErrorKind::WouldBlock, "the instance has the first word");
        // One that does not take it is closed all the same.
        assert_eq!(instance.read(&mut [0]).await.unwrap(), 0);
    }
}
