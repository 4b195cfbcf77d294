//! Opening the journal: only one that is whole, ours alone, and not an empty one in place of what was there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{agent, schema};
use crate::data_dir::{AGENT_ID, owner_if_other};

/// Statements kept prepared; more than there are different ones.
const STATEMENTS: usize = 128;
/// Long enough for a predecessor that is just ending.
const BUSY: Duration = Duration::from_millis(500);
/// Of SQLite's pages, in bytes.
const PAGE: u64 = 4096;

/// Why the journal could not be opened. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{} is in use by {}; stop that process first, or give this agent a data_dir of its own", path.display(),
        pid.map_or("another process".to_owned(), |pid| format!("the process with pid {pid}"))
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who, where the kernel says.
        pid: Option<u32>,
    },
    /// A newer longshore wrote it.
    #[error(
        "{} has schema version {found}, this longshore knows up to {known}: it is left as it is. Run the newer longshore \
         again, or {}", path.display(),
        match before {
            Some(copy) => format!("go back to the copy from before the upgrade with: longshore restore {}", copy.display()),
            None => "put a backup from before the upgrade in its place with: longshore restore FILE".to_owned(),
        }
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
        /// A copy beside it that we can read.
        before: Option<PathBuf>,
    },
    /// It is something else.
    #[error(
        "{} is no journal of longshore's: {what}. It is left as it is; put a backup in its place with: longshore restore \
         FILE", path.display()
    )]
    NotAJournal {
        /// The file.
        path: PathBuf,
        /// `it is a directory` …
        what: &'static str,
    },
    /// It is no intact SQLite file.
    #[error(
        "{} is damaged ({why}): it is left as it is. Restore a backup with: longshore restore FILE", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// The directory was in use, and what was in its journal is gone.
    #[error(
        "{} is {what}, and its directory has been in use: no empty journal is put in its place. Restore a backup with: \
         longshore restore FILE; or remove {} to begin with an empty one, which knows nothing of what runs",
        path.display(), path.with_file_name(AGENT_ID).display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// `missing`, `empty` …
        what: &'static str,
    },
    /// It is whole, and another agent's than the one whose directory this is.
    #[error(
        "{} is {}, and {} says that this directory is the one of agent {own}: it is left as it is, because this agent would \
         take the containers of another one for its own. Put the journal of {own} back; or delete {} to go on with this one",
        path.display(), agent::whose(found.as_deref()), path.with_file_name(AGENT_ID).display(),
        path.with_file_name(AGENT_ID).display()
    )]
    OfAnother {
        /// The file.
        path: PathBuf,
        /// The agent's id in it, if there is one.
        found: Option<String>,
        /// The one in `agent-id`.
        own: String,
    },
    /// One of the journal's two files is gone, and what was written last is in the other one.
    #[error(
        "{} is {what}, but {wal} is there, and a journal is both files together: no empty one is begun beside it. Put {} \
         back from where it was moved to; or restore a backup with: longshore restore FILE; or remove {wal}{} to begin \
         with an empty journal, which knows nothing of what runs",
        path.display(), path.display(),
        if *in_use { format!(" and {}", path.with_file_name(AGENT_ID).display()) } else { String::new() },
        wal = sibling(path, "-wal").display(),
    )]
    WalAlone {
        /// The file that is gone.
        path: PathBuf,
        /// `missing` or `empty`.
        what: &'static str,
        /// The directory has been in use.
        in_use: bool,
    },
    /// The system does not let us.
    #[error("{} cannot be written: {why}", path.display())]
    NotWritable {
        /// The file or its directory.
        path: PathBuf,
        /// What is in the way, and what helps.
        why: String,
    },
    /// There is no room.
    #[error("{} cannot be written: its disk is full; free some space and start again", .0.display())]
    Full(PathBuf),
    /// The copy from before a migration could not be made.
    #[error(
        "{} must be brought to schema version {to}, and is not, because the copy {} that is made before cannot be \
         written: {why}", path.display(), copy.display()
    )]
    NoCopy {
        /// The file.
        path: PathBuf,
        /// The version.
        to: i64,
        /// The copy.
        copy: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A copy could not be written.
    #[error("cannot write {}: {why}", path.display())]
    NotWritten {
        /// The copy.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// Anything else.
    #[error("cannot open {}: {why}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
}

impl OpenError {
    /// The same, told of another file: of the one that a person named, when this was found in a copy of it.
    pub fn told_of(self, file: &Path) -> Self {
        let path = file.to_path_buf();
        match self {
            Self::InUse { pid, .. } => Self::InUse { path, pid },
            Self::Newer { found, known, before, .. } => Self::Newer { path, found, known, before },
            Self::NotAJournal { what, .. } => Self::NotAJournal { path, what },
            Self::Damaged { why, .. } => Self::Damaged { path, why },
            Self::Lost { what, .. } => Self::Lost { path, what },
            Self::WalAlone { what, in_use, .. } => Self::WalAlone { path, what, in_use },
            Self::OfAnother { found, own, .. } => Self::OfAnother { path, found, own },
            Self::NotWritable { why, .. } => Self::NotWritable { path, why },
            Self::Full(_) => Self::Full(path),
            Self::NoCopy { to, copy, why, .. } => Self::NoCopy { path, to, copy, why },
            Self::NotWritten { why, .. } => Self::NotWritten { path, why },
            Self::Other { why, .. } => Self::Other { path, why },
        }
    }
}

/// Opens the journal, or makes the first one of its directory.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let used = path.with_file_name(AGENT_ID).exists();
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(fs::Metadata::is_dir) {
        return Err(OpenError::NotAJournal { path: path.into(), what: "it is a directory" });
    }
    let size = found.map(|file| file.len());
    if let Some(what) = size.as_ref().map_or_else(missing, |bytes| (*bytes == 0).then_some("empty")) {
        // SQLite would remove it, and begin anew.
        if sibling(path, "-wal").exists() {
            return Err(OpenError::WalAlone { path: path.into(), what, in_use: used });
        }
        if used {
            return Err(OpenError::Lost { path: path.into(), what });
        }
    }
    let wal = fs::metadata(sibling(path, "-wal")).map_or(0, |file| file.len());
    if let Ok(bytes) = size
        && (1..PAGE).contains(&bytes) | (wal == 0 && bytes % PAGE != 0)
    {
        // SQLite would take it for an empty one, or put zeros where the rest was. Only with a -wal, which then has the
        // page, an interrupted write explains it.
        return Err(OpenError::Damaged {
            path: path.into(),
            why: format!("it is cut off after {bytes} bytes, within a page"),
        });
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    let version = schema::version(&connection).map_err(|err| explain(path, err))?;
    if used && version == 0 {
        return Err(OpenError::Lost { path: path.into(), what: "without any content (is its -wal file missing?)" });
    }
    check(&connection, path)?;
    if (1..=schema::KNOWN).contains(&version) {
        schema::refuse_foreign(&connection, path)?;
        refuse_of_another(&connection, path)?;
    }
    schema::migrate(&connection, path)?;
    Ok(connection)
}

/// Each journal that was in use here has the id that is beside it: that is written from it.
fn refuse_of_another(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let beside = agent::beside(path).map_err(|err| OpenError::Other {
        path: path.with_file_name(AGENT_ID),
        why: format!("{err}; mend it, or delete it to go on with the journal that is there"),
    })?;
    let found = agent::of(connection).map_err(|err| explain(path, err))?;
    match beside {
        Some(own) if found.as_ref() != Some(&own) => Err(OpenError::OfAnother { path: path.into(), found, own }),
        _ => Ok(()),
    }
}

fn missing(err: &io::Error) -> Option<&'static str> {
    (err.kind() == io::ErrorKind::NotFound).then_some("missing")
}

