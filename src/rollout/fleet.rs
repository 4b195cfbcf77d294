//! An app's instances as its driver knows them, and the routes that follow from them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::shares::shares;
use super::stand_ins::Until;
use super::upkeep::Upkeep;
use crate::config::{App, Config, Service, ServiceRoute, routed_service};
use crate::health::Gate;
use crate::health::probe::Target;
use crate::model::{AppName, CommitSha, DeploymentId, Duty, Health, ImageId, InstanceId, ReleaseNumber, ServiceName};
use crate::proxy::table::{Maintenance, Member as RouteMember, Route, StaticFiles};
use crate::runtime::{Exited, InstanceSpec, Observed, RunState, RuntimeError};
use crate::store::Ended;

/// One instance as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceState {
    /// Which.
    pub id: InstanceId,
    /// Of which service.
    pub service: ServiceName,
    /// Its place, from 1.
    pub slot: u32,
    /// The release it was started for.
    pub release: ReleaseNumber,
    /// Of which commit.
    pub commit: CommitSha,
    /// The deployment that started it.
    pub deployment: DeploymentId,
    /// Where it is reached.
    pub address: Option<SocketAddr>,
    /// Written by the gate.
    pub health: Health,
    /// Written by the machine.
    pub duty: Duty,
    /// A failed deployment left it behind; it serves until the live release does.
    pub stands_in: bool,
    /// Its share; 0 unless serving.
    pub weight: u32,
    /// Whether its process runs. Of one that does not there may be no container either.
    pub running: bool,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// How often the runtime restarted it.
    pub restarts: u32,
    /// The last answer of its health check, in words.
    pub last_check: Option<String>,
    /// How its process last ended by itself.
    pub last_end: Option<Ended>,
}

/// Where an app's requests come in, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Never empty.
    ways: Vec<Way>,
    maintenance: Option<Maintenance>,
    /// The requests are another app's, which answers those that are not given to this one.
    is_canary: bool,
}

/// The way to one service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    service: ServiceName,
    /// Never empty.
    hosts: Vec<String>,
    route: ServiceRoute,
    /// It leads to the service that needs no route, also to one of another name that an older release has.
    is_default: bool,
}

impl Entrance {
    /// `None` for an app without domains. Where a canary's requests come in its production says.
    pub fn of(app: &App, config: &Config) -> Option<Self> {
        match &app.canary_of {
            Some(canary) => Self::beside(app, config.apps.get(&canary.app)?),
            None => Self::of_its_own(app),
        }
    }

    /// That of an app which is not configured any more, from the routes that the proxy keeps of it.
    pub fn of_kept(routes: &[Route]) -> Option<Self> {
        let default = routes.iter().position(|route| route.path.is_root()).unwrap_or(0);
        let way = |(number, route): (usize, &Route)| Way {
            service: route.service.clone(),
            hosts: route.hosts.clone(),
            route: ServiceRoute {
                domains: Some(route.hosts.clone()),
                path: route.path.clone(),
                strip: route.strip,
                balance: route.balance,
                sticky: route.sticky,
                protocol: route.protocol,
                limits: route.limits,
            },
            is_default: number == default,
        };
        let ways: Vec<Way> = routes.iter().enumerate().map(way).collect();
        let maintenance = routes.iter().find_map(|route| route.maintenance.clone());
        (!ways.is_empty()).then_some(Self { ways, maintenance, is_canary: false })
    }

    fn beside(canary: &App, production: &App) -> Option<Self> {
        let Self { ways: of_production, .. } = Self::of_its_own(production)?;
        let default = routed_service(canary.services.values()).map(|service| &service.name);
        let ways = canary.services.values().filter_map(|service| {
            let counterpart = canary.counterpart(service, production)?;
            let way = of_production.iter().find(|way| way.service == counterpart.name)?.clone();
            Some(Way { service: service.name.clone(), is_default: Some(&service.name) == default, ..way })
        });
        let ways: Vec<Way> = ways.collect();
        (!ways.is_empty()).then_some(Self { ways, maintenance: None, is_canary: true })
    }

