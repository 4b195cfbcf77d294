//! One app, `shop`, as most tests need it: a site, an agent, a Discord.

use std::time::Duration;

use serde_json::Value;

use crate::support::agent::{Setup, TestAgent};
use crate::support::discord::{Discord, Message};
use crate::support::engine::{Container, Engine};
use crate::support::github;
use crate::support::http::Response;
use crate::support::load::Load;
use crate::support::repo::{Pushed, Repo};
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

/// For one deployment, builds on a loaded machine included.
pub const LIMIT: Duration = Duration::from_secs(90);
/// The webhook's.
pub const SECRET: &str = "a secret of enough bytes";
/// The app's domain.
pub const HOST: &str = "shop.test";

/// All that an agent keeps in its data directory.
const FILES: [&str; 14] = [
    "acme",
    "agent-id",
    "agent.lock",
    "journal.ballast",
    "journal.db",
    "journal.db-shm",
    "journal.db-wal",
    "longshore.sock",
    "mirrors",
    "proxy.lock",
    "proxy.log",
    "proxy.sock",
    "routes.json",
    "static",
];

/// What belongs together.
pub struct Shop {
    pub repo: Repo,
    pub agent: TestAgent,
    pub discord: Discord,
    pub engine: Engine,
}

/// The agent's environment besides [`SECRET`] and Discord's address.
pub type Env<'a> = &'a [(&'a str, &'a str)];

/// How the app is configured: `[apps.shop]` lines and tables behind the ones every shop has.
#[derive(Clone)]
pub struct Options {
    /// Further keys of `[apps.shop]`.
    pub keys: String,
    /// Further tables.
    pub tables: String,
    pub watch: &'static str,
}

impl Default for Options {
    /// Two instances of `web`.
    fn default() -> Self {
        Self::web("instances = 2\nhealth = { path = \"/healthz\", start_deadline = \"15s\" }\nstop_grace = \"2s\"")
    }
}

impl Options {
    /// One service, `web`, on port 8000.
    pub fn web(keys: &str) -> Self {
        Self { keys: format!("port = 8000\n{keys}\n"), tables: String::new(), watch: "500ms" }
    }

    /// Several services, with these tables.
    pub fn services(tables: &str) -> Self {
        Self { keys: String::new(), tables: tables.to_owned(), watch: "500ms" }
    }

    /// `web` with a port and `worker` without.
    pub fn web_and_worker(web: u32, worker: u32) -> Self {
        Self::services(&format!(
            "[apps.shop.services.web]\nport = 8000\ninstances = {web}\nstop_grace = \"2s\"\n\
             health = {{ path = \"/healthz\", start_deadline = \"15s\" }}\n\
             [apps.shop.services.worker]\ncommand = [\"worker\"]\ninstances = {worker}\nstop_grace = \"2s\"\n\
             health = {{ stable_for = \"300ms\" }}\n"
        ))
    }

    pub fn watch(mut self, watch: &'static str) -> Self {
        self.watch = watch;
        self
    }

    pub fn table(mut self, table: &str) -> Self {
        self.tables = format!("{}\n{table}\n", self.tables);
        self
    }

    /// For tests of what comes before the rollout: one instance, and no watch.
    pub fn quick() -> Self {
        Self::web("health = { path = \"/healthz\", start_deadline = \"20s\" }\nstop_grace = \"2s\"").watch("0s")
    }

    /// With further keys of `[apps.shop]`.
    pub fn keys(mut self, keys: &str) -> Self {
        self.keys.push_str(keys);
        self
    }
}

impl Shop {
    /// A shop whose branch has one version and which has not been deployed: nothing is reconciled.
    pub async fn start(engine: &Engine, behaviour: &Behaviour, options: Options) -> Self {
        Self::start_with(engine, behaviour, options, &[]).await
    }

    /// The same with further variables in the agent's environment.
    pub async fn start_with(engine: &Engine, behaviour: &Behaviour, options: Options, env: Env<'_>) -> Self {
        let (repo, _) = Repo::with_site(behaviour);
        Self::start_all(engine, repo, options, "0s", env).await
    }

    /// A shop on a repository of the test's own, reconciled so often.
    pub async fn start_on(engine: &Engine, repo: Repo, options: Options, reconcile: &str) -> Self {
        Self::start_all(engine, repo, options, reconcile, &[]).await
    }

    async fn start_all(engine: &Engine, repo: Repo, options: Options, reconcile: &str, env: Env<'_>) -> Self {
        let discord = Discord::start().await;
        let config = Self::config(&repo, &options);
        let setup = Setup::new(&config)
            .agent_line(&format!("reconcile = \"{reconcile}\""))
            .env("SHOP_SECRET", SECRET)
            .env("DISCORD_URL", discord.url());
        let setup = env.iter().fold(setup, |setup, (name, value)| setup.env(name, *value));
        let agent = setup.start(engine).await;
        Self { repo, agent, discord, engine: engine.clone() }
    }

    /// A shop whose first version is live. It was not watched; those that come are, as long as `options` says.
    pub async fn live(engine: &Engine, behaviour: &Behaviour, options: Options) -> Self {
        let mut shop = Self::start(engine, behaviour, options.clone().watch("0s")).await;
        shop.deploy_first().await;
        shop.reconfigure(&options).await;
        shop
    }

