//! The journal as a person handles it: one agent at a time, backups, a restore.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bollard::query_parameters::RemoveContainerOptionsBuilder;

use crate::shop::{HOST, LIMIT, Options, SECRET, Shop, assert_ended};
use crate::support::engine;
use crate::support::github;
use crate::support::http;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

async fn run(shop: &Shop, arguments: &[&str]) -> (Option<i32>, String) {
    let output = shop.agent.cli(arguments).await;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let Some(engine) = engine::or_skip("a_second_agent").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let (code, said) = run(&shop, &["serve"]).await;
    let pid = shop.agent.pid().unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("is in use by the longshore agent with pid {pid}")), "{said}");
    assert!(said.contains(shop.agent.data_dir().to_str().unwrap()), "{said}");

    // A copy of its journal in another place is no other agent.
    let copy = shop.agent.scratch().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::write(copy.join("deploy.toml"), "[agent]\ndata_dir = \"data\"\nlisten = \"127.0.0.1:0\"\n").unwrap();
    let (backup, config) = (copy.join("backup.db"), copy.join("deploy.toml"));
    let (backup, config) = (backup.to_str().unwrap(), config.to_str().unwrap());
    assert_eq!(run(&shop, &["backup", backup]).await.0, Some(0));
    let there = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
        let output = command.args(["--config", config]).args(arguments).kill_on_drop(true).output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = there(&["restore", backup]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = tokio::time::timeout(LIMIT, there(&["serve"])).await.expect("it does not start");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("runs already, with pid {pid}: this journal is a copy")), "{said}");
    shop.deploy_first().await;
    shop.finish().await;
}

#[tokio::test]
async fn a_restored_journal_takes_no_instance_for_one_of_its_own() {
    let Some(engine) = engine::or_skip("a_restored_journal").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::quick()).await;
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    let file = shop.agent.scratch().join("backup.db");
    let name = file.to_str().unwrap();
    let (code, said) = run(&shop, &["backup", name]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 deployments, 2 releases"), "{said}");
    assert_eq!(mode(&file), 0o600);
    let (code, said) = run(&shop, &["backup", name]).await;
    assert!(code == Some(2) && said.contains("--force"), "{code:?} {said}");
    assert_eq!(run(&shop, &["backup", "--force", name]).await.0, Some(0));

    // What the backup does not know of.
    assert_ended(&shop.push(&Behaviour::version("v3")).await, "succeeded", &[]);
    let unknown = shop.instances("web").await;
    assert_eq!(unknown[0].label("longshore.instance"), "d3-web-1");
    let pid = shop.agent.pid().unwrap();
    let (code, said) = run(&shop, &["restore", name]).await;
    assert!(code == Some(1) && said.contains(&format!("the longshore agent with pid {pid}")), "{code:?} {said}");

    shop.agent.stop().await;
    let without_agent = shop.agent.scratch().join("later.db");
    let (code, said) = run(&shop, &["backup", without_agent.to_str().unwrap()]).await;
    assert!(code == Some(0) && said.contains("3 deployments, 3 releases"), "{code:?} {said}");
    let (code, said) = run(&shop, &["restore", name]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 deployments, 2 releases") && said.contains("longshore deploy APP"), "{said}");
    let aside = std::fs::read_dir(shop.agent.data_dir()).unwrap().flatten().map(|entry| entry.path());
    let aside = aside.filter(|path| path.to_string_lossy().contains("journal.db.replaced-")).collect::<Vec<_>>();
    assert_eq!(aside.len(), 1, "{aside:?}");

    shop.agent.start().await;
    eventually("v2 is live again", LIMIT, async || {
        let app = shop.app().await;
        let instances = app["instances"].as_array().unwrap();
        let ready = !instances.is_empty() && instances.iter().all(|i| i["health"] == "ready" && i["release"] == 2);
        if ready { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
    eventually("v2 serves", LIMIT, async || {
        let page = shop.agent.visit(HOST, "/").await?;
        if page.text().trim() == "v2" { Ok(()) } else { Err(page.text()) }
    })
    .await;
    let next = shop.push(&Behaviour::version("v4")).await;
    assert_ended(&next, "succeeded", &[]);
    assert_eq!((&next["id"], &next["release"]), (&4.into(), &4.into()), "{next:#}");
    assert_eq!(shop.version().await, "v4");
    let running = shop.instances("web").await;
    let mut names: Vec<_> = running.iter().map(|c| c.label("longshore.instance")).collect();
    names.sort_unstable();
    assert_eq!(names, ["d3-web-1", "d4-web-1"]);
    assert!(running.iter().any(|container| container.id == unknown[0].id), "{running:#?}");

    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    engine.docker.remove_container(&unknown[0].id, Some(force)).await.unwrap();
    std::fs::remove_file(&aside[0]).unwrap();
    shop.finish().await;
}

#[tokio::test]
async fn an_agent_whose_journal_was_moved_takes_nothing_new_until_it_is_back() {
    let Some(engine) = engine::or_skip("an_agent_whose_journal_was_moved").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let (journal, elsewhere) = (shop.agent.data_dir().join("journal.db"), shop.agent.scratch().join("moved.db"));
    let asked = async |path: &str| http::get(shop.agent.listen, "localhost", path).await.unwrap();
    std::fs::rename(&journal, &elsewhere).unwrap();

    let gone = format!("nothing new is taken: {} is gone", journal.display());
    eventually("it is in the log without being asked", LIMIT, async || {
        if shop.agent.log().contains(&gone) { Ok(()) } else { Err(shop.agent.log()) }
    })
    .await;
    shop.repo.write_site(&Behaviour::version("v2"));
    shop.repo.commit("v2");
    let pushed = shop.repo.push("main");
    for _ in 0..2 {
        let answer = github::Push::of("main", &pushed).delivery().send(shop.agent.listen, "shop", SECRET).await;
        let said = answer.text();
        assert!(answer.status == 503 && said.contains("the agent's journal is not in its place"), "{said}");
    }
    let (code, said) = run(&shop, &["deploy", "shop"]).await;
    assert!(code == Some(1) && said.contains("is gone, and the next start would not know"), "{code:?} {said}");
    let ready = asked("/readyz").await;
    assert!(ready.status == 503 && ready.text().contains(&gone), "{}", ready.text());
    let (_, status) = run(&shop, &["status"]).await;
    assert!(status.contains(&format!("not ready: {gone}")), "{status}");
    assert_eq!(shop.agent.log().matches(&gone).count(), 1, "{}", shop.agent.log());
    assert_eq!(shop.version().await, "v1");
    let saved = shop.agent.scratch().join("saved.db");
    let (code, said) = run(&shop, &["backup", saved.to_str().unwrap()]).await;
    assert!(code == Some(0) && said.contains("1 deployment, 1 release"), "{code:?} {said}");

    std::fs::rename(&elsewhere, &journal).unwrap();
    let id = shop.deliver(&pushed).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert_eq!(asked("/readyz").await.status, 200);
    shop.finish().await;
}
