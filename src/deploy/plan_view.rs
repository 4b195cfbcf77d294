//! What a deployment would do, without doing it: for `dry_run` and `longshore plan`.

use serde::{Deserialize, Serialize};

use super::build::BuildRequest;
use super::source::Want;
use super::{Deployer, spec};
use crate::config::{App, Order, Service};
use crate::journal::DeployLog;
use crate::model::{CommitSha, GitRef};
use crate::store::{Release, ReleasedService};
use tokio_util::sync::CancellationToken;

mod canary;
mod files;

use canary::Change;
pub use canary::{CanaryPlan, SharesPlan, StrategyPlan};
pub use files::{FilesPlan, StaticPlan};

/// The answer of a dry run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// Of which commit.
    pub commit: CommitSha,
    /// Its first line.
    pub subject: String,
    /// Its author.
    pub author: String,
    /// What is live now: `v6`.
    pub live: Option<String>,
    /// Service by service, in the order of the rollout.
    pub services: Vec<ServicePlan>,
    /// How instances are replaced, as it is configured.
    #[serde(default)]
    pub strategy: StrategyPlan,
    /// The canary that this deployment would be; null where instances are replaced one after another, also where there is
    /// nothing to share requests with.
    #[serde(default)]
    pub canary: Option<CanaryPlan>,
    /// Whose requests the app gets a share of, for one that is a permanent canary.
    #[serde(default)]
    pub canary_of: Option<SharesPlan>,
    /// Whether every request would go on being answered with a page in the app's place, with 503.
    #[serde(default)]
    pub maintenance: bool,
    /// The release command that would run, if any.
    pub release_command: Option<Vec<String>>,
    /// Why the commit is held: pushes do not deploy it again, a person's deployment does.
    #[serde(default)]
    pub held: Option<String>,
}

/// Where a service's image would come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePlan {
    /// It is built.
    Build,
    /// Its content was built before and is found.
    Reuse,
}

/// What would happen to one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Its name.
    pub name: String,
    /// Where its image would come from.
    pub image: ImagePlan,
    /// How many instances it would have.
    pub instances: u32,
    /// How many would be replaced or started.
    pub replaced: u32,
    /// How many would be stopped without a successor.
    pub stopped: u32,
    /// `start_first` or `stop_first`.
    pub order: Order,
    /// Its static files.
    #[serde(rename = "static", default)]
    pub static_files: Vec<StaticPlan>,
}

/// Plans a deployment of `want` (a full commit id, a ref, a branch; `None` = the branch's tip).
pub async fn plan(deployer: &Deployer, want: Option<String>) -> Result<PlanView, String> {
    let config = deployer.config.borrow().clone();
    let app = config.apps.get(&deployer.app).cloned().ok_or("the app is not configured any more")?;
    let want = parse_want(&app, want)?;
    let silent = DeployLog::new(|_| {});
    let source = deployer.mirrors.fetch(&app, &want, &silent, &CancellationToken::new()).await;
    let source = source.map_err(|err| err.to_string())?;
    let live = deployer.store.live_release(&app.name).await.map_err(|err| err.to_string())?;
    let (mut services, mut changes, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    for service in app.services.values() {
        let request = BuildRequest {
            app: &app.name,
            deployment: crate::model::DeploymentId(0),
            source: &source,
            build: &service.build,
        };
        let key = deployer.builder.key(request).await.map_err(|err| err.to_string())?;
        if live_image(live.as_ref(), service, &key).is_some() {
            unchanged.push(service.name.clone());
        }
        let (plan, change) = service_plan(deployer, &app, live.as_ref(), service, &key).await?;
        services.push(plan);
        changes.push(change);
    }
    for gone in gone_services(&app, live.as_ref()) {
        let stopped = running(deployer, &gone);
        // It may still be in the routes.
        changes.push(Change { service: gone.clone(), routed: true, comes: false, goes: stopped > 0 });
        services.push(ServicePlan {
            name: gone,
            image: ImagePlan::Reuse,
            instances: 0,
            replaced: 0,
            stopped,
            order: app.rollout.order,
            static_files: Vec::new(),
        });
    }
    // The release command runs where the image that it runs in is not the live one.
    let release_command = app.release.as_ref().filter(|release| !unchanged.contains(&release.service));
    let release_command = release_command.map(|release| release.command.clone());
    let held = deployer.store.held_commit(&app.name).await.map_err(|err| err.to_string())?;
    Ok(PlanView {
        held: held.filter(|(commit, _)| *commit == source.commit).map(|(_, reason)| reason),
        commit: source.commit,
        subject: source.subject,
        author: source.author,
        live: live.map(|live| live.number.to_string()),
        services,
        strategy: StrategyPlan::from(&app.rollout.strategy),
        canary: CanaryPlan::of(&app.rollout.strategy, &changes),
        canary_of: app.canary_of.as_ref().map(SharesPlan::from),
        maintenance: config.in_maintenance(&app),
        release_command,
    })
}

fn parse_want(app: &App, want: Option<String>) -> Result<Want, String> {
    let Some(text) = want else { return Ok(Want::Branch(app.branch.clone())) };
    if let Ok(commit) = text.parse::<CommitSha>() {
        return Ok(Want::Commit(commit));
    }
    if let Some(tag) = text.strip_prefix("refs/tags/") {
        return Ok(Want::Tag(tag.to_owned()));
    }
    let branch = text.strip_prefix("refs/heads/").unwrap_or(&text);
    GitRef::of_branch(branch).map_err(|err| err.to_string())?;
    Ok(Want::Branch(branch.to_owned()))
}

/// The service as it is live, when its image is of the content with this key.
fn live_image<'a>(live: Option<&'a Release>, service: &Service, key: &str) -> Option<&'a ReleasedService> {
    live.and_then(|live| live.body.service(&service.name)).filter(|released| released.artifact == key)
}

