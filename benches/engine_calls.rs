//! The limit of any rollout one at a time: the engine's own calls, one after another, and nothing else.
//!
//! Containers are created with the settings that longshore gives them (`--init`, capabilities dropped, a network of
//! the app), so that the difference between the two is what longshore itself costs.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, NetworkCreateRequest, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use tokio::task::JoinSet;

use crate::support::engine::{AGENT_LABEL, Engine};
use crate::support::http;

const CAPABILITIES: [&str; 7] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"];

/// Five containers and what it takes to replace them.
pub struct Calls {
    docker: Docker,
    network: String,
    label: HashMap<String, String>,
    live: Vec<String>,
    started: usize,
}

impl Calls {
    /// A network of its own; what carries the label of `id` is to be removed by the caller at the end.
    pub async fn new(engine: &Engine, id: &str) -> Self {
        let network = format!("longshore-bench-{id}");
        let label = HashMap::from([(AGENT_LABEL.to_owned(), id.to_owned())]);
        let request = NetworkCreateRequest { name: network.clone(), labels: Some(label.clone()), ..Default::default() };
        engine.docker.create_network(request).await.expect("a network");
        Self { docker: engine.docker.clone(), network, label, live: Vec::new(), started: 0 }
    }

    /// Replaces the live containers by five of `image`, each stop overlapping with the next start; how long it took
    /// until the last new one answered.
    pub async fn replace(&mut self, image: &str) -> Duration {
        let old = std::mem::take(&mut self.live);
        let mut stopping = JoinSet::new();
        let began = Instant::now();
        let mut old = old.into_iter();
        for _ in 0..5 {
            let container = self.start(image).await;
            self.live.push(container);
            if let Some(old) = old.next() {
                stopping.spawn(stop(self.docker.clone(), old));
            }
        }
        let took = began.elapsed();
        stopping.join_all().await;
        took
    }

    async fn start(&mut self, image: &str) -> String {
        self.started += 1;
        let name = format!("{}-{}", self.network, self.started);
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            labels: Some(self.label.clone()),
            host_config: Some(HostConfig {
                network_mode: Some(self.network.clone()),
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::ALWAYS),
                    maximum_retry_count: None,
                }),
                init: Some(true),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                cap_drop: Some(vec!["ALL".to_owned()]),
                cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
                pids_limit: Some(512),
                log_config: Some(HostConfigLogConfig {
                    typ: Some("json-file".to_owned()),
                    config: Some([("max-size", "10m"), ("max-file", "3")].map(|(k, v)| (k.into(), v.into())).into()),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let id = self.docker.create_container(Some(options), body).await.expect("a container").id;
        self.docker.start_container(&id, None).await.expect("a start");
        let shown = self.docker.inspect_container(&id, None::<InspectContainerOptions>).await.expect("an inspection");
        let networks = shown.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.get(&self.network).and_then(|network| network.ip_address.clone());
        let address: IpAddr = address.expect("an address").parse().expect("an address");
        let address = SocketAddr::from((address, 8000));
        while !http::get(address, "shop.test", "/healthz").await.is_ok_and(|answer| answer.status == 200) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        id
    }
}

async fn stop(docker: Docker, container: String) {
    let options = StopContainerOptionsBuilder::new().t(10).build();
    docker.stop_container(&container, Some(options)).await.expect("a stop");
    let options = RemoveContainerOptionsBuilder::new().v(true).build();
    docker.remove_container(&container, Some(options)).await.expect("a removal");
}
