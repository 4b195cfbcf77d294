//! From bytes on the wire to a [`Push`], the only type that leaves this folder.

use crate::model::{CommitSha, GitRef};

pub mod github;
pub mod http;
pub mod post_receive;
pub mod signature;

/// A verified branch update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// `refs/heads/…`
    pub git_ref: GitRef,
    /// What the branch pointed to before; `None` for a new branch.
    pub before: Option<CommitSha>,
    /// What it points to now.
    pub after: CommitSha,
    /// The branch was rewound or rewritten on purpose, so an older commit may replace a newer one.
    pub forced: bool,
    /// Who pushed, as the provider says; shown, never trusted.
    pub pusher: Option<String>,
    /// The new commit's author; shown, never trusted. Filled in from git where the trigger does not carry it.
    pub author: Option<String>,
    /// First line of the new commit's message.
    pub subject: Option<String>,
    /// The provider's delivery id, the key against duplicates.
    pub delivery: Option<String>,
}

/// What a verified delivery says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// A branch moved.
    Push(Push),
    /// Nothing to do, and why (one line for the sender).
    Ignored(String),
}
