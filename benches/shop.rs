//! The app that is deployed: the tests' site, one file of which changes from push to push.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::agent::{Setup, TestAgent};
use crate::support::engine::Engine;
use crate::support::github::Push;
use crate::support::repo::Repo;
use crate::support::site::Behaviour;

/// The webhook's.
pub const SECRET: &str = "a secret of enough bytes";
/// For one deployment, a build of 50 MB included.
pub const LIMIT: Duration = Duration::from_secs(180);

/// An agent with one app.
pub struct Shop {
    pub repo: Repo,
    pub agent: TestAgent,
}

impl Shop {
    /// Starts an agent for `repo`; `keys` are further lines of `[apps.shop]`. Nothing is deployed.
    pub async fn start(engine: &Engine, repo: Repo, keys: &str) -> Self {
        let config = format!(
            "[apps.shop]\nrepo = {url:?}\nallow_local = true\nport = 8000\nhealth = {{ path = \"/healthz\" }}\n\
             webhook = {{ provider = \"github\", secret = {{ env = \"SHOP_SECRET\" }} }}\ndomains = [\"shop.test\"]\n\
             {keys}\n[apps.shop.rollout]\nwatch = \"0s\"\n",
            url = repo.url(),
        );
        let mut setup = Setup::new(&config).agent_line("reconcile = \"0s\"").env("SHOP_SECRET", SECRET);
        if let Some(binary) = std::env::var_os("LONGSHORE_BENCH_BINARY") {
            setup = setup.binary(binary);
        }
        Self { repo, agent: setup.start(engine).await }
    }

    /// An agent with a site of that many instances live.
    pub async fn live(engine: &Engine, instances: u32) -> Self {
        let (repo, _) = Repo::with_site(&Behaviour::version("v0"));
        let shop = Self::start(engine, repo, &format!("instances = {instances}")).await;
        shop.deploy().await;
        shop
    }

    /// Deploys the branch's tip.
    pub async fn deploy(&self) -> Value {
        let id = self.order().await;
        let deployment = self.agent.deployment_ended(id, LIMIT).await;
        assert_eq!(deployment["status"], "succeeded", "{deployment:#}");
        deployment
    }

    /// Orders a deployment of the branch's tip; its number.
    pub async fn order(&self) -> u64 {
        let answer = self.agent.api("POST", "/api/v1/apps/shop/deployments", Some(json!({}))).await;
        answer.expect(202).json()["id"].as_u64().expect("a deployment's number")
    }

    /// Pushes what is committed and delivers it as GitHub would: when it was sent, and the deployment when it ended.
    pub async fn push(&self) -> (SystemTime, Value) {
        let pushed = self.repo.push("main");
        let delivery = Push::of("main", &pushed).delivery();
        let sent = SystemTime::now();
        let answer = delivery.send(self.agent.listen, "shop", SECRET).await.expect(202).json();
        let id = answer["deployment"].as_u64().expect("a deployment's number");
        let deployment = self.agent.deployment_ended(id, LIMIT).await;
        assert_eq!(deployment["status"], "succeeded", "{deployment:#}");
        (sent, deployment)
    }
}

/// A time of a deployment's record, in milliseconds since the epoch.
pub fn at(value: &Value) -> f64 {
    let time: jiff::Timestamp = value.as_str().expect("a time").parse().expect("a time");
    time.as_millisecond() as f64
}

/// When a deployment entered a state.
pub fn entered(deployment: &Value, status: &str) -> f64 {
    let phases = deployment["phases"].as_array().expect("phases");
    let phase = phases.iter().find(|phase| phase["name"] == status);
    at(&phase.unwrap_or_else(|| panic!("no phase {status}: {deployment:#}"))["started_at"])
}

/// A moment as milliseconds since the epoch.
pub fn epoch_ms(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970").as_secs_f64() * 1e3
}
