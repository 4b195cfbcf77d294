//! From the raw shape to a [`Config`], or to every problem at once.

use std::fmt;
use std::path::Path;

use super::Config;

/// One thing that is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 when it belongs to no line.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong, with the value (never a secret's).
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// Everything wrong with one file. Displays as `deploy.toml:LINE:COL: message` lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file's name as given.
    pub file: String,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{}:{}:{}: {}", self.file, problem.line, problem.column, problem.what)?;
        }
        Ok(())
    }
}

/// Reads and validates the file, secrets included: each reference must resolve now.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let _ = path;
    todo!()
}

/// Validates text; `file` is only for messages, `dir` is what relative paths are relative to.
pub fn parse(text: &str, file: &str, dir: &Path) -> Result<Config, Problems> {
    let _ = (text, file, dir);
    todo!()
}
