//! Backups, what is kept before a migration, and what a restore has to put right.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::restore::{RestoreError, Whose, restore};

fn number(admission: Admission) -> i64 {
    match admission {
        Admission::Queued { id, .. } => id.0,
        other => panic!("{other:?}"),
    }
}

/// A copy of the journal in a file.
async fn backup(store: &Store, to: &Path) {
    let mut copy = store.backup().await.unwrap();
    std::io::copy(&mut copy, &mut std::fs::File::create(to).unwrap()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_backup_has_everything_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let file = dir.path().join("copy.db");
    for n in 1..=20 {
        let id = DeploymentId(number(store.admit(push(n, None)).await.unwrap()));
        store.create_release(&app(), id, &sha(n), body()).await.unwrap();
    }
    let (_, while_it_goes_on) = tokio::join!(backup(&store, &file), store.admit(push(21, None)));
    assert_eq!(number(while_it_goes_on.unwrap()), 21);
    let found = inspect(&file).unwrap();
    assert_eq!((found.schema, found.releases), (schema::KNOWN, 20));
    assert!((20..=21).contains(&found.deployments), "{found:?}");
    assert_eq!(found.bytes, std::fs::metadata(&file).unwrap().len());
    assert_eq!(names(dir.path()), ["copy.db", "journal.ballast", "journal.db", "journal.db-wal"]);
}

#[tokio::test]
async fn a_closed_journal_is_copied_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("journal.db"), dir.path().join("copy.db"));
    let store = open(&dir);
    let _ = store.admit(push(1, None)).await.unwrap();
    assert!(matches!(copy_closed(&path, &file), Err(OpenError::InUse { .. })));
    assert!(!file.exists());
    drop(store);
    drop(reopen(&path).await.unwrap());
    while let Err(err) = copy_closed(&path, &file) {
        assert!(matches!(err, OpenError::InUse { .. }), "{err}");
        tokio::task::yield_now().await;
    }
    assert_eq!(inspect(&file).unwrap().deployments, 1);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_no_whole_journal_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("journal.db"), dir.path().join("copy.db"));
    let store = open(&dir);
    let _ = store.admit(push(1, None)).await.unwrap();
    let held = restore(&file, &path, Whose::Own, Timestamp::now()).unwrap_err().to_string();
    assert!(held.contains(&format!("pid {}", std::process::id())), "{held}");
    backup(&store, &file).await;
    drop(store);
    drop(reopen(&path).await.unwrap());
    while path.with_file_name("journal.db-wal").exists() {
        tokio::task::yield_now().await;
    }
    let (good, journal) = (std::fs::read(&file).unwrap(), std::fs::read(&path).unwrap());
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&99u32.to_be_bytes());
    let other = |pragma: &str| {
        let path = dir.path().join("other.db");
        let sql = format!("CREATE TABLE IF NOT EXISTS t (a); PRAGMA {pragma}");
        Connection::open(&path).unwrap().execute_batch(&sql).unwrap();
        std::fs::read(path).unwrap()
    };
    for (content, part) in [
        (good[..good.len() / 2].to_vec(), "is damaged"),
        (good[..10].to_vec(), "is damaged"),
        (vec![7; 8192], "is no journal of longshore's: it is no SQLite file. Name a file that longshore backup wrote"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec(), "is no journal of longshore's: it is no SQLite file"),
        (b"text".to_vec(), "is no journal of longshore's: it is no SQLite file"),
        (Vec::new(), "is no journal of longshore's: it is empty"),
        (other("user_version = 0"), "is no journal of longshore's: it is an SQLite file without a journal in it"),
        (other("user_version = 3"), "is no journal of longshore's: it is an SQLite file without a journal in it"),
        (newer, "schema version 99, this longshore knows up to"),
    ] {
        std::fs::write(&file, content).unwrap();
        let before = names(dir.path());
        let why = restore(&file, &path, Whose::Own, Timestamp::now()).unwrap_err().to_string();
        assert!(why.contains(part) && why.contains("copy.db"), "{part}: {why}");
        assert!(!why.contains("before-v"), "there is no such file: {why}");
        assert_eq!(std::fs::read(&path).unwrap(), journal, "{part}");
        assert_eq!(names(dir.path()), before, "{part}");
    }
    let directory = restore(dir.path(), &path, Whose::Own, Timestamp::now()).unwrap_err().to_string();
    assert!(directory.contains("is no journal of longshore's: it is a directory"), "{directory}");
    let missing = restore(&dir.path().join("none.db"), &path, Whose::Own, Timestamp::now()).unwrap_err().to_string();
    assert!(missing.contains("none.db") && missing.contains("the journal was not touched"), "{missing}");
}

