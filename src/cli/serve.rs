//! `longshore serve`: the agent.

use std::path::Path;
use std::process::ExitCode;

use super::logging;
use crate::{config, serve};

pub(super) const EXAMPLES: &str = "Examples:
  longshore serve
  longshore serve --config /etc/longshore/deploy.toml";

/// Runs the agent until it is told to end.
pub fn run(config_path: &Path) -> ExitCode {
    let config = match config::load(config_path) {
        Ok(config) => config,
        Err(problems) => {
            eprint!("{problems}");
            return ExitCode::from(2);
        }
    };
    logging::init();
    for warning in &config.warnings {
        tracing::warn!("{}", warning.render(&config_path.display().to_string(), ""));
    }
    logging::finish(logging::runtime().and_then(|runtime| {
        let served = runtime.block_on(serve::run(config_path.to_path_buf(), config));
        // What still runs (a fetch, a build's upload) is taken up again at the next start.
        runtime.shutdown_background();
        served
    }))
}
