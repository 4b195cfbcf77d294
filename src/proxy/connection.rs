//! One connection of a client, from its first byte to its end, in whichever version of HTTP it speaks.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hyper::rt::Executor;
use hyper::server::conn::{http1 as any_http1, http2};
use hyper::service::service_fn;
use hyper::{StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval_at, timeout};
use tokio_io_timeout::TimeoutWriter;

use super::clients::Refused;
use super::forward;
use super::headers::Origin;
use super::http1::{self, ClientSocket, Served};
use super::server::Proxy;
use super::stream::ClientStream;
use super::streams::Streams;
use super::taking::Taking;
use super::tls;
use super::wait::unless_cancelled;
use super::watched::{Switched, Watched};

/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// What may be on its way to the proxy for one stream, and for all of a connection: this much is kept for an instance
/// that does not read.
const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// What is kept of one stream's answer for a client that does not read.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that a client opened and reset before they were looked at: it may change its mind of all that it may have open at
/// once, but not again and again. Beyond it the connection is ended (CVE-2023-44487).
const RESETS: usize = STREAMS as usize;
/// Streams that the proxy had to reset for a client's mistakes: beyond it the connection is ended.
const MISTAKES: usize = 256;
/// A silent HTTP/2 client is asked for a sign of life this often, and has this long to give one.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));

/// A client that was asked to leave has this long to say that it heard, if it has nothing under way.
const FAREWELL: Duration = Duration::from_secs(5);

/// A client that takes nothing for too long ends it.
type Patient = Pin<Box<TimeoutWriter<ClientStream>>>;

impl ClientSocket for Patient {
    fn socket(&self) -> Option<&TcpStream> {
        self.as_ref().get_ref().get_ref().socket()
    }
}

/// Serves a connection that was accepted, until it ends or everything is closed.
///
/// What most connections never need is boxed, without its type: so it is no part of all of them, nor of the stack under each
/// of their requests.
pub(super) async fn serve(proxy: &Arc<Proxy>, socket: TcpStream, peer: SocketAddr, secure: bool) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "client is gone already");
        return;
    }
    let origin = proxy.fronts.origin(peer.ip().to_canonical(), secure);
    let limits = origin.limits;
    let most = if origin.is_trusted { usize::MAX } else { limits.connections_per_client };
    let _place = match proxy.clients.admit(peer.ip(), most) {
        Ok(place) => place,
        Err(Refused { is_news }) => {
            if is_news {
                tracing::warn!(client = %peer.ip(), most, "refused connections: proxy.limits.connections_per_client");
            }
            return;
        }
    };
    let opened = async {
        match secure {
            true => {
                let tls = proxy.handshakes.accept(proxy, socket).boxed().await?;
                Ok::<_, io::Error>((tls::is_http2(&tls), ClientStream::tls(tls)))
            }
            false => {
                let mut plain = ClientStream::plain(socket);
                let seen = timeout(limits.header_timeout, plain.speaks_http2()).await;
                // It never said a word.
                let is_http2 = seen.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                Ok((is_http2, plain))
            }
        }
    };
    let opened = tokio::select! {
        // Who has just spoken is answered.
        biased;
        opened = opened => opened,
        () = proxy.close_idle.wait() => return,
    };
    let (is_http2, stream) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%peer, %error, "client connection did not begin");
            return;
        }
    };
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(limits.send_timeout));
    let stream = Box::pin(stream);
    let ended = match is_http2 {
        true => serve_http2(proxy, stream, origin).boxed().await.map_err(io::Error::other),
        false => serve_http1(proxy, stream, origin).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "client connection ended");
    }
}

async fn serve_http1(proxy: &Arc<Proxy>, mut stream: Patient, origin: Arc<Origin>) -> io::Result<()> {
    let served = unless_cancelled(&proxy.abort, pin!(http1::serve(proxy, &mut stream, &origin))).await;
    match served.transpose()? {
        None | Some(Served::Ended) => Ok(()),
        Some(Served::Unusual(read)) => {
            stream.as_mut().get_pin_mut().get_mut().put_back(&read);
            serve_any_http1(proxy, stream, origin).boxed().await.map_err(io::Error::other)
        }
    }
}

