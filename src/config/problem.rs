//! What is wrong with a file, where, and how to mend it.

use std::fmt;
use std::ops::Range;

/// One thing that is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 when it belongs to no line.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, with the value (never a secret's).
    pub what: String,
    /// How to mend it; may have several lines.
    pub hint: Option<String>,
}

/// Where something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 1; 0 when it belongs to no line.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(super) fn of_file(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { line: 0, column: 0, what: what.into(), hint: Some(hint.into()) }
    }

    /// `FILE:LINE:COL: what`, with `label` (such as `warning: `) before the text and the hint indented below.
    pub fn render(&self, file: &str, label: &str) -> String {
        let place = match self.line {
            0 => file.to_owned(),
            line => format!("{file}:{line}:{}", self.column),
        };
        let mut text = format!("{place}: {label}{}", self.what);
        for line in self.hint.iter().flat_map(|hint| hint.lines()) {
            text.push_str("\n    ");
            text.push_str(line);
        }
        text
    }
}

/// Everything wrong with one file. Displays one `deploy.toml:LINE:COL: message` line per problem, each followed by
/// its hint, indented.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file's name as given.
    pub file: String,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&problem.render(&self.file, ""))?;
        }
        Ok(())
    }
}

/// What a value's own rule has against it: a [`Problem`] without its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Continues the key's name: `must be …, got …`, or `: a sentence`.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: Some(hint.into()) }
    }
}

/// Finds line and column of byte offsets.
#[derive(Debug)]
pub(super) struct Places<'t> {
    text: &'t str,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl<'t> Places<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let after_each_line_end = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self { text, starts: std::iter::once(0).chain(after_each_line_end).collect() }
    }

    /// Line and column, both from 1, of a byte offset; one past the end is still a place.
    pub(super) fn of(&self, offset: usize) -> (usize, usize) {
        let offset = (0..=offset.min(self.text.len())).rev().find(|&o| self.text.is_char_boundary(o)).unwrap_or(0);
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text[start..offset].chars().count() + 1;
        (line, column)
    }

    /// The text of a line, numbered from 1, without its end.
    pub(super) fn line(&self, number: usize) -> &'t str {
        let start = self.starts.get(number.saturating_sub(1)).copied().unwrap_or(self.text.len());
        let end = self.starts.get(number).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }

    pub(super) fn problem(&self, span: &Range<usize>, what: String, hint: Option<String>) -> Problem {
        let (line, column) = self.of(span.start);
        Problem { line, column, what, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_lines_and_columns() {
        let places = Places::new("a\nbü c\r\n\nx");
        let expected = [(0, (1, 1)), (2, (2, 1)), (3, (2, 2)), (4, (2, 2)), (5, (2, 3)), (9, (3, 1)), (10, (4, 1))];
        for (offset, place) in expected {
            assert_eq!(places.of(offset), place, "offset {offset}");
        }
        assert_eq!(places.of(999), (4, 2));
        assert_eq!(places.line(2), "bü c");
        assert_eq!(Places::new("").of(0), (1, 1));
    }

    #[test]
    fn problems_print_a_line_each_with_the_hint_below() {
        let first = Problem { line: 3, column: 7, what: "port must be a number".into(), hint: Some("one\ntwo".into()) };
        let second = Problem { line: 0, column: 0, what: "cannot be read".into(), hint: None };
        let problems = Problems { file: "deploy.toml".into(), problems: vec![first, second] };
        assert_eq!(
            problems.to_string(),
            "deploy.toml:3:7: port must be a number\n    one\n    two\ndeploy.toml: cannot be read"
        );
    }
}
