//! How a request becomes a waiting deployment: known, held or queued, and what it replaces.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::delivery_key::DeliveryKey;
use super::deployments::{Finish, end_waiting};
use super::numbers::Numbers;
use super::{Store, StoreError, from_json, now_ms, to_json};
use crate::model::{AppName, CommitSha, DeploymentId, GitRef, Trigger};
use crate::queue::{self, Reach, Request, Waiting};

// Each of these repeats the condition of a partial index word for word, without which SQLite would read every
// deployment that the app ever had; `+id` keeps it from preferring an index that is in order already.
const WAITING: &str = "SELECT id, request FROM deployments WHERE app = ? AND status = 'queued' ORDER BY +id";
const WAITING_FOR_NONE_OR_ONE_OF_TWO: &str =
    "SELECT id, request FROM deployments WHERE app = ?1 AND status = 'queued' AND commit_sha IS NULL
     UNION ALL SELECT id, request FROM deployments WHERE app = ?1 AND status = 'queued' AND commit_sha = ?2
     UNION ALL SELECT id, request FROM deployments WHERE app = ?1 AND status = 'queued' AND commit_sha = ?3";

/// A request for a deployment, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeployment {
    /// Of which app.
    pub app: AppName,
    /// Why.
    pub trigger: Trigger,
    /// What to do.
    pub request: Request,
    /// The branch, where a push names it.
    pub git_ref: Option<GitRef>,
    /// Who asked: the pusher, or the token's name.
    pub pusher: Option<String>,
    /// The commit's author, where known.
    pub author: Option<String>,
    /// The commit's subject, where known.
    pub subject: Option<String>,
    /// The provider's delivery id.
    pub delivery: Option<String>,
}

/// What became of a request; on disk when it is returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It waits for its turn.
    Queued {
        /// Its number.
        id: DeploymentId,
        /// Waiting ones that it replaced.
        replaced: Vec<DeploymentId>,
    },
    /// The same delivery was here before.
    Duplicate {
        /// What it became then.
        of: DeploymentId,
    },
    /// The same commit failed before and is held.
    Held {
        /// Why it failed.
        reason: String,
    },
}

/// A delivery that leads to no deployment, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Of which app.
    pub app: AppName,
    /// The provider's id.
    pub delivery: String,
    /// One line.
    pub decision: String,
}

impl Store {
    /// Puts a request on disk, or finds that it was here before. Waiting ones that it replaces end in the same
    /// transaction.
    pub async fn admit(&self, new: NewDeployment) -> Result<Admission, StoreError> {
        if self.numbers.are_unknown() {
            return Err(StoreError::Unnumbered);
        }
        self.refuse_while_scarce().await?;
        let numbers = self.numbers.clone();
        let whereabouts = self.whereabouts.clone();
        // Within the group, whose thread has looked just before it.
        self.call(move |c| match whereabouts.refuse_in_trouble() {
            Ok(()) => admit(c, &new, &numbers).map(Ok),
            Err(trouble) => Ok(Err(trouble)),
        })
        .await?
    }

    /// Remembers a delivery that leads to no deployment.
    pub async fn record_decision(&self, decision: Decision) -> Result<(), StoreError> {
        self.call(move |c| {
            c.prepare_cached(
                "INSERT INTO deliveries (app, delivery, decision, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                decision.app.as_str(),
                DeliveryKey::of(&decision.delivery),
                decision.decision,
                now_ms()
            ])?;
            Ok(())
        })
        .await
    }

    /// An app's waiting deployments, oldest first.
    pub async fn waiting(&self, app: &AppName) -> Result<Vec<Waiting>, StoreError> {
        let app = app.clone();
        self.read(move |c| waiting(c, &app)).await
    }
}

