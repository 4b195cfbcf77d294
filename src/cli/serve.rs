//! `longshore serve`: the agent.

use std::path::Path;
use std::process::ExitCode;

use super::{daemon, sockets};
use crate::serve;

pub(super) const EXAMPLES: &str = "Examples:
  longshore serve
  longshore serve --config /etc/longshore/deploy.toml";

/// Runs the agent until it is told to end.
pub fn run(config_path: &Path) -> ExitCode {
    daemon::be_thrifty();
    let config = match daemon::configuration(config_path) {
        Ok(config) => config,
        Err(ended) => return ended,
    };
    daemon::init();
    let file = config_path.display().to_string();
    for warning in &config.warnings {
        tracing::warn!("{}", warning.render(&file, ""));
    }
    for absent in config.absent.iter() {
        tracing::error!("what needs this secret is refused until it is there: {}", absent.problem.render(&file, ""));
    }
    // Before there are threads: it clears variables of the environment.
    let inherited = match sockets::inherited(["agent"]) {
        Ok([inherited]) => inherited.into_iter().next(),
        Err(err) => {
            eprintln!("error: {err:#}");
            return ExitCode::FAILURE;
        }
    };
    daemon::finish(daemon::runtime().and_then(|runtime| {
        let served = runtime.block_on(serve::run(config_path.to_path_buf(), config, inherited));
        // What still runs (a fetch, a build's upload) is taken up again at the next start.
        runtime.shutdown_background();
        served
    }))
}
