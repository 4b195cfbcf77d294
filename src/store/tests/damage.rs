//! A journal that is not as it should be is told of and left as it is; never is an empty one put in its place.

use super::*;

/// A journal with this many deployments and their logs, closed, in one file.
async fn journal(dir: &tempfile::TempDir, deployments: u64) -> std::path::PathBuf {
    let path = dir.path().join("journal.db");
    let store = open(dir);
    for n in 1..=deployments {
        let Admission::Queued { id, .. } = store.admit(push(n, Some(format!("guid-{n}")))).await.unwrap() else {
            panic!("not queued")
        };
        store.advance(id, Status::Preparing).await.unwrap();
        for line in 1..=5 {
            store.post_log(id, line, format!("line {line} of what deployment {n} says"));
        }
        store.finish(id, failed("no such base image", n % 2 == 0)).await.unwrap();
    }
    drop(store);
    drop(reopen(&path).await.unwrap());
    settled(&path).await;
    path
}

/// Until the journal's thread has closed the file, and with it put everything into it.
async fn settled(path: &Path) {
    while path.with_file_name("journal.db-wal").exists() {
        tokio::task::yield_now().await;
    }
}

async fn ids(store: &Store) -> Result<Vec<i64>, StoreError> {
    store
        .call(|c| c.prepare("SELECT id FROM deployments ORDER BY id")?.query_map([], |row| row.get(0))?.collect())
        .await
}

#[tokio::test]
async fn wherever_a_bit_flips_the_journal_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal(&dir, 30).await;
    let good = std::fs::read(&path).unwrap();
    let (mut refused, mut opened) = (0, 0);
    for n in 0..200usize {
        let mut bad = good.clone();
        let at = n * (good.len() - 1) / 199;
        bad[at] ^= 1 << (n % 8);
        std::fs::write(&path, &bad).unwrap();
        match Store::open(&path) {
            Ok(store) => {
                opened += 1;
                assert_eq!(ids(&store).await, Ok((1..=30).collect()), "byte {at}");
                // A word that has changed is an error or another word, never a panic.
                let _ = store.deployments(&app(), 100).await;
                drop(store);
                settled(&path).await;
            }
            Err(err) => {
                refused += 1;
                assert_eq!(std::fs::read(&path).unwrap(), bad, "byte {at}");
                let said = err.to_string();
                assert!(said.contains("journal.db") && !matches!(err, OpenError::InUse { .. }), "byte {at}: {said}");
                let _ = std::fs::remove_file(path.with_file_name("journal.db-wal"));
            }
        }
    }
    assert!(refused > 10 && opened > 10, "{refused} refused, {opened} opened");
}

#[tokio::test]
async fn a_cut_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal(&dir, 30).await;
    let good = std::fs::read(&path).unwrap();
    for keep in [1, 99, 100, 4095, 4096, 8192, good.len() / 2, good.len() - 4096, good.len() - 1] {
        std::fs::write(&path, &good[..keep]).unwrap();
        let err = Store::open(&path).err().unwrap_or_else(|| panic!("{keep} bytes were opened"));
        assert!(matches!(err, OpenError::Damaged { .. }), "{keep} bytes: {err}");
        assert!(err.to_string().contains("longshore restore FILE"), "{err}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), keep as u64);
    }
}

#[tokio::test]
async fn what_was_in_use_does_not_begin_anew_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    std::fs::write(dir.path().join("agent-id"), "0123456789ab").unwrap();
    let refused = |what: &str| {
        let err = Store::open(&path).err().unwrap_or_else(|| panic!("{what}: opened"));
        assert!(matches!(err, OpenError::Lost { .. }), "{what}: {err}");
        let said = err.to_string();
        assert!(said.contains(what) && said.contains("longshore restore FILE") && said.contains("agent-id"), "{said}");
    };
    refused("missing");
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    refused("empty");
    // What a journal is before its first checkpoint, without its -wal.
    Connection::open(&path).unwrap().execute_batch("PRAGMA journal_mode = WAL; VACUUM").unwrap();
    refused("its -wal file missing");
    std::fs::remove_file(dir.path().join("agent-id")).unwrap();
    drop(Store::open(&path).unwrap());
}

#[tokio::test]
async fn another_process_with_the_journal_is_waited_for_a_moment_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal(&dir, 1).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let began = std::time::Instant::now();
    let err = Store::open(&path).err().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(matches!(err, OpenError::InUse { .. }), "{err}");
    assert!(err.to_string().contains(&format!("the process with pid {}", std::process::id())), "{err}");
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    drop(reopen(&path).await.unwrap());
}
