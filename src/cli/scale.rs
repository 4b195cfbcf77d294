//! `longshore scale APP SERVICE=N`

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::Json;
use super::client::Client;
use super::deploy::submit;
use super::error::CliError;
use super::term::Term;
use crate::model::{AppName, ParseError, ServiceName, shorten};

pub(super) const EXAMPLES: &str = "Examples:
  longshore scale shop web=5
  longshore scale shop worker=0

The number holds until the configuration of the service changes.";

/// Arguments of `scale`.
#[derive(Debug, Args)]
pub(super) struct ScaleArgs {
    /// The app.
    app: AppName,
    /// Which service and how many instances, 0 to 64.
    #[arg(value_name = "SERVICE=N")]
    scale: Scale,
    /// Do not watch it: return once it is accepted.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Scale {
    service: ServiceName,
    instances: u32,
}

impl FromStr for Scale {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong =
            || ParseError(format!("{:?} is not SERVICE=N, such as web=3, with N from 0 to 64", shorten(text, 80)));
        let (service, instances) = text.split_once('=').ok_or_else(wrong)?;
        let instances = instances.parse().ok().filter(|number| *number <= 64).ok_or_else(wrong)?;
        Ok(Self { service: service.parse()?, instances })
    }
}

pub(super) async fn run(client: &Client, term: &mut Term, args: ScaleArgs) -> Result<ExitCode, CliError> {
    let path = format!("/api/v1/apps/{}/services/{}/scale", args.app, args.scale.service);
    let body = json!({ "instances": args.scale.instances });
    submit(client, term, Method::PUT, &path, body, !args.no_wait, args.json).await
}
