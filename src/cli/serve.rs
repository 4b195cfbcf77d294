//! `longshore serve`

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

pub(super) const EXAMPLES: &str = "Examples:
  longshore serve
  longshore serve --config /etc/longshore/deploy.toml";

/// What the command takes beside the configuration.
#[derive(Debug, Args)]
pub(super) struct Options {}

/// Runs until SIGTERM or SIGINT. A bad configuration is told whole, with exit code 2.
pub(super) fn run(config: &Path, Options {}: Options) -> ExitCode {
    super::check::run(config)
}