async fn service_plan(
    deployer: &Deployer,
    app: &App,
    live: Option<&Release>,
    service: &Service,
    key: &str,
) -> Result<(ServicePlan, Change), String> {
    let same_image = live_image(live, service, key);
    let image = match same_image {
        Some(released) => Some(released.image.clone()),
        None => deployer.builder.find(&app.name, key).await.map_err(|err| err.to_string())?,
    };
    let configured = service.instances;
    let instances = deployer.store.scale(&app.name, &service.name, configured).await.map_err(|err| err.to_string())?;
    let now = running(deployer, service.name.as_str());
    let unchanged = match (same_image, live) {
        (Some(released), Some(live)) => same_settings(deployer, live, released, service).await?,
        _ => false,
    };
    let replaced = if unchanged { instances.saturating_sub(now) } else { instances };
    let stopped = now.saturating_sub(instances);
    let change = Change {
        service: service.name.to_string(),
        routed: app.leads_to(service),
        comes: replaced > 0,
        goes: if unchanged { stopped > 0 } else { now > 0 },
    };
    let plan = ServicePlan {
        name: service.name.to_string(),
        image: if image.is_some() { ImagePlan::Reuse } else { ImagePlan::Build },
        instances,
        replaced,
        stopped,
        order: app.rollout.order,
        static_files: StaticPlan::all_of(&app.name, service, image.as_ref(), &deployer.static_files),
    };
    Ok((plan, change))
}

/// Whether instances of `service` with the live image would be what runs now.
async fn same_settings(
    deployer: &Deployer,
    live: &Release,
    released: &ReleasedService,
    service: &Service,
) -> Result<bool, String> {
    let mut next = live.clone();
    for candidate in &mut next.body.services {
        if candidate.service.name == service.name {
            *candidate = ReleasedService { service: service.clone(), ..released.clone() };
        }
    }
    let wanted = spec::service_specs(&next, &deployer.settings_key, &deployer.static_files)?;
    let wanted = wanted.get(&service.name).and_then(|spec| Some(&spec.prepared.as_ref().ok()?.settings));
    let of_service = |state: &crate::rollout::InstanceState| state.service == service.name;
    let settings = deployer.driver.settings().await;
    let current = deployer.driver.instances();
    Ok(current.iter().filter(|s| of_service(s)).all(|state| wanted.is_some() && settings.get(&state.id) == wanted))
}

fn gone_services(app: &App, live: Option<&Release>) -> Vec<String> {
    let released = live.into_iter().flat_map(|live| &live.body.services);
    let names = released.map(|released| &released.service.name);
    names.filter(|name| !app.services.contains_key(*name)).map(ToString::to_string).collect()
}

fn running(deployer: &Deployer, service: &str) -> u32 {
    let count = deployer.driver.instances().iter().filter(|state| state.service.as_str() == service).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}
