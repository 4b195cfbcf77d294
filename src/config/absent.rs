//! Secrets, and pages of maintenance, that cannot be had where the file says they are. One app's must not keep the agent from the others, so a start
//! puts up with them; whoever needs one finds its absence in its place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;

use super::problem::{Problem, Problems};
use super::{Config, validate};
use crate::model::AppName;

/// A secret as it was read, or why there is none.
pub type Secret = Result<SecretString, Absent>;

/// A secret, or a page, that cannot be had now. Displays which one, and why: that names files and is not for strangers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem.what)]
pub struct Absent {
    /// Where it is named: `apps.shop.webhook.secret`.
    pub key: String,
    /// The same with its place, why, and how to mend it.
    pub problem: Problem,
    /// It was there when it was read, and what was read stays in use.
    pub in_use: bool,
}

/// Secrets that were read, by their dotted keys.
pub(super) type Kept = BTreeMap<String, SecretString>;

impl Absent {
    /// Whose it is; `None` for the agent's own.
    pub fn app(&self) -> Option<AppName> {
        self.key.strip_prefix("apps.")?.split('.').next()?.parse().ok()
    }

    /// Whether it is no secret but the page of an app in maintenance, in place of which the proxy has one of its own.
    pub fn is_page(&self) -> bool {
        let of_app = self.key.strip_prefix("apps.").and_then(|rest| rest.split_once('.'));
        of_app.is_some_and(|(_, key)| key == "maintenance.page")
    }

    /// Whether a deployment of `app` would fail for it. Who may ask for one is another matter.
    pub fn keeps_from_deploying(&self, app: &AppName) -> bool {
        let is_of_the_app = self.app().as_ref() == Some(app);
        let is_for_deliveries = || self.key.split('.').nth(2) == Some("webhook");
        is_of_the_app && !self.in_use && !is_for_deliveries() && !self.is_page()
    }
}

/// Everything that could not be had when it was looked at last. None are absent from what [`super::load`] accepts.
#[derive(Debug, Clone, Default)]
pub struct Absences {
    pub(super) all: Vec<Absent>,
    pub(super) source: Source,
    pub(super) kept: Kept,
}

/// Two are the same when the same is absent for the same reasons.
impl PartialEq for Absences {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

/// What was read: looking again must not bring in what has been written in the file since.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub(super) text: String,
    pub(super) file: String,
    pub(super) dir: PathBuf,
}

impl Absences {
    /// Whether all that is needed is there.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The configuration that names them; empty where none are absent.
    pub fn file(&self) -> &str {
        &self.source.file
    }

    /// Each, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Absent> {
        self.all.iter()
    }

    /// The same configuration with its secrets and pages read anew, except for secrets in use that have gone. Blocks.
    pub fn look_again(&self) -> Result<Config, Problems> {
        let Source { text, file, dir } = &self.source;
        validate::parse_again(text, file, dir, &|name: &str| std::env::var_os(name), &self.kept)
    }
}
