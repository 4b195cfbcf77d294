//! `longshore cancel ID`

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use hyper::Method;

use super::client::Client;
use super::error::CliError;
use super::progress::summary;
use super::term::{Paint, Term};
use super::watch::{INTERRUPTED, Show, follow_to_end};
use super::{Json, text};
use crate::api::views::DeploymentView;
use crate::model::{ParseError, Status, shorten};

pub(super) const EXAMPLES: &str = "Examples:
  longshore cancel 12
  longshore cancel '#12' --no-wait

It returns when the deployment has ended: with 0 when it is cancelled, also by an earlier call, and with 1 when it ended
otherwise before that took effect. One that has replaced instances is undone first. Ctrl-C stops watching; the cancellation
goes on.";

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// The deployment's number.
    id: Id,
    /// Do not wait for its end: return once the cancellation is accepted.
    #[arg(long)]
    no_wait: bool,
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
    let (Id(id), Json { json }) = (args.id, args.json);
    let before: DeploymentView = client.get(&format!("/api/v1/deployments/{id}")).await?;
    if before.status.is_terminal() {
        return tell_end(term, &before, "was cancelled before", json);
    }
    let asked = ask(client, id).await?;
    let ended = if asked.status.is_terminal() {
        asked
    } else {
        let app = text::clean(&asked.app);
        let first = format!("deployment #{id} of {app} is being cancelled");
        if args.no_wait {
            let watch = format!("{first}; watch it with: longshore status {app} --watch");
            term.print(&if json { text::json(&asked) } else { watch })?;
            return Ok(ExitCode::SUCCESS);
        }
        let show = if json { Show::Json } else { Show::Ends };
        match follow_to_end(client, term, asked, show, (&first, "is still being cancelled")).await? {
            Some((ended, _)) => ended,
            None => return Ok(ExitCode::from(INTERRUPTED)),
        }
    };
    tell_end(term, &ended, "is cancelled", json)
}

/// Asks for its end; its record. The request may cross the end of the deployment, and is refused then.
async fn ask(client: &Client, id: i64) -> Result<DeploymentView, CliError> {
    match client.ask(Method::POST, &format!("/api/v1/deployments/{id}/cancel"), None).await {
        Ok(record) => Ok(record),
        Err(refused) => match client.get::<DeploymentView>(&format!("/api/v1/deployments/{id}")).await {
            Ok(now) if now.status.is_terminal() => Ok(now),
            _ => Err(refused.into()),
        },
    }
}

/// How it ended, and whether that is what was asked for.
fn tell_end(term: &mut Term, ended: &DeploymentView, cancelled: &str, json: bool) -> Result<ExitCode, CliError> {
    let is_cancelled = ended.status == Status::Cancelled;
    if json {
        term.print(&text::json(ended))?;
        return Ok(if is_cancelled { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let which = format!("deployment #{} of {}", ended.id, text::clean(&ended.app));
    if is_cancelled {
        let reason = ended.reason.as_deref().map(text::lines).unwrap_or_default().join("\n    ");
        term.print(&format!("{which} {cancelled}: {reason}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let how = summary(ended, None, Paint(false));
    Err(CliError::Failed(format!("{which} is not cancelled, it had ended before that took effect: {how}")))
}
