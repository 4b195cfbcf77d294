//! The binary as a person or a script runs it, against an agent's API on its own socket and over TCP.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{DirEntryExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore::agent::Agent;
use longshore::api;
use longshore::config;
use longshore::model::{AppName, DeploymentId, Status};
use longshore::store::{AGENT_ID_KEY, Finish, Scope, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// An agent without drivers behind its API: what deployments do is written by the test.
struct Bench {
    dir: tempfile::TempDir,
    agent: Arc<Agent>,
    runtime: tokio::runtime::Runtime,
    url: String,
    shutdown: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = "[agent]\ndata_dir = \"data\"\n[apps.shop]\nrepo = \"https://git.example/shop.git\"\nport = 8000\n\
                    [apps.blog]\nrepo = \"https://git.example/blog.git\"\nport = 8000\n";
        std::fs::write(dir.path().join("deploy.toml"), text).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let config = config::parse(text, "deploy.toml", dir.path()).unwrap();
        let store = Store::open(&data.join("journal.db")).unwrap();
        let agent = Arc::new(Agent::detached("test".into(), store, std::path::PathBuf::new(), config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let url = runtime.block_on(async {
            let unix = UnixListener::bind(data.join("longshore.sock")).unwrap();
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", tcp.local_addr().unwrap());
            tokio::spawn(api::serve_unix(unix, api::routes(agent.clone()), shutdown.clone()));
            tokio::spawn(api::serve_tcp(tcp, api::routes(agent.clone()), shutdown.clone()));
            url
        });
        Self { dir, agent, runtime, url, shutdown }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = longshore(self.dir.path());
        command.args(line.split(' '));
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Waits for the newest deployment to be another than before.
    fn deployment_after(&self, before: i64) -> DeploymentId {
        let app: AppName = "shop".parse().unwrap();
        until("a new deployment", || {
            let newest = self.runtime.block_on(self.agent.store.deployments(&app, 1)).unwrap();
            newest.first().map(|deployment| deployment.id).filter(|id| id.0 > before)
        })
    }

    fn log(&self, id: DeploymentId, line: &str) {
        let app = "shop".parse().unwrap();
        self.runtime.block_on(self.agent.journal.log(&app, id)).unwrap().line(line);
    }

    fn advance(&self, id: DeploymentId, status: Status) {
        let app = "shop".parse().unwrap();
        self.runtime.block_on(self.agent.journal.advance(&app, id, status)).unwrap();
    }

    fn finish(&self, id: DeploymentId, status: Status, reason: Option<&str>) {
        let app = "shop".parse().unwrap();
        let finish = Finish { status, reason: reason.map(Into::into), superseded_by: None, hold: false };
        self.runtime.block_on(self.agent.journal.finish(&app, id, finish)).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn longshore(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.current_dir(dir).env_remove("LONGSHORE_URL").env_remove("LONGSHORE_TOKEN").env_remove("LONGSHORE_CONFIG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "no {what} within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads until `needle` has come.
fn read_until(child: &mut Child, needle: &str) -> String {
    let mut text = String::new();
    let out = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while !text.contains(needle) {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "the output ended after {text:?}");
        text.push(char::from(byte[0]));
    }
    text
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn deploy_tells_the_story_and_ends_with_the_deployment() {
    let bench = Bench::new();
    let mut child = bench.command("deploy shop").spawn().unwrap();
    let id = bench.deployment_after(0);
    let mut seen = read_until(&mut child, "queued\n");
    bench.advance(id, Status::Building);
    seen += &read_until(&mut child, "building\n");
    bench.log(id, "step 1/2 \u{1b}[31mred\u{1b}[0m");
    seen += &read_until(&mut child, "step 1/2");
    bench.finish(id, Status::Succeeded, None);
    let output = child.wait_with_output().unwrap();
    seen += &text(&output.stdout);
    assert!(output.status.success(), "{seen}");
    assert!(seen.starts_with("shop #1  deploy ("), "{seen}");
    assert!(seen.contains("\n  step 1/2 red\n"), "{seen}");
    let last = seen.lines().last().unwrap();
    assert!(last.starts_with("succeeded in ") && last.ends_with("s (0 instances, requests not counted)"), "{last}");
    assert!(!seen.contains('\u{1b}'), "escape sequences in a pipe: {seen:?}");
}

#[test]
fn a_deployment_that_fails_is_exit_code_1_with_the_reason() {
    let bench = Bench::new();
    let child = bench.command("deploy shop --json").spawn().unwrap();
    let id = bench.deployment_after(0);
    bench.finish(id, Status::Failed, Some("the build ended with 1"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 1);
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&record["status"], &record["reason"]), (&"failed".into(), &"the build ended with 1".into()));
    let log = bench.run("logs --deployment 1 -f");
    assert!(text(&log.stdout).contains("the build ended with 1"));
}

#[test]
fn ctrl_c_stops_watching_and_not_the_deployment() {
    let bench = Bench::new();
    let mut child = bench.command("deploy shop").spawn().unwrap();
    let id = bench.deployment_after(0);
    read_until(&mut child, "queued\n");
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130);
    let said = text(&output.stdout);
    assert!(said.contains("deployment #1 goes on; watch it with: longshore status shop --watch"), "{said}");
    let record = bench.runtime.block_on(bench.agent.store.deployment(id)).unwrap().unwrap();
    assert_eq!((record.status, record.cancel_asked), (Status::Queued, false));
}

#[test]
fn cancel_returns_when_it_is_so_and_says_the_same_however_often() {
    let bench = Bench::new();
    let ended = |line: &str| {
        let output = bench.run(line);
        (code(&output), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let deploy = |number: i64| {
        assert_eq!(code(&bench.run("deploy shop --no-wait")), 0);
        DeploymentId(number)
    };
    // One that waits ends at once.
    deploy(1);
    let who = bench.runtime.block_on(bench.agent.store.deployment(DeploymentId(1))).unwrap().unwrap().pusher.unwrap();
    let reason = format!("cancelled by {who} while it waited");
    assert_eq!(ended("cancel 1"), (0, format!("deployment #1 of shop is cancelled: {reason}\n")));
    for _ in 0..2 {
        assert_eq!(ended("cancel #1"), (0, format!("deployment #1 of shop was cancelled before: {reason}\n")));
    }
    let (code_of_json, json) = ended("cancel 1 --json");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code_of_json, &json["id"], &json["status"]), (0, &1.into(), &"cancelled".into()));

    // One that runs is waited for; others may ask meanwhile, and leave.
    let id = deploy(2);
    bench.advance(id, Status::RollingOut);
    let mut waiting = bench.command("cancel 2").spawn().unwrap();
    read_until(&mut waiting, "deployment #2 of shop is being cancelled\n");
    let mut leaving = bench.command("cancel 2").spawn().unwrap();
    read_until(&mut leaving, "is being cancelled\n");
    let json = bench.command("cancel 2 --json").spawn().unwrap();
    let (left, said) = ended("cancel 2 --no-wait");
    assert!(
        left == 0 && said.ends_with("is being cancelled; watch it with: longshore status shop --watch\n"),
        "{said}"
    );
    kill(Pid::from_raw(leaving.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let leaving = leaving.wait_with_output().unwrap();
    assert_eq!(code(&leaving), 130);
    assert!(text(&leaving.stdout).contains("deployment #2 is still being cancelled; watch it with"), "{leaving:?}");
    assert!(waiting.try_wait().unwrap().is_none(), "confirmed before it was so");
    bench.finish(id, Status::Cancelled, Some("cancelled by ada\nweb 1 was put back"));
    let waiting = waiting.wait_with_output().unwrap();
    assert_eq!(code(&waiting), 0, "{waiting:?}");
    let told = "deployment #2 of shop is cancelled: cancelled by ada\n    web 1 was put back\n";
    assert_eq!(text(&waiting.stdout), told);
    let json = json.wait_with_output().unwrap();
    let record: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((code(&json), &record["status"]), (0, &"cancelled".into()));

    // It may end before the cancellation takes effect.
    let id = deploy(3);
    bench.advance(id, Status::Watching);
    let mut late = bench.command("cancel 3").spawn().unwrap();
    read_until(&mut late, "is being cancelled\n");
    bench.finish(id, Status::Succeeded, None);
    let late = late.wait_with_output().unwrap();
    let not = "error: deployment #3 of shop is not cancelled, it had ended before that took effect: succeeded in ";
    assert!(code(&late) == 1 && text(&late.stderr).starts_with(not), "{late:?}");
    let (again, said) = ended("cancel 3");
    assert!(again == 1 && said.starts_with(not), "{said}");
    let (again, json) = ended("cancel 3 --json");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((again, &json["status"]), (1, &"succeeded".into()));
    assert_eq!(ended("cancel 99"), (1, "error: there is no deployment \"99\"\n".to_owned()));
}

#[test]
fn the_socket_and_a_token_lead_to_the_same_agent() {
    let bench = Bench::new();
    assert_eq!(code(&bench.run("deploy shop --no-wait")), 0);
    let (_, token) = bench.runtime.block_on(bench.agent.store.create_token("ci", Scope::Read, None)).unwrap();
    let over = |line: &str, token: &str| {
        let mut command = bench.command(line);
        command.env("LONGSHORE_URL", &bench.url).env("LONGSHORE_TOKEN", token).output().unwrap()
    };
    let remote = over("deployments shop --json", token.expose_secret());
    let local = bench.run("deployments shop --json");
    assert_eq!(code(&remote), 0, "{}", text(&remote.stderr));
    let id = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap()[0]["id"].clone();
    assert_eq!((id(&remote), id(&local)), (1.into(), 1.into()));
    let refused = over("deploy shop", token.expose_secret());
    assert_eq!(
        (code(&refused), text(&refused.stderr).as_str()),
        (1, "error: this needs deploy scope; the token has read\n")
    );
    let unknown = over("status", "lsh_wrong");
    assert_eq!((code(&unknown), text(&unknown.stderr).as_str()), (1, "error: this token is unknown or revoked\n"));
}

#[test]
fn what_goes_wrong_is_said_with_the_way_out() {
    let bench = Bench::new();
    let unknown = bench.run("deploy shpo");
    assert_eq!(code(&unknown), 1);
    assert_eq!(text(&unknown.stderr), "error: there is no app \"shpo\"; did you mean \"shop\"? apps: blog, shop\n");
    let rollback = bench.run("rollback shop --to v9");
    assert_eq!(text(&rollback.stderr), "error: shop has no release v9; it has no release to go back to\n");
    assert_eq!(code(&bench.run("rollback shop --to ;rm")), 2);

    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("deploy.toml"), "[agent]\ndata_dir = \"data\"\n").unwrap();
    let down = longshore(elsewhere.path()).arg("status").output().unwrap();
    assert_eq!(code(&down), 1);
    assert_eq!(
        text(&down.stderr),
        "error: cannot reach the agent at data/longshore.sock: there is no such socket\n\
         start it with: longshore serve --config deploy.toml\n"
    );
    let missing = longshore(elsewhere.path()).args(["status", "--config", "none.toml"]).output().unwrap();
    assert_eq!(code(&missing), 2, "{}", text(&missing.stderr));
}

#[test]
fn a_backup_is_told_of_by_the_name_that_it_was_given() {
    let bench = Bench::new();
    let said = |line: &str| {
        let output = bench.run(line);
        (code(&output), text(&output.stderr))
    };
    let no_directory = "error: cannot write nowhere/copy.db: No such file or directory (os error 2)\n";
    assert_eq!(said("backup nowhere/copy.db"), (1, no_directory.to_owned()));
    // Whatever answers there is no agent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let other = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _ = client.read(&mut head).unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").unwrap();
    });
    let mut command = bench.command("backup copy.db");
    let output = command.env("LONGSHORE_URL", url).env("LONGSHORE_TOKEN", "lsh_00").output().unwrap();
    other.join().unwrap();
    let why = "the copy of the journal is no journal of longshore's: it is no SQLite file";
    assert_eq!((code(&output), text(&output.stderr)), (1, format!("error: copy.db is not written: {why}\n")));
    assert!(!bench.dir.path().join("copy.db").exists());

    // Without an agent it is made from the files.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("deploy.toml"), "[agent]\ndata_dir = \"data\"\n").unwrap();
    let data = elsewhere.path().join("data");
    std::fs::create_dir(&data).unwrap();
    drop(Store::open(&data.join("journal.db")).unwrap());
    until("the journal is closed", || (!data.join("journal.db-wal").exists()).then_some(()));
    let alone = longshore(elsewhere.path()).args(["backup", "nowhere/copy.db"]).output().unwrap();
    assert_eq!((code(&alone), text(&alone.stderr).as_str()), (1, no_directory));
}

/// A directory with a configuration and the closed journal of an agent; and that agent's id.
fn agents_directory() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("deploy.toml"), "[agent]\ndata_dir = \"data\"\n").unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let store = Store::open(&data.join("journal.db")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let id = runtime.block_on(store.kept_random(AGENT_ID_KEY, 6)).unwrap();
    drop(store);
    until("the journal is closed", || (!data.join("journal.db-wal").exists()).then_some(()));
    std::fs::write(data.join("agent-id"), &id).unwrap();
    (dir, id)
}

#[test]
fn the_backup_of_another_agent_is_restored_on_purpose_alone() {
    let ((here, own), (there, other)) = (agents_directory(), agents_directory());
    let run = |dir: &tempfile::TempDir, arguments: &[&str]| {
        let output = longshore(dir.path()).args(arguments).output().unwrap();
        (code(&output), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let file = here.path().join("other.db");
    assert_eq!(run(&there, &["backup", file.to_str().unwrap()]).0, 0);
    let (ended, said) = run(&here, &["restore", "other.db"]);
    assert_eq!(ended, 1, "{said}");
    for part in ["nothing is restored", &own, &other, "--another-agent"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let (ended, said) = run(&here, &["restore", "--another-agent", "other.db"]);
    assert_eq!(ended, 0, "{said}");
    assert_eq!(std::fs::read_to_string(here.path().join("data/agent-id")).unwrap(), other);
}

#[test]
fn a_backup_is_restored_on_a_machine_that_has_nothing_yet() {
    let (there, _) = agents_directory();
    let new = tempfile::tempdir().unwrap();
    std::fs::write(new.path().join("deploy.toml"), "[agent]\ndata_dir = \"var/data\"\n").unwrap();
    let file = new.path().join("backup.db");
    assert_eq!(code(&longshore(there.path()).arg("backup").arg(&file).output().unwrap()), 0);
    let restored = longshore(new.path()).args(["restore", "backup.db"]).output().unwrap();
    assert_eq!(code(&restored), 0, "{}", text(&restored.stderr));
    let data = new.path().join("var/data");
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(data.join("journal.db").exists());
}

#[test]
fn a_backup_is_not_written_among_the_files_of_an_agent() {
    let bench = Bench::new();
    let data = bench.dir.path().join("data");
    std::fs::write(data.join("agent-id"), "0123456789ab").unwrap();
    std::fs::write(data.join("agent.lock"), "").unwrap();
    std::fs::create_dir(data.join("mirrors")).unwrap();
    std::os::unix::fs::symlink(&data, bench.dir.path().join("link")).unwrap();
    let files = || {
        let mut files: Vec<_> =
            std::fs::read_dir(&data).unwrap().flatten().map(|file| (file.file_name(), file.ino())).collect();
        files.sort();
        files
    };
    let before = files();
    let refused = |mut command: Command, file: &str| {
        let output = command.args(["backup", "--force", file]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(code(&output), 2, "{file}: {said}");
        let why = format!("error: {file} is not written: it would be in the data_dir of an agent ({})", data.display());
        assert!(said.starts_with(&why) && said.contains("name a file in another directory"), "{said}");
        assert_eq!(files(), before, "{file}");
    };
    let targets = ["data/journal.db", "data/journal.db-wal", "data/agent-id", "link/new.db", "data/mirrors/../new.db"];
    for file in targets.into_iter().chain(["data/mirrors/new.db"]) {
        refused(longshore(bench.dir.path()), file);
    }
    // Another agent's directory is known by what is in it.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("deploy.toml"), "[agent]\ndata_dir = \"other\"\n").unwrap();
    refused(longshore(elsewhere.path()), data.join("journal.db").to_str().unwrap());
    assert_eq!(code(&bench.run("backup copy.db")), 0);

    // The same when no agent answers.
    std::fs::remove_file(data.join("longshore.sock")).unwrap();
    let before = files();
    let output = bench.run("backup --force data/journal.db");
    assert_eq!((code(&output), files()), (2, before), "{}", text(&output.stderr));
}

#[test]
fn tokens_are_made_alone_on_a_line_and_revoked() {
    let bench = Bench::new();
    let made = bench.run("token create ci --scope read --expires-in-days 30");
    let token = text(&made.stdout).trim_end().to_owned();
    assert!(token.starts_with("lsh_") && !token.contains('\n'), "{token}");
    let list = text(&bench.run("token list").stdout);
    assert!(list.contains("ci") && list.contains("in 30 days") || list.contains("in 29 days"), "{list}");
    assert!(!list.contains(&token));
    assert_eq!(code(&bench.run("token revoke 1")), 0);
    assert_eq!(code(&bench.run("token revoke 1")), 1);
}

#[test]
fn watching_survives_a_lost_connection() {
    let bench = Bench::new();
    let mut child = bench.command("deploy shop").spawn().unwrap();
    let id = bench.deployment_after(0);
    read_until(&mut child, "queued\n");
    // Another agent on the same journal would do the same: all streams end, new ones are accepted.
    bench.shutdown.cancel();
    let socket = bench.dir.path().join("data/longshore.sock");
    std::fs::remove_file(&socket).unwrap();
    bench.log(id, "written meanwhile");
    let (agent, again) = (bench.agent.clone(), CancellationToken::new());
    bench.runtime.block_on(async {
        let unix = UnixListener::bind(&socket).unwrap();
        tokio::spawn(api::serve_unix(unix, api::routes(agent), again.clone()));
    });
    read_until(&mut child, "written meanwhile\n");
    bench.finish(id, Status::Cancelled, Some("cancelled by ada"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(text(&output.stdout).contains("cancelled by ada"), "{}", text(&output.stdout));
}

#[test]
fn a_watched_status_shows_each_change_until_ctrl_c() {
    let bench = Bench::new();
    let mut child = bench.command("status shop --watch").spawn().unwrap();
    read_until(&mut child, "nothing yet");
    assert_eq!(code(&bench.run("deploy shop --no-wait")), 0);
    bench.advance(DeploymentId(1), Status::Preparing);
    read_until(&mut child, "preparing");
    bench.finish(DeploymentId(1), Status::Failed, Some("no Dockerfile"));
    read_until(&mut child, "no Dockerfile");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(code(&child.wait_with_output().unwrap()), 0);
}

#[test]
fn a_data_directory_of_somebody_else_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let srv = dir.path().join("srv");
    std::fs::create_dir(&srv).unwrap();
    std::fs::write(srv.join("mail"), "").unwrap();
    std::fs::set_permissions(&srv, Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("deploy.toml"), "[agent]\ndata_dir = \"srv\"\n[proxy]\nhttp = \"127.0.0.1:0\"\n")
        .unwrap();
    for command in ["serve", "proxy"] {
        let refused = longshore(dir.path()).arg(command).output().unwrap();
        assert_eq!(code(&refused), 1);
        let said = text(&refused.stderr);
        assert!(said.contains("srv ([agent] data_dir) is not longshore's: it holds \"mail\""), "{said}");
        assert_eq!(std::fs::metadata(&srv).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(&srv).unwrap().count(), 1);
    }
}

#[test]
fn the_proxys_log_is_set_aside_when_it_is_full_and_takes_every_word() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("deploy.toml"), "[agent]\ndata_dir = \"data\"\n[proxy]\nhttp = \"127.0.0.1:0\"\n")
        .unwrap();
    let (log, aside) = (dir.path().join("proxy.log"), dir.path().join("proxy.log.1"));
    std::fs::File::create(&log).unwrap().set_len(10 << 20).unwrap();
    let mut proxy = longshore(dir.path()).args(["proxy", "--log", "proxy.log"]).spawn().unwrap();
    let started = Instant::now();
    let fresh = || aside.exists() && std::fs::read_to_string(&log).is_ok_and(|text| text.contains("proxy serves"));
    while !fresh() {
        assert!(started.elapsed() < LIMIT && proxy.try_wait().unwrap().is_none(), "the log was not set aside");
        std::thread::yield_now();
    }
    assert_eq!(std::fs::metadata(&aside).unwrap().len(), 10 << 20);
    // A panic or an abort is written to standard error.
    let open = |fd: u32| std::fs::read_link(format!("/proc/{}/fd/{fd}", proxy.id())).unwrap();
    let here = log.canonicalize().unwrap();
    assert_eq!((open(1), open(2)), (here.clone(), here));
    kill(Pid::from_raw(proxy.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let ended = proxy.wait_with_output().unwrap();
    assert_eq!((code(&ended), text(&ended.stderr).as_str()), (0, ""));
}
