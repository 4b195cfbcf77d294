//! The app's requests, counted while a rollout goes on and compared with how it answered before.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;

use super::{Active, DriverTask, Round, Signal};
use crate::model::{AppName, DeploymentId, InstanceId, ServiceName};
use crate::proxy;
use crate::proxy::control::InstanceCounts;
use crate::rollout::fleet::{Member, Task};
use crate::rollout::machine::Event;
use crate::rollout::tally::Guests;
use crate::rollout::watch::{Answers, History, errors_jumped, new_instances_fail};

/// Between two counts of the requests.
const COUNT_PAUSE: Duration = Duration::from_millis(500);

/// What the proxy had counted of the app at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Count {
    /// Which process counted.
    pub boot: String,
    app: Answers,
    /// Of every app.
    pub instances: BTreeMap<InstanceId, InstanceCounts>,
}

/// What a rollout is judged by.
pub(super) struct Counting {
    /// `None`: only a canary's sides are compared.
    history: Option<History>,
    _task: Task,
    /// The first count of the watch is what the later ones are compared with; so is the first of a new proxy process,
    /// which begins at zero.
    at_watch: Option<Count>,
    /// What the instances answered that are replaced or stay. The proxy forgets those that are gone.
    old: BTreeMap<InstanceId, (ServiceName, Answers)>,
}

impl DriverTask {
    /// Counts the app's requests again and again until the rollout ends, if it is to be judged by them. Asked again, it
    /// begins anew: what was counted and not yet heard belongs to the time before.
    pub(super) fn count(&mut self) {
        let Some(active) = &mut self.rollout else { return };
        let history = active.judges_errors();
        let analysed = active.assignment.canary.as_ref().is_some_and(|plan| plan.analysis);
        if history.is_none() && !analysed {
            return;
        }
        let round = active.round;
        let task = self.count_again_and_again(round);
        let Some(active) = &mut self.rollout else { return };
        let old = active.counting.take().map(|before| before.old).unwrap_or_default();
        active.counting = Some(Counting { history, _task: task, at_watch: None, old });
    }

    /// Counts until the task is dropped.
    pub(super) fn count_again_and_again(&self, round: Round) -> Task {
        let (routes, app, signals) = (self.parts.routes.clone(), self.app.clone(), self.signals.clone());
        let counting = tokio::spawn(async move {
            let mut guests = Guests::default();
            loop {
                let counts = routes.proxy().counts().await;
                let canary = routes.canary_of(&app).await;
                let Some(signals) = signals.upgrade() else { return };
                // A proxy that does not answer has counted nothing that could be told from zero.
                if let Some(counts) = counts {
                    let of_canary = guests.take(&counts, &canary);
                    let _ = signals.send(Signal::Counted(round, Count::of(&app, counts, of_canary)));
                }
                drop(signals);
                sleep(COUNT_PAUSE).await;
            }
        });
        Task::new(counting.abort_handle())
    }

    /// Judges the new instances from the first request on that they answer, and in the watch the whole app.
    pub(super) async fn counted(&mut self, count: Count) {
        self.analyse(&count).await;
        let Some(active) = &mut self.rollout else { return };
        let is_watching = active.machine.is_watching();
        let Some(counting) = &mut active.counting else { return };
        let new_fail = counting.new_instances(&count, &self.members, active.assignment.deployment);
        let jumped = if is_watching { counting.watched(count) } else { None };
        if let Some(why) = jumped.or(new_fail) {
            self.feed(Event::ErrorsJumped(why)).await;
        }
    }
}

impl Active {
    /// By which history; `None` when what is answered decides nothing: on the way back, and where no watch is wanted.
    fn judges_errors(&self) -> Option<History> {
        let forward = self.assignment.reverting.is_none() && !self.assignment.policy.watch.is_zero();
        self.assignment.history.filter(|_| forward)
    }
}

impl Count {
    /// Without what a permanent canary answered in the app's place.
    fn of(app: &AppName, counts: proxy::Counts, of_canary: Answers) -> Self {
        let proxy::Counts { apps, instances, boot, .. } = counts;
        let all = apps.get(app).copied().map(Answers::from).unwrap_or_default();
        Self { boot, app: all.since(of_canary), instances }
    }
}

impl Counting {
    fn watched(&mut self, count: Count) -> Option<String> {
        match &self.at_watch {
            Some(first) if first.boot == count.boot => errors_jumped(self.history?, count.app.since(first.app)),
            _ => {
                self.at_watch = Some(count);
                None
            }
        }
    }

    /// Compares, service by service, the instances of this deployment with those there were before.
    fn new_instances(
        &mut self,
        count: &Count,
        members: &BTreeMap<InstanceId, Member>,
        deployment: DeploymentId,
    ) -> Option<String> {
        let history = self.history?;
        let mut new: BTreeMap<ServiceName, Answers> = BTreeMap::new();
        for (id, counts) in &count.instances {
            let Some(member) = members.get(id) else { continue };
            let (service, answers) = (&member.spec.service.name, Answers::from(*counts));
            if member.deployment == deployment {
                *new.entry(service.clone()).or_default() += answers;
            } else {
                self.old.insert(id.clone(), (service.clone(), answers));
            }
        }
        new.iter().find_map(|(service, answers)| {
            let mut old = Answers::default();
            for (_, before) in self.old.values().filter(|(of, _)| of == service) {
                old += *before;
            }
            new_instances_fail(history, service, old, *answers)
        })
    }
}
