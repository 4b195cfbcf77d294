//! Clients that ask for one path through the proxy all the time, from outside, and keep what became of each request.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::tally::{Failure, Tally};
use crate::text::with_causes;

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(5);
/// An answer that takes longer is none: longer than the proxy itself waits for an instance.
const PATIENCE: Duration = Duration::from_secs(75);
/// Finds a request in the app's own log.
const ID: &str = "x-longshore-prove";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Question {
    /// The proxy, as host and port.
    pub proxy: String,
    /// The app's domain.
    pub host: String,
    /// The path.
    pub path: String,
}

/// Clients at work.
pub struct Visitors {
    clients: JoinSet<()>,
    stop: CancellationToken,
    tally: Arc<Mutex<Tally>>,
}

impl Visitors {
    /// Sends out so many, every other one with a new connection for each request.
    pub fn send(question: &Question, connections: u32) -> Self {
        let (stop, tally) = (CancellationToken::new(), Arc::new(Mutex::new(Tally::default())));
        let mut clients = JoinSet::new();
        for number in 0..connections {
            let (stop, tally) = (stop.clone(), Arc::clone(&tally));
            let visitor = Visitor { question: question.clone(), number, keeps: number % 2 == 0, kept: None };
            clients.spawn(visitor.visit(stop, tally));
        }
        Self { clients, stop, tally }
    }

    /// Says that what ends from now on ends during the rollout, or no longer.
    pub fn rolling(&self, rolling: bool) {
        lock(&self.tally).rolling = rolling;
    }

    /// What is known so far.
    pub fn so_far(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Lets each client finish its request.
    pub async fn come_back(mut self) -> Tally {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.so_far()
    }
}

/// A few assignments stay sound even if a holder panicked.
fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Visitor {
    question: Question,
    number: u32,
    keeps: bool,
    kept: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// Ends with an error when something comes that nobody asked for.
    driver: JoinHandle<hyper::Result<()>>,
}

impl Visitor {
    async fn visit(mut self, stop: CancellationToken, tally: Arc<Mutex<Tally>>) {
        let mut count = 0_u64;
        while !stop.is_cancelled() {
            count += 1;
            let id = format!("{}-{count}", self.number);
            let began = Instant::now();
            let answered = match tokio::time::timeout(PATIENCE, self.request(&id)).await {
                Ok(answered) => answered,
                Err(_) => Err(format!("no complete answer within {} s", PATIENCE.as_secs())),
            };
            match answered {
                Ok(()) => lock(&tally).answered(began.elapsed()),
                Err(why) => {
                    self.kept = None;
                    let after_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    lock(&tally).failed(Failure { id, kept_connection: self.keeps, after_ms, why });
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// One request: it must get one complete answer that is the app's.
    async fn request(&mut self, id: &str) -> Result<(), String> {
        let Question { host, path, .. } = &self.question;
        let mut request = Request::get(path).header(HOST, host).header(ID, id);
        if !self.keeps {
            request = request.header(CONNECTION, "close");
        }
        let request = request.body(Empty::new()).map_err(|err| with_causes(&err))?;
        let mut connection = self.connection().await?;
        let answer = connection.sender.send_request(request).await.map_err(|err| with_causes(&err))?;
        let (status, closes) = (answer.status(), answer.headers().get(CONNECTION).is_some_and(|it| it == "close"));
        answer.into_body().collect().await.map_err(|err| format!("{status}, cut off: {}", with_causes(&err)))?;
        if self.keeps && !closes {
            self.kept = Some(connection);
        }
        if status.is_server_error() { Err(format!("answered with {status}")) } else { Ok(()) }
    }

    /// The kept one, unless the proxy closed it while nothing was under way, as it may.
    async fn connection(&mut self) -> Result<Connection, String> {
        if let Some(mut kept) = self.kept.take() {
            if kept.sender.ready().await.is_ok() {
                return Ok(kept);
            }
            if let Ok(Err(err)) = kept.driver.await {
                return Err(format!("more than one answer to the request before: {}", with_causes(&err)));
            }
        }
        let proxy = &self.question.proxy;
        let stream = TcpStream::connect(proxy).await.map_err(|err| format!("no connection to {proxy}: {err}"))?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|err| with_causes(&err))?;
        Ok(Connection { sender, driver: tokio::spawn(driver) })
    }
}
