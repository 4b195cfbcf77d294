//! Stands between an agent and its engine, passes everything on, and has one thing go wrong: at the Nth request.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

type Body = BoxBody<Bytes, hyper::Error>;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "fail-points"), expect(dead_code, reason = "most are for what is built with fail points"))]
pub enum Fault {
    /// The agent is killed before the engine hears of it.
    CrashBefore,
    /// The agent is killed after the engine has done it.
    CrashAfter,
    /// The engine is not asked, and nothing is answered.
    Hang,
    /// The engine is not asked, and the answer is an error.
    Error,
    /// The engine has done it, and the connection breaks without an answer.
    Cut,
    /// The engine is not asked, and the answer is a piece of JSON.
    Garbage,
}

#[derive(Clone, Copy)]
struct Armed {
    at: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    armed: Option<Armed>,
    seen: usize,
    /// The request that the fault struck.
    struck: Option<String>,
}

/// The relay; gone when dropped.
pub struct Relay {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

impl Relay {
    /// Listens on the Unix socket `path` for the engine at `engine`.
    pub fn start(path: PathBuf, engine: &Path) -> Self {
        let listener = UnixListener::bind(&path).expect("a socket of the relay's own");
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, engine) = (state.clone(), engine.to_path_buf());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, engine) = (shared.clone(), engine.clone());
                // The agent is whoever asks.
                let agent = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
                let service = service_fn(move |request| answer(state.clone(), engine.clone(), agent, request));
                let http = hyper::server::conn::http1::Builder::new();
                let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
                // A connection that breaks is what this is for.
                tokio::spawn(async move { connection.await.ok() });
            }
        });
        Self { path, state, task: task.abort_handle() }
    }

    /// For `docker_host`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Counts from here: the `at`-th request, from 1, meets `fault`.
    pub fn arm(&self, at: usize, fault: Fault) {
        let armed = Some(Armed { at, fault });
        *self.state.lock().unwrap() = State { armed, seen: 0, struck: None };
    }

    /// Everything passes from now on. Whether a request was struck since it was armed: what is to be done to the agent
    /// for it may still be on its way.
    pub fn disarm(&self) -> bool {
        std::mem::take(&mut *self.state.lock().unwrap()).struck.is_some()
    }

    /// The request that was struck since it was armed.
    pub fn struck(&self) -> Option<String> {
        self.state.lock().unwrap().struck.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The fault for this request, if it is its turn.
fn turn(state: &Mutex<State>, request: &Request<Incoming>) -> Option<Fault> {
    let mut state = state.lock().unwrap();
    state.seen += 1;
    let seen = state.seen;
    let armed = state.armed.filter(|armed| armed.at == seen)?;
    state.struck = Some(format!("{} {}", request.method(), request.uri()));
    Some(armed.fault)
}

async fn answer(
    state: Arc<Mutex<State>>,
    engine: PathBuf,
    agent: i32,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let Some(fault) = turn(&state, &request) else { return pass(&engine, request).await };
    // It may have been killed already.
    let end_agent = || kill(Pid::from_raw(agent), Signal::SIGKILL).is_ok();
    match fault {
        Fault::CrashBefore => {
            end_agent();
            std::future::pending().await
        }
        Fault::CrashAfter => {
            let answer = pass(&engine, request).await;
            end_agent();
            answer
        }
        Fault::Hang => std::future::pending().await,
        Fault::Error => Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "{\"message\":\"something went wrong\"}")),
        Fault::Cut => {
            // What it answers is read to its end, so that it has been done.
            let body = pass(&engine, request).await?.into_body();
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), body.collect()).await;
            Err(io::Error::other("cut"))
        }
        Fault::Garbage => Ok(plain(StatusCode::OK, "{\"Id\":\"4af")),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let never = |never: Infallible| match never {};
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(never).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    answer
}

/// The engine's own answer; a connection that changes its protocol is joined to the engine's.
async fn pass(engine: &Path, mut request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let stream = UnixStream::connect(engine).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move { connection.with_upgrades().await.ok() });
    let near = hyper::upgrade::on(&mut request);
    let mut answer = sender.send_request(request).await.map_err(io::Error::other)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let far = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            if let (Ok(near), Ok(far)) = (near.await, far.await) {
                // Ends when either side does.
                let _ = copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
            }
        });
    }
    Ok(answer.map(BodyExt::boxed))
}
