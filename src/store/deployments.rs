//! Deployments: their records, moved through their states and ended.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::notices::{About, add_notice};
use super::requests::{self, Requests};
use super::steps::{self, Served, Step};
use super::{Store, StoreError, from_json, now_ms, timestamp, unreadable};
use crate::config::NoticeKind;
use crate::model::{AppName, CommitPrefix, CommitSha, DeploymentId, GitRef, ReleaseNumber, Status, Trigger};
use crate::queue::Request;

// Each of these repeats the condition of a partial index word for word, without which SQLite would read every
// deployment that the app ever had.
const OF_COMMIT_WAITING: &str = "SELECT 1 FROM deployments WHERE app = ?1 AND status = 'queued' AND commit_sha = ?2";
const OF_COMMIT_TAKEN_UP: &str = "SELECT 1 FROM deployments WHERE app = ?1 AND commit_sha = ?2
     AND (started_at IS NOT NULL OR status = 'cancelled')
     AND NOT (status IN ('failed', 'rolled_back')
         AND EXISTS (SELECT 1 FROM steps WHERE deployment = deployments.id AND name = 'without_secret'))";
const LAST_OF_COMMIT_WAITING: &str =
    "SELECT max(+id) FROM deployments WHERE app = ?1 AND status = 'queued' AND commit_sha = ?2";
const LAST_OF_COMMIT_TAKEN_UP: &str = "SELECT max(+id) FROM deployments WHERE app = ?1 AND commit_sha = ?2
     AND (started_at IS NOT NULL OR status = 'cancelled')";
const BEGINNING: &str =
    "SELECT DISTINCT commit_sha FROM deployments WHERE app = ?1 AND commit_sha >= ?2 AND commit_sha < ?3
     AND (started_at IS NOT NULL OR status = 'cancelled') LIMIT 2";
const UNDER_WAY: &str = "WHERE app = ? AND started_at IS NOT NULL AND finished_at IS NULL ORDER BY id";

/// The step that says that a deployment failed, or was undone, for want of a secret; its outcome is which.
const WITHOUT_SECRET: &str = "without_secret";
/// The step that says by whom, or why, a deployment was cancelled.
pub(super) const CANCEL_STEP: &str = "cancel";

/// A deployment's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Its number.
    pub id: DeploymentId,
    /// Of which app.
    pub app: AppName,
    /// Why.
    pub trigger: Trigger,
    /// What it is to do.
    pub request: Request,
    /// Where it stands.
    pub status: Status,
    /// Of which commit; known at the latest when the source is.
    pub commit: Option<CommitSha>,
    /// The branch, where a push names it.
    pub git_ref: Option<GitRef>,
    /// Who asked.
    pub pusher: Option<String>,
    /// The commit's author.
    pub author: Option<String>,
    /// The commit's subject.
    pub subject: Option<String>,
    /// The release it made or kept.
    pub release: Option<ReleaseNumber>,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// Which one took its place.
    pub superseded_by: Option<DeploymentId>,
    /// Somebody asked to cancel it.
    pub cancel_asked: bool,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When it left the queue.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Requests of the app while it rolled out.
    pub requests: Requests,
    /// The states it passed, in order.
    pub phases: Vec<PhaseSpan>,
}

/// How long a deployment stayed in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseSpan {
    /// The state.
    pub status: Status,
    /// Since when.
    pub started_at: Timestamp,
    /// Until when; `None` = still.
    pub finished_at: Option<Timestamp>,
}

/// How a deployment ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// A terminal state.
    pub status: Status,
    /// Why; `None` only for succeeded.
    pub reason: Option<String>,
    /// In favour of which one it gave way.
    pub superseded_by: Option<DeploymentId>,
    /// Keep its commit from being deployed again by itself.
    pub hold: bool,
}

/// What came of asking for a deployment's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelAsked {
    /// Its record as it is now.
    pub record: Deployment,
    /// It had ended before; nothing has changed.
    pub had_ended: bool,
}

impl Finish {
    /// A waiting deployment gives way to a newer one.
    pub fn replaced_by(newer: DeploymentId) -> Self {
        Self {
            status: Status::Superseded,
            reason: Some(format!("replaced by {newer}")),
            superseded_by: Some(newer),
            hold: false,
        }
    }
}

impl Store {
    /// One deployment; `None` when there is none of that number.
    pub async fn deployment(&self, id: DeploymentId) -> Result<Option<Deployment>, StoreError> {
        self.read(move |c| {
            let found = query(c, "WHERE id = ?", params![id.0])?;
            Ok(found.into_iter().next())
        })
        .await
    }

    /// An app's deployments, newest first.
    pub async fn deployments(&self, app: &AppName, limit: u32) -> Result<Vec<Deployment>, StoreError> {
        let app = app.clone();
        self.read(move |c| query(c, "WHERE app = ? ORDER BY id DESC LIMIT ?", params![app.as_str(), limit])).await
    }

