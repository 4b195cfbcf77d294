//! The second half of a deployment: planned from what runs, performed by the app's driver, and ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::prepare::Target;
use super::redact::Redactor;
use super::requests::Count;
use super::{Halt, Story, spec};
use crate::config::Strategy;
use crate::model::{ReleaseNumber, ServiceName, Status};
use crate::queue::Request;
use crate::rollout::canary::{Canary, Course};
use crate::rollout::driver::REVERT_STEP;
use crate::rollout::driver::canary::{self, CanaryPlan};
use crate::rollout::machine::{Cause, Failure, Outcome, Policy, ServicePolicy};
use crate::rollout::plan::{self, Back, Empty, Plan, Unstartable, Wanted, Way};
use crate::rollout::stand_ins::serves_on;
use crate::rollout::watch::History;
use crate::rollout::{Assignment, ServiceSpec};
use crate::store::{Finish, Release, Step};

/// How a rollout came out.
struct Rolled {
    outcome: Outcome,
    /// There was nothing to replace.
    unchanged: bool,
    /// At least one instance ran it.
    proven: bool,
    /// How many of each service it led to.
    instances: BTreeMap<ServiceName, u32>,
    /// What was not put back, as a secret is absent, one line each.
    left: Vec<String>,
}

impl Story<'_> {
    pub(super) async fn roll_out(
        &self,
        target: &Target,
        live: Option<&Release>,
        at_start: Option<Count>,
    ) -> Result<Finish, Halt> {
        let recorded = match self.deployer.store.step::<Failure>(self.deployment.id, REVERT_STEP).await? {
            Step::Done(failure) => Some(failure),
            Step::New | Step::Begun => None,
        };
        let before = self.counts_before(at_start).await?;
        let history = self.history(before.as_ref(), live.is_some());
        let mut rolled = self.roll(target, live, recorded, history).await?;
        if let Outcome::TurnBack(failure) = rolled.outcome {
            rolled = self.roll(target, live, Some(failure), history).await?;
        }
        // One that goes on later is counted then.
        if !matches!(rolled.outcome, Outcome::BrokenOff(_)) {
            self.count_requests(before).await?;
        }
        match rolled.outcome {
            Outcome::Succeeded => {
                self.keep_scale(target).await?;
                let id = self.deployment.id;
                self.deployer.store.set_live_instances(&self.app.name, id, &rolled.instances).await?;
                self.deployer.store.set_live(&self.app.name, target.release.number, rolled.proven).await?;
                let reason = rolled.unchanged.then(|| "unchanged: the same content and settings are live".to_owned());
                Ok(Finish { status: Status::Succeeded, reason, superseded_by: None, hold: false })
            }
            Outcome::Undone { failure, left } => Ok(self.undone(failure, &[rolled.left, left].concat())),
            Outcome::TurnBack(failure) => Ok(self.undone(failure, &[])),
            Outcome::BrokenOff(why) => Err(Halt::EngineAway(why)),
        }
    }

    /// Plans from what runs, forward or (with a failure) back, and has the driver perform it.
    async fn roll(
        &self,
        target: &Target,
        live: Option<&Release>,
        reverting: Option<Failure>,
        history: Option<History>,
    ) -> Result<Rolled, Halt> {
        let id = self.deployment.id;
        // What runs already needs no secret to be put back.
        let specs = |release| match &reverting {
            Some(_) => Ok(spec::of_live(release, &self.deployer.settings_key, &self.deployer.static_files)),
            None => self.specs(release),
        };
        let new = specs(&target.release)?;
        let old = live.map(specs).transpose()?.unwrap_or_default();
        let (towards, way) = match (&reverting, target.renew) {
            (Some(_), _) => (&old, Way::Back),
            (None, true) => (&new, Way::Renew),
            (None, false) => (&new, Way::Forward),
        };
        let unreadable = self.unreadable(towards).await?;
        let wanted = self.wanted(towards, &target.release, way).await?;
        let instances: BTreeMap<_, _> = wanted.iter().map(|want| (want.service.clone(), want.instances)).collect();
        let all = self.deployer.driver.current().await;
        let (as_is, current): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|c| unreadable.contains_key(&c.service));
        let mut plan = plan::plan(&current, &wanted, id, way);
        let Back { slots, kept, stand_ins, empty } = plan::back_without_starting(&as_is, &unreadable, id);
        plan.slots.extend(slots);
        plan.kept.extend(kept);
        let mut alone = Vec::new();
        if way == Way::Back && canary::was_canary(&self.deployer.store, id).await {
            alone = plan::left_alone(&mut plan, &all, id);
        }
        let serving = stand_ins.iter().map(|stand_in| {
            format!(
                "{stand_in} serves until an instance of the live release can be started, which a secret is absent for"
            )
        });
        let why = |service| towards.get(service).and_then(|spec| spec.prepared.as_ref().err());
        let left: Vec<String> = serving
            .chain(alone.iter().map(serves_on))
            .chain(empty.iter().map(|place| nobody_serves(place, why(&place.service))))
            .collect();
        let stand_ins = [stand_ins, alone].concat();
        let canary = self.canary(target, &plan, way).await?;
        match (plan.slots.is_empty(), way) {
            (true, Way::Back) => {}
            (true, _) => {
                let (release, stay) = (target.release.number, plan.kept.len());
                self.log.line(format!("{release}: nothing to replace, {stay} instances stay"));
            }
            (false, _) => {
                self.advance(Status::RollingOut).await?;
                self.has_begun_rollout.store(true, Relaxed);
                let course = canary.as_ref().map(|canary| &canary.course);
                self.log.line(describe(&plan, target.release.number, way, course));
            }
        }
        let unchanged = plan.slots.is_empty() && reverting.is_none() && self.deployment.status == Status::Queued;
        let policy = Policy {
            deployment: id,
            // What did not change has been watched before.
            watch: if unchanged { Duration::ZERO } else { target.release.body.rollout.watch },
            services: new.iter().map(|(name, spec)| (name.clone(), policy_of(spec))).collect(),
            default_start_deadline: Duration::from_secs(60),
        };
        let redactor = Redactor::of(self.app, &target.release);
        let redact = Arc::new(move |text: &str| redactor.clean(text));
        let (resumed, log) = (self.in_rollout(), self.log.clone());
        let may_break_off = self.losses.allow_another();
        // A release without a single instance has proved nothing.
        let proven = !plan.kept.is_empty() || plan.slots.iter().any(|slot| slot.incoming.is_some());
        let assignment = Assignment {
            history,
            deployment: id,
            plan,
            stand_ins,
            policy,
            instances: instances.clone(),
            new,
            old,
            canary,
            reverting,
            resumed,
            may_break_off,
            redact,
            log,
        };
        let rolled = self.deployer.driver.roll(assignment);
        tokio::pin!(rolled);
        let outcome = tokio::select! {
            // In this order: the driver has the assignment before it may hear that it is cancelled.
            biased;
            () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
            outcome = &mut rolled => outcome,
            () = self.running.stop.cancelled() => {
                self.deployer.driver.cancel(id, self.running.why());
                tokio::select! {
                    () = self.deployer.shutdown.cancelled() => return Err(Halt::AgentEnds),
                    outcome = &mut rolled => outcome,
                }
            }
        };
        Ok(Rolled { outcome: outcome.ok_or(Halt::AgentEnds)?, unchanged, proven, instances, left })
    }

    /// How requests are shared on the way, when they are: for a new version of what is routed, not for what a person asks
    /// for (a rollback, a restart, a scale), and not on the way back.
    async fn canary(&self, target: &Target, plan: &Plan, way: Way) -> Result<Option<CanaryPlan>, Halt> {
        let asked = way == Way::Forward && matches!(self.deployment.request, Request::Deploy { .. });
        let Strategy::Canary(policy) = &target.release.body.rollout.strategy else { return Ok(None) };
        if !asked || !Canary::fits(&plan.slots) {
            return Ok(None);
        }
        Ok(Some(CanaryPlan {
            course: Course { steps: policy.steps.clone(), pause: policy.pause },
            standing: canary::standing(&self.deployer.store, self.deployment.id).await?,
            analysis: policy.analysis,
            release: target.release.number,
        }))
    }

    fn undone(&self, mut failure: Failure, left: &[String]) -> Finish {
        if failure.cause == Cause::Cancelled && self.running.by_deadline() {
            // What takes too long without the engine says nothing about the release.
            let lost = self.deployer.presence.was_lost_since(self.engine);
            failure.cause = if lost { Cause::Engine } else { Cause::Release };
        }
        undone(failure, left, &self.deployment.request)
    }

    async fn wanted(
        &self,
        specs: &BTreeMap<ServiceName, Arc<ServiceSpec>>,
        release: &Release,
        way: Way,
    ) -> Result<Vec<Wanted>, Halt> {
        let mut wanted = Vec::new();
        for (name, spec) in specs {
            let prepared = match &spec.prepared {
                Ok(prepared) => prepared,
                Err(_) if way == Way::Back => continue,
                Err(why) => return Err(self.without_secret(why.clone())),
            };
            let configured = self.configured(name, spec.service.instances);
            let instances = match &self.deployment.request {
                Request::Scale { service, instances } if service == name && way != Way::Back => *instances,
                _ => self.deployer.store.scale(&self.app.name, name, configured).await?,
            };
            wanted.push(Wanted {
                service: name.clone(),
                settings: prepared.settings.clone(),
                instances,
                routed: spec.routed,
                order: release.body.rollout.order,
            });
        }
        Ok(wanted)
    }

    /// The services of which no instance can be started, as a secret is absent.
    async fn unreadable(
        &self,
        specs: &BTreeMap<ServiceName, Arc<ServiceSpec>>,
    ) -> Result<BTreeMap<ServiceName, Unstartable>, Halt> {
        let mut unreadable = BTreeMap::new();
        for (name, spec) in specs.iter().filter(|(_, spec)| spec.prepared.is_err()) {
            let configured = self.configured(name, spec.service.instances);
            let instances = self.deployer.store.scale(&self.app.name, name, configured).await?;
            unreadable.insert(name.clone(), Unstartable { instances, routed: spec.routed });
        }
        Ok(unreadable)
    }

    /// How many instances the configuration asks for; a service that is no longer in it keeps its release's number.
    fn configured(&self, service: &ServiceName, released: u32) -> u32 {
        self.app.services.get(service).map_or(released, |service| service.instances)
    }

    /// A scale counts from when it has gone well: one that is undone leaves the number that was.
    async fn keep_scale(&self, target: &Target) -> Result<(), Halt> {
        let Request::Scale { service, instances } = &self.deployment.request else { return Ok(()) };
        let released = target.release.body.service(service).map_or(*instances, |r| r.service.instances);
        let configured = self.configured(service, released);
        Ok(self.deployer.store.set_scale(&self.app.name, service, configured, *instances).await?)
    }
}

