//! Whether the journal's files are still where the next start looks for them, and can be written. A file that was moved or
//! deleted stays open and takes all that is written, and none of that would be known after the next start. One that was made
//! immutable, or whose file system was mounted read-only, takes nothing from then on, however long it has been open.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::open::{sibling, takes_nothing};
use super::{Store, StoreError};

/// Between two looks while nothing is asked of the journal.
const PAUSE: Duration = Duration::from_secs(2);

/// The files that were opened.
pub(super) struct Whereabouts {
    files: Vec<Opened>,
    /// What the last look found.
    in_trouble: AtomicBool,
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
    fn trouble(&self) -> Option<StoreError> {
        let what = match identity(&self.path) {
            Ok(found) => (found != self.identity).then_some("another file now"),
            Err(err) => (err.kind() == io::ErrorKind::NotFound).then_some("gone"),
        };
        let path = || self.path.clone();
        match what {
            Some(what) => Some(StoreError::Astray { path: path(), what }),
            None => takes_nothing(&self.path).map(|why| StoreError::NotWritable { path: path(), why }),
        }
    }
}

impl Whereabouts {
    /// Of a journal that was just opened: SQLite has made both files.
    pub fn of(journal: &Path) -> Self {
        let paths = [journal.to_path_buf(), sibling(journal, "-wal")];
        let opened = |path: PathBuf| identity(&path).ok().map(|identity| Opened { path, identity });
        Self { files: paths.into_iter().filter_map(opened).collect(), in_trouble: AtomicBool::new(false) }
    }

    /// Looks, and logs what has changed since the last look. Four calls of the system: not for each push, but for each
    /// group of them.
    pub fn look(&self) -> Result<(), StoreError> {
        let found = self.files.iter().find_map(Opened::trouble).map_or(Ok(()), Err);
        match (&found, self.in_trouble.swap(found.is_err(), Ordering::AcqRel)) {
            (Err(err), false) => tracing::error!("nothing new is taken: {err}"),
            (Ok(()), true) => tracing::info!("the journal's files are where they belong, and can be written, again"),
            _ => {}
        }
        found
    }

    /// What the last look found, at no cost while all is well.
    pub fn refuse_in_trouble(&self) -> Result<(), StoreError> {
        if self.in_trouble.load(Ordering::Acquire) { self.look() } else { Ok(()) }
    }
}

impl Store {
    /// Whether something can be written now that the next start would find: else [`StoreError::Astray`],
    /// [`StoreError::NotWritable`] or, as the last attempt has shown, [`StoreError::Medium`].
    pub fn look_for_files(&self) -> Result<(), StoreError> {
        self.whereabouts.look()?;
        self.write_trouble.known()
    }

    /// Looks again and again until the agent ends, so that it is in the log also when nobody asks.
    pub async fn keep_looking_for_files(self, end: CancellationToken) {
        end.run_until_cancelled(async {
            loop {
                // It is logged there, and told to whoever asks.
                let _ = self.whereabouts.look();
                self.try_to_write().await;
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
    }
}
