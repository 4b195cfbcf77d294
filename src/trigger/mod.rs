//! From bytes on the wire to a [`Push`], the only type that leaves this folder.

use crate::model::{CommitSha, GitRef, shorten};
use crate::text;

pub mod github;
pub mod http;
mod intake;
pub mod keep_alive;
mod payload;
pub mod post_receive;
pub mod signature;
#[cfg(test)]
pub(crate) mod testing;
mod to_the_end;

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

/// Why a verified delivery cannot be understood. The texts name positions and rules, and values only where they are
/// refs, commits or names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not what they should be (400).
    #[error("{0}")]
    Unreadable(String),
    /// A field is missing or has a value that it must not have (422).
    #[error("{detail}")]
    Invalid {
        /// Its path in the payload.
        field: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

impl Refusal {
    fn invalid(field: &'static str, detail: impl Into<String>) -> Self {
        Self::Invalid { field, detail: detail.into() }
    }
}

/// Text by a stranger as one harmless line of at most `max` characters.
fn one_line(text: &str, max: usize) -> String {
    shorten(&text::one_line(text), max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strangers_text_becomes_one_harmless_line() {
        assert_eq!(one_line("  Fix\x1b]8;;x\x07 \u{202e}it\r\n", 200), "Fix it");
        assert_eq!(one_line(&"ä".repeat(300), 200), format!("{}…", "ä".repeat(200)));
    }

    proptest! {
        #[test]
        fn one_line_is_short_and_without_controls(text in "\\PC*|(.|\n|\r|\u{0}){0,300}") {
            let line = one_line(&text, 50);
            prop_assert!(line.chars().count() <= 51 && !line.chars().any(char::is_control));
        }
    }
}
