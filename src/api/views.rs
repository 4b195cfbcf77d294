//! The JSON of the API, apart from the types inside: what is here is a promise to clients, and what the command line
//! reads back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::static_files::StaticView;
use super::traffic::{InstanceTrafficView, RequestsView, ServiceTrafficView, TrafficView};
use crate::agent::canaries::CanaryStanding;
use crate::agent::comparison::{Kind, Trouble};
use crate::agent::tip::NotLive;
use crate::agent::{ProxyStanding, Waits};
use crate::config::{App, Fraction, Service};
use crate::model::{AppName, CommitSha, Duty, Health, Status, Trigger};
use crate::proxy::Counts;
use crate::queue::Request;
use crate::rollout::InstanceState;
use crate::rollout::driver::canary::CanaryState;
use crate::rollout::permanent::Standing;
use crate::store::{Deployment, Drift, Ended, Release, Scope, Token};

/// An app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppView {
    /// Its name.
    pub name: String,
    /// Where its source comes from.
    pub repo: String,
    /// The branch that deploys.
    pub branch: String,
    /// Hosts that lead to it.
    pub domains: Vec<String>,
    /// What is live; null before the first release.
    pub live: Option<LiveView>,
    /// The branch's tip as it was last seen; null when it is live or on its way, and while it was not seen.
    #[serde(default)]
    pub tip: Option<TipView>,
    /// Why the last comparison did not find the tip; null when it did, and while nothing was compared.
    #[serde(default)]
    pub tip_unknown: Option<TipUnknownView>,
    /// The commit that failed and is not tried again by itself.
    pub held: Option<HeldView>,
    /// Its process types.
    pub services: Vec<ServiceView>,
    /// Its running copies.
    pub instances: Vec<InstanceView>,
    /// The deployment that runs now.
    pub deployment: Option<DeploymentView>,
    /// The canary under way, if there is one.
    #[serde(default)]
    pub canary: Option<CanaryView>,
    /// Whose requests it gets a share of, for an app that is a canary itself.
    #[serde(default)]
    pub canary_of: Option<SharesView>,
    /// The app that gets a share of its requests, for one that has a permanent canary.
    #[serde(default)]
    pub permanent_canary: Option<SharesView>,
    /// Whether every request is answered with a page in the app's place, with 503. Earlier versions do not say it.
    #[serde(default)]
    pub maintenance: bool,
    /// What became of its requests; null when the proxy does not answer, and for an app that is a canary itself, whose
    /// requests count as its production's.
    #[serde(default)]
    pub traffic: Option<TrafficView>,
    /// How many deployments wait.
    pub queued: usize,
    /// What last happened to live instances outside of deployments, newest first.
    pub drift: Vec<DriftView>,
    /// Why its deployments wait and its instances may not be known; null when all is well.
    pub waits: Option<WaitsView>,
    /// The process that serves it; null while the agent starts.
    #[serde(default)]
    pub proxy: Option<ProxyView>,
}

/// The proxy. What its instances are meant to do is told by their duty; while it does not answer nobody knows what is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyView {
    /// Whether it answers now.
    pub answers: bool,
    /// Its process id; null when none runs.
    pub pid: Option<u32>,
    /// Since when it does not answer; null when it does.
    pub since: Option<Timestamp>,
}

/// A permanent canary, seen from it or from its production.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharesView {
    /// The other app.
    pub app: String,
    /// The canary's share of production's requests while it serves, such as `1/3`.
    pub share: String,
    /// Whether it gets that now: `serving`, `down` or `suspended`.
    pub standing: Standing,
    /// Since when; null while that is not known yet.
    pub since: Option<Timestamp>,
    /// Why it gets none, or is only tried again; null when all is well.
    pub why: Option<String>,
}

impl SharesView {
    pub(super) fn of(other: &AppName, share: Fraction, standing: Option<CanaryStanding>) -> Self {
        let (app, share) = (other.to_string(), share.to_string());
        match standing {
            Some(CanaryStanding { standing, since, why }) => Self { app, share, standing, since: Some(since), why },
            None => {
                let why = Some("its instances have not been looked at yet".to_owned());
                Self { app, share, standing: Standing::Down, since: None, why }
            }
        }
    }
}

/// A canary under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryView {
    /// Of which deployment.
    pub deployment: i64,
    /// Which release it brings.
    pub release: u32,
    /// The step it is at or on its way to, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// The new instances' share of the requests in percent, as the proxy has it.
    pub share: u32,
    /// Since when.
    pub since: Timestamp,
    /// When the next step begins by itself; null while instances start, and while it is paused.
    pub next_at: Option<Timestamp>,
    /// A person has it wait.
    pub paused: bool,
    /// How new and old instances compare, in words; null before the first comparison, and without analysis.
    pub comparison: Option<String>,
}

