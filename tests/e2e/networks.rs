//! Somebody takes instances out of their network: they get no request from that moment on, come back, and nobody notices.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, NetworkConnectRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine::{self, Container};
use crate::support::load::Load;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

impl Shop {
    fn network(&self) -> String {
        format!("longshore.{}.shop", self.agent.id())
    }

    async fn disconnect(&self, container: &Container) {
        let request = NetworkDisconnectRequest { container: container.id.clone(), force: Some(true) };
        self.engine.docker.disconnect_network(&self.network(), request).await.expect("disconnected");
    }

    async fn connect(&self, container: &Container) {
        let request = NetworkConnectRequest { container: container.id.clone(), endpoint_config: None };
        self.engine.docker.connect_network(&self.network(), request).await.expect("connected");
    }

    /// Where the engine says that a container is in the app's network.
    async fn address(&self, container: &Container) -> Option<IpAddr> {
        let seen = self.engine.docker.inspect_container(&container.id, None).await.expect("a container");
        let networks = seen.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let endpoint: Option<EndpointSettings> = networks.get(&self.network()).cloned();
        endpoint.and_then(|endpoint| endpoint.ip_address).and_then(|address| address.parse().ok())
    }

    /// A container of somebody else's that takes the network's next free address.
    async fn occupy(&self) -> String {
        let image = self.engine.objects(&self.agent.id()).await.images.swap_remove(0).id;
        let host_config = Some(HostConfig { network_mode: Some(self.network()), ..Default::default() });
        let command = Some(vec!["worker".to_owned()]);
        let body = ContainerCreateBody { image: Some(image), cmd: command, host_config, ..Default::default() };
        let made = self.engine.docker.create_container(None::<CreateContainerOptions>, body).await.expect("created").id;
        self.engine.docker.start_container(&made, None::<StartContainerOptions>).await.expect("started");
        made
    }

    async fn remove(&self, container: &str) {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        self.engine.docker.remove_container(container, Some(options)).await.expect("removed");
    }

    /// The addresses in the proxy's table, by instance.
    fn routed(&self) -> Vec<(String, IpAddr)> {
        let table = std::fs::read(self.agent.data_dir().join("routes.json")).expect("a table");
        let table: Value = serde_json::from_slice(&table).expect("JSON");
        let members = table["routes"].as_array().into_iter().flatten().flat_map(|route| route["members"].as_array());
        let members = members.flatten().map(|member| {
            let address: std::net::SocketAddr = member["address"].as_str().expect("an address").parse().expect("one");
            (member["instance"].as_str().expect("a name").to_owned(), address.ip())
        });
        members.collect()
    }

    /// Waits until all instances are routed where the engine says they are.
    async fn all_routed(&self, instances: usize) {
        eventually("every instance is routed where it is", LIMIT, async || {
            let mut expected = Vec::new();
            for container in self.instances("web").await {
                let address = self.address(&container).await;
                expected.extend(address.map(|address| (container.label("longshore.instance").to_owned(), address)));
            }
            let mut routed = self.routed();
            expected.sort();
            routed.sort();
            let right = expected.len() == instances && expected == routed;
            if right { Ok(()) } else { Err(format!("{expected:?}, but routed {routed:?}")) }
        })
        .await;
    }

    async fn drift_says(&self, parts: &[&str]) {
        eventually(&format!("drift says {parts:?}"), LIMIT, async || {
            let entries = self.agent.get("/api/v1/apps/shop/drift").await;
            let says = |entry: &Value| parts.iter().all(|part| entry.to_string().contains(part));
            if entries.as_array().expect("a list").iter().any(says) { Ok(()) } else { Err(format!("{entries:#}")) }
        })
        .await;
    }
}

/// A check so rare that it is not what finds out.
fn options() -> Options {
    Options::web(
        "instances = 2\nhealth = { path = \"/healthz\", interval = \"10s\", start_deadline = \"60s\" }\nstop_grace = \"2s\"",
    )
}