#[tokio::test]
async fn a_restored_journal_numbers_beyond_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("journal.db"), dir.path().join("copy.db"));
    let store = open(&dir);
    let first = DeploymentId(number(store.admit(push(1, None)).await.unwrap()));
    store.create_release(&app(), first, &sha(1), body()).await.unwrap();
    store.advance(first, Status::RollingOut).await.unwrap();
    let waiting = DeploymentId(number(store.admit(push(2, None)).await.unwrap()));
    backup(&store, &file).await;
    for n in 3..=7 {
        let _ = store.admit(push(n, None)).await.unwrap();
    }
    drop(store);
    let now: Timestamp = "2026-03-01T04:05:06Z".parse().unwrap();
    let done = loop {
        match restore(&file, &path, Whose::Own, now) {
            Ok(done) => break done,
            Err(err) => assert!(err.to_string().contains("pid"), "{err}"),
        }
        tokio::task::yield_now().await;
    };
    let aside = dir.path().join("journal.db.replaced-20260301T040506Z");
    assert_eq!((done.contents.deployments, done.set_aside.as_deref()), (2, Some(aside.as_path())));
    assert_eq!(inspect(&aside).unwrap().deployments, 7);
    let other = restore(&file, &path, Whose::Own, now).unwrap().set_aside.unwrap();
    assert_eq!(
        (inspect(&aside).unwrap().deployments, inspect(&other).unwrap().deployments),
        (7, 2),
        "in the same second"
    );

    // Nothing is numbered before the engine was asked, also not after another start.
    drop(reopen(&path).await.unwrap());
    let store = reopen(&path).await.unwrap();
    assert!(store.was_restored());
    assert_eq!(store.admit(push(8, None)).await, Err(StoreError::Unnumbered));
    let runs = || std::collections::BTreeMap::from([(app(), ReleaseNumber(4))]);
    let settled = store.number_beyond(DeploymentId(7), runs()).await.unwrap();
    assert_eq!(settled, Settled { ended: vec![first, waiting], beyond: Some(DeploymentId(7)) });
    let ended = store.deployment(first).await.unwrap().unwrap();
    assert_eq!(ended.status, Status::Cancelled);
    assert!(ended.reason.unwrap().contains("restored from a backup"));

    // Kept across a start before the first new one.
    drop(store);
    let store = reopen(&path).await.unwrap();
    assert!(!store.was_restored());
    let new = number(store.admit(push(8, None)).await.unwrap());
    assert_eq!(new, 8);
    assert_eq!(store.create_release(&app(), DeploymentId(new), &sha(8), body()).await.unwrap().number.0, 5);
    assert_eq!(number(store.admit(push(9, None)).await.unwrap()), 9);
    assert_eq!(store.create_release(&app(), DeploymentId(9), &sha(9), body()).await.unwrap().number.0, 6);
    // What is on record already changes nothing.
    assert_eq!(store.number_beyond(DeploymentId(7), runs()).await.unwrap(), Settled::default());
    assert_eq!(number(store.admit(push(10, None)).await.unwrap()), 10);
}

/// A journal of an agent's own, closed.
async fn of_an_agent(dir: &tempfile::TempDir) -> (std::path::PathBuf, String) {
    let path = dir.path().join("journal.db");
    let store = Store::open(&path).unwrap();
    let id = store.kept_random(AGENT_ID_KEY, 6).await.unwrap();
    store.checkpoint().await.unwrap();
    drop(store);
    drop(reopen(&path).await.unwrap());
    while path.with_file_name("journal.db-wal").exists() {
        tokio::task::yield_now().await;
    }
    (path, id)
}

#[tokio::test]
async fn another_agents_journal_is_neither_restored_nor_opened_unless_it_is_meant() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ((path, own), (backup, other)) = (of_an_agent(&here).await, of_an_agent(&there).await);
    let beside = here.path().join("agent-id");
    // A person may have written it again, with an editor.
    std::fs::write(&beside, format!("{own}\n")).unwrap();
    let before = (std::fs::read(&path).unwrap(), names(here.path()));

    let err = restore(&backup, &path, Whose::Own, Timestamp::now()).unwrap_err();
    assert!(matches!(err, RestoreError::OfAnother { .. }), "{err}");
    let said = err.to_string();
    for part in [&own, &other, "--another-agent", &backup.display().to_string(), &beside.display().to_string()] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert_eq!((std::fs::read(&path).unwrap(), names(here.path())), before, "nothing was touched");
    let again = restore(&path, &path, Whose::Own, Timestamp::now()).unwrap();
    assert_eq!(again.contents.agent.as_ref(), Some(&own), "one's own is taken");

    // By other means than restore.
    std::fs::copy(&backup, &path).unwrap();
    let err = Store::open(&path).err().unwrap();
    assert!(matches!(err, OpenError::OfAnother { .. }), "{err}");
    let said = err.to_string();
    for part in [&own, &other, &path.display().to_string(), &format!("delete {}", beside.display())] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    std::fs::remove_file(&beside).unwrap();
    drop(Store::open(&path).unwrap());

    // On purpose: the directory is the other agent's then.
    std::fs::write(&beside, &own).unwrap();
    while let Err(err) = restore(&backup, &path, Whose::Any, Timestamp::now()) {
        assert!(matches!(err, RestoreError::InUse { .. }), "{err}");
        tokio::task::yield_now().await;
    }
    assert_eq!(std::fs::read_to_string(&beside).unwrap(), other);
    drop(Store::open(&path).unwrap());
}

