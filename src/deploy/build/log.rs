//! A build's part of the deployment's log: capped, and without the build's secrets.

use crate::journal::DeployLog;

/// Bytes of one build's output that are kept.
const MOST: usize = 10 * 1024 * 1024;
/// Anything shorter stands in too many lines by chance.
const SHORTEST_SECRET: usize = 6;

pub(super) struct BuildLog {
    log: DeployLog,
    left: usize,
    /// Lines of the secrets, since output is seen line by line; the longest first.
    secrets: Vec<String>,
}

impl BuildLog {
    /// A log in which these words are replaced.
    pub(super) fn new<'a>(log: &DeployLog, secrets: impl Iterator<Item = &'a str>) -> Self {
        let lines = secrets.flat_map(str::lines).map(str::trim).filter(|line| line.len() >= SHORTEST_SECRET);
        let mut secrets: Vec<String> = lines.map(str::to_owned).collect();
        secrets.sort_by_key(|line| std::cmp::Reverse(line.len()));
        Self { log: log.clone(), left: MOST, secrets }
    }

    /// Adds a line, as long as there is room.
    pub(super) fn line(&mut self, line: &str) {
        if self.left == 0 {
            return;
        }
        let line = self.redacted(line);
        self.left = self.left.saturating_sub(line.len() + 1);
        self.log.line(line);
        if self.left == 0 {
            self.log.line("log truncated: the build printed more than 10 MiB");
        }
    }

    /// `text` with the secrets replaced.
    pub(super) fn redacted(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[secret]"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn collect(secrets: &[&str], lines: impl Iterator<Item = String>) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let log = DeployLog::new(move |line| sink.lock().unwrap().push(line.to_owned()));
        let mut log = BuildLog::new(&log, secrets.iter().copied());
        lines.for_each(|line| log.line(&line));
        std::mem::take(&mut *seen.lock().unwrap())
    }

    #[test]
    fn secrets_are_replaced_line_by_line() {
        let seen = collect(
            &["first-line\nsecond-line\n", "ab"],
            ["x first-line y", "second-line", "ab"].map(str::to_owned).into_iter(),
        );
        assert_eq!(seen, ["x [secret] y", "[secret]", "ab"]);
    }

    #[test]
    fn a_flood_ends() {
        let seen = collect(&[], std::iter::repeat_n("x".repeat(1023), 11 * 1024));
        assert_eq!(seen.len(), 10 * 1024 + 1);
        assert!(seen.last().unwrap().starts_with("log truncated"));
    }
}
