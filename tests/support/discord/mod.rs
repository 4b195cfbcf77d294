//! A strict local stand-in for Discord's webhook API
//! (<https://docs.discord.com/developers/resources/webhook#execute-webhook>).
//!
//! It refuses what Discord refuses, and remembers each refusal: [`Discord::finish`] fails the test on any.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{patch, post};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

mod limits;

use limits::Refused;

const WEBHOOK: &str = "1122334455667788990";
const TOKEN: &str = "stand-in_token-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ";

/// What the next request meets instead of an answer.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// 429 with `retry_after`; coming back earlier is a violation.
    RateLimited {
        /// How long to wait.
        retry_after: Duration,
    },
    /// A status of Discord's or of a proxy before it, with a body that is not JSON.
    Status(u16),
    /// No answer for this long, then none at all.
    Hang(Duration),
    /// 404 with code 10015: the webhook was deleted.
    UnknownWebhook,
}

/// A message in the channel.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id, as text.
    pub id: String,
    /// How it was sent, then how it looked after each edit; never empty.
    pub versions: Vec<Value>,
}

impl Message {
    /// How it looks now.
    pub fn current(&self) -> &Value {
        self.versions.last().expect("a message was sent before it was edited")
    }

    /// Everything a reader sees now, in one text: content, then titles, descriptions, fields and footers.
    pub fn text(&self) -> String {
        let current = self.current();
        let mut parts = vec![current["content"].as_str()];
        for embed in current["embeds"].as_array().into_iter().flatten() {
            parts.extend([embed["author"]["name"].as_str(), embed["title"].as_str(), embed["description"].as_str()]);
            for field in embed["fields"].as_array().into_iter().flatten() {
                parts.extend([field["name"].as_str(), field["value"].as_str()]);
            }
            parts.push(embed["footer"]["text"].as_str());
        }
        parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}

#[derive(Default)]
struct Channel {
    messages: Vec<Message>,
    violations: Vec<String>,
    faults: VecDeque<Fault>,
    not_before: Option<Instant>,
    requests: u64,
}

#[derive(Default)]
struct Shared {
    channel: Mutex<Channel>,
    changed: Notify,
}

/// The stand-in, listening until it is dropped.
pub struct Discord {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Discord {
    /// Listens on a free port of loopback.
    pub async fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let routes = Router::new()
            .route("/api/webhooks/{id}/{token}", post(execute))
            .route("/api/webhooks/{id}/{token}/messages/{message}", patch(edit))
            .fallback(unknown_route)
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.expect("the stand-in serves") });
        Self { address, shared, server }
    }

    /// The webhook's address: what the operator would copy from Discord. The token in it is a secret.
    pub fn url(&self) -> String {
        format!("http://{}/api/webhooks/{WEBHOOK}/{TOKEN}", self.address)
    }

    /// The secret part of [`Discord::url`], which must not appear in any log.
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// Scripts what the next request meets; several queue up.
    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Every message so far, in the order of arrival.
    pub fn messages(&self) -> Vec<Message> {
        self.lock().messages.clone()
    }

    /// How many requests came, refused ones included.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// What Discord would have refused.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Waits until the messages satisfy `wanted`; panics with all of them when they do not within `limit`.
    pub async fn wait_for(&self, what: &str, limit: Duration, wanted: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        let satisfied = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let messages = self.messages();
                if wanted(&messages) {
                    return messages;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(limit, satisfied).await {
            Ok(messages) => messages,
            Err(_) => panic!(
                "{what}: not within {limit:?}.\nmessages: {:#?}\nviolations: {:#?}",
                self.messages(),
                self.violations()
            ),
        }
    }

    /// Fails the test when Discord would have refused anything.
    #[track_caller]
    pub fn finish(self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "Discord would have refused:\n{}", violations.join("\n"));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Channel> {
        self.shared.channel.lock().unwrap()
    }
}

impl Drop for Discord {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer in Discord's form.
fn answer(status: u16, body: Value) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [("content-type", "application/json")], body.to_string()).into_response()
}

/// Remembers the refusal and answers with it.
fn refuse(channel: &mut Channel, refused: Refused) -> Response {
    let Refused { status, code, message, detail } = refused;
    channel.violations.push(format!("{status} {code} {message}: {detail}"));
    answer(status, json!({ "code": code, "message": message, "errors": { "_errors": [{ "message": detail }] } }))
}

