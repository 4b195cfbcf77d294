//! Copies of the journal: complete, consistent and on disk, or not there at all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::open::{OpenError, check, connect, explain, sibling};
use super::recognise::what_else;
use super::{Store, StoreError, agent, schema};
use crate::data_dir::sync_directory;

/// What a journal or a copy of it has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Its size.
    pub bytes: u64,
    /// The version of its schema.
    pub schema: i64,
    /// Deployments on record.
    pub deployments: u64,
    /// Releases on record.
    pub releases: u64,
    /// Whose it is.
    pub agent: Option<String>,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("{path}: {err}", path = .0.display(), err = .1)]
    Io(PathBuf, io::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl CopyError {
    /// Without the name that the copy has meanwhile.
    fn why(&self) -> String {
        match self {
            Self::Io(_, err) => err.to_string(),
            Self::Sqlite(err) => err.to_string(),
        }
    }
}

impl Store {
    /// A copy of the journal as it is now, in a file without a name: it is gone when it is closed. Other calls wait
    /// meanwhile.
    pub async fn backup(&self) -> Result<File, StoreError> {
        self.alone(|connection| {
            let journal = connection.path().map(PathBuf::from).unwrap_or_default();
            let copy_path = sibling(&journal, ".backup");
            copy(connection, &copy_path).map_err(|err| match err {
                CopyError::Sqlite(err) => super::failure(connection, err),
                CopyError::Io(_, err) if err.kind() == io::ErrorKind::StorageFull => StoreError::Full,
                CopyError::Io(..) => StoreError::Sqlite(format!("it cannot be copied: {err}")),
            })?;
            let unnamed = File::open(&copy_path).and_then(|file| fs::remove_file(&copy_path).map(|()| file));
            unnamed.map_err(|err| StoreError::Sqlite(format!("{}: {err}", copy_path.display())))
        })
        .await?
    }
}

/// Copies a journal that no agent has open. The caller holds the directory's lock.
pub fn copy_closed(journal: &Path, to: &Path) -> Result<(), OpenError> {
    let connection = connect(journal, OpenFlags::empty())?;
    check(&connection, journal)?;
    copy(&connection, to).map_err(|err| OpenError::NotWritten { path: to.into(), why: err.why() })
}

/// Says what a file is, when it is a whole journal that this longshore can read. The file is only read.
pub fn inspect(path: &Path) -> Result<Contents, OpenError> {
    let explain = |err| explain(path, err);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let what = what_else(path).map_err(|err| OpenError::Other { path: path.into(), why: err.to_string() })?;
    if let Some(what) = what {
        return Err(OpenError::NotAJournal { path: path.into(), what });
    }
    let connection = Connection::open_with_flags(path, flags).map_err(explain)?;
    check(&connection, path)?;
    contents(&connection, path)
}

pub(super) fn contents(connection: &Connection, path: &Path) -> Result<Contents, OpenError> {
    let explain = |err| explain(path, err);
    schema::refuse_foreign(connection, path)?;
    let schema = schema::refuse_newer(connection, path)?;
    let bytes = fs::metadata(path).map_err(|err| OpenError::Other { path: path.into(), why: err.to_string() })?.len();
    let agent = agent::of(connection).map_err(explain)?;
    let counts = "SELECT (SELECT count(*) FROM deployments), (SELECT count(*) FROM releases)";
    connection
        .query_row(counts, [], |row| {
            let (deployments, releases): (i64, i64) = (row.get(0)?, row.get(1)?);
            let (deployments, releases) = (deployments.unsigned_abs(), releases.unsigned_abs());
            Ok(Contents { bytes, schema, deployments, releases, agent })
        })
        .map_err(explain)
}

/// Writes a copy under another name first, so that `to` is never half of one. Readable by this user alone.
pub(super) fn copy(connection: &Connection, to: &Path) -> Result<(), CopyError> {
    let new = sibling(to, ".new");
    let copied = copy_to(connection, &new).and_then(|()| {
        let named = fs::rename(&new, to).and_then(|()| sync_directory(to));
        named.map_err(|err| CopyError::Io(to.into(), err))
    });
    if copied.is_err() {
        // Best effort: it would only take room.
        let _ = fs::remove_file(&new);
    }
    copied
}

fn copy_to(connection: &Connection, new: &Path) -> Result<(), CopyError> {
    let io = |err| CopyError::Io(new.into(), err);
    // SQLite takes an empty file; one of its own making would have another mode.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(new).map_err(io)?;
    let name = new.to_str().ok_or_else(|| io(io::Error::other("its name is no UTF-8")))?;
    connection.execute("VACUUM INTO ?", [name])?;
    file.sync_all().map_err(io)
}
