//! Deployments' log lines.

use jiff::Timestamp;
use rusqlite::params;

use super::{Store, StoreError, now_ms, timestamp};
use crate::model::DeploymentId;

/// One line of a deployment's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Counted per deployment, from 1.
    pub seq: u64,
    /// When it was written.
    pub at: Timestamp,
    /// Without line end.
    pub line: String,
}

impl Store {
    /// Adds a line soon, without waiting.
    pub fn post_log(&self, id: DeploymentId, seq: u64, line: String) {
        self.post(move |c| {
            c.prepare_cached("INSERT OR IGNORE INTO log (deployment, seq, at, line) VALUES (?, ?, ?, ?)")?
                .execute(params![id.0, seq as i64, now_ms(), line])?;
            Ok(())
        });
    }

    /// The lines after `after` (0 = from the start), at most `limit`.
    pub async fn log_lines(&self, id: DeploymentId, after: u64, limit: u32) -> Result<Vec<LogLine>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT seq, at, line FROM log WHERE deployment = ? AND seq > ? ORDER BY seq LIMIT ?",
            )?;
            let rows = statement.query_map(params![id.0, after as i64, limit], |row| {
                Ok(LogLine { seq: row.get::<_, i64>(0)?.unsigned_abs(), at: timestamp(row.get(1)?), line: row.get(2)? })
            })?;
            rows.collect()
        })
        .await
    }

    /// The number of the last line; 0 when there is none.
    pub async fn last_log_seq(&self, id: DeploymentId) -> Result<u64, StoreError> {
        self.read(move |c| {
            c.query_row("SELECT coalesce(max(seq), 0) FROM log WHERE deployment = ?", params![id.0], |row| {
                row.get::<_, i64>(0).map(i64::unsigned_abs)
            })
        })
        .await
    }
}
