//! What is no TOML, shown with its line and a caret.

use std::collections::BTreeMap;
use std::ops::Range;

use super::problem::{Places, Problem};

/// One misplaced quote can spoil the rest of a file: more than these help nobody.
const MOST: usize = 20;

/// As much of a line as is shown.
const WIDTH: usize = 100;

/// Keys whose values are no secrets. What stands after any other is hidden: a file that cannot be read as TOML cannot
/// tell where its secrets are.
const HARMLESS: [&str; 25] = [
    "allow_local",
    "branch",
    "builder",
    "context",
    "cpus",
    "data_dir",
    "deadline",
    "docker_host",
    "dockerfile",
    "domains",
    "events",
    "http",
    "instances",
    "keep_releases",
    "kind",
    "listen",
    "memory",
    "min_free",
    "order",
    "port",
    "reconcile",
    "stop_grace",
    "submodules",
    "volumes",
    "watch",
];

/// One problem per line that the parser could not read: what follows in the same line is mostly its consequence.
pub(super) fn problems(text: &str, errors: &[toml::de::Error]) -> Vec<Problem> {
    let places = Places::new(text);
    let mut first_in_line = BTreeMap::new();
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let (line, _) = places.of(span.start);
        first_in_line.entry(line).or_insert((span, error.message()));
    }
    let shown = first_in_line.into_values().take(MOST).map(|(span, message)| {
        let message = message.trim_end_matches(", expected nothing");
        places.problem(&span, format!("no valid TOML: {message}"), Some(excerpt(&places, &span)))
    });
    shown.collect()
}

/// The line with a caret below the place.
fn excerpt(places: &Places<'_>, span: &Range<usize>) -> String {
    let (number, column) = places.of(span.start);
    let line = places.line(number);
    let hide_values = !is_harmless(line) || in_env_table(places, number);
    let shown: Vec<char> = hidden(line, hide_values).collect();
    let first = (column - 1).saturating_sub(WIDTH / 2);
    let (before, after) = (if first > 0 { "…" } else { "" }, if shown.len() > first + WIDTH { "…" } else { "" });
    let window: String = shown.iter().skip(first).take(WIDTH).collect();
    let gutter = number.to_string();
    let caret = " ".repeat(column - 1 - first + before.chars().count());
    format!("{gutter} | {before}{window}{after}\n{} | {caret}^", " ".repeat(gutter.len()))
}

/// The line in characters that print in one column each; with `hide`, what follows the first `=` becomes `*`, and
/// everything where there is none.
fn hidden(line: &str, hide: bool) -> impl Iterator<Item = char> {
    let shown_until = if hide { line.find('=').map_or(0, |at| at + 1) } else { line.len() };
    line.char_indices().map(move |(at, c)| match c {
        _ if c.is_control() => ' ',
        _ if at >= shown_until && !" \"'{}[],".contains(c) => '*',
        _ => c,
    })
}

/// A header, or a key whose value is no secret.
fn is_harmless(line: &str) -> bool {
    let line = line.trim_start();
    let key = line.split('=').next().unwrap_or(line).trim_end();
    let in_header = |c: char| c.is_ascii_alphanumeric() || " []._-".contains(c);
    let one_pair = line.matches('=').count() == 1;
    (one_pair && HARMLESS.contains(&key)) || (line.starts_with('[') && line.chars().all(in_header))
}

/// Whether the nearest header above belongs to an `env` or `args` table, whose keys may be anything.
fn in_env_table(places: &Places<'_>, number: usize) -> bool {
    let is_header = |line: &str| line.starts_with('[');
    let header = (1..=number).rev().map(|number| places.line(number).trim()).find(|line| is_header(line));
    let line = places.line(number).trim();
    !is_header(line) && header.is_some_and(|header| header.contains("env") || header.contains("args"))
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    fn shown(text: &str) -> String {
        let (_, errors) = DeTable::parse_recoverable(text);
        problems(text, &errors).iter().map(|problem| problem.render("deploy.toml", "")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_line_is_shown_with_a_caret() {
        insta::assert_snapshot!(shown("[agent]\nlisten = 127.0.0.1:9000\n[proxy\n"), @"
        deploy.toml:2:15: no valid TOML: invalid float
            2 | listen = 127.0.0.1:9000
              |               ^
        deploy.toml:3:7: no valid TOML: unclosed table, expected `]`
            3 | [proxy
              |       ^
        ");
    }

    #[test]
    fn values_that_may_be_secret_are_hidden() {
        insta::assert_snapshot!(shown("secret = \"hunter22\n"), @r#"
        deploy.toml:1:19: no valid TOML: invalid basic string, expected `"`
            1 | secret = "********
              |                   ^
        "#);
        for text in [
            "secret = \"hunter22\n",
            "[apps.a.env]\nX = \"hunter22\n",
            "repo = 'https://a:hunter22@host/x\n",
            "env = { A = \"hunter22\n",
            "webhook = { secret = 'hunter22' \n",
            "secret \"hunter22\"\n",
            "x = 1\ntoken = \"\"\"\nhunter22\n",
            "[apps.a]\nenv = {\n  A = \"hunter22\n",
            "[apps.a.env]\nport = \"hunter22\n",
            "hunter22\n",
            "port = 1 secret = 'hunter22'\n",
            "[apps.a]\ncommand = [\n\"a\",\n\"--password=hunter22\n",
        ] {
            let shown = shown(text);
            assert!(!shown.is_empty() && !shown.contains("hunter22"), "{shown}");
        }
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let text = format!("a = [{}x]", "1, ".repeat(500));
        let shown = shown(&text);
        assert!(shown.lines().all(|line| line.chars().count() < 130), "{shown}");
    }
}
