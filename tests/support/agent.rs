//! longshore itself: the built binary as an operator would run it, with a directory and ports of its own.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::engine::{self, Engine};
use super::http::{self, Response};
use super::load::Shape;
use super::ports::free_port;
use super::wait::eventually;

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const LOG_TAIL: usize = 60;

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    binary: PathBuf,
    agent_lines: String,
    proxy_lines: String,
    apps: String,
    env: Vec<(String, String)>,
    data_on: Option<PathBuf>,
}

impl Setup {
    /// `config` holds everything but `[agent]` and `[proxy]`, which the test agent writes.
    pub fn new(config: &str) -> Self {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_longshore"));
        Self {
            binary,
            agent_lines: String::new(),
            proxy_lines: String::new(),
            apps: config.to_owned(),
            env: Vec::new(),
            data_on: None,
        }
    }

    /// A further line of `[agent]`, such as `reconcile = "0s"`.
    pub fn agent_line(mut self, line: &str) -> Self {
        self.agent_lines = format!("{}{line}\n", self.agent_lines);
        self
    }

    /// A variable of the agent's environment, such as a secret that the configuration refers to.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// The data directory is this one, on a file system of its own for instance.
    pub fn data_on(mut self, directory: &Path) -> Self {
        self.data_on = Some(directory.to_owned());
        self
    }

    /// Another executable, for instance an older one in a test of upgrades.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self, engine: &Engine) -> TestAgent {
        let mut agent = self.prepare(engine);
        agent.start().await;
        agent
    }

    /// Writes the configuration and starts nothing: for tests of a start that fails, and of commands without an agent.
    pub fn prepare(self, engine: &Engine) -> TestAgent {
        let root = tempfile::Builder::new().prefix("longshore-agent-").tempdir().expect("a temporary directory");
        fs::create_dir(root.path().join("home")).expect("a home directory");
        if let Some(directory) = &self.data_on {
            std::os::unix::fs::symlink(directory, root.path().join("data")).expect("a link to the data directory");
        }
        let agent = TestAgent {
            setup: self,
            root,
            listen: (Ipv4Addr::LOCALHOST, free_port()).into(),
            proxy: (Ipv4Addr::LOCALHOST, free_port()).into(),
            child: None,
            engine: engine.clone(),
            finished: false,
        };
        agent.write_config();
        agent
    }
}

/// An agent with all that belongs to it. [`TestAgent::finish`] checks what it leaves; dropping it cleans up.
pub struct TestAgent {
    setup: Setup,
    root: TempDir,
    /// Where webhooks and the API are.
    pub listen: SocketAddr,
    /// Where the proxy serves the apps.
    pub proxy: SocketAddr,
    child: Option<Child>,
    engine: Engine,
    finished: bool,
}

impl TestAgent {
    /// `deploy.toml`
    pub fn config_file(&self) -> PathBuf {
        self.root.path().join("deploy.toml")
    }

    /// `data_dir`
    pub fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A directory for files of one's own, gone with the agent.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// The random id in the agent's labels; empty before the first start.
    pub fn id(&self) -> String {
        fs::read_to_string(self.data_dir().join("agent-id")).unwrap_or_default().trim().to_owned()
    }

    /// The process id of the running agent.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Everything that agent and proxy printed, over all starts.
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Replaces the apps' part of the configuration; takes effect at the next start or reload.
    pub fn set_config(&mut self, config: &str) {
        config.clone_into(&mut self.setup.apps);
        self.write_config();
    }

    /// Further lines of `[proxy]`; they take effect at the next start or reload.
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub fn set_proxy_lines(&mut self, lines: &str) {
        lines.clone_into(&mut self.setup.proxy_lines);
        self.write_config();
    }

    /// Another executable from the next start on.
    #[allow(dead_code, reason = "the benchmarks run one")]
    pub fn set_binary(&mut self, path: impl Into<PathBuf>) {
        self.setup.binary = path.into();
    }

    /// The process id of the proxy that serves.
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub fn proxy_pid(&self) -> i32 {
        let lock = fs::read_to_string(self.data_dir().join("proxy.lock")).unwrap_or_default();
        lock.trim().parse().expect("proxy.lock holds the proxy's process id")
    }

