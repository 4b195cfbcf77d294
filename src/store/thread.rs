//! The thread that owns the connection.
//!
//! Every call is a closure run on it. Calls that wait together share one transaction (group commit), so a thousand
//! pushes cost a few fsyncs and each is on disk before its answer. What only reads follows in a transaction of its own, so
//! that it has its answer whatever befell the writing.

use std::io;
use std::sync::Arc;
use std::thread;

use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::ballast::Ballast;
use super::whereabouts::Whereabouts;
use super::write_trouble::WriteTrouble;
use super::{StoreError, failure};
use crate::fail_point;

/// At most so many calls share a transaction, so that the first does not wait long for its answer.
const GROUP: usize = 256;

/// What the thread is asked to do.
pub(super) enum Order {
    /// Together with others in one transaction.
    Call(Box<dyn Call>),
    /// The same, after the others that wait now, and without writing anything.
    Read(Box<dyn Call>),
    /// By itself, outside of any transaction.
    Alone(Box<dyn FnOnce(&Connection) + Send>),
}

/// Work in a transaction.
pub(super) trait Call: Send {
    /// Done once, on the thread.
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    /// Whether its caller waits for the answer.
    fn is_awaited(&self) -> bool;
    /// Called once the transaction is on disk, or with the reason why it is not.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

/// A call whose caller waits for its value.
pub(super) struct Awaited<W, T> {
    work: Option<W>,
    value: Option<T>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<W, T> Awaited<W, T>
where
    W: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    pub fn new(work: W) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (caller, answer) = oneshot::channel();
        (Self { work: Some(work), value: None, caller }, answer)
    }
}

impl<W, T> Call for Awaited<W, T>
where
    W: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.value = self.work.take().map(|work| work(connection)).transpose()?;
        Ok(())
    }

    fn is_awaited(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { value, caller, .. } = *self;
        // A caller that went away no longer wants the value; the work is done all the same.
        drop(caller.send(outcome.and_then(|()| value.ok_or(StoreError::Closed))));
    }
}

/// A call that nobody waits for.
pub(super) struct Posted<W>(Option<W>);

impl<W: FnOnce(&Connection) -> rusqlite::Result<()> + Send> Posted<W> {
    pub fn new(work: W) -> Self {
        Self(Some(work))
    }
}

impl<W: FnOnce(&Connection) -> rusqlite::Result<()> + Send> Call for Posted<W> {
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.0.take().map_or(Ok(()), |work| work(connection))
    }

    fn is_awaited(&self) -> bool {
        false
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        if let Err(err) = outcome {
            tracing::error!(%err, "the journal lost a line");
        }
    }
}

type Answers = Vec<(Box<dyn Call>, Result<(), StoreError>)>;

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(
    connection: Connection,
    ballast: Ballast,
    whereabouts: Arc<Whereabouts>,
    write_trouble: Arc<WriteTrouble>,
) -> io::Result<mpsc::UnboundedSender<Order>> {
    let (orders, queue) = mpsc::unbounded_channel();
    let callers = Handle::try_current().ok();
    thread::Builder::new()
        .name("journal".into())
        .spawn(move || serve(&connection, ballast, &whereabouts, &write_trouble, queue, callers.as_ref()))?;
    Ok(orders)
}

