use std::time::Duration;

use super::*;
use crate::config::{self, RolloutPolicy, Strategy};
use crate::model::{AppName, CommitSha, DeploymentId, ReleaseNumber, Status, Trigger};
use crate::queue::Request;

mod copies;
mod damage;
mod full;

/// That a query reads deployments by an index alone.
pub(super) fn assert_read_by(sql: &str, index: &str) {
    let connection = Connection::open_in_memory().unwrap();
    schema::migrate(&connection, std::path::Path::new("test")).unwrap();
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
    let rows = statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>(3)).unwrap();
    let plan: Vec<String> = rows.map(Result::unwrap).collect();
    let reads: Vec<_> = plan.iter().filter(|step| step.contains("deployments")).collect();
    assert!(!reads.is_empty() && reads.iter().all(|step| step.contains(index)), "{sql}: {plan:?}");
}

fn app() -> AppName {
    "shop".parse().unwrap()
}

fn sha(n: u64) -> CommitSha {
    format!("{n:040x}").parse().unwrap()
}

fn push(commit: u64, delivery: Option<String>) -> NewDeployment {
    let before = commit.checked_sub(1).map(sha);
    NewDeployment {
        app: app(),
        trigger: Trigger::Push,
        request: Request::Deploy { commit: Some(sha(commit)), before, forced: false },
        git_ref: Some("refs/heads/main".parse().unwrap()),
        pusher: Some("ada".into()),
        author: None,
        subject: None,
        delivery,
    }
}

fn body() -> ReleaseBody {
    ReleaseBody {
        services: Vec::new(),
        release_command: None,
        rollout: RolloutPolicy { strategy: Strategy::Rolling, order: config::Order::StartFirst, watch: Duration::ZERO },
        author: String::new(),
        subject: String::new(),
    }
}

/// Opens a journal as soon as the thread of a handle that was dropped has let go of it.
async fn reopen(path: &Path) -> Result<Store, OpenError> {
    loop {
        match Store::open(path) {
            Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
            opened => return opened,
        }
    }
}

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(&dir.path().join("journal.db")).unwrap()
}

fn failed(reason: &str, hold: bool) -> Finish {
    Finish { status: Status::Failed, reason: Some(reason.into()), superseded_by: None, hold }
}

#[tokio::test]
async fn a_delivery_counts_once_however_often_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let answers = futures_util::future::join_all((0..100).map(|_| store.admit(push(1, Some("guid".into()))))).await;
    let queued = answers.iter().filter(|a| matches!(a, Ok(Admission::Queued { .. }))).count();
    let duplicate = answers.iter().filter(|a| **a == Ok(Admission::Duplicate { of: DeploymentId(1) })).count();
    assert_eq!((queued, duplicate), (1, 99));
}

#[tokio::test]
async fn what_was_admitted_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for n in 1..=3 {
        let _ = store.admit(push(n, None)).await.unwrap();
    }
    drop(store);
    let store = reopen(&dir.path().join("journal.db")).await.unwrap();
    let all = store.deployments(&app(), 10).await.unwrap();
    let states: Vec<_> = all.iter().map(|d| (d.id.0, d.status)).collect();
    assert_eq!(states, [(3, Status::Queued), (2, Status::Superseded), (1, Status::Superseded)]);
    assert_eq!(all[2].superseded_by, Some(DeploymentId(2)));
    assert_eq!(store.waiting(&app()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_second_agent_is_refused_and_a_newer_schema_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let _store = open(&dir);
    assert!(matches!(Store::open(&path), Err(OpenError::InUse { .. })));

    let newer = dir.path().join("newer.db");
    Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(Store::open(&newer), Err(OpenError::Newer { found: 99, .. })));

    let garbage = dir.path().join("garbage.db");
    std::fs::write(&garbage, vec![7u8; 8192]).unwrap();
    assert!(matches!(Store::open(&garbage), Err(OpenError::Damaged { .. })));
    assert_eq!(std::fs::read(&garbage).unwrap(), vec![7u8; 8192]);
}

#[tokio::test]
async fn what_was_replaced_before_it_began_does_not_begin() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let _ = store.admit(push(1, None)).await.unwrap();
    let _ = store.admit(push(2, None)).await.unwrap();
    let (old, new) = (DeploymentId(1), DeploymentId(2));
    assert!(!store.advance(old, Status::Preparing).await.unwrap());
    let record = store.deployment(old).await.unwrap().unwrap();
    assert_eq!((record.status, record.started_at), (Status::Superseded, None));
    assert!(record.phases.iter().all(|phase| phase.status == Status::Queued && phase.finished_at.is_some()));
    assert_eq!(store.unfinished(&app()).await.unwrap(), None);
    assert!(store.advance(new, Status::Preparing).await.unwrap());
    assert_eq!(store.unfinished(&app()).await.unwrap().map(|record| record.id), Some(new));
}

