//! The journal on disk: one SQLite file, one thread that owns the connection.
//!
//! Every call is a closure run on that thread. Calls that wait together share one transaction (group commit), so a
//! thousand pushes cost a few fsyncs and each is on disk before its answer.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use crate::fail_point;

mod deployments;
mod drift;
mod log;
mod notices;
mod releases;
mod schema;
mod steps;
mod tokens;

pub use deployments::{Admission, Decision, Deployment, Finish, NewDeployment, PhaseSpan};
pub use drift::Drift;
pub use log::LogLine;
pub use notices::Notice;
pub use releases::{Release, ReleaseBody, ReleasedService};
pub use steps::Step;
pub use tokens::{Scope, Token, TokenCheck};

/// Statements kept prepared; more than there are different ones.
const STATEMENTS: usize = 128;
/// At most so many calls share a transaction, so that the first does not wait long for its answer.
const GROUP: usize = 256;

/// A handle on the journal; cheap to clone.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::UnboundedSender<Job>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// SQLite says so.
    #[error("the journal cannot be read or written: {0}")]
    Sqlite(String),
    /// The thread has ended.
    #[error("the journal is closed")]
    Closed,
}

/// Why the journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another longshore agent; stop that one first, or give this one a data_dir of its own")]
    InUse(PathBuf),
    /// A newer longshore wrote it.
    #[error("{path} has schema version {found}, this longshore knows up to {known}: run the newer longshore again")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It is no intact SQLite file.
    #[error(
        "{path} is damaged ({why}): it is left as it is; restore a backup, or move it away to start with an empty journal"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// Anything else.
    #[error("cannot open {path}: {why}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
}

type Work = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

struct Job {
    work: Work,
    /// Told once the transaction is on disk, or why it is not.
    done: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Store {
    /// Opens (or creates) the journal and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let connection = open_connection(path)?;
        let (jobs, queue) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || serve(connection, queue))
            .map_err(|err| OpenError::Other { path: path.into(), why: err.to_string() })?;
        Ok(Self { jobs })
    }

    /// Runs `work` in a transaction and returns once it is on disk.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (value_tx, value_rx) = oneshot::channel();
        let (done, committed) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let value = work(connection)?;
            // A receiver that went away no longer wants the value; the work is done all the same.
            let _ = value_tx.send(value);
            Ok(())
        });
        self.jobs.send(Job { work, done: Some(done) }).map_err(|_| StoreError::Closed)?;
        committed.await.map_err(|_| StoreError::Closed)??;
        value_rx.await.map_err(|_| StoreError::Closed)
    }

    /// Runs `work` soon, in order with the other calls, without waiting. A failure is logged.
    fn post(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        // Closed only while the agent ends; what is posted (log lines) may be lost then.
        let _ = self.jobs.send(Job { work: Box::new(work), done: None });
    }
}

fn open_connection(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let explain = |err: rusqlite::Error| explain_open(path, err);

    let connection = Connection::open_with_flags(path, flags).map_err(explain)?;
    // Long enough for a predecessor that is just ending.
    connection.busy_timeout(Duration::from_millis(500)).map_err(explain)?;
    // EXCLUSIVE keeps a second agent out and SQLite from a shared-memory file (a full disk would be a SIGBUS there);
    // FULL has every commit on disk before it is answered.
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA temp_store = MEMORY;
             PRAGMA wal_autocheckpoint = 2000;",
        )
        .map_err(explain)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(explain)?;
    if check != "ok" {
        return Err(OpenError::Corrupt { path: path.into(), why: check });
    }
    schema::migrate(&connection, path)?;
    Ok(connection)
}

fn explain_open(path: &Path, err: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode;
    let path = path.to_path_buf();
    match err.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse(path),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Corrupt { path, why: err.to_string() },
        _ => OpenError::Other { path, why: err.to_string() },
    }
}

/// The journal's thread: ends when the last handle is gone.
fn serve(connection: Connection, mut queue: mpsc::UnboundedReceiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < GROUP
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        run_group(&connection, jobs);
    }
}

/// Runs the calls in one transaction. One that fails before it wrote anything fails alone. One that fails half-way
/// takes the others with it: a savepoint for each would undo it alone, but copies every page that a call touches.
fn run_group(connection: &Connection, jobs: Vec<Job>) {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    let mut group = run("BEGIN").map(drop).map_err(|err| err.to_string());
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        let before = connection.total_changes();
        let result = group.clone().and_then(|()| (job.work)(connection).map_err(|err| err.to_string()));
        // SQLite ends the whole transaction itself where it must, as on a full disk.
        if result.is_err() && (connection.total_changes() != before || connection.is_autocommit()) {
            group.clone_from(&result);
        }
        answers.push((job.done, result));
    }
    let struck = |_| fail_point::reach("journal").map_err(|err| err.to_string());
    // Both before it is on disk and after it, when nobody has been told yet.
    let group = group.and_then(struck).and_then(|()| run("COMMIT").map(drop).map_err(|err| err.to_string()));
    let group = group.and_then(struck);
    if group.is_err() && !connection.is_autocommit() {
        // Nothing of the group is on disk; each caller is told.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for (done, result) in answers {
        match (done, result.and_then(|()| group.clone())) {
            (Some(done), result) => drop(done.send(result.map_err(StoreError::Sqlite))),
            (None, Err(err)) => tracing::error!(%err, "the journal lost a line"),
            (None, Ok(())) => {}
        }
    }
}

/// The wall clock, for records.
fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

/// A stored word or JSON that does not read back: the file was written by something else.
fn unreadable(err: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(err))
}

fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|err| rusqlite::Error::ToSqlConversionFailure(Box::new(err)))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(unreadable)
}

#[cfg(test)]
mod tests;
