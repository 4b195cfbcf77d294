//! `POST /hooks/{app}` and `POST /hooks/{app}/post-receive`: cap, verify, parse, record, answer.
//!
//! Nothing is parsed before the signature over the raw bytes is right, and an unknown app answers with the same
//! bytes, after the same work, as a wrong signature.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use secrecy::SecretString;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::github::{self, Delivery, Format};
use super::intake::{Intake, LARGEST_BODY, Taken, Unread};
use super::keep_alive::{KEEP_ALIVE, kept_alive};
use super::post_receive;
use super::signature::{self, SignatureError};
use super::to_the_end::ToTheEnd;
use super::{Heard, Push, Refusal, one_line};
use crate::agent::Agent;
use crate::api::last_word::until_the_agent_ends;
use crate::api::problem::{Problem, new_request_id};
use crate::config::{Absent, App, Config};
use crate::discard::discard;
use crate::journal::{Followed, Journal};
use crate::model::{AppName, DeploymentId, Status, Trigger};
use crate::queue::Request;
use crate::store::{Admission, Decision, Deployment, NewDeployment, Store, StoreError};

/// Memory for large bodies in all.
const BODY_BUDGET: usize = 64 << 20;
/// Within which a body must have come. GitHub itself ends a delivery after 10 s.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Seconds after which a sender may try again.
const RETRY_AFTER: &str = "30";
/// Log lines sent in one piece when they are there already.
const LINES_AT_ONCE: usize = 256;

const GITHUB_SIGNATURE: &str = "X-Hub-Signature-256";
const HOOK_SIGNATURE: &str = "X-Longshore-Signature-256";

pub(super) type Submit = Box<dyn Fn(NewDeployment) -> BoxFuture<'static, Result<Admission, StoreError>> + Send + Sync>;

/// What the hook routes need.
pub struct HookState {
    config: Box<dyn Fn() -> Arc<Config> + Send + Sync>,
    submit: Submit,
    store: Store,
    journal: Journal,
    /// Cancelled when the agent ends.
    ending: CancellationToken,
    intake: Intake,
    /// Checked in place of an unknown app's secret.
    nobodys_secret: SecretString,
}

impl HookState {
    /// Of a running agent.
    pub fn of(agent: Arc<Agent>) -> Self {
        let (store, journal, configured) = (agent.store.clone(), agent.journal.clone(), agent.clone());
        let ending = agent.shutdown().clone();
        let config = Box::new(move || configured.config());
        let submit: Submit = Box::new(move |new| {
            let agent = agent.clone();
            Box::pin(async move { agent.submit(new).await })
        });
        Self::new(config, submit, store, journal, ending)
    }

    /// Of its parts.
    pub(super) fn new(
        config: Box<dyn Fn() -> Arc<Config> + Send + Sync>,
        submit: Submit,
        store: Store,
        journal: Journal,
        ending: CancellationToken,
    ) -> Self {
        let intake = Intake::new(BODY_BUDGET, BODY_PATIENCE);
        Self { config, submit, store, journal, ending, intake, nobodys_secret: new_request_id().into() }
    }
}

/// The hook routes.
pub fn routes(agent: Arc<Agent>) -> Router {
    router(HookState::of(agent))
}

/// The routes on a state.
pub(super) fn router(state: HookState) -> Router {
    Router::new()
        .route("/hooks/{app}", post(from_github).fallback(only_post))
        .route("/hooks/{app}/post-receive", post(from_git).fallback(only_post))
        .with_state(Arc::new(state))
}

async fn only_post() -> Response {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "hooks are sent with POST");
    ([(header::ALLOW, "POST")], problem).into_response()
}

/// The answer to a webhook.
#[derive(Serialize)]
struct Answer {
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment: Option<DeploymentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Answer {
    fn ignored(reason: String) -> Self {
        Self { decision: "ignored", deployment: None, reason: Some(reason) }
    }
}

impl From<Admission> for Answer {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Queued { id, .. } => Self { decision: "queued", deployment: Some(id), reason: None },
            Admission::Duplicate { of } => Self { decision: "duplicate", deployment: Some(of), reason: None },
            Admission::Held { reason } => Self { decision: "held", deployment: None, reason: Some(reason) },
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = if self.decision == "queued" { StatusCode::ACCEPTED } else { StatusCode::OK };
        (status, axum::Json(self)).into_response()
    }
}