#[tokio::test]
async fn a_commit_that_failed_for_want_of_a_secret_has_not_had_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let ends = [(1, false, Status::Failed), (2, true, Status::Failed), (3, true, Status::RolledBack)];
    for (commit, lacks_secret, status) in ends {
        let _ = store.admit(push(commit, None)).await.unwrap();
        let id = DeploymentId(i64::try_from(commit).unwrap());
        assert!(store.advance(id, Status::Preparing).await.unwrap());
        assert!(store.knows_commit(&app(), &sha(commit)).await.unwrap());
        if lacks_secret {
            store.lacks_secret(id, "GREETING").await.unwrap();
            assert!(store.knows_commit(&app(), &sha(commit)).await.unwrap(), "it has not ended");
        }
        assert!(store.finish(id, Finish { status, ..failed("why", false) }).await.unwrap());
        assert_eq!(store.knows_commit(&app(), &sha(commit)).await.unwrap(), !lacks_secret);
    }
}

#[tokio::test]
async fn a_deployment_ends_once_and_tells_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert_eq!(store.next_notice("discord").await.unwrap(), None);
    let _ = store.admit(push(1, None)).await.unwrap();
    let id = DeploymentId(1);
    store.advance(id, Status::Preparing).await.unwrap();
    store.advance(id, Status::Building).await.unwrap();
    assert!(store.finish(id, failed("no such base image", true)).await.unwrap());
    assert!(!store.finish(id, failed("again", false)).await.unwrap());
    let record = store.deployment(id).await.unwrap().unwrap();
    assert_eq!(record.reason.as_deref(), Some("no such base image"));
    let phases: Vec<_> = record.phases.iter().map(|p| (p.status, p.finished_at.is_some())).collect();
    assert_eq!(phases, [(Status::Queued, true), (Status::Preparing, true), (Status::Building, true)]);

    let mut kinds = Vec::new();
    while let Some(notice) = store.next_notice("discord").await.unwrap() {
        kinds.push(notice.kind);
        store.notice_done("discord", &notice, Some("42".into())).await.unwrap();
    }
    assert_eq!(kinds, [crate::config::NoticeKind::Started, crate::config::NoticeKind::Failed]);
    assert_eq!(store.notice_message("discord", id).await.unwrap().as_deref(), Some("42"));
}

#[tokio::test]
async fn a_held_commit_is_not_deployed_again_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let _ = store.admit(push(1, None)).await.unwrap();
    store.finish(DeploymentId(1), failed("never ready", true)).await.unwrap();
    assert_eq!(store.held_commit(&app()).await.unwrap(), Some((sha(1), "never ready".into())));
    let again = store.admit(push(1, Some("redelivered".into()))).await.unwrap();
    assert_eq!(again, Admission::Held { reason: "never ready".into() });
    let by_hand = NewDeployment { trigger: Trigger::Api, ..push(1, None) };
    assert!(matches!(store.admit(by_hand).await.unwrap(), Admission::Queued { .. }));
    let newer = store.admit(push(2, None)).await.unwrap();
    assert!(matches!(newer, Admission::Queued { .. }));
}

#[tokio::test]
async fn a_hold_ends_when_the_branch_has_moved_on() {
    let deploy = |trigger, commit| NewDeployment { trigger, ..push(commit, None) };
    let tip = NewDeployment {
        trigger: Trigger::Cli,
        request: Request::Deploy { commit: None, before: None, forced: false },
        git_ref: None,
        ..push(1, None)
    };
    let restart = NewDeployment { trigger: Trigger::Cli, request: Request::Restart, ..push(1, None) };
    let rollback =
        NewDeployment { trigger: Trigger::Rollback, request: Request::Rollback { to: None }, ..push(1, None) };
    // Commit 1 is live and commit 2 is held. What goes well next, of which commit; whether the hold stays, and whether
    // it is told.
    for (what, next, commit, stays, told) in [
        ("a push of a newer commit", deploy(Trigger::Push, 3), 3, false, false),
        ("a push that takes the branch back", deploy(Trigger::Push, 1), 1, true, false),
        ("the branch's tip, a newer one, by hand", tip, 3, false, false),
        ("a commit that nobody has seen, by hand", deploy(Trigger::Api, 3), 3, false, false),
        ("the held commit itself, by hand", deploy(Trigger::Cli, 2), 2, false, false),
        ("an older commit, by hand", deploy(Trigger::Cli, 1), 1, true, true),
        ("a restart", restart, 1, true, true),
        ("a rollback", rollback, 1, true, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        let succeeded = || Finish { status: Status::Succeeded, reason: None, superseded_by: None, hold: false };
        let _ = store.admit(push(1, None)).await.unwrap();
        store.finish(DeploymentId(1), succeeded()).await.unwrap();
        let _ = store.admit(push(2, None)).await.unwrap();
        store.finish(DeploymentId(2), failed("never ready", true)).await.unwrap();
        let _ = store.admit(next).await.unwrap();
        store.describe(DeploymentId(3), &sha(commit), "Ada", "What it is").await.unwrap();
        store.finish(DeploymentId(3), succeeded()).await.unwrap();
        let held = (store.held_commit(&app()).await.unwrap(), store.held_tip(&app()).await.unwrap());
        assert_eq!((held.0.is_some(), held.1.is_some()), (stays, told), "{what}");
    }
}

#[tokio::test]
async fn steps_say_how_far_an_earlier_life_came() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = DeploymentId(7);
    assert_eq!(store.begin_step::<i64>(id, "release_command").await.unwrap(), Step::New);
    assert_eq!(store.begin_step::<i64>(id, "release_command").await.unwrap(), Step::Begun);
    store.end_step(id, "release_command", &3i64).await.unwrap();
    assert_eq!(store.begin_step::<i64>(id, "release_command").await.unwrap(), Step::Done(3));
    assert_eq!(store.step::<i64>(id, "other").await.unwrap(), Step::New);
}

