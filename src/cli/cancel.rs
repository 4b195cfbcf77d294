//! `longshore cancel ID`

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use hyper::Method;

use super::client::Client;
use super::error::CliError;
use super::term::Term;
use super::{Json, text};
use crate::api::views::DeploymentView;
use crate::model::{ParseError, Status, shorten};

pub(super) const EXAMPLES: &str = "Examples:
  longshore cancel 12
  longshore cancel '#12'";

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// The deployment's number.
    id: Id,
    #[command(flatten)]
    json: Json,
}

/// `12` or `#12`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(pub i64);

impl FromStr for Id {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = text.strip_prefix('#').unwrap_or(text).parse().ok().filter(|number| *number > 0);
        number
            .map(Self)
            .ok_or_else(|| ParseError(format!("{:?} is not a deployment's number, such as 12", shorten(text, 40))))
    }
}

pub(super) async fn run(client: &Client, term: &mut Term, args: CancelArgs) -> Result<ExitCode, CliError> {
    let Id(id) = args.id;
    let record: DeploymentView = client.ask(Method::POST, &format!("/api/v1/deployments/{id}/cancel"), None).await?;
    let shown = match (args.json.json, record.status) {
        (true, _) => text::json(&record),
        (false, Status::Cancelled) => format!("deployment #{id} of {} is cancelled", record.app),
        (false, _) => {
            let app = &record.app;
            format!("deployment #{id} of {app} is being cancelled; watch it with: longshore status {app} --watch")
        }
    };
    term.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}
