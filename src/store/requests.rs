//! What became of the app's requests while a deployment replaced its instances. What is not known is `None`, never zero.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, from_json, to_json};
use crate::histogram::Histogram;
use crate::model::{DeploymentId, InstanceId};
use crate::proxy::client::Drained;

/// Requests during a rollout, as the proxy counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// Answered by an instance.
    pub served: Option<u64>,
    /// Those of them that the app itself answered with 5xx.
    pub server_errors: Option<u64>,
    /// Not answered.
    pub failed: Option<u64>,
    /// Given to a second instance.
    pub retried: Option<u64>,
    /// How long answers took to begin before the rollout.
    pub latency_before: Option<Latency>,
    /// And during it.
    pub latency_during: Option<Latency>,
    /// How the replaced instances finished; not known before the requests are.
    #[serde(skip)]
    pub drains: Option<Drains>,
}

/// How long answers took to begin, to the width of a histogram's bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them took less. Microseconds.
    pub p50_us: u64,
    /// One in a hundred took longer. Microseconds.
    pub p99_us: u64,
}

/// Of all instances that were taken out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drains {
    /// Requests ended by the limit; `None` when the proxy did not say so of each instance.
    pub cut_requests: Option<u64>,
    /// Streams ended by the limit; the same.
    pub cut_streams: Option<u64>,
    /// The longest, in milliseconds.
    pub longest_ms: u64,
}

impl Latency {
    /// Of these answers; `None` when none was timed.
    pub fn of(histogram: &Histogram) -> Option<Self> {
        let micros = |q| Some(u64::try_from(histogram.quantile(q)?.as_micros()).unwrap_or(u64::MAX));
        Some(Self { p50_us: micros(0.5)?, p99_us: micros(0.99)? })
    }

    /// Half of them took less.
    pub fn p50(self) -> Duration {
        Duration::from_micros(self.p50_us)
    }

    /// One in a hundred took longer.
    pub fn p99(self) -> Duration {
        Duration::from_micros(self.p99_us)
    }
}

/// `max` of a NULL is NULL: then what is known counts.
const RECORD_DRAIN: &str = "INSERT INTO drains (deployment, instance, cut_requests, cut_streams, took_ms)
     VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (deployment, instance) DO UPDATE SET
         cut_requests = coalesce(max(cut_requests, excluded.cut_requests), cut_requests, excluded.cut_requests),
         cut_streams = coalesce(max(cut_streams, excluded.cut_streams), cut_streams, excluded.cut_streams),
         took_ms = max(took_ms, excluded.took_ms)";

impl Store {
    /// Records the requests of a rollout; said again, the last word counts. Drains are recorded by themselves.
    pub async fn set_requests(&self, id: DeploymentId, requests: Requests) -> Result<(), StoreError> {
        self.call(move |c| {
            let json = to_json(&requests)?;
            c.execute("UPDATE deployments SET requests = ? WHERE id = ?", params![json, id.0])?;
            Ok(())
        })
        .await
    }

    /// Records how an instance finished what it had. Told again after a crash, what is more counts: a proxy that took over
    /// since, or gave the instance requests again, knows nothing of what was cut before.
    pub async fn record_drain(&self, id: DeploymentId, instance: &InstanceId, how: Drained) -> Result<(), StoreError> {
        let instance = instance.to_string();
        let told = |cut: u64| how.confirmed.then_some(cut as i64);
        let (requests, streams) = (told(how.cut_requests), told(how.cut_streams));
        let took = i64::try_from(how.took.as_millis()).unwrap_or(i64::MAX);
        self.call(move |c| {
            c.execute(RECORD_DRAIN, params![id.0, instance, requests, streams, took])?;
            Ok(())
        })
        .await
    }
}

