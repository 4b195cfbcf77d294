//! The app's requests, counted in the watch and compared with how it answered before.

use std::time::Duration;

use tokio::time::sleep;

use super::{DriverTask, Signal};
use crate::rollout::fleet::Task;
use crate::rollout::machine::Event;
use crate::rollout::watch::{Answers, errors_jumped};

/// Between two counts of the requests in the watch.
const COUNT_PAUSE: Duration = Duration::from_millis(500);

/// What the proxy had counted of the app at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Count {
    /// Which process counted.
    boot: String,
    answers: Answers,
}

impl DriverTask {
    /// Counts the app's requests again and again until the rollout ends.
    pub(super) fn count(&mut self) {
        let Some(active) = &mut self.rollout else { return };
        let round = active.round;
        let (proxy, app, signals) = (self.parts.routes.proxy().clone(), self.app.clone(), self.signals.clone());
        let counting = tokio::spawn(async move {
            loop {
                let counts = proxy.counts().await;
                let Some(signals) = signals.upgrade() else { return };
                // A proxy that does not answer has counted nothing that could be told from zero.
                if let Some(counts) = counts {
                    let answers = counts.apps.get(&app).copied().map(Answers::from).unwrap_or_default();
                    let _ = signals.send(Signal::Counted(round, Count { boot: counts.boot, answers }));
                }
                drop(signals);
                sleep(COUNT_PAUSE).await;
            }
        });
        active.counting = Some(Task::new(counting.abort_handle()));
    }

    /// The first count of the watch is what the later ones are compared with; so is the first of a new proxy process,
    /// which begins at zero.
    pub(super) async fn counted(&mut self, count: Count) {
        let Some(active) = &mut self.rollout else { return };
        let Some(history) = active.assignment.history else { return };
        match &active.at_watch {
            Some(first) if first.boot == count.boot => {
                if let Some(why) = errors_jumped(history, count.answers.since(first.answers)) {
                    self.feed(Event::ErrorsJumped(why)).await;
                }
            }
            _ => active.at_watch = Some(count),
        }
    }
}
