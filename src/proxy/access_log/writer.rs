//! The thread that writes the access log. Requests never wait for it: what it has no room for is lost, counted and said.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::file::{LineFile, Settings};
use super::line::Entry;

/// Entries that may wait for the thread; a few MiB at most.
const WAITING: usize = 4096;
/// Bytes that are written at once.
const BATCH: usize = 64 << 10;
/// A line is in the file after this time at the latest.
const FLUSH: Duration = Duration::from_millis(500);
/// How often lost lines are spoken of.
const COMPLAINT: Duration = Duration::from_secs(60);
/// How long the last lines may take at the end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// To a thread that writes with these settings. Without a handle it writes what it has and ends.
#[derive(Debug)]
pub struct Writer {
    settings: Settings,
    entries: SyncSender<Box<Entry>>,
    lost: Arc<AtomicU64>,
    /// Closed by the thread's end.
    ended: Mutex<Receiver<()>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (entries, waiting) = sync_channel(WAITING);
        let (end, ended) = sync_channel(0);
        let lost = Arc::new(AtomicU64::new(0));
        let log = Log {
            file: LineFile::new(settings.clone()),
            path: settings.path.display().to_string(),
            lines: Vec::with_capacity(BATCH),
            count: 0,
            lost: Arc::clone(&lost),
            is_failing: false,
            complained: None,
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            log.run(&waiting);
            drop(end);
        })?;
        Ok(Self { settings, entries, lost, ended: Mutex::new(ended) })
    }

    /// How it writes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Hands an entry over, or counts it as lost.
    pub fn tell(&self, entry: Box<Entry>) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.entries.try_send(entry) {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Ends it, and waits a moment for its last lines. Blocks.
    pub fn finish(self) {
        let Self { entries, ended, .. } = self;
        drop(entries);
        let _ = ended.into_inner().unwrap_or_else(PoisonError::into_inner).recv_timeout(LAST_LINES);
    }
}

/// What the thread has.
struct Log {
    file: LineFile,
    path: String,
    /// Not yet written.
    lines: Vec<u8>,
    /// How many those are.
    count: u64,
    lost: Arc<AtomicU64>,
    /// The last batch could not be written.
    is_failing: bool,
    complained: Option<Instant>,
}

impl Log {
    fn run(mut self, waiting: &Receiver<Box<Entry>>) {
        loop {
            // Nothing is owed while there are no lines.
            let Ok(first) = waiting.recv() else { return };
            self.add(&first);
            let due = Instant::now() + FLUSH;
            let is_over = loop {
                match waiting.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Ok(entry) => self.add(&entry),
                    Err(RecvTimeoutError::Timeout) => break false,
                    Err(RecvTimeoutError::Disconnected) => break true,
                }
                if self.lines.len() >= BATCH {
                    break false;
                }
            };
            self.flush();
            if is_over {
                return;
            }
        }
    }

    fn add(&mut self, entry: &Entry) {
        entry.write(&mut self.lines);
        self.count += 1;
    }

    fn flush(&mut self) {
        let (path, count) = (&self.path, std::mem::take(&mut self.count));
        match self.file.append(&self.lines) {
            Ok(()) if std::mem::take(&mut self.is_failing) => {
                let lost = self.lost.swap(0, Relaxed);
                tracing::info!(path, lost, "the access log is written again");
            }
            Ok(()) => self.complain(),
            Err(error) => {
                self.lost.fetch_add(count, Relaxed);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(path, %error, "the access log cannot be written; requests go on without it");
                }
            }
        }
        self.lines.clear();
    }

    /// Says what the disk was too slow for.
    fn complain(&mut self) {
        if self.complained.is_some_and(|last| last.elapsed() < COMPLAINT) {
            return;
        }
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            self.complained = Some(Instant::now());
            tracing::warn!(path = self.path, lost, "the disk is too slow for the access log: lines are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_disk_that_stands_still_costs_lines_and_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        // Opening it waits for a reader, who never comes.
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let writer = Writer::start(Settings { path, max_size: 1 << 20, keep: 1 }).unwrap();
        let (lost, began) = (Arc::clone(&writer.lost), Instant::now());
        for _ in 0..3 * WAITING {
            writer.tell(Box::new(super::super::line::tests::entry()));
        }
        assert!(lost.load(Relaxed) >= WAITING as u64, "{lost:?}");
        writer.finish();
        assert!(began.elapsed() < LAST_LINES * 3);
    }
}