    fn of_its_own(app: &App) -> Option<Self> {
        let default = routed_service(app.services.values()).map(|service| &service.name);
        let ways = app.services.values().filter_map(|service| {
            let is_default = Some(&service.name) == default;
            let route = match &service.route {
                Some(route) => route.clone(),
                None if is_default => ServiceRoute::default(),
                None => return None,
            };
            let hosts = route.domains.as_ref().unwrap_or(&app.domains).clone();
            (!hosts.is_empty()).then(|| Way { service: service.name.clone(), hosts, route, is_default })
        });
        let ways: Vec<Way> = ways.collect();
        (!ways.is_empty()).then(|| Self { ways, maintenance: app.maintenance.clone(), is_canary: false })
    }

    /// The way that leads to a member.
    fn way_to(&self, service: &ServiceName) -> Option<&Way> {
        let own = self.ways.iter().find(|way| way.service == *service);
        own.or_else(|| self.ways.iter().find(|way| way.is_default))
    }

    /// The first host that leads there, for whom it is asked by.
    fn host_of(&self, service: &ServiceName) -> Option<&String> {
        self.way_to(service)?.hosts.iter().find(|host| !host.starts_with("*."))
    }
}

/// What a service's settings come to when its secrets are read.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The environment with the secrets resolved.
    pub env: BTreeMap<String, SecretString>,
    /// Keyed digest of all that makes one instance differ from another.
    pub settings: String,
}

/// A service of a release with everything that its instances are started with.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Its settings.
    pub service: Service,
    /// Its image.
    pub image: ImageId,
    /// Its files that the proxy serves.
    pub files: Vec<StaticFiles>,
    /// What its secrets are part of, or which of them cannot be read: no container is made without.
    pub prepared: Result<Prepared, String>,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which commit.
    pub commit: CommitSha,
    /// Requests from outside reach it.
    pub routed: bool,
}

impl ServiceSpec {
    /// What the runtime needs to start one instance.
    pub fn instance(
        &self,
        app: &AppName,
        deployment: DeploymentId,
        id: InstanceId,
        slot: u32,
    ) -> Result<InstanceSpec, RuntimeError> {
        let service = &self.service;
        let Prepared { env, settings } = self.prepared.clone().map_err(RuntimeError::Refused)?;
        Ok(InstanceSpec {
            id,
            app: app.clone(),
            service: service.name.clone(),
            slot,
            release: self.release,
            deployment,
            commit: self.commit.clone(),
            settings,
            image: self.image.clone(),
            command: service.command.clone(),
            env,
            port: service.port,
            memory: service.memory,
            cpu_millis: service.cpu_millis,
            stop_grace: service.stop_grace,
            volumes: service.volumes.clone(),
        })
    }
}

/// Aborts a task when it goes out of use.
#[derive(Debug)]
pub(super) struct Task(AbortHandle);

impl Task {
    pub(super) fn new(handle: AbortHandle) -> Self {
        Self(handle)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the driver has asked the runtime to do with an instance and not heard of yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    None,
    Start,
    /// Stop, then start: it stays unready.
    Replace,
    /// Stop as soon as the start has been answered.
    StopAfterStart,
    Stop,
}

/// What happened to an instance that runs without an address in its app's network.
pub(super) const CUT_OFF: &str = "was disconnected from its network";

/// What happened to an instance whose container somebody took away.
pub(super) const REMOVED: &str = "had its container removed";

/// One instance.
#[derive(Debug)]
pub(super) struct Member {
    pub spec: Arc<ServiceSpec>,
    pub slot: u32,
    pub deployment: DeploymentId,
    pub release: ReleaseNumber,
    pub commit: CommitSha,
    /// `None`: its secrets could not be read, and it has not been seen.
    pub settings: Option<String>,
    pub gate: Gate,
    pub duty: Duty,
    pub pending: Pending,
    /// The runtime has it, running or not.
    pub exists: bool,
    pub running: bool,
    /// It runs and was taken out of its app's network.
    pub cut_off: bool,
    pub address: Option<SocketAddr>,
    pub started_at: Option<Timestamp>,
    pub up_since: Instant,
    pub restarts: u32,
    pub last_check: Option<String>,
    /// How its process last ended by itself, in this life of the agent or in an earlier one.
    pub last_end: Option<Ended>,
    pub image_healthcheck: bool,
    pub probe: Option<Task>,
    pub upkeep: Upkeep,
    /// The runtime has been asked to put it back into its network.
    pub reconnecting: bool,
    /// It was routed by an earlier life of the agent and goes on being routed until its checks have spoken.
    pub trusted: bool,
    /// A failed deployment left it behind; it serves until the live release does, and is none of its instances.
    pub stands_in: Option<Until>,
    /// It ended before the runtime's answer to its start arrived.
    pub ended_early: Option<Exited>,
}

impl Member {
    /// An instance that is about to be started.
    pub fn starting(spec: Arc<ServiceSpec>, slot: u32, deployment: DeploymentId) -> Self {
        Self {
            gate: Gate::new(&spec.service.health, false),
            slot,
            deployment,
            release: spec.release,
            commit: spec.commit.clone(),
            settings: spec.prepared.as_ref().ok().map(|prepared| prepared.settings.clone()),
            duty: Duty::Idle,
            pending: Pending::Start,
            exists: true,
            running: false,
            cut_off: false,
            address: None,
            started_at: None,
            up_since: Instant::now(),
            restarts: 0,
            last_check: None,
            last_end: None,
            image_healthcheck: false,
            probe: None,
            upkeep: Upkeep::default(),
            reconnecting: false,
            trusted: false,
            stands_in: None,
            ended_early: None,
            spec,
        }
    }

