//! Text for people at a terminal: times, numbers, tables, JSON. [`clean`] is for other people's text.

use jiff::Timestamp;

use crate::text::is_invisible;
pub(super) use crate::text::{flat as clean, thousands};

/// What is said of an app whose `maintenance` is on, wherever it would look healthy otherwise.
pub(super) const IN_MAINTENANCE: &str = "in maintenance: every request gets a page with 503";

/// `text` as lines that are safe to show, without the empty ones and without what indents them; one at least.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|line| clean(line).trim().to_owned()).collect();
    lines.retain(|line| !line.is_empty());
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

/// JSON for people and programs. What a terminal could act on is escaped; the value is the same.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && (c.is_control() || is_invisible(c)) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// `3 min ago`
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    match now.as_second().saturating_sub(then.as_second()) {
        ..=1 => "just now".into(),
        s => format!("{} ago", span(s)),
    }
}

/// `45 s`, `3 min`, `5 h`, `12 days`
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `12.3 s`, `2 min 5 s`
pub(super) fn took(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds as i64;
    match whole {
        ..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `1 instance`, `5 instances`
pub(super) fn count(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", thousands(number))
}

/// Aligned columns; the last one is not padded. Cells are cleaned.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let cell_width = |cell: &str| cell.chars().count();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell_width(cell));
            cells.max().unwrap_or(0).max(cell_width(title))
        })
        .collect();
    let mut out = String::new();
    let head = head.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_commit_message_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\tc\n"), "ab c ");
        assert_eq!(lines("a:\n  \u{1b}[31mb\r\n\n"), ["a:", "b"]);
        assert_eq!(lines(""), [""]);
        assert_eq!(json(&"a\u{9b}\u{202e}\u{e0001}b"), r#""a\u009b\u202e\udb40\udc01b""#);
    }

    proptest! {
        #[test]
        fn json_keeps_the_value_and_shows_nothing_unprintable(text in any::<String>()) {
            let shown = json(&text);
            prop_assert!(!shown.chars().any(|c| c.is_control() || is_invisible(c)));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(
            [0.04, 12.34, 59.9, 61.0, 3700.0].map(took),
            ["0.0 s", "12.3 s", "59.9 s", "1 min 1 s", "1 h 1 min"]
        );
        let then = Timestamp::from_second(1_000_000).unwrap();
        let after = |s: i64| ago(then, Timestamp::from_second(1_000_000 + s).unwrap());
        assert_eq!(
            [-5, 1, 30, 200, 7200, 900_000].map(after),
            ["just now", "just now", "30 s ago", "3 min ago", "2 h ago", "10 days ago"]
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["web".into(), "1".into(), "x".into()], vec!["wörker".into(), "22".into(), String::new()]];
        assert_eq!(table(&["SERVICE", "N", "NOTE"], &rows), "SERVICE  N   NOTE\nweb      1   x\nwörker   22\n");
    }
}
