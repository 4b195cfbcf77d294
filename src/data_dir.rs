//! The data directory: made where it is missing, closed to other users, and never somebody else's.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

pub mod identity;
pub mod lock;

/// The journal's file in it.
pub const JOURNAL: &str = "journal.db";
/// The agent's id in plain text; it lies beside a journal that has been in use.
pub const AGENT_ID: &str = "agent-id";
/// Files by which a directory is known as one of ours. The agent makes the first one before all others, the proxy the
/// last one.
const OURS: &[&str] = &[lock::FILE, JOURNAL, AGENT_ID, "routes.json", "proxy.lock"];
/// What the root of a file system of its own has from the beginning.
const OF_FILE_SYSTEM: &str = "lost+found";
/// How many of a stranger's files are named.
const NAMED: usize = 3;

/// Makes the directory with mode 0700, or sets that mode. One that holds files and none of ours is refused and left
/// as it is: it would be closed to whoever uses it.
pub fn prepare(dir: &Path) -> Result<()> {
    let shown = dir.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the data directory {shown}"))?;
    let mut strangers = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read the data directory {shown}"))? {
        let name = entry.with_context(|| format!("cannot read the data directory {shown}"))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if OURS.contains(&name.as_str()) {
            strangers.clear();
            break;
        }
        if name != OF_FILE_SYSTEM {
            strangers.push(name);
        }
    }
    if !strangers.is_empty() {
        strangers.sort();
        let more = strangers.len().saturating_sub(NAMED);
        let named = strangers.iter().take(NAMED).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        bail!(
            "{shown} ([agent] data_dir) is not longshore's: it holds {named}{more}, and no journal. Nothing in it was \
             changed. The data directory is closed to all other users, so name one of the agent's own: an empty one, \
             or one that does not exist yet, such as {}",
            dir.join("longshore").display()
        );
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).with_context(|| match owner_if_other(dir) {
        Some((owner, own)) => format!(
            "cannot set the mode of {shown} to 0700: it belongs to uid {owner}, and the agent runs as uid {own}. Run it as \
             its owner, or give it the directory: chown -R {own} {shown}"
        ),
        None => format!("cannot set the mode of {shown} to 0700"),
    })
}

/// Whose a file is and who we are, where these differ.
pub(crate) fn owner_if_other(path: &Path) -> Option<(u32, u32)> {
    let own = nix::unistd::geteuid().as_raw();
    let owner = fs::metadata(path).ok()?.uid();
    (owner != own).then_some((owner, own))
}

/// Writes a file so that after a crash or on a full disk either the old content or the new one is there, whole. What
/// has the content already is left alone.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Best effort: it would only take room.
        let _ = fs::remove_file(&new);
    }
    written?;
    sync_directory(path)
}

/// Has the entry of `path` in its directory on disk.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().permissions().mode() & 0o777
    }

    /// A directory that everybody may read, with these files.
    fn with(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| fs::write(dir.path().join(file), "").unwrap());
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn what_is_missing_empty_or_ours_is_closed_to_others() {
        let parent = with(&[]);
        let missing = parent.path().join("a/b");
        prepare(&missing).unwrap();
        assert_eq!((mode(&missing), mode(parent.path())), (0o700, 0o755));
        for files in [&[][..], &["lost+found"], &["journal.db", "notes"], &["backup", "proxy.lock"], &["agent.lock"]] {
            let dir = with(files);
            prepare(dir.path()).unwrap();
            assert_eq!(mode(dir.path()), 0o700, "{files:?}");
        }
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_left_as_it_is() {
        let dir = with(&["mail", "www", "ftp", "db", "lost+found"]);
        let why = prepare(dir.path()).unwrap_err().to_string();
        let own = dir.path().join("longshore").display().to_string();
        for words in
            ["[agent] data_dir", r#"it holds "db", "ftp", "mail" and 1 more"#, "Nothing in it was changed", &own]
        {
            assert!(why.contains(words), "{words} is not in: {why}");
        }
        assert_eq!((mode(dir.path()), fs::read_dir(dir.path()).unwrap().count()), (0o755, 5));
    }
}
