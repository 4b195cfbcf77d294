//! Heads of requests: read from a client, written to an instance.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::BytesMut;
use hyper::{Method, Uri, Version};

use super::super::answer::Own;
use super::super::fields::{Fields, Found, Lines, same};
use super::super::message::RequestHead;
use super::head::{self, MOST_FIELDS};

/// Characters that a target may not have, such as `<` and `"` (RFC 9112 §3.2).
const NO_TARGET: Own = Own::BadRequest("the request's target is malformed");

/// What a client has sent so far.
#[derive(Debug)]
pub enum Arrived {
    /// Not yet a whole head.
    Partial,
    /// A plain request, taken off the bytes.
    Plain {
        /// Its head, without `Connection`.
        request: Box<RequestHead>,
        /// The connection ends with its answer (RFC 9112 §9.6).
        is_last: bool,
    },
    /// Something else, malformed or not: the bytes are as they were.
    Unusual,
    /// Nothing that anybody takes for a request: the bytes are as they were.
    Refused(Own),
}

/// Reads the head of a request, `seen` bytes of which were looked at before without finding its end.
pub fn read(input: &mut BytesMut, seen: usize) -> Arrived {
    // Nearly all heads come whole. One that comes in pieces is parsed once more, when its end is there.
    if seen > 0 && head::end(input, seen).is_none() {
        return Arrived::Partial;
    }
    match plain(input) {
        Parsed::Partial if seen == 0 && head::end(input, 0).is_none() => Arrived::Partial,
        Parsed::Partial | Parsed::Unusual => Arrived::Unusual,
        Parsed::Refused(why) => Arrived::Refused(why),
        Parsed::Plain { length, method, target, found, is_last } => {
            let head = input.split_to(length).freeze();
            match Uri::from_maybe_shared(head.slice(target)) {
                Ok(uri) => {
                    let fields = Fields::Lines(Lines::new(head, found));
                    let request = RequestHead { method, uri, version: Version::HTTP_11, fields };
                    Arrived::Plain { request: Box::new(request), is_last }
                }
                Err(_) => {
                    let rest = std::mem::replace(input, BytesMut::from(head));
                    input.extend_from_slice(&rest);
                    Arrived::Refused(NO_TARGET)
                }
            }
        }
    }
}

/// What stands at the beginning of some bytes.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
enum Parsed {
    Partial,
    Plain {
        length: usize,
        method: Method,
        target: Range<usize>,
        found: Found,
        is_last: bool,
    },
    /// Not plain: perhaps malformed, of another version, with a target that is not a path, with a body, or with a field that asks
    /// for something of the connection.
    Unusual,
    /// hyper reads with the same parser, and would refuse it as well.
    Refused(Own),
}

fn plain(bytes: &[u8]) -> Parsed {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => as_plain(&parsed, length, bytes).unwrap_or_else(|| {
            // It would be refused by hyper too, without a word to anybody.
            let is_target = parsed.path.is_some_and(|target| target.parse::<Uri>().is_ok());
            if is_target { Parsed::Unusual } else { Parsed::Refused(NO_TARGET) }
        }),
        Ok(httparse::Status::Partial) => Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => Parsed::Refused(Own::HeadTooLarge),
        Err(_) => Parsed::Refused(Own::BadRequest("the request's head is malformed")),
    }
}

fn as_plain(parsed: &httparse::Request<'_, '_>, length: usize, bytes: &[u8]) -> Option<Parsed> {
    let method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    let target = parsed.path?;
    // Lines without CR, and empty ones before the request, are for hyper to judge.
    let is_regular = bytes[..length].ends_with(b"\r\n\r\n") && !bytes.starts_with(b"\r") && !bytes.starts_with(b"\n");
    if !is_regular || parsed.version != Some(1) || method == Method::CONNECT || !target.starts_with('/') {
        return None;
    }
    let (mut is_special, mut is_last) = (false, false);
    let found = Found::new(bytes, parsed.headers, |name, value| {
        is_special |= is_request_for_more(name);
        let is_of_connection = same(name, "connection");
        if is_of_connection {
            let closes = value.eq_ignore_ascii_case(b"close");
            is_last |= closes;
            is_special |= !closes && !value.eq_ignore_ascii_case(b"keep-alive");
        }
        is_of_connection
    })?;
    let start = target.as_ptr().addr().checked_sub(bytes.as_ptr().addr())?;
    let target = start..start + target.len();
    (!is_special).then_some(Parsed::Plain { length, method, target, found, is_last })
}

