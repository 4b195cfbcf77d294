//! The source: a kept bare mirror per repository, and exactly the commit that was pushed.

use std::path::PathBuf;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::config::App;
use crate::journal::DeployLog;
use crate::model::CommitSha;

/// The mirrors of all apps, under `data_dir/mirrors`.
#[derive(Debug, Clone)]
pub struct Mirrors {
    root: PathBuf,
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
    /// When it was committed.
    pub committed_at: Timestamp,
    /// The mirror that holds it.
    pub mirror: PathBuf,
    /// Submodules by path, each in a mirror of its own; filled only when the app asks for them.
    pub submodules: Vec<(String, PathBuf, CommitSha)>,
}

/// How two commits of one mirror relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestry {
    /// The same commit.
    Same,
    /// The first is an ancestor of the second.
    Ancestor,
    /// The second is an ancestor of the first.
    Descendant,
    /// Neither, or one is not known here.
    Unrelated,
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

impl Mirrors {
    /// Mirrors below `root`, which is created with mode 0700 when missing.
    pub fn new(root: PathBuf) -> std::io::Result<Self> {
        let _ = root;
        todo!()
    }

    /// Brings `want` into the app's mirror and returns it. Progress lines go to `log`.
    pub async fn fetch(
        &self,
        app: &App,
        want: &Want,
        log: &DeployLog,
        cancel: &CancellationToken,
    ) -> Result<Source, SourceError> {
        let _ = (app, want, log, cancel);
        todo!()
    }

    /// The tip of the app's branch on the server, without fetching; `None` when the branch does not exist.
    pub async fn tip(&self, app: &App) -> Result<Option<CommitSha>, SourceError> {
        let _ = app;
        todo!()
    }

    /// How `first` relates to `second` in the app's mirror.
    pub async fn ancestry(&self, app: &App, first: &CommitSha, second: &CommitSha) -> Ancestry {
        let _ = (app, first, second);
        todo!()
    }
}
