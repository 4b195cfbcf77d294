//! The source: a kept bare mirror per repository, and exactly the commit that was pushed.
//!
//! libgit2 keeps the objects; the conversation with a git server is our own (`session` over `http` or `ssh`),
//! because a transport of our own cannot be registered with libgit2 without `unsafe`, and its https brings OpenSSL.

mod http;
mod limits;
mod local;
mod mirror;
mod pack;
mod pkt;
mod remote;
mod session;
mod ssh;
mod submodules;
mod tidy;

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use git2::Oid;
use tokio_util::sync::CancellationToken;

pub use self::limits::Timeouts;
use self::limits::{Limits, Trouble, blocking};
use self::local::LocalOrigin;
pub(crate) use self::mirror::mark_damaged;
use self::mirror::{Mirror, Survey};
use self::remote::{Origin, Remote};
use self::session::{Session, Wire};
use crate::config::{App, RepoUrl};
use crate::journal::DeployLog;
use crate::model::CommitSha;
use crate::queue::Ancestry;

/// The mirrors of all apps, under `data_dir/mirrors`. Cheap to clone; clones share locks and connections.
#[derive(Debug, Clone)]
pub struct Mirrors {
    root: PathBuf,
    timeouts: Timeouts,
    started: SystemTime,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// One fetch at a time per mirror.
    turns: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
    /// Made when the first app needs it.
    client: Mutex<Option<reqwest::Client>>,
}

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Exactly this commit (of the app's branch, or any that the server gives out).
    Commit(CommitSha),
    /// The tip of a branch, by its short name.
    Branch(String),
    /// A tag, peeled to its commit.
    Tag(String),
}

/// A commit that is in the mirror: an object id to read from, no directory.
#[derive(Debug, Clone)]
pub struct Source {
    /// The commit.
    pub commit: CommitSha,
    /// Its author's name.
    pub author: String,
    /// First line of its message.
    pub subject: String,
    /// The mirror that holds it.
    pub mirror: PathBuf,
    /// Submodules by path, each in a mirror of its own; filled only when the app asks for them.
    pub submodules: Vec<(String, PathBuf, CommitSha)>,
}

/// Why the source could not be had. Each text names host and cause, never a credential.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The deployment was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// No such branch (yet).
    #[error("{0}")]
    NoSuchRef(String),
    /// The commit is not on the server.
    #[error("{0}")]
    NoSuchCommit(String),
    /// Anything else, in one line a person can act on.
    #[error("{0}")]
    Failed(String),
}

/// What a fetch put, or found, in a mirror.
struct Fetched {
    mirror: PathBuf,
    commit: Oid,
    survey: Survey,
}

