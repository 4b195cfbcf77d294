//! The app's requests, counted around a rollout for the watch to compare.

use std::time::Duration;

use tokio::time::sleep;

use super::{DriverTask, Signal};
use crate::rollout::fleet::Task;
use crate::rollout::machine::Event;
use crate::rollout::watch::{Answers, errors_jumped};

/// Between two counts of the requests in the watch.
const COUNT_PAUSE: Duration = Duration::from_millis(500);

/// At which moment of a rollout requests were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CountedAt {
    Begin,
    Watch,
}

impl DriverTask {
    /// Counts the app's requests: once now, or in the watch again and again until the rollout ends.
    pub(super) fn count(&mut self, at: CountedAt) {
        let Some(active) = &mut self.rollout else { return };
        let round = active.round;
        let (proxy, app, signals) = (self.parts.routes.proxy().clone(), self.app.clone(), self.signals.clone());
        let counting = tokio::spawn(async move {
            loop {
                let counts = proxy.counts().await.and_then(|counts| counts.apps.get(&app).copied());
                let Some(signals) = signals.upgrade() else { return };
                let counts = counts.unwrap_or_default();
                let requests = counts.served + counts.failed;
                let answers = Answers { requests, errors: counts.server_errors + counts.failed };
                let _ = signals.send(Signal::Counted(round, at, answers));
                drop(signals);
                if at == CountedAt::Begin {
                    return;
                }
                sleep(COUNT_PAUSE).await;
            }
        });
        active.counting = Some(Task::new(counting.abort_handle()));
    }

    /// The first count of the watch is what the later ones are compared with.
    pub(super) async fn counted(&mut self, at: CountedAt, answers: Answers) {
        let Some(active) = &mut self.rollout else { return };
        match (at, active.at_watch) {
            (CountedAt::Begin, _) => active.before = answers,
            (CountedAt::Watch, None) => active.at_watch = Some(answers),
            (CountedAt::Watch, Some(at_watch)) => {
                if let Some(why) = errors_jumped(active.before, answers.since(at_watch)) {
                    self.feed(Event::ErrorsJumped(why)).await;
                }
            }
        }
    }
}
