//! What people ask for: a rollback, a scale, a restart.

use serde_json::json;

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine::{self, Container};
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

fn ids(containers: &[Container]) -> Vec<String> {
    containers.iter().map(|container| container.id.clone()).collect()
}

#[tokio::test]
async fn a_rollback_brings_back_a_release_with_its_settings() {
    let Some(engine) = engine::or_skip("a_rollback").await else { return };
    let options =
        |greeting: &str| Options::default().watch("200ms").table(&format!("[apps.shop.env]\nGREETING = {greeting:?}"));
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options("one")).await;
    shop.reconfigure(&options("two")).await;
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    assert_ended(&shop.push(&Behaviour::version("v3").exit_at_once(3)).await, "rolled_back", &[]);
    let greeting = async || shop.agent.visit(HOST, "/env?GREETING").await.unwrap().expect(200).text();
    assert_eq!(greeting().await, "two\n");

    let unknown = shop.rollback(json!({ "to": 9 })).await.expect(404).json();
    let detail = unknown["detail"].as_str().unwrap();
    assert!(detail.contains("no release v9") && detail.contains("v2 (live), v1"), "{unknown}");
    shop.rollback(json!({ "to": 2 })).await.expect(409);
    shop.rollback(json!({ "to": "yesterday" })).await.expect(422);

    // Without a number: to the last one that was good, with the settings of then and without a build.
    let load = shop.load();
    let id = shop.rollback(json!({})).await.expect(202).json()["id"].as_u64().unwrap();
    let back = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&back, "succeeded", &[]);
    assert_eq!((&back["release"], &back["trigger"]), (&1.into(), &"rollback".into()), "{back:#}");
    assert_eq!((shop.version().await, greeting().await), ("v1".to_owned(), "one\n".to_owned()));
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(4, &["rolled back", "v1 is live again"]).await;

    let id = shop.rollback(json!({ "to": 2 })).await.expect(202).json()["id"].as_u64().unwrap();
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    load.stop().await.assert_flawless(50);
    assert_eq!((shop.version().await, greeting().await), ("v2".to_owned(), "two\n".to_owned()));
    shop.assert_live(2, &[("web", 2)]).await;

    // Somebody removes the image of v1 behind the agent's back.
    let releases = shop.agent.get("/api/v1/apps/shop/releases").await;
    let first = releases.as_array().unwrap().iter().find(|release| release["release"] == 1).unwrap();
    let image = first["services"][0]["image"].as_str().unwrap();
    let force = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
    engine.docker.remove_image(image, Some(force), None).await.unwrap();
    let gone = shop.rollback(json!({ "to": 1 })).await.expect(410).json();
    let commit = first["commit"].as_str().unwrap();
    let detail = format!(
        "the image of v1 is not on this machine any more; to build it again: longshore deploy shop --commit {commit}"
    );
    assert_eq!((&gone["detail"], &gone["field"]), (&detail.into(), &"to".into()));
    shop.finish().await;
}

