//! What apps have open: deployments that wait or are under way, of whichever app.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::deployments::{CANCEL_STEP, end};
use super::{Finish, Store, StoreError, steps, unreadable};
use crate::model::{AppName, DeploymentId, Status};

// Each by a partial index, whose condition it repeats word for word; `+id` keeps SQLite from reading by number instead.
const APPS_WITH_WAITING: &str = "SELECT DISTINCT app FROM deployments WHERE status = 'queued'";
const APPS_WITH_UNDER_WAY: &str =
    "SELECT DISTINCT app FROM deployments WHERE started_at IS NOT NULL AND finished_at IS NULL";
const WAITING: &str = "SELECT id FROM deployments WHERE app = ? AND status = 'queued' ORDER BY +id";
const UNDER_WAY: &str =
    "SELECT id FROM deployments WHERE app = ? AND started_at IS NOT NULL AND finished_at IS NULL ORDER BY id";

/// What came of asking for the end of all that an app had open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenCancelled {
    /// These waited, and have ended.
    pub ended: Vec<DeploymentId>,
    /// This one is under way, and is to be undone.
    pub under_way: Option<DeploymentId>,
}

impl Store {
    /// Every app that has a deployment that has not ended, configured or not.
    pub async fn apps_with_open(&self) -> Result<BTreeSet<AppName>, StoreError> {
        self.read(|c| {
            let mut apps = BTreeSet::new();
            for sql in [APPS_WITH_WAITING, APPS_WITH_UNDER_WAY] {
                let mut found = c.prepare_cached(sql)?;
                for app in found.query_map([], |row| row.get::<_, String>(0))? {
                    apps.insert(app?.parse().map_err(unreadable)?);
                }
            }
            Ok(apps)
        })
        .await
    }

    /// Asks for the end of everything that an app has open, for this reason: what waits ends at once.
    pub async fn cancel_open(&self, app: &AppName, why: &str) -> Result<OpenCancelled, StoreError> {
        let (app, why) = (app.clone(), why.to_owned());
        self.call(move |c| {
            let ended = ids(c, WAITING, &app)?;
            for id in &ended {
                let reason = Some(format!("{why} while it waited"));
                end(c, *id, &Finish { status: Status::Cancelled, reason, superseded_by: None, hold: false })?;
            }
            let under_way = ids(c, UNDER_WAY, &app)?.into_iter().next();
            if let Some(id) = under_way {
                c.execute("UPDATE deployments SET cancel_asked = 1 WHERE id = ?", params![id.0])?;
                steps::record(c, id, CANCEL_STEP, &why)?;
            }
            Ok(OpenCancelled { ended, under_way })
        })
        .await
    }
}

fn ids(c: &Connection, sql: &str, app: &AppName) -> rusqlite::Result<Vec<DeploymentId>> {
    let mut found = c.prepare_cached(sql)?;
    found.query_map(params![app.as_str()], |row| row.get(0).map(DeploymentId))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::assert_read_by;

    #[test]
    fn what_is_open_is_read_without_reading_the_history() {
        for sql in [APPS_WITH_WAITING, WAITING] {
            assert_read_by(sql, "deployments_waiting");
        }
        for sql in [APPS_WITH_UNDER_WAY, UNDER_WAY] {
            assert_read_by(sql, "deployments_under_way");
        }
    }
}
