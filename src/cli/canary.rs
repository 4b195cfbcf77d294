//! `longshore canary APP promote|abort|pause|resume`

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::term::Term;
use super::{Json, text};
use crate::api::views::DeploymentView;
use crate::model::{AppName, CanaryAction};

pub(super) const EXAMPLES: &str = "Examples:
  longshore canary shop promote
  longshore canary shop abort
  longshore canary shop pause
  longshore canary shop resume

To promote is to give it all requests now; to abort is to give it none any more, and to hold its commit. A paused one keeps
its share until somebody says otherwise. Its step, share and comparison are in: longshore status shop";

/// Arguments of `canary`.
#[derive(Debug, Args)]
pub(super) struct CanaryArgs {
    /// The app.
    app: AppName,
    /// What to do: promote, abort, pause or resume.
    action: CanaryAction,
    #[command(flatten)]
    json: Json,
}

pub(super) async fn run(client: &Client, term: &mut Term, args: CanaryArgs) -> Result<ExitCode, CliError> {
    let (app, action) = (&args.app, args.action);
    let path = format!("/api/v1/apps/{app}/canary");
    let record: DeploymentView = client.ask(Method::POST, &path, Some(json!({ "action": action }))).await?;
    let done = match action {
        CanaryAction::Promote => "is promoted",
        CanaryAction::Abort => "is being aborted",
        CanaryAction::Pause => "is paused",
        CanaryAction::Resume => "goes on",
    };
    let shown = match args.json.json {
        true => text::json(&record),
        false => {
            format!("the canary of {app} (#{}) {done}; watch it with: longshore status {app} --watch", record.id)
        }
    };
    term.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}