impl From<CanaryState> for CanaryView {
    fn from(state: CanaryState) -> Self {
        let CanaryState { deployment, release, step, steps, share, since, next_at, paused, comparison } = state;
        let (deployment, release) = (deployment.0, release.0);
        Self { deployment, release, step, steps, share, since, next_at, paused, comparison }
    }
}

/// Why an app's deployments wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitsView {
    /// One sentence.
    pub why: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
}

/// Something that happened to live instances outside of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftView {
    /// When.
    pub at: Timestamp,
    /// Which instance, where it is about one.
    pub instance: Option<String>,
    /// What happened, and what was done about it.
    pub what: String,
}

impl DriftView {
    pub(super) fn of(drift: &Drift) -> Self {
        Self { at: drift.at, instance: drift.instance.as_ref().map(ToString::to_string), what: drift.what.clone() }
    }
}

/// The live release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveView {
    /// Its number.
    pub release: u32,
    /// Of which commit.
    pub commit: CommitSha,
    /// Who wrote it.
    pub author: String,
    /// The commit's first line.
    pub subject: String,
    /// The deployment that made it.
    pub deployment: i64,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// A branch's tip that is not live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TipView {
    /// Which commit.
    pub commit: CommitSha,
    /// Why it is not live.
    pub why: String,
}

/// A branch's tip that the last comparison did not find.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TipUnknownView {
    /// Why, and what to do.
    pub why: String,
    /// Whether that is nothing to worry about: a branch that never was is waited for.
    pub awaited: bool,
    /// Since the first comparison in a row that did not find it.
    pub since: Timestamp,
}

/// A held commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldView {
    /// Which.
    pub commit: CommitSha,
    /// Why it failed.
    pub reason: String,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// The port it listens on; null for a worker.
    pub port: Option<u16>,
    /// How many there are and should be.
    pub instances: CountView,
    /// The live release's image.
    pub image: Option<String>,
    /// argv; null = the image's own.
    pub command: Option<Vec<String>>,
    /// The static files of the live release.
    #[serde(rename = "static", default)]
    pub static_files: Vec<StaticView>,
    /// Its requests now.
    #[serde(flatten)]
    pub traffic: ServiceTrafficView,
}

/// Instances of a service, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountView {
    /// How many there should be.
    pub desired: u32,
    /// How many pass their checks.
    pub ready: usize,
    /// How many are chosen by the proxy or, for a worker, at work.
    pub serving: usize,
    /// How many others, which a failed deployment left behind, serve until the live release does. The other numbers are
    /// without them.
    #[serde(default)]
    pub standing_in: usize,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its name.
    pub id: String,
    /// Of which service.
    pub service: String,
    /// Its place, from 1.
    pub slot: u32,
    /// Whether it passes its checks.
    pub health: Health,
    /// What it is for.
    pub duty: Duty,
    /// A failed deployment left it behind, and it serves until the live release does.
    #[serde(default)]
    pub stands_in: bool,
    /// Its share of the traffic.
    pub weight: u32,
    /// Of which release.
    pub release: u32,
    /// Of which commit.
    pub commit: CommitSha,
    /// Whether its process runs: one that is meant to serve may have ended, or its container be gone. Earlier versions do not
    /// say it.
    #[serde(default = "as_a_rule")]
    pub running: bool,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// How often the runtime restarted it.
    pub restarts: u32,
    /// Where it is reached.
    pub address: Option<String>,
    /// The last answer of its health check.
    pub last_check: Option<String>,
    /// How its process last ended by itself; null when it never did while the agent looked. Earlier versions do not say it.
    #[serde(default)]
    pub last_end: Option<Ended>,
    /// Its requests.
    #[serde(flatten)]
    pub traffic: InstanceTrafficView,
}

fn as_a_rule() -> bool {
    true
}