    /// Changes the configuration of the running agent.
    pub async fn reconfigure(&mut self, options: &Options) {
        let reloads = |log: String| log.matches("configuration reloaded").count();
        let before = reloads(self.agent.log());
        self.agent.set_config(&Self::config(&self.repo, options));
        self.agent.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the configuration is reloaded", LIMIT, async || {
            let log = self.agent.log();
            if reloads(log.clone()) > before { Ok(()) } else { Err(log) }
        })
        .await;
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

    /// Asks the API for something that becomes a deployment; its number.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> u64 {
        let answer = self.agent.api(method, path, Some(body)).await.expect(202).json();
        answer["id"].as_u64().expect("a deployment's number")
    }

    /// The same; the deployment when it has ended.
    pub async fn ask_and_wait(&self, method: &str, path: &str, body: Value) -> Value {
        let id = self.ask(method, path, body).await;
        self.agent.deployment_ended(id, LIMIT).await
    }

    /// Asks for a rollback and returns the answer.
    pub async fn rollback(&self, body: Value) -> Response {
        self.agent.api("POST", "/api/v1/apps/shop/rollback", Some(body)).await
    }

    /// Waits until a deployment, which may not be there yet, is in a state.
    pub async fn reaches(&self, id: u64, status: &str) {
        let what = format!("deployment {id} is {status}");
        eventually(&what, LIMIT, async || {
            let answer = self.agent.api("GET", &format!("/api/v1/deployments/{id}"), None).await;
            if answer.status == 200 && answer.json()["status"] == status { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    }

    /// Waits until a deployment's log has a line that contains `part`.
    pub async fn says(&self, id: u64, part: &str) {
        let what = format!("the log of deployment {id} says {part:?}");
        eventually(&what, LIMIT, async || {
            let log = self.log(id).await;
            if log.contains(part) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// A deployment's log.
    pub async fn log(&self, id: u64) -> String {
        self.agent.api("GET", &format!("/api/v1/deployments/{id}/log"), None).await.expect(200).text()
    }

    /// Asks for a deployment's end.
    pub async fn cancel(&self, id: u64) {
        let path = format!("/api/v1/deployments/{id}/cancel");
        self.agent.api("POST", &path, Some(serde_json::json!({}))).await.expect(202);
    }

    /// A load on the app.
    pub fn load(&self) -> Load {
        Load::start(self.agent.load(HOST))
    }

    /// The containers of a service.
    pub async fn instances(&self, service: &str) -> Vec<Container> {
        self.engine.instances(&self.agent.id(), "shop", service).await
    }

    /// Fails unless `release` is live and exactly so many instances of each service run it, ready and serving, for
    /// the agent and for the engine.
    pub async fn assert_live(&self, release: u64, services: &[(&str, usize)]) {
        let app = self.app().await;
        assert_eq!(app["live"]["release"], release, "{app:#}");
        let instances = app["instances"].as_array().expect("instances");
        let total: usize = services.iter().map(|(_, count)| count).sum();
        assert_eq!(instances.len(), total, "{app:#}");
        for instance in instances {
            let state = (&instance["release"], &instance["health"], &instance["duty"]);
            assert_eq!(state, (&release.into(), &"ready".into(), &"serving".into()), "{app:#}");
        }
        for (service, count) in services {
            let containers = self.instances(service).await;
            assert_eq!(containers.len(), *count, "{containers:#?}");
            let release = release.to_string();
            assert!(containers.iter().all(|c| c.label("longshore.release") == release), "{containers:#?}");
        }
    }

    /// Waits until every instance is ready: after a start of the agent health is observed anew.
    pub async fn all_ready(&self) {
        eventually("every instance is ready", LIMIT, async || {
            let app = self.app().await;
            let ready = app["instances"].as_array().is_some_and(|all| all.iter().all(|i| i["health"] == "ready"));
            if ready { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
    }

    /// The message about the n-th deployment that was told, from 1, once it says all of `parts`. An agent that was killed
    /// while it sent one sends it again, so that it may be a later one.
    pub async fn told(&self, number: usize, parts: &[&str]) -> Message {
        let what = format!("message {number} says {parts:?}");
        let says = |message: &Message| parts.iter().all(|part| message.text().contains(part));
        let told = |all: &[Message]| all.iter().skip(number - 1).position(says);
        let messages = self.discord.wait_for(&what, Duration::from_secs(20), |all| told(all).is_some()).await;
        let found = told(&messages).expect("it was there");
        messages[number - 1 + found].clone()
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

    /// The commits that the app's containers were started for.
    pub async fn running_commits(&self) -> Vec<String> {
        let containers = self.instances("web").await;
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
        // A table that is being written has another name for a moment.
        eventually("the data directory holds nothing strange", LIMIT, async || {
            let strange: Vec<_> = self.files().into_iter().filter(|name| !FILES.contains(&name.as_str())).collect();
            if strange.is_empty() { Ok(()) } else { Err(format!("{strange:?}")) }
        })
        .await;
        self.agent.finish().await;
        self.discord.finish();
    }

    /// What is in the agent's data directory.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.agent.data_dir()).expect("the data directory");
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Fails unless a deployment ended so, and its reason has all of `parts`.
#[track_caller]
pub fn assert_ended(deployment: &Value, status: &str, parts: &[&str]) {
    assert_eq!(deployment["status"], status, "{deployment:#}");
    let reason = deployment["reason"].as_str().unwrap_or_default();
    for part in parts {
        assert!(reason.contains(part), "{part:?} is missing in the reason {reason:?}");
    }
}

/// How long a deployment was in a state, over all times.
pub fn seconds_in(deployment: &Value, status: &str) -> f64 {
    let phases = deployment["phases"].as_array().expect("phases");
    phases.iter().filter(|phase| phase["name"] == status).filter_map(|phase| phase["seconds"].as_f64()).sum()
}
