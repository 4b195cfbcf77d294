//! What the long-running commands share: the configuration, the log, the runtime, the end.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{self, Config};
use crate::proxy::log::LogFile;

/// The log goes to standard error; `LONGSHORE_LOG` chooses what (default `info`), as in `LONGSHORE_LOG=debug`.
pub fn init() {
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    init_to(std::io::stderr, ansi);
}

/// The log goes to a file.
pub fn init_to_file(log: LogFile) {
    init_to(Mutex::new(log), false);
}

fn init_to(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static, ansi: bool) {
    let wanted = std::env::var("LONGSHORE_LOG").unwrap_or_else(|_| "info".to_owned());
    // bollard writes whole answers of the engine at debug level, environments included.
    let filter = EnvFilter::new(format!("{wanted},bollard=info,hyper=info,reqwest=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(ansi).with_writer(writer).init();
}

/// The configuration of a command that runs by it; when it is not valid, what is wrong is told.
pub fn configuration(path: &Path) -> Result<Config, ExitCode> {
    config::load(path).map_err(|problems| {
        eprint!("{problems}");
        ExitCode::from(2)
    })
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
