//! Asking the agent: HTTP over its Unix socket, or over the network with a token.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Full};
use hyper::header;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::error::CliError;
use super::sse::{Event, Parser};
use super::target::Target;
use crate::data_dir;
use crate::text::with_causes;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const USER_AGENT: &str = concat!("longshore-cli/", env!("CARGO_PKG_VERSION"));
const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of an answer; plans may have to fetch a commit first.
const ANSWER: Duration = Duration::from_secs(120);
/// After so long without an answer the agent is asked for a sign of life, and has as long to give it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// Streams are kept alive every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Of an answer that is no stream.
const LONGEST: usize = 32 << 20;

/// A way to the agent.
pub(super) struct Client {
    target: Target,
    http: reqwest::Client,
}

/// Why the agent did not do what it was asked.
#[derive(Debug)]
pub(super) enum AskError {
    /// It cannot be reached, or was lost on the way.
    Lost(String),
    /// It says no.
    Refused(String),
}

impl AskError {
    /// Why the agent was lost, for whoever tries again; an answer that says no stays an error.
    pub fn lost(self) -> Result<String, CliError> {
        match self {
            Self::Lost(why) => Ok(why),
            Self::Refused(why) => Err(CliError::Failed(why)),
        }
    }
}

impl From<AskError> for CliError {
    fn from(err: AskError) -> Self {
        match err {
            AskError::Lost(why) | AskError::Refused(why) => CliError::Failed(why),
        }
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: BoxStream<'static, Result<Bytes, String>>,
}

/// The parts of a problem document that are shown.
#[derive(Deserialize)]
struct ProblemBody {
    detail: String,
}

/// The answer of `/readyz`, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Readiness {
    pub problems: Vec<String>,
    /// Not known to earlier versions.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Client {
    /// Nothing is sent before the first question.
    pub fn new(target: Target) -> Result<Self, CliError> {
        let http = reqwest::Client::builder().user_agent(USER_AGENT).connect_timeout(CONNECT);
        // A token must not follow a redirect to somewhere else.
        let http = http.redirect(reqwest::redirect::Policy::none()).build();
        Ok(Self { target, http: http.map_err(|err| CliError::Failed(format!("cannot start: {}", with_causes(&err))))? })
    }

    /// GET of JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::GET, path, None).await
    }

    /// Any call with a JSON answer; no content reads as null.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, AskError> {
        let answer = self.send(method, path, body, None).await?;
        let version = other_version(&answer.headers);
        let status = answer.status;
        let bytes = collect(answer.body).await?;
        let json: &[u8] = if status == StatusCode::NO_CONTENT { b"null" } else { &bytes };
        serde_json::from_slice(json)
            .map_err(|err| AskError::Refused(format!("the agent's answer to {path} cannot be read: {err}{version}")))
    }

    /// The agent's directory, when it is reached through its socket.
    pub fn data_dir(&self) -> Option<&Path> {
        match &self.target {
            Target::Socket { path, .. } => path.parent(),
            Target::Http { .. } => None,
        }
    }

    /// What keeps the agent from doing its job, and what wants a look. Nothing where that cannot be told: the question that
    /// matters was another one.
    pub async fn readiness(&self) -> Readiness {
        let Ok(answer) = self.answer(Method::GET, "/readyz", None, None).await else { return Readiness::default() };
        let Ok(bytes) = collect(answer.body).await else { return Readiness::default() };
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Any call whose answer is a file.
    pub async fn bytes(
        &self,
        method: Method,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, AskError> {
        Ok(self.send(method, path, None, None).await?.body)
    }

    /// GET of text, as it comes.
    pub async fn text(&self, path: &str) -> Result<BoxStream<'static, Result<Bytes, String>>, AskError> {
        Ok(self.send(Method::GET, path, None, None).await?.body)
    }

    /// GET of events. A stream that ends or is silent for a minute ends here as well.
    pub async fn events(
        &self,
        path: &str,
        after: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Event, String>>, AskError> {
        let body = self.send(Method::GET, path, None, after).await?.body;
        let events = stream::try_unfold((body, Parser::default()), |(mut body, mut parser)| async move {
            let next = timeout(SILENCE, body.next()).await.map_err(|_| "the agent is silent".to_owned())?;
            let Some(chunk) = next.transpose()? else { return Ok::<_, String>(None) };
            let events = parser.push(&chunk)?;
            Ok(Some((stream::iter(events.into_iter().map(Ok)), (body, parser))))
        });
        Ok(events.try_flatten().boxed())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        after: Option<u64>,
    ) -> Result<Answer, AskError> {
        let answer = self.answer(method, path, body, after).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(refusal(answer).await)
    }

    /// Whatever the agent says.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        after: Option<u64>,
    ) -> Result<Answer, AskError> {
        match &self.target {
            Target::Socket { path: socket, config } => {
                let request = self.request(method, path, body, after)?;
                let sent = tokio::select! {
                    sent = timeout(ANSWER, over_socket(socket, request)) => sent,
                    () = self.is_silent(socket) => return Err(AskError::Lost(silent(socket))),
                };
                let answer = sent.unwrap_or_else(|_| Err("no answer within 120 s".into()));
                answer.map_err(|why| {
                    AskError::Lost(format!(
                        "cannot reach the agent at {}: {why}\nstart it with: longshore serve --config {}",
                        socket.display(),
                        config.display()
                    ))
                })
            }
            Target::Http { url, token } => {
                let mut request = self.http.request(method, format!("{url}{path}")).bearer_auth(token.expose_secret());
                if let Some(body) = &body {
                    request = request.json(body);
                }
                if let Some(after) = after {
                    request = request.header("Last-Event-ID", after);
                }
                let sent = timeout(ANSWER, request.send()).await;
                let answer = sent.map(|sent| sent.map_err(|err| with_causes(&err)));
                let answer = answer.unwrap_or_else(|_| Err("no answer within 120 s".into()));
                let answer = answer.map_err(|why| {
                    AskError::Lost(format!("cannot reach the agent at {url}: {why}\nis LONGSHORE_URL right?"))
                })?;
                Ok(Answer {
                    status: answer.status(),
                    headers: answer.headers().clone(),
                    body: answer.bytes_stream().map_err(|err| with_causes(&err)).boxed(),
                })
            }
        }
    }

    /// Resolves when the agent, which has taken the connection of a question, gives no sign of life besides: an answer may
    /// take its time, but a process that is stopped takes connections too.
    async fn is_silent(&self, socket: &Path) {
        loop {
            tokio::time::sleep(SIGN_OF_LIFE).await;
            let Ok(question) = self.request(Method::GET, "/livez", None, None) else { continue };
            if timeout(SIGN_OF_LIFE, over_socket(socket, question)).await.is_err() {
                return;
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        after: Option<u64>,
    ) -> Result<Request<Full<Bytes>>, AskError> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        request = request.header(header::USER_AGENT, USER_AGENT);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let bytes = match body {
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(json.to_string())
            }
            None => Bytes::new(),
        };
        request.body(Full::new(bytes)).map_err(|err| AskError::Refused(format!("{path} cannot be asked for: {err}")))
    }
}

