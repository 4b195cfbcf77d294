//! A repository with a bare origin, driven by the real `git`, blind to the configuration of the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::site::{self, Behaviour};

/// The id of a ref that does not exist, as hooks and webhooks write it.
pub const ZERO: &str = "0000000000000000000000000000000000000000";

/// A working tree on branch `main` and the bare repository it pushes to; both vanish with the value.
pub struct Repo {
    root: TempDir,
}

/// What a push did.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// What the ref pointed to on the origin before; [`ZERO`] when it did not exist.
    pub before: String,
    /// What it points to now; [`ZERO`] when it was deleted.
    pub after: String,
    /// What git printed for the pusher, with the `remote: …` lines of hooks.
    pub output: String,
}

impl Repo {
    /// Empty: no commit, no branch on the origin.
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("longshore-repo-").tempdir().expect("a temporary directory");
        let repo = Self { root };
        for directory in ["work", "home"] {
            fs::create_dir(repo.root.path().join(directory)).expect("a directory");
        }
        repo.git_in(repo.root.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "origin.git"]);
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo.git(&["remote", "add", "origin", &repo.url()]);
        repo
    }

    /// With one pushed version of the site; returns its commit too.
    pub fn with_site(behaviour: &Behaviour) -> (Self, String) {
        let repo = Self::new();
        let sha = repo.push_site(behaviour);
        (repo, sha)
    }

    /// The bare repository's path: what `repo = …` is set to.
    pub fn url(&self) -> String {
        self.origin().to_str().expect("a UTF-8 path").to_owned()
    }

    /// The bare repository.
    pub fn origin(&self) -> PathBuf {
        self.root.path().join("origin.git")
    }

    /// The working tree.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    /// Writes a file of the working tree, directories included.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }

    /// Writes the site, its Dockerfile and how it behaves.
    pub fn write_site(&self, behaviour: &Behaviour) {
        fs::copy(site::binary(), self.work().join("site")).expect("a copy of the site");
        self.write("Dockerfile", site::DOCKERFILE);
        self.write("behaviour", behaviour.to_file());
    }

    /// Commits everything in the working tree (also when nothing changed) and returns the commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]);
        self.head()
    }

    /// The current commit.
    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// What a full ref points to on the origin, or [`ZERO`].
    pub fn remote_tip(&self, git_ref: &str) -> String {
        let listed = self.git(&["ls-remote", "origin", git_ref]);
        listed.split_whitespace().next().unwrap_or(ZERO).to_owned()
    }

    /// Pushes the current commit to a branch of the origin.
    pub fn push(&self, branch: &str) -> Pushed {
        self.push_refspec(&format!("HEAD:refs/heads/{branch}"), &format!("refs/heads/{branch}"), &[])
    }

    /// The same where the branch is not an ancestor.
    pub fn force_push(&self, branch: &str) -> Pushed {
        self.push_refspec(&format!("HEAD:refs/heads/{branch}"), &format!("refs/heads/{branch}"), &["--force"])
    }

    /// Deletes a branch on the origin.
    pub fn delete_branch(&self, branch: &str) -> Pushed {
        self.push_refspec(&format!(":refs/heads/{branch}"), &format!("refs/heads/{branch}"), &[])
    }

    /// Puts a lightweight tag on the current commit and pushes it.
    pub fn push_tag(&self, tag: &str) -> Pushed {
        self.git(&["tag", tag]);
        self.push_refspec(&format!("refs/tags/{tag}"), &format!("refs/tags/{tag}"), &[])
    }

    /// The same with a tag object: [`Pushed::after`] is the tag's id, not the commit's.
    pub fn push_annotated_tag(&self, tag: &str) -> Pushed {
        self.git(&["tag", "--annotate", "--message", tag, tag]);
        self.push_refspec(&format!("refs/tags/{tag}"), &format!("refs/tags/{tag}"), &[])
    }

    /// Writes, commits and pushes a version of the site to `main`; returns its commit.
    pub fn push_site(&self, behaviour: &Behaviour) -> String {
        self.write_site(behaviour);
        self.commit("Change how the site behaves");
        self.push("main").after
    }

    /// Moves the working tree back to an earlier commit, as before a forced push.
    pub fn reset(&self, commit: &str) {
        self.git(&["reset", "--quiet", "--hard", commit]);
    }

    /// Makes a script the origin's hook of this name.
    pub fn install_hook(&self, name: &str, script: impl AsRef<[u8]>) {
        let path = self.origin().join("hooks").join(name);
        fs::create_dir_all(path.parent().expect("hooks")).expect("the hooks directory");
        fs::write(&path, script).expect("a hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable hook");
    }

    /// Sets a configuration value of the origin.
    pub fn set_origin_config(&self, key: &str, value: &str) {
        self.git_in(&self.origin(), &["config", key, value]);
    }

    fn push_refspec(&self, refspec: &str, git_ref: &str, options: &[&str]) -> Pushed {
        let before = self.remote_tip(git_ref);
        let arguments = [&["push"], options, &["origin", refspec]].concat();
        let output = self.run(&self.work(), &arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "git {arguments:?} failed:\n{text}");
        Pushed { before, after: self.remote_tip(git_ref), output: text }
    }

    /// Runs git in the working tree; panics when it fails; returns what it printed, trimmed.
    pub fn git(&self, arguments: &[&str]) -> String {
        self.git_in(&self.work(), arguments)
    }

    fn git_in(&self, directory: &Path, arguments: &[&str]) -> String {
        let output = self.run(directory, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {arguments:?} failed:\n{stderr}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn run(&self, directory: &Path, arguments: &[&str]) -> Output {
        self.command(directory, arguments).output().expect("git can be run")
    }

    /// A git command, to be run as the test likes.
    pub fn command(&self, directory: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path().join("home"))
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "Ada Example")
            .env("GIT_AUTHOR_EMAIL", "ada@example.com")
            .env("GIT_COMMITTER_NAME", "Ada Example")
            .env("GIT_COMMITTER_EMAIL", "ada@example.com");
        command
    }
}
