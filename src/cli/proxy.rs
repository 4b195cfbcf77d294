//! `longshore proxy`: the data plane.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{daemon, sockets};
use crate::config::{Config, Drain};
use crate::proxy::log::LogFile;
use crate::proxy::table::DrainLimits;
use crate::proxy::{self, Inherited, ProxyOptions};

pub(super) const EXAMPLES: &str = "Examples:
  longshore proxy
  longshore proxy --take-over
  longshore proxy --config /etc/longshore/deploy.toml --log /var/log/longshore-proxy.log";

/// Arguments of `proxy`.
#[derive(Debug, Args)]
pub(super) struct ProxyArgs {
    /// Write the log to this file, not to standard error. A file of 10 MiB is set aside, and three of them are kept.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Take over from the proxy that serves from this data directory: it hands its sockets over and ends when what it has
    /// under way is done. Without one this changes nothing.
    #[arg(long)]
    take_over: bool,
}

/// Runs the proxy until it is told to end.
pub(super) fn run(config_path: &Path, args: &ProxyArgs) -> ExitCode {
    daemon::be_thrifty();
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
    // Before there are threads: it clears variables of the environment.
    let inherited = match sockets::inherited(["proxy", "proxy-https"]) {
        Ok([http, https]) => Inherited { http, https },
        Err(err) => {
            eprintln!("error: {err:#}");
            return ExitCode::FAILURE;
        }
    };
    daemon::finish(daemon::runtime().and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut hangup = signal(SignalKind::hangup())?;
            let (stop, reload) = (shutdown.clone(), Arc::new(Notify::new()));
            let asked = Arc::clone(&reload);
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => break,
                        _ = interrupt.recv() => break,
                        _ = hangup.recv() => asked.notify_one(),
                    }
                }
                stop.cancel();
            });
            let options = ProxyOptions {
                front: config.proxy.clone(),
                config: Some(config_path.to_owned()),
                reload,
                inherited,
                take_over: args.take_over,
                limits: limits(&config),
                ..ProxyOptions::new(config.proxy.http, config.agent.data_dir)
            };
            proxy::run(options, shutdown).await
        })
    }))
}

/// What a proxy that is replaced has under way may go on as long as with an instance that is replaced: the longest time
/// that any service has.
fn limits(config: &Config) -> DrainLimits {
    let longest = |of: fn(&Drain) -> Duration| {
        let drains = config.apps.values().flat_map(|app| app.services.values()).map(|service| of(&service.drain));
        drains.max()
    };
    DrainLimits {
        requests: longest(|drain| drain.requests).unwrap_or(Duration::from_secs(30)),
        streams: longest(|drain| drain.streams).unwrap_or(Duration::from_secs(60)),
    }
}
