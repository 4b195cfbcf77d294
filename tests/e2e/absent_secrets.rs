//! A secret that is not there when the agent starts: one app's fault is no other's, and it mends itself.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bollard::query_parameters::{RemoveContainerOptionsBuilder, StopContainerOptionsBuilder};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::github::Push;
use crate::support::http::{self, Response};
use crate::support::load::Load;
use crate::support::repo::{Pushed, Repo};
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

const BLOG: &str = "/api/v1/apps/blog";
const BLOG_HOST: &str = "blog.test";
const BLOG_SECRET: &str = "another secret of enough bytes";

/// Files that only their owner can read.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As a program does it that knows nothing of agents: first the file, then what is in it.
    fn write(&self, name: &str, secret: &str) {
        std::fs::write(self.path(name), "").expect("written");
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).expect("its mode");
        std::fs::write(self.path(name), secret).expect("written");
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("removed");
    }
}

/// `/readyz` as a stranger sees it, once it answers and says `part`.
async fn says_to_strangers(shop: &Shop, part: &str) -> Response {
    eventually(&format!("/readyz says {part:?}"), LIMIT, async || {
        let answer = http::get(shop.agent.listen, "localhost", "/readyz").await?;
        if answer.text().contains(part) { Ok(answer) } else { Err(answer.text()) }
    })
    .await
}