impl InstanceView {
    /// Whether it is there for requests, ready or not.
    pub fn serves(&self) -> bool {
        self.duty == Duty::Serving && self.running
    }
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentView {
    /// Its number.
    pub id: i64,
    /// Of which app.
    pub app: String,
    /// `deploy`, `rollback`, `scale` or `restart`.
    pub kind: String,
    /// Where it stands.
    pub status: Status,
    /// Why it exists.
    pub trigger: Trigger,
    /// Of which commit; null until it is known.
    pub commit: Option<CommitSha>,
    /// The branch, where a push named it.
    #[serde(rename = "ref")]
    pub git_ref: Option<String>,
    /// The release it made or kept.
    pub release: Option<u32>,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// Who wrote the commit.
    pub author: Option<String>,
    /// The commit's first line.
    pub subject: Option<String>,
    /// Who asked for it.
    pub pusher: Option<String>,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When it left the queue.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The states it passed.
    pub phases: Vec<PhaseView>,
    /// The app's requests while it rolled out.
    pub requests: RequestsView,
    /// Which one took its place.
    pub superseded_by: Option<i64>,
    /// Somebody asked for its end.
    pub cancel_asked: bool,
    /// Where to read on.
    pub url: String,
}

/// A state that a deployment passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseView {
    /// The state.
    pub name: Status,
    /// Since when.
    pub started_at: Timestamp,
    /// Until when; null = still.
    pub finished_at: Option<Timestamp>,
    /// How long, so far.
    pub seconds: f64,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Its number.
    pub release: u32,
    /// Of which commit.
    pub commit: CommitSha,
    /// Who wrote it.
    pub author: String,
    /// The commit's first line.
    pub subject: String,
    /// The deployment that made it.
    pub deployment: i64,
    /// Whether it is the live one.
    pub live: bool,
    /// Whether it ever passed its watch.
    pub good: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last went live.
    pub live_at: Option<Timestamp>,
    /// Its services' images.
    pub services: Vec<ReleasedServiceView>,
}

/// A service of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleasedServiceView {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// The digest or id of the image's base, where the Dockerfile names one.
    pub base: Option<String>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its number, for revoking.
    pub id: i64,
    /// Whose or what for.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it is valid; null = no end.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// Only in the answer that makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Everything that [`AppView`] is made of.
pub(super) struct AppFacts<'a> {
    pub app: &'a App,
    /// Services in the order of the configuration with how many instances are asked for.
    pub services: Vec<(&'a Service, u32)>,
    pub live: Option<Release>,
    pub tip: Option<NotLive>,
    pub tip_unknown: Option<Trouble>,
    pub held: Option<(CommitSha, String)>,
    pub instances: Vec<InstanceState>,
    pub deployment: Option<DeploymentView>,
    pub canary: Option<CanaryState>,
    pub canary_of: Option<SharesView>,
    pub permanent_canary: Option<SharesView>,
    pub maintenance: bool,
    /// What the proxy has counted, of all apps; `None` when it does not answer.
    pub counts: Option<&'a Counts>,
    pub queued: usize,
    pub drift: Vec<Drift>,
    pub waits: Option<Waits>,
    pub proxy: Option<ProxyStanding>,
}

impl AppFacts<'_> {
    /// `None` as long as it is not known which there are.
    fn known_instances(&self) -> Option<&[InstanceState]> {
        let unknown = self.waits.is_some() && self.instances.is_empty();
        (!unknown).then_some(&self.instances)
    }
}

impl AppView {
    pub(super) fn of(facts: AppFacts<'_>) -> Self {
        let live = facts.live.as_ref();
        let of_instance = |instance| InstanceView::of(instance, facts.counts);
        let mut instances: Vec<InstanceView> = facts.instances.iter().map(of_instance).collect();
        instances.sort_by(|a, b| (&a.service, a.slot, a.release).cmp(&(&b.service, b.slot, b.release)));
        let services =
            facts.services.iter().map(|(service, desired)| ServiceView::of(service, *desired, &facts)).collect();
        Self {
            name: facts.app.name.to_string(),
            repo: facts.app.repo.to_string(),
            branch: facts.app.branch.clone(),
            domains: facts.app.hosts().into_iter().map(str::to_owned).collect(),
            live: live.map(LiveView::of),
            tip: facts.tip.map(|NotLive { commit, why }| TipView { commit, why }),
            tip_unknown: facts.tip_unknown.map(|trouble| TipUnknownView {
                why: trouble.why(facts.app),
                awaited: trouble.kind == Kind::NotYet,
                since: trouble.since,
            }),
            held: facts.held.map(|(commit, reason)| HeldView { commit, reason }),
            services,
            instances,
            deployment: facts.deployment,
            canary: facts.canary.map(CanaryView::from),
            canary_of: facts.canary_of,
            permanent_canary: facts.permanent_canary,
            maintenance: facts.maintenance,
            traffic: facts.counts.and_then(|counts| TrafficView::of(facts.app, counts)),
            queued: facts.queued,
            drift: facts.drift.iter().map(DriftView::of).collect(),
            waits: facts.waits.map(|Waits { why, since }| WaitsView { why, since }),
            proxy: facts.proxy.map(|ProxyStanding { answers, pid, since }| ProxyView { answers, pid, since }),
        }
    }
}

