//! Takes the demo away: its processes, what it made on the engine, its directory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::MARK;
use crate::config;
use crate::runtime::docker::Docker;

/// How long a process may take to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// Removes the demo in `dir`.
pub(super) async fn remove(dir: &Path) -> Result<()> {
    ensure!(
        dir.join(MARK).is_file(),
        "{} holds no demo: `longshore demo` would have left the file {MARK} there; nothing was removed",
        dir.display()
    );
    let config_path = dir.join("deploy.toml");
    for pid_file in ["agent.pid", "data/proxy.lock"] {
        end_process(&dir.join(pid_file), dir).await?;
    }
    if let Ok(agent_id) = fs::read_to_string(dir.join("data/agent-id")) {
        let config = config::load(&config_path).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        let docker = Docker::connect(&config.runtime.docker_host, agent_id.trim()).await?;
        docker.remove_everything().await?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Ends the process whose id is in a file, if it still is one of the demo's.
async fn end_process(pid_file: &Path, dir: &Path) -> Result<()> {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let Ok(pid) = text.trim().parse::<i32>() else { return Ok(()) };
    let is_ours = || {
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command_line).contains(&*dir.to_string_lossy())
    };
    if !is_ours() {
        return Ok(());
    }
    // An error says that it has just ended.
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let deadline = Instant::now() + PATIENCE;
    while is_ours() {
        ensure!(Instant::now() < deadline, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_demo_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["deploy.toml", "data/agent-id"] {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), "of somebody else").unwrap();
        }
        let refused = remove(dir.path()).await.unwrap_err().to_string();
        assert!(refused.contains("holds no demo") && refused.contains("nothing was removed"), "{refused}");
        assert!(dir.path().join("data/agent-id").exists());
    }
}
