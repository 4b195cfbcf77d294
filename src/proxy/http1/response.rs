//! Heads of answers: read from an instance, written to a client.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use hyper::StatusCode;
use hyper::ext::ReasonPhrase;
use hyper::header::{CONTENT_LENGTH, DATE, HeaderValue};

use super::super::fields::{Fields, Found, Lines, same, write_field};
use super::super::headers::length_of;
use super::super::message::AnswerHead;
use super::head::{self, MOST_FIELDS};

/// How the end of an answer's body is told (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many bytes; none when there is no body.
    Exact(u64),
    /// By the chunked coding.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Without its body, and without what only tells its end or the connection's.
    pub head: Box<AnswerHead>,
    /// Of its body.
    pub length: Length,
    /// The connection may be used again after it.
    pub keeps: bool,
}

/// Not to be read like this; what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Takes the head of an answer off the bytes, of which `seen` were looked at before; `None`: more are needed.
/// `to_head`: the request was a HEAD, so the body is described and not sent.
pub fn read(input: &mut BytesMut, seen: usize, to_head: bool) -> Result<Option<Head>, Malformed> {
    // One that comes in pieces is parsed twice: at first, and when its end is there.
    if seen > 0 && head::end(input, seen).is_none() {
        return Ok(None);
    }
    let malformed = Malformed("its head is malformed");
    let mut lines = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let size = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut lines) {
        Ok(httparse::Status::Complete(size)) if !input.starts_with(b"\r") && !input.starts_with(b"\n") => size,
        Ok(httparse::Status::Partial) if seen == 0 && head::end(input, 0).is_none() => return Ok(None),
        _ => return Err(malformed),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed("its status is none"))?;
    let mut said = Said::default();
    let found = Found::new(input, parsed.headers, |name, value| said.hear(name, value));
    let found = found.ok_or(Malformed("a field of its head is too long"))?;
    let is_http11 = parsed.version == Some(1);
    let length = said.length(status, is_http11, to_head)?;
    let is_coded = said.codings > 0;
    let keeps = is_http11 && length != Length::UntilClose && !said.closes;
    let reason = parsed.reason.filter(|reason| status.canonical_reason() != Some(*reason));
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    let mut fields = Fields::Lines(Lines::new(input.split_to(size).freeze(), found));
    if is_coded {
        // A length beside it is not to be believed.
        fields.remove(&CONTENT_LENGTH);
    }
    Ok(Some(Head { head: Box::new(AnswerHead { status, reason, fields }), length, keeps }))
}

/// What a head says of its message's end and of the connection, noted as its fields go by.
#[derive(Default)]
struct Said<'a> {
    closes: bool,
    codings: usize,
    is_chunked: bool,
    length: Option<&'a [u8]>,
    has_other_length: bool,
}

impl<'a> Said<'a> {
    /// Notes a field; whether it is meant for nobody else.
    fn hear(&mut self, name: &[u8], value: &'a [u8]) -> bool {
        if same(name, "connection") {
            let mut tokens = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
            self.closes |= tokens.any(|token| token.eq_ignore_ascii_case(b"close"));
            // Any other names fields that are not to be passed on.
            value.eq_ignore_ascii_case(b"close") || value.eq_ignore_ascii_case(b"keep-alive")
        } else if same(name, "transfer-encoding") {
            self.codings += 1;
            self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
            true
        } else if same(name, "content-length") {
            let first = *self.length.get_or_insert(value);
            self.has_other_length |= first != value;
            !std::ptr::eq(first, value)
        } else {
            false
        }
    }

    fn length(&self, status: StatusCode, is_http11: bool, to_head: bool) -> Result<Length, Malformed> {
        let told = self.told()?;
        if to_head || status.is_informational() || matches!(status.as_u16(), 204 | 304) {
            return Ok(Length::Exact(0));
        }
        if self.codings > 0 {
            return match is_http11 && self.codings == 1 && self.is_chunked {
                true => Ok(Length::Chunked),
                false => Err(Malformed("its transfer coding is not chunked alone")),
            };
        }
        Ok(told.map_or(Length::UntilClose, Length::Exact))
    }

    /// Its length, where no coding is to be believed instead. Also where there is no body: it is passed on.
    fn told(&self) -> Result<Option<u64>, Malformed> {
        let Some(digits) = self.length.filter(|_| self.codings == 0) else { return Ok(None) };
        if self.has_other_length {
            return Err(Malformed("it has several lengths"));
        }
        length_of(digits).map(Some).ok_or(Malformed("its length is no number"))
    }
}

/// How a body goes to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    None,
    /// As it is; its length is told.
    Plain,
    /// In chunks.
    Chunked,
}

/// Writes the head of an answer whose body has this length, if that is known.
pub fn write(head: &mut AnswerHead, length: Option<u64>, to_head: bool, into: &mut Vec<u8>) -> Coding {
    let AnswerHead { status, reason, fields } = head;
    let status = *status;
    into.extend_from_slice(b"HTTP/1.1 ");
    into.extend_from_slice(status.as_str().as_bytes());
    into.push(b' ');
    let usual = || status.canonical_reason().unwrap_or_default().as_bytes();
    into.extend_from_slice(reason.as_ref().map_or_else(usual, ReasonPhrase::as_bytes));
    into.extend_from_slice(b"\r\n");
    let has_none = status.is_informational() || status == StatusCode::NO_CONTENT;
    if has_none {
        fields.remove(&CONTENT_LENGTH);
    }
    fields.write(into);
    if !fields.contains(&DATE) {
        write_date(into);
    }
    let coding = match length {
        _ if has_none || status == StatusCode::NOT_MODIFIED => Coding::None,
        _ if fields.contains(&CONTENT_LENGTH) => {
            if to_head {
                Coding::None
            } else {
                Coding::Plain
            }
        }
        // What would have been sent is described if it is known.
        Some(0) | None if to_head => Coding::None,
        Some(length) => {
            write_field(b"content-length", length.to_string().as_bytes(), into);
            if to_head { Coding::None } else { Coding::Plain }
        }
        None => {
            write_field(b"transfer-encoding", b"chunked", into);
            Coding::Chunked
        }
    };
    into.extend_from_slice(b"\r\n");
    coding
}

