//! What the long-running commands share: the log, the runtime, the end.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// The log goes to standard error; `LONGSHORE_LOG` chooses what (default `info`), as in `LONGSHORE_LOG=debug`.
pub fn init() {
    let wanted = std::env::var("LONGSHORE_LOG").unwrap_or_else(|_| "info".to_owned());
    // bollard writes whole answers of the engine at debug level, environments included.
    let filter = EnvFilter::new(format!("{wanted},bollard=info,hyper=info,reqwest=info"));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .init();
}

/// The runtime of a long-running command.
pub fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Says why it ended, if it did not end well.
pub fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}