fn serve(
    connection: &Connection,
    mut ballast: Ballast,
    whereabouts: &Whereabouts,
    write_trouble: &WriteTrouble,
    mut queue: mpsc::UnboundedReceiver<Order>,
    callers: Option<&Handle>,
) {
    while let Some(first) = queue.blocking_recv() {
        let mut next = Some(first);
        let (mut calls, mut reads) = (Vec::new(), Vec::new());
        let mut alone = None;
        while let Some(order) = next {
            match order {
                Order::Call(call) => calls.push(call),
                Order::Read(call) => reads.push(call),
                Order::Alone(work) => alone = Some(work),
            }
            let more = calls.len() + reads.len() < GROUP && alone.is_none();
            next = more.then(|| queue.try_recv().ok()).flatten();
        }
        if !calls.is_empty() || !reads.is_empty() {
            ballast.renew();
            // It is remembered there, for the calls that take something new.
            let _ = whereabouts.look();
        }
        if !calls.is_empty() {
            let before = connection.total_changes();
            let answers = run_group(connection, calls, ballast.is_scarce());
            match answers.iter().find(|(_, outcome)| matches!(outcome, Err(StoreError::Medium(_)))) {
                Some((_, failed)) => write_trouble.saw(failed.clone()),
                // What was undone has been counted as well, but for none of its callers.
                None if answers.iter().any(|(_, outcome)| outcome.is_ok()) && connection.total_changes() != before => {
                    write_trouble.saw(Ok(()));
                }
                None => {}
            }
            let full = answers.iter().any(|(_, outcome)| *outcome == Err(StoreError::Full));
            tell(answers, callers);
            if full && ballast.release() {
                tracing::error!("the journal's disk is full; what is under way ends on what was set aside for that");
            }
        }
        if !reads.is_empty() {
            tell(run_reads(connection, reads), callers);
        }
        if let Some(work) = alone {
            work(connection);
        }
    }
}

/// Tells the callers of a group from within their runtime: it is woken once and not by each of them.
fn tell(answers: Answers, callers: Option<&Handle>) {
    let tell = move || answers.into_iter().for_each(|(call, outcome)| call.answer(outcome));
    match callers {
        Some(runtime) => drop(runtime.spawn(async move { tell() })),
        None => tell(),
    }
}

/// Runs the calls in one transaction. One that fails before it wrote anything fails alone. One that fails half-way
/// takes the others with it: a savepoint for each would undo it alone, but copies every page that a call touches.
/// With `scarce` room nothing is written that nobody waits for.
pub(super) fn run_group(connection: &Connection, calls: Vec<Box<dyn Call>>, scarce: bool) -> Answers {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    let failure = |err| failure(connection, err);
    let mut group = run("BEGIN").map(drop).map_err(failure);
    let mut answers = Vec::with_capacity(calls.len());
    for mut call in calls {
        if scarce && !call.is_awaited() {
            answers.push((call, Err(StoreError::Full)));
            continue;
        }
        let before = connection.total_changes();
        let result = group.clone().and_then(|()| call.run(connection).map_err(failure));
        // SQLite ends the whole transaction itself where it must, as on a full disk.
        if result.is_err() && (connection.total_changes() != before || connection.is_autocommit()) {
            group.clone_from(&result);
        }
        answers.push((call, result));
    }
    let struck = |()| fail_point::reach("journal").map_err(|err| StoreError::Sqlite(err.to_string()));
    // Both before it is on disk and after it, when nobody has been told yet.
    let group = group.and_then(struck).and_then(|()| run("COMMIT").map(drop).map_err(failure));
    let group = group.and_then(struck);
    if group.is_err() && !connection.is_autocommit() {
        // Nothing of the group is on disk; each caller is told.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for (_, outcome) in &mut answers {
        if outcome.is_ok() {
            outcome.clone_from(&group);
        }
    }
    answers
}

/// Runs calls that only read. Their transaction ends without a commit, so it needs no room on the disk.
pub(super) fn run_reads(connection: &Connection, reads: Vec<Box<dyn Call>>) -> Answers {
    let run = |sql| connection.prepare_cached(sql)?.execute([]).map(drop);
    let failure = |err| failure(connection, err);
    let begun = fail_point::reach("journal").map_err(|err| StoreError::Sqlite(err.to_string()));
    let begun = begun.and_then(|()| run("BEGIN").map_err(failure));
    let written = connection.total_changes();
    let read = |mut call: Box<dyn Call>| {
        let result = begun.clone().and_then(|()| call.run(connection).map_err(failure));
        (call, result)
    };
    let answers = reads.into_iter().map(read).collect();
    debug_assert_eq!(connection.total_changes(), written, "what only reads has written, and it would be lost");
    if begun.is_ok() {
        // An error is a transaction that SQLite has ended itself.
        let _ = run("ROLLBACK");
    }
    answers
}