/// `Date` (RFC 9110 §6.6.1), which is made once a second.
fn write_date(into: &mut Vec<u8>) {
    thread_local! {
        static NOW: RefCell<(Duration, HeaderValue)> = const { RefCell::new((Duration::MAX, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    NOW.with_borrow_mut(|(second, text)| {
        if second.as_secs() != since.as_secs() {
            *second = since;
            if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(now)) {
                *text = date;
            }
        }
        write_field(b"date", text.as_bytes(), into);
    });
}

#[cfg(test)]
mod tests {
    use hyper::Response;

    use super::super::super::message::Reply;
    use super::*;

    fn head(text: &str, to_head: bool) -> Result<(Head, Vec<u8>), Malformed> {
        let mut input = BytesMut::from(format!("HTTP/1.{text}").as_str());
        read(&mut input, 0, to_head).map(|head| (head.unwrap(), input.to_vec()))
    }

    #[test]
    fn the_length_of_a_body_is_what_the_head_says() {
        use Length::{Chunked, Exact, UntilClose};
        for (text, to_head, length, keeps) in [
            ("1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, Exact(5), true),
            ("1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello", false, Exact(5), true),
            ("1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Exact(0), true),
            ("1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 5\r\n\r\n", false, Chunked, true),
            ("1 200 OK\r\n\r\nhello", false, UntilClose, false),
            ("1 204 No Content\r\n\r\n", false, Exact(0), true),
            ("1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Exact(0), true),
            ("1 103 Early Hints\r\nLink: </a.css>\r\n\r\n", false, Exact(0), true),
            ("1 200 OK\r\nContent-Length: 0\r\nConnection: foo, Close\r\n\r\n", false, Exact(0), false),
            ("0 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, Exact(5), false),
            ("1 200\r\nContent-Length: 0\r\n\r\n", false, Exact(0), true),
            ("1 200 OK\nContent-Length: 0\n\n", false, Exact(0), true),
        ] {
            let (head, _) = head(text, to_head).unwrap_or_else(|why| panic!("{text:?} {why:?}"));
            assert_eq!((head.length, head.keeps), (length, keeps), "{text:?}");
            assert!(length != Chunked || !head.head.fields.contains(&CONTENT_LENGTH));
        }
    }

    #[test]
    fn a_body_of_no_certain_length_is_refused() {
        for text in [
            "1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            "1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "1 200 OK\r\nContent-Length:\r\n\r\n",
            "1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1 200 OK\r\nA: b\r\n folded\r\n\r\n",
            "1 2000 OK\r\n\r\n",
            "1 99 OK\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(head(text, false).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_answer_is_written_with_what_a_client_needs_to_find_its_end() {
        let written = |response: Response<()>, length, to_head| {
            let mut bytes = Vec::new();
            let coding = write(&mut Reply::from(response).head, length, to_head, &mut bytes);
            (coding, String::from_utf8(bytes).unwrap())
        };
        let plain = |status: u16| Response::builder().status(status).header("date", "now").body(()).unwrap();
        let told =
            |length: &str| Response::builder().header("date", "now").header("content-length", length).body(()).unwrap();
        for (response, length, to_head, coding, expected) in [
            (plain(200), Some(5), false, Coding::Plain, "200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\n"),
            (plain(200), Some(0), false, Coding::Plain, "200 OK\r\ndate: now\r\ncontent-length: 0\r\n\r\n"),
            (plain(200), None, false, Coding::Chunked, "200 OK\r\ndate: now\r\ntransfer-encoding: chunked\r\n\r\n"),
            (told("5"), Some(5), false, Coding::Plain, "200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\n"),
            (told("5"), Some(0), true, Coding::None, "200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\n"),
            (plain(200), Some(5), true, Coding::None, "200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\n"),
            (plain(200), None, true, Coding::None, "200 OK\r\ndate: now\r\n\r\n"),
            (plain(204), Some(0), false, Coding::None, "204 No Content\r\ndate: now\r\n\r\n"),
            (plain(304), Some(0), false, Coding::None, "304 Not Modified\r\ndate: now\r\n\r\n"),
            (plain(599), Some(0), false, Coding::Plain, "599 \r\ndate: now\r\ncontent-length: 0\r\n\r\n"),
        ] {
            assert_eq!(written(response, length, to_head), (coding, format!("HTTP/1.1 {expected}")));
        }
        let (_, undated) = written(Response::new(()), Some(0), false);
        assert!(undated.contains("date: ") && undated.contains(" GMT\r\n"), "{undated}");
    }

    #[test]
    fn a_reason_of_its_own_goes_through() {
        let (mut head, _) = head("1 404 Gone Fishing\r\nContent-Length: 0\r\n\r\n", false).unwrap();
        let mut bytes = Vec::new();
        write(&mut head.head, Some(0), false, &mut bytes);
        assert!(bytes.starts_with(b"HTTP/1.1 404 Gone Fishing\r\n"));
    }
}
