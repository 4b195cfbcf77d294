//! `longshore rollback APP`

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::Json;
use super::client::Client;
use super::deploy::submit;
use super::error::CliError;
use super::term::Term;
use crate::model::{AppName, ReleaseNumber};

pub(super) const EXAMPLES: &str = "Examples:
  longshore rollback shop
  longshore rollback shop --to v6";

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The app.
    app: AppName,
    /// Which release. Default: the last one that passed its watch.
    #[arg(long, value_name = "RELEASE")]
    to: Option<ReleaseNumber>,
    /// Do not watch it: return once it is accepted.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    json: Json,
}

pub(super) async fn run(client: &Client, term: &mut Term, args: RollbackArgs) -> Result<ExitCode, CliError> {
    let path = format!("/api/v1/apps/{}/rollback", args.app);
    let body = args.to.map_or_else(|| json!({}), |to| json!({ "to": to }));
    submit(client, term, Method::POST, &path, body, !args.no_wait, args.json).await
}
