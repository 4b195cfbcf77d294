//! What heads of requests and of answers have in common.

/// Fields that a head may have, as many as hyper takes.
pub const MOST_FIELDS: usize = 100;

/// Bytes that most heads have room in.
pub const ROOM: usize = 1 << 10;

/// Looks for the empty line behind a head, from `seen` bytes on, which were looked at before: the length of the head,
/// and whether its last line ends properly, with CR LF.
pub fn end(bytes: &[u8], seen: usize) -> Option<(usize, bool)> {
    // The line may have ended just there.
    let mut from = seen.saturating_sub(3);
    while let Some(line_end) = memchr::memchr(b'\n', bytes.get(from..)?) {
        let next = from + line_end + 1;
        match bytes.get(next..)? {
            [b'\r', b'\n', ..] => return Some((next + 2, true)),
            [b'\n', ..] => return Some((next + 1, false)),
            _ => from = next,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line() {
        for (bytes, expected) in [
            (&b""[..], None),
            (b"GET / HTTP/1.1\r\n", None),
            (b"GET / HTTP/1.1\r\n\r", None),
            (b"GET / HTTP/1.1\r\n\r\n", Some((18, true))),
            (b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest\r\n\r\n", Some((24, true))),
            (b"GET / HTTP/1.1\n\nrest", Some((16, false))),
            (b"GET / HTTP/1.1\n\r\nrest", Some((17, true))),
        ] {
            assert_eq!(end(bytes, 0), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_found_wherever_the_packets_end(bytes in "[a\r\n]{0,12}", packet in 0usize..12) {
            let bytes = bytes.as_bytes();
            let packet = packet.min(bytes.len());
            let at_once = end(bytes, 0);
            let found = end(&bytes[..packet], 0).or_else(|| end(bytes, packet));
            prop_assert_eq!(found, at_once);
        }
    }
}
