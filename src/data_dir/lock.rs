//! One agent per data directory: the lock that says so, and who holds it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Its name in the data directory.
pub const FILE: &str = "agent.lock";
/// What the agent is called in it.
pub const AGENT: &str = "the longshore agent";
/// More than any process id and name take.
const LONGEST: u64 = 200;

/// The lock of a data directory. The kernel releases it when this is dropped or the process ends, however it ends;
/// the file stays.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Why the directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{} is in use by {holder}", dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who, such as `the longshore agent with pid 812`.
        holder: String,
    },
    /// The file could not be opened or locked.
    #[error("cannot lock {}: {why}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
}

/// Takes the lock for `who`, or says who has it. Never waits.
pub fn take(dir: &Path, who: &str) -> Result<Lock, LockError> {
    let path = dir.join(FILE);
    let failed = |why| LockError::Io { path: path.clone(), why };
    // Not truncated: it may be another's.
    let opened = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    match Flock::lock(opened.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            if let Err(err) = sign(&mut file, who) {
                // It is locked all the same; on a full disk the agent must be able to start.
                tracing::warn!(%err, "the process id could not be written to {}", path.display());
            }
            Ok(Lock { _file: file })
        }
        Err((mut file, Errno::EWOULDBLOCK)) => Err(LockError::Held { dir: dir.to_owned(), holder: holder(&mut file) }),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// Over what stands there, then cut: a file that becomes empty first would need a new block.
fn sign(file: &mut File, who: &str) -> io::Result<()> {
    let text = format!("{}\n{who}\n", std::process::id());
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// The process id in the lock of a data directory, whoever has it, or had.
pub fn pid_in(dir: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(dir.join(FILE)).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    text.lines().next()?.trim().parse().ok()
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // What cannot be read is not known.
    let _ = file.take(LONGEST).read_to_string(&mut text);
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse::<u32>().ok());
    let who = lines.next().unwrap_or(AGENT);
    pid.map_or_else(|| format!("{who} (its pid is not known)"), |pid| format!("{who} with pid {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_it_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "1234567890\nsomebody with a very long name\n").unwrap();
        let first = take(dir.path(), AGENT).unwrap();
        let why = take(dir.path(), "longshore restore").unwrap_err().to_string();
        let shown = dir.path().display();
        assert_eq!(why, format!("{shown} is in use by the longshore agent with pid {}", std::process::id()));
        drop(first);
        let _second = take(dir.path(), "longshore restore").unwrap();
        let why = take(dir.path(), AGENT).unwrap_err().to_string();
        assert!(why.ends_with(&format!("longshore restore with pid {}", std::process::id())), "{why}");
    }
}
