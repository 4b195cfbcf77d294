//! Text for people: times, numbers, tables; and other people's text made safe for a terminal.

use jiff::Timestamp;

/// `text` without what could steer a terminal or reorder what is read: escape sequences, control characters,
/// bidirectional and invisible format characters. Tabs and line ends become spaces.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' | '\n' | '\r' | '\u{2028}' | '\u{2029}' => out.push(' '),
            '\u{9b}' => skip_csi(&mut chars),
            '\u{1b}' => match chars.next() {
                Some('[') => skip_csi(&mut chars),
                // An operating system command or another string, up to its terminator.
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut chars),
                _ => {}
            },
            c if c.is_control() || is_invisible(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// `text` as lines that are safe to show, without the empty ones and without what indents them; one at least.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|line| clean(line).trim().to_owned()).collect();
    lines.retain(|line| !line.is_empty());
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

fn skip_csi(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next_if(|c| ('\u{20}'..='\u{7e}').contains(c)) {
        if c >= '\u{40}' {
            return;
        }
    }
}

fn skip_string(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next() {
        let terminated = c == '\u{7}' || c == '\u{9c}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some());
        if terminated {
            return;
        }
    }
}

/// Bidirectional controls and characters without a glyph.
pub(super) fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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

/// `1,234`
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
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
        let link = "\u{1b}]8;;javascript:alert(1)\u{1b}\\click\u{1b}]8;;\u{7}";
        assert_eq!(clean(&format!("a\u{1b}[31;1mb\u{1b}[2Jc{link}\u{202e}d\u{9b}5me\r\nf\u{7}")), "abcclickde  f");
        assert_eq!(clean("Größe \u{1f6a2} ok"), "Größe \u{1f6a2} ok");
        assert_eq!(json(&"a\u{9b}\u{202e}\u{e0001}b"), r#""a\u009b\u202e\udb40\udc01b""#);
    }

    proptest! {
        #[test]
        fn nothing_unprintable_is_left(text in any::<String>()) {
            prop_assert!(!clean(&text).chars().any(|c| c.is_control() || is_invisible(c)));
            let shown = json(&text);
            prop_assert!(!shown.chars().any(|c| c.is_control() || is_invisible(c)));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(thousands), ["0", "12", "999", "1,000", "1,234,567"]);
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
