//! Text of others (commits, names, output, answers) made fit to show, and what else several parts say in the same way.

use std::error::Error;
use std::iter::Peekable;
use std::str::Chars;
use std::time::Duration;

/// `text` without what could steer a terminal, or hide or reorder what is read: escape sequences, control characters
/// and characters without a glyph. Tabs and line ends stay.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' | '\n' | '\r' => out.push(c),
            '\u{2028}' | '\u{2029}' => out.push('\n'),
            '\u{9b}' => skip_parameters(&mut chars),
            '\u{1b}' => match chars.next() {
                Some('[') => skip_parameters(&mut chars),
                // An operating system command (a link, a title) or another string.
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut chars),
                _ => {}
            },
            c if c.is_control() || is_invisible(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// The same on one line: a tab or a line end becomes a space.
pub fn flat(text: &str) -> String {
    harmless(text).replace(['\t', '\n', '\r'], " ")
}

/// The same on one line, with single spaces between the words and none around them.
pub fn one_line(text: &str) -> String {
    harmless(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `no instance of web serves`, `1 of 2 instances of web serves`; `None` when as many serve as should.
pub fn shortfall(service: &str, serving: u32, wanted: u32) -> Option<String> {
    match serving {
        _ if serving >= wanted => None,
        0 => Some(format!("no instance of {service} serves")),
        1 => Some(format!("1 of {wanted} instances of {service} serves")),
        _ => Some(format!("{serving} of {wanted} instances of {service} serve")),
    }
}

/// ECMA-48: parameters and intermediates, then one final character.
fn skip_parameters(chars: &mut Peekable<Chars<'_>>) {
    while let Some(c) = chars.next_if(|c| ('\u{20}'..='\u{7e}').contains(c)) {
        if c >= '\u{40}' {
            return;
        }
    }
}

/// Up to BEL, or the string terminator.
fn skip_string(chars: &mut Peekable<Chars<'_>>) {
    while let Some(c) = chars.next() {
        if matches!(c, '\u{7}' | '\u{9c}') || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
            return;
        }
    }
}

/// Characters without a width of their own that hide or reorder what is around them (Unicode's format characters,
/// fillers and tags).
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// An error and what caused it, without saying anything twice; the outermost alone often says nothing.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// A time in as many digits as say something: `2.6 ms`, `49 ms`, `1.2 s`.
pub fn briefly(time: Duration) -> String {
    match time.as_secs_f64() * 1000.0 {
        short if short < 9.95 => format!("{short:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        long => format!("{:.1} s", long / 1000.0),
    }
}

/// `1,234`
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_steers_hides_or_reorders_is_gone() {
        let check = |text: &str, shown: &str| assert_eq!(harmless(text), shown, "{text:?}");
        check("a\u{1b}[31;1mb\u{1b}[2Jc\u{9b}5md\u{7}\u{0}e\u{1b}", "abcde");
        check("\u{1b}]8;;javascript:alert(1)\u{1b}\\click\u{1b}]8;;\u{7} me", "click me");
        check("ca\u{200b}rt \u{202e}\u{2066}\u{e0001}x", "cart x");
        check("Größe \u{1f6a2}\tok\r\n", "Größe \u{1f6a2}\tok\r\n");
        check("cut short \u{1b}[", "cut short ");
        check("a\u{2028}b", "a\nb");
    }

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(flat("  a\tb\r\nc"), "  a b  c");
        assert_eq!(one_line("  Fix\r\n\tthe\u{202e} ca\u{200b}rt\u{7}  "), "Fix the cart");
        assert_eq!(one_line("\u{200b}\u{2066}\n"), "");
    }

    proptest! {
        #[test]
        fn nothing_unprintable_is_left(text in any::<String>()) {
            let unprintable = |c: char| c.is_control() || is_invisible(c);
            prop_assert!(!flat(&text).chars().any(unprintable));
            prop_assert!(!one_line(&text).chars().any(unprintable));
            prop_assert!(!harmless(&text).chars().any(|c| unprintable(c) && !"\t\n\r".contains(c)));
        }
    }

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("connection refused");
        let said = anyhow::Error::new(inner).context("no answer").context("no answer: connection refused (again)");
        assert_eq!(with_causes(said.as_ref()), "no answer: connection refused (again)");
        let plain = anyhow::Error::msg("refused").context("no answer");
        assert_eq!(with_causes(plain.as_ref()), "no answer: refused");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(thousands), ["0", "12", "999", "1,000", "1,234,567"]);
    }
}
