//! Deployments: asked for, listed, read, cancelled.

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, response::sse::Event};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;

use super::auth::Caller;
use super::body::{Fields, wrong};
use super::params::Params;
use super::problem::Problem;
use super::serve::Closing;
use super::views::DeploymentView;
use super::{ApiState, apps, sse};
use crate::journal::Followed;
use crate::model::{AppName, CommitPrefix, CommitSha, DeploymentId, GitRef, ParseError, Status, shorten};
use crate::queue::Request;
use crate::store::{Admission, CancelAsked, Deployment, NewDeployment, Store, StoreError};

/// Log lines read at once.
const PAGE: u32 = 1000;
/// Deployments listed, unless the caller says how many.
const LISTED: u64 = 20;
const MOST_LISTED: u64 = 200;

pub(super) async fn list(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<Vec<DeploymentView>>, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    let limit = Params::of(&uri, &["limit"])?.number("limit", 1..=MOST_LISTED)?.unwrap_or(LISTED);
    let found = api.agent.store.deployments(&app.name, limit as u32).await?;
    let public_url = config.agent.public_url.as_deref();
    Ok(Json(found.iter().map(|deployment| DeploymentView::of(deployment, public_url, Timestamp::now())).collect()))
}

pub(super) async fn create(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Result<Response, Problem> {
    let config = api.agent.config();
    let app = apps::find(&config, &name)?;
    let fields = fields.only(&["commit", "ref", "dry_run"])?;
    let commit: Option<CommitPrefix> = fields.text("commit")?;
    let git_ref = fields.text::<BranchOrRef>("ref")?.map(|BranchOrRef(git_ref)| git_ref);
    if commit.is_some() && git_ref.is_some() {
        return Err(wrong("ref", "give either commit or ref"));
    }
    let commit = match commit {
        Some(prefix) => Some(whole(&api.agent.store, &app.name, &prefix).await?),
        None => None,
    };
    if fields.flag("dry_run")? {
        let want = commit.map(String::from).or(git_ref.map(String::from));
        let plan = api.agent.plan(&app.name, want).await.map_err(|why| Problem::new(StatusCode::CONFLICT, why))?;
        return Ok(Json(plan).into_response());
    }
    let request = Request::Deploy { forced: commit.is_some(), commit, before: None };
    submit(&api, &app.name, caller.trigger, request, git_ref, caller.name).await
}

/// A commit by its whole id, or one that was deployed before by the beginning of it.
async fn whole(store: &Store, app: &AppName, prefix: &CommitPrefix) -> Result<CommitSha, Problem> {
    if let Ok(commit) = prefix.as_str().parse() {
        return Ok(commit);
    }
    match store.commits_beginning(app, prefix).await?.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(wrong(
            "commit",
            format!("{app} has had no deployment of a commit that begins with {prefix}; give the full id (40 digits)"),
        )),
        _ => {
            Err(wrong("commit", format!("more than one commit of {app} begins with {prefix}; give more of its digits")))
        }
    }
}

/// `main`, `refs/heads/main` or `refs/tags/v1`.
struct BranchOrRef(GitRef);

impl std::str::FromStr for BranchOrRef {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.starts_with("refs/") { text.parse() } else { GitRef::of_branch(text) }.map(Self)
    }
}

/// Puts a request on disk and answers 202 with the record.
pub(super) async fn submit(
    api: &ApiState,
    app: &AppName,
    trigger: crate::model::Trigger,
    request: Request,
    git_ref: Option<GitRef>,
    who: String,
) -> Result<Response, Problem> {
    let new = NewDeployment {
        app: app.clone(),
        trigger,
        request,
        git_ref,
        pusher: Some(who),
        author: None,
        subject: None,
        delivery: None,
    };
    let id = match api.agent.submit(new).await? {
        Admission::Queued { id, .. } | Admission::Duplicate { of: id } => id,
        Admission::Held { reason } => {
            return Err(Problem::new(StatusCode::CONFLICT, format!("this commit is held: {reason}")));
        }
    };
    accepted_now(api, id).await
}

/// 202 with the record as it is now.
pub(super) async fn accepted_now(api: &ApiState, id: DeploymentId) -> Result<Response, Problem> {
    Ok(accepted(api, &find(&api.agent.store, &id.0.to_string()).await?))
}

fn accepted(api: &ApiState, deployment: &Deployment) -> Response {
    let location = format!("/api/v1/deployments/{}", deployment.id.0);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view(api, deployment))).into_response()
}

pub(super) async fn show(State(api): State<ApiState>, Path(id): Path<String>) -> Result<Json<DeploymentView>, Problem> {
    let deployment = find(&api.agent.store, &id).await?;
    Ok(Json(view(&api, &deployment)))
}

pub(super) async fn cancel(
    State(api): State<ApiState>,
    Path(id): Path<String>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Result<Response, Problem> {
    fields.only(&[])?;
    let asked = match number(&id) {
        Some(id) => api.agent.cancel(id, &caller.name).await?,
        None => None,
    };
    let CancelAsked { record, had_ended } = asked.ok_or_else(|| no_such(&id))?;
    match (had_ended, record.status) {
        (false, _) => Ok(accepted(&api, &record)),
        // Somebody has asked before: that is what is wanted now.
        (true, Status::Cancelled) => Ok(Json(view(&api, &record)).into_response()),
        (true, status) => {
            let detail = format!("deployment {} cannot be cancelled, it has ended: {status}", record.id);
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
    }
}

pub(super) async fn log(
    State(api): State<ApiState>,
    Path(id): Path<String>,
    closing: Closing,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let params = Params::of(&uri, &["follow", "after"])?;
    let follow = params.switch("follow")?;
    // Only lines after this one.
    let after = params.number("after", 0..=u64::MAX)?.unwrap_or(0);
    let deployment = find(&api.agent.store, &id).await?;
    if !follow {
        let body = Body::from_stream(text(api.agent.store.clone(), deployment.id, after));
        return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response());
    }
    let after = sse::last_event_id(&headers).unwrap_or(after);
    let events = api.agent.journal.follow(deployment.id, after).map(move |item| match item {
        Ok(Followed::Line(line)) => sse::text_event(&line.line).id(line.seq.to_string()),
        Ok(Followed::Ended(record)) => sse::json_event("end", &view(&api, &record)),
        Err(err) => Event::default().event("error").data(err.to_string()),
    });
    Ok(sse::respond(events, closing))
}

/// The log as it is now, page by page.
fn text(
    store: Store,
    id: DeploymentId,
    after: u64,
) -> impl futures_util::Stream<Item = Result<Bytes, StoreError>> + Send {
    stream::try_unfold(after, move |after| {
        let store = store.clone();
        async move {
            let lines = store.log_lines(id, after, PAGE).await?;
            let Some(last) = lines.last().map(|line| line.seq) else { return Ok(None) };
            let mut page = String::new();
            for line in &lines {
                page.push_str(&line.line);
                page.push('\n');
            }
            Ok(Some((Bytes::from(page), last)))
        }
    })
}

async fn find(store: &Store, id: &str) -> Result<Deployment, Problem> {
    let found = match number(id) {
        Some(number) => store.deployment(number).await?,
        None => None,
    };
    found.ok_or_else(|| no_such(id))
}

fn number(id: &str) -> Option<DeploymentId> {
    id.parse().ok().map(DeploymentId)
}

fn no_such(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no deployment {:?}", shorten(id, 40))).field("id")
}

fn view(api: &ApiState, deployment: &Deployment) -> DeploymentView {
    let config = api.agent.config();
    DeploymentView::of(deployment, config.agent.public_url.as_deref(), Timestamp::now())
}