    /// The app's deployment that has started and not ended: at most one, left over by an earlier life of the agent
    /// or running now.
    pub async fn unfinished(&self, app: &AppName) -> Result<Option<Deployment>, StoreError> {
        let app = app.clone();
        self.read(move |c| Ok(query(c, UNDER_WAY, params![app.as_str()])?.into_iter().next())).await
    }

    /// Whether a deployment of a commit waits, was started or was cancelled. One that gave way before it started does
    /// not count, nor does one that failed, or was undone, for want of a secret: its commit never had its turn.
    pub async fn knows_commit(&self, app: &AppName, commit: &CommitSha) -> Result<bool, StoreError> {
        let (app, commit) = (app.clone(), commit.clone());
        self.read(move |c| {
            let sql = format!("SELECT EXISTS ({OF_COMMIT_WAITING}) OR EXISTS ({OF_COMMIT_TAKEN_UP})");
            c.query_row(&sql, params![app.as_str(), commit.as_str()], |row| row.get(0))
        })
        .await
    }

    /// The last deployment of a commit that waits, was started or was cancelled.
    pub async fn last_of_commit(&self, app: &AppName, commit: &CommitSha) -> Result<Option<Deployment>, StoreError> {
        let (app, commit) = (app.clone(), commit.clone());
        self.read(move |c| {
            let last = format!(
                "WHERE id IN ({LAST_OF_COMMIT_WAITING} UNION ALL {LAST_OF_COMMIT_TAKEN_UP}) ORDER BY id DESC LIMIT 1"
            );
            let found = query(c, &last, params![app.as_str(), commit.as_str()])?;
            Ok(found.into_iter().next())
        })
        .await
    }

    /// The commits that begin so of which a deployment was started or cancelled; two at most, which says that they are several.
    pub async fn commits_beginning(&self, app: &AppName, prefix: &CommitPrefix) -> Result<Vec<CommitSha>, StoreError> {
        let (app, first) = (app.clone(), prefix.clone());
        // Beyond every digit.
        let beyond = format!("{prefix}g");
        self.read(move |c| {
            let mut found = c.prepare_cached(BEGINNING)?;
            let ids = found.query_map(params![app.as_str(), first.as_str(), beyond], |row| row.get::<_, String>(0))?;
            ids.map(|id| id?.parse().map_err(unreadable)).collect()
        })
        .await
    }

    /// Notes that a deployment is about to fail, or to be undone, for want of a secret: its commit is to be tried again.
    pub async fn lacks_secret(&self, id: DeploymentId, why: &str) -> Result<(), StoreError> {
        let why = why.to_owned();
        self.call(move |c| steps::record(c, id, WITHOUT_SECRET, &why)).await
    }

    /// Moves a deployment into a state that is not terminal. False when it has ended: while it was chosen to run, a
    /// newer one may have replaced it.
    pub async fn advance(&self, id: DeploymentId, status: Status) -> Result<bool, StoreError> {
        self.call(move |c| {
            let now = now_ms();
            let sql = "SELECT EXISTS (SELECT 1 FROM deployments WHERE id = ? AND started_at IS NULL)";
            let first_start: bool = c.query_row(sql, params![id.0], |row| row.get(0))?;
            let changed = c.execute(
                "UPDATE deployments SET status = ?, started_at = coalesce(started_at, ?)
                 WHERE id = ? AND finished_at IS NULL",
                params![status.as_str(), now, id.0],
            )?;
            if changed == 0 {
                return Ok(false);
            }
            enter_phase(c, id, Some(status), now)?;
            // Once, also when it is told again after a restart of the agent.
            if status == Status::Preparing && first_start {
                add_notice(c, About::Deployment(id), NoticeKind::Started, now)?;
            }
            Ok(true)
        })
        .await
    }

    /// Fills in what became known of a deployment's commit.
    pub async fn describe(
        &self,
        id: DeploymentId,
        commit: &CommitSha,
        author: &str,
        subject: &str,
    ) -> Result<(), StoreError> {
        let (commit, author, subject) = (commit.clone(), author.to_owned(), subject.to_owned());
        self.call(move |c| {
            c.execute(
                "UPDATE deployments SET commit_sha = ?, author = ?, subject = ? WHERE id = ?",
                params![commit.as_str(), author, subject, id.0],
            )?;
            Ok(())
        })
        .await
    }

    /// Sets the release that a deployment makes live or keeps.
    pub async fn set_release(&self, id: DeploymentId, release: ReleaseNumber) -> Result<(), StoreError> {
        self.call(move |c| {
            c.execute("UPDATE deployments SET release = ? WHERE id = ?", params![release.0, id.0])?;
            Ok(())
        })
        .await
    }

