//! Why a command ends without success, and with which exit code.

use std::process::ExitCode;

use super::text::clean;

/// Failures of client commands.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The command line or the configuration does not allow it: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// It was tried and failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Whoever reads the output has seen enough (`| head`).
    #[error("the output is closed")]
    ReaderGone,
}

impl CliError {
    /// Prints it to stderr; the process' exit code.
    pub fn report(&self) -> ExitCode {
        let code = match self {
            Self::ReaderGone => return ExitCode::SUCCESS,
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
        };
        for (index, line) in self.to_string().lines().enumerate() {
            let start = if index == 0 { "error: " } else { "" };
            // Nowhere else to say it.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{start}{}\n", clean(line)));
        }
        ExitCode::from(code)
    }
}

impl From<std::io::Error> for CliError {
    fn from(err: std::io::Error) -> Self {
        match err.kind() {
            std::io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(format!("cannot write the output: {err}")),
        }
    }
}