    /// An instance that an earlier life of the agent started.
    pub fn adopted(spec: Arc<ServiceSpec>, observed: &Observed, duty: Duty, trusted: bool) -> Self {
        let mut member = Self::starting(spec, observed.slot, observed.deployment);
        member.duty = duty;
        member.pending = Pending::None;
        member.observe(observed);
        // Of one that has ended another process is to come.
        member.trusted = duty == Duty::Serving && trusted && member.running && !member.cut_off;
        member
    }

    /// Takes over what the runtime shows: a new process, or another address, means that health is to be observed anew.
    pub fn observe(&mut self, observed: &Observed) {
        self.release = observed.release;
        self.commit = observed.commit.clone();
        self.settings = Some(observed.settings.clone());
        self.exists = true;
        self.running = observed.state == RunState::Running;
        self.restarts = observed.restarts;
        self.image_healthcheck = observed.has_healthcheck;
        self.cut_off = observed.is_cut_off();
        let address = observed.address.zip(self.spec.service.port).map(SocketAddr::from);
        let moved = self.address.is_some() && self.address != address;
        self.address = address;
        // What answered at its old address may be another one by now.
        if self.cut_off || moved {
            self.trusted = false;
            self.gate.restarted();
        }
        if self.cut_off {
            self.last_check = Some(CUT_OFF.to_owned());
        }
        if self.started_at != observed.started_at {
            self.started_at = observed.started_at;
            // The runtime's clock says since when it has been up; ours goes on from there.
            let up = observed.started_at.map_or(Duration::ZERO, |at| elapsed_since(at, Timestamp::now()));
            self.up_since = Instant::now().checked_sub(up).unwrap_or_else(Instant::now);
            self.gate = Gate::new(&self.spec.service.health, observed.has_healthcheck);
        }
    }

    /// Whether it has passed its gate: it serves, or is ready now.
    pub fn is_proven(&self) -> bool {
        self.duty == Duty::Serving || (self.gate.health() == Health::Ready && !self.cut_off)
    }

    /// Whether it could answer now.
    pub fn is_ready(&self) -> bool {
        self.running && !self.cut_off && (self.gate.health() == Health::Ready || self.trusted)
    }

    /// What its probe needs to know.
    pub fn target(&self, id: &InstanceId, entrance: Option<&Entrance>) -> Target {
        let entrance = entrance.filter(|_| self.spec.routed);
        let host = entrance.and_then(|entrance| entrance.host_of(&self.spec.service.name).cloned());
        Target {
            instance: id.clone(),
            address: self.address,
            host: host.or_else(|| self.address.map(|a| a.to_string())).unwrap_or_default(),
            policy: self.spec.service.health.clone(),
            image_healthcheck: self.image_healthcheck,
        }
    }

