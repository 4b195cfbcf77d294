//! A lost webhook is only late: at the start and on a timer the branch's tip is compared with the journal.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::comparison::Kind;
use crate::config::{Absent, App, Config};
use crate::deploy;
use crate::model::{AppName, GitRef, Trigger};
use crate::queue::Request;
use crate::store::{Admission, NewDeployment};

/// Where reconciling is switched off, a changed configuration is looked at so often.
const OFF: Duration = Duration::from_secs(60);

/// Reconciles an app until `end`.
pub(super) async fn run(agent: Arc<Agent>, app: AppName, end: CancellationToken) {
    let mut config = agent.watch_config();
    loop {
        let before = absences(&agent.config(), &app);
        let every = agent.config().agent.reconcile;
        match every {
            Some(_) => once(&agent, &app).await,
            None => agent.comparisons.forget(&app),
        }
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(every.unwrap_or(OFF)) => {}
            // What was pushed while one was absent may have been refused, or have failed. An error is an agent that ends.
            _ = config.wait_for(|now| absences(now, &app) != before) => {}
        }
    }
}

/// The secrets of an app that cannot be had.
fn absences(config: &Config, app: &AppName) -> Vec<Absent> {
    config.absent.iter().filter(|absent| absent.app().as_ref() == Some(app)).cloned().collect()
}

/// Compares once, and keeps what was in the way.
async fn once(agent: &Arc<Agent>, name: &AppName) {
    let config = agent.config();
    let Some(app) = config.apps.get(name) else { return };
    // It would fail, at each comparison. That it is absent is told already.
    let absent = config.absent.iter().find(|absent| absent.keeps_from_deploying(name)).map(|absent| absent.to_string());
    if let Some(why) = absent.or_else(|| deploy::spec::absent_secret(app)) {
        tracing::warn!(app = %name, %why, "the branch's tip could not be compared with the journal");
        return;
    }
    match compare(agent, app).await {
        Ok(None) => agent.comparisons.over(name),
        Ok(Some(kind)) => agent.comparisons.met(app, kind, Timestamp::now()),
        Err(why) => agent.comparisons.met(app, Kind::Failed(why), Timestamp::now()),
    }
}

/// Deploys the tip when no deployment of it is on record, or says that there is none. A commit that was deployed before,
/// failed before or was rolled back from by hand has its record and is left alone; one that failed for want of a secret
/// is not.
async fn compare(agent: &Arc<Agent>, app: &App) -> Result<Option<Kind>, String> {
    let name = &app.name;
    let parts = agent.parts().map_err(|err| err.to_string())?;
    let Some(tip) = parts.mirrors.tip(app).await.map_err(|err| err.to_string())? else {
        let live = agent.store.live_release(name).await.map_err(|err| err.to_string())?;
        let is_missed = live.is_some() || agent.tips.was_seen(app);
        return Ok(Some(if is_missed { Kind::Gone } else { Kind::NotYet }));
    };
    agent.tips.saw(app, tip.clone());
    if agent.store.knows_commit(name, &tip).await.map_err(|err| err.to_string())? {
        return Ok(None);
    }
    let new = NewDeployment {
        app: name.clone(),
        trigger: Trigger::Reconcile,
        request: Request::Deploy { commit: Some(tip.clone()), before: None, forced: false },
        git_ref: GitRef::of_branch(&app.branch).ok(),
        pusher: None,
        author: None,
        subject: None,
        delivery: None,
    };
    let admission = agent.submit(new).await.map_err(|err| err.to_string())?;
    if let Admission::Queued { id, .. } = admission {
        tracing::info!(app = %name, commit = tip.short(), deployment = %id, "the branch has a commit that no delivery told of");
    }
    Ok(None)
}
