//! Numbers are never used twice, also after an older journal was restored: instances of deployments that it does not
//! know may still run, and must not be taken for those of new ones.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rusqlite::{Connection, OptionalExtension, params};

use super::deployments::{Finish, end};
use super::{Store, StoreError, now_ms};
use crate::model::{AppName, DeploymentId, ReleaseNumber, Status};

/// In `meta`: when the journal was restored, until it is known which numbers are in use.
pub(super) const RESTORED_AT: &str = "restored_at";
/// In `meta`: the highest number of a deployment that the engine has shown.
const DEPLOYMENT: &str = "numbered.deployment";
/// In `meta`, followed by the app's name: the same of its releases.
pub(super) const RELEASE: &str = "numbered.release.";

/// What the engine has shown.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// New deployments are numbered beyond this one; 0 = the journal itself has a higher one.
    floor: AtomicI64,
    /// Nothing new is numbered before the engine was asked.
    unknown: AtomicBool,
}

impl Numbers {
    /// As an earlier life of the agent left them.
    pub fn read(c: &Connection) -> rusqlite::Result<Self> {
        let floor = meta(c, DEPLOYMENT)?.and_then(|text| text.parse().ok()).unwrap_or(0);
        let unknown = meta(c, RESTORED_AT)?.is_some();
        Ok(Self { floor: AtomicI64::new(floor), unknown: unknown.into() })
    }

    /// The number of the next deployment, where it is not simply the next one.
    pub fn next(&self, c: &Connection) -> rusqlite::Result<Option<i64>> {
        let floor = self.floor.load(Ordering::Relaxed);
        if floor == 0 {
            return Ok(None);
        }
        let highest = highest(c)?;
        if highest >= floor {
            return Ok(None);
        }
        Ok(Some(floor + 1))
    }

    pub fn are_unknown(&self) -> bool {
        self.unknown.load(Ordering::Acquire)
    }
}

/// What was to be put right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Settled {
    /// Deployments that had not ended when the backup was made.
    pub ended: Vec<DeploymentId>,
    /// The highest number on the engine, where the journal has none as high.
    pub beyond: Option<DeploymentId>,
}

impl Store {
    /// Whether the journal was restored and the engine has not been asked since.
    pub fn was_restored(&self) -> bool {
        self.numbers.are_unknown()
    }

    /// Numbers new deployments and releases beyond those that run on the engine. After a restore it also ends what had
    /// not ended when the backup was made: what became of it is not on record, and its number is taken.
    pub async fn number_beyond(
        &self,
        deployment: DeploymentId,
        releases: BTreeMap<AppName, ReleaseNumber>,
    ) -> Result<Settled, StoreError> {
        let numbers = self.numbers.clone();
        let settled = self.call(move |c| {
            let mut settled = Settled::default();
            if numbers.are_unknown() {
                settled.ended = end_unfinished(c)?;
                c.execute("DELETE FROM meta WHERE key = ?", [RESTORED_AT])?;
            }
            if deployment.0 > highest(c)? {
                settled.beyond = Some(deployment);
                raise(c, DEPLOYMENT, deployment.0)?;
                numbers.floor.fetch_max(deployment.0, Ordering::Relaxed);
            }
            for (app, number) in &releases {
                let sql = "SELECT coalesce(max(number), 0) FROM releases WHERE app = ?";
                let known: u32 = c.query_row(sql, [app.as_str()], |row| row.get(0))?;
                if number.0 > known {
                    raise(c, &format!("{RELEASE}{app}"), number.0.into())?;
                }
            }
            Ok(settled)
        });
        let settled = settled.await?;
        self.numbers.unknown.store(false, Ordering::Release);
        Ok(settled)
    }
}

fn end_unfinished(c: &Connection) -> rusqlite::Result<Vec<DeploymentId>> {
    let mut statement = c.prepare("SELECT id FROM deployments WHERE finished_at IS NULL ORDER BY id")?;
    let unfinished: Vec<i64> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let reason =
        "the journal was restored from a backup that was made before this one ended; how it ended is not on record";
    let finish = Finish { status: Status::Cancelled, reason: Some(reason.into()), superseded_by: None, hold: false };
    unfinished
        .into_iter()
        .map(DeploymentId)
        .filter_map(|id| end(c, id, &finish).map(|ended| ended.then_some(id)).transpose())
        .collect()
}

fn highest(c: &Connection) -> rusqlite::Result<i64> {
    c.prepare_cached("SELECT coalesce(max(id), 0) FROM deployments")?.query_row([], |row| row.get(0))
}

fn raise(c: &Connection, key: &str, number: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value
               WHERE CAST(value AS INTEGER) < CAST(excluded.value AS INTEGER)";
    c.execute(sql, params![key, number.to_string()]).map(drop)
}

fn meta(c: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    c.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get(0)).optional()
}

/// Marks a journal as restored.
pub(super) fn mark_restored(c: &Connection) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value";
    c.execute(sql, params![RESTORED_AT, now_ms().to_string()]).map(drop)
}
