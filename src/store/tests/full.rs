//! A journal whose disk is full. SQLite's own limit of pages stands for the disk: it fails in the same way.

use super::*;

async fn allow_pages(store: &Store, pages: u32) {
    store.alone(move |c| c.pragma_update(None, "max_page_count", pages)).await.unwrap().unwrap();
}

async fn add_lines(store: &Store) -> Result<(), StoreError> {
    let sql = "INSERT INTO log (deployment, seq, at, line)
               WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
               SELECT 1, i, 0, hex(randomblob(100)) FROM n";
    store.call(move |c| c.execute(sql, []).map(drop)).await
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_was_set_aside_is_given_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let ballast = dir.path().join("journal.ballast");
    let store = open(&dir);
    assert_eq!(std::fs::metadata(&ballast).unwrap().len(), ballast::SIZE);
    let Admission::Queued { id, .. } = store.admit(push(1, None)).await.unwrap() else { panic!("not queued") };
    allow_pages(&store, 1).await;
    assert_eq!(add_lines(&store).await, Err(StoreError::Full));
    // Told first, released after it.
    let _ = store.deployment(id).await;
    assert_eq!(add_lines(&store).await, Err(StoreError::Full));
    store.alone(move |_| assert!(!ballast.exists())).await.unwrap();
    allow_pages(&store, u32::MAX).await;
    assert_eq!(store.log_lines(id, 0, 10).await.unwrap(), []);
    add_lines(&store).await.unwrap();
    assert!(store.finish(id, failed("no room", false)).await.unwrap());
    assert_eq!(std::fs::metadata(dir.path().join("journal.ballast")).unwrap().len(), ballast::SIZE);
    let check = store.call(|c| c.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))).await;
    assert_eq!(check.unwrap(), "ok");
}

#[tokio::test]
async fn with_scarce_room_only_what_is_waited_for_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let Admission::Queued { id, .. } = store.admit(push(1, None)).await.unwrap() else { panic!("not queued") };
    let written = |scarce| {
        store.alone(move |c| {
            let line = |seq: i64| {
                move |c: &Connection| {
                    c.execute("INSERT INTO log (deployment, seq, at, line) VALUES (9, ?, 0, '')", [seq]).map(drop)
                }
            };
            let (awaited, _) = Awaited::new(line(2));
            let answers = thread::run_group(c, vec![Box::new(Posted::new(line(1))), Box::new(awaited)], scarce);
            answers.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>()
        })
    };
    assert_eq!(written(true).await.unwrap(), [Err(StoreError::Full), Ok(())]);
    let lines = store.log_lines(DeploymentId(9), 0, 10).await.unwrap();
    assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), [2]);
    let _ = id;
}

#[tokio::test]
async fn whoever_reads_as_the_disk_becomes_full_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let Admission::Queued { id, .. } = store.admit(push(1, None)).await.unwrap() else { panic!("not queued") };
    let (token, secret) = store.create_token("ci", Scope::Read, None).await.unwrap();
    allow_pages(&store, 1).await;
    // Half-way: that takes with it whatever shares its transaction.
    let full = store.call(|c| {
        let mut line =
            c.prepare("INSERT INTO log (deployment, seq, at, line) VALUES (1, ?, 0, hex(randomblob(100)))")?;
        (0..2000).try_for_each(|seq| line.execute([seq]).map(drop))
    });
    // All of them wait together, behind this one.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let busy = store.alone(move |_| wait.recv());
    let began = async { drop(go) };
    let (_, before, full, after, known, ()) =
        tokio::join!(busy, store.deployment(id), full, store.log_lines(id, 0, 10), store.check_token(&secret), began);
    assert_eq!(full, Err(StoreError::Full));
    assert_eq!(before.unwrap().unwrap().id, id);
    assert_eq!(after, Ok(Vec::new()), "nothing of what did not get to the disk");
    assert!(matches!(known, Ok(TokenCheck::Valid(known)) if known.id == token.id));
    // Its first use is noted when there is room.
    allow_pages(&store, u32::MAX).await;
    let _ = store.check_token(&secret).await.unwrap();
    assert!(store.tokens().await.unwrap()[0].last_used_at.is_some());
}
