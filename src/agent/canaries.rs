//! Looks after the permanent canaries, once a second: whether each is there and answers as well as its production. One that
//! does not is given no requests, people are told once, and once more when it is back. What was told is on disk, so an agent
//! that starts again goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Agent;
use super::adopt::Adoption;
use crate::config::{App, CanaryOf, Config};
use crate::model::{AppName, DeploymentId, Health, InstanceId, ServiceName};
use crate::proxy::Counts;
use crate::rollout::permanent::comparison::Comparison;
use crate::rollout::permanent::{Alarm, Seen, Standing, Watch};
use crate::rollout::routes::Beside;
use crate::store::{CanaryAlert, Raised, StoreError};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// How a canary stands, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryStanding {
    /// Whether it gets its share.
    pub standing: Standing,
    /// Since when.
    pub since: Timestamp,
    /// Why it gets none, or is on trial.
    pub why: Option<String>,
}

/// Before any app is started: which apps are canaries, and which of them get nothing.
pub(super) async fn recall(agent: &Agent) {
    let Ok(parts) = agent.parts() else { return };
    let alerts = open_alerts(agent).await;
    let is_suspended = |alert: &&CanaryAlert| recalled(alert, Duration::ZERO).standing() == Standing::Suspended;
    let suspended: BTreeSet<AppName> = alerts.iter().filter(is_suspended).map(|alert| alert.app.clone()).collect();
    if let Err(err) = parts.routes.set_canaries(&agent.config(), suspended).await {
        tracing::warn!(%err, "the proxy did not take the canaries' shares");
    }
}

async fn open_alerts(agent: &Agent) -> Vec<CanaryAlert> {
    agent.store.open_canary_alerts().await.unwrap_or_else(|err| {
        tracing::error!(%err, "which canaries get no requests could not be read");
        Vec::new()
    })
}

fn recalled(alert: &CanaryAlert, now: Duration) -> Watch {
    let age = Duration::try_from(Timestamp::now().duration_since(alert.last_at)).unwrap_or_default();
    Watch::recalled(alarm_of(alert), alert.deployment, alert.why.clone(), age, now)
}

fn alarm_of(alert: &CanaryAlert) -> Alarm {
    match alert.times {
        0 => Alarm::Down,
        times => Alarm::Suspended { times },
    }
}

/// Looks and tells until the agent ends.
pub async fn look_out(agent: Arc<Agent>) {
    let end = agent.shutdown().clone();
    end.run_until_cancelled(async {
        let mut lookout = Lookout { agent: agent.clone(), began: Instant::now(), watched: BTreeMap::new() };
        for alert in open_alerts(&agent).await {
            lookout.watched.insert(alert.app.clone(), Watched::recalled(&alert));
        }
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            lookout.look().await;
        }
    })
    .await;
}

struct Lookout {
    agent: Arc<Agent>,
    began: Instant,
    watched: BTreeMap<AppName, Watched>,
}

/// One canary.
#[derive(Default)]
struct Watched {
    watch: Watch,
    comparison: Option<Comparison>,
    /// What is on record.
    told: Option<Alarm>,
    shown: Option<CanaryStanding>,
}

impl Watched {
    fn recalled(alert: &CanaryAlert) -> Self {
        let watch = recalled(alert, Duration::ZERO);
        let shown = CanaryStanding { standing: watch.standing(), since: alert.since, why: Some(alert.why.clone()) };
        Self { watch, told: Some(alarm_of(alert)), shown: Some(shown), ..Self::default() }
    }

    /// Why it is worse than production, if it is. Only one that gets requests can be compared.
    fn compare(
        &mut self,
        live: DeploymentId,
        beside: &Beside,
        counts: Option<&Counts>,
        now: Duration,
    ) -> Option<String> {
        if self.watch.standing() != Standing::Serving {
            self.comparison = None;
            return None;
        }
        let comparison = match self.comparison.take() {
            Some(comparison) if !comparison.is_over(live, now) => comparison,
            _ => Comparison::new(live, now),
        };
        // A proxy that does not answer has counted nothing that could be told from zero.
        let counts = counts?;
        let sides =
            beside.sides.iter().filter_map(|(id, is_canary)| Some((id, *is_canary, *counts.instances.get(id)?)));
        self.comparison.insert(comparison).look(&counts.boot, sides)
    }

    fn show(&mut self, standing: Standing, why: Option<String>) {
        let since = self.shown.as_ref().filter(|before| before.standing == standing).map(|before| before.since);
        self.shown = Some(CanaryStanding { standing, since: since.unwrap_or_else(Timestamp::now), why });
    }
}

