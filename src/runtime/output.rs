//! What programs print, as lines that are safe to show.

use std::collections::VecDeque;

use crate::text;

/// A longer line is cut into pieces.
const LONGEST: usize = 16 * 1024;

/// Puts chunks of output together to clean lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that `chunk` completes.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() >= LONGEST {
                lines.extend(self.finish());
            }
        }
        lines
    }

    /// What is left when the output ends without a line end.
    pub(crate) fn finish(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.rest);
        if bytes.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Some(clean(text.strip_suffix('\r').unwrap_or(text)))
    }
}

/// The last lines of an output.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
    most: usize,
}

impl Tail {
    /// Keeps the last `most` lines.
    pub(crate) fn new(most: usize) -> Self {
        Self { lines: VecDeque::with_capacity(most), most }
    }

    /// Adds a line.
    pub(crate) fn push(&mut self, line: String) {
        if self.lines.len() == self.most {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The lines, oldest first.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// A line without terminal escape sequences and control characters other than tabs. Of a line that redraws itself
/// with carriage returns (a progress bar), what stands there in the end.
pub(crate) fn clean(line: &str) -> String {
    let last = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default();
    text::harmless(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_terminals_tricks_are_gone() {
        let check = |line: &str, expected: &str| assert_eq!(clean(line), expected, "{line:?}");
        check("\u{1b}[91mwarning\u{1b}[0m: a\tb", "warning: a\tb");
        check("\u{1b}]8;;javascript:x\u{7}link\u{1b}]8;;\u{1b}\\", "link");
        check("10%\r50%\r100%", "100%");
        check("50%\r", "50%");
        check("a\u{0}\u{8}b\u{202e}c\u{1b}", "abc");
    }

    #[test]
    fn the_tail_keeps_the_newest() {
        let mut tail = Tail::new(2);
        ["a", "b", "c"].into_iter().for_each(|line| tail.push(line.to_owned()));
        assert_eq!(tail.into_lines(), ["b", "c"]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_chunks(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            let at = at.min(bytes.len());
            let mut whole = Lines::default();
            let mut expected = whole.push(&bytes);
            expected.extend(whole.finish());
            let mut parts = Lines::default();
            let mut got = parts.push(&bytes[..at]);
            got.extend(parts.push(&bytes[at..]));
            got.extend(parts.finish());
            prop_assert_eq!(&got, &expected);
            prop_assert!(got.iter().all(|line| !line.chars().any(|c| c.is_control() && c != '\t')));
        }
    }
}
