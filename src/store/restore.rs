//! A backup in the journal's place. The journal that was there is set aside, never deleted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::agent;
use super::backup::{Contents, contents};
use super::numbers::mark_restored;
use super::open::{OpenError, check, connect, explain, lock_holder, sibling};
use super::recognise::what_else;
use crate::data_dir::{AGENT_ID, sync_directory};

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What is in the journal now.
    pub contents: Contents,
    /// Where the journal is that was there before.
    pub set_aside: Option<PathBuf>,
}

/// Why nothing was restored. The journal is the one that it was, unless this says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup is not to be used.
    #[error("{0}")]
    Backup(OpenError),
    /// It is something else.
    #[error(
        "{} is no journal of longshore's: {what}. Name a file that longshore backup wrote, or a journal that was set \
         aside", path.display()
    )]
    NotAJournal {
        /// The file.
        path: PathBuf,
        /// `it is a directory` …
        what: &'static str,
    },
    /// It is another agent's than the one whose directory this is.
    #[error(
        "{} is {}, and {} says that this directory is the one of agent {own}: with it this agent would take the containers \
         of another one for its own, and no longer know those of {own}. Name a backup of {own}; or add --another-agent \
         when it is to go on as the agent of the backup, as on a machine that takes the place of that one's",
        backup.display(), agent::whose(found.as_deref()), beside.display()
    )]
    OfAnother {
        /// The file.
        backup: PathBuf,
        /// The agent's id in it, if there is one.
        found: Option<String>,
        /// `agent-id`
        beside: PathBuf,
        /// What is in that.
        own: String,
    },
    /// A process works with the journal.
    #[error("{} is in use by the process with pid {pid}; stop it first", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
        /// Who.
        pid: u32,
    },
    /// A file could not be written.
    #[error("{}: {why}; {state}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
        /// What is there now.
        state: String,
    },
}

impl From<OpenError> for RestoreError {
    fn from(err: OpenError) -> Self {
        match err {
            OpenError::NotAJournal { path, what } => Self::NotAJournal { path, what },
            other => Self::Backup(other),
        }
    }
}

/// Which backups are taken in a directory that has been in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of its own agent.
    Own,
    /// Also those of another one, whose directory it is afterwards.
    Any,
}

/// Puts `backup` in the place of `journal`. The caller holds the directory's lock.
pub fn restore(backup: &Path, journal: &Path, whose: Whose, now: Timestamp) -> Result<Restored, RestoreError> {
    // An older longshore does not know the directory's lock.
    if let Some(pid) = lock_holder(journal) {
        return Err(RestoreError::InUse { path: journal.into(), pid });
    }
    if backup.is_dir() {
        return Err(RestoreError::NotAJournal { path: backup.into(), what: "it is a directory" });
    }
    let new = sibling(journal, ".restoring");
    remove(&new);
    let ready = bring(backup, &new).and_then(|()| make_ready(&new, backup).map_err(RestoreError::from));
    let is_ours = |contents: Contents| match whose {
        Whose::Own => refuse_of_another(&contents, backup, journal).map(|()| contents),
        Whose::Any => Ok(contents),
    };
    let contents = ready.and_then(is_ours).inspect_err(|_| remove(&new))?;
    let set_aside = replace(journal, &new, now)?;
    // Last: cut off before it, the next start says what is wrong; without any id it could begin an empty journal.
    hand_over(journal, contents.agent.as_deref())?;
    Ok(Restored { contents, set_aside })
}

fn refuse_of_another(contents: &Contents, backup: &Path, journal: &Path) -> Result<(), RestoreError> {
    let beside = journal.with_file_name(AGENT_ID);
    match agent::beside(journal) {
        Ok(Some(own)) if contents.agent.as_ref() != Some(&own) => {
            Err(RestoreError::OfAnother { backup: backup.into(), found: contents.agent.clone(), beside, own })
        }
        Ok(_) => Ok(()),
        Err(why) => Err(RestoreError::Io { path: beside, why, state: "the journal was not touched".into() }),
    }
}

/// Brings the `agent-id` that is there along. Where there is none, the agent writes it.
fn hand_over(journal: &Path, id: Option<&str>) -> Result<(), RestoreError> {
    let beside = journal.with_file_name(AGENT_ID);
    if !beside.exists() {
        return Ok(());
    }
    agent::make_own(journal, id).map_err(|why| RestoreError::Io {
        path: beside,
        why,
        state: "the backup is in the journal's place; delete this file before the agent is started".into(),
    })
}