#[tokio::test]
async fn a_journal_is_copied_before_it_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let version_1 = Connection::open(&path).unwrap();
    version_1.execute_batch(schema::MIGRATIONS[0]).unwrap();
    version_1.execute_batch("PRAGMA user_version = 1; INSERT INTO meta VALUES ('agent_id', 'kept')").unwrap();
    let told = "INSERT INTO notices (id, deployment, kind, at) VALUES (7, 1, '\"started\"', 5);
                INSERT INTO notice_cursors VALUES ('discord', 6)";
    version_1.execute_batch(told).unwrap();
    let ids = ["72d3162e-cc78-11e3-81ab-4c9367dc0958", "72D3162E-CC78-11E3-81AB-4C9367DC0958", "push-1", "", "é-"];
    for (of, id) in ids.iter().enumerate() {
        let sql = "INSERT INTO deliveries VALUES ('shop', ?, ?, 'queued', 5)";
        version_1.execute(sql, rusqlite::params![id, of as i64]).unwrap();
    }
    drop(version_1);
    let copy = dir.path().join(format!("journal.db.before-v{}", schema::KNOWN));

    // Without the copy there is no migration.
    std::fs::create_dir(&copy).unwrap();
    let why = Store::open(&path).err().unwrap();
    assert!(
        matches!(why, OpenError::NoCopy { to: schema::KNOWN, .. }) && why.to_string().contains("journal.db.before-v"),
        "{why}"
    );
    assert_eq!(inspect(&path).unwrap().schema, 1);
    std::fs::remove_dir(&copy).unwrap();

    let store = Store::open(&path).unwrap();
    assert_eq!(store.kept_random("agent_id", 6).await.unwrap(), "kept");
    assert_eq!(inspect(&copy).unwrap().schema, 1);
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    // A delivery that was here before the migration is known after it.
    for (of, id) in ids.iter().enumerate() {
        let again = store.admit(push(2, Some((*id).into()))).await.unwrap();
        assert_eq!(again, Admission::Duplicate { of: DeploymentId(of as i64) }, "{id}");
    }
    let _ = store.admit(push(1, None)).await.unwrap();
    let newer = store.call(schema::version).await.unwrap();
    assert_eq!(newer, schema::KNOWN);
    // What was to be told still is, and what is new comes after it.
    let kept = store.next_notice("discord").await.unwrap().unwrap();
    assert_eq!((kept.id, kept.about), (7, About::Deployment(DeploymentId(1))));
    store.notice_done("discord", &kept, None).await.unwrap();
    assert!(store.begin_outage("unix:///x", "gone", kept.at).await.unwrap());
    assert_eq!(store.next_notice("discord").await.unwrap().unwrap().id, 8);
    drop(store);
    // Once: the next start has nothing to migrate.
    std::fs::remove_file(&copy).unwrap();
    drop(reopen(&path).await.unwrap());
    assert!(!copy.exists());
}

#[tokio::test]
async fn what_was_to_be_told_of_anything_still_is_after_a_migration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let version_8 = Connection::open(&path).unwrap();
    version_8.execute_batch(&schema::MIGRATIONS[..8].concat()).unwrap();
    let told = "INSERT INTO notices (id, deployment, kind, at) VALUES (5, 1, '\"failed\"', 5);
                INSERT INTO notices (id, outage, kind, at) VALUES (7, 2, '\"engine_down\"', 6);
                INSERT INTO notices (id, canary_alert, kind, at) VALUES (9, 3, '\"canary_down\"', 7);
                INSERT INTO notice_cursors VALUES ('discord', 4); PRAGMA user_version = 8";
    version_8.execute_batch(told).unwrap();
    drop(version_8);
    let store = Store::open(&path).unwrap();
    let mut told = Vec::new();
    while let Some(notice) = store.next_notice("discord").await.unwrap() {
        store.notice_done("discord", &notice, None).await.unwrap();
        told.push((notice.id, notice.about));
    }
    let expected = [(5, About::Deployment(DeploymentId(1))), (7, About::Outage(2)), (9, About::CanaryAlert(3))];
    assert_eq!(told, expected);
    let trouble = CertificateTrouble {
        host: None,
        directory: "https://ca.example/dir".into(),
        why: "gone".into(),
        times: 3,
        since: timestamp(8),
        good_until: None,
    };
    assert!(store.raise_certificate_alert(&trouble).await.unwrap());
    assert_eq!(store.next_notice("discord").await.unwrap().unwrap().id, 10, "ids go on");
}

#[tokio::test]
async fn after_the_last_checkpoint_the_journals_file_alone_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for n in 1..=3 {
        let _ = store.admit(push(n, None)).await.unwrap();
    }
    store.checkpoint().await.unwrap();
    let copy = dir.path().join("copy.db");
    std::fs::copy(dir.path().join("journal.db"), &copy).unwrap();
    assert_eq!(inspect(&copy).unwrap().deployments, 3);
}
