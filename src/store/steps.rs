//! Durable steps: the intent on disk before the act, the outcome after it.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, from_json, now_ms, to_json, unreadable};
use crate::model::{DeploymentId, InstanceId, ServiceName};

/// Names the steps that stop instances: `stop d12-web-3`.
const STOP: &str = "stop ";
/// Names the steps that say how an instance that a deployment had started last ended by itself: `end d12-web-3`.
const END: &str = "end ";
/// The step that says how long a deployment has been told, in milliseconds.
const TIME_TOLD: &str = "time_told";
/// Names the steps that say which instances a deployment left behind to serve: `stand_in d12-web-3`.
const STAND_IN: &str = "stand_in ";

/// The step that says how much of the live release served when a deployment ended.
const SERVED: &str = "served";

/// How much of the live release serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Each of its services.
    pub services: Vec<ServiceServed>,
    /// What serves where it does not.
    pub stand_ins: Vec<InstanceId>,
    /// Why less of it serves than should; `None` where all of it does, or nobody knows.
    pub why: Option<String>,
}

/// How many instances of a service serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceServed {
    /// Which service.
    pub service: ServiceName,
    /// How many there are to be.
    pub wanted: u32,
    /// How many serve.
    pub serving: u32,
}

/// How an instance's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// In words that go on after the instance's name.
    pub why: String,
}

/// What the journal knows of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// Not begun.
    New,
    /// Begun by an earlier life of the agent; whether the act took place must be asked of the world.
    Begun,
    /// Done.
    Done(T),
}

impl Store {
    /// Writes the intent of a step and says what was known of it before.
    pub async fn begin_step<T: DeserializeOwned + Send + 'static>(
        &self,
        id: DeploymentId,
        name: &'static str,
    ) -> Result<Step<T>, StoreError> {
        self.call(move |c| {
            let step = read(c, id, name)?;
            if matches!(step, Step::New) {
                c.execute(
                    "INSERT INTO steps (deployment, name, intent_at) VALUES (?, ?, ?)",
                    params![id.0, name, now_ms()],
                )?;
            }
            Ok(step)
        })
        .await
    }

    /// Writes the outcome of a step that was begun.
    pub async fn end_step<T: Serialize>(
        &self,
        id: DeploymentId,
        name: &'static str,
        outcome: &T,
    ) -> Result<(), StoreError> {
        let outcome = to_json(outcome).map_err(|err| StoreError::Sqlite(err.to_string()))?;
        self.call(move |c| {
            c.execute(
                "UPDATE steps SET outcome = ?, outcome_at = ? WHERE deployment = ? AND name = ?",
                params![outcome, now_ms(), id.0, name],
            )?;
            Ok(())
        })
        .await
    }

    /// How long a deployment has been told, in all lives of the agent, as it was last written.
    pub async fn time_told(&self, id: DeploymentId) -> Result<Duration, StoreError> {
        Ok(match self.step(id, TIME_TOLD).await? {
            Step::Done(ms) => Duration::from_millis(ms),
            Step::New | Step::Begun => Duration::ZERO,
        })
    }

    /// Writes how long a deployment has been told.
    pub async fn set_time_told(&self, id: DeploymentId, told: Duration) -> Result<(), StoreError> {
        let ms = u64::try_from(told.as_millis()).unwrap_or(u64::MAX);
        self.call(move |c| set(c, id, TIME_TOLD, &ms)).await
    }

    /// Writes how an instance ended, soon and without waiting; what was written of an earlier end gives way.
    pub fn record_end(&self, id: DeploymentId, instance: &InstanceId, ended: &Ended) {
        let (name, ended) = (format!("{END}{instance}"), ended.clone());
        self.post(move |c| set(c, id, &name, &ended));
    }

    /// How an instance that a deployment had started last ended.
    pub async fn last_end(&self, id: DeploymentId, instance: &InstanceId) -> Result<Option<Ended>, StoreError> {
        let name = format!("{END}{instance}");
        self.read(move |c| {
            Ok(match read(c, id, &name)? {
                Step::Done(ended) => Some(ended),
                Step::New | Step::Begun => None,
            })
        })
        .await
    }

    /// How much of the live release served when a deployment ended; `None` where that was not looked at.
    pub async fn served(&self, id: DeploymentId) -> Result<Option<Served>, StoreError> {
        Ok(match self.step(id, SERVED).await? {
            Step::Done(served) => Some(served),
            Step::New | Step::Begun => None,
        })
    }

    /// Writes the intent of stopping an instance. The engine goes on with a stop whose caller has died, so an instance
    /// that looks alive after a crash may be about to end.
    pub async fn begin_stop(&self, id: DeploymentId, instance: &InstanceId) -> Result<(), StoreError> {
        self.name_instances(id, STOP, std::slice::from_ref(instance)).await
    }

    /// The instances that a deployment has begun to stop.
    pub async fn stops_begun(&self, id: DeploymentId) -> Result<Vec<InstanceId>, StoreError> {
        self.instances_named(id, STOP).await
    }

    /// Writes that a deployment left these behind to serve, which have passed their gates: they may be what serves also
    /// when they have ended by the next start.
    pub async fn record_stand_ins(&self, id: DeploymentId, instances: &[InstanceId]) -> Result<(), StoreError> {
        self.name_instances(id, STAND_IN, instances).await
    }

    /// The instances that a deployment left behind to serve.
    pub async fn stand_ins(&self, id: DeploymentId) -> Result<Vec<InstanceId>, StoreError> {
        self.instances_named(id, STAND_IN).await
    }

    async fn name_instances(&self, id: DeploymentId, what: &str, instances: &[InstanceId]) -> Result<(), StoreError> {
        let names: Vec<String> = instances.iter().map(|instance| format!("{what}{instance}")).collect();
        self.call(move |c| {
            let sql = "INSERT INTO steps (deployment, name, intent_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
            let mut insert = c.prepare_cached(sql)?;
            names.iter().try_for_each(|name| insert.execute(params![id.0, name, now_ms()]).map(drop))
        })
        .await
    }

    async fn instances_named(&self, id: DeploymentId, what: &'static str) -> Result<Vec<InstanceId>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT substr(name, ?2) FROM steps WHERE deployment = ?1 AND name LIKE ?3";
            let mut statement = c.prepare_cached(sql)?;
            let begun = params![id.0, what.len() as i64 + 1, format!("{what}%")];
            let names = statement.query_map(begun, |row| row.get::<_, String>(0))?;
            names.map(|name| InstanceId::parse(&name?).map_err(unreadable)).collect()
        })
        .await
    }

    /// What is known of a step, without beginning it.
    pub async fn step<T: DeserializeOwned + Send + 'static>(
        &self,
        id: DeploymentId,
        name: &'static str,
    ) -> Result<Step<T>, StoreError> {
        self.read(move |c| read(c, id, name)).await
    }
}

