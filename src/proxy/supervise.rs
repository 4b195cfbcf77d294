//! The agent's care for the proxy process: it adopts the one that runs, starts one where none does, has one that is out of
//! date replaced, and starts it again when it is gone.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::client::{ProxyClient, ProxyStatus};
use super::spawn::{Spawned, spawn_proxy};

/// How long a proxy may take to come up.
const START: Duration = Duration::from_secs(5);
/// One that runs answers within this time, or is busy or stopped.
const ANSWER: Duration = Duration::from_millis(300);
/// A service manager may take so long to start its proxy again.
const MANAGER: Duration = Duration::from_secs(5);
/// Between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// How a proxy is started.
#[derive(Debug)]
pub struct Supervisor {
    exe: PathBuf,
    config: PathBuf,
    log: PathBuf,
    listens: Vec<SocketAddr>,
    proxy: ProxyClient,
    /// Whether the one that runs was compared with this agent, or started by it.
    is_compared: bool,
}

/// What is found.
enum Found {
    Connected,
    /// Nobody listens on its socket.
    Absent,
    /// Somebody does, and says nothing.
    Silent,
}

impl Supervisor {
    /// `listens` is where the proxy is to listen, plain HTTP first. What is started is this process's own binary.
    pub fn new(proxy: ProxyClient, config: PathBuf, log: PathBuf, listens: Vec<SocketAddr>) -> Result<Self> {
        // Looked up now: once the file has been replaced by an upgrade, the kernel no longer knows its path.
        let exe = std::env::current_exe().context("cannot find the longshore binary")?;
        Ok(Self { exe, config, log, listens, proxy, is_compared: false })
    }

    /// At the agent's start: a proxy serves, and it is of this version and configuration.
    pub async fn begin(&mut self) -> Result<()> {
        match self.look(ANSWER).await {
            Found::Connected => self.compare().await,
            Found::Absent => self.start().await?,
            Found::Silent => {
                let pid = self.proxy.status().pid;
                tracing::error!(pid, "the proxy runs and does not answer; it may be stopped");
            }
        }
        Ok(())
    }

    /// Starts the proxy again when it is gone.
    pub async fn keep(mut self, shutdown: CancellationToken) {
        let _ = shutdown.run_until_cancelled(self.keep_for_ever()).await;
    }

    async fn keep_for_ever(&mut self) {
        let mut status = self.proxy.watch_status();
        loop {
            // It did not answer when this agent started.
            if !self.is_compared && self.proxy.status().connected {
                self.compare().await;
            }
            if status.wait_for(|status| !status.connected).await.is_err() {
                return;
            }
            let patience = if self.proxy.status().activated { MANAGER } else { ANSWER };
            let found = match self.look(ANSWER).await {
                Found::Absent if patience > ANSWER && self.proxy.connected(patience).await => Found::Connected,
                found => found,
            };
            match found {
                Found::Connected => {}
                Found::Absent => {
                    tracing::error!(pid = self.proxy.status().pid, "the proxy is gone");
                    if let Err(err) = self.start().await {
                        tracing::error!("{err:#}");
                        sleep(PAUSE).await;
                    }
                }
                Found::Silent => {
                    let pid = self.proxy.status().pid;
                    tracing::error!(pid, "the proxy runs and does not answer; waiting for it, it may be stopped");
                    let heard = |status: &ProxyStatus| status.connected || status.absent;
                    if status.wait_for(heard).await.is_err() {
                        return;
                    }
                    let now = self.proxy.status();
                    match now.connected {
                        true => tracing::info!(pid = now.pid, "the proxy answers again"),
                        false => tracing::info!(pid, "the proxy that did not answer has ended"),
                    }
                }
            }
        }
    }

    /// Waits no longer than it takes to know.
    async fn look(&self, patience: Duration) -> Found {
        let mut status = self.proxy.watch_status();
        let known = async {
            let known = status.wait_for(|status| status.connected || status.absent).await;
            known.is_ok_and(|status| status.connected)
        };
        match timeout(patience, known).await {
            Ok(true) => Found::Connected,
            Ok(false) => Found::Absent,
            Err(_) => Found::Silent,
        }
    }

    async fn start(&mut self) -> Result<()> {
        let spawned = spawn_proxy(&self.exe, &self.config, &self.log).context("cannot start the proxy")?;
        let pid = spawned.pid;
        // Another one may have been faster: one that serves is what is wanted.
        if !self.comes_up(spawned, |status| status.connected).await {
            bail!("the proxy did not come up:\n  {}", self.last_words());
        }
        self.is_compared = true;
        tracing::info!(pid, "started the proxy");
        Ok(())
    }

    async fn compare(&mut self) {
        self.is_compared = true;
        self.bring_up_to_date().await;
    }

