//! HTTP/2 to an instance that speaks it without TLS, as gRPC servers do (RFC 9113 §3.3, with prior knowledge): one
//! connection for all requests, and another one where the instance allows no more requests at a time on those that there are.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::{Request, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::http1::{LARGEST_HEAD, LinkError};
use super::instance::lock;
use super::message::Reply;
use super::pool::{CONNECT_LIMIT, IDLE_LIMIT, SendError, dial, not_in_time, without_body};
use super::relay::Source;
use super::upload::{BrokenUpload, Outgoing};
use super::upload_tasks::{self, UploadTasks};

/// What an instance may send of one answer before its client takes it. An answer holds no more memory than this.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all answers of a connection: no limit (it is the largest that there is, RFC 9113 §6.9.1). With a lower one a
/// few answers that nobody takes would use it up, and stop all others. What is kept is bounded all the same, by a window
/// for each request under way.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Connections that take requests. With all of them full, a request waits on one for another to end, as long as for an
/// answer: most end soon, and a refusal would turn away what only came in a burst.
const MOST_CONNECTIONS: usize = 32;
/// How long the first request of a connection keeps others waiting until the instance says how many it allows, which is the
/// first thing that it has to say (RFC 9113 §3.4).
const SETTINGS_LIMIT: Duration = Duration::from_secs(1);
/// How many it is taken to allow if it says nothing for that long: what it should allow at least (RFC 9113 §6.5.2). They
/// wait in h2 until it is said.
const PRESUMED: usize = 100;

/// The connections to one instance that take requests.
#[derive(Debug, Default)]
pub struct Multiplexed {
    open: Mutex<Open>,
    /// Held by whoever opens one, and then by the connection until it is known how many requests it takes: of those that
    /// come meanwhile each would open one more.
    opening: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Open {
    begun: u64,
    /// The oldest takes requests first, so that those which a burst has left become idle.
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    sender: SendRequest<Placed>,
    places: Arc<Places>,
    used_at: Instant,
}

/// Requests at a time on one connection.
#[derive(Debug, Default)]
struct Places {
    taken: AtomicUsize,
    /// How many the instance allows; 0 until it has said so.
    allowed: AtomicUsize,
}

/// One of them.
#[derive(Debug)]
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}

/// A request's part of a connection. Its place is taken until its answer is whole and its body is sent, or both are
/// given up.
#[derive(Debug)]
pub struct Stream {
    number: u64,
    sender: SendRequest<Placed>,
    place: Arc<Place>,
    of: Arc<Multiplexed>,
}

impl Multiplexed {
    /// On a connection that is there, is not known to be closed and has room, if there is one.
    pub fn share(self: &Arc<Self>) -> Option<Stream> {
        self.take_place(|connection| connection.has_room())
    }

    /// On a connection that was not there before, which the next requests share.
    pub async fn begin(self: &Arc<Self>, address: SocketAddr) -> io::Result<Stream> {
        let known = lock(&self.open).newest_known();
        let is_new = |connection: &Connection| connection.number > known;
        let Ok(turn) = timeout(CONNECT_LIMIT, Arc::clone(&self.opening).lock_owned()).await else {
            // Whoever had the turn has a connection that is slow to be of use, or none.
            return self.take_place(is_new).ok_or_else(not_in_time);
        };
        // Somebody else may have opened it meanwhile.
        if let Some(stream) = self.take_place(|connection| is_new(connection) && connection.has_room()) {
            return Ok(stream);
        }
        let least = lock(&self.open).least_taken_of_all();
        if let Some(least) = least
            && let Some(stream) = self.take_place(|connection| connection.number == least)
        {
            return Ok(stream);
        }
        self.open_one(address, turn).await
    }

    async fn open_one(self: &Arc<Self>, address: SocketAddr, turn: OwnedMutexGuard<()>) -> io::Result<Stream> {
        let handshake = http2::Builder::new(UploadTasks)
            // None before the instance has said how many: it would refuse those that are too many.
            .initial_max_send_streams(0)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // Of trailers as well: of larger ones h2 drops fields and tells nobody.
            .max_header_list_size(LARGEST_HEAD as u32)
            .handshake(TokioIo::new(dial(address).await?));
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        let places = Arc::new(Places::default());
        let running = upload_tasks::among(run(connection, Arc::clone(&places), turn));
        // It ends by itself when nobody can send on it any more and all answers are there.
        tokio::spawn(async move {
            if let Err(error) = running.await {
                tracing::debug!(%address, %error, "connection to an instance ended");
            }
        });
        let mut open = lock(&self.open);
        open.begun += 1;
        let connection = Connection { number: open.begun, sender, places, used_at: Instant::now() };
        let stream = self.stream_on(&connection);
        open.connections.push(connection);
        Ok(stream)
    }

