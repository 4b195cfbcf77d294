//! One worker per app: takes the next deployment when the last one has ended, and first of all the one that an earlier
//! life of the agent left unfinished.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::source::Want;
use super::{Again, Deployer, Told};
use crate::config::App;
use crate::journal::DeployLog;
use crate::queue::{self, Ancestry, Choice, Waiting};
use crate::store::{Deployment, Finish, StoreError};

/// Between two attempts while the journal fails.
const PAUSE: Duration = Duration::from_secs(5);

/// Whether what ended deployments left on the engine has been removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleared {
    NotYet,
    /// In vain, and that was told.
    Tried,
    All,
}

impl Deployer {
    /// Runs the app's deployments until the agent ends, or until the app departs and nothing of it is under way. `wake`
    /// says that something was queued, or is to end.
    pub async fn work(self, wake: Arc<Notify>) {
        if matches!(self.store.unfinished(&self.app).await, Ok(None)) {
            self.expect_live().await;
        }
        let mut cleared = Cleared::NotYet;
        let mut again = Again::AgentRestarted;
        let mut engine = self.presence.mark();
        while !self.shutdown.is_cancelled() && !self.has_departed().await {
            // What is begun without it would only be broken off.
            let there = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.until_engine_is_there(&mut engine) => true,
                () = wake.notified() => false,
            };
            if !there {
                if let Err(err) = self.end_cancelled().await {
                    tracing::error!(app = %self.app, %err, "a cancellation waits for the journal");
                }
                continue;
            }
            let ran = match self.next().await {
                Ok(Some(deployment)) => {
                    let ran = self.run(deployment, again).await;
                    if ran.is_err() {
                        again = Again::JournalBack;
                    }
                    ran.map(Some)
                }
                Ok(None) => Ok(None),
                Err(err) => Err(err),
            };
            if matches!(ran, Ok(Some(_))) {
                cleared = Cleared::NotYet;
            }
            // What goes on later still needs what it has on the engine.
            if matches!(ran, Ok(None | Some(Told::Ended))) {
                cleared = self.clear_up_unless(cleared).await;
            }
            let rest = match ran {
                Ok(Some(Told::Waits)) => {
                    again = Again::SecretAbsent;
                    Some(PAUSE)
                }
                Ok(Some(told)) => {
                    again = if told == Told::BrokenOff { Again::EngineBack } else { Again::AgentRestarted };
                    continue;
                }
                Ok(None) => (cleared != Cleared::All).then_some(PAUSE),
                Err(err) => {
                    tracing::error!(app = %self.app, %err, "deployments wait for the journal");
                    Some(PAUSE)
                }
            };
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = wake.notified() => {}
                () = pause(rest) => {}
            }
        }
    }

    /// What waits has ended with the app, or is for the one that comes under its name.
    async fn has_departed(&self) -> bool {
        self.departing.is_cancelled() && matches!(self.store.unfinished(&self.app).await, Ok(None))
    }

    /// Also what an earlier life of the agent had no time for. While the engine is away nothing can be removed: it is
    /// tried again until it was.
    async fn clear_up_unless(&self, cleared: Cleared) -> Cleared {
        if cleared == Cleared::All {
            return cleared;
        }
        // Also when the agent is about to end: a removal that is cut off may leave an image without its name.
        match self.clear_up().await {
            Ok(()) => Cleared::All,
            Err(err) => {
                if cleared == Cleared::NotYet {
                    tracing::warn!(app = %self.app, "{err:#}; it is tried again");
                }
                Cleared::Tried
            }
        }
    }

    async fn next(&self) -> Result<Option<Deployment>, StoreError> {
        if let Some(unfinished) = self.store.unfinished(&self.app).await? {
            return Ok(Some(unfinished));
        }
        if self.departing.is_cancelled() {
            return Ok(None);
        }
        let waiting = self.store.waiting(&self.app).await?;
        let Some(choice) = self.choose(waiting).await else { return Ok(None) };
        // Together, so that a long queue costs few fsyncs.
        let ending = choice.superseded.into_iter().map(|gone| {
            let mut finish = Finish::replaced_by(gone.by);
            if gone.contained {
                finish.reason = Some(format!("{} already contains its commit", gone.by));
            }
            self.journal.finish(&self.app, gone.id, finish)
        });
        try_join_all(ending).await?;
        self.store.deployment(choice.run).await
    }

    async fn choose(&self, waiting: Vec<Waiting>) -> Option<Choice> {
        let unjudged = |waiting: &[Waiting]| queue::choose(waiting, |_, _| Ancestry::Unrelated);
        let app = self.config.borrow().apps.get(&self.app).cloned();
        let Some(app) = app.filter(|_| queue::needs_ancestry(&waiting)) else { return unjudged(&waiting) };
        self.fetch_branch(&app).await;
        let asked = waiting.clone();
        let judged = self.mirrors.judge(&app, move |ancestry| queue::choose(&asked, ancestry)).await;
        judged.unwrap_or_else(|err| {
            tracing::error!(app = %self.app, %err, "the queue goes by arrival: its commits cannot be compared");
            unjudged(&waiting)
        })
    }

    /// Best effort: what is not in the mirror counts as unrelated, and then the newest request wins.
    async fn fetch_branch(&self, app: &App) {
        let silent = DeployLog::new(|_| {});
        let want = Want::Branch(app.branch.clone());
        if let Err(err) = self.mirrors.fetch(app, &want, &silent, &CancellationToken::new()).await {
            tracing::warn!(app = %self.app, %err, "the branch could not be fetched to order the queue");
        }
    }
}

async fn pause(rest: Option<Duration>) {
    match rest {
        Some(rest) => tokio::time::sleep(rest).await,
        None => std::future::pending().await,
    }
}
