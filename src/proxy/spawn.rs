//! Starting the proxy as a process of its own.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use tokio::sync::oneshot;

use super::log::append_to;

/// A proxy process that was started.
#[derive(Debug)]
pub struct Spawned {
    /// Process id.
    pub pid: u32,
    /// Resolves when it has ended.
    pub ended: oneshot::Receiver<ExitStatus>,
}

/// Starts `EXE proxy --config CONFIG --log LOG --take-over` in a process group of its own, so that neither the agent's death nor
/// Ctrl-C in its terminal reaches it. What it says before it opens its log is appended there as well. When
/// the proxy ends while this process lives, it is reaped.
pub fn spawn_proxy(exe: &Path, config: &Path, log: &Path) -> io::Result<Spawned> {
    let named = |what: &str, path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
    };
    let output = append_to(log).map_err(|error| named("open the proxy's log", log, error))?;
    let mut child = Command::new(exe)
        .arg("proxy")
        .arg("--config")
        .arg(config)
        .arg("--log")
        .arg(log)
        .arg("--take-over")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .map_err(|error| named("start", exe, error))?;
    let pid = child.id();
    let (ending, ended) = oneshot::channel();
    std::thread::Builder::new().name("reap-proxy".to_owned()).spawn(move || match child.wait() {
        Ok(status) => {
            tracing::info!(pid, %status, "the proxy process ended");
            // Whoever started it may not wait for that any more.
            let _ = ending.send(status);
        }
        Err(error) => tracing::warn!(pid, %error, "the proxy process cannot be waited for"),
    })?;
    Ok(Spawned { pid, ended })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_child_has_its_own_group_and_log() {
        let dir = tempfile::tempdir().unwrap();
        let (exe, log) = (dir.path().join("fake"), dir.path().join("proxy.log"));
        std::fs::write(&exe, "#!/bin/sh\necho \"$@\" group $(cut -d' ' -f5 /proc/$$/stat) self $$\n").unwrap();
        std::fs::set_permissions(&exe, PermissionsExt::from_mode(0o755)).unwrap();
        let pid = spawn_proxy(&exe, Path::new("/etc/deploy.toml"), &log).unwrap().pid;
        let expected =
            format!("proxy --config /etc/deploy.toml --log {} --take-over group {pid} self {pid}\n", log.display());
        let written = || std::fs::read_to_string(&log).unwrap_or_default();
        let started = std::time::Instant::now();
        // Reaped: not even a zombie is left under its number.
        while written() != expected || Path::new(&format!("/proc/{pid}")).exists() {
            assert!(started.elapsed().as_secs() < 10, "{:?}", written());
            std::thread::yield_now();
        }
        let missing = spawn_proxy(&dir.path().join("none"), Path::new("x"), &log).unwrap_err().to_string();
        assert!(missing.contains("cannot start"), "{missing}");
    }
}
