//! What is wrong with comparing an app's branch with the journal, until a comparison succeeds: as long as none does, a
//! delivery that is lost is not only late.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::at;
use crate::config::{App, Config};
use crate::model::AppName;

/// A single failure may pass by itself: `/readyz` warns from this one in a row.
const WARNED_FROM: u32 = 2;

/// The apps whose last comparison found no tip.
#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<BTreeMap<AppName, Kept>>);

/// Of another repository or branch it says nothing.
#[derive(Debug)]
struct Kept {
    repo: String,
    branch: String,
    trouble: Trouble,
}

/// Why the tip of an app's branch is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What the last comparison came upon.
    pub kind: Kind,
    /// When the first of them in a row came upon it.
    pub since: Timestamp,
    /// How many they are.
    pub times: u32,
}

/// What a comparison came upon in place of a tip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A branch that never was, which is waited for.
    NotYet,
    /// A branch that was there, or should be: the app has a live release.
    Gone,
    /// It could not be looked at, for this reason.
    Failed(String),
}

impl Trouble {
    /// In words, with what to do where the cause does not say it.
    pub fn why(&self, app: &App) -> String {
        let App { name, branch, .. } = app;
        match &self.kind {
            Kind::NotYet => format!("branch {branch} is not there yet"),
            Kind::Gone => format!(
                "branch {branch} is not in the repository any more; push it again, or name the one to follow (branch in [apps.{name}])"
            ),
            Kind::Failed(why) => why.clone(),
        }
    }

    /// Strangers are not told where the repository is.
    fn warning(&self, app: &App, caller_is_local: bool) -> Option<String> {
        if self.kind == Kind::NotYet || self.times < WARNED_FROM {
            return None;
        }
        let (name, branch, since) = (&app.name, &app.branch, at(self.since));
        let said = format!(
            "{name}: since {since} branch {branch} cannot be compared with what was deployed, and a push whose delivery is lost goes unnoticed"
        );
        Some(match caller_is_local || self.kind == Kind::Gone {
            true => format!("{said}: {}", self.why(app)),
            false => said,
        })
    }
}

impl Troubles {
    /// A comparison found no tip. What is new is said in the log.
    pub fn met(&self, app: &App, kind: Kind, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.remove(&app.name).filter(|kept| kept.is_of(app)).map(|kept| kept.trouble);
        let is_news = before.as_ref().is_none_or(|before| before.kind != kind);
        // One that was only waited for is not yet a failure in the row.
        let goes_on = |before: &Trouble| (before.kind == Kind::NotYet) == (kind == Kind::NotYet);
        let (since, times) = match before.filter(goes_on) {
            Some(before) => (before.since, before.times.saturating_add(1)),
            None => (now, 1),
        };
        let trouble = Trouble { kind, since, times };
        if is_news && trouble.kind != Kind::NotYet {
            tracing::warn!(app = %app.name, why = trouble.why(app), "the branch's tip could not be compared with the journal");
        }
        let (repo, branch) = (app.repo.to_string(), app.branch.clone());
        all.insert(app.name.clone(), Kept { repo, branch, trouble });
    }

    /// A comparison found the tip.
    pub fn over(&self, app: &AppName) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(app);
        if before.is_some_and(|before| before.trouble.kind != Kind::NotYet) {
            tracing::info!(%app, "the branch's tip can be compared with the journal again");
        }
    }

    /// A push told of the branch: it is there, whatever the last comparison came upon.
    pub fn pushed(&self, app: &AppName) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|of, kept| of != app || matches!(kept.trouble.kind, Kind::Failed(_)));
    }

    /// Nothing is compared any more.
    pub fn forget(&self, app: &AppName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(app);
    }

    /// What is wrong with an app's comparisons.
    pub fn of(&self, app: &App) -> Option<Trouble> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&app.name).filter(|kept| kept.is_of(app)).map(|kept| kept.trouble.clone())
    }

    /// A line for each app.
    pub fn warnings(&self, config: &Config, caller_is_local: bool) -> Vec<String> {
        let told = |app: &App| self.of(app)?.warning(app, caller_is_local);
        config.apps.values().filter_map(told).collect()
    }
}

impl Kept {
    fn is_of(&self, app: &App) -> bool {
        self.branch == app.branch && self.repo == app.repo.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(branch: &str) -> Config {
        let text = format!("[apps.shop]\nrepo = \"https://h/x\"\nbranch = \"{branch}\"\n");
        crate::config::parse_in(&text, "deploy.toml", Path::new("/"), &|_: &str| None).unwrap()
    }

    #[test]
    fn a_second_failure_in_a_row_is_warned_of_and_strangers_do_not_hear_why() {
        let (config, troubles) = (config("main"), Troubles::default());
        let app = config.apps.values().next().unwrap();
        let failed = || Kind::Failed("cannot connect to h: refused".to_owned());
        troubles.met(app, failed(), Timestamp::UNIX_EPOCH);
        assert_eq!(troubles.of(app).unwrap().why(app), "cannot connect to h: refused");
        assert_eq!(troubles.warnings(&config, true), Vec::<String>::new());
        troubles.met(app, failed(), Timestamp::now());
        let said = "shop: since 1970-01-01 00:00:00 UTC branch main cannot be compared with what was deployed, and a push whose delivery is lost goes unnoticed";
        assert_eq!(troubles.warnings(&config, false), [said]);
        assert_eq!(troubles.warnings(&config, true), [format!("{said}: cannot connect to h: refused")]);
        troubles.over(&app.name);
        assert_eq!(troubles.of(app), None);
        troubles.met(app, failed(), Timestamp::now());
        assert_eq!(troubles.warnings(&config, true), Vec::<String>::new(), "it is the first again");
    }

    #[test]
    fn a_branch_that_never_was_is_waited_for_and_one_that_is_gone_is_not() {
        let (of_main, troubles) = (config("main"), Troubles::default());
        let app = of_main.apps.values().next().unwrap();
        for _ in 0..3 {
            troubles.met(app, Kind::NotYet, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(troubles.of(app).unwrap().why(app), "branch main is not there yet");
        assert_eq!(troubles.warnings(&of_main, true), Vec::<String>::new());
        let now = Timestamp::now();
        troubles.met(app, Kind::Gone, now);
        assert_eq!(troubles.of(app).unwrap(), Trouble { kind: Kind::Gone, since: now, times: 1 });
        troubles.met(app, Kind::Gone, now);
        let told = troubles.warnings(&of_main, false);
        assert!(told[0].contains("push it again, or name the one to follow (branch in [apps.shop])"), "{told:?}");
        troubles.pushed(&app.name);
        assert_eq!(troubles.of(app), None, "it is there again");
        troubles.met(app, Kind::Gone, now);
        let other = config("release");
        assert_eq!(troubles.of(other.apps.values().next().unwrap()), None, "another branch is followed now");
    }
}
