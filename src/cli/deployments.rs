//! `longshore deployments APP`

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::client::Client;
use super::error::CliError;
use super::term::Term;
use super::{Json, text};
use crate::api::views::{DeploymentView, seconds_between};
use crate::model::{AppName, ReleaseNumber, Status, shorten};

pub(super) const EXAMPLES: &str = "Examples:
  longshore deployments shop
  longshore deployments shop -n 50 --json";

/// Arguments of `deployments`.
#[derive(Debug, Args)]
pub(super) struct DeploymentsArgs {
    /// The app.
    app: AppName,
    /// How many, newest first.
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    #[command(flatten)]
    json: Json,
}

pub(super) async fn run(client: &Client, term: &mut Term, args: DeploymentsArgs) -> Result<ExitCode, CliError> {
    let path = format!("/api/v1/apps/{}/deployments?limit={}", args.app, args.limit);
    let deployments: Vec<DeploymentView> = client.get(&path).await?;
    let shown = match (args.json.json, deployments.is_empty()) {
        (true, _) => text::json(&deployments),
        (false, true) => format!("{} has no deployments yet; start one with: longshore deploy {0}", args.app),
        (false, false) => table(&deployments, Timestamp::now()),
    };
    term.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

fn table(deployments: &[DeploymentView], now: Timestamp) -> String {
    let row = |deployment: &DeploymentView| {
        let note = match deployment.status {
            Status::Succeeded => deployment.subject.clone(),
            _ => deployment.reason.clone().or_else(|| deployment.subject.clone()),
        };
        let took = deployment.started_at.map(|from| seconds_between(from, deployment.finished_at.unwrap_or(now)));
        let commit = deployment.commit.as_ref().map_or("-", |commit| commit.short());
        vec![
            format!("#{}", deployment.id),
            deployment.status.as_str().replace('_', " "),
            deployment.release.map_or("-".into(), |number| ReleaseNumber(number).to_string()),
            deployment.kind.clone(),
            commit.to_owned(),
            text::ago(deployment.queued_at, now),
            took.map_or("-".into(), text::took),
            shorten(deployment.pusher.as_deref().unwrap_or("-"), 20),
            shorten(&note.unwrap_or_default(), 70),
        ]
    };
    let rows: Vec<Vec<String>> = deployments.iter().map(row).collect();
    text::table(&["ID", "STATUS", "RELEASE", "KIND", "COMMIT", "ASKED", "TOOK", "BY", "NOTE"], &rows)
}
