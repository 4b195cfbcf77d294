//! Whose journal it is: the agent's id in it, and the one beside it in plain text.

use std::fs;
use std::io;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use crate::data_dir::{AGENT_ID, sync_directory, write_whole};

/// In `meta`: the agent's id.
pub const KEY: &str = "agent_id";

/// The id in a journal; none before its first agent was up.
pub(super) fn of(c: &Connection) -> rusqlite::Result<Option<String>> {
    c.query_row("SELECT value FROM meta WHERE key = ?", [KEY], |row| row.get(0)).optional()
}

/// The id of the agent whose directory it is; none where it has not been in use.
pub(super) fn beside(journal: &Path) -> io::Result<Option<String>> {
    match fs::read(journal.with_file_name(AGENT_ID)) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim().to_owned()).filter(|id| !id.is_empty())),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// Has the directory belong to this agent from now on, or to the one of the journal's next start.
pub(super) fn make_own(journal: &Path, id: Option<&str>) -> io::Result<()> {
    let file = journal.with_file_name(AGENT_ID);
    match id {
        Some(id) => write_whole(&file, id.as_bytes()),
        None => fs::remove_file(&file).and_then(|()| sync_directory(&file)),
    }
}

/// `the journal of agent 0123456789ab`
pub(super) fn whose(id: Option<&str>) -> String {
    id.map_or_else(|| "a journal without an agent's id".to_owned(), |id| format!("the journal of agent {id}"))
}
