//! Releases: immutable, numbered per app; which one is live and which ones are good.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, from_json, now_ms, numbers, timestamp, to_json, unreadable};
use crate::config::{ReleaseCommand, RolloutPolicy, Service};
use crate::model::{AppName, CommitSha, DeploymentId, ImageId, ReleaseNumber, ServiceName};

/// A release.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// Of which app.
    pub app: AppName,
    /// Its number.
    pub number: ReleaseNumber,
    /// The deployment that made it.
    pub deployment: DeploymentId,
    /// Of which commit.
    pub commit: CommitSha,
    /// What it is.
    pub body: ReleaseBody,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last went live; `None` = never.
    pub live_at: Option<Timestamp>,
    /// When it first passed its watch; `None` = never.
    pub good_at: Option<Timestamp>,
}

/// The pair of artifacts and the configuration they run with. Secrets are references in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseBody {
    /// Its services.
    pub services: Vec<ReleasedService>,
    /// The release command, where there is one.
    pub release_command: Option<ReleaseCommand>,
    /// How it is rolled out.
    pub rollout: RolloutPolicy,
    /// The commit's author.
    pub author: String,
    /// The commit's subject.
    pub subject: String,
}

/// A service as it is released.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleasedService {
    /// Its settings.
    pub service: Service,
    /// Its image.
    pub image: ImageId,
    /// The key of what the image is made of.
    pub artifact: String,
    /// The digest or id of the base image, where the Dockerfile names one.
    pub base: Option<String>,
}

impl ReleaseBody {
    /// One service by name.
    pub fn service(&self, name: &ServiceName) -> Option<&ReleasedService> {
        self.services.iter().find(|released| released.service.name == *name)
    }
}

