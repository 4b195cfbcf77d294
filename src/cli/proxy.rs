//! `longshore proxy`: the data plane.

use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::logging;
use crate::config;
use crate::proxy::{self, ProxyOptions};

pub(super) const EXAMPLES: &str = "Examples:
  longshore proxy
  longshore proxy --config /etc/longshore/deploy.toml";

/// Runs the proxy until it is told to end.
pub fn run(config_path: &Path) -> ExitCode {
    let config = match config::load(config_path) {
        Ok(config) => config,
        Err(problems) => {
            eprint!("{problems}");
            return ExitCode::from(2);
        }
    };
    logging::init();
    logging::finish(logging::runtime().and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stop = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stop.cancel();
            });
            let options = ProxyOptions { http: config.proxy.http, data_dir: config.agent.data_dir, ready: None };
            proxy::run(options, shutdown).await
        })
    }))
}
