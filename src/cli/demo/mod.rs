//! `longshore demo`: the main job on a small site, from nothing, told as it happens.
//!
//! It makes a repository, starts an agent and its proxy on free ports, pushes a version, a second one, and a third
//! that never gets healthy, all with real `git push`es through the real hook and under a constant load of requests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

mod image;
mod load;
mod remove;
mod site;

use load::Load;
use site::Site;

use super::daemon;
use crate::config;
use crate::runtime::docker::Docker;
use remove::remove;

pub(super) const EXAMPLES: &str = "Examples:
  longshore demo
  longshore demo --once
  longshore demo --remove";

/// What the command takes.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where the demo lives. It must not exist.
    #[arg(long, value_name = "DIR", default_value = "/tmp/longshore-demo")]
    dir: PathBuf,
    /// Remove everything at the end instead of leaving it to be looked at.
    #[arg(long)]
    once: bool,
    /// Remove a demo that was left.
    #[arg(long, conflicts_with = "once")]
    remove: bool,
}

/// Runs the demo, or removes one.
pub(super) fn run(options: Options) -> ExitCode {
    daemon::finish(daemon::runtime().and_then(|runtime| {
        runtime.block_on(async {
            if options.remove {
                remove(&options.dir).await?;
                println!("Everything the demo made is removed.");
                return Ok(());
            }
            show(&options.dir, options.once).await
        })
    }))
}

/// Serves the demo's site.
pub(super) fn run_site() -> ExitCode {
    daemon::finish(daemon::runtime().and_then(|runtime| runtime.block_on(site::serve(Path::new("/site.conf")))))
}

/// The argument by which the binary serves the demo's site in its image.
pub(super) const SITE: &str = "demo-site";
/// The app's name and host.
const APP: &str = "demo";
const HOST: &str = "demo.localhost";
/// The file by which a demo's directory is known.
const MARK: &str = ".longshore-demo";
/// How long the agent may take to come up.
const START: Duration = Duration::from_secs(30);

/// The demo's directory and what is in it.
struct Demo {
    dir: PathBuf,
    exe: PathBuf,
    agent: SocketAddr,
    proxy: SocketAddr,
    began: Instant,
}

/// Tells the demo in `dir`; with `once` everything is removed at the end.
async fn show(dir: &Path, once: bool) -> Result<()> {
    ensure!(
        !dir.exists(),
        "{} exists: a demo is there already. Remove it with: longshore demo --remove --dir {}",
        dir.display(),
        dir.display()
    );
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    // First of all: without it nothing is ever removed.
    fs::write(dir.join(MARK), "Made by `longshore demo`, and removed by `longshore demo --remove`.\n")?;
    let demo = Demo {
        exe: std::env::current_exe().context("cannot find the longshore binary")?,
        agent: free_address()?,
        proxy: free_address()?,
        began: Instant::now(),
        dir: dir.clone(),
    };
    let told = demo.tell(once).await;
    if once || told.is_err() {
        remove(&dir).await?;
        println!("\nEverything the demo made is removed.");
    }
    told
}

impl Demo {
    async fn tell(&self, once: bool) -> Result<()> {
        self.say("A site of one file and a Dockerfile, in a git repository with longshore's post-receive hook");
        self.write_configuration()?;
        self.make_repository()?;
        self.start_agent().await?;
        let hook_args = ["hook", "install", "--app", APP].map(str::to_owned);
        self.longshore(&hook_args, &[self.dir.join("site.git").as_path()])?;

        self.say("git push of v1: built, three instances started one at a time, routed when healthy");
        self.push(&version("v1", "seagreen", false))?;
        let load = Load::start(self.proxy, HOST);

        self.say("git push of v2, while 8 clients send requests all the time");
        self.push(&version("v2", "royalblue", false))?;
        self.expect("v2").await?;

        self.say("git push of v3, which never becomes healthy");
        self.push(&version("v3", "crimson", true))?;
        self.expect("v2").await?;

        let (answered, failed) = load.stop().await;
        self.say("Done");
        println!("\n  {answered} requests answered, {failed} failed, through two rollouts and one rollback.\n");
        if !once {
            self.explain();
        }
        ensure!(failed == 0, "{failed} requests failed");
        Ok(())
    }

    fn say(&self, line: &str) {
        println!("\n[{:5.1} s] {line}", self.began.elapsed().as_secs_f64());
    }

    fn config_path(&self) -> PathBuf {
        self.dir.join("deploy.toml")
    }

