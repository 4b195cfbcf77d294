//! The command line against a running agent, as an operator types it.

use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::shop::{HOST, LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::site::Behaviour;
use crate::support::spawned::Spawned;
use crate::support::wait::eventually;

/// Runs a command; its exit code and all that it printed.
async fn run(shop: &Shop, line: &str) -> (i32, String) {
    let arguments: Vec<&str> = line.split(' ').collect();
    let Output { status, stdout, stderr } = shop.agent.cli(&arguments).await;
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code().expect("it ends by itself"), text)
}

/// Runs a command that must succeed.
async fn ok(shop: &Shop, line: &str) -> String {
    let (code, text) = run(shop, line).await;
    assert_eq!(code, 0, "longshore {line}: {text}");
    text
}

/// Runs a command that must fail, with all of `parts`.
async fn fails(shop: &Shop, line: &str, code: i32, parts: &[&str]) {
    let (ended, text) = run(shop, line).await;
    assert_eq!(ended, code, "longshore {line}: {text}");
    for part in parts {
        assert!(text.contains(part), "longshore {line}: no {part:?} in: {text}");
    }
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|err| panic!("{err}: {text}"))
}

fn version(shop: &Shop, behaviour: &Behaviour) {
    shop.repo.push_site(behaviour);
}

#[tokio::test]
async fn a_deployment_is_watched_line_by_line() {
    let Some(engine) = engine::or_skip("a_deployment_is_watched").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1").ready_after_ms(1500), Options::quick()).await;
    let ended = Spawned::start(shop.agent.command(&["deploy", "shop"])).ended(LIMIT).await;
    assert!(ended.status.success(), "{}", ended.text());
    let last = ended.lines.last().unwrap();
    assert!(last.text.starts_with("succeeded v1 in ") && last.text.contains("1 instance, "), "{}", ended.text());
    for early in ["shop #1  deploy", "preparing", "fetched in", "rolling out v1"] {
        let before = last.at - ended.line(early).at;
        assert!(before > Duration::from_millis(1000), "{early:?} came only {before:?} before the end");
    }
    assert!(!ended.text().contains('\u{1b}'), "no escapes into a pipe: {:?}", ended.text());

    version(&shop, &Behaviour::version("v2").exit_at_once(3));
    fails(&shop, "deploy shop", 1, &["rolled back in ", "exited with code 3", "v1 is live"]).await;
    version(&shop, &Behaviour::version("v3").never_ready());
    let json = shop.agent.command(&["deploy", "shop", "--json"]);
    let json = Spawned::start(json);
    shop.reaches(3, "rolling_out").await;
    fails(&shop, "deploy shop --commit 123", 2, &["not a commit id", "at least the first 7"]).await;
    // When it is confirmed, it is so.
    let cancelled = ok(&shop, "cancel #3").await;
    assert!(cancelled.contains("deployment #3 of shop is being cancelled\n"), "{cancelled}");
    assert!(cancelled.contains("deployment #3 of shop is cancelled: cancelled by "), "{cancelled}");
    assert_eq!(shop.deployment(3).await["status"], "cancelled");
    assert_eq!(shop.instances("web").await.len(), 1);
    let json = json.ended(LIMIT).await;
    assert_eq!(json.status.code(), Some(1));
    assert_eq!(json_of(&json.text())["status"], "cancelled");
    assert!(ok(&shop, "cancel 3").await.contains("deployment #3 of shop was cancelled before: cancelled by "));
    fails(&shop, "cancel 2", 1, &["#2 of shop is not cancelled", "rolled back in ", "exited with code 3"]).await;

    // Ctrl-C leaves the deployment alone, also the third one.
    version(&shop, &Behaviour::version("v4").ready_after_ms(2500));
    let watched = Spawned::start(shop.agent.command(&["deploy", "shop"]));
    watched.prints("rolling out v", LIMIT).await;
    // Impatiently: it may have ended before the last one.
    for _ in 0..3 {
        watched.signal(Signal::SIGINT);
    }
    let left = watched.ended(LIMIT).await;
    assert_eq!(left.status.code(), Some(130), "{}", left.text());
    left.line("deployment #4 goes on; watch it with: longshore status shop --watch");
    let ended = shop.agent.deployment_ended(4, LIMIT).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    assert_eq!(shop.version().await, "v4");
    shop.finish().await;
}

#[tokio::test]
async fn a_watcher_outlives_a_restart_of_the_agent() {
    let Some(engine) = engine::or_skip("a_watcher_outlives").await else { return };
    let mut shop = Shop::start(&engine, &Behaviour::version("v1").ready_after_ms(3000), Options::quick()).await;
    let watched = Spawned::start(shop.agent.command(&["deploy", "shop"]));
    watched.prints("rolling out v1", LIMIT).await;
    shop.agent.restart().await;
    let ended = watched.ended(LIMIT).await;
    assert!(ended.status.success(), "{}", ended.text());
    assert!(ended.lines.last().unwrap().text.starts_with("succeeded v1 in "), "{}", ended.text());
    let once = ended.lines.iter().filter(|line| line.text.contains("fetched in")).count();
    assert_eq!(once, 1, "each line once: {}", ended.text());
    shop.finish().await;
}

