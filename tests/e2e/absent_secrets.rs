//! A secret that is not there when the agent starts: one app's fault is no other's, and it mends itself.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bollard::query_parameters::{RemoveContainerOptionsBuilder, StopContainerOptionsBuilder};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine::{self, Container};
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

/// Waits until the blog is at `version`, which nobody has asked for.
async fn deploys_itself(shop: &Shop, version: &str) {
    eventually("the branch's tip is live", LIMIT, async || {
        let seen = shop.agent.visit(BLOG_HOST, "/").await?.text();
        if seen.trim() == version { Ok(()) } else { Err(seen) }
    })
    .await;
    eventually("its deployment has ended", LIMIT, async || {
        let newest = shop.agent.get(&format!("{BLOG}/deployments?limit=1")).await;
        if newest.to_string().contains("succeeded") { Ok(()) } else { Err(newest.to_string()) }
    })
    .await;
}

/// For the next start.
fn change_config(shop: &Shop, from: &str, to: &str) {
    let file = shop.agent.config_file();
    let text = std::fs::read_to_string(&file).expect("read");
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).expect("written");
}

/// A deployment of `version` that is cut off when its log says `part`, and whose secret is gone when the agent is back.
async fn cut_off(shop: &mut Shop, files: &Files, version: &Behaviour, parts: &[&str]) -> u64 {
    let id = shop.push_without_waiting(version).await;
    for part in parts {
        shop.says(id, part).await;
    }
    eventually("what is started runs", LIMIT, async || {
        let all = shop.instances("web").await;
        if !all.is_empty() && all.iter().all(|c| c.state == "running") { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    shop.agent.kill().await;
    files.remove("greeting");
    shop.agent.spawn();
    says_to_strangers(shop, "apps.shop.env.GREETING").await;
    id
}

/// It says in its log and as what is waited for that it waits, and for what.
async fn says_what_it_waits_for(shop: &Shop, id: u64) {
    shop.says(id, "it waits for a secret, and goes on by itself when that can be read: GREETING of service web").await;
    let waits = shop.app().await["waits"].to_string();
    assert!(waits.contains(&format!("#{id} waits for a secret: GREETING of service web")), "{waits}");
    assert!(status(shop, "shop").await.contains("waits for a secret: GREETING"));
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
    // The branches are compared at the start, and then not before it matters.
    change_config(&shop, "reconcile = \"0s\"", "reconcile = \"1h\"");
    shop.agent.spawn();

    // It says so: to strangers without the place, to those who may see it with it.
    let ready = says_to_strangers(&shop, "apps.blog.webhook.secret").await.text();
    assert!(ready.contains("apps.blog.env.GREETING") && !ready.contains(files.path("").to_str().unwrap()), "{ready}");
    let place = files.path("hook").display().to_string();
    let ready = shop.agent.api("GET", "/readyz", None).await.expect(200).text();
    assert!(ready.contains("blog needs it for is refused") && ready.contains(&place), "{ready}");
    let shown = status(&shop, "blog").await;
    assert!(shown.contains(&place), "{shown}");

    // Another reason is told as soon as it is one.
    files.write("hook", "short");
    eventually("the new reason is told", LIMIT, async || {
        let ready = shop.agent.api("GET", "/readyz", None).await.text();
        if ready.contains("hook holds 5 bytes") { Ok(()) } else { Err(ready) }
    })
    .await;
    files.remove("hook");

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

    // What was pushed meanwhile is deployed by itself.
    files.write("greeting", "hello from a file");
    mended(&shop).await;
    assert!(!status(&shop, "blog").await.contains("absent"));
    deploys_itself(&shop, "b2").await;
    assert_eq!(shop.deployment(7).await["trigger"], "reconcile");

    // One that goes later is told as well, and what was read of it stays in use.
    files.remove("hook");
    let ready = says_to_strangers(&shop, "apps.blog.webhook.secret").await.text();
    assert!(ready.contains("stays in use"), "{ready}");
    deliver_to_blog(&shop, &pushed, BLOG_SECRET).await.expect(202);
    deliver_to_blog(&shop, &pushed, "").await.expect(401);
    // Without it no delivery is taken; the comparison with the branch needs none.
    shop.agent.kill().await;
    repo.write_site(&Behaviour::version("b3"));
    repo.commit("A third version");
    let pushed = repo.push("main");
    shop.agent.spawn();
    deploys_itself(&shop, "b3").await;
    deliver_to_blog(&shop, &pushed, BLOG_SECRET).await.expect(503);
    files.write("hook", BLOG_SECRET);
    mended(&shop).await;

    repo.write_site(&Behaviour::version("b4"));
    repo.commit("A fourth version");
    let queued = deliver_to_blog(&shop, &repo.push("main"), BLOG_SECRET).await.expect(202).json();
    let ended = shop.agent.deployment_ended(queued["deployment"].as_u64().unwrap(), LIMIT).await;
    assert_ended(&ended, "succeeded", &[]);
    assert_eq!(shop.agent.visit(BLOG_HOST, "/").await.unwrap().expect(200).text().trim(), "b4");
    let greeting = shop.agent.visit(BLOG_HOST, "/env?GREETING").await.unwrap().expect(200).text();
    assert_eq!(greeting.trim(), "hello from a file");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

/// What visitors get now.
async fn answer(shop: &Shop) -> (u16, String) {
    let answer = shop.agent.visit(HOST, "/").await.expect("an answer");
    (answer.status.as_u16(), answer.text().trim().to_owned())
}

async fn v1_is_back(shop: &Shop) {
    mended(shop).await;
    eventually("the live release is back", LIMIT, async || {
        let all = shop.instances("web").await;
        let is_back = all.len() == 1 && all.iter().all(|c| c.label("longshore.release") == "1");
        if is_back { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    shop.all_ready().await;
    assert_eq!(answer(shop).await, (200, "v1".to_owned()));
}

#[tokio::test]
async fn only_what_was_ready_stands_in_for_an_old_instance_that_had_to_stop_first() {
    let Some(engine) = engine::or_skip("only_what_was_ready_stands_in").await else { return };
    let files = Files::new();
    files.write("greeting", "hello from a file");
    let table = format!("[apps.shop.env]\nGREETING = {{ file = {:?} }}\n", files.path("greeting"));
    let options = Options { watch: "0s\"\norder = \"stop_first", ..Options::quick() }.table(&table);
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;

    // It becomes ready while its deployment waits: nobody else is there, so it serves.
    let good = Behaviour::version("v2").ready_after_ms(3000);
    let id = cut_off(&mut shop, &files, &good, &["d1-web-1: stopped", "d2-web-1: starting"]).await;
    says_what_it_waits_for(&shop, id).await;
    shop.says(id, "d2-web-1: ready, and nobody else is in its place; it serves while the deployment waits").await;
    eventually("the new one serves", LIMIT, async || match answer(&shop).await {
        (200, version) if version == "v2" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let load = shop.load();
    // So it does for an agent that starts again, and when the deployment is undone.
    shop.agent.kill().await;
    shop.agent.spawn();
    eventually("it waits again", LIMIT, async || {
        let shown = status(&shop, "shop").await;
        if shown.contains("waits for a secret: GREETING") { Ok(()) } else { Err(shown) }
    })
    .await;
    shop.cancel(id).await;
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "cancelled", &["d2-web-1 serves until an instance of the live release can be started"]);
    shop.told(2, &["was cancelled by", "v1 is live, but no instance of web serves, and d2-web-1 stands in: GREETING"])
        .await;
    waits(&shop).await;
    assert!(status(&shop, "shop").await.contains("v2 stands in"));
    assert_eq!(answer(&shop).await, (200, "v2".to_owned()));
    files.write("greeting", "hello from a file");
    v1_is_back(&shop).await;
    load.stop().await.assert_flawless(50);

    // One that never was ready answers nobody, goes, and is not said to serve.
    let bad = Behaviour::version("v3").never_ready();
    let id = cut_off(&mut shop, &files, &bad, &["d1-web-1: stopped", "d3-web-1: starting"]).await;
    says_what_it_waits_for(&shop, id).await;
    assert_eq!(answer(&shop).await.0, 503);
    shop.cancel(id).await;
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    let nobody = "web-1: nobody serves in this place: d3-web-1 had not passed its health check and was removed; one of \
                  the live release cannot be started: GREETING of service web: the secret file";
    assert_ended(&ended, "cancelled", &[nobody, "put the secret there, and it is started within a minute"]);
    assert!(!ended["reason"].to_string().contains("serves until"), "{ended:#}");
    let told = shop.told(3, &["was cancelled by", "v1 is live, but no instance of web serves: GREETING"]).await.text();
    assert!(!told.contains("keeps serving") && !told.contains("stands in"), "{told}");
    assert_eq!(answer(&shop).await.0, 503);
    assert_eq!(shop.instances("web").await.len(), 0);
    files.write("greeting", "hello from a file");
    v1_is_back(&shop).await;
    shop.finish().await;
}

#[tokio::test]
async fn what_cannot_go_on_without_a_secret_waits_for_it() {
    let Some(engine) = engine::or_skip("what_cannot_go_on_without_a_secret").await else { return };
    let files = Files::new();
    files.write("greeting", "hello from a file");
    let table = format!(
        "[apps.shop.release]\ncommand = [\"migrate\"]\n[apps.shop.env]\nGREETING = {{ file = {:?} }}\n",
        files.path("greeting")
    );
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().table(&table)).await;
    let load = shop.load();

    // To be cancelled it needs none: neither in its release command nor in its rollout.
    for (version, part, status) in [
        (Behaviour::version("v2").migrate(0, 60_000, "for ever"), "for ever", "releasing"),
        (Behaviour::version("v3").ready_after_ms(2000), "web-1: starting", "rolling_out"),
    ] {
        let id = cut_off(&mut shop, &files, &version, &[part]).await;
        says_what_it_waits_for(&shop, id).await;
        assert_eq!(shop.deployment(id).await["status"], status);
        shop.cancel(id).await;
        assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "cancelled", &[]);
        assert!(shop.app().await["waits"].is_null());
        let of_first = |c: &Container| c.label("longshore.deployment") == "1";
        let all = shop.instances("web").await;
        assert!(all.len() == 2 && all.iter().all(of_first), "{all:#?}");
        files.write("greeting", "hello from a file");
        mended(&shop).await;
    }

    // A deployment that has begun to replace instances neither fails nor goes on.
    let slow = Behaviour::version("v4").ready_after_ms(2000);
    let id = cut_off(&mut shop, &files, &slow, &["d4-web-1: starting"]).await;
    says_what_it_waits_for(&shop, id).await;
    logged(&shop, "the deployment goes on when its secrets can be read").await;
    assert_eq!(shop.deployment(id).await["status"], "rolling_out");
    files.write("greeting", "hello from a file");
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert!(shop.log(id).await.contains("its secrets can be read again; going on from rolling_out"));
    mended(&shop).await;
    shop.assert_live(4, &[("web", 2)]).await;

    // When its time is over, it is undone as far as that needs none: who is alone in a place stands in.
    let bad = Behaviour::version("v5").never_ready().only_on("-2");
    change_config(&shop, "[apps.shop]\n", "[apps.shop]\ndeadline = \"20s\"\n");
    let id = cut_off(&mut shop, &files, &bad, &["d4-web-1: stopped", "d5-web-2: starting"]).await;
    says_what_it_waits_for(&shop, id).await;
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "rolled_back", &["deadline of 20s, as it waited for a secret", "d5-web-1 serves until"]);
    waits(&shop).await;
    let mut names: Vec<_> =
        shop.instances("web").await.iter().map(|c| c.label("longshore.instance").to_owned()).collect();
    names.sort();
    assert_eq!(names, ["d4-web-2", "d5-web-1"]);
    files.write("greeting", "hello from a file");
    mended(&shop).await;
    eventually("the live release is back", LIMIT, async || {
        let all = shop.instances("web").await;
        let is_back = all.len() == 2 && all.iter().all(|c| c.label("longshore.deployment") == "4");
        if is_back { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    shop.all_ready().await;
    change_config(&shop, "deadline = \"20s\"\n", "");

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
    shop.assert_live(4, &[("web", 2)]).await;
    let greeting = shop.agent.visit(HOST, "/env?GREETING").await.unwrap().expect(200).text();
    assert_eq!(greeting.trim(), "hello from a file");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}
