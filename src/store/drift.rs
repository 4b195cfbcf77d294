//! Drift: what happened to live instances outside of deployments, and what was done about it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::{Store, StoreError, now_ms, timestamp, unreadable};
use crate::model::{AppName, InstanceId};

/// Entries kept per app: an instance that fails for weeks must not fill the disk.
const KEPT: u32 = 1000;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Grows.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// Which instance, where it is about one.
    pub instance: Option<InstanceId>,
    /// What happened and what is done about it, in words that go on after the instance's name.
    pub what: String,
}

impl Store {
    /// Adds an entry; the oldest ones of the app give way.
    pub async fn add_drift(
        &self,
        app: &AppName,
        instance: Option<&InstanceId>,
        what: String,
    ) -> Result<Drift, StoreError> {
        let (app, instance) = (app.clone(), instance.cloned());
        self.call(move |c| add(c, &app, instance, what)).await
    }

    /// Adds an entry about a container that no deployment on record has started; `None`: there is one already.
    pub async fn add_stranger(
        &self,
        app: &AppName,
        container: &str,
        instance: Option<&InstanceId>,
        what: String,
    ) -> Result<Option<Drift>, StoreError> {
        let (app, container, instance) = (app.clone(), container.to_owned(), instance.cloned());
        self.call(move |c| {
            let sql = "INSERT OR IGNORE INTO strangers (app, container) VALUES (?, ?)";
            let is_new = c.execute(sql, params![app.as_str(), container])? > 0;
            is_new.then(|| add(c, &app, instance, what)).transpose()
        })
        .await
    }

    /// The containers of which that was told.
    pub async fn strangers(&self, app: &AppName) -> Result<BTreeSet<String>, StoreError> {
        let app = app.clone();
        self.call(move |c| {
            let mut statement = c.prepare_cached("SELECT container FROM strangers WHERE app = ?")?;
            let told = statement.query_map([app.as_str()], |row| row.get(0))?;
            told.collect()
        })
        .await
    }

    /// These are gone.
    pub async fn forget_strangers(&self, app: &AppName, gone: Vec<String>) -> Result<(), StoreError> {
        let app = app.clone();
        self.call(move |c| {
            let mut statement = c.prepare_cached("DELETE FROM strangers WHERE app = ? AND container = ?")?;
            gone.iter().try_for_each(|container| statement.execute(params![app.as_str(), container]).map(drop))
        })
        .await
    }

    /// An app's entries, newest first.
    pub async fn drift(&self, app: &AppName, limit: u32) -> Result<Vec<Drift>, StoreError> {
        let app = app.clone();
        self.read(move |c| {
            let sql = "SELECT id, at, instance, what FROM drift WHERE app = ? ORDER BY id DESC LIMIT ?";
            let mut statement = c.prepare_cached(sql)?;
            let entries = statement.query_map(params![app.as_str(), limit], |row| {
                let instance: Option<String> = row.get(2)?;
                Ok(Drift {
                    id: row.get(0)?,
                    at: timestamp(row.get(1)?),
                    instance: instance.map(|id| InstanceId::parse(&id)).transpose().map_err(unreadable)?,
                    what: row.get(3)?,
                })
            })?;
            entries.collect()
        })
        .await
    }
}

fn add(c: &Connection, app: &AppName, instance: Option<InstanceId>, what: String) -> rusqlite::Result<Drift> {
    let at = now_ms();
    c.prepare_cached("INSERT INTO drift (app, instance, what, at) VALUES (?, ?, ?, ?)")?.execute(params![
        app.as_str(),
        instance.as_ref().map(InstanceId::as_str),
        what,
        at
    ])?;
    let id = c.last_insert_rowid();
    c.prepare_cached(
        "DELETE FROM drift WHERE app = ?1
         AND id <= (SELECT id FROM drift WHERE app = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![app.as_str(), KEPT])?;
    Ok(Drift { id, at: timestamp(at), instance, what })
}
