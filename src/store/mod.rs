//! The journal on disk: one SQLite file, and a thread that owns the connection ([`thread`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

mod admission;
mod agent;
mod backup;
mod ballast;
mod canary_alerts;
mod certificate_alerts;
mod delivery_key;
mod deployments;
mod drift;
mod log;
mod notices;
mod numbers;
mod open;
mod open_deployments;
mod outages;
mod recognise;
mod releases;
mod requests;
pub mod restore;
mod schema;
mod steps;
mod thread;
mod tokens;
mod whereabouts;
mod write_trouble;

pub use admission::{Admission, Decision, NewDeployment};
pub use agent::KEY as AGENT_ID_KEY;
pub use backup::{Contents, copy_closed, inspect};
pub use canary_alerts::{CanaryAlert, Raised};
pub use certificate_alerts::{CertificateAlert, CertificateTrouble};
pub use deployments::{CancelAsked, Deployment, Finish, PhaseSpan};
pub use drift::Drift;
pub use log::LogLine;
pub use notices::{About, Notice};
pub use numbers::Settled;
pub use open::OpenError;
pub use open_deployments::OpenCancelled;
pub use outages::Outage;
pub use releases::{Release, ReleaseBody, ReleasedService};
pub use requests::{Drains, Latency, Requests};
pub use steps::{Ended, Served, ServiceServed, Step};
pub use tokens::{Scope, Token, TokenCheck};

use ballast::Ballast;
use numbers::Numbers;
use thread::{Awaited, Order, Posted};
use whereabouts::Whereabouts;
use write_trouble::WriteTrouble;

/// A handle on the journal; cheap to clone.
#[derive(Clone)]
pub struct Store {
    orders: mpsc::UnboundedSender<Order>,
    numbers: Arc<Numbers>,
    scarce: Arc<AtomicBool>,
    whereabouts: Arc<Whereabouts>,
    write_trouble: Arc<WriteTrouble>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// SQLite says so.
    #[error("the journal cannot be read or written: {0}")]
    Sqlite(String),
    /// The same, and it is the fault of what the journal is on, and not of the call: the next one may meet it as well.
    #[error("the journal cannot be read or written: {0}; the kernel's log (dmesg) may say more about its disk")]
    Medium(String),
    /// There is no room on its disk. What is already accepted may still end, on what was set aside for that.
    #[error("the journal cannot be written: its disk is full")]
    Full,
    /// The system does not let us write a file of it any more.
    #[error("{} cannot be written: {why}", path.display())]
    NotWritable {
        /// The file or its directory.
        path: PathBuf,
        /// What is in the way, and what helps.
        why: String,
    },
    /// It was restored, and new numbers could be those of instances that it does not know.
    #[error(
        "the journal was restored, and nothing new is taken before the Docker engine has said which numbers are in use"
    )]
    Unnumbered,
    /// What is written would not be known to the next start.
    #[error(
        "{} is {what}, and the next start would not know what is written to the file that this agent has open. Put it back \
         from where it was moved to, and all goes on; or save it with longshore backup FILE, stop the agent, put that in its \
         place with longshore restore FILE, and start the agent", path.display()
    )]
    Astray {
        /// The file.
        path: PathBuf,
        /// `gone` …
        what: &'static str,
    },
    /// The thread has ended.
    #[error("the journal is closed")]
    Closed,
}

impl Store {
    /// Opens (or creates) the journal and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut ballast = Ballast::beside(path);
        let opened = match open::open(path) {
            Err(OpenError::Full(_)) if ballast.release() => open::open(path),
            opened => opened,
        };
        let connection = opened?;
        let numbers = Numbers::read(&connection).map_err(|err| open::explain(path, err))?;
        ballast.renew();
        let scarce = ballast.watch_scarcity();
        let whereabouts = Arc::new(Whereabouts::of(path));
        let write_trouble = Arc::new(WriteTrouble::default());
        let orders = thread::start(connection, ballast, whereabouts.clone(), write_trouble.clone())
            .map_err(|err| OpenError::Other { path: path.into(), why: err.to_string() })?;
        Ok(Self { orders, numbers: Arc::new(numbers), scarce, whereabouts, write_trouble })
    }

    /// Runs `work`, which writes, in a transaction and returns once it is on disk.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (call, answer) = Awaited::new(work);
        self.orders.send(Order::Call(Box::new(call))).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `work`, which only reads, after all that was asked for before it. A full disk does not keep it from its answer,
    /// and what it wrote would be lost.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (read, answer) = Awaited::new(work);
        self.orders.send(Order::Read(Box::new(read))).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// What was set aside for a full disk is for what is under way: nothing new is taken on it, says [`StoreError::Full`].
    pub async fn refuse_while_scarce(&self) -> Result<(), StoreError> {
        if self.is_scarce() {
            // Whatever the thread is asked, it looks for room first.
            self.read(|_| Ok(())).await?;
        }
        if self.is_scarce() { Err(StoreError::Full) } else { Ok(()) }
    }

    fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Acquire)
    }

    /// Runs `work` soon, in order with the other calls, without waiting. A failure is logged.
    fn post(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        // Closed only while the agent ends; what is posted (log lines) may be lost then.
        let _ = self.orders.send(Order::Call(Box::new(Posted::new(work))));
    }

    /// Brings everything into the journal's one file, so that a copy of that alone is whole. For the end.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.alone(|c| {
            let done = c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            done.map_err(|err| failure(c, err))
        })
        .await?
    }

    /// Runs `work` in its turn, outside of any transaction.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (value_tx, value_rx) = oneshot::channel();
        // A receiver that went away no longer wants the value.
        let work = Box::new(move |connection: &Connection| drop(value_tx.send(work(connection))));
        self.orders.send(Order::Alone(work)).map_err(|_| StoreError::Closed)?;
        value_rx.await.map_err(|_| StoreError::Closed)
    }
}

fn failure(connection: &Connection, err: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, DiskFull, NotADatabase, ReadOnly, SystemIoFailure};
    match err.sqlite_error_code() {
        Some(DiskFull) => StoreError::Full,
        // SQLite does not say why: its files may have been made immutable, or read-only, since they were opened.
        Some(SystemIoFailure | ReadOnly) => {
            match connection.path().map(|path| open::refuse_unwritable(Path::new(path))) {
                Some(Err(OpenError::NotWritable { path, why })) => StoreError::NotWritable { path, why },
                _ => StoreError::Medium(err.to_string()),
            }
        }
        Some(CannotOpen | DatabaseCorrupt | NotADatabase) => StoreError::Medium(err.to_string()),
        _ => StoreError::Sqlite(err.to_string()),
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