fn admit(c: &Connection, new: &NewDeployment, numbers: &Numbers) -> rusqlite::Result<Admission> {
    let known = new.delivery.as_ref().map(|delivery| known_delivery(c, &new.app, delivery)).transpose()?.flatten();
    // One that was ignored then may be redelivered on purpose after the configuration was mended.
    if let Some(Known::Became(of)) = known {
        return Ok(Admission::Duplicate { of });
    }
    let now = now_ms();
    if let Some(reason) = held(c, new)? {
        record_delivery(c, new, known, None, now)?;
        return Ok(Admission::Held { reason });
    }
    let replaced = queue::replaced_on_arrival(&within_reach(c, new)?, &new.request);
    let commit = match &new.request {
        Request::Deploy { commit, .. } => commit.as_ref().map(CommitSha::as_str),
        _ => None,
    };
    c.prepare_cached(
        "INSERT INTO deployments (id, app, trigger, request, status, commit_sha, git_ref, pusher, author, subject, queued_at)
         VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        numbers.next(c)?,
        new.app.as_str(),
        new.trigger.as_str(),
        to_json(&new.request)?,
        commit,
        new.git_ref.as_ref().map(GitRef::as_str),
        new.pusher,
        new.author,
        new.subject,
        now,
    ])?;
    let id = DeploymentId(c.last_insert_rowid());
    record_delivery(c, new, known, Some(id), now)?;
    for old in &replaced {
        end_waiting(c, *old, &Finish::replaced_by(id), now)?;
    }
    Ok(Admission::Queued { id, replaced })
}

/// What an earlier delivery of the same id led to.
#[derive(Clone, Copy)]
enum Known {
    Became(DeploymentId),
    Nothing,
}

fn known_delivery(c: &Connection, app: &AppName, delivery: &str) -> rusqlite::Result<Option<Known>> {
    c.prepare_cached("SELECT deployment FROM deliveries WHERE app = ? AND delivery = ?")?
        .query_row(params![app.as_str(), DeliveryKey::of(delivery)], |row| row.get::<_, Option<i64>>(0))
        .optional()
        .map(|found| found.map(|of| of.map_or(Known::Nothing, |of| Known::Became(DeploymentId(of)))))
}

fn record_delivery(
    c: &Connection,
    new: &NewDeployment,
    known: Option<Known>,
    deployment: Option<DeploymentId>,
    now: i64,
) -> rusqlite::Result<()> {
    let Some(delivery) = &new.delivery else { return Ok(()) };
    let decision = if deployment.is_some() { "queued" } else { "held" };
    // INSERT OR REPLACE would do both, but keeps a copy of every page it touches in case it fails half-way.
    let sql = match known {
        None => "INSERT INTO deliveries (deployment, decision, at, app, delivery) VALUES (?, ?, ?, ?, ?)",
        Some(_) => "UPDATE deliveries SET deployment = ?, decision = ?, at = ? WHERE app = ? AND delivery = ?",
    };
    let key = DeliveryKey::of(delivery);
    c.prepare_cached(sql)?.execute(params![deployment.map(|id| id.0), decision, now, new.app.as_str(), key])?;
    Ok(())
}

/// Why the commit of `new` is held, unless a person asks for it.
fn held(c: &Connection, new: &NewDeployment) -> rusqlite::Result<Option<String>> {
    let Request::Deploy { commit: Some(commit), .. } = &new.request else { return Ok(None) };
    if matches!(new.trigger, Trigger::Api | Trigger::Cli) {
        return Ok(None);
    }
    c.prepare_cached("SELECT held_reason FROM apps WHERE app = ? AND held_commit = ?")?
        .query_row(params![new.app.as_str(), commit.as_str()], |row| row.get(0))
        .optional()
}

fn waiting(c: &Connection, app: &AppName) -> rusqlite::Result<Vec<Waiting>> {
    c.prepare_cached(WAITING)?.query_map(params![app.as_str()], read_waiting)?.collect()
}

/// Those of the waiting that `new` could replace: a push must not have to read a queue of thousands.
fn within_reach(c: &Connection, new: &NewDeployment) -> rusqlite::Result<Vec<Waiting>> {
    let Reach::Commits(commits) = queue::reach(&new.request) else { return waiting(c, &new.app) };
    let [one, other] = commits.map(|commit| commit.map(CommitSha::as_str));
    let mut statement = c.prepare_cached(WAITING_FOR_NONE_OR_ONE_OF_TWO)?;
    let found = statement.query_map(params![new.app.as_str(), one, other], read_waiting)?;
    let mut found: Vec<Waiting> = found.collect::<rusqlite::Result<_>>()?;
    found.sort_by_key(|waiting| waiting.id);
    Ok(found)
}

fn read_waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    let request: String = row.get(1)?;
    Ok(Waiting { id: DeploymentId(row.get(0)?), request: from_json(&request)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::assert_read_by;

    #[test]
    fn a_queue_is_read_without_reading_the_history() {
        assert_read_by(WAITING, "deployments_waiting");
        assert_read_by(WAITING_FOR_NONE_OR_ONE_OF_TWO, "deployments_waiting");
    }
}
