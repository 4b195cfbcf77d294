//! Text from outside (commits, authors, logs) made fit to show: no invisible, reordering or control characters.

use std::time::Duration;

/// One line with single spaces: line ends and control characters become spaces, invisible ones vanish.
pub(super) fn one_line(text: &str) -> String {
    let shown: String =
        text.chars().filter(|&c| !is_invisible(c)).map(|c| if c.is_control() { ' ' } else { c }).collect();
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A line of output as a terminal would leave it: without escape sequences, tabs as spaces, the rest of what cannot
/// be seen removed.
pub(super) fn log_line(line: &str) -> String {
    let shown: String = without_escape_sequences(line)
        .chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .filter(|&c| !c.is_control() && !is_invisible(c))
        .collect();
    shown.trim_end().to_owned()
}

/// Characters without a width of their own that hide or reorder what is around them (Unicode's format characters,
/// fillers and tags).
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Removes ECMA-48 control sequences (`ESC [ … m`) and operating system commands (`ESC ] … BEL`, such as links).
fn without_escape_sequences(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            kept.push(c);
            continue;
        }
        match rest.next() {
            // Parameters and intermediates, then one final byte.
            Some('[') => skip_past(&mut rest, |_, c| ('\u{40}'..='\u{7e}').contains(&c)),
            // Ends with BEL, or with ESC \.
            Some(']') => skip_past(&mut rest, |before, c| c == '\u{7}' || (before == '\u{1b}' && c == '\\')),
            _ => {}
        }
    }
    kept
}

/// Skips everything up to and with the first character that ends the sequence, given the one before it.
fn skip_past(rest: &mut std::str::Chars<'_>, ends: impl Fn(char, char) -> bool) {
    let mut before = ' ';
    for c in rest {
        if ends(before, c) {
            return;
        }
        before = c;
    }
}

/// `420 ms`, `12 s`, `1 m 12 s`, `1 h 5 m`.
pub(super) fn duration(length: Duration) -> String {
    if length < Duration::from_secs(1) {
        return format!("{} ms", length.as_millis());
    }
    let seconds = length.as_secs() + u64::from(length.subsec_millis() >= 500);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} m {s} s"),
        (h, m, _) => format!("{h} h {m} m"),
    }
}

/// `1,204,033`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_shown() {
        assert_eq!(one_line("  Fix\r\n\tthe\u{202e} ca\u{200b}rt\u{7}  "), "Fix the cart");
        assert_eq!(one_line("\u{200b}\u{2066}\n"), "");
        assert_eq!(log_line("\u{1b}[31;1merror\u{1b}[0m:\tno\u{200f} such file\r"), "error: no such file");
        assert_eq!(log_line("\u{1b}]8;;javascript:alert(1)\u{7}click\u{1b}]8;;\u{1b}\\ me"), "click me");
        assert_eq!(log_line("  indented stays"), "  indented stays");
        assert_eq!(log_line("cut short \u{1b}["), "cut short");
    }

    #[test]
    fn durations_read_like_speech() {
        let shown = |ms| duration(Duration::from_millis(ms));
        assert_eq!(
            [0, 420, 1000, 12_400, 59_700, 72_000, 3_600_000, 3_912_000].map(shown),
            ["0 ms", "420 ms", "1 s", "12 s", "1 m 0 s", "1 m 12 s", "1 h 0 m", "1 h 5 m"]
        );
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!([0, 999, 1000, 1_204_033].map(count), ["0", "999", "1,000", "1,204,033"]);
    }
}
