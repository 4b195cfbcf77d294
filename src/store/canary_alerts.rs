//! Times at which a permanent canary failed or was down, as people were told of them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::notices::{About, add_notice};
use super::{Store, StoreError, from_json, now_ms, timestamp, to_json, unreadable};
use crate::config::{CanaryOf, Fraction, NoticeKind};
use crate::model::{AppName, DeploymentId};

/// A time at which a canary got no requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryAlert {
    /// Its number.
    pub id: i64,
    /// The canary.
    pub app: AppName,
    /// Whose requests it shares.
    pub production: AppName,
    /// How much of them.
    pub share: Fraction,
    /// How often in a row it compared badly; 0: it is down.
    pub times: u32,
    /// What was wrong with it last.
    pub why: String,
    /// Which deployment of it compared badly.
    pub deployment: Option<DeploymentId>,
    /// Since when.
    pub since: Timestamp,
    /// When it last compared badly.
    pub last_at: Timestamp,
    /// When it was over; `None` = not yet.
    pub ended_at: Option<Timestamp>,
}

/// What is wrong with a canary now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// How often in a row it compared badly; 0: it is down.
    pub times: u32,
    /// In words.
    pub why: String,
    /// Which deployment of it compared badly.
    pub deployment: Option<DeploymentId>,
}

impl Store {
    /// The alerts that have not ended.
    pub async fn open_canary_alerts(&self) -> Result<Vec<CanaryAlert>, StoreError> {
        self.read(|c| {
            let sql = format!("{SELECT} WHERE ended_at IS NULL ORDER BY app");
            c.prepare_cached(&sql)?.query_map([], read)?.collect()
        })
        .await
    }

    /// One alert; `None` when there is none of that number.
    pub async fn canary_alert(&self, id: i64) -> Result<Option<CanaryAlert>, StoreError> {
        self.read(move |c| query(c, "WHERE id = ?", params![id])).await
    }

    /// A canary fails or is down: recorded, and to be told. What is on record already is not told again, only how often it
    /// has failed by now: false.
    pub async fn raise_canary_alert(&self, app: &AppName, of: &CanaryOf, raised: &Raised) -> Result<bool, StoreError> {
        let (app, of, raised) = (app.clone(), of.clone(), raised.clone());
        self.call(move |c| {
            let Raised { times, why, deployment } = raised;
            let now = now_ms();
            match open(c, &app)? {
                Some(before) if (before.times > 0) == (times > 0) => {
                    c.execute(
                        "UPDATE canary_alerts SET times = ?2, why = ?3, deployment = ?4, last_at = ?5
                         WHERE id = ?1 AND times <> ?2",
                        params![before.id, times, why, deployment.map(|id| id.0), now],
                    )?;
                    return Ok(false);
                }
                Some(other) => end(c, &other, now)?,
                None => {}
            }
            c.execute(
                "INSERT INTO canary_alerts (app, production, share, times, why, deployment, since, last_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
                params![app.as_str(), of.app.as_str(), to_json(&of.share)?, times, why, deployment.map(|id| id.0), now],
            )?;
            add_notice(c, About::CanaryAlert(c.last_insert_rowid()), NoticeKind::CanaryDown, now)?;
            Ok(true)
        })
        .await
    }

    /// It is over: recorded, and to be told unless the canary is not wanted any more. False when none was on record.
    pub async fn end_canary_alert(&self, app: &AppName, tell: bool) -> Result<bool, StoreError> {
        let app = app.clone();
        self.call(move |c| {
            let Some(open) = open(c, &app)? else { return Ok(false) };
            let now = now_ms();
            end(c, &open, now)?;
            if tell {
                add_notice(c, About::CanaryAlert(open.id), NoticeKind::CanaryUp, now)?;
            }
            Ok(true)
        })
        .await
    }
}

const SELECT: &str =
    "SELECT id, app, production, share, times, why, deployment, since, last_at, ended_at FROM canary_alerts";

fn open(c: &Connection, app: &AppName) -> rusqlite::Result<Option<CanaryAlert>> {
    query(c, "WHERE app = ? AND ended_at IS NULL", params![app.as_str()])
}

fn end(c: &Connection, alert: &CanaryAlert, now: i64) -> rusqlite::Result<()> {
    c.execute("UPDATE canary_alerts SET ended_at = ? WHERE id = ?", params![now, alert.id]).map(drop)
}

fn query(c: &Connection, clause: &str, params: impl rusqlite::Params) -> rusqlite::Result<Option<CanaryAlert>> {
    c.prepare_cached(&format!("{SELECT} {clause}"))?.query_row(params, read).optional()
}

fn read(row: &Row<'_>) -> rusqlite::Result<CanaryAlert> {
    let name = |column: usize| row.get::<_, String>(column)?.parse::<AppName>().map_err(unreadable);
    Ok(CanaryAlert {
        id: row.get(0)?,
        app: name(1)?,
        production: name(2)?,
        share: from_json(&row.get::<_, String>(3)?)?,
        times: row.get(4)?,
        why: row.get(5)?,
        deployment: row.get::<_, Option<i64>>(6)?.map(DeploymentId),
        since: timestamp(row.get(7)?),
        last_at: timestamp(row.get(8)?),
        ended_at: row.get::<_, Option<i64>>(9)?.map(timestamp),
    })
}
