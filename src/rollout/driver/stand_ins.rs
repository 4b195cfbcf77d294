//! What serves where the live release does not: what a failed deployment leaves behind, until the live release does (then out
//! of the routes, drained and stopped), and what is alone in its place while its deployment waits.

use std::collections::{BTreeMap, BTreeSet};

use super::{DriverTask, Signal, canary};
use crate::model::{DeploymentId, Duty, Health, InstanceId, ServiceName};
use crate::proxy::table::DrainLimits;
use crate::rollout::fleet::{Member, Pending};
use crate::rollout::plan::is_restored;
use crate::rollout::stand_ins::{Until, may_go};

impl DriverTask {
    /// Of the deployment that waits: has those serve that have passed their gates and are alone in their places. So its
    /// rollout would have done, had nothing cut it off.
    pub(super) fn serve_alone(&mut self) {
        let Some((deployment, log)) = self.waiting.clone() else { return };
        let is_taken = |id: &InstanceId, place: &Member| {
            let here = |m: &Member| (&m.spec.service.name, m.slot) == (&place.spec.service.name, place.slot);
            let is_there = |m: &Member| m.duty == Duty::Serving || (m.running && m.duty != Duty::Retired);
            self.members.iter().any(|(other, m)| other != id && here(m) && is_there(m))
        };
        let may = |m: &Member| m.deployment == deployment && m.duty == Duty::Idle && m.running && m.is_proven();
        let alone = self.members.iter().filter(|(id, m)| may(m) && !is_taken(id, m)).map(|(id, _)| id.clone());
        for id in alone.collect::<Vec<_>>() {
            log.line(format!("{id}: ready, and nobody else is in its place; it serves while the deployment waits"));
            if let Some(member) = self.members.get_mut(&id) {
                member.duty = Duty::Serving;
            }
            self.push_routes();
        }
    }

    /// The instances of `deployment` that are ready and serve where no other one of their service could, though one is meant to.
    pub(super) fn alone(&self, deployment: DeploymentId) -> BTreeSet<InstanceId> {
        let is_alone = |m: &Member| {
            let is_old = |o: &&Member| o.deployment != deployment && o.spec.service.name == m.spec.service.name;
            let mut old = self.members.values().filter(is_old).filter(|o| o.duty != Duty::Retired).peekable();
            let may_answer = |o: &Member| o.is_ready() && (o.stands_in.is_none() || o.duty == Duty::Serving);
            old.peek().is_some() && !old.any(may_answer)
        };
        let serves =
            |m: &Member| m.deployment == deployment && m.duty == Duty::Serving && m.spec.routed && m.is_ready();
        self.members.iter().filter(|(_, m)| serves(m) && is_alone(m)).map(|(id, _)| id.clone()).collect()
    }

    /// A deployment was undone: whatever it had started and serves still, nothing could take its place.
    pub(super) async fn leave_behind(&mut self, deployment: DeploymentId) {
        let mut left = Vec::new();
        let until = match canary::was_canary(&self.parts.store, deployment).await {
            true => Until::AnyPlaceIsFilled,
            false => Until::ItsPlaceIsFilled,
        };
        let serves_on = |m: &Member| m.deployment == deployment && m.duty == Duty::Serving;
        for (id, member) in self.members.iter_mut().filter(|(id, m)| serves_on(m) && !is_restored(id)) {
            tracing::warn!(app = %self.app, instance = %id, "left behind by a deployment; it serves until the live release does");
            member.stands_in = Some(until);
            left.push(id.clone());
        }
        if !left.is_empty()
            && let Err(err) = self.parts.store.record_stand_ins(deployment, &left).await
        {
            tracing::error!(app = %self.app, %err, "what was left behind could not be recorded");
        }
    }

    /// Lets those go that are not needed any more.
    pub(super) fn relieve(&mut self) {
        let mut filled: BTreeMap<ServiceName, Vec<u32>> = BTreeMap::new();
        let serves = |m: &&Member| m.stands_in.is_none() && m.duty == Duty::Serving && m.gate.health() == Health::Ready;
        for member in self.members.values().filter(serves) {
            filled.entry(member.spec.service.name.clone()).or_default().push(member.slot);
        }
        let mut wanted: BTreeMap<&ServiceName, u32> = BTreeMap::new();
        for place in self.places.iter().flatten() {
            *wanted.entry(&place.spec.service.name).or_default() += 1;
        }
        let wanted = |service: &ServiceName| self.places.as_ref().map(|_| wanted.get(service).copied().unwrap_or(0));
        let goes = |m: &Member| {
            let (service, until) = (&m.spec.service.name, m.stands_in.unwrap_or(Until::ItsPlaceIsFilled));
            may_go(until, m.slot, wanted(service), filled.get(service).map_or(&[], Vec::as_slice))
        };
        let stands_in = |m: &Member| m.stands_in.is_some() && m.duty == Duty::Serving && m.pending == Pending::None;
        let going = self.members.iter().filter(|(_, m)| stands_in(m) && goes(m)).map(|(id, _)| id.clone());
        for id in going.collect::<Vec<_>>() {
            if let Some(member) = self.members.get_mut(&id) {
                member.duty = Duty::Draining;
            }
            self.push_relieved(id);
        }
    }

    /// The proxy has taken the routes without it, or has not.
    pub(super) async fn relieved(&mut self, id: InstanceId, taken: Result<(), String>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if let Err(why) = taken {
            tracing::warn!(app = %self.app, instance = %id, %why, "it serves on, as the proxy did not take the routes without it");
            // To be tried again.
            member.duty = Duty::Serving;
            return;
        }
        let limits = member.spec.service.drain;
        let limits = DrainLimits { requests: limits.requests, streams: limits.streams };
        let proxy = self.parts.routes.proxy().clone();
        let what = format!("was left behind by {} and is not needed any more; removing it", member.deployment);
        let leaving = id.clone();
        self.spawn(async move {
            proxy.drain(&leaving, limits).await;
            Signal::Finished(leaving)
        });
        self.record_drift(Some(id), what).await;
    }
}
