//! `longshore prove APP`

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::client::Client;
use super::error::CliError;
use super::term::Term;
use super::watch::{PATIENCE, RETRY};
use super::{Json, target, text};
use crate::api::views::{AppView, DeploymentView};
use crate::model::{AppName, Status};

mod tally;
mod visitors;

use tally::Report;
use visitors::{Question, Visitors};

pub(super) const EXAMPLES: &str = "Examples:
  longshore prove shop
  longshore prove shop --path /products --connections 32
  longshore prove shop --for 60 --json
  longshore prove shop --proxy 203.0.113.7:80";

/// How long is watched before the rollout, to compare with.
const BEFORE: Duration = Duration::from_secs(2);
/// And after it.
const AFTER: Duration = Duration::from_secs(1);
const HTTP: u16 = 80;

/// Arguments of `prove`.
#[derive(Debug, Args)]
pub(super) struct ProveArgs {
    /// The app, of which every instance is replaced by a new one of the same release.
    app: AppName,
    /// What is asked for by GET. Default: the path of its health check, else /
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    path: Option<String>,
    /// How many clients ask all the time, half of them with a new connection for each request.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=512))]
    connections: u32,
    /// Watch for at least so many seconds. Default: until the rollout has ended.
    #[arg(long = "for", value_name = "SECONDS")]
    at_least: Option<u64>,
    /// Where the proxy is. Default: as the configuration says, else the app's domain.
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    #[command(flatten)]
    json: Json,
}

fn absolute(path: &str) -> Result<String, String> {
    match path.parse::<hyper::http::uri::PathAndQuery>() {
        Ok(_) if path.starts_with('/') => Ok(path.to_owned()),
        _ => Err("a path such as /products?page=2".to_owned()),
    }
}

#[derive(Serialize)]
struct Proof<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// The deployment that replaced the instances.
    deployment: &'a DeploymentView,
}

pub(super) async fn run(
    client: &Client,
    term: &mut Term,
    config: Option<PathBuf>,
    args: ProveArgs,
) -> Result<ExitCode, CliError> {
    let ProveArgs { app, connections, .. } = &args;
    let view: AppView = client.get(&format!("/api/v1/apps/{app}")).await?;
    let question = question(&view, client.data_dir().and_then(|_| target::configuration(config)), &args)?;
    let quiet = args.json.json;
    if !quiet {
        let Question { proxy, host, path } = &question;
        term.print(&format!("{connections} clients ask {proxy} for http://{host}{path}"))?;
    }
    let visitors = Visitors::send(&question, *connections);
    let began = Instant::now();
    sleep(BEFORE).await;
    let so_far = visitors.so_far();
    if let Some(why) = so_far.first_failure() {
        let failed = so_far.failures();
        return Err(CliError::Failed(format!("{failed} requests failed before anything was replaced: {why}")));
    }
    visitors.rolling(true);
    let restart = format!("/api/v1/apps/{app}/restart");
    let asked: DeploymentView = client.ask(Method::POST, &restart, Some(json!({}))).await?;
    if !quiet {
        term.print(&format!("deployment #{} replaces every instance", asked.id))?;
    }
    let ended = end_of(client, asked.id).await?;
    visitors.rolling(false);
    sleep(AFTER).await;
    if let Some(seconds) = args.at_least {
        sleep_until(began + Duration::from_secs(seconds)).await;
    }
    let report = visitors.come_back().await.report();
    if quiet {
        term.print(&text::json(&Proof { report: &report, deployment: &ended }))?;
    } else {
        let status = ended.status;
        term.print(&format!("deployment #{}: {}", ended.id, status.as_str().replace('_', " ")))?;
        term.print(&report.lines().iter().map(|line| text::clean(line)).collect::<Vec<_>>().join("\n"))?;
    }
    let proven = report.proven && ended.status == Status::Succeeded;
    Ok(if proven { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for the deployment's end, also while the agent is replaced.
async fn end_of(client: &Client, id: i64) -> Result<DeploymentView, CliError> {
    let mut lost_since: Option<Instant> = None;
    loop {
        match client.get::<DeploymentView>(&format!("/api/v1/deployments/{id}")).await {
            Ok(record) if record.finished_at.is_some() => return Ok(record),
            Ok(_) => lost_since = None,
            Err(err) => {
                let why = err.lost()?;
                if lost_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                    return Err(CliError::Failed(why));
                }
            }
        }
        sleep(RETRY).await;
    }
}

fn question(app: &AppView, config: Option<toml::Table>, args: &ProveArgs) -> Result<Question, CliError> {
    if app.live.is_none() {
        return Err(CliError::Failed(format!("{} has no live release yet; deploy it first", args.app)));
    }
    if app.maintenance {
        return Err(CliError::Failed(format!(
            "{} is {}, so nothing can be proven; take maintenance out of the configuration and have the agent reload it \
             (SIGHUP)",
            args.app,
            text::IN_MAINTENANCE
        )));
    }
    let Some(host) = app.domains.first().cloned() else {
        return Err(CliError::Usage(format!("{} has no domain, so nothing can be asked of it from outside", args.app)));
    };
    let configured = config.as_ref();
    let proxy =
        args.proxy.clone().or_else(|| configured.and_then(proxy_of)).unwrap_or_else(|| format!("{host}:{HTTP}"));
    let health = || configured.and_then(|config| health_path(config, args.app.as_str()));
    let path = args.path.clone().or_else(health).unwrap_or_else(|| "/".to_owned());
    Ok(Question { proxy, host, path })
}

/// `[proxy] http`, as it is reached from this machine.
fn proxy_of(config: &toml::Table) -> Option<String> {
    let mut address: SocketAddr = config.get("proxy")?.get("http")?.as_str()?.parse().ok()?;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Some(address.to_string())
}

/// Of the app itself, or of its first service that has one.
fn health_path(config: &toml::Table, app: &str) -> Option<String> {
    let app = config.get("apps")?.get(app)?;
    let path = |table: &toml::Value| Some(table.get("health")?.get("path")?.as_str()?.to_owned());
    let of_service = || app.get("services")?.as_table()?.values().find_map(path);
    path(app).or_else(of_service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_from_the_configuration() {
        let config = "[proxy]\nhttp = \"0.0.0.0:8080\"\n[apps.shop.services.web]\nhealth = { path = \"/healthz\" }\n";
        let config: toml::Table = config.parse().unwrap();
        assert_eq!(proxy_of(&config).as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(health_path(&config, "shop").as_deref(), Some("/healthz"));
        assert_eq!(health_path(&config, "blog"), None);
        assert!(absolute("/a?b=1").is_ok() && absolute("a").is_err() && absolute("/a b").is_err());
    }
}