/// Waits until no secret is absent any more.
async fn mended(shop: &Shop) {
    eventually("no secret is absent", LIMIT, async || {
        let answer = http::get(shop.agent.listen, "localhost", "/readyz").await?;
        let is_well = answer.status == 200 && !answer.text().contains("absent");
        if is_well { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

/// Waits until an instance of the shop says that it waits for its secret.
async fn waits(shop: &Shop) {
    let part = "could not be started: GREETING of service web: the secret file";
    eventually("an instance says what it waits for", LIMIT, async || {
        let app = shop.app().await.to_string();
        if app.contains(part) { Ok(()) } else { Err(app) }
    })
    .await;
}

async fn logged(shop: &Shop, part: &str) {
    eventually(&format!("the log says {part:?}"), LIMIT, async || {
        if shop.agent.log().contains(part) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}

async fn status(shop: &Shop, app: &str) -> String {
    String::from_utf8_lossy(&shop.agent.cli(&["status", app]).await.stdout).into_owned()
}

async fn blog_containers(shop: &Shop) -> Vec<String> {
    let containers = shop.engine.instances(&shop.agent.id(), "blog", "web").await;
    let mut ids: Vec<String> = containers.into_iter().map(|container| container.id).collect();
    ids.sort();
    ids
}

async fn ask_blog(shop: &Shop, path: &str) -> Value {
    let asked = shop.agent.api("POST", &format!("{BLOG}/{path}"), Some(json!({}))).await.expect(202).json();
    shop.agent.deployment_ended(asked["id"].as_u64().expect("a number"), LIMIT).await
}

async fn deliver_to_blog(shop: &Shop, pushed: &Pushed, secret: &str) -> Response {
    Push::of("main", pushed).delivery().send(shop.agent.listen, "blog", secret).await
}

#[tokio::test]
async fn one_apps_absent_secrets_are_no_other_apps_fault_and_mend_themselves() {
    let Some(engine) = engine::or_skip("one_apps_absent_secrets").await else { return };
    let files = Files::new();
    files.write("hook", BLOG_SECRET);
    files.write("greeting", "hello from a file");
    let (repo, _) = Repo::with_site(&Behaviour::version("b1"));
    let blog = format!(
        "[apps.blog]\nrepo = {:?}\nallow_local = true\ndomains = [\"{BLOG_HOST}\"]\nport = 8000\ninstances = 2\n\
         webhook = {{ secret = {{ file = {:?} }} }}\nenv = {{ GREETING = {{ file = {:?} }} }}\n\
         health = {{ path = \"/healthz\" }}\nstop_grace = \"2s\"\n[apps.blog.rollout]\nwatch = \"0s\"\n",
        repo.url(),
        files.path("hook"),
        files.path("greeting"),
    );
    let options = Options::default().watch("0s").table(&blog);
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), options).await;
    shop.deploy_first().await;
    assert_ended(&ask_blog(&shop, "deployments").await, "succeeded", &[]);
    let before = blog_containers(&shop).await;
    assert_eq!(before.len(), 2);

    let load = Load::start(shop.agent.load(BLOG_HOST));
    shop.agent.kill().await;
    files.remove("hook");
    files.remove("greeting");
    shop.agent.spawn();

    // It says so: to strangers without the place, to those who may see it with it.
    let ready = says_to_strangers(&shop, "apps.blog.webhook.secret").await.text();
    assert!(ready.contains("apps.blog.env.GREETING") && !ready.contains(files.path("").to_str().unwrap()), "{ready}");
    let place = files.path("hook").display().to_string();
    let ready = shop.agent.api("GET", "/readyz", None).await.expect(200).text();
    assert!(ready.contains("blog needs it for is refused") && ready.contains(&place), "{ready}");
    let shown = status(&shop, "blog").await;
    assert!(shown.contains(&place), "{shown}");

    // The other app is what it was.
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v2");

    // Nothing is taken for this one, however it is signed.
    repo.write_site(&Behaviour::version("b2"));
    repo.commit("A second version");
    let pushed = repo.push("main");
    let delivery = Push::of("main", &pushed).delivery();
    for headers in [delivery.headers(BLOG_SECRET), delivery.headers(""), delivery.unsigned_headers()] {
        let said = delivery.send_with(shop.agent.listen, "blog", &headers).await.expect(503).text();
        assert!(!said.contains(&place), "{said}");
    }
    // What a person asks for fails before anything is built or replaced, and says why.
    for what in ["deployments", "restart"] {
        let failed = ask_blog(&shop, what).await;
        assert_ended(&failed, "failed", &["GREETING of service web", "greeting cannot be read"]);
        let phases = failed["phases"].to_string();
        assert!(!phases.contains("building") && !phases.contains("rolling_out"), "{failed:#}");
    }

    // It is kept up: the very container is started again.
    let stop = StopContainerOptionsBuilder::new().t(1).build();
    shop.engine.docker.stop_container(&before[0], Some(stop)).await.expect("stopped");
    eventually("the container runs again", LIMIT, async || {
        let all = shop.engine.instances(&shop.agent.id(), "blog", "web").await;
        if all.iter().all(|one| one.state == "running") { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    assert_eq!(blog_containers(&shop).await, before);

    // A check and a reload take it for what it is, and what is in force stays.
    let check = shop.agent.cli(&["check"]).await;
    assert_eq!(check.status.code(), Some(2));
    shop.agent.signal(Signal::SIGHUP);
    logged(&shop, "the configuration is not reloaded").await;
    assert_eq!(shop.version().await, "v2");

    // Each is found by itself when it is there.
    files.write("hook", BLOG_SECRET);
    eventually("a delivery is taken", LIMIT, async || {
        let answer = deliver_to_blog(&shop, &pushed, BLOG_SECRET).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    deliver_to_blog(&shop, &pushed, "").await.expect(401);
    shop.agent.deployment_ended(6, LIMIT).await;
    assert_ended(&shop.deployment(6).await, "failed", &["greeting cannot be read"]);
    assert_eq!(blog_containers(&shop).await, before);

    files.write("greeting", "hello from a file");
    mended(&shop).await;
    assert!(!status(&shop, "blog").await.contains("absent"));
    assert_eq!(blog_containers(&shop).await, before, "nothing was replaced");
    repo.write_site(&Behaviour::version("b3"));
    repo.commit("A third version");
    let queued = deliver_to_blog(&shop, &repo.push("main"), BLOG_SECRET).await.expect(202).json();
    let ended = shop.agent.deployment_ended(queued["deployment"].as_u64().unwrap(), LIMIT).await;
    assert_ended(&ended, "succeeded", &[]);
    assert_eq!(shop.agent.visit(BLOG_HOST, "/").await.unwrap().expect(200).text().trim(), "b3");
    let greeting = shop.agent.visit(BLOG_HOST, "/env?GREETING").await.unwrap().expect(200).text();
    assert_eq!(greeting.trim(), "hello from a file");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn what_cannot_go_on_without_a_secret_waits_for_it() {
    let Some(engine) = engine::or_skip("what_cannot_go_on_without_a_secret").await else { return };
    let files = Files::new();
    files.write("greeting", "hello from a file");
    let table = format!("[apps.shop.env]\nGREETING = {{ file = {:?} }}\n", files.path("greeting"));
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().table(&table)).await;
    let load = shop.load();

    // A deployment that has begun to replace instances neither fails nor goes on.
    let id = shop.push_without_waiting(&Behaviour::version("v2").ready_after_ms(2000)).await;
    shop.says(id, "d2-web-1: starting").await;
    shop.agent.kill().await;
    files.remove("greeting");
    shop.agent.spawn();
    says_to_strangers(&shop, "apps.shop.env.GREETING").await;
    logged(&shop, "the deployment goes on when its secrets can be read").await;
    assert_eq!(shop.deployment(id).await["status"], "rolling_out");
    files.write("greeting", "hello from a file");
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert!(shop.log(id).await.contains("its secrets can be read again; going on from rolling_out"));
    mended(&shop).await;
    shop.assert_live(2, &[("web", 2)]).await;

    // Where a container is gone, a new one would be needed: it is not started without its environment.
    shop.agent.kill().await;
    files.remove("greeting");
    shop.agent.spawn();
    says_to_strangers(&shop, "apps.shop.env.GREETING").await;
    let gone = shop.instances("web").await.into_iter().find(|c| c.label("longshore.slot") == "1").expect("web 1");
    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    shop.engine.docker.remove_container(&gone.id, Some(force)).await.expect("removed");
    waits(&shop).await;
    assert_eq!(shop.instances("web").await.len(), 1);
    // So it is with one that went while no agent looked.
    shop.agent.kill().await;
    shop.agent.spawn();
    says_to_strangers(&shop, "apps.shop.env.GREETING").await;
    waits(&shop).await;
    files.write("greeting", "hello from a file");
    mended(&shop).await;
    eventually("it is started", LIMIT, async || match shop.instances("web").await.len() {
        2 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    shop.all_ready().await;
    shop.assert_live(2, &[("web", 2)]).await;
    let greeting = shop.agent.visit(HOST, "/env?GREETING").await.unwrap().expect(200).text();
    assert_eq!(greeting.trim(), "hello from a file");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}