#[tokio::test]
async fn one_that_is_cut_off_gets_no_request_and_comes_back() {
    let Some(engine) = engine::or_skip("one_that_is_cut_off_gets_no_request").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let before = shop.instances("web").await;
    let mut shape = shop.agent.load(HOST);
    shape.pause = Duration::from_millis(5);
    let load = Load::start(shape);
    let victim = &before[0];
    let name = victim.label("longshore.instance");
    for _ in 0..3 {
        shop.disconnect(victim).await;
        let cut = Instant::now();
        // Its check would need half a minute.
        eventually("it is out of the table", Duration::from_secs(3), async || {
            let routed = shop.routed();
            if routed.iter().any(|(id, _)| id == name) { Err(format!("{routed:?}")) } else { Ok(()) }
        })
        .await;
        eprintln!("disconnected: not routed after {:?}", cut.elapsed());
        shop.all_routed(2).await;
        eprintln!("disconnected: routed again after {:?}", cut.elapsed());
    }
    load.stop().await.assert_flawless(100);
    shop.drift_says(&[name, "was disconnected from its network", "connecting it again"]).await;
    shop.drift_says(&[name, "serves again"]).await;
    let status = shop.agent.cli(&["status", "shop"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("was disconnected from its network"), "{status}");
    assert_eq!(ids(&shop.instances("web").await), ids(&before), "nothing was replaced");
    shop.finish().await;
}

#[tokio::test]
async fn one_that_returns_with_another_address_is_routed_there() {
    let Some(engine) = engine::or_skip("one_that_returns_with_another_address").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let load = shop.load();
    let victim = shop.instances("web").await.swap_remove(0);
    let first = shop.address(&victim).await;
    // By hand, before the agent can do it.
    shop.agent.signal(Signal::SIGSTOP);
    shop.disconnect(&victim).await;
    let stranger = shop.occupy().await;
    shop.connect(&victim).await;
    let second = shop.address(&victim).await;
    assert!(second.is_some() && second != first, "{first:?} {second:?}");
    shop.agent.signal(Signal::SIGCONT);
    shop.all_routed(2).await;
    load.stop().await;

    // While there is no agent; the address that it had is another one's when the agent is back.
    shop.agent.kill().await;
    shop.disconnect(&victim).await;
    let other = shop.occupy().await;
    shop.agent.start().await;
    shop.all_routed(2).await;
    assert_ne!(shop.address(&victim).await, second);
    let load = shop.load();
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.stop().await.assert_flawless(50);
    shop.remove(&stranger).await;
    shop.remove(&other).await;
    shop.finish().await;
}

#[tokio::test]
async fn all_come_back_also_when_their_network_is_gone() {
    let Some(engine) = engine::or_skip("all_come_back_also_when_their_network_is_gone").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let before = shop.instances("web").await;
    for container in &before {
        shop.disconnect(container).await;
    }
    shop.drift_says(&["d1-web-2", "connecting it again"]).await;
    shop.all_routed(2).await;

    // Nobody serves meanwhile: it does not take longer for having been done before.
    let began = Instant::now();
    for _ in 0..4 {
        for container in &before {
            shop.disconnect(container).await;
        }
        shop.all_routed(2).await;
    }
    // With pauses of 1, 2, 4 and 8 s it were 15 s.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    shop.agent.signal(Signal::SIGSTOP);
    for container in &before {
        shop.disconnect(container).await;
    }
    shop.engine.docker.remove_network(&shop.network()).await.expect("removed");
    shop.agent.signal(Signal::SIGCONT);
    shop.all_routed(2).await;
    assert_eq!(ids(&shop.instances("web").await), ids(&before), "nothing was replaced");
    let load = shop.load();
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.stop().await.assert_flawless(50);
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    shop.finish().await;
}

#[tokio::test]
async fn in_a_rollout_an_old_one_comes_back_and_a_new_one_is_no_fault_of_its_commit() {
    let Some(engine) = engine::or_skip("in_a_rollout_an_old_one_comes_back").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options().watch("60s")).await;
    let load = shop.load();
    let old = shop.instances("web").await;
    let id = shop.push_without_waiting(&Behaviour::version("v2").ready_after_ms(5000)).await;
    shop.says(id, "web-1: starting").await;
    let waiting = old.iter().find(|c| c.label("longshore.slot") == "2").expect("web 2");
    shop.disconnect(waiting).await;
    shop.drift_says(&["d1-web-2", "connecting it again"]).await;
    eventually("it is routed again", LIMIT, async || {
        let (address, routed) = (shop.address(waiting).await, shop.routed());
        let is_it = |(id, at): &(String, IpAddr)| id == "d1-web-2" && Some(*at) == address;
        if routed.iter().any(is_it) { Ok(()) } else { Err(format!("{routed:?}")) }
    })
    .await;
    assert_eq!(shop.deployment(id).await["status"], "rolling_out");
    shop.says(id, "d1-web-2: ready again").await;
    assert!(!shop.log(id).await.contains("d1-web-2: ready after"), "it is not new");

    shop.reaches(id, "watching").await;
    let new = shop.instances("web").await.into_iter().find(|c| c.label("longshore.instance") == "d2-web-1");
    shop.disconnect(&new.expect("a new one")).await;
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&ended, "rolled_back", &["web-1", "was disconnected from its network"]);
    assert!(shop.app().await["held"].is_null(), "another attempt may go well");
    shop.all_routed(2).await;
    assert_eq!(shop.version().await, "v1");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

fn ids(all: &[Container]) -> Vec<String> {
    all.iter().map(|container| container.id.clone()).collect()
}

#[tokio::test]
async fn routes_that_a_stopped_proxy_did_not_take_are_told_it_when_it_goes_on() {
    let Some(engine) = engine::or_skip("routes_that_a_stopped_proxy_did_not_take").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options()).await;
    let proxy = nix::unistd::Pid::from_raw(shop.agent.proxy_pid());
    nix::sys::signal::kill(proxy, Signal::SIGSTOP).expect("stopped");
    let victim = shop.instances("web").await.swap_remove(0);
    shop.disconnect(&victim).await;
    let stranger = shop.occupy().await;
    shop.drift_says(&[victim.label("longshore.instance"), "serves again"]).await;
    // Longer than anybody waits for a table.
    tokio::time::sleep(Duration::from_secs(20)).await;
    nix::sys::signal::kill(proxy, Signal::SIGCONT).expect("it goes on");
    shop.all_routed(2).await;
    shop.remove(&stranger).await;
    shop.finish().await;
}
