//! What is live stays live, whoever lays hands on it; and what is not the agent's is left alone.

use std::collections::HashMap;

use bollard::models::{ContainerConfig, ContainerCreateBody, HostConfig, NetworkDisconnectRequest};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder, RenameContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use serde_json::Value;

use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::support::engine::{self, Container};
use crate::support::http;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

/// Two instances that are replaced soon when they stay unready.
fn options() -> Options {
    Options::web(
        "instances = 2\nhealth = { path = \"/healthz\", interval = \"200ms\", start_deadline = \"3s\" }\nstop_grace = \"2s\"",
    )
}

impl Shop {
    /// The app's entries of drift once one of them says all of `parts`.
    async fn drifted(&self, parts: &[&str]) -> Vec<Value> {
        eventually(&format!("drift says {parts:?}"), LIMIT, async || {
            let entries = self.agent.get("/api/v1/apps/shop/drift").await;
            let says = |entry: &Value| parts.iter().all(|part| entry.to_string().contains(part));
            let entries = entries.as_array().expect("a list").clone();
            if entries.iter().any(says) { Ok(entries) } else { Err(format!("{entries:#?}")) }
        })
        .await
    }

    async fn serves_with(&self, instances: usize) {
        eventually("every instance serves", LIMIT, async || {
            let app = self.app().await;
            let all = app["instances"].as_array().expect("instances");
            let serve = |i: &Value| i["health"] == "ready" && i["duty"] == "serving";
            if all.len() == instances && all.iter().all(serve) { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
    }

    async fn remove_by_hand(&self, container: &Container) {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        self.engine.docker.remove_container(&container.id, Some(options)).await.expect("removed");
    }

    /// What an instance's container is called.
    fn container_name(&self, instance: &str) -> String {
        format!("longshore.{}.shop.{instance}", self.agent.id())
    }

    /// Asks an instance itself, past the proxy.
    async fn tell_instance(&self, id: &str, path: &str) {
        let app = self.app().await;
        let all = app["instances"].as_array().expect("instances").clone();
        let instance = all.iter().find(|instance| instance["id"] == id).unwrap_or_else(|| panic!("{app:#}"));
        let address = instance["address"].as_str().expect("an address").parse().expect("an address");
        // One that is told to exit does not answer.
        let _ = http::get(address, "shop", path).await;
    }
}

#[tokio::test]
async fn an_instance_that_outgrew_its_memory_says_so_also_after_a_restart_of_the_agent() {
    let Some(engine) = engine::or_skip("an_instance_that_outgrew_its_memory").await else { return };
    let options = Options::web(
        "memory = \"32MiB\"\nhealth = { path = \"/healthz\", start_deadline = \"15s\" }\nstop_grace = \"2s\"",
    );
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    assert_eq!(shop.app().await["instances"][0]["last_end"], Value::Null);
    shop.tell_instance("d1-web-1", "/alloc?mb=100").await;
    let why = "ran out of its memory limit of 32 MiB";
    let told = async |shop: &Shop| {
        eventually("how it ended is told", LIMIT, async || {
            let instance = shop.app().await["instances"][0].take();
            let says = instance["last_end"]["why"].as_str().is_some_and(|said| said.starts_with(why));
            let is_back = instance["restarts"] == 1 && instance["health"] == "ready";
            if says && is_back { Ok(()) } else { Err(format!("{instance:#}")) }
        })
        .await;
    };
    told(&shop).await;
    shop.agent.kill().await;
    shop.agent.start().await;
    told(&shop).await;
    let status = shop.agent.cli(&["status", "shop"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let line = status
        .lines()
        .find(|line| line.starts_with("d1-web-1: restarted once; "))
        .unwrap_or_else(|| panic!("{status}"));
    assert!(line.contains(&format!("it {why}")), "{line}");
    shop.finish().await;
}

#[tokio::test]
async fn what_is_removed_stopped_or_killed_by_hand_returns() {
    let Some(engine) = engine::or_skip("what_is_removed_stopped_or_killed_by_hand_returns").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let first = shop.instances("web").await.into_iter().find(|c| c.label("longshore.slot") == "1").expect("web 1");

    shop.remove_by_hand(&first).await;
    shop.drifted(&["d1-web-1", "does not run: had its container removed; starting it"]).await;
    shop.drifted(&["d1-web-1", "serves again"]).await;
    let log = shop.agent.log();
    assert_eq!(log.matches("WARN had its container removed").count(), 1, "{log}");
    assert!(!log.contains("signal 9"), "{log}");
    shop.assert_live(1, &[("web", 2)]).await;

    let second = shop.instances("web").await.into_iter().find(|c| c.label("longshore.slot") == "2").expect("web 2");
    let options = StopContainerOptionsBuilder::new().t(1).build();
    shop.engine.docker.stop_container(&second.id, Some(options)).await.expect("stopped");
    shop.drifted(&["d1-web-2", "serves again"]).await;
    shop.serves_with(2).await;

    // The engine restarts what ends by itself.
    shop.tell_instance("d1-web-2", "/exit?code=3").await;
    eventually("it was restarted", LIMIT, async || {
        let app = shop.app().await;
        let restarted = app["instances"].as_array().expect("instances").iter().any(|i| i["restarts"] == 1);
        if restarted { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
    shop.serves_with(2).await;

    // The same while nobody looks.
    shop.agent.kill().await;
    for container in shop.engine.instances(&shop.agent.id(), "shop", "web").await {
        shop.remove_by_hand(&container).await;
    }
    shop.agent.start().await;
    shop.serves_with(2).await;
    assert_eq!(shop.version().await, "v1");
    assert_eq!(shop.deployments().await.len(), 1, "drift is no deployment");

    // The next deployment finds all in order.
    let next = shop.push(&Behaviour::version("v2")).await;
    assert_eq!(next["status"], "succeeded", "{next:#}");
    shop.assert_live(2, &[("web", 2)]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_new_one_that_is_removed_in_its_rollout_is_no_fault_of_its_commit() {
    let Some(engine) = engine::or_skip("a_new_one_that_is_removed_in_its_rollout").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options().watch("60s")).await;
    let load = shop.load();
    let ended_without = async |instance: &str, id: u64| {
        let new = shop.instances("web").await.into_iter().find(|c| c.label("longshore.instance") == instance);
        shop.remove_by_hand(&new.expect("a new one")).await;
        let ended = shop.agent.deployment_ended(id, LIMIT).await;
        assert_ended(&ended, "rolled_back", &["web-1", "had its container removed"]);
        assert!(shop.app().await["held"].is_null(), "another attempt may go well");
    };
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.reaches(id, "watching").await;
    ended_without("d2-web-1", id).await;
    let id = shop.push_without_waiting(&Behaviour::version("v3").ready_after_ms(60_000)).await;
    shop.says(id, "web-1: starting").await;
    eventually("it runs", LIMIT, async || {
        let all = shop.instances("web").await;
        let runs = all.iter().any(|c| c.label("longshore.instance") == "d3-web-1" && c.state == "running");
        if runs { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    ended_without("d3-web-1", id).await;
    assert_eq!(shop.version().await, "v1");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn what_an_agent_that_was_restarted_starts_anew_has_its_environment() {
    let Some(engine) = engine::or_skip("what_an_agent_that_was_restarted_starts_anew").await else { return };
    let options = options().table("[apps.shop.env]\nGREETING = \"hello\"");
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    shop.agent.restart().await;
    shop.serves_with(2).await;
    let before = shop.instances("web").await.swap_remove(0);
    shop.remove_by_hand(&before).await;
    shop.drifted(&[before.label("longshore.instance"), "serves again"]).await;
    let all = shop.instances("web").await;
    let after = all.iter().find(|now| now.label("longshore.slot") == before.label("longshore.slot")).expect("anew");
    assert_eq!(after.labels, before.labels);
    let seen = shop.engine.docker.inspect_container(&after.id, None).await.expect("a container");
    let env = seen.config.and_then(|config| config.env).unwrap_or_default();
    assert!(env.contains(&"GREETING=hello".to_owned()), "{env:?}");
    shop.finish().await;
}

#[tokio::test]
async fn what_stays_unready_is_replaced_and_nobody_notices() {
    let Some(engine) = engine::or_skip("what_stays_unready_is_replaced_and_nobody_notices").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let load = shop.load();
    let before = shop.instances("web").await;
    shop.tell_instance("d1-web-1", "/break").await;
    shop.drifted(&["d1-web-1", "stays unready", "503", "replacing it"]).await;
    shop.drifted(&["d1-web-1", "serves again"]).await;
    shop.serves_with(2).await;
    let after = shop.instances("web").await;
    let stayed = after.iter().filter(|now| before.iter().any(|then| then.id == now.id)).count();
    assert_eq!((after.len(), stayed), (2, 1), "one of two is another container now");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn what_nobody_recorded_is_left_alone_and_what_was_left_behind_goes() {
    let Some(engine) = engine::or_skip("what_nobody_recorded_is_left_alone_and_what_was_left_behind_goes").await else {
        return;
    };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let copy = shop.instances("web").await.swap_remove(0);
    let image = shop.engine.docker.inspect_container(&copy.id, None).await.expect("a container").image;
    let start = async |deployment: &str, slot: &str| {
        let mut labels: HashMap<String, String> = copy.labels.clone();
        let id = format!("d{deployment}-web-{slot}");
        labels.insert("longshore.deployment".into(), deployment.into());
        labels.insert("longshore.instance".into(), id.clone());
        labels.insert("longshore.slot".into(), slot.into());
        let body = ContainerCreateBody { image: image.clone(), labels: Some(labels), ..Default::default() };
        let name = shop.container_name(&id);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let made = shop.engine.docker.create_container(Some(options), body).await.expect("created");
        shop.engine.docker.start_container(&made.id, None::<StartContainerOptions>).await.expect("started");
        made.id
    };
    let stranger = start("4711", "1").await;
    let left_behind = start("1", "7").await;
    shop.drifted(&["d4711-web-1", "no deployment on record", "left alone"]).await;
    shop.drifted(&["d1-web-7", "was left behind by"]).await;
    let exists = async |id: &str| shop.engine.docker.inspect_container(id, None).await.is_ok();
    eventually("what was left behind is gone", LIMIT, async || {
        if exists(&left_behind).await { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    shop.agent.restart().await;
    shop.serves_with(2).await;
    assert!(shop.engine.docker.inspect_container(&stranger, None).await.is_ok(), "the stranger is left alone");
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    shop.engine.docker.remove_container(&stranger, Some(options)).await.expect("removed");
    shop.finish().await;
}

#[tokio::test]
async fn a_container_that_carries_our_labels_and_is_none_of_ours_is_told_of_once() {
    let Some(engine) = engine::or_skip("a_container_that_carries_our_labels").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let copy = shop.instances("web").await.swap_remove(0);
    let image = shop.engine.objects(&shop.agent.id()).await.images.swap_remove(0).id;
    let docker = shop.engine.docker.clone();
    let start = async |name: String, labels: &[(&str, &str)]| {
        let ours = ["longshore.agent", "longshore.app"].map(|label| (label, copy.label(label)));
        let labels = ours.iter().chain(labels).map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
        let labels = Some(labels.collect::<HashMap<_, _>>());
        let body = ContainerCreateBody { image: Some(image.clone()), labels, ..Default::default() };
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let made = docker.create_container(Some(options), body).await.expect("created").id;
        docker.start_container(&made, None::<StartContainerOptions>).await.expect("started");
        made
    };
    let remove = async |id: &str| {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        docker.remove_container(id, Some(options)).await.expect("removed");
    };
    let whole: Vec<(&str, &str)> = copy.labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
    let but = |changes: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> {
        let kept = whole.iter().filter(|(label, _)| !changes.iter().any(|(changed, _)| changed == label)).copied();
        kept.chain(changes.iter().copied()).collect()
    };
    // While the agent runs.
    let beside = |name: &str| format!("{}.{name}", copy.name);
    let bare = start(beside("bare"), &[]).await;
    shop.drifted(&[&bare[..12], "bare", "longshore.kind is missing or malformed", "left alone"]).await;
    let odd = start(beside("odd"), &but(&[("longshore.instance", "D1 web")])).await;
    shop.drifted(&[&odd[..12], "longshore.instance is missing or malformed"]).await;
    let elsewhere = [("longshore.deployment", "4711"), ("longshore.instance", "d4711-web-1")];
    let foreign = start(shop.container_name("d4711-web-1"), &but(&elsewhere)).await;
    shop.drifted(&[&foreign[..12], "d4711-web-1", "no deployment on record"]).await;

    // Not again at a start of the agent, but of one that was made anew.
    shop.agent.restart().await;
    shop.serves_with(2).await;
    remove(&bare).await;
    let anew = start(beside("bare"), &[]).await;
    let entries = shop.drifted(&[&anew[..12], "bare"]).await;
    for told in [&bare, &odd, &foreign, &anew] {
        let times = entries.iter().filter(|entry| entry.to_string().contains(&told[..12])).count();
        assert_eq!(times, 1, "{told}: {entries:#?}");
    }
    for stranger in [&odd, &foreign, &anew] {
        let seen = docker.inspect_container(stranger, None).await.expect("it is left alone");
        assert_eq!(seen.state.and_then(|state| state.running), Some(true));
        remove(stranger).await;
    }
    assert_eq!(shop.version().await, "v1");
    shop.finish().await;
}

#[tokio::test]
async fn a_copy_of_an_instance_is_not_taken_for_it() {
    let Some(engine) = engine::or_skip("a_copy_of_an_instance_is_not_taken_for_it").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let routes = async || {
        let traffic = shop.app().await["instances"].as_array().expect("instances").clone();
        traffic.into_iter().map(|i| (i["id"].clone(), i["address"].clone(), i["health"].clone())).collect::<Vec<_>>()
    };
    let (before, routed) = (shop.instances("web").await, routes().await);
    let docker = shop.engine.docker.clone();
    let load = shop.load();

    // Somebody looks into an instance: the image has its labels, and so has what is run from it.
    let commit = CommitContainerOptionsBuilder::new().container(&before[0].id).repo(&debug_image(&shop)).build();
    docker.commit_container(commit, ContainerConfig::default()).await.expect("committed");
    let network = before[0].name.trim_end_matches(".d1-web-1").to_owned();
    let run = async |name: &str, labels: &[(&str, &str)], network: &str| {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        let host_config = HostConfig { network_mode: Some(network.to_owned()), ..Default::default() };
        let image = Some(debug_image(&shop));
        let body =
            ContainerCreateBody { image, labels: Some(labels), host_config: Some(host_config), ..Default::default() };
        let options = CreateContainerOptionsBuilder::new().name(&format!("{}-{name}", shop.agent.id())).build();
        let made = docker.create_container(Some(options), body).await.expect("created").id;
        docker.start_container(&made, None::<StartContainerOptions>).await.expect("started");
        made
    };
    let inside = run("inside", &[], &network).await;
    let outside = run("dbg", &[], "bridge").await;
    let place = run("slot", &[("longshore.slot", "9")], &network).await;
    let forged = run("forged7", &[("longshore.instance", "d1-web-7"), ("longshore.slot", "7")], &network).await;
    let called = format!("its name is not {}", before[0].name);
    for copy in [&inside, &outside] {
        shop.drifted(&[&copy[..12], &called, "left alone"]).await;
    }
    shop.drifted(&[&place[..12], "d1-web-1 does not fit", "longshore.slot 9"]).await;
    shop.drifted(&[&forged[..12], "d1-web-7"]).await;
    assert_eq!(routes().await, routed);

    // What happens to a copy does not happen to the instance.
    let cut = NetworkDisconnectRequest { container: inside.clone(), force: Some(true) };
    docker.disconnect_network(&network, cut).await.expect("disconnected");
    let options = StopContainerOptionsBuilder::new().t(0).build();
    docker.stop_container(&inside, Some(options)).await.expect("stopped");
    docker.start_container(&inside, None::<StartContainerOptions>).await.expect("started");
    let remove = async |id: &str| {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        docker.remove_container(id, Some(options)).await.expect("removed");
    };
    remove(&outside).await;
    // The events come in their order: when this one is known, the others have been.
    let last = run("last", &[], "bridge").await;
    let entries = shop.drifted(&[&last[..12], &called]).await;
    assert_eq!(routes().await, routed);
    for copy in [&inside, &outside, &place, &forged, &last] {
        let times = entries.iter().filter(|entry| entry.to_string().contains(&copy[..12])).count();
        assert_eq!(times, 1, "{copy}: {entries:#?}");
    }
    assert_eq!(entries.len(), 5, "nothing else differs: {entries:#?}");
    for there in before.iter().map(|container| &container.id).chain([&inside, &place, &forged, &last]) {
        let seen = docker.inspect_container(there, None).await.expect("nothing is removed");
        assert_eq!(seen.state.and_then(|state| state.running), Some(true), "{there}");
    }

    // Nor does a rollout move or stop one of them.
    assert_eq!(shop.push(&Behaviour::version("v2")).await["status"], "succeeded");
    load.stop().await.assert_flawless(100);
    for copy in [&inside, &place, &forged, &last] {
        let seen = docker.inspect_container(copy, None).await.expect("it is left alone");
        assert_eq!(seen.state.and_then(|state| state.running), Some(true));
        remove(copy).await;
    }
    shop.assert_live(2, &[("web", 2)]).await;
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    docker.remove_image(&debug_image(&shop), Some(options), None).await.expect("removed");
    shop.finish().await;
}

/// What a person calls the image of an instance that they look into.
fn debug_image(shop: &Shop) -> String {
    format!("debug-{}", shop.agent.id())
}

#[tokio::test]
async fn an_instance_that_is_renamed_is_a_stranger_and_started_anew() {
    let Some(engine) = engine::or_skip("an_instance_that_is_renamed_is_a_stranger").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let renamed = shop.instances("web").await.swap_remove(0);
    let name = format!("{}-kept", shop.agent.id());
    let rename = RenameContainerOptionsBuilder::new().name(&name).build();
    shop.engine.docker.rename_container(&renamed.id, rename).await.expect("renamed");
    shop.drifted(&[&renamed.id[..12], &name, "left alone"]).await;
    shop.drifted(&["d1-web-1", "serves again"]).await;
    shop.serves_with(2).await;
    let seen = shop.engine.docker.inspect_container(&renamed.id, None).await.expect("it is left alone");
    assert_eq!(seen.state.and_then(|state| state.running), Some(true));
    shop.remove_by_hand(&renamed).await;
    shop.assert_live(1, &[("web", 2)]).await;
    shop.finish().await;
}

#[tokio::test]
async fn what_is_left_of_a_release_command_goes_with_the_next_deployment() {
    let Some(engine) = engine::or_skip("what_is_left_of_a_release_command_goes").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let mut labels = shop.instances("web").await.swap_remove(0).labels;
    // As the engine makes it when it ends before it can answer.
    labels.insert("longshore.kind".into(), "release-command".into());
    labels.insert("longshore.instance".into(), "d1-web-0".into());
    labels.insert("longshore.slot".into(), "0".into());
    let image = shop.engine.objects(&shop.agent.id()).await.images.swap_remove(0).id;
    let body = ContainerCreateBody { image: Some(image), labels: Some(labels), ..Default::default() };
    let name = shop.container_name("d1-web-0");
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let left = shop.engine.docker.create_container(Some(options), body).await.expect("created").id;
    assert_eq!(shop.push(&Behaviour::version("v2")).await["status"], "succeeded");
    eventually("what was left is gone", LIMIT, async || {
        let gone = shop.engine.docker.inspect_container(&left, None).await.is_err();
        if gone { Ok(()) } else { Err("it is there".to_owned()) }
    })
    .await;
    shop.finish().await;
}
