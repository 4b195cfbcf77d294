//! What the long-running commands share: the configuration, the log, the runtime, the end.

use std::env;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, Config};
use crate::proxy::log::LogFile;

/// What the C library's allocator is told: to give back freed memory beyond 128 KiB. Left to itself glibc raises this with
/// every large block that it sees freed, and an agent that once fetched ten megabytes keeps forty. (mallopt(3),
/// `M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD`.) And to have a hundred small blocks of a size at hand for each thread, not
/// seven: a proxy has as many requests under way at once. (The GNU C Library Manual, Memory Allocation Tunables.)
const THRIFT: [(&str, &str); 3] = [
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=100"),
];

/// Executes this program anew, in the same process, with an allocator that gives memory back: it listens to its environment
/// only, and only at the start. Where somebody has set that, or it cannot be done, things go on as they are.
pub fn be_thrifty() {
    let is_set = THRIFT.iter().any(|(name, _)| env::var_os(name).is_some());
    let (Ok(exe), mut args) = (env::current_exe(), env::args_os()) else { return };
    if is_set || cfg!(not(target_env = "gnu")) {
        return;
    }
    let name = args.next().unwrap_or_else(|| exe.clone().into());
    // Returns only when it failed.
    let _ = Command::new(exe).arg0(name).args(args).envs(THRIFT).exec();
}

/// The log goes to standard error; `LONGSHORE_LOG` chooses what (default `info`), as in `LONGSHORE_LOG=debug`.
pub fn init() {
    let ansi = std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
    init_to(std::io::stderr, ansi);
}

/// The log goes to a file.
pub fn init_to_file(log: LogFile) {
    init_to(Mutex::new(log), false);
}

fn init_to(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static, ansi: bool) {
    let wanted = env::var("LONGSHORE_LOG").unwrap_or_else(|_| "info".to_owned());
    let (filter, mistake) = match wanted.parse::<Targets>() {
        Ok(filter) => (filter, None),
        Err(mistake) => (Targets::new().with_default(LevelFilter::INFO), Some(mistake)),
    };
    let filter = bounded(filter);
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(ansi).with_writer(writer);
    tracing_subscriber::registry().with(filter).with(lines).init();
    if let Some(mistake) = mistake {
        tracing::warn!("LONGSHORE_LOG={wanted:?} is not understood: {mistake}; what is logged is `info`");
    }
}

/// What libraries say is bounded, whatever is wanted of the rest.
fn bounded(wanted: Targets) -> Targets {
    // rustls warns of what strangers send, and cannot say who: a port scan would fill the log. The proxy tells the same at debug
    // level, with the address. Who names rustls gets what is asked for.
    let quiet = Targets::new().with_target("rustls", LevelFilter::ERROR);
    let filter = quiet.with_default(wanted.default_level().unwrap_or(LevelFilter::OFF)).with_targets(wanted);
    // bollard writes whole answers of the engine at debug level, environments included.
    filter.with_targets(["bollard", "hyper", "reqwest"].map(|target| (target, LevelFilter::INFO)))
}

/// The configuration of a command that runs by it, with the secrets that there are; when it is not valid, what is wrong is
/// told.
pub fn configuration(path: &Path) -> Result<Config, ExitCode> {
    config::load_to_start(path).map_err(|problems| {
        eprintln!("{problems}");
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

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter as Level;

    use super::*;

    #[test]
    fn what_strangers_send_is_no_warning_unless_it_is_asked_for() {
        for (wanted, target, most) in [
            ("info", "longshore::proxy::connection", Level::INFO),
            ("info", "rustls::check", Level::ERROR),
            ("debug", "longshore::proxy::connection", Level::DEBUG),
            ("debug", "rustls::common_state", Level::ERROR),
            ("debug", "bollard::docker", Level::INFO),
            ("info,rustls=debug", "rustls::check", Level::DEBUG),
            ("rustls=warn", "rustls::check", Level::WARN),
            ("longshore::proxy=debug", "longshore::proxy::tls", Level::DEBUG),
            ("longshore::proxy=debug", "longshore::serve", Level::OFF),
        ] {
            let filter = bounded(wanted.parse().unwrap());
            let all = [tracing::Level::ERROR, tracing::Level::WARN, tracing::Level::INFO, tracing::Level::DEBUG];
            let enabled = all.into_iter().filter(|level| filter.would_enable(target, level)).max();
            assert_eq!(enabled.map_or(Level::OFF, Level::from_level), most, "{wanted} {target}");
        }
    }
}