    fn write_configuration(&self) -> Result<()> {
        let mut random = [0u8; 24];
        getrandom::fill(&mut random).context("no randomness")?;
        let secret = self.dir.join("webhook-secret");
        write_private(&secret, &hex::encode(random))?;
        let dir = self.dir.display();
        let text = format!(
            "[agent]\nlisten = \"{agent}\"\ndata_dir = \"{dir}/data\"\n\n[proxy]\nhttp = \"{proxy}\"\n\n\
             [apps.{APP}]\nrepo = \"{dir}/site.git\"\nallow_local = true\nbranch = \"main\"\n\
             webhook = {{ provider = \"github\", secret = {{ file = \"{dir}/webhook-secret\" }} }}\n\
             domains = [\"{HOST}\"]\nport = 8000\ninstances = 3\nmemory = \"64MiB\"\n\
             health = {{ path = \"/healthz\", start_deadline = \"5s\" }}\n\n\
             [apps.{APP}.rollout]\nwatch = \"2s\"\n",
            agent = self.agent,
            proxy = self.proxy,
        );
        fs::write(self.config_path(), text).context("cannot write deploy.toml")
    }

    fn make_repository(&self) -> Result<()> {
        let (bare, work) = (self.dir.join("site.git"), self.dir.join("site"));
        run_quietly(git(&self.dir).args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&bare))?;
        run_quietly(git(&self.dir).args(["init", "--quiet", "--initial-branch=main"]).arg(&work))?;
        run_quietly(git(&work).args(["remote", "add", "origin"]).arg(&bare))?;
        image::write_files(&self.exe, &work)
    }

    async fn start_agent(&self) -> Result<()> {
        // The agent would wait for an engine to come; who runs the demo wants to hear at once that there is none.
        let config = config::load(&self.config_path()).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        Docker::connect(&config.runtime.docker_host, "demo").await?;
        let log = fs::File::create(self.dir.join("agent.log"))?;
        let mut command = Command::new(&self.exe);
        command.args(["serve", "--config"]).arg(self.config_path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Of its own process group: Ctrl-C here does not reach it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().context("cannot start the agent")?;
        fs::write(self.dir.join("agent.pid"), child.id().to_string())?;
        let deadline = Instant::now() + START;
        while tokio::net::TcpStream::connect(self.agent).await.is_err() {
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
                bail!("the agent ended at once ({status}):\n{log}");
            }
            ensure!(Instant::now() < deadline, "the agent did not come up within {START:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("          agent {} (pid {}), proxy {}", self.agent, child.id(), self.proxy);
        Ok(())
    }

    /// Commits a version and pushes it; the hook's answer is shown as it comes.
    fn push(&self, site: &Site) -> Result<()> {
        let work = self.dir.join("site");
        fs::write(work.join("site.conf"), site.to_conf())?;
        run_quietly(git(&work).args(["add", "--all"]))?;
        run_quietly(git(&work).args(["commit", "--quiet", "-m"]).arg(format!("Release {}", site.version)))?;
        let mut push = git(&work);
        push.args(["push", "--quiet", "origin", "main"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = push.spawn().context("cannot run git push")?;
        let answer = child.stderr.take().context("git's output cannot be read")?;
        for line in BufReader::new(answer).lines() {
            println!("          {}", line?.trim_end());
        }
        let status = child.wait()?;
        ensure!(status.success(), "git push failed: {status}");
        Ok(())
    }

    /// Fails unless the site answers with this version.
    async fn expect(&self, version: &str) -> Result<()> {
        let page = reqwest::Client::builder()
            .resolve(HOST, self.proxy)
            .build()?
            .get(format!("http://{HOST}:{}/", self.proxy.port()))
            .send()
            .await?
            .text()
            .await?;
        ensure!(page.contains(&format!("This is {version}")), "the site does not serve {version}: {page}");
        println!("          the site serves {version}");
        Ok(())
    }

    fn longshore(&self, args: &[String], paths: &[&Path]) -> Result<()> {
        let mut command = Command::new(&self.exe);
        command.args(args).args(paths).arg("--config").arg(self.config_path());
        run_quietly(&mut command)
    }

    fn explain(&self) {
        let exe = self.exe.display();
        let dir = self.dir.display();
        println!("  Open it      http://{HOST}:{}/", self.proxy.port());
        println!("  Look around  {exe} status {APP} --config {dir}/deploy.toml");
        println!("               {exe} releases {APP} --config {dir}/deploy.toml");
        println!("               {exe} rollback {APP} --config {dir}/deploy.toml");
        println!("  Change it    cd {dir}/site, edit site.conf, commit, git push origin main");
        println!("  Remove it    {exe} demo --remove --dir {dir}");
    }
}

fn version(version: &str, colour: &str, broken: bool) -> Site {
    Site { version: version.to_owned(), colour: colour.to_owned(), broken }
}

/// git with an identity of its own and without the person's settings.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    for (name, value) in [("NAME", "Demo"), ("EMAIL", "demo@localhost")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    command
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", said.trim());
    Ok(())
}

/// An address that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