/// The copy, with what SQLite may have left beside it, on disk.
fn bring(backup: &Path, new: &Path) -> Result<(), RestoreError> {
    for ending in ["", "-wal"] {
        let (from, to) = (sibling(backup, ending), sibling(new, ending));
        match copy(&from, &to) {
            // Only a copy made with cp while an agent ran has it.
            Err((_, err)) if ending == "-wal" && err.kind() == io::ErrorKind::NotFound => {}
            Err((path, why)) => {
                return Err(RestoreError::Io { path, why, state: "the journal was not touched".into() });
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), (PathBuf, io::Error)> {
    let mut source = File::open(from).map_err(|err| (from.to_owned(), err))?;
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(to);
    let written = file.as_mut().map_err(|err| io::Error::new(err.kind(), err.to_string())).and_then(|file| {
        io::copy(&mut source, file)?;
        file.sync_all()
    });
    written.map_err(|err| (to.to_owned(), err))
}

/// Checks the copy and marks it. What is wrong with it is told of the backup.
fn make_ready(new: &Path, backup: &Path) -> Result<Contents, OpenError> {
    let told = |err: rusqlite::Error| explain(backup, err);
    let what = what_else(new).map_err(|err| OpenError::Other { path: new.into(), why: err.to_string() })?;
    if let Some(what) = what {
        return Err(OpenError::NotAJournal { path: backup.into(), what });
    }
    let connection = connect(new, OpenFlags::empty()).map_err(|err| of_backup(err, backup))?;
    check(&connection, new).map_err(|err| of_backup(err, backup))?;
    let found = contents(&connection, new).map_err(|err| of_backup(err, backup))?;
    mark_restored(&connection).map_err(told)?;
    // One file, with all that is in it.
    connection.execute_batch("PRAGMA journal_mode = DELETE").map_err(told)?;
    close(connection).map_err(told)?;
    let synced = File::open(new).and_then(|file| file.sync_all());
    synced.map_err(|err| OpenError::Other { path: new.into(), why: err.to_string() })?;
    Ok(found)
}

fn close(connection: Connection) -> rusqlite::Result<()> {
    connection.close().map_err(|(_, err)| err)
}

/// What is wrong with its content is told of the backup, and of the copy what is wrong with the place where that is.
fn of_backup(err: OpenError, backup: &Path) -> OpenError {
    match err {
        of_content @ (OpenError::Damaged { .. } | OpenError::Newer { .. } | OpenError::NotAJournal { .. }) => {
            of_content.told_of(backup)
        }
        other => other,
    }
}

/// The journal aside, the new one in its place. A `-wal` goes first: beside another journal than its own it would be
/// taken for that one's.
fn replace(journal: &Path, new: &Path, now: Timestamp) -> Result<Option<PathBuf>, RestoreError> {
    let aside = free_name(journal, now);
    let mut moved = false;
    for ending in ["-wal", ""] {
        let (from, to) = (sibling(journal, ending), sibling(&aside, ending));
        let renamed = match fs::rename(&from, &to) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            renamed => renamed.and_then(|()| sync_directory(journal)),
        };
        let state = || match moved {
            true => format!("the journal's -wal file is at {}: move it back", sibling(&aside, "-wal").display()),
            false => "the journal was not touched".into(),
        };
        renamed.map_err(|why| RestoreError::Io { path: from, why, state: state() })?;
        moved = true;
    }
    // It belongs to the file that is gone.
    remove_one(&sibling(journal, "-shm"));
    let renamed = fs::rename(new, journal).and_then(|()| sync_directory(journal));
    renamed.map_err(|why| RestoreError::Io {
        path: journal.into(),
        why,
        state: format!("the journal is at {}: move it back", aside.display()),
    })?;
    Ok(aside.exists().then_some(aside))
}

/// Where nothing is that was set aside before, perhaps in the same second.
fn free_name(journal: &Path, now: Timestamp) -> PathBuf {
    let name = sibling(journal, &format!(".replaced-{}", now.strftime("%Y%m%dT%H%M%SZ")));
    let is_taken = |name: &PathBuf| ["", "-wal"].iter().any(|ending| sibling(name, ending).exists());
    let others = (2..).map(|number: u64| sibling(&name, &format!(".{number}")));
    std::iter::once(name.clone()).chain(others).find(|name| !is_taken(name)).unwrap_or(name)
}

/// A copy that came to nothing.
fn remove(new: &Path) {
    ["", "-wal", "-shm"].iter().for_each(|ending| remove_one(&sibling(new, ending)));
}

fn remove_one(path: &Path) {
    // Best effort: it would only take room.
    let _ = fs::remove_file(path);
}