/// What is said of an agent that takes connections and does nothing.
fn silent(socket: &Path) -> String {
    let agent = socket.parent().and_then(data_dir::lock::pid_in);
    let (which, how) = match agent {
        Some(pid) => (format!(" (pid {pid})"), format!("; if its process is stopped: kill -CONT {pid}")),
        None => Default::default(),
    };
    format!("the agent{which} runs and does not answer at {}{how}", socket.display())
}

async fn over_socket(socket: &Path, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let stream = timeout(CONNECT, UnixStream::connect(socket)).await;
    let stream = stream.map_err(|_| "it does not accept connections".to_owned())?.map_err(|err| match err.kind() {
        std::io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        std::io::ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
        std::io::ErrorKind::PermissionDenied => {
            "permission denied: be root or the agent's user, or use LONGSHORE_URL with LONGSHORE_TOKEN".to_owned()
        }
        _ => err.to_string(),
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|err| with_causes(&err))?;
    // Ends with the answer; its errors are the answer's.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|err| with_causes(&err))?;
    let (parts, body) = answer.into_parts();
    // Dropping the sender would end the connection: it is kept with the body.
    let body = body.into_data_stream().map_err(|err| with_causes(&err)).map(move |chunk| {
        let _ = &sender;
        chunk
    });
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.boxed() })
}

async fn refusal(answer: Answer) -> AskError {
    let version = other_version(&answer.headers);
    let status = answer.status;
    let bytes = match collect(answer.body).await {
        Ok(bytes) => bytes,
        Err(err) => return err,
    };
    let detail = match serde_json::from_slice::<ProblemBody>(&bytes) {
        Ok(problem) => problem.detail,
        Err(_) => format!("the agent answered {status}"),
    };
    let why = format!("{detail}{version}");
    match status {
        // It, or the reverse proxy before it, is not up again yet.
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => AskError::Lost(why),
        _ => AskError::Refused(why),
    }
}

async fn collect(mut body: BoxStream<'static, Result<Bytes, String>>) -> Result<Vec<u8>, AskError> {
    let lost = |why: String| AskError::Lost(format!("the agent's answer broke off: {why}"));
    let mut bytes = Vec::new();
    loop {
        let next = timeout(SILENCE, body.next()).await.map_err(|_| lost("it is silent".into()))?;
        let Some(chunk) = next else { return Ok(bytes) };
        bytes.extend_from_slice(&chunk.map_err(lost)?);
        if bytes.len() > LONGEST {
            return Err(lost("it is longer than 32 MiB".into()));
        }
    }
}

/// A word about the versions where they differ: then a misunderstanding has its reason there.
fn other_version(headers: &HeaderMap) -> String {
    let server = headers.get(header::SERVER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match server.strip_prefix("longshore/") {
        Some(theirs) if theirs != VERSION => {
            format!("\nthis is longshore {VERSION}, the agent is {theirs}: use the same version of both")
        }
        // A reverse proxy may have put its own name there.
        _ => String::new(),
    }
}
