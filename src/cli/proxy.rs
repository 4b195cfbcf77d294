//! `longshore proxy`: the data plane.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::daemon;
use crate::proxy::log::LogFile;
use crate::proxy::{self, ProxyOptions};

pub(super) const EXAMPLES: &str = "Examples:
  longshore proxy
  longshore proxy --config /etc/longshore/deploy.toml --log /var/log/longshore-proxy.log";

/// Arguments of `proxy`.
#[derive(Debug, Args)]
pub(super) struct ProxyArgs {
    /// Write the log to this file, not to standard error. A file of 10 MiB is set aside, and three of them are kept.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// Runs the proxy until it is told to end.
pub(super) fn run(config_path: &Path, args: &ProxyArgs) -> ExitCode {
    let config = match daemon::configuration(config_path) {
        Ok(config) => config,
        Err(ended) => return ended,
    };
    match args.log.as_deref().map(|path| (path, LogFile::of_process(path))) {
        None => daemon::init(),
        Some((_, Ok(log))) => daemon::init_to_file(log),
        Some((path, Err(err))) => {
            eprintln!("error: cannot open the log {}: {err}", path.display());
            return ExitCode::FAILURE;
        }
    }
    daemon::finish(daemon::runtime().and_then(|runtime| {
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