    /// Ends a deployment: the one terminal state it ever gets. False when it had ended before.
    pub async fn finish(&self, id: DeploymentId, finish: Finish) -> Result<bool, StoreError> {
        self.finish_with(id, finish, None).await
    }

    /// The same, with what is true of the live release at this moment, for who tells of it later.
    pub async fn finish_with(
        &self,
        id: DeploymentId,
        finish: Finish,
        served: Option<Served>,
    ) -> Result<bool, StoreError> {
        self.call(move |c| {
            let ended = end(c, id, &finish)?;
            if let Some(served) = served.filter(|_| ended) {
                steps::record_served(c, id, &served)?;
            }
            Ok(ended)
        })
        .await
    }

    /// Remembers that somebody wants a deployment ended. A waiting one ends at once. `None` when there is none of that
    /// number.
    pub async fn ask_cancel(&self, id: DeploymentId, who: &str) -> Result<Option<CancelAsked>, StoreError> {
        let by = format!("cancelled by {who}");
        self.call(move |c| {
            let find = || query(c, "WHERE id = ?", params![id.0]).map(|found| found.into_iter().next());
            let Some(before) = find()? else { return Ok(None) };
            let had_ended = before.status.is_terminal();
            if !had_ended {
                c.execute("UPDATE deployments SET cancel_asked = 1 WHERE id = ?", params![id.0])?;
            }
            if before.status == Status::Queued {
                let reason = Some(format!("{by} while it waited"));
                end(c, id, &Finish { status: Status::Cancelled, reason, superseded_by: None, hold: false })?;
            } else if !had_ended {
                steps::record(c, id, CANCEL_STEP, &by)?;
            }
            Ok(find()?.map(|record| CancelAsked { record, had_ended }))
        })
        .await
    }

    /// By whom, or why, a deployment that had begun was first cancelled, such as `cancelled by ada`.
    pub async fn cancelled_by(&self, id: DeploymentId) -> Result<String, StoreError> {
        match self.step(id, CANCEL_STEP).await? {
            Step::Done(by) => Ok(by),
            // Earlier versions did not write down who.
            Step::New | Step::Begun => Ok("cancelled by somebody".to_owned()),
        }
    }
}

pub(super) fn end(c: &Connection, id: DeploymentId, finish: &Finish) -> rusqlite::Result<bool> {
    let now = now_ms();
    if !end_waiting(c, id, finish, now)? {
        return Ok(false);
    }
    enter_phase(c, id, None, now)?;
    let hold = finish.hold.then_some(&finish.reason);
    let app_and_commit = "SELECT app, commit_sha FROM deployments WHERE id = ? AND commit_sha IS NOT NULL";
    if let Some(reason) = hold {
        c.execute(
            &format!(
                "INSERT INTO apps (app, held_commit, held_reason) SELECT app, commit_sha, ?2 FROM ({})
                 WHERE true ON CONFLICT (app) DO UPDATE SET held_commit = excluded.held_commit, held_reason = excluded.held_reason",
                app_and_commit.replace('?', "?1")
            ),
            params![id.0, reason],
        )?;
    } else if finish.status == Status::Succeeded {
        end_hold(c, id)?;
    }
    Ok(true)
}

/// Ends a deployment that holds nothing but its place in the queue.
pub(super) fn end_waiting(c: &Connection, id: DeploymentId, finish: &Finish, now: i64) -> rusqlite::Result<bool> {
    let changed = c
        .prepare_cached(
            "UPDATE deployments SET status = ?, reason = ?, superseded_by = ?, finished_at = ?
             WHERE id = ? AND finished_at IS NULL",
        )?
        .execute(params![finish.status.as_str(), finish.reason, finish.superseded_by.map(|by| by.0), now, id.0])?;
    if changed == 0 {
        return Ok(false);
    }
    let kind = match finish.status {
        Status::Succeeded => NoticeKind::Succeeded,
        Status::RolledBack => NoticeKind::RolledBack,
        Status::Superseded => NoticeKind::Superseded,
        Status::Cancelled => NoticeKind::Cancelled,
        _ => NoticeKind::Failed,
    };
    add_notice(c, About::Deployment(id), kind, now)?;
    Ok(true)
}

/// A deployment went well. The app's hold is over when it was of the held commit, or of a newer one: of one that was
/// first seen after it. It stays after a rollback, a scale, a restart and a way back to an older commit, so that the
/// held commit does not come back with a push of the same branch.
fn end_hold(c: &Connection, id: DeploymentId) -> rusqlite::Result<()> {
    let Some(good) = query(c, "WHERE id = ?", params![id.0])?.into_iter().next() else { return Ok(()) };
    let Some(commit) = &good.commit else { return Ok(()) };
    c.execute(
        "UPDATE apps SET held_commit = NULL, held_reason = NULL
         WHERE app = ?1 AND held_commit IS NOT NULL AND (held_commit = ?2 OR NOT EXISTS (
             SELECT 1 FROM deployments WHERE app = ?1 AND commit_sha = ?2
             AND id < (SELECT max(id) FROM deployments WHERE app = ?1 AND commit_sha = held_commit)))",
        params![good.app.as_str(), commit.as_str()],
    )?;
    Ok(())
}

