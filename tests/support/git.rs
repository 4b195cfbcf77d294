//! Repositories made by the system's git, and apps that point at them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore::config::{App, Build, BuilderKind, Credential, Order, RepoUrl, RolloutPolicy, Strategy};
use longshore::journal::DeployLog;
use longshore::model::CommitSha;

/// A repository with a working tree, on branch `main`.
pub struct Repo {
    /// Its working tree; the repository is in `.git`.
    pub path: PathBuf,
}

impl Repo {
    /// An empty one at `path`, which lets others have any commit by its id only by protocol version 2.
    pub fn init(path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let repo = Self { path: path.to_owned() };
        repo.git(&["init", "-q", "-b", "main"]);
        repo
    }

    /// Runs git in it; its output without the last line end.
    pub fn git(&self, arguments: &[&str]) -> String {
        git(&self.path, arguments)
    }

    /// Writes a file.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits all that is there.
    pub fn commit(&self, message: &str) -> CommitSha {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.head()
    }

    /// The checked-out commit.
    pub fn head(&self) -> CommitSha {
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }
}

/// Runs the system's git, apart from the user's own settings.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "Ada Lovelace")
        .env("GIT_AUTHOR_EMAIL", "ada@example.com")
        .env("GIT_COMMITTER_NAME", "Ada Lovelace")
        .env("GIT_COMMITTER_EMAIL", "ada@example.com")
        .env("GIT_ALLOW_PROTOCOL", "file")
        .stdin(Stdio::null())
        .output()
        .expect("git is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// An app whose source is at `repo`.
pub fn app(repo: RepoUrl) -> App {
    App {
        name: "shop".parse().unwrap(),
        repo,
        branch: "main".to_owned(),
        credential: Credential::None,
        submodules: false,
        webhook: None,
        canary_of: None,
        domains: Vec::new(),
        maintenance: None,
        release: None,
        services: BTreeMap::new(),
        rollout: RolloutPolicy { strategy: Strategy::Rolling, order: Order::StartFirst, watch: Duration::ZERO },
        build_timeout: Duration::from_secs(60),
        deadline: Duration::from_secs(120),
        keep_releases: 5,
    }
}

/// The default build.
pub fn build() -> Build {
    Build {
        dockerfile: "Dockerfile".to_owned(),
        context: ".".to_owned(),
        target: None,
        args: BTreeMap::new(),
        secrets: BTreeMap::new(),
        builder: BuilderKind::Auto,
    }
}

/// A log, and the lines it has taken.
pub fn log() -> (DeployLog, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    (DeployLog::new(move |line| kept.lock().unwrap().push(line.to_owned())), lines)
}
