//! `longshore releases APP`

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::client::Client;
use super::error::CliError;
use super::term::Term;
use super::{Json, text};
use crate::api::views::ReleaseView;
use crate::model::{AppName, ReleaseNumber, shorten};

pub(super) const EXAMPLES: &str = "Examples:
  longshore releases shop
  longshore releases shop --json";

/// Arguments of `releases`.
#[derive(Debug, Args)]
pub(super) struct ReleasesArgs {
    /// The app.
    app: AppName,
    #[command(flatten)]
    json: Json,
}

pub(super) async fn run(client: &Client, term: &mut Term, args: ReleasesArgs) -> Result<ExitCode, CliError> {
    let releases: Vec<ReleaseView> = client.get(&format!("/api/v1/apps/{}/releases", args.app)).await?;
    let shown = match (args.json.json, releases.is_empty()) {
        (true, _) => text::json(&releases),
        (false, true) => format!("{} has no releases yet", args.app),
        (false, false) => table(&releases, Timestamp::now()),
    };
    term.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

fn table(releases: &[ReleaseView], now: Timestamp) -> String {
    let row = |release: &ReleaseView| {
        let state = match (release.live, release.good) {
            (true, _) => "live",
            (false, true) => "good",
            (false, false) => "never live",
        };
        vec![
            ReleaseNumber(release.release).to_string(),
            state.into(),
            release.commit.short().to_owned(),
            text::ago(release.created_at, now),
            shorten(&release.author, 20),
            shorten(&release.subject, 60),
        ]
    };
    let rows: Vec<Vec<String>> = releases.iter().map(row).collect();
    text::table(&["RELEASE", "STATE", "COMMIT", "MADE", "AUTHOR", "SUBJECT"], &rows)
}
