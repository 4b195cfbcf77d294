//! The outbox: what is to be told, written with the state that it tells, and how far each receiver has been told.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, StoreError, from_json, timestamp, to_json};
use crate::config::NoticeKind;
use crate::model::DeploymentId;

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Grows; a receiver's cursor is the last one it was told.
    pub id: i64,
    /// About what.
    pub about: About,
    /// What.
    pub kind: NoticeKind,
    /// Since when.
    pub at: Timestamp,
}

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// A deployment.
    Deployment(DeploymentId),
    /// An outage of the engine, by its number.
    Outage(i64),
    /// An alert about a canary, by its number.
    CanaryAlert(i64),
    /// An alert about a certificate, by its number.
    CertificateAlert(i64),
}

impl Store {
    /// The next notice for `target`, a receiver's stable name. A receiver seen for the first time starts with what
    /// happens from then on.
    pub async fn next_notice(&self, target: &str) -> Result<Option<Notice>, StoreError> {
        let target = target.to_owned();
        self.call(move |c| {
            c.execute(
                "INSERT INTO notice_cursors (target, delivered)
                 SELECT ?, coalesce(max(id), 0) FROM notices WHERE true ON CONFLICT DO NOTHING",
                params![target],
            )?;
            c.query_row(
                "SELECT id, deployment, outage, canary_alert, certificate_alert, kind, at FROM notices
                 WHERE id > (SELECT delivered FROM notice_cursors WHERE target = ?) ORDER BY id LIMIT 1",
                params![target],
                read,
            )
            .optional()
        })
        .await
    }

    /// `target` has been told `notice` (or never will be: then the caller has said so in the agent's log).
    /// `message` is the receiver's id of the message about a deployment, for editing it later.
    pub async fn notice_done(&self, target: &str, notice: &Notice, message: Option<String>) -> Result<(), StoreError> {
        let (target, notice) = (target.to_owned(), notice.clone());
        self.call(move |c| {
            c.execute(
                "UPDATE notice_cursors SET delivered = max(delivered, ?) WHERE target = ?",
                params![notice.id, target],
            )?;
            if let (Some(message), About::Deployment(deployment)) = (message, notice.about) {
                c.execute(
                    "INSERT INTO notice_messages (target, deployment, message) VALUES (?, ?, ?)
                     ON CONFLICT DO UPDATE SET message = excluded.message",
                    params![target, deployment.0, message],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// The receiver's id of the message about a deployment, when it has got one.
    pub async fn notice_message(&self, target: &str, deployment: DeploymentId) -> Result<Option<String>, StoreError> {
        let target = target.to_owned();
        self.read(move |c| {
            c.query_row(
                "SELECT message FROM notice_messages WHERE target = ? AND deployment = ?",
                params![target, deployment.0],
                |row| row.get(0),
            )
            .optional()
        })
        .await
    }
}

/// Puts something to tell into the outbox, in the transaction that it tells of.
pub(super) fn add_notice(c: &Connection, about: About, kind: NoticeKind, now: i64) -> rusqlite::Result<()> {
    let (column, id) = match about {
        About::Deployment(id) => ("deployment", id.0),
        About::Outage(id) => ("outage", id),
        About::CanaryAlert(id) => ("canary_alert", id),
        About::CertificateAlert(id) => ("certificate_alert", id),
    };
    let sql = format!("INSERT INTO notices ({column}, kind, at) VALUES (?, ?, ?)");
    c.prepare_cached(&sql)?.execute(params![id, to_json(&kind)?, now])?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Notice> {
    let [deployment, outage, canary]: [Option<i64>; 3] = [row.get(1)?, row.get(2)?, row.get(3)?];
    let kind: String = row.get(5)?;
    Ok(Notice {
        id: row.get(0)?,
        about: match (deployment, outage, canary) {
            (Some(id), ..) => About::Deployment(DeploymentId(id)),
            (_, Some(id), _) => About::Outage(id),
            (.., Some(id)) => About::CanaryAlert(id),
            (None, None, None) => About::CertificateAlert(row.get(4)?),
        },
        kind: from_json(&kind)?,
        at: timestamp(row.get(6)?),
    })
}
