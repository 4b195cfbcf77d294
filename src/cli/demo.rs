//! `longshore demo`

use std::process::ExitCode;

use clap::Args;

pub(super) const EXAMPLES: &str = "Examples:
  longshore demo";

/// What the command takes.
#[derive(Debug, Args)]
pub(super) struct Options {}

/// Runs the demonstration.
pub(super) fn run(Options {}: Options) -> ExitCode {
    ExitCode::FAILURE
}