impl Mirrors {
    /// Mirrors below `root`, which is created with mode 0700 when missing.
    pub fn new(root: PathBuf, timeouts: Timeouts) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        // Every object's digest is computed when its pack is indexed. libgit2 would do it again at every read, which
        // git does not either and which makes a context slower than git's: what a disk spoils later fails to inflate.
        git2::opts::strict_hash_verification(false);
        Ok(Self { root, timeouts, started: SystemTime::now(), shared: Arc::default() })
    }

    /// Brings `want` into the app's mirror and returns it. Progress lines go to `log`.
    pub async fn fetch(
        &self,
        app: &App,
        want: &Want,
        log: &DeployLog,
        cancel: &CancellationToken,
    ) -> Result<Source, SourceError> {
        let mut timeouts = self.timeouts;
        timeouts.total = timeouts.total.min(app.deadline);
        let limits = Limits::start(timeouts, cancel);
        let origin = Origin::of(app)?;
        let fetched = self.fetch_origin(&origin, want, log, &limits).await?;
        if fetched.survey.uses_lfs {
            log.line("this repository keeps files in git LFS: the build gets their pointers, not their content");
        }
        let mut submodules = Vec::new();
        if app.submodules {
            self.fetch_submodules(&origin, &fetched, "", 1, log, &limits, &mut submodules).await?;
        } else if let Some(line) = empty_submodules(&fetched.survey) {
            log.line(line);
        }
        let (mirror, commit) = (fetched.mirror.clone(), fetched.commit);
        let about = blocking(move || Mirror::open(&mirror)?.describe(commit)).await?;
        Ok(Source {
            commit: sha(commit)?,
            author: about.author,
            subject: about.subject,
            mirror: fetched.mirror,
            submodules,
        })
    }

    /// The tip of the app's branch on the server, without fetching; `None` when the branch does not exist.
    pub async fn tip(&self, app: &App) -> Result<Option<CommitSha>, SourceError> {
        let limits = Limits::start(self.timeouts, &CancellationToken::new());
        let origin = Origin::of(app)?;
        let mut remote = self.connect(&origin, &limits).await?;
        let tip = remote.resolve(&origin.branch).await?;
        tip.map(sha).transpose()
    }

    /// How `first` relates to `second` in the app's mirror.
    pub async fn ancestry(&self, app: &App, first: &CommitSha, second: &CommitSha) -> Ancestry {
        let (first, second) = (first.clone(), second.clone());
        self.judge(app, move |ancestry| ancestry(&first, &second)).await.unwrap_or(Ancestry::Unrelated)
    }

    /// Lets `judge` ask how commits of the app's mirror relate, however often: the mirror is opened once.
    pub async fn judge<T: Send + 'static>(
        &self,
        app: &App,
        judge: impl FnOnce(&dyn Fn(&CommitSha, &CommitSha) -> Ancestry) -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        let path = mirror::path_of(&self.root, &app.repo);
        let judged = blocking(move || {
            let mirror = Mirror::open(&path).ok();
            Ok(judge(&|first, second| match (&mirror, oid(first), oid(second)) {
                (Some(mirror), Ok(first), Ok(second)) => mirror.ancestry(first, second),
                _ if first == second => Ancestry::Same,
                _ => Ancestry::Unrelated,
            }))
        });
        Ok(judged.await?)
    }

    /// One fetch into one mirror, under its lock; a damaged mirror is cloned anew, once.
    async fn fetch_origin(
        &self,
        origin: &Origin,
        want: &Want,
        log: &DeployLog,
        limits: &Limits,
    ) -> Result<Fetched, SourceError> {
        let path = mirror::path_of(&self.root, &origin.url);
        let turn = {
            let mut turns = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(path.clone()).or_default())
        };
        let _turn = limits.wait(turn.lock()).await?;
        let (sweep, started) = (path.clone(), self.started);
        blocking(move || {
            pack::sweep(&sweep, started);
            mirror::sweep_locks(&sweep, started);
            Ok(())
        })
        .await?;
        match self.bring(origin, want, &path, log, limits).await {
            Err(Unfetched::Trouble(Trouble::Damaged(why))) => {
                log.line(format!("the mirror is damaged ({why}): cloning it anew"));
                let damaged = path.clone();
                blocking(move || mirror::remove(&damaged)).await?;
                self.bring(origin, want, &path, log, limits).await.map_err(Unfetched::into_error)
            }
            other => other.map_err(Unfetched::into_error),
        }
    }

    async fn bring(
        &self,
        origin: &Origin,
        want: &Want,
        path: &Path,
        log: &DeployLog,
        limits: &Limits,
    ) -> Result<Fetched, Unfetched> {
        let wanted = if let Want::Commit(commit) = want { Some(oid(commit)?) } else { None };
        let created = path.to_owned();
        let here = blocking(move || {
            let mirror = Mirror::open_or_create(&created)?;
            Ok(wanted.is_some_and(|wanted| mirror.holds(wanted)))
        });
        if let (Some(wanted), true) = (wanted, here.await?) {
            log.line(format!("commit {} is in the mirror already", short(wanted)));
            return Ok(self.settle(path, wanted, limits).await?);
        }
        log.line(format!("fetching {want} from {}", origin.url));
        let mut remote = self.connect(origin, limits).await?;
        let wanted = match wanted {
            Some(wanted) => wanted,
            None => remote.resolve_wanted(want, origin).await?,
        };
        if remote.gives_out(wanted) {
            match remote.fetch(wanted, path, log, limits).await {
                Ok(()) => return Ok(self.settle(path, wanted, limits).await?),
                Err(Trouble::NotGiven) => {}
                Err(trouble) => return Err(trouble.into()),
            }
            remote = self.connect(origin, limits).await?;
        }
        // The server does not give out commits by id: it must come with the branch.
        let Some(tip) = remote.resolve(&origin.branch).await? else {
            return Err(gone(wanted, &format!(", which has no {} any more", origin.branch)));
        };
        match remote.fetch(tip, path, log, limits).await {
            Err(Trouble::NotGiven) => return Err(gone(wanted, "")),
            other => other?,
        }
        let there = path.to_owned();
        if blocking(move || Ok(Mirror::open(&there)?.holds(wanted))).await? {
            return Ok(self.settle(path, wanted, limits).await?);
        }
        Err(gone(wanted, " (force-pushed away?)"))
    }

    /// Checks that the commit is whole, and keeps it.
    async fn settle(&self, path: &Path, wanted: Oid, limits: &Limits) -> Result<Fetched, Trouble> {
        let (path, limits) = (path.to_owned(), limits.clone());
        blocking(move || {
            let mirror = Mirror::open(&path)?;
            let commit = mirror.peel(wanted)?;
            let survey = mirror.check_whole(commit, &limits)?;
            mirror.pin(commit)?;
            tidy::tidy(&path, &limits);
            Ok(Fetched { mirror: path, commit, survey })
        })
        .await
    }

    async fn connect(&self, origin: &Origin, limits: &Limits) -> Result<Remote, Trouble> {
        let (wire, reader, host) = match &origin.url {
            RepoUrl::Local(path) => return Ok(Remote::Local(LocalOrigin::new(path))),
            RepoUrl::Http { url, .. } => {
                let (wire, reader) = http::HttpWire::connect(self.client()?, url, &origin.credential, limits).await?;
                let host = wire.host().to_owned();
                (Wire::Http(wire), reader, host)
            }
            RepoUrl::Ssh { user, host, port, path } => {
                let address = ssh::SshAddress { user, host, port: *port, path };
                let (wire, reader) = ssh::SshWire::connect(address, &origin.credential, limits).await?;
                (Wire::Ssh(Box::new(wire)), reader, host.clone())
            }
        };
        Ok(Remote::Server(Box::new(Session::open(wire, reader, host, limits).await?)))
    }

    fn client(&self) -> Result<reqwest::Client, Trouble> {
        let mut client = self.shared.client.lock().unwrap_or_else(PoisonError::into_inner);
        match &*client {
            Some(client) => Ok(client.clone()),
            None => Ok(client.insert(http::client(self.timeouts)?).clone()),
        }
    }

    /// Fetches the submodules of one commit, and theirs, each into a mirror of its own.
    #[expect(clippy::too_many_arguments, reason = "a recursion that carries its context")]
    async fn fetch_submodules(
        &self,
        origin: &Origin,
        parent: &Fetched,
        prefix: &str,
        depth: usize,
        log: &DeployLog,
        limits: &Limits,
        found: &mut Vec<(String, PathBuf, CommitSha)>,
    ) -> Result<(), SourceError> {
        if parent.survey.gitlinks.is_empty() {
            return Ok(());
        }
        if depth > submodules::DEEPEST {
            return Err(SourceError::Failed(format!(
                "submodules are nested deeper than {} (at {prefix})",
                submodules::DEEPEST
            )));
        }
        let (mirror, commit) = (parent.mirror.clone(), parent.commit);
        let text = blocking(move || Mirror::open(&mirror)?.gitmodules(commit)).await?;
        let addresses = submodules::parse(&text.unwrap_or_default());
        for (path, commit) in &parent.survey.gitlinks {
            let place = format!("{prefix}{path}");
            let failed = |why: String| SourceError::Failed(format!("submodule {place:?}: {why}"));
            let address = addresses.get(path).ok_or_else(|| failed("it has no address in .gitmodules".to_owned()))?;
            let url = submodules::resolve(&origin.url, address, RepoUrl::parse).map_err(failed)?;
            let credential = submodules::credential(&origin.url, &origin.credential, &url);
            let child = Origin { url, credential, branch: "HEAD".to_owned() };
            let commit = sha(*commit)?;
            let fetched = Box::pin(self.fetch_origin(&child, &Want::Commit(commit.clone()), log, limits)).await;
            let fetched = fetched.map_err(|error| match error {
                SourceError::Cancelled => SourceError::Cancelled,
                other => failed(other.to_string()),
            })?;
            found.push((place.clone(), fetched.mirror.clone(), commit));
            let below = format!("{place}/");
            Box::pin(self.fetch_submodules(&child, &fetched, &below, depth + 1, log, limits, found)).await?;
        }
        Ok(())
    }
}

