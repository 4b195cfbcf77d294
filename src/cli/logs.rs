//! `longshore logs APP`, `longshore logs --deployment 12`

use std::process::ExitCode;

use clap::Args;
use futures_util::{StreamExt, stream};

use super::cancel::Id;
use super::client::Client;
use super::error::CliError;
use super::sse::Event;
use super::term::{Look, Term};
use super::text::clean;
use crate::api::sse::SHUTDOWN;
use crate::api::views::{AppView, DeploymentView, InstanceView};
use crate::model::{AppName, Duty, InstanceId, ParseError, ServiceName};

pub(super) const EXAMPLES: &str = "Examples:
  longshore logs shop -f
  longshore logs shop --service worker -n 500
  longshore logs --instance d12-web-3
  longshore logs --deployment 12 -f";

/// Arguments of `logs`.
#[derive(Debug, Args)]
#[command(override_usage = "longshore logs [OPTIONS] APP [--service SERVICE]
       longshore logs [OPTIONS] --instance INSTANCE
       longshore logs [--follow] --deployment ID")]
pub(super) struct LogsArgs {
    /// The app.
    #[arg(required_unless_present_any = ["instance", "deployment"])]
    app: Option<AppName>,
    /// Only of this service.
    #[arg(long, requires = "app")]
    service: Option<ServiceName>,
    /// Only of this instance.
    #[arg(long, conflicts_with = "service", value_parser = instance)]
    instance: Option<InstanceId>,
    /// The log of a deployment.
    #[arg(long, value_name = "ID", conflicts_with_all = ["app", "service", "instance"])]
    deployment: Option<Id>,
    /// Go on with what follows.
    #[arg(short, long)]
    follow: bool,
    /// How many of each instance's last lines come first.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, conflicts_with = "deployment", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    lines: u32,
}

fn instance(text: &str) -> Result<InstanceId, ParseError> {
    InstanceId::parse(text)
}

pub(super) async fn run(client: &Client, term: &mut Term, args: LogsArgs) -> Result<ExitCode, CliError> {
    if let Some(Id(id)) = args.deployment {
        return deployment_log(client, term, id, args.follow).await;
    }
    let ids = match (&args.instance, &args.app) {
        (Some(id), _) => vec![id.to_string()],
        (None, Some(app)) => instances(client, app, args.service.as_ref()).await?,
        (None, None) => return Err(CliError::Usage("name an app, an instance or a deployment".into())),
    };
    let path = |id: &str| format!("/api/v1/instances/{id}/logs?tail={}&follow={}", args.lines, u8::from(args.follow));
    let prefix = |id: &str, term: &Term| match ids.len() {
        1 => String::new(),
        _ => format!("{} ", term.paint().paint(Look::Faint, &format!("{id} |"))),
    };
    if args.follow {
        let mut all = Vec::with_capacity(ids.len());
        for id in &ids {
            let start = prefix(id, term);
            let events = client.events(&path(id), None).await?;
            all.push(events.map(move |event| event.map(|event| (start.clone(), event))).boxed());
        }
        let mut lines = stream::select_all(all);
        while let Some(line) = lines.next().await {
            let (start, Event { name, data, .. }) = line.map_err(CliError::Failed)?;
            if name == SHUTDOWN {
                return Err(CliError::Failed(data));
            }
            term.print(&format!("{start}{}\n", clean(&data)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    for id in &ids {
        let start = prefix(id, term);
        print_text(client, term, &path(id), &start).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The app's instances, those of a service first come first; also ones that are about to go.
async fn instances(client: &Client, app: &AppName, service: Option<&ServiceName>) -> Result<Vec<String>, CliError> {
    let view: AppView = client.get(&format!("/api/v1/apps/{app}")).await?;
    if let Some(service) = service
        && !view.services.iter().any(|known| known.name == service.as_str())
    {
        let known: Vec<&str> = view.services.iter().map(|known| known.name.as_str()).collect();
        return Err(CliError::Failed(format!("{app} has no service \"{service}\"; services: {}", known.join(", "))));
    }
    let wanted = |instance: &&InstanceView| {
        instance.duty != Duty::Retired && service.is_none_or(|service| instance.service == service.as_str())
    };
    let ids: Vec<String> = view.instances.iter().filter(wanted).map(|instance| instance.id.clone()).collect();
    match ids.is_empty() {
        true => Err(CliError::Failed(format!("no instance of {app} is running; see: longshore status {app}"))),
        false => Ok(ids),
    }
}

/// Text line by line, so that each can be made safe for the terminal.
async fn print_text(client: &Client, term: &mut Term, path: &str, start: &str) -> Result<(), CliError> {
    let mut chunks = client.text(path).await?;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        rest.extend_from_slice(&chunk.map_err(CliError::Failed)?);
        if let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
            let whole: Vec<u8> = rest.drain(..=end).collect();
            print_lines(term, &whole, start)?;
        }
    }
    print_lines(term, &rest, start)
}

fn print_lines(term: &mut Term, bytes: &[u8], start: &str) -> Result<(), CliError> {
    let text = String::from_utf8_lossy(bytes);
    let shown: String = text.lines().map(|line| format!("{start}{}\n", clean(line))).collect();
    Ok(term.print(&shown)?)
}

async fn deployment_log(client: &Client, term: &mut Term, id: i64, follow: bool) -> Result<ExitCode, CliError> {
    let path = format!("/api/v1/deployments/{id}/log");
    if !follow {
        print_text(client, term, &path, "").await?;
        let record: DeploymentView = client.get(&format!("/api/v1/deployments/{id}")).await?;
        if record.finished_at.is_some() {
            term.print(&super::progress::summary(&record, None, term.paint()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut events = client.events(&format!("{path}?follow=1"), None).await?;
    while let Some(event) = events.next().await {
        let event = event.map_err(CliError::Failed)?;
        match event.name.as_str() {
            "end" => {
                let ended: DeploymentView = serde_json::from_str(&event.data)
                    .map_err(|err| CliError::Failed(format!("the agent's record cannot be read: {err}")))?;
                term.print(&super::progress::summary(&ended, None, term.paint()))?;
                return Ok(ExitCode::SUCCESS);
            }
            "error" => return Err(CliError::Failed(event.data)),
            SHUTDOWN => return Err(CliError::Failed(format!("{}\n{}", event.data, go_on(id)))),
            _ => term.print(&format!("{}\n", clean(&event.data)))?,
        }
    }
    Err(CliError::Failed(format!("the agent closed the connection\n{}", go_on(id))))
}

fn go_on(id: i64) -> String {
    format!("go on with: longshore logs --deployment {id} -f")
}