async fn from_github(
    State(state): State<Arc<HookState>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let verified = state.take(path, &headers, body, GITHUB_SIGNATURE).await?;
    let app = verified.app().ok_or_else(|| unauthorized(GITHUB_SIGNATURE, SignatureError::Wrong))?;
    let format = text(&headers, header::CONTENT_TYPE.as_str()).and_then(Format::of_content_type).ok_or_else(|| {
        let detail = "the content type must be application/json or application/x-www-form-urlencoded";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).field("Content-Type").into_response()
    })?;
    let delivery = Delivery {
        event: text(&headers, "x-github-event"),
        id: text(&headers, "x-github-delivery"),
        format,
        body: &verified.body.bytes,
    };
    let answer = match github::hear(app, delivery).map_err(refused)? {
        Heard::Push(push) => Answer::from(state.submit(app, Trigger::Push, push).await?),
        Heard::Ignored(reason) => {
            if let Some(id) = delivery.id {
                let (delivery, decision) = (id.to_owned(), format!("ignored: {reason}"));
                let decision = Decision { app: app.name.clone(), delivery, decision };
                state.store.record_decision(decision).await.map_err(unavailable)?;
            }
            Answer::ignored(reason)
        }
    };
    Ok(answer.into_response())
}

async fn from_git(
    State(state): State<Arc<HookState>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let verified = state.take(path, &headers, body, HOOK_SIGNATURE).await?;
    let app = verified.app().ok_or_else(|| unauthorized(HOOK_SIGNATURE, SignatureError::Wrong))?;
    let received = post_receive::hear(&app.branch, &verified.body.bytes).map_err(refused)?;

    let mut said: String = received.ignored.iter().map(|why| format!("longshore: ignored: {why}\n")).collect();
    let Some(push) = received.push else { return Ok(plain_text(Body::from(said))) };
    let what = format!("{} at {}", app.branch, push.after.short());
    match state.submit(app, Trigger::PostReceive, push).await? {
        Admission::Queued { id, replaced } => {
            said.push_str(&format!("longshore: queued {what} as deployment {id}"));
            for old in replaced {
                said.push_str(&format!(", in place of {old}"));
            }
            said.push('\n');
            Ok(plain_text(state.follow(app.name.clone(), id, said)))
        }
        Admission::Duplicate { of } => {
            said.push_str(&format!("longshore: duplicate: {what} was here before as deployment {of}\n"));
            Ok(plain_text(Body::from(said)))
        }
        Admission::Held { reason } => {
            let reason = one_line(&reason, 500);
            said.push_str(&format!(
                "longshore: held: {what} failed before ({reason}); push a correction, or run `longshore deploy {}`\n",
                app.name
            ));
            Ok(plain_text(Body::from(said)))
        }
    }
}

/// A delivery whose signature is right.
struct Verified {
    config: Arc<Config>,
    name: AppName,
    body: Taken,
}

impl Verified {
    /// Always there: `take` looked it up in the same configuration.
    fn app(&self) -> Option<&App> {
        self.config.apps.get(&self.name)
    }
}