/// Closes the open phase and opens `next`.
fn enter_phase(c: &Connection, id: DeploymentId, next: Option<Status>, now: i64) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE phases SET finished_at = ? WHERE deployment = ? AND finished_at IS NULL")?
        .execute(params![now, id.0])?;
    let Some(next) = next else { return Ok(()) };
    // A deployment that starts over after a restart of the agent goes on in the phase it was in.
    c.prepare_cached(
        "INSERT INTO phases (deployment, status, started_at) VALUES (?, ?, ?)
         ON CONFLICT DO UPDATE SET finished_at = NULL",
    )?
    .execute(params![id.0, next.as_str(), now])?;
    Ok(())
}

fn query(c: &Connection, clause: &str, params: impl rusqlite::Params) -> rusqlite::Result<Vec<Deployment>> {
    let sql = format!(
        "SELECT id, app, trigger, request, status, commit_sha, git_ref, pusher, author, subject, release, reason,
                superseded_by, cancel_asked, queued_at, started_at, finished_at
         FROM deployments {clause}"
    );
    let mut statement = c.prepare_cached(&sql)?;
    let mut found = statement.query_map(params, read)?.collect::<rusqlite::Result<Vec<_>>>()?;
    for deployment in &mut found {
        deployment.phases = phases(c, deployment)?;
        if deployment.started_at.is_some() {
            deployment.requests = requests::of_deployment(c, deployment.id)?;
        }
    }
    Ok(found)
}

/// The time in the queue is told by the deployment's own times; most deployments never get further.
fn phases(c: &Connection, deployment: &Deployment) -> rusqlite::Result<Vec<PhaseSpan>> {
    let mut spans = vec![PhaseSpan {
        status: Status::Queued,
        started_at: deployment.queued_at,
        finished_at: deployment.started_at.or(deployment.finished_at),
    }];
    let mut statement = c.prepare_cached("SELECT status, started_at, finished_at FROM phases WHERE deployment = ?")?;
    let rows = statement.query_map(params![deployment.id.0], |row| {
        Ok(PhaseSpan {
            status: word(row, 0)?,
            started_at: timestamp(row.get(1)?),
            finished_at: row.get::<_, Option<i64>>(2)?.map(timestamp),
        })
    })?;
    for span in rows {
        spans.push(span?);
    }
    spans.sort_by_key(|span| span.status);
    Ok(spans)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Deployment> {
    let request: String = row.get(3)?;
    let time = |index| row.get::<_, Option<i64>>(index).map(|ms| ms.map(timestamp));
    Ok(Deployment {
        id: DeploymentId(row.get(0)?),
        app: word(row, 1)?,
        trigger: word(row, 2)?,
        request: from_json(&request)?,
        status: word(row, 4)?,
        commit: optional_word(row, 5)?,
        git_ref: optional_word(row, 6)?,
        pusher: row.get(7)?,
        author: row.get(8)?,
        subject: row.get(9)?,
        release: row.get::<_, Option<u32>>(10)?.map(ReleaseNumber),
        reason: row.get(11)?,
        superseded_by: row.get::<_, Option<i64>>(12)?.map(DeploymentId),
        cancel_asked: row.get(13)?,
        queued_at: timestamp(row.get(14)?),
        started_at: time(15)?,
        finished_at: time(16)?,
        requests: Requests::default(),
        phases: Vec::new(),
    })
}

fn word<T: std::str::FromStr<Err = crate::model::ParseError>>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    row.get::<_, String>(index)?.parse().map_err(unreadable)
}

fn optional_word<T: std::str::FromStr<Err = crate::model::ParseError>>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<Option<T>> {
    row.get::<_, Option<String>>(index)?.map(|text| text.parse().map_err(unreadable)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::assert_read_by;

    #[test]
    fn a_deployment_is_found_without_reading_the_history() {
        assert_read_by(OF_COMMIT_WAITING, "deployments_waiting");
        assert_read_by(OF_COMMIT_TAKEN_UP, "deployments_of_commit");
        assert_read_by(LAST_OF_COMMIT_WAITING, "deployments_waiting");
        assert_read_by(LAST_OF_COMMIT_TAKEN_UP, "deployments_of_commit");
        assert_read_by(BEGINNING, "deployments_of_commit");
        assert_read_by(&format!("SELECT id FROM deployments {UNDER_WAY}"), "deployments_under_way");
    }
}