#[tokio::test]
async fn a_rollback_without_a_number_goes_to_the_last_good_release_below_the_live_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let last_good = async || store.last_good_release(&app()).await.unwrap().map(|release| release.number.0);
    for (number, live, proven) in [(1, true, true), (2, true, true), (3, false, false), (4, true, false)] {
        let Admission::Queued { id, .. } = store.admit(push(number, None)).await.unwrap() else { panic!("not queued") };
        let made = store.create_release(&app(), id, &sha(number), body()).await.unwrap();
        if live {
            store.set_live(&app(), made.number, proven).await.unwrap();
        }
    }
    assert_eq!(last_good().await, Some(2), "neither the one that never went live nor the live one itself");
    store.set_live(&app(), ReleaseNumber(2), true).await.unwrap();
    assert_eq!(last_good().await, Some(1), "not a newer one that a rollback left");
    store.set_live(&app(), ReleaseNumber(1), true).await.unwrap();
    assert_eq!(last_good().await, None);
}

#[tokio::test]
async fn tokens_are_kept_as_digests_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (token, secret) = store.create_token("ci", Scope::Deploy, None).await.unwrap();
    assert!(matches!(store.check_token(&secret).await.unwrap(), TokenCheck::Valid(t) if t.id == token.id));
    let past = Timestamp::from_millisecond(1).unwrap();
    let (_, old) = store.create_token("old", Scope::Read, Some(past)).await.unwrap();
    assert_eq!(store.check_token(&old).await.unwrap(), TokenCheck::Expired(past));
    assert_eq!(store.check_token(&"lsh_00".to_owned().into()).await.unwrap(), TokenCheck::Unknown);
    assert!(store.revoke_token(token.id).await.unwrap());
    assert_eq!(store.check_token(&secret).await.unwrap(), TokenCheck::Unknown);
    use secrecy::ExposeSecret;
    let on_disk = std::fs::read(dir.path().join("journal.db-wal")).unwrap();
    let secret = secret.expose_secret().as_bytes();
    assert!(!on_disk.windows(secret.len()).any(|window| window == secret));
}

