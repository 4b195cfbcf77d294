//! The Docker engine as seen from outside: what carries an agent's label, and removing it.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    BuildImageOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    RemoveVolumeOptionsBuilder,
};
use futures_util::StreamExt;

/// Everything an agent makes on the engine carries this label with the agent's id.
pub const AGENT_LABEL: &str = "longshore.agent";

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// The engine, or `None` when there is none and `LONGSHORE_SKIP_DOCKER=1` allows to go on without. Otherwise a test
/// that needs it fails here.
pub async fn or_skip(test: &str) -> Option<Engine> {
    let problem = match Docker::connect_with_defaults() {
        Ok(docker) => match tokio::time::timeout(Duration::from_secs(10), docker.ping()).await {
            Ok(Ok(_)) => return Some(Engine { docker }),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 10 s".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    if std::env::var("LONGSHORE_SKIP_DOCKER").is_ok_and(|value| value == "1") {
        let count = SKIPPED.fetch_add(1, Relaxed) + 1;
        // Not eprintln!, which the test harness hides for tests that pass.
        let _ = writeln!(std::io::stderr(), "skipped without Docker: {test} (number {count})");
        return None;
    }
    panic!(
        "no Docker engine answers ({problem}): run `./dev setup`, or set LONGSHORE_SKIP_DOCKER=1 to skip such tests"
    );
}

/// A connection to the engine.
#[derive(Clone)]
pub struct Engine {
    /// For what the methods here do not cover.
    pub docker: Docker,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    pub labels: HashMap<String, String>,
    /// `running`, `exited`, `created` …
    pub state: String,
}

impl Container {
    /// A label's value, empty when missing.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// An image.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: String,
    pub tags: Vec<String>,
}

/// A network or a volume.
#[derive(Debug, Clone)]
pub struct Named {
    pub name: String,
    pub labels: HashMap<String, String>,
}

/// All that carries an agent's label.
#[derive(Debug, Clone)]
pub struct Objects {
    pub containers: Vec<Container>,
    pub images: Vec<Image>,
    pub networks: Vec<Named>,
    pub volumes: Vec<Named>,
}

impl Engine {
    /// What carries the label of the agent with this id.
    pub async fn objects(&self, agent_id: &str) -> Objects {
        self.try_objects(agent_id).await.unwrap_or_else(|error| panic!("listing what {agent_id} made: {error}"))
    }

    async fn try_objects(&self, agent_id: &str) -> Result<Objects, bollard::errors::Error> {
        let filters = HashMap::from([("label", vec![format!("{AGENT_LABEL}={agent_id}")])]);
        let filters: HashMap<String, Vec<String>> =
            filters.into_iter().map(|(key, values)| (key.to_owned(), values)).collect();
        let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self.docker.list_containers(Some(containers)).await?.into_iter().map(|summary| Container {
            id: summary.id.unwrap_or_default(),
            name: summary.names.unwrap_or_default().join(" ").trim_start_matches('/').to_owned(),
            labels: summary.labels.unwrap_or_default(),
            state: summary.state.map(|state| state.to_string()).unwrap_or_default(),
        });
        let images = ListImagesOptionsBuilder::new().filters(&filters).build();
        let images = self.docker.list_images(Some(images)).await?.into_iter().map(|summary| Image {
            id: summary.id,
            tags: summary.repo_tags.into_iter().filter(|tag| tag != "<none>:<none>").collect(),
        });
        let networks = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let networks = self.docker.list_networks(Some(networks)).await?.into_iter().map(|network| Named {
            name: network.name.unwrap_or_default(),
            labels: network.labels.unwrap_or_default(),
        });
        let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self.docker.list_volumes(Some(volumes)).await?.volumes.unwrap_or_default();
        let volumes = volumes.into_iter().map(|volume| Named { name: volume.name, labels: volume.labels });
        Ok(Objects {
            containers: containers.collect(),
            images: images.collect(),
            networks: networks.collect(),
            volumes: volumes.collect(),
        })
    }

    /// The containers of one service of an app, running or not, by slot.
    pub async fn instances(&self, agent_id: &str, app: &str, service: &str) -> Vec<Container> {
        let mut containers = self.objects(agent_id).await.containers;
        containers.retain(|container| {
            container.label("longshore.kind") == "instance"
                && container.label("longshore.app") == app
                && container.label("longshore.service") == service
        });
        containers.sort_by_key(|container| container.label("longshore.slot").parse::<u32>().unwrap_or(0));
        containers
    }

    /// Which instance has which address, of those that run.
    pub async fn addresses(&self) -> Result<HashMap<IpAddr, String>, bollard::errors::Error> {
        let containers = self.docker.list_containers(None).await?.into_iter();
        let addresses = containers.flat_map(|container| {
            let id = container.labels.and_then(|mut labels| labels.remove("longshore.instance")).unwrap_or_default();
            let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            networks.into_values().filter_map(move |network| Some((network.ip_address?.parse().ok()?, id.clone())))
        });
        Ok(addresses.collect())
    }

    /// Builds an image from a directory with a Dockerfile (classic builder, no cache of layers needed).
    pub async fn build(&self, directory: &Path, name: &str, label: &str) {
        let mut archive = tar::Builder::new(Vec::new());
        for file in ["Dockerfile", "behaviour", "site"] {
            archive.append_path_with_name(directory.join(file), file).expect("a file of the context");
        }
        let context = archive.into_inner().expect("a tar");
        let (key, value) = label.split_once('=').expect("a label of the form key=value");
        let labels = HashMap::from([(key, value)]);
        let options = BuildImageOptionsBuilder::new().t(name).labels(&labels).rm(true).forcerm(true).build();
        let mut lines = self.docker.build_image(options, None, Some(bollard::body_full(context.into())));
        while let Some(line) = lines.next().await {
            line.unwrap_or_else(|error| panic!("building {name}: {error}"));
        }
    }

    /// Creates a container without starting it.
    pub async fn create_container(&self, image: &str, name: &str, label: &str) {
        let (key, value) = label.split_once('=').expect("a label of the form key=value");
        let labels = HashMap::from([(key.to_owned(), value.to_owned())]);
        let body = ContainerCreateBody { image: Some(image.to_owned()), labels: Some(labels), ..Default::default() };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        self.docker
            .create_container(Some(options), body)
            .await
            .unwrap_or_else(|error| panic!("creating {name}: {error}"));
    }

    /// What the agent should not have left: one line per thing.
    pub async fn leftovers(&self, agent_id: &str) -> Vec<String> {
        self.objects(agent_id).await.leftovers()
    }

    /// Removes everything that carries the agent's label, volumes included. What cannot be removed is returned.
    pub async fn remove_all(&self, agent_id: &str) -> Vec<String> {
        let objects = match self.try_objects(agent_id).await {
            Ok(objects) => objects,
            Err(error) => return vec![format!("listing what {agent_id} made: {error}")],
        };
        let mut problems = Vec::new();
        let mut note = |what: &str, result: Result<(), bollard::errors::Error>| {
            if let Err(error) = result {
                problems.push(format!("{what}: {error}"));
            }
        };
        for container in &objects.containers {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            note(&container.name, self.docker.remove_container(&container.id, Some(options)).await);
        }
        for network in &objects.networks {
            note(&network.name, self.docker.remove_network(&network.name).await);
        }
        for volume in &objects.volumes {
            let options = RemoveVolumeOptionsBuilder::new().force(true).build();
            note(&volume.name, self.docker.remove_volume(&volume.name, Some(options)).await);
        }
        for image in &objects.images {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            note(&image.id, self.docker.remove_image(&image.id, Some(options), None).await.map(drop));
        }
        problems
    }
}

impl Objects {
    /// The rules: a live release needs its running instances, each slot once, all of a service with the same
    /// settings; one network per app; images with a name. Volumes stay by design.
    pub fn leftovers(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut slots = BTreeMap::new();
        let mut settings = BTreeMap::new();
        for container in &self.containers {
            let kind = container.label("longshore.kind");
            let service = (container.label("longshore.app"), container.label("longshore.service"));
            if kind != "instance" {
                lines.push(format!("container {} of kind {kind:?} ({})", container.name, container.state));
                continue;
            }
            if container.state != "running" {
                lines.push(format!("container {} is {}", container.name, container.state));
            }
            if let Some(other) = slots.insert((service, container.label("longshore.slot")), &container.name) {
                lines.push(format!("containers {other} and {} have the same slot", container.name));
            }
            let first = *settings.entry(service).or_insert_with(|| container.label("longshore.settings"));
            if first != container.label("longshore.settings") {
                lines.push(format!("container {} runs with other settings than its service", container.name));
            }
        }
        let mut networks = BTreeMap::new();
        for network in &self.networks {
            let app = network.labels.get("longshore.app");
            if let Some(other) = networks.insert(app, &network.name) {
                lines.push(format!("networks {other} and {} belong to the same app", network.name));
            }
        }
        for image in self.images.iter().filter(|image| image.tags.is_empty()) {
            lines.push(format!("image {} has no name", image.id));
        }
        lines
    }
}
