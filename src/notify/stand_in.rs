//! A stand-in for Discord on loopback: strict about what it accepts, and as difficult as a script says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// One request's fate; without one in the script it is accepted.
#[derive(Debug, Clone)]
pub(super) enum Script {
    /// Answered with this status, body and header.
    Answer(u16, Value, &'static [(&'static str, &'static str)]),
    /// Accepted, and never answered.
    Hang,
    /// Accepted, with an answer that is no JSON.
    Garbage,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub method: &'static str,
    /// Of the message, in an edit.
    pub message: Option<String>,
    pub body: Value,
    pub at: Instant,
    pub status: u16,
}

impl Seen {
    pub fn content(&self) -> &str {
        self.body["content"].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Inner {
    script: Mutex<VecDeque<Script>>,
    seen: watch::Sender<Vec<Seen>>,
    messages: Mutex<BTreeMap<String, Value>>,
}

/// A running stand-in.
pub(super) struct Discord {
    pub url: String,
    inner: Arc<Inner>,
}

impl Discord {
    pub async fn start() -> Self {
        let inner = Arc::new(Inner::default());
        let app = Router::new()
            .route("/api/webhooks/1/token", post(on_post))
            .route("/api/webhooks/1/token/messages/{message}", patch(on_patch))
            .with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/webhooks/1/token", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { url, inner }
    }

    /// What the next requests meet, in order.
    pub fn script(&self, script: impl IntoIterator<Item = Script>) {
        self.inner.script.lock().unwrap().extend(script);
    }

    /// From now on everything is accepted.
    pub fn recover(&self) {
        self.inner.script.lock().unwrap().clear();
    }

    /// Waits until `count` requests have come, and returns them.
    pub async fn seen(&self, count: usize) -> Vec<Seen> {
        let mut seen = self.inner.seen.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(10), seen.wait_for(|seen| seen.len() >= count)).await;
        let seen = self.inner.seen.borrow().clone();
        assert!(waited.is_ok(), "{count} requests did not come, but {seen:#?}");
        seen
    }

    /// How many requests have come so far.
    pub fn count(&self) -> usize {
        self.inner.seen.borrow().len()
    }

    /// The messages as the channel shows them now, oldest first.
    pub fn channel(&self) -> Vec<String> {
        let messages = self.inner.messages.lock().unwrap();
        messages.values().map(|message| message["content"].as_str().unwrap().to_owned()).collect()
    }

    /// Somebody deletes every message in the channel.
    pub fn clear_channel(&self) {
        self.inner.messages.lock().unwrap().clear();
    }
}

async fn on_post(
    State(inner): State<Arc<Inner>>,
    Query(query): Query<BTreeMap<String, String>>,
    Json(body): Json<Value>,
) -> Response {
    assert_eq!(query.get("wait").map(String::as_str), Some("true"), "without wait=true there is no id");
    answer(&inner, "POST", None, body).await
}

async fn on_patch(State(inner): State<Arc<Inner>>, Path(message): Path<String>, Json(body): Json<Value>) -> Response {
    answer(&inner, "PATCH", Some(message), body).await
}

async fn answer(inner: &Inner, method: &'static str, message: Option<String>, body: Value) -> Response {
    assert_eq!(body["allowed_mentions"], json!({"parse": []}), "somebody could be mentioned");
    let at = Instant::now();
    let script = inner.script.lock().unwrap().pop_front();
    let see = |status: u16| {
        let seen = Seen { method, message: message.clone(), body: body.clone(), at, status };
        inner.seen.send_modify(|all| all.push(seen));
    };
    if let Some(Script::Answer(status, body, header)) = script {
        see(status);
        let mut headers = HeaderMap::new();
        for (name, value) in header {
            headers.insert(*name, value.parse().unwrap());
        }
        return (StatusCode::from_u16(status).unwrap(), headers, Json(body)).into_response();
    }
    let id = {
        let mut messages = inner.messages.lock().unwrap();
        let id = match &message {
            Some(id) if messages.contains_key(id) => id.clone(),
            Some(_) => {
                drop(messages);
                see(404);
                return (StatusCode::NOT_FOUND, Json(json!({"message": "Unknown Message", "code": 10008})))
                    .into_response();
            }
            None => format!("{}", 1000 + inner.seen.borrow().len()),
        };
        messages.insert(id.clone(), body.clone());
        id
    };
    see(200);
    match script {
        Some(Script::Hang) => std::future::pending().await,
        Some(Script::Garbage) => "<html>".into_response(),
        _ => Json(json!({"id": id, "content": body["content"]})).into_response(),
    }
}
