//! The journal on disk: one SQLite file, one thread that owns the connection.
//!
//! Every call is a closure run on that thread. Calls that wait together share one transaction (group commit), so a
//! thousand pushes cost a few fsyncs and each is on disk before its answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::fail_point;

mod backup;
mod ballast;
mod deployments;
mod drift;
mod log;
mod notices;
mod numbers;
mod open;
mod outages;
mod releases;
pub mod restore;
mod schema;
mod steps;
mod tokens;

pub use backup::{Contents, copy_closed, inspect};
pub use deployments::{Admission, Decision, Deployment, Finish, NewDeployment, PhaseSpan};
pub use drift::Drift;
pub use log::LogLine;
pub use notices::{About, Notice};
pub use numbers::Settled;
pub use open::OpenError;
pub use outages::Outage;
pub use releases::{Release, ReleaseBody, ReleasedService};
pub use steps::Step;
pub use tokens::{Scope, Token, TokenCheck};

use ballast::Ballast;
use numbers::Numbers;

/// At most so many calls share a transaction, so that the first does not wait long for its answer.
const GROUP: usize = 256;

/// A handle on the journal; cheap to clone.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::UnboundedSender<Order>,
    numbers: Arc<Numbers>,
    scarce: Arc<AtomicBool>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// SQLite says so.
    #[error("the journal cannot be read or written: {0}")]
    Sqlite(String),
    /// There is no room on its disk. What is already accepted may still end, on what was set aside for that.
    #[error("the journal cannot be written: its disk is full")]
    Full,
    /// It was restored, and new numbers could be those of instances that it does not know.
    #[error(
        "the journal was restored, and nothing new is taken before the Docker engine has said which numbers are in use"
    )]
    Unnumbered,
    /// The thread has ended.
    #[error("the journal is closed")]
    Closed,
}

type Work = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

/// What the journal's thread is asked to do.
enum Order {
    /// Together with others in one transaction.
    Job(Job),
    /// By itself, outside of any transaction.
    Alone(Box<dyn FnOnce(&Connection) + Send>),
}

struct Job {
    work: Work,
    /// Told once the transaction is on disk, or why it is not.
    done: Option<oneshot::Sender<Result<(), StoreError>>>,
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
        let (jobs, queue) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || serve(connection, ballast, queue))
            .map_err(|err| OpenError::Other { path: path.into(), why: err.to_string() })?;
        Ok(Self { jobs, numbers: Arc::new(numbers), scarce })
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
        self.jobs.send(Order::Job(Job { work, done: Some(done) })).map_err(|_| StoreError::Closed)?;
        committed.await.map_err(|_| StoreError::Closed)??;
        value_rx.await.map_err(|_| StoreError::Closed)
    }

    /// What was set aside for a full disk is for what is under way: nothing new is taken on it.
    async fn refuse_while_scarce(&self) -> Result<(), StoreError> {
        if self.scarce.load(Ordering::Acquire) {
            // Whatever the thread is asked, it looks for room first.
            self.call(|_| Ok(())).await?;
        }
        if self.scarce.load(Ordering::Acquire) { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Runs `work` soon, in order with the other calls, without waiting. A failure is logged.
    fn post(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        // Closed only while the agent ends; what is posted (log lines) may be lost then.
        let _ = self.jobs.send(Order::Job(Job { work: Box::new(work), done: None }));
    }

    /// Runs `work` in its turn, outside of any transaction.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (value_tx, value_rx) = oneshot::channel();
        // A receiver that went away no longer wants the value.
        let work = Box::new(move |connection: &Connection| drop(value_tx.send(work(connection))));
        self.jobs.send(Order::Alone(work)).map_err(|_| StoreError::Closed)?;
        value_rx.await.map_err(|_| StoreError::Closed)
    }
}

/// The journal's thread: ends when the last handle is gone.
fn serve(connection: Connection, mut ballast: Ballast, mut queue: mpsc::UnboundedReceiver<Order>) {
    while let Some(first) = queue.blocking_recv() {
        let mut next = Some(first);
        let mut jobs = Vec::new();
        let mut alone = None;
        while let Some(order) = next {
            match order {
                Order::Job(job) => jobs.push(job),
                Order::Alone(work) => alone = Some(work),
            }
            let more = jobs.len() < GROUP && alone.is_none();
            next = more.then(|| queue.try_recv().ok()).flatten();
        }
        if !jobs.is_empty() {
            ballast.renew();
            if run_group(&connection, jobs, ballast.is_scarce()) && ballast.release() {
                tracing::error!("the journal's disk is full; what is under way ends on what was set aside for that");
            }
        }
        if let Some(work) = alone {
            work(&connection);
        }
    }
}

/// Runs the calls in one transaction. One that fails before it wrote anything fails alone. One that fails half-way
/// takes the others with it: a savepoint for each would undo it alone, but copies every page that a call touches.
/// With `scarce` room nothing is written that nobody waits for. True when the disk was found full.
fn run_group(connection: &Connection, jobs: Vec<Job>, scarce: bool) -> bool {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    let mut group = run("BEGIN").map(drop).map_err(failure);
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        if scarce && job.done.is_none() {
            answers.push((None, Err(StoreError::Full)));
            continue;
        }
        let before = connection.total_changes();
        let result = group.clone().and_then(|()| (job.work)(connection).map_err(failure));
        // SQLite ends the whole transaction itself where it must, as on a full disk.
        if result.is_err() && (connection.total_changes() != before || connection.is_autocommit()) {
            group.clone_from(&result);
        }
        answers.push((job.done, result));
    }
    let struck = |()| fail_point::reach("journal").map_err(|err| StoreError::Sqlite(err.to_string()));
    // Both before it is on disk and after it, when nobody has been told yet.
    let group = group.and_then(struck).and_then(|()| run("COMMIT").map(drop).map_err(failure));
    let group = group.and_then(struck);
    if group.is_err() && !connection.is_autocommit() {
        // Nothing of the group is on disk; each caller is told.
        let _ = connection.execute_batch("ROLLBACK");
    }
    let mut full = false;
    for (done, result) in answers {
        let result = result.and_then(|()| group.clone());
        full |= result == Err(StoreError::Full);
        match (done, result) {
            (Some(done), result) => drop(done.send(result)),
            (None, Err(err)) => tracing::error!(%err, "the journal lost a line"),
            (None, Ok(())) => {}
        }
    }
    full
}

fn failure(err: rusqlite::Error) -> StoreError {
    match err.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full,
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