impl LiveView {
    fn of(release: &Release) -> Self {
        Self {
            release: release.number.0,
            commit: release.commit.clone(),
            author: release.body.author.clone(),
            subject: release.body.subject.clone(),
            deployment: release.deployment.0,
            since: release.live_at,
        }
    }
}

impl ServiceView {
    fn of(service: &Service, desired: u32, facts: &AppFacts<'_>) -> Self {
        let all = || facts.instances.iter().filter(|instance| instance.service == service.name);
        let own = || all().filter(|instance| !instance.stands_in);
        let serves = |instance: &&InstanceState| instance.duty == Duty::Serving && instance.health == Health::Ready;
        let live = facts.live.as_ref().and_then(|release| release.body.service(&service.name));
        Self {
            name: service.name.to_string(),
            port: service.port,
            instances: CountView {
                desired,
                ready: own().filter(|instance| instance.health == Health::Ready).count(),
                serving: own().filter(serves).count(),
                standing_in: all().filter(|instance| instance.stands_in).filter(serves).count(),
            },
            image: live.map(|live| live.image.to_string()),
            command: service.command.clone(),
            static_files: live.map(|live| StaticView::all_of(&live.service)).unwrap_or_default(),
            traffic: ServiceTrafficView::of(facts.app, service, facts.known_instances(), facts.counts),
        }
    }
}

impl InstanceView {
    fn of(instance: &InstanceState, counts: Option<&Counts>) -> Self {
        Self {
            id: instance.id.to_string(),
            service: instance.service.to_string(),
            slot: instance.slot,
            health: instance.health,
            duty: instance.duty,
            stands_in: instance.stands_in,
            weight: instance.weight,
            release: instance.release.0,
            commit: instance.commit.clone(),
            running: instance.running,
            started_at: instance.started_at,
            restarts: instance.restarts,
            address: instance.address.map(|address| address.to_string()),
            last_check: instance.last_check.clone(),
            last_end: instance.last_end.clone(),
            traffic: InstanceTrafficView::of(&instance.id, counts),
        }
    }
}

impl DeploymentView {
    /// `now` is the end of a phase that still lasts; `public_url` the start of the link.
    pub(super) fn of(deployment: &Deployment, public_url: Option<&str>, now: Timestamp) -> Self {
        Self {
            id: deployment.id.0,
            app: deployment.app.to_string(),
            kind: kind(&deployment.request).into(),
            status: deployment.status,
            trigger: deployment.trigger,
            commit: deployment.commit.clone(),
            git_ref: deployment.git_ref.as_ref().map(ToString::to_string),
            release: deployment.release.map(|release| release.0),
            reason: deployment.reason.clone(),
            author: deployment.author.clone(),
            subject: deployment.subject.clone(),
            pusher: deployment.pusher.clone(),
            queued_at: deployment.queued_at,
            started_at: deployment.started_at,
            finished_at: deployment.finished_at,
            phases: deployment
                .phases
                .iter()
                .map(|phase| PhaseView {
                    name: phase.status,
                    started_at: phase.started_at,
                    finished_at: phase.finished_at,
                    seconds: seconds_between(phase.started_at, phase.finished_at.unwrap_or(now)),
                })
                .collect(),
            requests: deployment.requests.into(),
            superseded_by: deployment.superseded_by.map(|by| by.0),
            cancel_asked: deployment.cancel_asked,
            url: format!("{}/api/v1/deployments/{}", public_url.unwrap_or_default(), deployment.id.0),
        }
    }
}

impl ReleaseView {
    pub(super) fn of(release: &Release, live: bool) -> Self {
        let services = release.body.services.iter();
        Self {
            release: release.number.0,
            commit: release.commit.clone(),
            author: release.body.author.clone(),
            subject: release.body.subject.clone(),
            deployment: release.deployment.0,
            live,
            good: release.good_at.is_some(),
            created_at: release.created_at,
            live_at: release.live_at,
            services: services
                .map(|released| ReleasedServiceView {
                    name: released.service.name.to_string(),
                    image: released.image.to_string(),
                    base: released.base.clone(),
                })
                .collect(),
        }
    }
}

impl TokenView {
    pub(super) fn of(token: Token, secret: Option<String>) -> Self {
        let Token { id, name, scope, created_at, expires_at, last_used_at } = token;
        Self { id, name, scope, created_at, expires_at, last_used_at, token: secret }
    }
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Deploy { .. } => "deploy",
        Request::Rollback { .. } => "rollback",
        Request::Scale { .. } => "scale",
        Request::Restart => "restart",
    }
}

/// To the millisecond; never negative, whatever the wall clock did.
pub(crate) fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    let ms = to.as_millisecond().saturating_sub(from.as_millisecond()).max(0);
    ms as f64 / 1000.0
}
