//! Times at which the engine did not answer, as people were told of them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::notices::{About, add_notice};
use super::{Store, StoreError, now_ms, timestamp};
use crate::config::NoticeKind;

/// A time at which the engine did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Its number.
    pub id: i64,
    /// Where the engine is.
    pub address: String,
    /// What asking it led to.
    pub why: String,
    /// Since when it did not answer.
    pub since: Timestamp,
    /// When it answered again; `None` = not yet.
    pub ended_at: Option<Timestamp>,
}

impl Store {
    /// The outage that has not ended, if there is one.
    pub async fn open_outage(&self) -> Result<Option<Outage>, StoreError> {
        self.read(open).await
    }

    /// One outage; `None` when there is none of that number.
    pub async fn outage(&self, id: i64) -> Result<Option<Outage>, StoreError> {
        self.read(move |c| query(c, "WHERE id = ?", params![id])).await
    }

    /// The engine has not answered for too long: recorded, and to be told. One that is on record already is not told
    /// again: false.
    pub async fn begin_outage(&self, address: &str, why: &str, since: Timestamp) -> Result<bool, StoreError> {
        let (address, why) = (address.to_owned(), why.to_owned());
        self.call(move |c| {
            if open(c)?.is_some() {
                return Ok(false);
            }
            c.execute(
                "INSERT INTO engine_outages (address, why, since) VALUES (?, ?, ?)",
                params![address, why, since.as_millisecond()],
            )?;
            add_notice(c, About::Outage(c.last_insert_rowid()), NoticeKind::EngineDown, now_ms())?;
            Ok(true)
        })
        .await
    }

    /// The engine answers again: recorded, and to be told. False when no outage was on record.
    pub async fn end_outage(&self) -> Result<bool, StoreError> {
        self.call(|c| {
            let Some(open) = open(c)? else { return Ok(false) };
            let now = now_ms();
            c.execute("UPDATE engine_outages SET ended_at = ? WHERE id = ?", params![now, open.id])?;
            add_notice(c, About::Outage(open.id), NoticeKind::EngineUp, now)?;
            Ok(true)
        })
        .await
    }
}

fn open(c: &Connection) -> rusqlite::Result<Option<Outage>> {
    query(c, "WHERE ended_at IS NULL", [])
}

fn query(c: &Connection, clause: &str, params: impl rusqlite::Params) -> rusqlite::Result<Option<Outage>> {
    let sql = format!("SELECT id, address, why, since, ended_at FROM engine_outages {clause}");
    c.prepare_cached(&sql)?.query_row(params, read).optional()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Outage> {
    Ok(Outage {
        id: row.get(0)?,
        address: row.get(1)?,
        why: row.get(2)?,
        since: timestamp(row.get(3)?),
        ended_at: row.get::<_, Option<i64>>(4)?.map(timestamp),
    })
}