/// Opens the file for this process alone, as it is.
pub(super) fn connect(path: &Path, create: OpenFlags) -> Result<Connection, OpenError> {
    refuse_unwritable(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let explain = |err: rusqlite::Error| explain(path, err);
    let connection = Connection::open_with_flags(path, flags).map_err(explain)?;
    connection.busy_timeout(BUSY).map_err(explain)?;
    // EXCLUSIVE keeps a second agent out and SQLite from a shared-memory file (a full disk would be a SIGBUS there);
    // FULL has every commit on disk before it is answered.
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -8192;
             PRAGMA wal_autocheckpoint = 2000;",
        )
        .map_err(explain)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Whether every page is what it must be, and every index agrees with its table.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(|err| explain(path, err))?;
    if found == "ok" { Ok(()) } else { Err(OpenError::Damaged { path: path.into(), why: found }) }
}

/// SQLite would open such a file for reading and fail at the first write, with fewer words.
pub(super) fn refuse_unwritable(path: &Path) -> Result<(), OpenError> {
    let wal = sibling(path, "-wal");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for place in [directory, path, &wal] {
        match access(place, AccessFlags::R_OK | AccessFlags::W_OK) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
            Err(errno) => return Err(OpenError::NotWritable { path: place.into(), why: why_not(place, errno) }),
        }
    }
    Ok(())
}