impl HookState {
    /// Reads the body and checks its signature, whoever it is for.
    async fn take(
        &self,
        path: Result<Path<String>, PathRejection>,
        headers: &HeaderMap,
        body: Body,
        signature_header: &'static str,
    ) -> Result<Verified, Response> {
        if body.size_hint().lower() > LARGEST_BODY as u64 {
            discard(body);
            return Err(unread(Unread::TooLarge));
        }
        let encodings = headers.get_all(header::CONTENT_ENCODING);
        if encodings.iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            discard(body);
            let detail = "the body must not be compressed: leave out Content-Encoding";
            let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).field("Content-Encoding");
            return Err(problem.into_response());
        }
        let body = self.intake.read(body).await.map_err(|(why, body)| {
            discard(body);
            unread(why)
        })?;

        let config = (self.config)();
        let name: Option<AppName> = path.ok().and_then(|Path(name)| name.parse().ok());
        let known = name.filter(|name| config.apps.contains_key(name));
        let webhook = known.as_ref().and_then(|name| config.apps.get(name)?.webhook.as_ref());
        let secret = match webhook.map(|webhook| &webhook.secret) {
            None => &self.nobodys_secret,
            Some(Ok(secret)) => secret,
            Some(Err(absent)) => return Err(unverifiable(absent)),
        };

        let values = headers.get_all(signature_header).iter().map(|value| value.as_bytes());
        let mut checked = signature::verify(secret, values, &body.bytes);
        if checked == Err(SignatureError::Missing) && headers.contains_key("x-hub-signature") {
            checked = Err(SignatureError::Sha1Only);
        }
        match (checked, known) {
            (Ok(()), Some(name)) if webhook.is_some() => Ok(Verified { config, name, body }),
            (checked, known) => {
                let why = checked.err().unwrap_or(SignatureError::Wrong);
                let hook = text(headers, "x-github-hook-id").map(|id| one_line(id, 40));
                let app = known.as_ref().map(AppName::as_str);
                tracing::warn!(app, hook, "a delivery was refused: its signature {why}");
                Err(unauthorized(signature_header, why))
            }
        }
    }

    /// Has a push on disk before it returns.
    async fn submit(&self, app: &App, trigger: Trigger, push: Push) -> Result<Admission, Response> {
        let new = NewDeployment {
            app: app.name.clone(),
            trigger,
            request: Request::Deploy { commit: Some(push.after), before: push.before, forced: push.forced },
            git_ref: Some(push.git_ref),
            pusher: push.pusher,
            author: push.author,
            subject: push.subject,
            delivery: push.delivery,
        };
        // A sender that hangs up now must not leave a push on disk that nobody is woken for.
        ToTheEnd::new((self.submit)(new)).await.map_err(unavailable)
    }

    /// `said`, then the deployment's log until it ends, then how it ended. The deployment does not depend on the reader,
    /// and the end of the agent not on the deployment.
    fn follow(&self, app: AppName, id: DeploymentId, said: String) -> Body {
        let see = format!("see `longshore status {app}`");
        let last = format!("longshore: the agent ends; deployment {id} goes on when it is back: {see}\n");
        let lines = self.journal.follow(id, 0).map(move |item| match item {
            Ok(Followed::Line(line)) => format!("{}\n", line.line),
            Ok(Followed::Ended(record)) => format!("longshore: {}\n", outcome(&record)),
            Err(err) => {
                tracing::error!(%err, deployment = id.0, "a pusher's log broke off");
                format!("longshore: the log broke off, the deployment goes on: {see}\n")
            }
        });
        let pieces = kept_alive(lines.ready_chunks(LINES_AT_ONCE).map(|lines| lines.concat()), KEEP_ALIVE);
        let pieces = until_the_agent_ends(pieces, self.ending.clone(), last);
        Body::from_stream(stream::iter([said]).chain(pieces).map(|text| Ok::<_, Infallible>(Bytes::from(text))))
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn unread(why: Unread) -> Response {
    match why {
        Unread::TooLarge => {
            let detail = format!("the body is larger than {} MiB", LARGEST_BODY >> 20);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).into_response()
        }
        Unread::Busy => {
            let detail = "too many large deliveries at once; deliver again later";
            retry_later(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
        Unread::TooSlow => Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into_response(),
        Unread::Broken => Problem::new(StatusCode::BAD_REQUEST, "the body broke off").into_response(),
    }
}

fn unauthorized(header: &'static str, why: SignatureError) -> Response {
    Problem::new(StatusCode::UNAUTHORIZED, format!("{header} {why}")).field(header).uniform().into_response()
}

/// Nothing is taken unchecked, so a delivery whose secret is absent is the sender's to send again. Which file that is
/// concerns the operator alone.
fn unverifiable(absent: &Absent) -> Response {
    tracing::warn!("a delivery was refused, as its signature cannot be checked: {absent}");
    let detail = "the secret that this app's deliveries are checked with cannot be read on the server, and nothing is \
                  taken until it can (longshore status says more); deliver again later";
    retry_later(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Unreadable(detail) => Problem::new(StatusCode::BAD_REQUEST, detail).into_response(),
        Refusal::Invalid { field, detail } => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).field(field).into_response()
        }
    }
}

fn unavailable(err: StoreError) -> Response {
    let detail = match err {
        // That is in the log once, with what helps.
        StoreError::Astray { .. } => {
            "the agent's journal is not in its place, and nothing new is taken until it is (longshore status says more); \
             deliver again later"
        }
        // So is this. Which file it is concerns the operator alone.
        StoreError::NotWritable { .. } => {
            "the agent's journal cannot be written on the server (it is read-only or immutable there), and nothing new is \
             taken until it can (longshore status says more); deliver again later"
        }
        StoreError::Full => {
            tracing::error!(%err, "a delivery could not be recorded");
            "the disk is full, and the agent cannot write its journal now; deliver again later"
        }
        err => {
            tracing::error!(%err, "a delivery could not be recorded");
            "the agent cannot write its journal now; deliver again later"
        }
    };
    retry_later(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
}

fn retry_later(problem: Problem) -> Response {
    ([(header::RETRY_AFTER, RETRY_AFTER)], problem).into_response()
}

fn plain_text(body: Body) -> Response {
    // The last one keeps nginx from holding the lines back.
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL.as_str(), "no-store"),
        ("x-accel-buffering", "no"),
    ];
    (headers, body).into_response()
}

/// `succeeded v7`, `rolled_back: REASON` …
fn outcome(record: &Deployment) -> String {
    match (record.status, record.release, &record.reason) {
        (Status::Succeeded, Some(release), _) => format!("{} {release}", record.status),
        (status, _, Some(reason)) => format!("{status}: {}", one_line(&joined(reason), 2000)),
        (status, _, None) => status.to_string(),
    }
}

/// The lines of a reason, told apart on one.
fn joined(reason: &str) -> String {
    let lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    // One that announces the next has its mark already.
    lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ")
}

#[cfg(test)]
mod tests;
