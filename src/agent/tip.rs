//! The tip of the branch that an app follows, as it was last seen: by a comparison, or in a push. When it is not what is
//! live, people are told why.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Agent;
use crate::config::App;
use crate::model::{AppName, CommitSha, Status, Trigger};
use crate::queue::Request;
use crate::store::{Deployment, NewDeployment, Release, StoreError};

/// The apps' tips. After a start of the agent they are not known until they were seen again.
#[derive(Debug, Default)]
pub(super) struct Tips(Mutex<BTreeMap<AppName, Seen>>);

/// Where a tip was seen: of another repository or branch it says nothing.
#[derive(Debug)]
struct Seen {
    repo: String,
    branch: String,
    tip: CommitSha,
}

/// A tip that is not live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotLive {
    /// The tip.
    pub commit: CommitSha,
    /// Why, in words that go on after "it is not live".
    pub why: String,
}

impl Tips {
    /// This is where an app's branch is now.
    pub fn saw(&self, app: &App, tip: CommitSha) {
        let seen = Seen { repo: app.repo.to_string(), branch: app.branch.clone(), tip };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(app.name.clone(), seen);
    }

    /// Whether the branch that an app follows has been there in this life of the agent.
    pub fn was_seen(&self, app: &App) -> bool {
        self.of(app).is_some()
    }

    fn of(&self, app: &App) -> Option<CommitSha> {
        let tips = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = tips.get(&app.name)?;
        (seen.branch == app.branch && seen.repo == app.repo.to_string()).then(|| seen.tip.clone())
    }
}

impl Agent {
    /// A push of an app's branch says where that is.
    pub(super) fn saw_push(&self, new: &NewDeployment) {
        let follows = matches!(new.trigger, Trigger::Push | Trigger::PostReceive | Trigger::Reconcile);
        if let Request::Deploy { commit: Some(commit), .. } = &new.request
            && let Some(app) = self.config().apps.get(&new.app).filter(|_| follows)
        {
            self.tips.saw(app, commit.clone());
            self.comparisons.pushed(&app.name);
        }
    }

    /// The tip of an app's branch, when it was seen and is not live, nor on its way. `under_way` is the deployment that
    /// runs now.
    pub async fn tip_not_live(
        &self,
        app: &App,
        live: Option<&Release>,
        under_way: Option<&Deployment>,
    ) -> Result<Option<NotLive>, StoreError> {
        let Some(commit) = self.tips.of(app) else { return Ok(None) };
        if live.is_some_and(|live| live.commit == commit) {
            return Ok(None);
        }
        let last = self.store.last_of_commit(&app.name, &commit).await?;
        let held = self.store.held_commit(&app.name).await?;
        let is_held = held.is_some_and(|(held, _)| held == commit);
        Ok(why_not_live(last.as_ref(), is_held, under_way).map(|why| NotLive { commit, why }))
    }
}

/// Why a commit is not live of which this is the last deployment; `None` while one of it is under way.
fn why_not_live(last: Option<&Deployment>, is_held: bool, under_way: Option<&Deployment>) -> Option<String> {
    let brings = |running: &Deployment| match running.request {
        // Of the branch's tip: not resolved yet.
        Request::Deploy { .. } => running.commit.is_none(),
        _ => false,
    };
    if under_way.is_some_and(|running| brings(running) || last.is_some_and(|last| last.id == running.id)) {
        return None;
    }
    let Some(last) = last else { return Some("no deployment of it is on record".to_owned()) };
    let id = last.id;
    let by_itself = if is_held { "; it is held, and not tried again by itself" } else { "" };
    match last.status {
        Status::Queued => Some(match under_way {
            Some(running) => format!("{id} waits for {}", running.id),
            None => format!("{id} waits"),
        }),
        Status::Failed => Some(format!("{id} failed{by_itself}")),
        Status::RolledBack => Some(format!("{id} was rolled back{by_itself}")),
        Status::Cancelled => Some(format!("{id} was cancelled")),
        Status::Succeeded => Some(format!("{id} succeeded, and another release was made live after it")),
        // The newer one is the tip's now, or the live release has the commit in it, as the reason says.
        Status::Superseded => last.superseded_by.is_none().then(|| match &last.reason {
            Some(reason) => format!("{id} was superseded: {reason}"),
            None => format!("{id} was superseded"),
        }),
        Status::Preparing | Status::Building | Status::Releasing | Status::RollingOut | Status::Watching => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::DeploymentId;
    use crate::store::Requests;

    fn deployment(id: i64, status: Status) -> Deployment {
        Deployment {
            id: DeploymentId(id),
            app: "shop".parse().unwrap(),
            trigger: Trigger::Push,
            request: Request::Deploy { commit: None, before: None, forced: false },
            status,
            commit: Some("1a2b3c4d5e6f708192a3b4c5d6e7f80912345678".parse().unwrap()),
            git_ref: None,
            pusher: None,
            author: None,
            subject: None,
            release: None,
            reason: None,
            superseded_by: None,
            cancel_asked: false,
            queued_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            requests: Requests::default(),
            phases: Vec::new(),
        }
    }

    fn why(last: &Deployment, is_held: bool, under_way: Option<&Deployment>) -> Option<String> {
        why_not_live(Some(last), is_held, under_way)
    }

    #[test]
    fn why_a_tip_is_not_live() {
        let of = |status| why(&deployment(41, status), false, None).unwrap();
        assert_eq!(of(Status::Failed), "#41 failed");
        assert_eq!(of(Status::RolledBack), "#41 was rolled back");
        assert_eq!(of(Status::Cancelled), "#41 was cancelled");
        assert_eq!(of(Status::Succeeded), "#41 succeeded, and another release was made live after it");
        assert_eq!(of(Status::Queued), "#41 waits");
        let held = why(&deployment(41, Status::RolledBack), true, None).unwrap();
        assert_eq!(held, "#41 was rolled back; it is held, and not tried again by itself");
        let other = deployment(40, Status::Watching);
        let waits = why(&deployment(41, Status::Queued), false, Some(&other)).unwrap();
        assert_eq!(waits, "#41 waits for #40");
        assert_eq!(why_not_live(None, false, None).unwrap(), "no deployment of it is on record");
    }

    #[test]
    fn a_tip_that_is_on_its_way_or_gave_way_is_no_news() {
        let running = deployment(41, Status::Building);
        assert_eq!(why(&running, false, Some(&running)), None);
        let unresolved = Deployment { commit: None, ..deployment(42, Status::Preparing) };
        assert_eq!(why(&deployment(41, Status::Failed), false, Some(&unresolved)), None);
        let gave_way = Deployment { superseded_by: Some(DeploymentId(42)), ..deployment(41, Status::Superseded) };
        assert_eq!(why(&gave_way, false, None), None);
        let reason = Some("v7, which is live, already contains 1a2b3c4".to_owned());
        let contained = Deployment { reason, ..deployment(41, Status::Superseded) };
        let said = why(&contained, false, None).unwrap();
        assert_eq!(said, "#41 was superseded: v7, which is live, already contains 1a2b3c4");
    }
}