impl Lookout {
    async fn look(&mut self) {
        let config = self.agent.config();
        self.forget_others(&config).await;
        let canaries: Vec<(&App, &CanaryOf)> =
            config.apps.values().filter_map(|app| Some((app, app.canary_of.as_ref()?))).collect();
        if let Ok(parts) = self.agent.parts()
            && !canaries.is_empty()
        {
            let counts = parts.proxy.counts().await;
            for (app, of) in canaries {
                let mut watched = self.watched.remove(&app.name).unwrap_or_default();
                if let Err(err) = self.look_at(app, of, &mut watched, counts.as_ref()).await {
                    tracing::error!(app = %app.name, %err, "how the canary stands could not be recorded; it is tried again");
                }
                self.watched.insert(app.name.clone(), watched);
            }
        }
        let shown = self.watched.iter().filter_map(|(app, watched)| Some((app.clone(), watched.shown.clone()?)));
        self.agent.canaries.send_replace(shown.collect());
    }

    /// Of what is no canary any more nothing is told.
    async fn forget_others(&mut self, config: &Config) {
        let is_canary = |app: &AppName| config.apps.get(app).is_some_and(|app| app.canary_of.is_some());
        let gone: Vec<AppName> = self.watched.keys().filter(|app| !is_canary(app)).cloned().collect();
        for app in gone {
            match self.agent.journal.end_canary_alert(&app, false).await {
                Ok(_) => drop(self.watched.remove(&app)),
                Err(err) => tracing::error!(%app, %err, "the end of an alert could not be recorded; it is tried again"),
            }
        }
    }

    async fn look_at(
        &self,
        app: &App,
        of: &CanaryOf,
        watched: &mut Watched,
        counts: Option<&Counts>,
    ) -> Result<(), StoreError> {
        let (name, now) = (&app.name, self.began.elapsed());
        // Until its instances are known nothing can be said of them.
        let Some(handle) = self.agent.app(name).filter(|handle| *handle.adoption.borrow() == Adoption::Done) else {
            return Ok(());
        };
        drop(handle);
        let Ok(parts) = self.agent.parts() else { return Ok(()) };
        let live = self.agent.store.live_instances(name).await?;
        let live = live.filter(|(_, instances)| are_wanted(app, instances)).map(|(deployment, _)| deployment);
        let beside = parts.routes.beside(name).await;
        let fails = live.and_then(|live| watched.compare(live, &beside, counts, now));
        let instances = self.agent.instances(name).unwrap_or_default();
        let shares = |id: &InstanceId| beside.sides.get(id).is_some_and(|is_canary| *is_canary);
        let newest = instances.iter().filter(|one| shares(&one.id)).map(|one| one.deployment).max();
        watched.watch.see(Seen { live, newest, ready: beside.ready > 0, fails }, now);
        let standing = watched.watch.standing();
        // Production first, then the news.
        if let Err(err) = parts.routes.suspend(name, standing == Standing::Suspended).await {
            tracing::warn!(app = %name, %err, "the proxy did not take the canary's share; it is tried again");
        }
        match live {
            None => watched.show(Standing::Down, Some("nothing of it is live".into())),
            Some(_) => watched.show(standing, self.why(name, &watched.watch)),
        }
        self.tell(name, of, watched, live).await
    }

    fn why(&self, app: &AppName, watch: &Watch) -> Option<String> {
        match (watch.standing(), watch.why()) {
            (Standing::Serving, Some(why)) => Some(format!("it is tried again; it was suspended because {why}")),
            (Standing::Serving, None) => None,
            (Standing::Suspended, why) => why.map(str::to_owned),
            (Standing::Down, _) => {
                let instances = self.agent.instances(app).unwrap_or_default();
                let unready = instances.iter().filter(|instance| instance.health != Health::Ready);
                let mut checks = unready.filter_map(|one| Some(format!(": {}: {}", one.id, one.last_check.as_ref()?)));
                let last = checks.next().unwrap_or_default();
                Some(format!("none of its instances is ready{last}"))
            }
        }
    }

    /// Has on record what people are to know, and tells them when that is new.
    async fn tell(
        &self,
        app: &AppName,
        of: &CanaryOf,
        watched: &mut Watched,
        live: Option<DeploymentId>,
    ) -> Result<(), StoreError> {
        let alarm = watched.watch.alarm();
        if alarm == watched.told {
            return Ok(());
        }
        let journal = &self.agent.journal;
        let what = match alarm {
            Some(alarm) => {
                let times = match alarm {
                    Alarm::Down => 0,
                    Alarm::Suspended { times } => times,
                };
                let why = watched.shown.as_ref().and_then(|shown| shown.why.clone()).unwrap_or_default();
                let what = format!("gets none of {}'s requests: {why}", of.app);
                journal.raise_canary_alert(app, of, &Raised { times, why, deployment: watched.watch.failed() }).await?;
                what
            }
            None => {
                journal.end_canary_alert(app, live.is_some()).await?;
                format!("gets {} of {}'s requests again", of.share, of.app)
            }
        };
        watched.told = alarm;
        if live.is_some() {
            journal.drift(app, None, what).await?;
        }
        Ok(())
    }
}

/// Whether any instance is wanted that requests from outside could reach.
fn are_wanted(app: &App, instances: &BTreeMap<ServiceName, u32>) -> bool {
    let reached = |name: &ServiceName| app.services.get(name).is_none_or(|service| app.leads_to(service));
    instances.iter().any(|(name, &count)| count > 0 && reached(name))
}
