//! A constant load of requests that counts what it gets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Clients that keep their connection, and clients that open one per request.
const KEEPING: usize = 4;
const FRESH: usize = 4;
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(4);
/// An answer that takes longer counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients at work.
pub struct Load {
    clients: JoinSet<()>,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    /// Starts the clients.
    pub fn start(proxy: SocketAddr, host: &str) -> Self {
        let (stop, counts) = (CancellationToken::new(), Arc::new(Counts::default()));
        let mut clients = JoinSet::new();
        for client in 0..KEEPING + FRESH {
            let work = visit(proxy, host.to_owned(), client < KEEPING, stop.clone(), counts.clone());
            clients.spawn(work);
        }
        Self { clients, stop, counts }
    }

    /// Requests answered with success, and all others.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.answered.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }

    /// Lets every client finish its request, then counts.
    pub async fn stop(mut self) -> (u64, u64) {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.counts()
    }
}

async fn visit(proxy: SocketAddr, host: String, keep: bool, stop: CancellationToken, counts: Arc<Counts>) {
    let mut connection: Option<SendRequest<Empty<Bytes>>> = None;
    while !stop.is_cancelled() {
        let result = tokio::time::timeout(PATIENCE, request(proxy, &host, &mut connection)).await;
        let counter = if matches!(result, Ok(Ok(()))) { &counts.answered } else { &counts.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        if !keep || !matches!(result, Ok(Ok(()))) {
            connection = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn request(
    proxy: SocketAddr,
    host: &str,
    connection: &mut Option<SendRequest<Empty<Bytes>>>,
) -> anyhow::Result<()> {
    // A server may close a kept connection between two requests; that is no failure.
    if let Some(kept) = connection
        && kept.ready().await.is_err()
    {
        *connection = None;
    }
    let sender = match connection {
        Some(kept) => kept,
        None => {
            let stream = TcpStream::connect(proxy).await?;
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            connection.insert(sender)
        }
    };
    let request = Request::get("/").header(HOST, host).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status().is_success(), "{}", response.status());
    response.into_body().collect().await?;
    Ok(())
}