#[tokio::test]
async fn a_failed_call_leaves_the_others_of_its_group_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let bad = store.call(|c| c.execute_batch("INSERT INTO nowhere VALUES (1)"));
    let (bad, good) = tokio::join!(bad, store.admit(push(1, None)));
    assert!(matches!(bad, Err(StoreError::Sqlite(_))));
    assert!(matches!(good, Ok(Admission::Queued { .. })));
    assert_eq!(store.deployments(&app(), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_outage_is_told_once_and_so_is_its_end() {
    use crate::config::NoticeKind;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert_eq!(store.next_notice("discord").await.unwrap(), None);
    let since = timestamp(1_790_000_000_000);
    assert!(!store.end_outage().await.unwrap(), "there is none");
    assert!(store.begin_outage("unix:///x", "gone", since).await.unwrap());
    // As an agent would that was restarted in the middle.
    assert!(!store.begin_outage("unix:///x", "still gone", since).await.unwrap());
    assert_eq!(store.open_outage().await.unwrap().map(|open| (open.since, open.why)), Some((since, "gone".into())));
    assert!(store.end_outage().await.unwrap());
    assert!(!store.end_outage().await.unwrap());
    assert_eq!(store.open_outage().await.unwrap(), None);

    let mut told = Vec::new();
    while let Some(notice) = store.next_notice("discord").await.unwrap() {
        told.push((notice.kind, notice.about));
        store.notice_done("discord", &notice, Some("42".into())).await.unwrap();
    }
    assert_eq!(told, [(NoticeKind::EngineDown, About::Outage(1)), (NoticeKind::EngineUp, About::Outage(1))]);
    assert!(store.outage(1).await.unwrap().unwrap().ended_at.is_some());
}

#[tokio::test]
async fn an_alert_about_a_canary_is_told_once_and_so_is_its_end() {
    use crate::config::{CanaryOf, Fraction, NoticeKind};
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert_eq!(store.next_notice("discord").await.unwrap(), None);
    let of = CanaryOf { app: app(), share: Fraction { part: 1, of: 3 } };
    let next = "next".parse().unwrap();
    let raised = |times| Raised { times, why: format!("{times} times"), deployment: Some(DeploymentId(7)) };
    assert!(!store.end_canary_alert(&next, true).await.unwrap(), "there is none");
    assert!(store.raise_canary_alert(&next, &of, &raised(0)).await.unwrap());
    // As an agent would that was restarted in the middle.
    assert!(!store.raise_canary_alert(&next, &of, &raised(0)).await.unwrap());
    // It runs again and fails: that is another alert, and the first one is over without a word.
    assert!(store.raise_canary_alert(&next, &of, &raised(1)).await.unwrap());
    assert!(!store.raise_canary_alert(&next, &of, &raised(2)).await.unwrap(), "it is still the same");
    let alerts = store.open_canary_alerts().await.unwrap();
    let [alert] = alerts.as_slice() else { panic!("{alerts:?}") };
    assert_eq!((alert.times, alert.why.as_str(), alert.deployment), (2, "2 times", Some(DeploymentId(7))));
    assert_eq!((&alert.app, &alert.production, alert.share), (&next, &app(), of.share));
    assert!(store.end_canary_alert(&next, true).await.unwrap());
    assert!(store.raise_canary_alert(&next, &of, &raised(1)).await.unwrap());
    assert!(store.end_canary_alert(&next, false).await.unwrap(), "it is not wanted any more");
    assert_eq!(store.open_canary_alerts().await.unwrap(), []);

    let mut told = Vec::new();
    while let Some(notice) = store.next_notice("discord").await.unwrap() {
        told.push((notice.kind, notice.about));
        store.notice_done("discord", &notice, None).await.unwrap();
    }
    let (down, up) = (NoticeKind::CanaryDown, NoticeKind::CanaryUp);
    let expected = [(down, 1), (down, 2), (up, 2), (down, 3)].map(|(kind, id)| (kind, About::CanaryAlert(id)));
    assert_eq!(told, expected);
    assert!(store.canary_alert(2).await.unwrap().unwrap().ended_at.is_some());
}

#[tokio::test]
async fn an_alert_about_a_certificate_is_told_once_and_so_is_its_end() {
    use crate::config::NoticeKind;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert_eq!(store.next_notice("discord").await.unwrap(), None);
    let trouble = |host: Option<&str>, times: u32| CertificateTrouble {
        host: host.map(str::to_owned),
        directory: "https://ca.example/dir".into(),
        why: format!("{times} times"),
        times,
        since: timestamp(1_790_000_000_000),
        good_until: (times == 4).then(|| timestamp(1_790_000_001_000)),
    };
    let (shop, until) = (Some("shop.test"), Some(timestamp(1_800_000_000_000)));
    assert!(!store.end_certificate_alert(shop, until, true).await.unwrap(), "there is none");
    assert!(store.raise_certificate_alert(&trouble(shop, 3)).await.unwrap());
    // As an agent would that was restarted in the middle, or had tried once more.
    assert!(!store.raise_certificate_alert(&trouble(shop, 4)).await.unwrap());
    assert!(store.raise_certificate_alert(&trouble(None, 3)).await.unwrap(), "the authority's is another one");
    let open: Vec<_> = store.open_certificate_alerts().await.unwrap().into_iter().map(|alert| alert.trouble).collect();
    assert_eq!(open, [trouble(None, 3), trouble(shop, 4)]);
    assert!(store.end_certificate_alert(shop, until, true).await.unwrap());
    assert!(store.end_certificate_alert(None, None, false).await.unwrap(), "it is not wanted any more");
    assert!(store.raise_certificate_alert(&trouble(shop, 3)).await.unwrap(), "that is another one");

    let mut told = Vec::new();
    while let Some(notice) = store.next_notice("discord").await.unwrap() {
        told.push((notice.kind, notice.about));
        store.notice_done("discord", &notice, None).await.unwrap();
    }
    let (failed, issued) = (NoticeKind::CertificateFailed, NoticeKind::CertificateIssued);
    let expected = [(failed, 1), (failed, 2), (issued, 1), (failed, 3)];
    assert_eq!(told, expected.map(|(kind, id)| (kind, About::CertificateAlert(id))));
    let ended = store.certificate_alert(1).await.unwrap().unwrap();
    assert!(ended.ended_at.is_some() && ended.issued_until == until);
}
