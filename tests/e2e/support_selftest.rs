//! The support library itself: a helper that cannot fail proves nothing.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::support::agent::Setup;
use crate::support::discord::{Discord, Fault};
use crate::support::engine::{self, AGENT_LABEL, Container, Objects};
use crate::support::github::{self, Push};
use crate::support::load::{Load, Shape};
use crate::support::repo::{Repo, ZERO};
use crate::support::site::{self, Behaviour};
use crate::support::wait::eventually;
use crate::support::{http, ports};

const LIMIT: Duration = Duration::from_secs(20);

/// The site as a plain process, ended with the test.
struct Local {
    child: std::process::Child,
    address: std::net::SocketAddr,
    _directory: tempfile::TempDir,
}

impl Local {
    async fn start(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("behaviour");
        let port = ports::free_port();
        std::fs::write(&file, behaviour.port(port).to_file()).unwrap();
        let child = Command::new(site::binary()).env("SITE_FILE", file).env("GREETING", "hello").spawn().unwrap();
        let address = ([127, 0, 0, 1], port).into();
        eventually("the site listens", LIMIT, async || tokio::net::TcpStream::connect(address).await).await;
        Self { child, address, _directory: directory }
    }

    async fn get(&self, path: &str) -> http::Response {
        http::get(self.address, "shop.test", path).await.unwrap()
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    async fn ended(&mut self) -> Option<i32> {
        eventually("the site ends", LIMIT, async || self.child.try_wait().unwrap().ok_or("running")).await.code()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_site_answers_its_pages() {
    let site = Local::start(Behaviour::version("v7").ready_after_ms(300)).await;
    assert_eq!(site.get("/healthz").await.status, 503);
    assert_eq!(site.get("/").await.expect(200).text(), "v7\n");
    assert_eq!(site.get("/env?GREETING").await.expect(200).text(), "hello\n");
    assert_eq!(site.get("/nothing").await.status, 404);
    let body = vec![7; 100_000];
    let echo = http::request("POST", "shop.test", "/echo", &[], body.clone());
    assert_eq!(http::send(site.address, echo).await.unwrap().body, body);
    eventually("the site is ready", LIMIT, async || match site.get("/healthz").await.status.as_u16() {
        200 => Ok(()),
        other => Err(other),
    })
    .await;
    let count: u64 = site.get("/count").await.text().trim().parse().unwrap();
    assert_eq!(count, 5, "requests for pages, health checks not counted");
}

#[tokio::test]
async fn the_site_finishes_its_requests_on_sigterm() {
    let mut site = Local::start(Behaviour::version("v1")).await;
    let address = site.address;
    let slow = tokio::spawn(async move { http::get(address, "shop.test", "/slow?ms=400").await });
    eventually("the request arrived", LIMIT, async || match site.get("/count").await.text().trim() {
        "1" => Err("only this one"),
        _ => Ok(()),
    })
    .await;
    site.terminate();
    assert_eq!(slow.await.unwrap().unwrap().expect(200).text(), "v1\n");
    assert_eq!(site.ended().await, Some(0));
}

#[tokio::test]
async fn the_site_misbehaves_as_told() {
    let mut crashing = Local::start(Behaviour::version("v1").crash_after_ready_ms(200, 3)).await;
    assert_eq!(crashing.ended().await, Some(3));

    let stubborn = Local::start(Behaviour::version("v1").ignore_sigterm()).await;
    stubborn.terminate();
    assert_eq!(stubborn.get("/healthz").await.status, 200);

    let mut abrupt = Local::start(Behaviour::version("v1").abrupt_sigterm()).await;
    abrupt.terminate();
    assert_eq!(abrupt.ended().await, None, "ended by the signal");

    let broken = Local::start(Behaviour::version("v1").answer_500_but_healthy()).await;
    assert_eq!(broken.get("/").await.status, 500);
    assert_eq!(broken.get("/healthz").await.status, 200);

    let elsewhere = Local::start(Behaviour::version("v1").never_ready().only_on("-no-such-instance")).await;
    assert_eq!(elsewhere.get("/healthz").await.status, 200, "the fault is for another instance");
}

#[tokio::test]
async fn the_load_sees_every_failure() {
    let site = Local::start(Behaviour::version("v1")).await;
    let load = Load::start(Shape::new(site.address, "shop.test"));
    eventually("requests are answered", LIMIT, async || match load.so_far().ok {
        0..200 => Err("too few"),
        _ => Ok(()),
    })
    .await;
    let report = load.stop().await;
    report.assert_flawless(200);
    assert_eq!(report.versions.into_keys().collect::<Vec<_>>(), ["v1"]);

    let load = Load::start(Shape::new(site.address, "shop.test"));
    eventually("requests are answered", LIMIT, async || if load.so_far().ok > 50 { Ok(()) } else { Err("too few") })
        .await;
    drop(site);
    eventually("failures are seen", LIMIT, async || if load.so_far().failed > 5 { Ok(()) } else { Err("none") }).await;
    let report = load.stop().await;
    assert!(report.failures[0].id > 0 && !report.failures[0].what.is_empty());
}

#[tokio::test]
async fn a_repository_is_pushed_rewritten_tagged_and_cleared() {
    let (repo, first) = Repo::with_site(&Behaviour::version("v1"));
    assert_eq!(first.len(), 40);
    let second = repo.push_site(&Behaviour::version("v2"));
    assert_eq!(repo.remote_tip("refs/heads/main"), second);
    assert_eq!(repo.git(&["show", "HEAD:behaviour"]), "version=v2");

    repo.reset(&first);
    repo.write("größe.txt", "m");
    let rewritten = repo.commit("Another past");
    let pushed = repo.force_push("main");
    assert_eq!((pushed.before, pushed.after), (second, rewritten.clone()));

    assert_eq!(repo.push_tag("light").after, rewritten);
    assert_ne!(repo.push_annotated_tag("heavy").after, rewritten);
    assert_eq!(repo.push("feature/größe").before, ZERO);
    assert_eq!(repo.delete_branch("feature/größe").after, ZERO);

    repo.install_hook("post-receive", "#!/bin/sh\necho \"told $(git config longshore.app)\"\n");
    repo.set_origin_config("longshore.app", "shop");
    repo.commit("Nothing");
    assert!(repo.push("main").output.contains("remote: told shop"));
}

#[test]
fn deliveries_are_signed_as_github_documents() {
    // The vector of GitHub's documentation.
    assert_eq!(
        github::sign("It's a Secret to Everybody", b"Hello, World!"),
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    );
    let (a, b) = ("a".repeat(40), "b".repeat(40));
    let update = Push::branch("größe;$(id)", &a, &b).commits(&["one", "two @everyone"]).forced().payload();
    assert_eq!(update["ref"], "refs/heads/größe;$(id)");
    assert_eq!(update["head_commit"]["id"], b);
    assert_eq!(update["commits"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&update["created"], &update["deleted"], &update["forced"]),
        (&json!(false), &json!(false), &json!(true))
    );
    assert_eq!(Push::creation("new", &a).payload()["created"], true);
    let deletion = Push::deletion("old", &a).payload();
    assert_eq!((&deletion["deleted"], &deletion["head_commit"]), (&json!(true), &Value::Null));

    let form = Push::branch("main", &a, &b).author("A+B & C").delivery().form_encoded();
    let text = String::from_utf8(form.body.clone()).unwrap();
    assert!(text.starts_with("payload=%7B%22") && !text.contains(['&', ' ', '"']), "{text}");
    let signature = form.headers("secret").into_iter().find(|(name, _)| *name == "x-hub-signature-256").unwrap().1;
    assert_eq!(signature, github::sign("secret", &form.body), "the encoded body is what is signed");
    assert_ne!(github::ping().id, github::ping().id);
}

async fn post(url: &str, method: &str, payload: &Value) -> http::Response {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let headers = [("content-type", "application/json")];
    let request = http::request(method, address, &format!("/{path}"), &headers, payload.to_string());
    http::send(address.parse().unwrap(), request).await.unwrap()
}

fn plain(content: &str) -> Value {
    json!({ "content": content, "allowed_mentions": { "parse": [] } })
}

#[tokio::test]
async fn discord_keeps_messages_and_their_edits() {
    let discord = Discord::start().await;
    let url = discord.url();
    assert_eq!(post(&url, "POST", &plain("without an answer")).await.status, 204);
    let sent = post(&format!("{url}?wait=true"), "POST", &plain("started")).await.expect(200).json();
    let edit = format!("{url}/messages/{}", sent["id"].as_str().unwrap());
    let embed = json!({ "embeds": [{ "title": "shop v7", "color": 3_066_993 }], "allowed_mentions": { "parse": [] } });
    let waiting = discord.wait_for("the edit", LIMIT, |all| all.iter().any(|message| message.versions.len() == 2));
    let (messages, answer) = tokio::join!(waiting, post(&edit, "PATCH", &embed));
    answer.expect(200);
    assert_eq!(messages[1].text(), "started\nshop v7", "an edit keeps what it does not name");
    discord.finish();
}

#[tokio::test]
async fn discord_refuses_what_discord_refuses() {
    let quiet = json!({ "parse": [] });
    let with = |extra: Value| {
        let mut payload = plain("text");
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        payload
    };
    let embed = |embed: Value| with(json!({ "embeds": [embed] }));
    let field = json!({ "name": "n", "value": "v" });
    let long = |length| "x".repeat(length);
    let refused = [
        ("empty", json!({ "allowed_mentions": quiet })),
        ("blank", plain("  \n")),
        ("content", plain(&long(2001))),
        ("mentions missing", json!({ "content": "text" })),
        ("mentions open", json!({ "content": "text", "allowed_mentions": { "parse": ["everyone"] } })),
        ("11 embeds", with(json!({ "embeds": vec![json!({ "title": "t" }); 11] }))),
        ("title", embed(json!({ "title": long(257) }))),
        ("description", embed(json!({ "description": long(4097) }))),
        ("26 fields", embed(json!({ "fields": vec![field; 26] }))),
        ("field name", embed(json!({ "fields": [{ "name": long(257), "value": "v" }] }))),
        ("empty field value", embed(json!({ "fields": [{ "name": "n", "value": "" }] }))),
        ("field value", embed(json!({ "fields": [{ "name": "n", "value": long(1025) }] }))),
        ("total", with(json!({ "embeds": [{ "description": long(4000) }, { "description": long(2001) }] }))),
        ("color text", embed(json!({ "title": "t", "color": "#ff0000" }))),
        ("timestamp", embed(json!({ "title": "t", "timestamp": "yesterday" }))),
        ("url scheme", embed(json!({ "title": "t", "url": "javascript:alert(1)" }))),
        ("empty embed", embed(json!({}))),
        ("unknown key", with(json!({ "embed": {} }))),
    ];
    let count = refused.len();
    let discord = Discord::start().await;
    for (what, payload) in refused {
        assert_eq!(post(&discord.url(), "POST", &payload).await.status, 400, "{what}");
    }
    assert_eq!(post(&format!("{}x", discord.url()), "POST", &plain("text")).await.status, 401);
    assert_eq!(post(&format!("{}/messages/1", discord.url()), "PATCH", &plain("text")).await.status, 404);
    assert_eq!(discord.violations().len(), count + 2);
    assert!(discord.messages().is_empty());

    let at_the_limit = json!({
        "content": long(2000),
        "embeds": [{
            "title": long(256), "description": long(4000), "url": "https://deploy.example.com/d/1", "color": 16_777_215,
            "timestamp": "2026-05-04T09:12:31.000Z", "fields": [{ "name": long(256), "value": long(1024), "inline": true }],
        }],
        "allowed_mentions": { "parse": [] },
    });
    assert_eq!(post(&discord.url(), "POST", &at_the_limit).await.status, 204);
}

#[tokio::test]
async fn discord_plays_its_faults_in_order() {
    let discord = Discord::start().await;
    discord.fault(Fault::RateLimited { retry_after: Duration::from_millis(300) });
    discord.fault(Fault::Status(502));
    discord.fault(Fault::UnknownWebhook);
    discord.fault(Fault::Hang(Duration::from_millis(100)));
    let limited = post(&discord.url(), "POST", &plain("a")).await.expect(429);
    assert_eq!((limited.header("retry-after"), &limited.json()["retry_after"]), ("1", &json!(0.3)));
    assert_eq!(post(&discord.url(), "POST", &plain("a")).await.status, 502);
    assert_eq!(discord.violations().len(), 1, "it came back at once: {:?}", discord.violations());
    assert_eq!(post(&discord.url(), "POST", &plain("a")).await.expect(404).json()["code"], 10015);
    let begin = Instant::now();
    assert_eq!(post(&discord.url(), "POST", &plain("a")).await.status, 504);
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert_eq!(post(&discord.url(), "POST", &plain("a")).await.status, 204);
    assert_eq!((discord.messages().len(), discord.requests()), (1, 5));
}

#[tokio::test]
#[should_panic(expected = "the moon is green: not within 100ms; last seen: white")]
async fn waiting_ends_with_what_was_seen() {
    eventually("the moon is green", Duration::from_millis(100), async || Err::<(), _>("white")).await;
}

fn container(name: &str, slot: &str, state: &str, settings: &str) -> Container {
    let pairs = [
        ("longshore.kind", "instance"),
        ("longshore.app", "shop"),
        ("longshore.service", "web"),
        ("longshore.slot", slot),
        ("longshore.settings", settings),
    ];
    let labels: HashMap<_, _> = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Container { id: name.to_owned(), name: name.to_owned(), labels, state: state.to_owned() }
}

#[test]
fn leftovers_are_told_from_a_live_release() {
    let of = |containers: Vec<Container>| {
        Objects { containers, images: Vec::new(), networks: Vec::new(), volumes: Vec::new() }.leftovers()
    };
    let live = || vec![container("d1-web-1", "1", "running", "s"), container("d1-web-2", "2", "running", "s")];
    assert_eq!(of(live()), Vec::<String>::new());
    for extra in [
        container("d2-web-2", "2", "running", "s"),
        container("d2-web-3", "3", "exited", "s"),
        container("d2-web-3", "3", "running", "other"),
    ] {
        let mut all = live();
        all.push(extra);
        assert_eq!(of(all).len(), 1);
    }
}

/// The site plays an agent here: it answers /readyz and stops on SIGTERM.
#[tokio::test]
async fn a_test_agent_starts_restarts_and_reports_what_is_left() {
    let Some(engine) = engine::or_skip("a_test_agent_starts_restarts_and_reports_what_is_left").await else { return };
    let mut agent = Setup::new("").binary(site::binary()).prepare(&engine);
    agent.set_env("SITE_PORT", &agent.listen.port().to_string());
    std::fs::create_dir(agent.data_dir()).unwrap();
    let id = format!("selftest-{}", agent.listen.port());
    std::fs::write(agent.data_dir().join("agent-id"), &id).unwrap();
    agent.start().await;
    let first = agent.pid();
    agent.restart().await;
    assert_ne!(agent.pid(), first);
    agent.kill().await;
    agent.start().await;

    let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
    let name = format!("longshore-{id}");
    let label = format!("{AGENT_LABEL}={id}");
    engine.build(&repo.work(), &name, &label).await;
    engine.create_container(&name, &name, &label).await;
    assert_eq!(engine.objects(&id).await.containers.len(), 1);
    let finished = AssertUnwindSafe(agent.finish()).catch_unwind().await.unwrap_err();
    let text = finished.downcast_ref::<String>().unwrap();
    assert!(text.contains(&format!("container {name} of kind")), "{text}");
    let objects = engine.objects(&id).await;
    assert!(objects.containers.is_empty() && objects.images.is_empty(), "cleaned up all the same: {objects:?}");
}

#[tokio::test]
async fn an_agent_that_ends_at_once_is_shown_with_its_log() {
    let Some(engine) = engine::or_skip("an_agent_that_ends_at_once_is_shown_with_its_log").await else { return };
    let mut agent = Setup::new("").binary(site::binary()).env("SITE_EXIT_AT_ONCE", "2").prepare(&engine);
    let failure = AssertUnwindSafe(agent.start()).catch_unwind().await.unwrap_err();
    let text = failure.downcast_ref::<String>().unwrap();
    assert!(text.contains("exit status: 2") && text.contains("exits at once with 2"), "{text}");
}