impl Store {
    /// The release of `deployment`: made now with the next number, or found when the deployment made it before.
    pub async fn create_release(
        &self,
        app: &AppName,
        deployment: DeploymentId,
        commit: &CommitSha,
        body: ReleaseBody,
    ) -> Result<Release, StoreError> {
        let (app, commit) = (app.clone(), commit.clone());
        self.call(move |c| {
            c.execute(
                "INSERT INTO releases (app, number, deployment, commit_sha, body, created_at)
                 SELECT ?1, max(coalesce((SELECT max(number) FROM releases WHERE app = ?1), 0),
                                coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = ?6 || ?1), 0)) + 1,
                        ?2, ?3, ?4, ?5
                 WHERE NOT EXISTS (SELECT 1 FROM releases WHERE deployment = ?2)",
                params![app.as_str(), deployment.0, commit.as_str(), to_json(&body)?, now_ms(), numbers::RELEASE],
            )?;
            let found = query(c, "WHERE deployment = ?", params![deployment.0])?;
            let release = found.into_iter().next().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            c.execute("UPDATE deployments SET release = ? WHERE id = ?", params![release.number.0, deployment.0])?;
            Ok(release)
        })
        .await
    }

    /// One release by number.
    pub async fn release(&self, app: &AppName, number: ReleaseNumber) -> Result<Option<Release>, StoreError> {
        let app = app.clone();
        self.read(move |c| {
            Ok(query(c, "WHERE app = ? AND number = ?", params![app.as_str(), number.0])?.into_iter().next())
        })
        .await
    }

    /// An app's releases, newest first.
    pub async fn releases(&self, app: &AppName, limit: u32) -> Result<Vec<Release>, StoreError> {
        let app = app.clone();
        self.read(move |c| query(c, "WHERE app = ? ORDER BY number DESC LIMIT ?", params![app.as_str(), limit])).await
    }

    /// The release that is live; `None` before the first.
    pub async fn live_release(&self, app: &AppName) -> Result<Option<Release>, StoreError> {
        let app = app.clone();
        self.read(move |c| {
            let clause = "WHERE app = ?1 AND number = (SELECT live_release FROM apps WHERE app = ?1)";
            Ok(query(c, clause, params![app.as_str()])?.into_iter().next())
        })
        .await
    }

    /// The newest release below the live one that passed its watch: what a rollback without a number returns to.
    pub async fn last_good_release(&self, app: &AppName) -> Result<Option<Release>, StoreError> {
        let app = app.clone();
        self.read(move |c| {
            let clause = "WHERE app = ?1 AND good_at IS NOT NULL
                AND number < coalesce((SELECT live_release FROM apps WHERE app = ?1), number + 1)
                ORDER BY number DESC LIMIT 1";
            Ok(query(c, clause, params![app.as_str()])?.into_iter().next())
        })
        .await
    }

    /// Makes a release the live one. It is `proven` when instances of it ran and passed the watch.
    pub async fn set_live(&self, app: &AppName, number: ReleaseNumber, proven: bool) -> Result<(), StoreError> {
        let app = app.clone();
        self.call(move |c| {
            c.execute(
                "INSERT INTO apps (app, live_release) VALUES (?, ?)
                 ON CONFLICT (app) DO UPDATE SET live_release = excluded.live_release",
                params![app.as_str(), number.0],
            )?;
            c.execute(
                "UPDATE releases SET live_at = ?1, good_at = coalesce(good_at, iif(?4, ?1, NULL))
                 WHERE app = ?2 AND number = ?3",
                params![now_ms(), app.as_str(), number.0, proven],
            )?;
            Ok(())
        })
        .await
    }

    /// The commit that failed and is not deployed again by itself, with the reason.
    pub async fn held_commit(&self, app: &AppName) -> Result<Option<(CommitSha, String)>, StoreError> {
        self.held_where(app, "true").await
    }

    /// The same as long as the branch's tip may be that commit: no deployment that follows the branch has gone well
    /// after it. To people an older one is no news.
    pub async fn held_tip(&self, app: &AppName) -> Result<Option<(CommitSha, String)>, StoreError> {
        let still_the_tip = "NOT EXISTS (
            SELECT 1 FROM deployments WHERE app = ?1 AND status = 'succeeded'
            AND trigger IN ('push', 'post_receive', 'reconcile')
            AND id > (SELECT max(id) FROM deployments WHERE app = ?1 AND commit_sha = held_commit))";
        self.held_where(app, still_the_tip).await
    }

    async fn held_where(
        &self,
        app: &AppName,
        condition: &'static str,
    ) -> Result<Option<(CommitSha, String)>, StoreError> {
        let app = app.clone();
        self.read(move |c| {
            let sql = format!(
                "SELECT held_commit, coalesce(held_reason, '') FROM apps
                 WHERE app = ?1 AND held_commit IS NOT NULL AND {condition}"
            );
            let found: Option<(String, String)> =
                c.query_row(&sql, params![app.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            found.map(|(commit, reason)| Ok((commit.parse().map_err(unreadable)?, reason))).transpose()
        })
        .await
    }

    /// Remembers how many instances of each service a deployment brought live.
    pub async fn set_live_instances(
        &self,
        app: &AppName,
        deployment: DeploymentId,
        instances: &BTreeMap<ServiceName, u32>,
    ) -> Result<(), StoreError> {
        let app = app.clone();
        let instances = to_json(instances).map_err(|err| StoreError::Sqlite(err.to_string()))?;
        self.call(move |c| {
            c.execute(
                "INSERT INTO apps (app, live_deployment, live_instances) VALUES (?, ?, ?)
                 ON CONFLICT (app) DO UPDATE
                 SET live_deployment = excluded.live_deployment, live_instances = excluded.live_instances",
                params![app.as_str(), deployment.0, instances],
            )?;
            Ok(())
        })
        .await
    }

    /// How many instances of each service are live, and which deployment brought them there last.
    pub async fn live_instances(
        &self,
        app: &AppName,
    ) -> Result<Option<(DeploymentId, BTreeMap<ServiceName, u32>)>, StoreError> {
        let app = app.clone();
        self.read(move |c| {
            let sql = "SELECT live_deployment, live_instances FROM apps
                       WHERE app = ? AND live_deployment IS NOT NULL AND live_instances IS NOT NULL";
            let found: Option<(i64, String)> =
                c.query_row(sql, params![app.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            found.map(|(deployment, instances)| Ok((DeploymentId(deployment), from_json(&instances)?))).transpose()
        })
        .await
    }

    /// How many instances of a service a person asked for, given what the configuration says now; a changed
    /// configuration ends the request.
    pub async fn scale(&self, app: &AppName, service: &ServiceName, configured: u32) -> Result<u32, StoreError> {
        let (app, service) = (app.clone(), service.clone());
        self.read(move |c| {
            let asked: Option<u32> = c
                .query_row(
                    "SELECT instances FROM scales WHERE app = ? AND service = ? AND configured = ?",
                    params![app.as_str(), service.as_str(), configured],
                    |row| row.get(0),
                )
                .optional()?;
            Ok(asked.unwrap_or(configured))
        })
        .await
    }

    /// Remembers how many instances of a service a person asks for.
    pub async fn set_scale(
        &self,
        app: &AppName,
        service: &ServiceName,
        configured: u32,
        instances: u32,
    ) -> Result<(), StoreError> {
        let (app, service) = (app.clone(), service.clone());
        self.call(move |c| {
            c.execute(
                "INSERT INTO scales (app, service, instances, configured) VALUES (?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET instances = excluded.instances, configured = excluded.configured",
                params![app.as_str(), service.as_str(), instances, configured],
            )?;
            Ok(())
        })
        .await
    }
}

fn query(c: &Connection, clause: &str, params: impl rusqlite::Params) -> rusqlite::Result<Vec<Release>> {
    let sql = format!(
        "SELECT app, number, deployment, commit_sha, body, created_at, live_at, good_at FROM releases {clause}"
    );
    c.prepare_cached(&sql)?.query_map(params, read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Release> {
    let body: String = row.get(4)?;
    Ok(Release {
        app: row.get::<_, String>(0)?.parse().map_err(unreadable)?,
        number: ReleaseNumber(row.get(1)?),
        deployment: DeploymentId(row.get(2)?),
        commit: row.get::<_, String>(3)?.parse().map_err(unreadable)?,
        body: from_json(&body)?,
        created_at: timestamp(row.get(5)?),
        live_at: row.get::<_, Option<i64>>(6)?.map(timestamp),
        good_at: row.get::<_, Option<i64>>(7)?.map(timestamp),
    })
}
