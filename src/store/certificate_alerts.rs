//! Times at which a certificate could not be had, as people were told of them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::notices::{About, add_notice};
use super::{Store, StoreError, now_ms, timestamp};
use crate::config::NoticeKind;

/// A time at which a certificate could not be ordered or renewed, or the authority not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateAlert {
    /// Its number.
    pub id: i64,
    /// What was wrong, as last seen.
    pub trouble: CertificateTrouble,
    /// When it was over; `None` = not yet.
    pub ended_at: Option<Timestamp>,
    /// Until when the certificate is good that was issued then.
    pub issued_until: Option<Timestamp>,
}

/// What cannot be had, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateTrouble {
    /// For which host; `None`: for all, the authority cannot be used.
    pub host: Option<String>,
    /// Where the authority is.
    pub directory: String,
    /// In words.
    pub why: String,
    /// How often in a row it has failed.
    pub times: u32,
    /// When it failed for the first time.
    pub since: Timestamp,
    /// When the certificate ends, or the first of them, that clients are shown meanwhile; `None`: there is none.
    pub good_until: Option<Timestamp>,
}

impl Store {
    /// The alerts that have not ended.
    pub async fn open_certificate_alerts(&self) -> Result<Vec<CertificateAlert>, StoreError> {
        self.read(|c| {
            let sql = format!("{SELECT} WHERE ended_at IS NULL ORDER BY host");
            c.prepare_cached(&sql)?.query_map([], read)?.collect()
        })
        .await
    }

    /// One alert; `None` when there is none of that number.
    pub async fn certificate_alert(&self, id: i64) -> Result<Option<CertificateAlert>, StoreError> {
        self.read(move |c| query(c, "WHERE id = ?", params![id])).await
    }

    /// A certificate cannot be had: recorded, and to be told. What is on record already is not told again, only how it
    /// stands by now: false.
    pub async fn raise_certificate_alert(&self, trouble: &CertificateTrouble) -> Result<bool, StoreError> {
        let trouble = trouble.clone();
        self.call(move |c| {
            let CertificateTrouble { host, directory, why, times, since, good_until } = trouble;
            let good_until = good_until.map(Timestamp::as_millisecond);
            if let Some(before) = open(c, host.as_deref())? {
                c.execute(
                    "UPDATE certificate_alerts SET directory = ?2, why = ?3, times = ?4, good_until = ?5 WHERE id = ?1",
                    params![before.id, directory, why, times, good_until],
                )?;
                return Ok(false);
            }
            c.execute(
                "INSERT INTO certificate_alerts (host, directory, why, times, since, good_until) VALUES (?, ?, ?, ?, ?, ?)",
                params![host, directory, why, times, since.as_millisecond(), good_until],
            )?;
            let about = About::CertificateAlert(c.last_insert_rowid());
            add_notice(c, about, NoticeKind::CertificateFailed, now_ms())?;
            Ok(true)
        })
        .await
    }

    /// It is over: recorded, and to be told unless nobody wants the certificate any more. False when none was on record.
    pub async fn end_certificate_alert(
        &self,
        host: Option<&str>,
        issued_until: Option<Timestamp>,
        tell: bool,
    ) -> Result<bool, StoreError> {
        let host = host.map(str::to_owned);
        self.call(move |c| {
            let Some(open) = open(c, host.as_deref())? else { return Ok(false) };
            let now = now_ms();
            c.execute(
                "UPDATE certificate_alerts SET ended_at = ?2, issued_until = ?3 WHERE id = ?1",
                params![open.id, now, issued_until.map(Timestamp::as_millisecond)],
            )?;
            if tell {
                add_notice(c, About::CertificateAlert(open.id), NoticeKind::CertificateIssued, now)?;
            }
            Ok(true)
        })
        .await
    }
}

const SELECT: &str =
    "SELECT id, host, directory, why, times, since, good_until, ended_at, issued_until FROM certificate_alerts";

fn open(c: &Connection, host: Option<&str>) -> rusqlite::Result<Option<CertificateAlert>> {
    // As the index has it: the authority's is the one without a host.
    query(c, "WHERE coalesce(host, '') = ? AND ended_at IS NULL", params![host.unwrap_or_default()])
}

fn query(c: &Connection, clause: &str, params: impl rusqlite::Params) -> rusqlite::Result<Option<CertificateAlert>> {
    c.prepare_cached(&format!("{SELECT} {clause}"))?.query_row(params, read).optional()
}

fn read(row: &Row<'_>) -> rusqlite::Result<CertificateAlert> {
    let time = |column: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(timestamp));
    Ok(CertificateAlert {
        id: row.get(0)?,
        trouble: CertificateTrouble {
            host: row.get(1)?,
            directory: row.get(2)?,
            why: row.get(3)?,
            times: row.get(4)?,
            since: timestamp(row.get(5)?),
            good_until: time(6)?,
        },
        ended_at: time(7)?,
        issued_until: time(8)?,
    })
}