    /// On the oldest of these.
    fn take_place(self: &Arc<Self>, is_fit: impl Fn(&Connection) -> bool) -> Option<Stream> {
        let mut open = lock(&self.open);
        open.connections.retain(|connection| !connection.sender.is_closed());
        let connection = open.connections.iter_mut().find(|connection| is_fit(connection))?;
        connection.used_at = Instant::now();
        Some(self.stream_on(connection))
    }

    fn stream_on(self: &Arc<Self>, connection: &Connection) -> Stream {
        connection.places.taken.fetch_add(1, Relaxed);
        let place = Arc::new(Place(Arc::clone(&connection.places)));
        Stream { number: connection.number, sender: connection.sender.clone(), place, of: Arc::clone(self) }
    }

    /// What is under way ends there; the next request takes a new connection.
    pub fn forget(&self) {
        let forgotten = std::mem::take(&mut lock(&self.open).connections);
        drop(forgotten);
    }

    /// The same for one of them.
    fn forget_one(&self, number: u64) {
        lock(&self.open).connections.retain(|connection| connection.number != number);
    }

    /// Closes those that a burst has left and that idled too long. The oldest stays.
    pub fn sweep(&self) {
        let mut oldest = true;
        lock(&self.open).connections.retain(|connection| {
            let is_idle = connection.places.taken.load(Relaxed) == 0 && connection.used_at.elapsed() >= IDLE_LIMIT;
            !connection.sender.is_closed() && (std::mem::take(&mut oldest) || !is_idle)
        });
    }
}

impl Open {
    /// The newest that has said how many requests it takes. What is newer is only just being made.
    fn newest_known(&self) -> u64 {
        let known = self.connections.iter().filter(|connection| connection.places.allowed.load(Relaxed) > 0);
        known.map(|connection| connection.number).max().unwrap_or_default()
    }

    /// Where a request waits, if there may be no more connections.
    fn least_taken_of_all(&self) -> Option<u64> {
        let taken = |connection: &&Connection| connection.places.taken.load(Relaxed);
        let is_full = self.connections.len() >= MOST_CONNECTIONS;
        is_full.then(|| self.connections.iter().min_by_key(taken).map(|connection| connection.number)).flatten()
    }
}

impl Connection {
    fn has_room(&self) -> bool {
        self.places.taken.load(Relaxed) < self.places.allowed.load(Relaxed)
    }
}

/// Moves a connection's bytes until it ends, and notes how many requests it takes.
async fn run(
    mut connection: http2::Connection<TokioIo<TcpStream>, Placed, UploadTasks>,
    places: Arc<Places>,
    turn: OwnedMutexGuard<()>,
) -> hyper::Result<()> {
    let mut poll = |cx: &mut Context<'_>| {
        let polled = Pin::new(&mut connection).poll(cx);
        // hyper looks at it when it gets a request, and when one that waited may go: so this is known with the first.
        match connection.current_max_send_streams() {
            // Not said yet, or for the moment alone.
            0 => {}
            allowed => places.allowed.store(allowed, Relaxed),
        }
        polled
    };
    let introduction = std::future::poll_fn(|cx| match poll(cx) {
        Poll::Pending if places.allowed.load(Relaxed) == 0 => Poll::Pending,
        polled => Poll::Ready(polled),
    });
    match timeout(SETTINGS_LIMIT, introduction).await {
        Ok(Poll::Ready(ended)) => return ended,
        Ok(Poll::Pending) => {}
        Err(_) => places.allowed.store(PRESUMED, Relaxed),
    }
    drop(turn);
    std::future::poll_fn(poll).await
}

/// A request's body, with the place that it takes.
#[derive(Debug)]
struct Placed {
    body: Outgoing,
    _place: Arc<Place>,
}

impl Body for Placed {
    type Data = Bytes;
    type Error = BrokenUpload;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        let body = &mut self.get_mut().body;
        if let Outgoing::Upload(_, progress) = body {
            upload_tasks::note(progress);
        }
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
        let request = in_http2(request).map(|body| Placed { body, _place: Arc::clone(&self.place) });
        let answered = tokio::select! {
            biased;
            answered = self.sender.try_send_request(request) => answered,
            () = cut => {
                let request = kept.map(|request| Box::new(request.into()));
                return Err(SendError::Broken { error: LinkError::Cut, silent: true, request });
            }
        };
        match answered {
            Ok(answer) => Ok(answer.map(Source::Incoming).into()),
            Err(mut error) => {
                self.of.forget_one(self.number);
                Err(match error.take_message() {
                    Some(unsent) => {
                        let unsent = in_http1(unsent.map(|placed| placed.body));
                        SendError::NotSent(Box::new(unsent.into()), error.into_error().into())
                    }
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