    /// Has a proxy of another version, binary or address replaced by one of this agent's. One that cannot be replaced
    /// serves on.
    async fn bring_up_to_date(&self) {
        let status = self.proxy.status();
        let (pid, version) = (status.pid, status.version.clone());
        let same_binary = match is_same_program(Path::new(&format!("/proc/{pid}/exe")), &self.exe) {
            Ok(same) => same,
            Err(error) => {
                tracing::debug!(pid, %error, "cannot compare the proxy's binary");
                true
            }
        };
        let Some(why) = outdated(&status, &self.listens, same_binary) else {
            tracing::info!(pid, version, "adopted the running proxy");
            // The rest of [proxy] may have changed while there was no agent.
            self.proxy.reload();
            return;
        };
        if status.activated {
            tracing::warn!(pid, version, why, "the proxy is not replaced: restart it with its service manager");
            return;
        }
        tracing::info!(pid, version, why, "replacing the running proxy");
        match self.replace(pid).await {
            Ok(new) => tracing::info!(old = pid, new, "replaced the proxy; the old one finishes what it has under way"),
            Err(err) => tracing::error!(pid, version, why, "the running proxy serves on: {err:#}"),
        }
    }

    async fn replace(&self, old: u32) -> Result<u32> {
        let spawned = spawn_proxy(&self.exe, &self.config, &self.log).context("cannot start the proxy")?;
        let pid = spawned.pid;
        if !self.comes_up(spawned, |status| status.connected && status.pid != old).await {
            bail!("the new one did not take over:\n  {}", self.last_words());
        }
        Ok(pid)
    }

    /// Whether the proxy gets there before the new process ends and in time.
    async fn comes_up(&self, mut spawned: Spawned, there: impl Fn(&ProxyStatus) -> bool) -> bool {
        let mut status = self.proxy.watch_status();
        let reached = async { status.wait_for(&there).await.is_ok() };
        tokio::select! {
            reached = timeout(START, reached) => reached.unwrap_or(false),
            _ = &mut spawned.ended => self.proxy.connected(ANSWER).await && there(&self.proxy.status()),
        }
    }

    /// The end of the proxy's log.
    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n  ")
    }
}

/// Why a running proxy is to be replaced; `None`: it is as this agent would start it.
fn outdated(status: &ProxyStatus, listens: &[SocketAddr], same_binary: bool) -> Option<String> {
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        return Some(format!("it is of version {}, the agent of version {own}", status.version));
    }
    if !same_binary {
        return Some("it runs another binary of this version".to_owned());
    }
    let is_at = |(address, at): (&SocketAddr, &String)| address.port() == 0 || *at == address.to_string();
    if listens.len() != status.listeners.len() || !listens.iter().zip(&status.listeners).all(is_at) {
        let wanted: Vec<String> = listens.iter().map(SocketAddr::to_string).collect();
        let (wanted, now) = (wanted.join(" and "), status.listeners.join(" and "));
        return Some(format!("it listens on {now}, not on {wanted} ([proxy] http, https)"));
    }
    None
}

/// Whether two files have the same content. The first may be the running program of a process, whose file is gone.
fn is_same_program(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (first, second) = (one.metadata()?, other.metadata()?);
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return Ok(true);
    }
    if first.len() != second.len() {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut here)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut there[..read])?;
        if here[..read] != there[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_of_another_version_binary_or_address_is_outdated() {
        let http: &[SocketAddr] = &[([0, 0, 0, 0], 80).into()];
        let own = ProxyStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: vec!["0.0.0.0:80".to_owned()],
            ..ProxyStatus::default()
        };
        assert_eq!(outdated(&own, http, true), None);
        assert_eq!(outdated(&own, &[([127, 0, 0, 1], 0).into()], true), None, "any port is any port");
        let says = |status: &ProxyStatus, http: &[SocketAddr], same| outdated(status, http, same).unwrap();
        assert!(says(&own, http, false).contains("another binary"));
        assert!(
            says(&ProxyStatus { version: "0.0.1".to_owned(), ..own.clone() }, http, true).contains("version 0.0.1")
        );
        let why = says(&own, &[([0, 0, 0, 0], 8080).into()], true);
        assert_eq!(why, "it listens on 0.0.0.0:80, not on 0.0.0.0:8080 ([proxy] http, https)");
        let why = says(&own, &[http[0], ([0, 0, 0, 0], 443).into()], true);
        assert_eq!(why, "it listens on 0.0.0.0:80, not on 0.0.0.0:80 and 0.0.0.0:443 ([proxy] http, https)");
    }

    #[test]
    fn programs_are_the_same_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (one, copy, other, longer) = (file("1", "abc"), file("2", "abc"), file("3", "abd"), file("4", "abcd"));
        let same = |other: &Path| is_same_program(&one, other).unwrap();
        assert_eq!((same(&one), same(&copy), same(&other), same(&longer)), (true, true, false, false));
        assert!(is_same_program(&one, &dir.path().join("none")).is_err());
    }
}
