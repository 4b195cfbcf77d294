//! `longshore check`

use std::path::Path;
use std::process::ExitCode;

use super::error::CliError;

/// Prints every problem of the configuration. Exit code 0, or 2 for a bad one.
pub fn run(path: &Path) -> ExitCode {
    match crate::config::load(path) {
        Ok(_) => ExitCode::SUCCESS,
        Err(problems) => CliError::Usage(problems.to_string()).report(),
    }
}
