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
async fn a_journal_whose_one_file_is_gone_is_not_begun_anew_beside_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (dir.path().join("journal.db"), dir.path().join("moved.db"));
    let wal = dir.path().join("journal.db-wal");
    // As a power cut leaves it: what was written last is in the second file.
    let store = open(&dir);
    let _ = store.admit(push(1, None)).await.unwrap();
    let id = store.kept_random(AGENT_ID_KEY, 6).await.unwrap();
    let both = [&path, &wal].map(|file| std::fs::read(file).unwrap());
    drop(store);
    drop(reopen(&path).await.unwrap());
    settled(&path).await;
    std::fs::write(&elsewhere, &both[0]).unwrap();
    std::fs::write(&wal, &both[1]).unwrap();
    std::fs::remove_file(&path).unwrap();

    let refused = |what: &str, remove: &str| {
        let err = Store::open(&path).err().unwrap_or_else(|| panic!("{what}: opened"));
        assert!(matches!(err, OpenError::WalAlone { .. }), "{what}: {err}");
        let said = err.to_string();
        let parts =
            [what, "journal.db-wal is there", "back from where it was moved to", "longshore restore FILE", remove];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(std::fs::read(&wal).unwrap(), both[1], "it is left as it is");
    };
    refused("journal.db is missing", "-wal to begin");
    std::fs::write(&path, "").unwrap();
    refused("journal.db is empty", "-wal to begin");
    std::fs::write(dir.path().join("agent-id"), id).unwrap();
    refused("journal.db is empty", "agent-id to begin");

    std::fs::rename(&elsewhere, &path).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(ids(&store).await, Ok(vec![1]), "what the message says helps");
}

#[tokio::test]
async fn what_is_no_journal_is_named_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    std::fs::create_dir(&path).unwrap();
    let said = Store::open(&path).err().unwrap().to_string();
    assert!(said.contains("journal.db is no journal of longshore's: it is a directory"), "{said}");
    std::fs::remove_dir(&path).unwrap();
    let foreign = format!("CREATE TABLE t (a); PRAGMA user_version = {}", schema::KNOWN);
    Connection::open(&path).unwrap().execute_batch(&foreign).unwrap();
    let said = Store::open(&path).err().unwrap().to_string();
    assert!(said.contains("without a journal in it") && said.contains("longshore restore FILE"), "{said}");
}

#[tokio::test]
async fn the_copy_from_before_an_upgrade_is_named_when_there_is_one_that_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal(&dir, 1).await;
    let good = std::fs::read(&path).unwrap();
    let of_version = |version: i64| {
        let mut bytes = good.clone();
        bytes[60..64].copy_from_slice(&i32::try_from(version).unwrap().to_be_bytes());
        bytes
    };
    let known = schema::KNOWN;
    std::fs::write(&path, of_version(known + 3)).unwrap();
    let said = || Store::open(&path).err().unwrap().to_string();
    let none = said();
    assert!(none.contains("put a backup from before") && !none.contains("before-v"), "{none}");
    let copy = |migrated_to: i64, version: i64| {
        std::fs::write(dir.path().join(format!("journal.db.before-v{migrated_to}")), of_version(version)).unwrap();
    };
    copy(known + 3, known + 1);
    assert!(!said().contains("before-v"), "it is too new as well");
    copy(known, known - 1);
    copy(known + 1, known);
    let found = said();
    assert!(found.ends_with(&format!("longshore restore {}.before-v{}", path.display(), known + 1)), "{found}");
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

#[tokio::test]
async fn nothing_new_is_taken_while_the_journal_is_not_where_the_next_start_looks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let _ = store.admit(push(1, None)).await.unwrap();
    let elsewhere = dir.path().join("elsewhere");
    for (number, name) in [(2, "journal.db"), (3, "journal.db-wal")] {
        let path = dir.path().join(name);
        std::fs::rename(&path, &elsewhere).unwrap();
        let expected = |what| Err(StoreError::Astray { path: path.clone(), what });
        assert_eq!(store.admit(push(number, None)).await, expected("gone"));
        std::fs::copy(&elsewhere, &path).unwrap();
        assert_eq!(store.admit(push(number, None)).await, expected("another file now"));
        assert_eq!(store.look_for_files(), expected("another file now").map(|_: Admission| ()));
        let said = store.look_for_files().unwrap_err().to_string();
        assert!(said.contains("longshore backup FILE") && said.contains("longshore restore FILE"), "{said}");
        // What is under way may end, and everything can be saved.
        store.advance(DeploymentId(1), Status::Preparing).await.unwrap();
        assert!(store.backup().await.is_ok());

        std::fs::rename(&elsewhere, &path).unwrap();
        let taken = store.admit(push(number, None)).await.unwrap();
        assert!(matches!(taken, Admission::Queued { id: DeploymentId(id), .. } if id == number as i64), "{taken:?}");
        assert_eq!(store.look_for_files(), Ok(()));
    }
}

/// A file that not even root may change, until this is dropped.
struct Immutable(std::path::PathBuf);

impl Immutable {
    /// `None` where that cannot be had: it takes root, and a file system that knows it.
    fn make(path: &Path) -> Option<Self> {
        chattr("+i", path).then(|| Self(path.to_owned()))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(change: &str, path: &Path) -> bool {
    let done = std::process::Command::new("chattr").arg(change).arg(path).stderr(std::process::Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

#[tokio::test]
async fn an_immutable_journal_is_told_with_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal(&dir, 1).await;
    let Some(immutable) = Immutable::make(&path) else {
        return eprintln!("skipped: chattr +i cannot be used here");
    };
    let helps = format!(
        "{} cannot be written: it is marked as immutable; allow it to be changed with: chattr -i",
        path.display()
    );
    let err = Store::open(&path).err().expect("it is not opened").to_string();
    assert!(err.starts_with(&helps), "{err}");
    drop(immutable);

    let store = reopen(&path).await.unwrap();
    let _immutable = [Immutable::make(&path), Immutable::make(&path.with_file_name("journal.db-wal"))];
    let err = store.admit(push(7, None)).await.unwrap_err().to_string();
    assert!(err.starts_with(&helps), "{err}");
}