/// Method, target and version, as far as a head can be told to begin with them.
pub fn first_line(bytes: &[u8]) -> Option<(&[u8], &[u8], Version)> {
    let line = bytes.split(|&byte| byte == b'\n').next()?;
    let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|&byte| byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let version = match (words.next()?, words.next()) {
        (b"HTTP/1.1", None) => Version::HTTP_11,
        (b"HTTP/1.0", None) => Version::HTTP_10,
        _ => return None,
    };
    (!method.is_empty() && !target.is_empty()).then_some((method, target, version))
}

/// Whether a field with this name tells of a body, or asks for something of the connection.
fn is_request_for_more(name: &[u8]) -> bool {
    let wanted = match name.len() {
        2 => "te",
        6 => "expect",
        7 => return same(name, "upgrade") || same(name, "trailer"),
        14 => "content-length",
        17 => "transfer-encoding",
        _ => return false,
    };
    same(name, wanted)
}

/// Writes the head of a request that has no body.
pub fn write(request: &RequestHead, into: &mut Vec<u8>) {
    into.reserve(head::ROOM);
    into.extend_from_slice(request.method.as_str().as_bytes());
    into.push(b' ');
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    into.extend_from_slice(target.as_bytes());
    into.extend_from_slice(b" HTTP/1.1\r\n");
    request.fields.write(into);
    into.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(text: &str) -> (Arrived, Vec<u8>) {
        let mut input = BytesMut::from(text);
        let arrived = read(&mut input, 0);
        (arrived, input.to_vec())
    }

    fn said(request: &RequestHead) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        request.fields.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    #[test]
    fn a_plain_request_is_taken_off_and_what_follows_stays() {
        let text =
            "GET /a%20b?c=d HTTP/1.1\r\nHost: shop.test\r\nconnection: Keep-Alive\r\nX-Many: 1\r\nx-many: 2\r\n\r\n";
        let (Arrived::Plain { request, is_last: false }, rest) = arrived(&format!("{text}GET /next")) else {
            panic!("it is plain")
        };
        assert_eq!((&request.method, request.uri.to_string()), (&Method::GET, "/a%20b?c=d".to_owned()));
        let lines = [("Host", "shop.test"), ("X-Many", "1"), ("x-many", "2")];
        assert_eq!(said(&request), lines.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(rest, b"GET /next");
        let mut written = Vec::new();
        write(&request, &mut written);
        let (Arrived::Plain { request: again, .. }, _) = arrived(std::str::from_utf8(&written).unwrap()) else {
            panic!("{written:?}")
        };
        assert_eq!((&again.uri, said(&again)), (&request.uri, said(&request)));
        let (last, _) = arrived("GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n");
        assert!(matches!(last, Arrived::Plain { is_last: true, .. }), "{last:?}");
    }

    #[test]
    fn what_is_not_plain_is_left_as_it_came() {
        for text in [
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-A\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-A\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let text = format!("{text}rest");
            let (arrived, left) = arrived(&text);
            assert!(matches!(arrived, Arrived::Unusual), "{text:?} {arrived:?}");
            assert_eq!(left, text.as_bytes());
        }
        assert!(matches!(arrived("GET / HTTP/1.1\r\nHost: a\r\n").0, Arrived::Partial));
    }

    #[test]
    fn what_nobody_takes_is_refused_at_once() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\ntransfer-encoding : chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nno field\r\n",
            "nonsense\r\n\r\n",
            "\x16\x03\x01",
        ] {
            let (arrived, left) = arrived(text);
            assert!(matches!(arrived, Arrived::Refused(Own::BadRequest(_))), "{text:?} {arrived:?}");
            assert_eq!(left, text.as_bytes());
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS + 1));
        assert!(matches!(arrived(&many).0, Arrived::Refused(Own::HeadTooLarge)));
    }

    #[test]
    fn the_first_line_is_told_of_what_is_refused() {
        let shown = |(method, target, version)| {
            format!("{} {} {version:?}", String::from_utf8_lossy(method), String::from_utf8_lossy(target))
        };
        for (text, expected) in [
            ("GET /a?b HTTP/1.1\r\nno field", Some("GET /a?b HTTP/1.1")),
            ("GET /a HTTP/1.0\n", Some("GET /a HTTP/1.0")),
            ("GET /a HTTP/1.1", Some("GET /a HTTP/1.1")),
            ("GET  /a HTTP/1.1\r\n", None),
            ("GET /a b HTTP/1.1\r\n", None),
            ("GET /a HTTP/3\r\n", None),
            ("\x16\x03\x01", None),
            ("", None),
        ] {
            assert_eq!(first_line(text.as_bytes()).map(shown).as_deref(), expected, "{text:?}");
        }
    }
}
