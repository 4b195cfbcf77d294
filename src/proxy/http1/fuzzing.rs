//! What the fuzz target of the codec calls: bytes that come in packets on one side, plain data on the other.

use bytes::BytesMut;

use super::super::fields::Fields;
use super::chunked::{Chunked, Piece};
use super::request::{self, Arrived};
use super::response::{self, Length};

/// A header, its name in lower case.
pub type Line = (String, Vec<u8>);

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// No whole head.
    Partial,
    /// A plain request.
    Plain {
        /// Its method.
        method: String,
        /// As it was sent.
        target: String,
        /// In their order.
        lines: Vec<Line>,
        /// As an instance is sent it.
        written: Vec<u8>,
        /// What follows it in the packets that had come by then.
        rest: Vec<u8>,
    },
    /// Something else; what was put back.
    Unusual(Vec<u8>),
    /// Nothing that anybody takes; what was put back.
    Refused(Vec<u8>),
}

/// Reads a request, packet by packet.
pub fn ask(packets: &[&[u8]]) -> Asked {
    let (mut input, mut seen) = (BytesMut::new(), 0);
    for packet in packets {
        input.extend_from_slice(packet);
        match request::read(&mut input, seen) {
            Arrived::Partial => seen = input.len(),
            Arrived::Unusual => return Asked::Unusual(input.to_vec()),
            Arrived::Refused(_) => return Asked::Refused(input.to_vec()),
            Arrived::Plain { request, .. } => {
                let mut written = Vec::new();
                request::write(&request, &mut written);
                return Asked::Plain {
                    method: request.method.to_string(),
                    target: request.uri.to_string(),
                    lines: lines(&request.fields),
                    written,
                    rest: input.to_vec(),
                };
            }
        }
    }
    Asked::Partial
}

/// The head of an answer: its status, its lines, and the length of its body, `Some(None)` when only its end tells.
pub type Answered = (u16, Vec<Line>, Option<Option<u64>>);

/// Reads the head of an answer, packet by packet; `Ok(None)` when it is not whole, an error when it is malformed.
pub fn answer(packets: &[&[u8]], to_head: bool) -> Result<Option<Answered>, &'static str> {
    let (mut input, mut seen) = (BytesMut::new(), 0);
    for packet in packets {
        input.extend_from_slice(packet);
        match response::read(&mut input, seen, to_head).map_err(|why| why.0)? {
            None => seen = input.len(),
            Some(head) => {
                let length = match head.length {
                    Length::Exact(length) => Some(Some(length)),
                    Length::Chunked => Some(None),
                    Length::UntilClose => None,
                };
                return Ok(Some((head.head.status.as_u16(), lines(&head.head.fields), length)));
            }
        }
    }
    Ok(None)
}

/// A chunked body is malformed.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// The data of a chunked body, and what follows it in the packets that had come by then.
pub type Body = (Vec<u8>, Vec<u8>);

/// Reads a chunked body, packet by packet; `Ok(None)` when it is not whole.
pub fn chunks(packets: &[&[u8]]) -> Result<Option<Body>, Malformed> {
    let (mut chunked, mut input, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
    for packet in packets {
        input.extend_from_slice(packet);
        loop {
            match chunked.read(&mut input).map_err(|_| Malformed)? {
                Piece::Partial => break,
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::End(_) => return Ok(Some((data, input.to_vec()))),
            }
        }
    }
    Ok(None)
}

fn lines(fields: &Fields) -> Vec<Line> {
    fields.iter().map(|(name, value)| (String::from_utf8_lossy(name).to_lowercase(), value.to_vec())).collect()
}
