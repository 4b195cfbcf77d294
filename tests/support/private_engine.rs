//! A Docker engine of the test's own, to be killed, stopped and started at will: never the machine's.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::engine::Engine;
use super::wait::eventually;

const UP: Duration = Duration::from_secs(60);

static STARTED: AtomicU32 = AtomicU32::new(0);

/// The engine. What it holds is gone when it is dropped.
pub struct PrivateEngine {
    directory: TempDir,
    /// One of its own: an engine without any, or with address pools of its own, removes the machine's `docker0`.
    bridge: String,
    child: Option<Child>,
    /// What holds the containers: it outlives the engine, as the one of an installed engine does. An engine without
    /// one starts one as its child, and forgets containers when both are killed.
    containerd: Option<Child>,
    /// Whether containers that run when it starts go on running: otherwise it ends them and starts them anew.
    live_restore: bool,
    /// Containers that it had forgotten when it started again.
    forgotten: usize,
}

impl PrivateEngine {
    /// Starts one, or says that this test is skipped: only root may.
    pub async fn start_or_skip(test: &str) -> Option<Self> {
        if nix::unistd::geteuid().is_root() {
            return Some(Self::start().await);
        }
        // Not eprintln!, which the test harness hides for tests that pass.
        let _ = writeln!(std::io::stderr(), "skipped, as only root may start an engine: {test}");
        None
    }

    async fn start() -> Self {
        // Several may run at a time, of this process and of others.
        let number = STARTED.fetch_add(1, Relaxed);
        let directory = tempfile::Builder::new().prefix("longshore-engine-").tempdir().expect("a directory");
        let bridge = format!("lsh{}-{number}", std::process::id());
        ip(&["link", "add", "name", &bridge, "type", "bridge"]);
        let mut engine = Self { directory, bridge, child: None, containerd: None, live_restore: false, forgotten: 0 };
        let subnet = (std::process::id() * 4 + number) % 256;
        ip(&["addr", "add", &format!("10.212.{subnet}.1/24"), "dev", &engine.bridge]);
        engine.start_containerd().await;
        engine.up().await;
        engine
    }

    async fn start_containerd(&mut self) {
        let [root, state, socket] = ["containerd", "containerd-state", "containerd.sock"].map(|name| self.path(name));
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n"
        );
        fs::write(self.path("containerd.toml"), config).expect("a file");
        let log = fs::File::create(self.path("containerd.log")).expect("a log");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.path("containerd.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.containerd = Some(command.spawn().expect("containerd (./dev setup installs it)"));
        eventually("containerd listens", UP, async || UnixStream::connect(&socket).await.map(drop)).await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// For `docker_host`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// What looks at it from outside.
    pub fn engine(&self) -> Engine {
        Engine { docker: self.connect().expect("a socket") }
    }

    /// Whether containers go on running over its next starts.
    pub fn set_live_restore(&mut self, live_restore: bool) {
        self.live_restore = live_restore;
    }

    /// How many containers it had forgotten so far when it started again.
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// Starts it again and waits until it answers. What it does not know of any more is ended before, as by a person.
    pub async fn up(&mut self) {
        self.forgotten += self.end_forgotten();
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .arg("--containerd")
            .arg(self.path("containerd.sock"))
            .args(["--host", &self.address(), "--bridge", &self.bridge, "--iptables=false", "--ip6tables=false"])
            .args(self.live_restore.then_some("--live-restore"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.child = Some(command.spawn().expect("dockerd (./dev setup installs it)"));
        eventually("the private engine answers", UP, async || {
            let answer = match self.connect() {
                Ok(docker) => docker.ping().await.map(drop),
                Err(error) => Err(error),
            };
            answer.map_err(|error| format!("{error}\n{}", fs::read_to_string(self.path("log")).unwrap_or_default()))
        })
        .await;
    }

    fn connect(&self) -> Result<bollard::Docker, bollard::errors::Error> {
        bollard::Docker::connect_with_unix(&self.address(), 120, bollard::API_DEFAULT_VERSION)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).expect("it runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("it can be signalled");
    }

    /// Ends it with `signal` and waits until it has gone.
    pub async fn down(&mut self, signal: Signal) {
        self.signal(signal);
        let mut child = self.child.take().expect("it runs");
        tokio::time::timeout(UP, child.wait()).await.expect("it ends").expect("a child");
        // A killed engine leaves its number behind.
        let _ = fs::remove_file(self.path("pid"));
    }
}

/// What it leaves on the machine when it is killed.
impl PrivateEngine {
    /// An engine that is killed while it starts a container has not noted that it runs. The next engine does not look for
    /// it: its process (most often `runc init`) would stay for ever, and keep its address from whoever is given it next.
    fn end_forgotten(&self) -> usize {
        let mut ended = 0;
        for pid in self.processes() {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let Some(id) = groups.lines().find_map(|line| line.split("/docker/").nth(1)) else { continue };
            let config = fs::read(self.path("data/containers").join(id).join("config.v2.json")).unwrap_or_default();
            let config: Value = serde_json::from_slice(&config).unwrap_or_default();
            if config["State"]["Running"] != Value::Bool(true) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                ended += 1;
            }
        }
        ended
    }

    /// The engine, its containerd and the shims of the containers, which all name the directory; and what runs in the
    /// containers, whose root is in it: that outlives its shim, and an engine that was killed may have forgotten it.
    fn processes(&self) -> Vec<i32> {
        let place = self.directory.path().display().to_string();
        let names_it = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.windows(place.len()).any(|part| part == place.as_bytes())
        };
        let has_root_in_it = |pid: &i32| {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            mounts.lines().any(|mount| mount.split(' ').nth(4) == Some("/") && mount.contains(&place))
        };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| names_it(pid) || has_root_in_it(pid)).collect()
    }

    /// The bridges of the networks that its containers are in.
    fn bridges(&self) -> Vec<String> {
        let containers = fs::read_dir(self.path("data/containers")).into_iter().flatten().flatten();
        let configs = containers.filter_map(|entry| fs::read_to_string(entry.path().join("config.v2.json")).ok());
        let mut found: Vec<String> = configs
            .flat_map(|config| {
                let ids = config.split("\"NetworkID\":\"").skip(1);
                ids.filter_map(|id| Some(format!("br-{}", id.get(..12)?))).collect::<Vec<_>>()
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        let bridges = self.bridges();
        for _ in 0..50 {
            let ours = self.processes();
            if ours.is_empty() {
                break;
            }
            for pid in ours {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for bridge in bridges.iter().chain([&self.bridge]) {
            let _ = std::process::Command::new("ip").args(["link", "delete", bridge]).stderr(Stdio::null()).status();
        }
        // What is still mounted would keep the directory.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let place = self.directory.path().display().to_string();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&place)) {
            let _ = std::process::Command::new("umount").args(["-l", mount]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = std::process::Command::new("ip").args(arguments).status().expect("ip (iproute2)");
    assert!(status.success(), "ip {arguments:?}: {status}");
}