/// Writes how much of the live release serves as a deployment ends.
pub(super) fn record_served(c: &Connection, id: DeploymentId, served: &Served) -> rusqlite::Result<()> {
    record(c, id, SERVED, served)
}

/// Writes a step whose intent is its outcome. What is written already stays.
pub(super) fn record<T: Serialize>(c: &Connection, id: DeploymentId, name: &str, outcome: &T) -> rusqlite::Result<()> {
    let sql = "INSERT INTO steps (deployment, name, intent_at, outcome, outcome_at) VALUES (?1, ?2, ?3, ?4, ?3)
               ON CONFLICT DO NOTHING";
    c.execute(sql, params![id.0, name, now_ms(), to_json(outcome)?]).map(drop)
}

/// The same, and what is written already gives way.
fn set<T: Serialize>(c: &Connection, id: DeploymentId, name: &str, outcome: &T) -> rusqlite::Result<()> {
    let sql = "INSERT INTO steps (deployment, name, intent_at, outcome, outcome_at) VALUES (?1, ?2, ?3, ?4, ?3)
               ON CONFLICT DO UPDATE SET outcome = excluded.outcome, outcome_at = excluded.outcome_at";
    c.execute(sql, params![id.0, name, now_ms(), to_json(outcome)?]).map(drop)
}

fn read<T: DeserializeOwned>(c: &Connection, id: DeploymentId, name: &str) -> rusqlite::Result<Step<T>> {
    let known: Option<Option<String>> = c
        .query_row("SELECT outcome FROM steps WHERE deployment = ? AND name = ?", params![id.0, name], |row| row.get(0))
        .optional()?;
    match known {
        Some(Some(outcome)) => Ok(Step::Done(from_json(&outcome)?)),
        Some(None) => Ok(Step::Begun),
        None => Ok(Step::New),
    }
}