    pub fn state(&self, id: &InstanceId) -> InstanceState {
        InstanceState {
            id: id.clone(),
            service: self.spec.service.name.clone(),
            slot: self.slot,
            release: self.release,
            commit: self.commit.clone(),
            deployment: self.deployment,
            address: self.address,
            health: self.gate.health(),
            duty: self.duty,
            stands_in: self.stands_in.is_some(),
            weight: u32::from(self.duty == Duty::Serving && self.spec.routed),
            running: self.running,
            started_at: self.started_at,
            restarts: self.restarts,
            last_check: self.last_check.clone(),
            last_end: self.last_end.clone(),
        }
    }
}

fn elapsed_since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or(Duration::ZERO)
}

/// The files of an app whose instances these are. While instances of two releases serve, those of the earlier deployment go
/// first: the later one's take over with the last switch, and what only they have is found already.
fn files<'a>(serving: impl Iterator<Item = &'a Member>) -> Vec<StaticFiles> {
    let mut serving: Vec<&Member> = serving.collect();
    serving.sort_by_key(|member| member.deployment);
    let mut files: Vec<StaticFiles> = Vec::new();
    for more in serving.iter().flat_map(|member| &member.spec.files) {
        match files.iter_mut().find(|known| known.prefix == more.prefix) {
            Some(known) => known.add_roots(&more.roots),
            None => files.push(more.clone()),
        }
    }
    files
}

/// The share of the requests that the instances of a canary get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its instances are those of this deployment.
    pub deployment: DeploymentId,
    /// Below 100.
    pub percent: u32,
}

/// The routes of an app: its serving, ready instances; when none of those of a service that run is ready, all that serve
/// and run, because an answer that may fail is better than none at all. Where nothing runs the route is there without
/// members: the proxy says so, instead of not knowing the host. Under a canary the weights give it its share of those that
/// are in the table now. An app that is a canary itself has its production to answer: of its own only ready ones may.
pub(super) fn routes(
    app: &AppName,
    entrance: Option<&Entrance>,
    members: &BTreeMap<InstanceId, Member>,
    share: Option<Share>,
) -> Vec<Route> {
    let Some(entrance) = entrance else { return Vec::new() };
    entrance.ways.iter().map(|way| way.route(app, entrance, members, share)).collect()
}

impl Way {
    fn route(
        &self,
        app: &AppName,
        entrance: &Entrance,
        members: &BTreeMap<InstanceId, Member>,
        share: Option<Share>,
    ) -> Route {
        let leads_to = |member: &Member| entrance.way_to(&member.spec.service.name) == Some(self);
        let serves = |m: &Member| m.duty == Duty::Serving && m.spec.routed && m.address.is_some() && leads_to(m);
        let serving = || members.iter().filter(|(_, member)| serves(member));
        let service = serving().next().map_or(&self.service, |(_, m)| &m.spec.service.name).clone();
        let ready: Vec<_> = serving().filter(|(_, m)| m.gate.health() == Health::Ready || m.trusted).collect();
        let chosen: Vec<_> = match ready.is_empty() && !entrance.is_canary {
            true => serving().filter(|(_, m)| m.running).collect(),
            false => ready,
        };
        let is_canary = |m: &Member| share.is_some_and(|share| share.deployment == m.deployment);
        let new = chosen.iter().filter(|(_, m)| is_canary(m)).count();
        let (of_old, of_new) = share.map_or((1, 1), |share| shares(chosen.len() - new, new, share.percent));
        let member = |(id, m): (&InstanceId, &Member)| {
            let (weight, group) = if is_canary(m) { (of_new, 1) } else { (of_old, 0) };
            Some(RouteMember { instance: id.clone(), address: m.address?, weight, group })
        };
        Route {
            hosts: self.hosts.clone(),
            path: self.route.path.clone(),
            strip: self.route.strip,
            balance: self.route.balance,
            sticky: self.route.sticky,
            protocol: self.route.protocol,
            limits: self.route.limits,
            maintenance: entrance.maintenance.clone(),
            files: files(members.values().filter(|m| m.duty == Duty::Serving && m.spec.routed && leads_to(m))),
            app: app.clone(),
            service,
            members: chosen.into_iter().filter_map(member).collect(),
        }
    }
}