/// Why a commit did not come into the mirror: [`SourceError`] and what can still be mended.
enum Unfetched {
    Trouble(Trouble),
    NoSuchRef(String),
    NoSuchCommit(String),
}

impl Unfetched {
    fn into_error(self) -> SourceError {
        match self {
            Self::Trouble(trouble) => trouble.into(),
            Self::NoSuchRef(text) => SourceError::NoSuchRef(text),
            Self::NoSuchCommit(text) => SourceError::NoSuchCommit(text),
        }
    }
}

impl From<Trouble> for Unfetched {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Commit(commit) => write!(f, "commit {}", commit.short()),
            Self::Branch(branch) => write!(f, "branch {branch}"),
            Self::Tag(tag) => write!(f, "tag {tag}"),
        }
    }
}

fn gone(wanted: Oid, why: &str) -> Unfetched {
    Unfetched::NoSuchCommit(format!("commit {} is not on the server{why}", short(wanted)))
}

/// The line that tells why directories are empty.
fn empty_submodules(survey: &Survey) -> Option<String> {
    let paths: Vec<&str> = survey.gitlinks.iter().map(|(path, _)| path.as_str()).collect();
    let named = match paths.as_slice() {
        [] => return None,
        [one] => return Some(format!("this commit has 1 submodule ({one}); it stays empty: set submodules = true")),
        few if few.len() <= 3 => few.join(", "),
        many => format!("{}, …", many[..3].join(", ")),
    };
    Some(format!("this commit has {} submodules ({named}); they stay empty: set submodules = true", paths.len()))
}

fn oid(commit: &CommitSha) -> Result<Oid, Trouble> {
    if commit.as_str().len() != 40 {
        return Err(Trouble::failed(format!(
            "commit {}… is a SHA-256 object name, which is not supported",
            commit.short()
        )));
    }
    Oid::from_str(commit.as_str()).map_err(|error| Trouble::failed(error.message()))
}

fn sha(oid: Oid) -> Result<CommitSha, SourceError> {
    oid.to_string().parse().map_err(|error| SourceError::Failed(format!("{error}")))
}

fn short(oid: Oid) -> String {
    oid.to_string().chars().take(7).collect()
}