/// Counts the request, keeps it from coming too early, plays the next fault.
async fn meet_fault(shared: &Shared) -> Option<Response> {
    let fault = {
        let mut channel = shared.channel.lock().unwrap();
        channel.requests += 1;
        if let Some(until) = channel.not_before.take() {
            let now = Instant::now();
            if now < until {
                let early = until - now;
                channel.violations.push(format!("came back {early:?} before retry_after had passed"));
            }
        }
        channel.faults.pop_front()?
    };
    Some(match fault {
        Fault::RateLimited { retry_after } => {
            let mut channel = shared.channel.lock().unwrap();
            channel.not_before = Some(Instant::now() + retry_after);
            let seconds = retry_after.as_secs_f64();
            let body = json!({ "message": "You are being rate limited.", "retry_after": seconds, "global": false });
            let mut response = answer(429, body);
            let headers = response.headers_mut();
            // The header counts whole seconds, the body fractions.
            headers.insert("retry-after", (seconds.ceil() as u64).into());
            headers.insert("x-ratelimit-scope", axum::http::HeaderValue::from_static("user"));
            response
        }
        Fault::Status(status) => {
            (StatusCode::from_u16(status).expect("a status"), "<html>upstream trouble</html>").into_response()
        }
        Fault::Hang(time) => {
            tokio::time::sleep(time).await;
            answer(504, json!({ "message": "gateway timeout", "code": 0 }))
        }
        Fault::UnknownWebhook => answer(404, json!({ "message": "Unknown Webhook", "code": 10015 })),
    })
}

/// `POST /webhooks/{id}/{token}?wait=true`
async fn execute(
    State(shared): State<Arc<Shared>>,
    Path((id, token)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(response) = meet_fault(&shared).await {
        return response;
    }
    let mut channel = shared.channel.lock().unwrap();
    let payload = match accept((&id, &token), &headers, &body) {
        Ok(payload) => payload,
        Err(refused) => return refuse(&mut channel, refused),
    };
    if let Err(refused) = limits::check_new(&payload) {
        return refuse(&mut channel, refused);
    }
    let message_id = (1_300_000_000_000_000_000 + channel.messages.len() as u64).to_string();
    channel.messages.push(Message { id: message_id.clone(), versions: vec![payload.clone()] });
    drop(channel);
    shared.changed.notify_waiters();
    if query.unwrap_or_default().split('&').any(|pair| pair == "wait=true") {
        return answer(200, with_identity(payload, &message_id));
    }
    StatusCode::NO_CONTENT.into_response()
}

/// `PATCH /webhooks/{id}/{token}/messages/{message}`
async fn edit(
    State(shared): State<Arc<Shared>>,
    Path((id, token, message_id)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(response) = meet_fault(&shared).await {
        return response;
    }
    let mut channel = shared.channel.lock().unwrap();
    let payload = match accept((&id, &token), &headers, &body) {
        Ok(payload) => payload,
        Err(refused) => return refuse(&mut channel, refused),
    };
    let Some(index) = channel.messages.iter().position(|message| message.id == message_id) else {
        let refused = Refused { status: 404, code: 10008, message: "Unknown Message", detail: message_id };
        return refuse(&mut channel, refused);
    };
    // Keys that an edit does not name keep their value.
    let mut edited = channel.messages[index].current().clone();
    for (key, value) in payload.as_object().into_iter().flatten() {
        edited[key] = value.clone();
    }
    let checked = limits::check_shape(&payload).and_then(|()| limits::check_new(&edited));
    if let Err(refused) = checked {
        return refuse(&mut channel, refused);
    }
    channel.messages[index].versions.push(edited.clone());
    drop(channel);
    shared.changed.notify_waiters();
    answer(200, with_identity(edited, &message_id))
}

async fn unknown_route(
    State(shared): State<Arc<Shared>>,
    method: axum::http::Method,
    uri: axum::http::Uri,
) -> Response {
    let mut channel = shared.channel.lock().unwrap();
    channel.requests += 1;
    let detail = format!("{method} {}", uri.path());
    refuse(&mut channel, Refused { status: 404, code: 0, message: "404: Not Found", detail })
}

/// The checks that both calls share.
fn accept((id, token): (&str, &str), headers: &HeaderMap, body: &Bytes) -> Result<Value, Refused> {
    let refused = |status, code, message, detail: &str| Refused { status, code, message, detail: detail.to_owned() };
    if id != WEBHOOK {
        return Err(refused(404, 10015, "Unknown Webhook", id));
    }
    if token != TOKEN {
        return Err(refused(401, 50027, "Invalid Webhook Token", "the token does not belong to the webhook"));
    }
    let content_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/json") {
        return Err(refused(400, 50035, "Invalid Form Body", &format!("content-type {content_type:?}")));
    }
    serde_json::from_slice(body)
        .map_err(|error| refused(400, 50109, "The request body contains invalid JSON.", &error.to_string()))
}

fn with_identity(mut message: Value, id: &str) -> Value {
    message["id"] = json!(id);
    message["type"] = json!(0);
    message["channel_id"] = json!("1199887766554433221");
    message["webhook_id"] = json!(WEBHOOK);
    message
}
