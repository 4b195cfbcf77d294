//! An agent of its own for each test, a static application to put into images, and commits to build from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, ListNetworksOptions, ListVolumesOptions};
use longshore::config::{Build, BuilderKind};
use longshore::deploy::build::{Artifact, BuildError, BuildRequest, Builder};
use longshore::deploy::source::Source;
use longshore::journal::DeployLog;
use longshore::model::{AppName, DeploymentId, ImageId, InstanceId, ReleaseNumber};
use longshore::runtime::docker::Docker;
use longshore::runtime::{InstanceSpec, labels};
use tokio_util::sync::CancellationToken;

pub const SOCKET: &str = "/var/run/docker.sock";

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` with an agent of its own, unless engine tests are switched off.
pub fn with_agent<F: Future<Output = ()>>(test: impl FnOnce(Arc<Agent>) -> F) {
    if std::env::var_os("LONGSHORE_SKIP_DOCKER").is_some_and(|value| value == "1") {
        eprintln!("skipped: LONGSHORE_SKIP_DOCKER=1");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Arc::new(Agent::connect(&format!("unix://{SOCKET}")).await);
        tokio::time::timeout(Duration::from_secs(180), test(Arc::clone(&agent))).await.expect("a test without end");
    });
}

/// An agent id of its own on the real engine. Everything that carries it is removed at the end.
pub struct Agent {
    pub docker: Docker,
    pub builder: Builder,
    pub app: AppName,
}

impl Agent {
    pub async fn connect(docker_host: &str) -> Self {
        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        let id = format!("t{}", hex::encode(random));
        let docker = match Docker::connect(docker_host, &id).await {
            Ok(docker) => docker,
            Err(error) => panic!("these tests need a Docker engine (or LONGSHORE_SKIP_DOCKER=1): {error}"),
        };
        Self { builder: Builder::new(docker.clone()), docker, app: "shop".parse().unwrap() }
    }

    pub fn id(&self) -> &str {
        self.docker.agent_id()
    }

    /// Builds and returns the result with the log.
    pub async fn build(&self, source: &Commit, build: &Build) -> (Result<Artifact, BuildError>, Vec<String>) {
        let (log, lines) = log();
        let result = self.builder.build(self.request(source, build), &log, &CancellationToken::new()).await;
        let lines = lines.lock().unwrap().clone();
        (result, lines)
    }

    pub fn request<'a>(&'a self, source: &'a Commit, build: &'a Build) -> BuildRequest<'a> {
        BuildRequest { app: &self.app, deployment: DeploymentId(1), source: &source.source, build }
    }

    /// An image whose entrypoint is the test application.
    pub async fn app_image(&self) -> ImageId {
        // Steps of its own: the engine takes a cached one that another test is just removing, and then misses it.
        let steps = format!("FROM scratch\nLABEL of={}\nCOPY app /app\nENTRYPOINT [\"/app\"]\n", self.id());
        let commit = Commit::new(&[("Dockerfile", &steps)]);
        let (artifact, log) = self.build(&commit, &build(BuilderKind::Classic)).await;
        artifact.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n"))).image
    }

    pub fn spec(&self, image: &ImageId, slot: u32, command: &[&str]) -> InstanceSpec {
        let service = "web".parse().unwrap();
        InstanceSpec {
            id: InstanceId::new(DeploymentId(12), &service, slot, 0),
            app: self.app.clone(),
            service,
            slot,
            release: ReleaseNumber(7),
            deployment: DeploymentId(12),
            commit: "a".repeat(40).parse().unwrap(),
            settings: "digest".to_owned(),
            image: image.clone(),
            command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            env: BTreeMap::new(),
            port: None,
            memory: None,
            cpu_millis: None,
            stop_grace: Duration::from_secs(2),
            volumes: vec![],
        }
    }
}

impl Agent {
    /// What it has on the engine, by name.
    pub async fn objects(&self) -> Vec<String> {
        objects(self.id()).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let id = self.id().to_owned();
        // A thread of its own: this one may be inside a runtime.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(remove_everything(&id));
        });
        let _ = cleaning.join();
    }
}

/// The engine, past the code under test.
fn engine() -> bollard::Docker {
    bollard::Docker::connect_with_unix(SOCKET, 60, bollard::API_DEFAULT_VERSION).unwrap()
}

/// The names of every container, network, volume and tagged image of an agent.
async fn objects(agent: &str) -> Vec<String> {
    let (docker, filters) = (engine(), Some(labels::filter(&[(labels::AGENT, agent)])));
    let containers = ListContainersOptions { all: true, filters: filters.clone(), ..Default::default() };
    let containers = docker.list_containers(Some(containers)).await.unwrap();
    let networks = docker.list_networks(Some(ListNetworksOptions { filters: filters.clone() })).await.unwrap();
    let volumes = docker.list_volumes(Some(ListVolumesOptions { filters: filters.clone() })).await.unwrap();
    let images = docker.list_images(Some(ListImagesOptions { filters, ..Default::default() })).await.unwrap();
    let mut names: Vec<String> = containers.into_iter().flat_map(|c| c.names.unwrap_or_default()).collect();
    names.extend(networks.into_iter().filter_map(|network| network.name));
    names.extend(volumes.volumes.unwrap_or_default().into_iter().map(|volume| volume.name));
    names.extend(images.into_iter().flat_map(|image| image.repo_tags));
    names
}

async fn remove_everything(agent: &str) {
    let docker = engine();
    let filters = Some(labels::filter(&[(labels::AGENT, agent)]));
    let containers = ListContainersOptions { all: true, filters: filters.clone(), ..Default::default() };
    for container in docker.list_containers(Some(containers)).await.unwrap_or_default() {
        let options = bollard::query_parameters::RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let _ = docker.remove_container(&container.id.unwrap_or_default(), Some(options)).await;
    }
    let networks = docker.list_networks(Some(ListNetworksOptions { filters: filters.clone() })).await;
    for network in networks.unwrap_or_default() {
        let _ = docker.remove_network(&network.id.unwrap_or_default()).await;
    }
    let volumes = docker.list_volumes(Some(ListVolumesOptions { filters: filters.clone() })).await;
    for volume in volumes.ok().and_then(|found| found.volumes).unwrap_or_default() {
        let _ = docker.remove_volume(&volume.name, None::<bollard::query_parameters::RemoveVolumeOptions>).await;
    }
    let reference = [("reference".to_owned(), vec![format!("longshore-{agent}/*")])].into();
    for filters in [filters, Some(reference)] {
        let options = ListImagesOptions { filters, ..Default::default() };
        for image in docker.list_images(Some(options)).await.unwrap_or_default() {
            for tag in image.repo_tags {
                let _ = docker.remove_image(&tag, None::<bollard::query_parameters::RemoveImageOptions>, None).await;
            }
        }
    }
}

/// A log and what is in it.
pub fn log() -> (DeployLog, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    (DeployLog::new(move |line| sink.lock().unwrap().push(line.to_owned())), lines)
}

pub fn build(builder: BuilderKind) -> Build {
    Build {
        dockerfile: "Dockerfile".to_owned(),
        context: ".".to_owned(),
        target: None,
        args: BTreeMap::new(),
        secrets: BTreeMap::new(),
        builder,
    }
}

/// A commit in a bare repository of its own: the given files and the test application as `app`.
pub struct Commit {
    pub source: Source,
    _directory: tempfile::TempDir,
}

impl Commit {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = git2::Repository::init_bare(directory.path()).unwrap();
        let mut index = git2::Index::new().unwrap();
        repository.set_index(&mut index).unwrap();
        let app = std::fs::read(application()).unwrap();
        let mut index = repository.index().unwrap();
        add(&repository, &mut index, "app", &app, 0o100_755);
        for (path, content) in files {
            add(&repository, &mut index, path, content.as_bytes(), 0o100_644);
        }
        let tree = repository.find_tree(index.write_tree_to(&repository).unwrap()).unwrap();
        let author = git2::Signature::now("a", "a@example.com").unwrap();
        let id = repository.commit(Some("refs/heads/main"), &author, &author, "subject", &tree, &[]).unwrap();
        let source = Source {
            commit: id.to_string().parse().unwrap(),
            author: "a".to_owned(),
            subject: "subject".to_owned(),
            mirror: directory.path().to_owned(),
            submodules: vec![],
        };
        Self { source, _directory: directory }
    }
}

fn add(repository: &git2::Repository, index: &mut git2::Index, path: &str, content: &[u8], mode: u32) {
    let id = repository.blob(content).unwrap();
    let time = git2::IndexTime::new(0, 0);
    index
        .add(&git2::IndexEntry {
            ctime: time,
            mtime: time,
            dev: 0,
            ino: 0,
            mode,
            uid: 0,
            gid: 0,
            file_size: 0,
            id,
            flags: 0,
            flags_extended: 0,
            path: path.as_bytes().to_vec(),
        })
        .unwrap();
}

/// The test application, compiled once: static, so that an image needs nothing else.
fn application() -> &'static Path {
    static APP: OnceLock<PathBuf> = OnceLock::new();
    APP.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let binary = directory.join(format!("engine-app-{}", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/app.rs");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let compiled = std::process::Command::new(rustc)
            .args(["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o"])
            .args([&binary, &source])
            .status();
        assert!(compiled.is_ok_and(|status| status.success()), "rustc could not compile {}", source.display());
        let last = directory.join("engine-app");
        std::fs::rename(&binary, &last).unwrap();
        last
    })
}

/// Waits until `condition` holds; what it waits for tells no one when it happens.
pub async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a process of this machine has `word` in its arguments; the engine runs here too.
pub fn is_running(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let mut apps = commands.filter(|command| command.starts_with(b"/app\0"));
    apps.any(|command| String::from_utf8_lossy(&command).contains(word))
}
