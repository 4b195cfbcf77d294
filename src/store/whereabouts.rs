//! Whether the journal's files are still where the next start looks for them. A file that was moved or deleted stays open
//! and takes all that is written, and none of that would be known after the next start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::open::sibling;
use super::{Store, StoreError};

/// Between two looks while nothing is asked of the journal.
const PAUSE: Duration = Duration::from_secs(2);

/// The files that were opened.
pub(super) struct Whereabouts {
    files: Vec<Opened>,
    /// What the last look found.
    astray: AtomicBool,
}

struct Opened {
    path: PathBuf,
    identity: Identity,
}

/// Device and inode: what a file is, whatever it is called.
type Identity = (u64, u64);

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Opened {
    /// What is wrong with the path. One that cannot be looked at says nothing.
    fn trouble(&self) -> Option<&'static str> {
        match identity(&self.path) {
            Ok(found) => (found != self.identity).then_some("another file now"),
            Err(err) => (err.kind() == io::ErrorKind::NotFound).then_some("gone"),
        }
    }
}

impl Whereabouts {
    /// Of a journal that was just opened: SQLite has made both files.
    pub fn of(journal: &Path) -> Self {
        let paths = [journal.to_path_buf(), sibling(journal, "-wal")];
        let opened = |path: PathBuf| identity(&path).ok().map(|identity| Opened { path, identity });
        Self { files: paths.into_iter().filter_map(opened).collect(), astray: AtomicBool::new(false) }
    }

    /// Looks, and logs what has changed since the last look. Two calls of the system: not for each push, but for each
    /// group of them.
    pub fn look(&self) -> Result<(), StoreError> {
        let found = self.files.iter().find_map(|file| file.trouble().map(|what| (file.path.clone(), what)));
        let found = found.map_or(Ok(()), |(path, what)| Err(StoreError::Astray { path, what }));
        match (&found, self.astray.swap(found.is_err(), Ordering::AcqRel)) {
            (Err(err), false) => tracing::error!("nothing new is taken: {err}"),
            (Ok(()), true) => tracing::info!("the journal's files are where they belong again"),
            _ => {}
        }
        found
    }

    /// What the last look found, at no cost while all is well.
    pub fn refuse_astray(&self) -> Result<(), StoreError> {
        if self.astray.load(Ordering::Acquire) { self.look() } else { Ok(()) }
    }
}

impl Store {
    /// Whether the next start would find what is written now: else [`StoreError::Astray`].
    pub fn look_for_files(&self) -> Result<(), StoreError> {
        self.whereabouts.look()
    }

    /// Looks again and again until the agent ends, so that it is in the log also when nobody asks.
    pub async fn keep_looking_for_files(self, end: CancellationToken) {
        let whereabouts = Arc::clone(&self.whereabouts);
        drop(self);
        end.run_until_cancelled(async {
            loop {
                // It is logged there, and told to whoever asks.
                let _ = whereabouts.look();
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
    }
}
