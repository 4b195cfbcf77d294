//! One app, `shop`, as most tests need it: a site, an agent, a Discord.

use std::time::Duration;

use serde_json::Value;

use crate::support::agent::{Setup, TestAgent};
use crate::support::discord::Discord;
use crate::support::engine::Engine;
use crate::support::github;
use crate::support::repo::{Pushed, Repo};
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

/// For one deployment, builds on a loaded machine included.
pub const LIMIT: Duration = Duration::from_secs(90);
/// The webhook's.
pub const SECRET: &str = "a secret of enough bytes";
/// The app's domain.
pub const HOST: &str = "shop.test";

/// What belongs together.
pub struct Shop {
    pub repo: Repo,
    pub agent: TestAgent,
    pub discord: Discord,
}

/// How the app is configured: `[apps.shop]` lines and tables behind the ones every shop has.
pub struct Options {
    /// Further keys of `[apps.shop]`.
    pub keys: String,
    /// Further tables.
    pub tables: String,
    pub watch: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keys: "port = 8000\ninstances = 2\nhealth = { path = \"/healthz\", start_deadline = \"8s\" }\nstop_grace = \"2s\"\n".into(),
            tables: String::new(),
            watch: "1s",
        }
    }
}

impl Options {
    /// For tests of what comes before the rollout: one instance, and no watch.
    pub fn quick() -> Self {
        let keys = "port = 8000\nhealth = { path = \"/healthz\", start_deadline = \"20s\" }\nstop_grace = \"2s\"\n";
        Self { keys: keys.into(), watch: "0s", ..Self::default() }
    }

    /// With further keys of `[apps.shop]`.
    pub fn keys(mut self, keys: &str) -> Self {
        self.keys.push_str(keys);
        self
    }

    /// With further tables.
    pub fn tables(mut self, tables: &str) -> Self {
        self.tables.push_str(tables);
        self
    }
}

impl Shop {
    /// A shop whose branch has one version and which has not been deployed: nothing is reconciled.
    pub async fn start(engine: &Engine, behaviour: &Behaviour, options: Options) -> Self {
        let (repo, _) = Repo::with_site(behaviour);
        Self::start_on(engine, repo, options, "0s").await
    }

    /// A shop on a repository of the test's own, reconciled so often.
    pub async fn start_on(engine: &Engine, repo: Repo, options: Options, reconcile: &str) -> Self {
        let discord = Discord::start().await;
        let config = Self::config(&repo, &options);
        let agent = Setup::new(&config)
            .agent_line(&format!("reconcile = \"{reconcile}\""))
            .env("SHOP_SECRET", SECRET)
            .env("DISCORD_URL", discord.url())
            .start(engine)
            .await;
        Self { repo, agent, discord }
    }

    pub fn config(repo: &Repo, options: &Options) -> String {
        format!(
            "[[notify]]\nkind = \"discord\"\nurl = {{ env = \"DISCORD_URL\" }}\nallow_local = true\n\n\
             [apps.shop]\nrepo = {url:?}\nallow_local = true\n\
             webhook = {{ provider = \"github\", secret = {{ env = \"SHOP_SECRET\" }} }}\n\
             domains = [\"{HOST}\"]\n{keys}\n\
             [apps.shop.rollout]\nwatch = \"{watch}\"\n{tables}\n",
            url = repo.url(),
            keys = options.keys,
            watch = options.watch,
            tables = options.tables,
        )
    }

    /// Commits and pushes a version, and tells the agent as GitHub would; the deployment when it has ended.
    pub async fn push(&self, behaviour: &Behaviour) -> Value {
        let id = self.push_without_waiting(behaviour).await;
        self.agent.deployment_ended(id, LIMIT).await
    }

    /// The same, without waiting for the end.
    pub async fn push_without_waiting(&self, behaviour: &Behaviour) -> u64 {
        self.repo.write_site(behaviour);
        self.repo.commit("A new version");
        let pushed = self.repo.push("main");
        self.deliver(&pushed).await
    }

    /// Delivers a push; the number of the deployment that it became.
    pub async fn deliver(&self, pushed: &Pushed) -> u64 {
        let delivery = github::Push::of("main", pushed).delivery();
        let answer = delivery.send(self.agent.listen, "shop", SECRET).await.expect(202).json();
        assert_eq!(answer["decision"], "queued", "{answer}");
        answer["deployment"].as_u64().expect("a deployment's number")
    }

    /// Brings the branch's first version live.
    pub async fn deploy_first(&self) -> Value {
        let answer = self.agent.api("POST", "/api/v1/apps/shop/deployments", Some(serde_json::json!({}))).await;
        let id = answer.expect(202).json()["id"].as_u64().expect("a deployment's number");
        let deployment = self.agent.deployment_ended(id, LIMIT).await;
        assert_eq!(deployment["status"], "succeeded", "{deployment:#}");
        deployment
    }

    /// Asks for a deployment as the API's users do; its number.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> u64 {
        let answer = self.agent.api(method, path, Some(body)).await.expect(202).json();
        answer["id"].as_u64().expect("a deployment's number")
    }

    /// The same, waiting for its end.
    pub async fn asked(&self, method: &str, path: &str, body: Value) -> Value {
        let id = self.ask(method, path, body).await;
        self.agent.deployment_ended(id, LIMIT).await
    }

    /// A deployment as it is now.
    pub async fn deployment(&self, id: u64) -> Value {
        self.agent.get(&format!("/api/v1/deployments/{id}")).await
    }

    /// The app's deployments, newest first.
    pub async fn deployments(&self) -> Vec<Value> {
        let all = self.agent.get("/api/v1/apps/shop/deployments?limit=200").await;
        all.as_array().expect("a list").clone()
    }

    /// Waits until a deployment is in a state.
    pub async fn reaches(&self, id: u64, status: &str) {
        eventually(&format!("deployment {id} is {status}"), LIMIT, async || {
            let now = self.agent.api("GET", &format!("/api/v1/deployments/{id}"), None).await;
            if now.status == 200 && now.json()["status"] == status { Ok(()) } else { Err(now.text()) }
        })
        .await;
    }

    /// The commits that the app's containers were started for.
    pub async fn running_commits(&self) -> Vec<String> {
        let containers = self.agent.engine().instances(&self.agent.id(), "shop", "web").await;
        containers.iter().map(|container| container.label("longshore.commit").to_owned()).collect()
    }

    /// What the site answers through the proxy.
    pub async fn version(&self) -> String {
        let page = self.agent.visit(HOST, "/").await.expect("an answer of the proxy");
        page.expect(200).text().trim().to_owned()
    }

    /// The app as the API shows it.
    pub async fn app(&self) -> Value {
        self.agent.get("/api/v1/apps/shop").await
    }

    /// Ends everything; fails on anything left behind or any message that Discord would have refused.
    pub async fn finish(self) {
        self.agent.finish().await;
        self.discord.finish();
    }
}