    /// Sets a variable of the agent's environment from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.setup.env.retain(|(key, _)| key != name);
        self.setup.env.push((name.to_owned(), value.to_owned()));
    }

    /// Starts `serve` and waits until `/readyz` answers 200; panics with the log when it does not.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until `/readyz` answers 200; panics with the log when it does not.
    pub async fn ready(&mut self) {
        let ready = eventually("the agent becomes ready", READY_WITHIN, async || {
            if let Some(status) = self.ended() {
                return Ok(Err(status));
            }
            match http::get(self.listen, "localhost", "/readyz").await {
                Ok(response) if response.status == 200 => Ok(Ok(())),
                Ok(response) => Err(format!("{} {}\n{}", response.status, response.text(), self.log_tail())),
                Err(why) => Err(format!("{why}\n{}", self.log_tail())),
            }
        });
        if let Err(status) = ready.await {
            self.child = None;
            panic!("the agent ended before it was ready ({status}):\n{}", self.log_tail());
        }
    }

    /// Starts `serve` and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        let log = fs::File::options().create(true).append(true).open(self.log_file()).expect("the log can be written");
        let mut command = self.command(&["serve"]);
        command.stdout(log.try_clone().expect("a second handle of the log")).stderr(log).stdin(Stdio::null());
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{} cannot be run: {error}", self.setup.binary.display()));
        self.child = Some(child);
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("the agent is a child of this process")
    }

    /// Whether it runs; one that has ended can be started again.
    #[cfg(feature = "fail-points")]
    pub fn is_running(&mut self) -> bool {
        if self.ended().is_some() {
            self.child = None;
        }
        self.child.is_some()
    }

    /// Waits for the agent to end by itself.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the agent runs");
        let Ok(status) = tokio::time::timeout(limit, child.wait()).await else {
            panic!("the agent did not end within {limit:?}:\n{}", self.log_tail());
        };
        self.child = None;
        status.expect("the agent is a child of this process")
    }

    /// SIGTERM, then waits. The proxy goes on.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(STOP_WITHIN).await
    }

    /// SIGKILL: what a crash leaves behind stays. The proxy goes on.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(STOP_WITHIN).await;
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("the agent runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("the agent can be signalled");
    }

    /// Stops and starts.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Runs a command of the command line against this agent: `["status", "shop"]`.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(STOP_WITHIN * 2, command.output())
            .await
            .unwrap_or_else(|_| panic!("longshore {arguments:?} did not end"))
            .expect("the binary can be run")
    }

    /// A request to the API through the agent's socket, as the command line does it.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        let body = body.map(|body| Bytes::from(body.to_string()));
        let headers: &[_] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        let request = http::request(method, "localhost", path, headers, body.unwrap_or_default());
        http::send_unix(&self.data_dir().join("longshore.sock"), request)
            .await
            .unwrap_or_else(|why| panic!("{method} {path}: {why}\n{}", self.log_tail()))
    }

    /// GET of an API path that must answer 200 with JSON.
    pub async fn get(&self, path: &str) -> Value {
        self.api("GET", path, None).await.expect(200).json()
    }

    /// The same, when it may be that nobody answers.
    pub async fn try_get(&self, path: &str) -> Result<Value, String> {
        let request = http::request("GET", "localhost", path, &[], Bytes::new());
        let socket = self.data_dir().join("longshore.sock");
        let asking = http::send_unix(&socket, request);
        let answer = tokio::time::timeout(Duration::from_secs(2), asking).await.map_err(|err| err.to_string())??;
        if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{} {}", answer.status, answer.text())) }
    }

    /// The deployment once it has ended; panics with its log and the agent's when it does not within `limit`.
    pub async fn deployment_ended(&self, id: u64, limit: Duration) -> Value {
        let what = format!("deployment {id} ends");
        let ended = eventually(&what, limit, async || {
            let deployment = self.get(&format!("/api/v1/deployments/{id}")).await;
            match deployment["status"].as_str() {
                Some("succeeded" | "failed" | "rolled_back" | "superseded" | "cancelled") => Ok(deployment),
                _ => Err(format!("{deployment:#}\n{}", self.log_tail())),
            }
        });
        ended.await
    }

    /// GET from an app through the proxy.
    pub async fn visit(&self, host: &str, path: &str) -> Result<Response, String> {
        http::get(self.proxy, host, path).await
    }

    /// A load on an app through the proxy.
    pub fn load(&self, host: &str) -> Shape {
        Shape::new(self.proxy, host)
    }

    /// Stops agent and proxy; fails on a panic in the log, on an exit code other than 0, and on anything on the
    /// engine that the live releases do not need; then removes everything.
    pub async fn finish(mut self) {
        let status = match self.child {
            Some(_) => Some(self.stop().await),
            None => None,
        };
        let id = self.id();
        let leftovers = if id.is_empty() { Vec::new() } else { self.engine.leftovers(&id).await };
        let log = self.log();
        self.stop_processes();
        let problems = if id.is_empty() { Vec::new() } else { self.engine.remove_all(&id).await };
        self.finished = true;
        assert!(leftovers.is_empty(), "the agent left behind:\n{}\n\n{}", leftovers.join("\n"), tail(&log));
        assert!(!log.contains("panicked at"), "the agent panicked:\n{}", tail(&log));
        assert!(status.is_none_or(|status| status.success()), "the agent ended with {status:?}:\n{}", tail(&log));
        assert!(problems.is_empty(), "cleaning up failed:\n{}", problems.join("\n"));
    }

    /// A command of the command line, to be run as the test likes.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let (name, rest) = arguments.split_first().expect("a command");
        let mut command = Command::new(&self.setup.binary);
        command.arg(name).arg("--config").arg(self.config_file()).args(rest).current_dir(self.root.path()).env_clear();
        // Nothing of the machine's own configuration, but what reaching the engine takes.
        for name in ["PATH", "DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "RUST_LOG"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.env("HOME", self.root.path().join("home")).env("RUST_BACKTRACE", "1");
        command.envs(self.setup.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn write_config(&self) {
        let Setup { agent_lines, proxy_lines, apps, .. } = &self.setup;
        let (listen, proxy, data_dir) = (self.listen, self.proxy, self.data_dir());
        let text = format!(
            "[agent]\nlisten = \"{listen}\"\ndata_dir = {data_dir:?}\n{agent_lines}\n[proxy]\nhttp = \"{proxy}\"\n{proxy_lines}\n\n{apps}"
        );
        fs::write(self.config_file(), text).expect("deploy.toml can be written");
    }

    fn log_file(&self) -> PathBuf {
        self.root.path().join("agent.log")
    }

    fn log_tail(&self) -> String {
        tail(&self.log())
    }

    /// Ends the proxy that outlives the agent, for tests of what they share. The agent must have ended before.
    pub fn stop_proxy(&mut self) {
        assert!(self.child.is_none(), "the agent would start the proxy again");
        self.stop_processes();
    }

    /// Ends whatever still runs from this agent's directory: the agent and the proxy that outlives it. Blocks.
    fn stop_processes(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let mut rest = self.processes();
            for &pid in &rest {
                let _ = kill(pid, signal);
            }
            let end = std::time::Instant::now() + Duration::from_secs(10);
            while !rest.is_empty() && std::time::Instant::now() < end {
                if let Some(child) = self.child.as_mut() {
                    let _ = child.try_wait();
                }
                std::thread::sleep(Duration::from_millis(20));
                rest = self.processes();
            }
        }
    }

    /// The processes whose command line names this agent's directory, and the one in the proxy's lock file. A zombie
    /// has no command line, so what has ended does not count.
    fn processes(&self) -> Vec<Pid> {
        let root = self.root.path().as_os_str().as_encoded_bytes();
        let mentions_root = |pid: &Pid| {
            let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command_line.windows(root.len()).any(|window| window == root)
        };
        let runs_our_binary = |pid: &Pid| {
            let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            executable == self.setup.binary && pid.as_raw() != std::process::id().cast_signed()
        };
        let numbers = fs::read_dir("/proc").expect("/proc").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
        let mut found: Vec<_> = numbers.filter(mentions_root).collect();
        let lock = fs::read_to_string(self.data_dir().join("proxy.lock")).unwrap_or_default();
        let locked = lock.split_whitespace().next().and_then(|word| word.parse().ok()).map(Pid::from_raw);
        found.extend(locked.filter(|pid| !found.contains(pid) && runs_our_binary(pid)));
        found
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}", self.log_tail());
        }
        if let Some(child) = self.child.as_mut() {
            let _ = child.start_kill();
        }
        self.stop_processes();
        let id = self.id();
        if id.is_empty() {
            return;
        }
        // A runtime of its own, because this may run inside the test's, which must not be blocked on itself.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                if let Some(engine) = engine::or_skip("cleaning up").await {
                    for problem in engine.remove_all(&id).await {
                        eprintln!("cleaning up: {problem}");
                    }
                }
            });
        });
        let _ = cleaning.join();
    }
}

/// The same program with another content, as a rebuilt one: no two with different numbers are the same.
#[allow(dead_code, reason = "the benchmarks run one")]
pub fn rebuilt(directory: &Path, number: usize) -> PathBuf {
    let path = directory.join(format!("longshore-{number}"));
    fs::copy(env!("CARGO_BIN_EXE_longshore"), &path).expect("a copy of the binary");
    let mut file = fs::File::options().append(true).open(&path).expect("a copy of the binary");
    file.write_all(&vec![b'x'; number]).expect("room for a copy of the binary");
    path
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
}
