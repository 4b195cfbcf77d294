//! How a message says lines of output and lengths of time.

use std::time::Duration;

use crate::text;

/// A line of output as a terminal would leave it: without escape sequences, tabs as spaces, what cannot be
/// seen removed.
pub(super) fn log_line(line: &str) -> String {
    text::flat(line).trim_end().to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_shown() {
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
}
