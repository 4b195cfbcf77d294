//! `longshore restart APP`

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::Json;
use super::client::Client;
use super::deploy::submit;
use super::error::CliError;
use super::term::Term;
use crate::model::AppName;

pub(super) const EXAMPLES: &str = "Examples:
  longshore restart shop
  longshore restart shop --no-wait";

/// Arguments of `restart`.
#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    /// The app.
    app: AppName,
    /// Do not watch it: return once it is accepted.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    json: Json,
}

pub(super) async fn run(client: &Client, term: &mut Term, args: RestartArgs) -> Result<ExitCode, CliError> {
    let path = format!("/api/v1/apps/{}/restart", args.app);
    submit(client, term, Method::POST, &path, json!({}), !args.no_wait, args.json).await
}