async fn serve_any_http1(proxy: &Arc<Proxy>, stream: Patient, origin: Arc<Origin>) -> hyper::Result<()> {
    let limits = origin.limits;
    let (switched, taking) = (Switched::default(), Taking::of_connection());
    let service = service_fn(|request| {
        let (proxy, origin) = (Arc::clone(proxy), Arc::clone(&origin));
        let (switched, taking) = (switched.clone(), taking.clone());
        let is_http10 = request.version() == Version::HTTP_10;
        async move {
            let response = forward::handle(proxy, origin, request).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                switched.tell();
            }
            Ok::<_, Infallible>(response.map(|answer| taking.give(answer, is_http10)))
        }
    });
    let connection = any_http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.max_header_size as usize)
        .half_close(true)
        .serve_connection(TokioIo::new(Watched::new(stream, switched.clone(), taking.clone())), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut told_to_close = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            // Its connection learns of it as it is written to.
            () = taking.is_over(None) => {}
            () = proxy.close_idle.wait(), if !told_to_close => {
                told_to_close = true;
                connection.as_mut().graceful_shutdown();
            }
            () = proxy.abort.cancelled() => return Ok(()),
        }
    }
}

tokio::task_local! {
    /// Of the stream that a task runs.
    static TAKING: Taking;
}

/// When the proxy goes, a client is told at once: with GOAWAY twice, so that what it sends before it has read of it is
/// still answered (RFC 9113 §6.8).
async fn serve_http2(proxy: &Arc<Proxy>, stream: Patient, origin: Arc<Origin>) -> hyper::Result<()> {
    let streams = Streams::new();
    let limits = origin.limits;
    let service = service_fn(|request| {
        let (proxy, origin) = (Arc::clone(proxy), Arc::clone(&origin));
        async move {
            let response = forward::handle(proxy, origin, request).await;
            Ok::<_, Infallible>(response.map(|answer| TAKING.with(|taking| taking.give(answer, false))))
        }
    });
    let each = EachStream { proxy: Arc::clone(proxy), of: Arc::clone(&streams), patience: limits.send_timeout };
    let connection = http2::Builder::new(each)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(limits.max_header_size)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(MISTAKES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut look = interval_at(Instant::now() + limits.header_timeout, limits.header_timeout);
    let mut told_to_close = false;
    // hyper has the end of an answer for longer than one wait for a client that takes little.
    let on_its_way = 2 * limits.send_timeout;
    loop {
        let is_over = tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = proxy.leaving.cancelled(), if !told_to_close => true,
            _ = look.tick() => match streams.idle() {
                None => false,
                Some(idle) if !told_to_close => idle.since.elapsed() >= limits.header_timeout,
                Some(idle) if idle.has_had_any && idle.since.elapsed() < on_its_way => false,
                // It has not even said that it heard: one that sends a frame byte by byte would never.
                Some(_) => return Ok(()),
            },
            () = proxy.abort.cancelled() => return Ok(()),
        };
        if is_over {
            told_to_close = true;
            let farewell = FAREWELL.min(limits.header_timeout);
            look = interval_at(Instant::now() + farewell, farewell);
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Runs each stream of a connection in a task of its own.
#[derive(Clone)]
struct EachStream {
    proxy: Arc<Proxy>,
    of: Arc<Streams>,
    /// A client may take nothing of an answer for so long. HTTP/2 has a window for each stream (RFC 9113 §5.2), so the
    /// connection itself may be as lively as ever.
    patience: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for EachStream {
    fn execute(&self, stream: F) {
        let (open, taking, patience) = (self.of.begin(), Taking::of_stream(), self.patience);
        self.proxy.spawn(async move {
            let _open = open;
            let mut stream = pin!(TAKING.scope(taking.clone(), stream));
            tokio::select! {
                biased;
                () = stream.as_mut() => return,
                () = taking.is_over(Some(patience)) => {}
            }
            // Its client is told once it takes more. One that does not is not waited for again: what hyper has of the answer is
            // dropped, and the stream reset, but as cancelled, which there are clients that take for an end (Node.js does).
            let _ = timeout(patience, stream).await;
        });
    }
}
