//! The chunked transfer coding (RFC 9112 §7.1), read piece by piece.

use bytes::{Buf, Bytes, BytesMut};
use hyper::header::HeaderMap;

use super::super::fields::{Found, Lines};
use super::head;

/// The longest line with a chunk's size and its extensions, which are ignored.
const LONGEST_LINE: usize = 4 << 10;
/// All lines behind the last chunk.
const MOST_TRAILERS: usize = 16 << 10;

/// Where in the body the next byte stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
    /// In the line with a chunk's size.
    #[default]
    Size,
    /// So many bytes before the end of a chunk.
    Data(u64),
    /// In the end of the line behind a chunk's data.
    DataEnd,
    /// Behind the last chunk.
    Trailers,
}

/// What was read.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// Nothing: more bytes are needed.
    Partial,
    /// Data of a chunk, never empty.
    Data(Bytes),
    /// The end, and the fields there.
    End(Option<HeaderMap>),
}

/// Not to be read like this.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Chunked {
    /// Takes the next piece off the bytes.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match *self {
                Self::Size => {
                    let Some(size) = size_line(input)? else { return Ok(Piece::Partial) };
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    if input.is_empty() {
                        return Ok(Piece::Partial);
                    }
                    let there = left.min(input.len() as u64);
                    *self = if there == left { Self::DataEnd } else { Self::Data(left - there) };
                    return Ok(Piece::Data(input.split_to(there as usize).freeze()));
                }
                Self::DataEnd => match input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(Piece::Partial),
                    _ => return Err(Malformed),
                },
                Self::Trailers => return trailers(input),
            }
        }
    }
}

/// A chunk's size in hexadecimal, and whatever follows a semicolon or a blank up to CR LF.
fn size_line(input: &mut BytesMut) -> Result<Option<u64>, Malformed> {
    let Some(line_end) = memchr::memchr(b'\n', input) else {
        return if input.len() > LONGEST_LINE { Err(Malformed) } else { Ok(None) };
    };
    let line = input[..line_end].strip_suffix(b"\r").filter(|line| line.len() <= LONGEST_LINE).ok_or(Malformed)?;
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let is_well_followed = matches!(line.get(digits), None | Some(b';' | b' ' | b'\t'));
    if !is_well_followed || !(1..=16).contains(&digits) || line.contains(&b'\r') {
        return Err(Malformed);
    }
    let digits = std::str::from_utf8(&line[..digits]).map_err(|_| Malformed)?;
    let size = u64::from_str_radix(digits, 16).map_err(|_| Malformed)?;
    input.advance(line_end + 1);
    Ok(Some(size))
}

fn trailers(input: &mut BytesMut) -> Result<Piece, Malformed> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Piece::End(None));
    }
    if input.starts_with(b"\n") {
        return Err(Malformed);
    }
    let end = match head::end(input, 0) {
        Some((end, true)) => end,
        Some((_, false)) => return Err(Malformed),
        None if input.len() > MOST_TRAILERS => return Err(Malformed),
        None => return Ok(Piece::Partial),
    };
    let lines = input.split_to(end).freeze();
    let mut parsed = [httparse::EMPTY_HEADER; 16];
    match httparse::parse_headers(&lines, &mut parsed) {
        Ok(httparse::Status::Complete((read, parsed))) if read == lines.len() => {
            let found = Found::new(&lines, parsed, |_, _| false).ok_or(Malformed)?;
            Ok(Piece::End(Some(Lines::new(lines.clone(), found).into_map())))
        }
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data, the trailers, and what is left behind them.
    type Whole = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Reads packets to the end. `None`: it does not come.
    fn read(packets: &[&[u8]]) -> Result<Whole, Option<Malformed>> {
        let (mut chunked, mut input, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
        for (number, packet) in packets.iter().enumerate() {
            input.extend_from_slice(packet);
            loop {
                match chunked.read(&mut input).map_err(Some)? {
                    Piece::Partial => break,
                    Piece::Data(piece) => {
                        assert!(!piece.is_empty());
                        data.extend_from_slice(&piece);
                    }
                    Piece::End(trailers) => {
                        return Ok((data, trailers, [&input[..], &packets[number + 1..].concat()].concat()));
                    }
                }
            }
        }
        Err(None)
    }

    #[test]
    fn bodies_are_read_as_they_are_meant() {
        let (data, trailers, rest) = read(&[b"4;a=\"b\"\r\nWiki\r\n5 \r\npedia\r\n0\r\n\r\nHTTP/1.1"]).unwrap();
        assert_eq!((&data[..], trailers, &rest[..]), (&b"Wikipedia"[..], None, &b"HTTP/1.1"[..]));
        let (_, trailers, rest) = read(&[b"00A\r\n0123456789\r\n000\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n"]).unwrap();
        assert_eq!(trailers.unwrap().get_all("x-sum").iter().count(), 2);
        assert!(rest.is_empty());
    }

    #[test]
    fn what_two_might_read_differently_is_refused() {
        let long = [&b"1;"[..], &[b'x'; LONGEST_LINE], b"\r\nx\r\n0\r\n\r\n"].concat();
        let endless = [&b"0\r\nX: "[..], &[b'x'; MOST_TRAILERS + 1]].concat();
        for bytes in [
            &b"\r\n"[..],
            b"0x4\r\nWiki\r\n",
            b"-1\r\n",
            b"+4\r\nWiki\r\n",
            b"4\nWiki\r\n",
            b"4\r\r\nWiki\r\n",
            b"4\r\nWikipedia\r\n",
            b"4\r\nWiki\n0\r\n\r\n",
            b"4_0\r\n",
            b"10000000000000000\r\n",
            b"0\r\n\n",
            b"0\r\n\n\r\n",
            b"0\r\nA: b\n\nC: d\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
            &long,
            &endless,
        ] {
            assert_eq!(
                read(&[bytes]),
                Err(Some(Malformed)),
                "{:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
            );
        }
    }

    proptest! {
        /// As it was written, wherever the packets end; and not before its end.
        #[test]
        fn what_is_written_is_read(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
            trailers in any::<bool>(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(if trailers { b"0\r\nX-Sum: 1\r\n\r\n" } else { b"0\r\n\r\n" });
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let packets: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let (data, fields, rest) = read(&packets).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(fields.is_some(), trailers);
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read(&[&bytes[..bytes.len() - 1]]), Err(None));
        }
    }
}