/// What is on record of a deployment that was taken up.
pub(super) fn of_deployment(c: &Connection, id: DeploymentId) -> rusqlite::Result<Requests> {
    let mut statement = c.prepare_cached("SELECT requests FROM deployments WHERE id = ?")?;
    let json = statement.query_row(params![id.0], |row| row.get::<_, Option<String>>(0)).optional()?.flatten();
    let Some(json) = json else { return Ok(Requests::default()) };
    let mut requests: Requests = from_json(&json)?;
    let mut statement = c.prepare_cached(
        "SELECT count(*) = count(cut_requests), coalesce(sum(cut_requests), 0), coalesce(sum(cut_streams), 0),
                coalesce(max(took_ms), 0)
         FROM drains WHERE deployment = ?",
    )?;
    let drains = statement.query_row(params![id.0], |row| {
        let number = |index| row.get::<_, i64>(index).map(i64::unsigned_abs);
        let told: bool = row.get(0)?;
        let (requests, streams, longest_ms) = (number(1)?, number(2)?, number(3)?);
        Ok(Drains { cut_requests: told.then_some(requests), cut_streams: told.then_some(streams), longest_ms })
    })?;
    // An earlier version recorded no drains, and did not count what was retried.
    requests.drains = requests.retried.map(|_| drains);
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::MIGRATIONS;

    #[test]
    fn what_an_earlier_version_counted_is_kept_and_nothing_is_added() {
        let journal = Connection::open_in_memory().unwrap();
        MIGRATIONS[..6].iter().for_each(|sql| journal.execute_batch(sql).unwrap());
        let rows = "INSERT INTO deployments (id, app, trigger, request, status, queued_at, started_at, finished_at, served, failed)
                    VALUES (1, 'shop', 'push', '{}', 'succeeded', 0, 0, 9, 70, 2), (2, 'shop', 'push', '{}', 'failed', 0, 0, 9, 0, 0);
                    INSERT INTO phases (deployment, status, started_at) VALUES (1, 'rolling_out', 1), (2, 'building', 1);";
        journal.execute_batch(rows).unwrap();
        journal.execute_batch(MIGRATIONS[6]).unwrap();
        let rolled = Requests { served: Some(70), server_errors: Some(0), failed: Some(2), ..Requests::default() };
        assert_eq!(of_deployment(&journal, DeploymentId(1)).unwrap(), rolled);
        assert_eq!(of_deployment(&journal, DeploymentId(2)).unwrap(), Requests::default(), "it was never rolled out");
    }

    #[test]
    fn a_drain_that_is_told_again_loses_nothing_of_what_was_told() {
        let journal = Connection::open_in_memory().unwrap();
        MIGRATIONS.iter().for_each(|sql| journal.execute_batch(sql).unwrap());
        let row = r#"INSERT INTO deployments (id, app, trigger, request, status, queued_at, requests)
                     VALUES (1, 'shop', 'push', '{}', 'watching', 0, '{"served": 7, "failed": 0, "retried": 0}');"#;
        journal.execute_batch(row).unwrap();
        let tell = |requests: Option<i64>, streams: Option<i64>, took: i64| {
            journal.execute(RECORD_DRAIN, params![1, "d1-web-1", requests, streams, took]).unwrap();
            of_deployment(&journal, DeploymentId(1)).unwrap().drains.unwrap()
        };
        let unknown = Drains { cut_requests: None, cut_streams: None, longest_ms: 10 };
        assert_eq!(tell(None, None, 10), unknown);
        let known = Drains { cut_requests: Some(0), cut_streams: Some(11), longest_ms: 300 };
        assert_eq!(tell(Some(0), Some(11), 300), known);
        assert_eq!(tell(Some(0), Some(0), 1), known, "by a proxy that knows nothing of it");
        assert_eq!(tell(None, None, 2), known, "by none");
    }

    #[test]
    fn a_drain_of_which_nobody_knows_makes_the_sum_unknown() {
        let journal = Connection::open_in_memory().unwrap();
        MIGRATIONS.iter().for_each(|sql| journal.execute_batch(sql).unwrap());
        let rows = r#"INSERT INTO deployments (id, app, trigger, request, status, queued_at, requests)
                      VALUES (1, 'shop', 'push', '{}', 'watching', 0, '{"served": 7, "failed": 0, "retried": 0}');
                      INSERT INTO drains VALUES (1, 'd1-web-1', 2, 1, 300);"#;
        journal.execute_batch(rows).unwrap();
        let known = Drains { cut_requests: Some(2), cut_streams: Some(1), longest_ms: 300 };
        assert_eq!(of_deployment(&journal, DeploymentId(1)).unwrap().drains, Some(known));
        journal.execute_batch("INSERT INTO drains VALUES (1, 'd1-web-2', NULL, NULL, 900)").unwrap();
        let unknown = Drains { cut_requests: None, cut_streams: None, longest_ms: 900 };
        assert_eq!(of_deployment(&journal, DeploymentId(1)).unwrap().drains, Some(unknown));
    }
}