#[tokio::test]
async fn an_image_that_is_gone_is_told_with_the_command_that_builds_it_again() {
    let Some(engine) = engine::or_skip("an_image_that_is_gone").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let releases = shop.agent.get("/api/v1/apps/shop/releases").await;
    let image = releases[0]["services"][0]["image"].as_str().unwrap();
    let commit = releases[0]["commit"].as_str().unwrap();
    // By hand, and nobody was there to see it.
    shop.agent.stop().await;
    for container in shop.instances("web").await {
        let force = bollard::query_parameters::RemoveContainerOptionsBuilder::new().force(true).build();
        engine.docker.remove_container(&container.id, Some(force)).await.unwrap();
    }
    let force = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
    engine.docker.remove_image(image, Some(force), None).await.unwrap();
    shop.agent.start().await;

    let remedy = format!(" not on this machine any more; to build it again: longshore deploy shop --commit {commit}");
    let said = async |arguments: &[&str]| {
        let output = shop.agent.cli(arguments).await;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    };
    eventually("status tells what to do", LIMIT, async || {
        let (_, shown) = said(&["status", "shop"]).await;
        if shown.contains(&format!("could not be started: image {image} is{remedy}")) { Ok(()) } else { Err(shown) }
    })
    .await;
    for line in [&["restart", "shop"][..], &["scale", "shop", "web=3"]] {
        let (code, text) = said(line).await;
        assert!(code == Some(1) && text.contains(&format!("the image of v1 is{remedy}")), "{line:?}: {text}");
    }
    assert_eq!(shop.deployments().await.len(), 1, "nothing was tried");

    // As status has it, the commit is short.
    let (code, text) = said(&["deploy", "shop", "--commit", "0000000"]).await;
    assert!(code == Some(1) && text.contains("no deployment of a commit that begins with 0000000"), "{text}");
    let (code, text) = said(&["deploy", "shop", "--commit", &commit[..7]]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(shop.deployments().await[0]["commit"], commit);
    shop.all_ready().await;
    assert_eq!(shop.version().await, "v1");
    shop.finish().await;
}

#[tokio::test]
async fn scaling_keeps_what_runs_and_survives_a_restart_of_the_agent() {
    let Some(engine) = engine::or_skip("scaling").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("200ms")).await;
    let scale = "/api/v1/apps/shop/services/web/scale";
    let before = ids(&shop.instances("web").await);
    let load = shop.load();
    assert_ended(&shop.ask_and_wait("PUT", scale, json!({ "instances": 4 })).await, "succeeded", &[]);
    shop.assert_live(1, &[("web", 4)]).await;
    let four = ids(&shop.instances("web").await);
    assert_eq!(four[..2], before);
    shop.told(2, &["web runs 4 times now"]).await;

    assert_ended(&shop.ask_and_wait("PUT", scale, json!({ "instances": 3 })).await, "succeeded", &[]);
    assert_eq!(ids(&shop.instances("web").await), four[..3]);

    shop.agent.restart().await;
    eventually("the instances are adopted", LIMIT, async || {
        let app = shop.app().await;
        let ready =
            app["services"][0]["instances"] == json!({ "desired": 3, "ready": 3, "serving": 3, "standing_in": 0 });
        if ready { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
    assert_eq!(ids(&shop.instances("web").await), four[..3]);
    // The next version comes in that number too.
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 3)]).await;

    assert_ended(&shop.ask_and_wait("PUT", scale, json!({ "instances": 1 })).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 1)]).await;
    load.stop().await.assert_flawless(100);
    shop.agent.api("PUT", scale, Some(json!({ "instances": 65 }))).await.expect(422);
    assert_ended(&shop.ask_and_wait("PUT", scale, json!({ "instances": 0 })).await, "succeeded", &[]);
    let nothing = shop.agent.visit(HOST, "/").await.unwrap().expect(503);
    assert!(nothing.text().contains(&format!("nothing runs behind {HOST}")), "{}", nothing.text());
    shop.finish().await;
}

#[tokio::test]
async fn a_scale_that_fails_leaves_the_number_that_was() {
    let Some(engine) = engine::or_skip("a_scale_that_fails").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1").exit_at_once(3).only_on("-3"), Options::default()).await;
    let scaled = shop.ask_and_wait("PUT", "/api/v1/apps/shop/services/web/scale", json!({ "instances": 4 })).await;
    assert_ended(&scaled, "rolled_back", &["web-3", "exited with code 3"]);
    shop.assert_live(1, &[("web", 2)]).await;
    assert_eq!(shop.app().await["services"][0]["instances"]["desired"], 2);
    shop.told(2, &["scaling web to 4 was rolled back"]).await;
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 2)]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_service_that_is_switched_off_stays_off_whoever_asks_for_it() {
    let Some(engine) = engine::or_skip("switched_off").await else { return };
    let options = Options::default().watch("2s");
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options.clone()).await;
    let load = shop.load();
    shop.reconfigure(&Options { keys: options.keys.replace("instances = 2", "instances = 0"), ..options }).await;
    let off = shop.ask_and_wait("POST", "/api/v1/apps/shop/deployments", json!({})).await;
    assert_ended(&off, "succeeded", &[]);
    assert!(off["requests"]["failed"].as_u64().unwrap() > 20, "its visitors found nobody: {off:#}");
    assert_eq!(shop.instances("web").await.len(), 0);
    drop(load);
    shop.finish().await;
}

#[tokio::test]
async fn a_restart_replaces_every_instance_and_nobody_notices() {
    let Some(engine) = engine::or_skip("a_restart").await else { return };
    let options = Options::web_and_worker(2, 1).watch("200ms");
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    let before = [ids(&shop.instances("web").await), ids(&shop.instances("worker").await)].concat();
    let load = shop.load();
    let deployment = shop.ask_and_wait("POST", "/api/v1/apps/shop/restart", json!({})).await;
    assert_ended(&deployment, "succeeded", &[]);
    load.stop().await.assert_flawless(50);
    assert!(!shop.log(2).await.contains("built"), "a restart builds nothing");
    shop.assert_live(1, &[("web", 2), ("worker", 1)]).await;
    let after = [ids(&shop.instances("web").await), ids(&shop.instances("worker").await)].concat();
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    shop.told(2, &["every instance was restarted"]).await;
    shop.finish().await;
}