/// `web-1: nobody serves in its place. d27-web-1 had not passed its health check and was removed; …`
fn nobody_serves(Empty { service, number, unproven }: &Empty, secret: Option<&String>) -> String {
    let gone = unproven.as_ref().map(|id| format!("{id} had not passed its health check and was removed; "));
    let secret = secret.map_or("a secret is absent", String::as_str);
    format!(
        "{service}-{number}: nobody serves in this place: {}one of the live release cannot be started: {secret}; put the \
         secret there, and it is started within a minute",
        gone.unwrap_or_default()
    )
}

fn policy_of(spec: &ServiceSpec) -> ServicePolicy {
    ServicePolicy { start_deadline: spec.service.health.start_deadline }
}

fn undone(failure: Failure, left: &[String], request: &Request) -> Finish {
    let mut reason = failure.why;
    for line in left {
        reason.push_str("\n  ");
        reason.push_str(line);
    }
    let status = if failure.cause == Cause::Cancelled { Status::Cancelled } else { Status::RolledBack };
    // A release that failed is not tried again by itself; what a person asked for is theirs to repeat.
    let hold = failure.cause == Cause::Release && matches!(request, Request::Deploy { .. });
    Finish { status, reason: Some(reason), superseded_by: None, hold }
}

fn describe(plan: &Plan, release: ReleaseNumber, way: Way, course: Option<&Course>) -> String {
    let mut counts: BTreeMap<&ServiceName, (u32, u32)> = BTreeMap::new();
    for slot in &plan.slots {
        let (new, gone) = counts.entry(&slot.service).or_default();
        *new += u32::from(slot.incoming.is_some());
        *gone += u32::from(slot.incoming.is_none());
    }
    let parts = counts.iter().map(|(service, (new, gone))| match (new, gone) {
        (new, 0) => format!("{service}: {new} to start"),
        (0, gone) => format!("{service}: {gone} to stop"),
        (new, gone) => format!("{service}: {new} to start, {gone} to stop"),
    });
    let parts = parts.collect::<Vec<_>>().join("; ");
    if let Some(course) = course {
        let steps: Vec<String> = course.steps.iter().map(|percent| format!("{percent} %")).collect();
        let (steps, pause) = (steps.join(", then "), course.pause);
        return format!("rolling out {release} as a canary: {steps} of the requests for {pause:?}, then all ({parts})");
    }
    match way {
        Way::Back => format!("undoing {release} ({parts})"),
        Way::Forward | Way::Renew => format!("rolling out {release}, one instance at a time ({parts})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_release_itself_did_wrong_holds_its_commit() {
        let ended = |cause, request: &Request| {
            let finish = undone(Failure { why: "why".into(), instance: None, cause }, &[], request);
            (finish.status, finish.hold)
        };
        let deploy = Request::Deploy { commit: None, before: None, forced: false };
        assert_eq!(ended(Cause::Release, &deploy), (Status::RolledBack, true));
        assert_eq!(ended(Cause::Surroundings, &deploy), (Status::RolledBack, false));
        assert_eq!(ended(Cause::Cancelled, &deploy), (Status::Cancelled, false));
        assert_eq!(ended(Cause::Release, &Request::Restart), (Status::RolledBack, false));
    }
}
