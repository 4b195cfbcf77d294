//! From a push's commit to its build context, with real git at the other end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside of test functions"
)]

#[path = "../support/git.rs"]
mod git;
#[path = "../support/git_server.rs"]
mod git_server;
#[path = "../support/sshd.rs"]
mod sshd;

mod context;
mod http;
mod local;
mod ssh;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore::config::{App, RepoUrl};
use longshore::deploy::source::{Mirrors, Source, SourceError, Timeouts, Want};
use longshore::journal::DeployLog;
use longshore::model::CommitSha;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Mirrors in a directory of their own, with a log that remembers.
struct Bench {
    dir: TempDir,
    mirrors: Mirrors,
    log: DeployLog,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new() -> Self {
        Self::with_timeouts(Timeouts::default())
    }

    /// For servers that never answer.
    fn impatient() -> Self {
        let idle = Duration::from_millis(400);
        Self::with_timeouts(Timeouts { connect: idle, idle, total: Duration::from_secs(2) })
    }

    fn with_timeouts(timeouts: Timeouts) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mirrors = Mirrors::new(dir.path().join("mirrors"), timeouts).unwrap();
        let (log, lines) = git::log();
        Self { dir, mirrors, log, lines }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn fetch(&self, app: &App, want: Want) -> Result<Source, SourceError> {
        self.mirrors.fetch(app, &want, &self.log, &CancellationToken::new()).await
    }

    async fn fetch_commit(&self, app: &App, commit: &CommitSha) -> Result<Source, SourceError> {
        self.fetch(app, Want::Commit(commit.clone())).await
    }

    /// The lines so far, which are then forgotten.
    fn take_log(&self) -> String {
        std::mem::take(&mut *self.lines.lock().unwrap()).join("\n")
    }
}

fn local(path: &Path) -> App {
    git::app(RepoUrl::Local(path.to_owned()))
}

fn over_http(server: &git_server::GitServer, path: &str) -> App {
    git::app(RepoUrl::Http { url: server.url(path), authority: server.authority() })
}

/// Every object of the commit and its history is in the mirror, by git's own judgement.
fn assert_whole(source: &Source) {
    git::git(&source.mirror, &["fsck", "--full", "--strict", "--no-dangling"]);
    git::git(&source.mirror, &["rev-list", "--objects", source.commit.as_str()]);
}
