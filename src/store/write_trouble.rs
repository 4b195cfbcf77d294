//! Whether the journal takes what is written. A device that fails (EIO), or a file that SQLite finds damaged, is no full disk
//! and may show nothing from outside: what tells is a write that failed, and another one that did not.

use std::sync::{Mutex, PoisonError};

use super::{Store, StoreError};

/// The last failure of the medium, until something was written again.
#[derive(Debug, Default)]
pub(super) struct WriteTrouble(Mutex<Option<StoreError>>);

impl WriteTrouble {
    /// What came of writing. Told in the log when it changes.
    pub fn saw(&self, outcome: Result<(), StoreError>) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&outcome, &*trouble) {
            (Err(err), None) => tracing::error!("nothing new is taken until it can: {err}"),
            (Ok(()), Some(_)) => tracing::info!("the journal can be written again"),
            _ => {}
        }
        *trouble = outcome.err();
    }

    /// What keeps it from being written, as far as is known.
    pub fn known(&self) -> Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

impl Store {
    /// Writes something while it is not known whether the journal takes anything, and leaves nothing of it.
    pub(super) async fn try_to_write(&self) {
        if self.write_trouble.known().is_err() {
            // The thread remembers what comes of it.
            let _ = self
                .call(|c| {
                    c.execute("INSERT INTO meta (key, value) VALUES ('tried', '')", [])?;
                    c.execute("DELETE FROM meta WHERE key = 'tried'", []).map(drop)
                })
                .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    async fn fail(store: &Store, code: i32) -> Result<(), StoreError> {
        store.call(move |_| Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))).await
    }

    #[tokio::test]
    async fn a_medium_that_fails_is_in_the_way_until_something_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_CORRUPT, ffi::SQLITE_CANTOPEN] {
            let err = fail(&store, code).await.unwrap_err();
            assert!(matches!(err, StoreError::Medium(_)), "{err:?}");
            assert_eq!(store.look_for_files(), Err(err), "it is in the way");
            store.tokens().await.unwrap();
            assert!(store.look_for_files().is_err(), "what only reads says nothing about writing");
            store.try_to_write().await;
            assert_eq!(store.look_for_files(), Ok(()));
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_one_call_is_not_wrong_with_the_medium() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        assert!(matches!(fail(&store, ffi::SQLITE_CONSTRAINT).await, Err(StoreError::Sqlite(_))));
        assert_eq!(store.look_for_files(), Ok(()));
    }
}