/// What keeps even a file that is open from being written, if anything does. A mode or an owner keeps only the next start
/// from it.
pub(super) fn takes_nothing(file: &Path) -> Option<String> {
    match access(file, AccessFlags::W_OK) {
        Err(errno @ (nix::errno::Errno::EPERM | nix::errno::Errno::EROFS)) => Some(why_not(file, errno)),
        _ => None,
    }
}

fn why_not(place: &Path, errno: nix::errno::Errno) -> String {
    match (errno, owner_if_other(place)) {
        (nix::errno::Errno::EROFS, _) => "its file system is mounted read-only; mount it for writing".into(),
        // Not even root may.
        (nix::errno::Errno::EPERM, _) => {
            format!("it is marked as immutable; allow it to be changed with: chattr -i {}", place.display())
        }
        (_, Some((owner, own))) => format!(
            "it belongs to uid {owner}, and this runs as uid {own}; run it as its owner, or give it the file: chown {own} {}",
            place.display()
        ),
        (_, None) => format!("its mode does not allow it; chmod u+rw {}", place.display()),
    }
}

/// `journal.db` with an ending, as SQLite names what belongs to it.
pub(super) fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

pub(super) fn explain(path: &Path, err: rusqlite::Error) -> OpenError {
    let path = path.to_path_buf();
    match err.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse { pid: lock_holder(&path), path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Damaged { path, why: err.to_string() },
        Some(ErrorCode::DiskFull) => OpenError::Full(path),
        Some(ErrorCode::SystemIoFailure) => OpenError::Other {
            path,
            why: format!(
                "{err}: its disk or file system does not do what it should; the kernel's log says more (dmesg)"
            ),
        },
        Some(ErrorCode::ReadOnly) => OpenError::NotWritable { path, why: err.to_string() },
        _ => OpenError::Other { path, why: err.to_string() },
    }
}

/// Which process has a lock on the file. Asked of the kernel's list: opening the file to ask would, when it is closed
/// again, end this process' own locks on it.
pub(super) fn lock_holder(path: &Path) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    holder_of(&fs::read_to_string("/proc/locks").ok()?, file.dev(), file.ino())
}

/// A line is such as `1: POSIX  ADVISORY  WRITE 812 fe:00:131097 120 120`.
fn holder_of(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == wanted)?;
        words.get(at.checked_sub(1)?)?.parse().ok().filter(|pid| *pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_the_file() {
        let locks = "1: FLOCK  ADVISORY  WRITE 77 fe:00:130 0 EOF\n2: POSIX  ADVISORY  WRITE 812 fe:00:131 120 120\n\
                     2: -> POSIX  ADVISORY  WRITE 813 fe:00:131 120 120\n3: POSIX ADVISORY READ -1 fe:00:132 0 EOF\n";
        let device = nix::sys::stat::makedev(0xfe, 0);
        assert_eq!(holder_of(locks, device, 131), Some(812));
        assert_eq!(holder_of(locks, device, 132), None);
        assert_eq!(holder_of(locks, device, 13), None);
    }
}