#[tokio::test]
async fn every_command_does_and_says_what_it_should() {
    let Some(engine) = engine::or_skip("every_command").await else { return };
    let command = "[apps.shop.release]\ncommand = [\"migrate\"]\n";
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick().table(command)).await;

    let plan = ok(&shop, "plan shop").await;
    assert!(plan.contains("; nothing is live yet\n"), "{plan}");
    assert!(plan.contains("web      build  1          1         0        start first\n"), "{plan}");
    assert!(plan.contains("release command: migrate\n"), "{plan}");
    assert_eq!(json_of(&ok(&shop, "plan shop --json").await)["services"][0]["image"], "build");
    assert!(ok(&shop, "status").await.contains("shop  -"));
    assert!(ok(&shop, "status shop").await.contains("nothing yet; start with: longshore deploy shop"));
    fails(&shop, "restart shop", 1, &["nothing of shop is live yet"]).await;
    fails(&shop, "rollback shop", 1, &["release"]).await;

    ok(&shop, "deploy shop").await;
    assert!(ok(&shop, "plan shop").await.contains("no instance would be replaced\n"));
    let commit = shop.repo.head();
    let status = ok(&shop, "status shop").await;
    assert!(status.contains(&format!("v1 {}", &commit[..7])) && status.contains("ready"), "{status}");
    assert_eq!(json_of(&ok(&shop, "status --json").await)[0]["live"]["release"], 1);
    assert_eq!(json_of(&ok(&shop, "status shop --json").await)["name"], "shop");

    version(&shop, &Behaviour::version("v2"));
    let no_wait = ok(&shop, "deploy shop --no-wait").await;
    assert!(no_wait.contains("is accepted; see: longshore status shop"), "{no_wait}");
    let id = shop.deployments().await[0]["id"].as_u64().unwrap();
    shop.agent.deployment_ended(id, LIMIT).await;
    let releases = ok(&shop, "releases shop").await;
    assert!(releases.contains("v2") && releases.contains("v1"), "{releases}");
    assert!(ok(&shop, "rollback shop --to v1").await.contains("succeeded v1 in "));
    assert_eq!(shop.version().await, "v1");
    fails(&shop, "rollback shop --to v1", 1, &["v1"]).await;
    fails(&shop, "rollback shop --to v9", 1, &["v9", "v2"]).await;

    assert!(ok(&shop, "scale shop web=2").await.contains("2 instances"));
    assert_eq!(shop.app().await["instances"].as_array().unwrap().len(), 2);
    let before = shop.app().await["instances"].clone();
    assert!(ok(&shop, "restart shop").await.contains("succeeded v1 in "));
    let after = shop.app().await["instances"].clone();
    let ids = |list: &Value| list.as_array().unwrap().iter().map(|i| i["id"].to_string()).collect::<Vec<_>>();
    assert!(ids(&after).iter().all(|id| !ids(&before).contains(id)), "{before:#} {after:#}");
    fails(&shop, "scale shop worker=2", 1, &["worker", "web"]).await;
    fails(&shop, "scale shop web=65", 2, &["0 to 64"]).await;

    let logs = ok(&shop, "logs shop").await;
    assert_eq!(logs.matches("site: v1 starts as").count(), 2, "{logs}");
    assert!(ok(&shop, "logs --deployment 1").await.contains("release command: exited with 0"));
    let name = after[0]["id"].as_str().unwrap();
    assert!(ok(&shop, &format!("logs --instance {name} -n 5")).await.contains("site: v1 starts as"));
    let follow = Spawned::start(shop.agent.command(&["logs", "shop", "-f"]));
    follow.prints("site: v1 starts as", LIMIT).await;
    drop(follow);
    let list = ok(&shop, "deployments shop").await;
    assert!(list.contains("rollback") && list.contains("restart") && list.contains("scale"), "{list}");

    fails(&shop, "status shpo", 1, &["there is no app \"shpo\"; did you mean \"shop\"?"]).await;
    fails(&shop, "deploy shpo", 1, &["did you mean \"shop\"?"]).await;
    fails(&shop, "cancel 99", 1, &["no deployment"]).await;
    fails(&shop, "deploi shop", 2, &["deploy"]).await;
    assert!(ok(&shop, "completions bash").await.contains("longshore"));

    shop.agent.stop().await;
    fails(&shop, "status", 1, &["cannot reach the agent at", "start it with: longshore serve --config"]).await;
    shop.agent.start().await;
    shop.finish().await;
}

