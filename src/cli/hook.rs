//! `longshore hook install PATH`

use std::path::{Path, PathBuf};

use clap::Args;

/// Install the post-receive hook in a repository on this machine.
#[derive(Debug, Args)]
pub struct HookInstall {
    /// The repository, bare or not.
    #[arg(value_name = "PATH")]
    pub repository: PathBuf,
}

/// Runs the command.
pub fn run(args: &HookInstall, config_path: &Path) -> anyhow::Result<()> {
    anyhow::bail!("cannot install {} with {}", args.repository.display(), config_path.display())
}
