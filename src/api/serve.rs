//! The agent's listeners: connections with deadlines, and an end that does not wait for open streams.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use nix::unistd::Uid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::auth::LocalPeer;
use super::problem::Problem;

/// A request's head must arrive within this time; an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at once per listener; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// How long requests under way may take once the agent ends.
const GRACE: Duration = Duration::from_secs(4);
/// Out of file descriptors: the next accept would fail at once as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Cancelled when the agent ends; streams end with it. Handlers get it from their request.
#[derive(Debug, Clone, Default)]
pub(super) struct Closing(pub CancellationToken);

impl<S: Send + Sync> FromRequestParts<S> for Closing {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Serves `router` over TCP until `shutdown`; handlers find the peer as `ConnectInfo<SocketAddr>`.
pub async fn serve_tcp(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let server = Server::new(shutdown);
    let accept = || async {
        let (stream, peer) = listener.accept().await?;
        // Answers are small: waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        Ok((stream, ConnectInfo::<SocketAddr>(peer)))
    };
    server.run(accept, |_| router.clone()).await;
}

/// Serves `router` over the agent's own socket until `shutdown`. Root and the agent's own user have every right
/// ([`LocalPeer`]); others are told so.
pub async fn serve_unix(listener: UnixListener, router: Router, shutdown: CancellationToken) {
    let server = Server::new(shutdown);
    let own = Uid::effective().as_raw();
    let accept = || async {
        let (stream, _) = listener.accept().await?;
        let peer = peer_of(&stream)?;
        Ok((stream, peer))
    };
    let refused = Router::new().fallback(move || async move {
        Problem::new(StatusCode::FORBIDDEN, format!("the agent's socket serves root and user {own} only; use a token"))
    });
    let choose = |peer: &LocalPeer| {
        if peer.uid == 0 || peer.uid == own {
            return router.clone();
        }
        tracing::warn!(uid = peer.uid, pid = peer.pid, "another user tried the agent's socket");
        refused.clone()
    };
    server.run(accept, choose).await;
}

fn peer_of(stream: &UnixStream) -> std::io::Result<LocalPeer> {
    let credentials = stream.peer_cred()?;
    Ok(LocalPeer { uid: credentials.uid(), pid: credentials.pid() })
}

struct Server {
    shutdown: CancellationToken,
    connections: Arc<Semaphore>,
    graceful: GracefulShutdown,
    /// Cancelled when the grace is over.
    cut: CancellationToken,
}

impl Server {
    fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            graceful: GracefulShutdown::new(),
            cut: CancellationToken::new(),
        }
    }

    /// `choose` picks the router that serves a peer; its requests carry the peer as an extension.
    async fn run<IO, P, F>(self, accept: impl Fn() -> F, choose: impl Fn(&P) -> Router)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        P: Clone + Send + Sync + 'static,
        F: Future<Output = std::io::Result<(IO, P)>>,
    {
        let next = || async {
            // Never closed, so a permit always comes.
            let permit = Arc::clone(&self.connections).acquire_owned().await.ok();
            (permit, accept().await)
        };
        loop {
            let (permit, accepted) = tokio::select! {
                next = next() => next,
                () = self.shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.serve(stream, choose(&peer), peer, permit),
                Err(err) if is_of_one_connection(&err) => {}
                Err(err) => {
                    tracing::error!(%err, "cannot accept connections");
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                        () = self.shutdown.cancelled() => break,
                    }
                }
            }
        }
        if tokio::time::timeout(GRACE, self.graceful.shutdown()).await.is_err() {
            self.cut.cancel();
            tracing::warn!("requests were cut off: they took longer than {} s", GRACE.as_secs());
        }
    }

    fn serve<IO, P>(&self, stream: IO, router: Router, peer: P, permit: Option<OwnedSemaphorePermit>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        P: Clone + Send + Sync + 'static,
    {
        let closing = Closing(self.shutdown.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(closing.clone());
            router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            // Without a timer the timeout would not apply.
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        let cut = self.cut.clone();
        tokio::spawn(async move {
            // A connection that breaks is its client's affair.
            if let Some(Err(err)) = cut.run_until_cancelled_owned(connection).await {
                tracing::debug!(%err, "a connection ended early");
            }
            drop(permit);
        });
    }
}

fn is_of_one_connection(err: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(err.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | NotConnected)
}