#[tokio::test]
async fn a_configuration_is_checked_and_reloaded() {
    let Some(engine) = engine::or_skip("a_configuration_is_checked").await else { return };
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    shop.deploy_first().await;
    let good = Shop::config(&shop.repo, &Options::quick());
    let logged = async |shop: &Shop, times: usize, part: &str| {
        eventually(&format!("{part:?} is logged"), LIMIT, async || {
            let log = shop.agent.log();
            if log.matches(part).count() >= times { Ok(()) } else { Err(log) }
        })
        .await;
    };
    assert!(ok(&shop, "check").await.contains("deploy.toml: ok (1 app, 1 service)"));

    // A bad file is refused with every problem, and the agent goes on as it is.
    shop.agent.set_config(&format!("{good}\n[apps.My_App]\nrepo = \"x\"\n[apps.shop.healt]\n"));
    let problems = ["My_App", "unknown key \"healt\", did you mean \"health\"?"];
    fails(&shop, "check", 2, &problems).await;
    shop.agent.signal(Signal::SIGHUP);
    logged(&shop, 1, "the configuration is not reloaded, the old one stays in force").await;
    for problem in problems {
        logged(&shop, 1, problem).await;
    }
    assert_eq!(json_of(&ok(&shop, "status --json").await).as_array().unwrap().len(), 1);
    shop.agent.set_config("this is no TOML");
    fails(&shop, "check", 2, &["deploy.toml:"]).await;

    // An app that is added starts.
    let blog = format!(
        "[apps.blog]\nrepo = {:?}\nallow_local = true\nport = 8000\ndomains = [\"blog.test\"]\n\
         health = {{ path = \"/healthz\" }}\n[apps.blog.rollout]\nwatch = \"0s\"\n",
        shop.repo.url()
    );
    shop.agent.set_config(&format!("{good}\n{blog}"));
    shop.agent.signal(Signal::SIGHUP);
    logged(&shop, 1, "configuration reloaded").await;
    assert!(ok(&shop, "deploy blog").await.contains("succeeded v1 in "));
    assert_eq!(shop.agent.visit("blog.test", "/").await.unwrap().expect(200).text(), "v1\n");

    // What changes for an app that stays takes effect with its next deployment.
    let two = Options::quick().keys("instances = 2\n");
    shop.agent.set_config(&format!("{}\n{blog}", Shop::config(&shop.repo, &two)));
    shop.agent.signal(Signal::SIGHUP);
    logged(&shop, 2, "configuration reloaded").await;
    assert!(ok(&shop, "deploy shop").await.contains("2 instances"));

    // One that is removed is named; it goes on serving and is not deployed to.
    shop.agent.set_config(&good);
    shop.agent.signal(Signal::SIGHUP);
    logged(&shop, 1, "no longer configured: its instances go on running and serving").await;
    fails(&shop, "deploy blog", 1, &["there is no app \"blog\"; apps: shop"]).await;
    assert_eq!(shop.agent.visit("blog.test", "/").await.unwrap().expect(200).text(), "v1\n");
    let left = "warning: blog is not configured any more; 1 instance runs on with the requests of its domains";
    eventually("its instance is told of, with how to end it", LIMIT, async || {
        let said = ok(&shop, "status").await;
        if said.contains(left) && said.contains("--filter label=longshore.app=blog)") { Ok(()) } else { Err(said) }
    })
    .await;
    // And can come back.
    shop.agent.set_config(&format!("{good}\n{blog}"));
    shop.agent.signal(Signal::SIGHUP);
    logged(&shop, 4, "configuration reloaded").await;
    version(&shop, &Behaviour::version("v2"));
    assert!(ok(&shop, "deploy blog").await.contains("succeeded v2 in "));
    assert_eq!(shop.agent.visit("blog.test", "/").await.unwrap().expect(200).text(), "v2\n");
    assert_eq!(shop.agent.visit(HOST, "/").await.unwrap().expect(200).text(), "v1\n");
    assert!(!ok(&shop, "status").await.contains("is not configured any more"));
    shop.finish().await;
}

/// The terminal's view: `script` gives the command a terminal and writes down what it is sent.
#[tokio::test]
async fn on_a_terminal_one_block_is_drawn_in_place() {
    let Some(engine) = engine::or_skip("on_a_terminal").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1").ready_after_ms(1000), Options::quick()).await;
    let config = shop.agent.config_file();
    let line = format!("{} deploy shop --config {}", env!("CARGO_BIN_EXE_longshore"), config.display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let Ok(_) = Command::new("script").arg("--version").output().await else {
        println!("skipped: there is no script (Debian: bsdutils)");
        return;
    };
    let ended = Spawned::start(command).ended(LIMIT).await;
    let text = ended.text();
    assert!(ended.status.success(), "{text}");
    println!("{}", text.escape_debug());
    // Back to the block's first line, and everything below it is cleared.
    assert!(text.contains("F\u{1b}[J"), "{}", text.escape_debug());
    let last = ended.lines.iter().rev().find(|line| !line.text.is_empty()).unwrap();
    assert!(last.text.contains("succeeded") && last.text.contains(" v1 in "), "{}", text.escape_debug());
    // Wrap is on again at the end.
    assert!(text.rfind("\u{1b}[?7h") > text.rfind("\u{1b}[?7l"), "{}", text.escape_debug());
    assert_eq!(json!(shop.version().await), "v1");
    shop.finish().await;
}
