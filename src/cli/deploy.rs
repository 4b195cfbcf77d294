//! `longshore deploy APP`

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::plan::{self, PlanArgs};
use super::term::Term;
use super::watch::{Show, follow};
use super::{Json, text};
use crate::api::views::DeploymentView;
use crate::model::{AppName, CommitPrefix};

pub(super) const EXAMPLES: &str = "Examples:
  longshore deploy shop
  longshore deploy shop --commit 4a5e1f0c9d2b7e6a8f3c1d0b9e8a7f6c5d4b3a21
  longshore deploy shop --ref refs/tags/v1.4.0 --no-wait

Ctrl-C stops watching; the deployment belongs to the agent and goes on.";

/// Which commit.
#[derive(Debug, Args)]
pub(super) struct Want {
    /// A full commit id; of a commit that was deployed before, its first 7 digits or more.
    #[arg(long, value_name = "SHA", conflicts_with = "git_ref")]
    commit: Option<CommitPrefix>,
    /// A branch (main) or a full ref (refs/tags/v1).
    #[arg(long = "ref", value_name = "REF")]
    git_ref: Option<String>,
}

/// Arguments of `deploy`.
#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// The app.
    app: AppName,
    #[command(flatten)]
    want: Want,
    /// Do not watch it: return once it is accepted.
    #[arg(long)]
    no_wait: bool,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: Json,
}

pub(super) async fn deploy(client: &Client, term: &mut Term, args: DeployArgs) -> Result<ExitCode, CliError> {
    if args.dry_run {
        let DeployArgs { app, want, json, .. } = args;
        return plan::run(client, term, PlanArgs { app, want, json }).await;
    }
    let path = format!("/api/v1/apps/{}/deployments", args.app);
    submit(client, term, Method::POST, &path, args.want.body(), !args.no_wait, args.json).await
}

/// Asks for a deployment and watches it, or says that it is accepted.
pub(super) async fn submit(
    client: &Client,
    term: &mut Term,
    method: Method,
    path: &str,
    body: Value,
    wait: bool,
    Json { json }: Json,
) -> Result<ExitCode, CliError> {
    let deployment: DeploymentView = client.ask(method, path, Some(body)).await?;
    match (wait, json) {
        (true, _) => follow(client, term, deployment, if json { Show::Json } else { Show::Progress }).await,
        (false, true) => {
            term.print(&text::json(&deployment))?;
            Ok(ExitCode::SUCCESS)
        }
        (false, false) => {
            let DeploymentView { id, app, .. } = &deployment;
            term.print(&format!("deployment #{id} of {app} is accepted; see: longshore status {app}"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Want {
    /// As the API takes it.
    pub(super) fn body(&self) -> Value {
        match (&self.commit, &self.git_ref) {
            (Some(commit), _) => json!({ "commit": commit }),
            (None, Some(git_ref)) => json!({ "ref": git_ref }),
            (None, None) => json!({}),
        }
    }
}
