//! As much of the WebSocket protocol (RFC 6455) as it takes to say goodbye in it: where one side's frames begin and end,
//! and the frame that closes.

use hyper::header::{HeaderName, UPGRADE};

use super::fields::Fields;

/// In the answer that agrees to it (RFC 6455 §4.2.2).
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
/// Of the frame that closes (RFC 6455 §5.5.1).
const CLOSE: u8 = 0x8;
/// The longest head of a frame, without its mask (RFC 6455 §5.2).
const LONGEST_HEAD: usize = 10;
/// "Going Away" (RFC 6455 §7.4.1): what a browser says to a server whose page is left.
const GOING_AWAY: u16 = 1001;
/// "Service Restart" (IANA's WebSocket Close Code Number Registry): a client may come back at once.
const SERVICE_RESTART: u16 = 1012;

/// Whether this answer, a 101, begins one.
pub fn is_agreed(answer: &Fields) -> bool {
    let protocol = answer.get(&UPGRADE).map(|value| value.eq_ignore_ascii_case(b"websocket"));
    protocol == Some(true) && answer.contains(&ACCEPT)
}

/// The frame that asks a client to come back.
pub fn close_for_client() -> Vec<u8> {
    let why = b"the server is being replaced";
    let mut frame = vec![0x80 | CLOSE, 2 + why.len() as u8];
    frame.extend_from_slice(&SERVICE_RESTART.to_be_bytes());
    frame.extend_from_slice(why);
    frame
}

/// The frame that tells a server that its client leaves, masked as a client's must be (RFC 6455 §5.3).
pub fn close_for_server(mask: [u8; 4]) -> Vec<u8> {
    let code = GOING_AWAY.to_be_bytes();
    let mut frame = vec![0x80 | CLOSE, 0x80 | 2];
    frame.extend_from_slice(&mask);
    frame.extend([code[0] ^ mask[0], code[1] ^ mask[1]]);
    frame
}

/// The frames of one side, followed byte by byte.
#[derive(Debug, Default, Clone, Copy)]
pub struct Frames {
    head: [u8; LONGEST_HEAD],
    /// How much of the head is there.
    seen: usize,
    /// What is to come of the frame, its mask included.
    left: u64,
    /// The last one has begun.
    has_closed: bool,
}

impl Frames {
    /// These bytes come next.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= skipped as u64;
            bytes = &bytes[skipped..];
            if let (0, Some((&next, rest))) = (self.left, bytes.split_first()) {
                bytes = rest;
                self.head[self.seen] = next;
                self.seen += 1;
                if let Some(left) = rest_of_frame(&self.head[..self.seen]) {
                    self.has_closed |= self.head[0] & 0x0f == CLOSE;
                    (self.seen, self.left) = (0, left);
                }
            }
        }
    }

    /// Whether a frame that closes may come next. It may come between the frames of one message.
    pub fn may_close(&self) -> bool {
        self.seen == 0 && self.left == 0 && !self.has_closed
    }
}

/// How many bytes follow this head; `None` if it is not whole.
fn rest_of_frame(head: &[u8]) -> Option<u64> {
    let &[_, second, ref length @ ..] = head else { return None };
    let payload = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(length.try_into().ok()?)),
        127 => u64::from_be_bytes(length.try_into().ok()?),
        short => u64::from(short),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    Some(payload.saturating_add(mask))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a side would write it.
    fn frame(opcode: u8, payload: usize, is_masked: bool) -> Vec<u8> {
        let mask = if is_masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match payload {
            0..126 => bytes.push(mask | payload as u8),
            126..0x1_0000 => {
                bytes.push(mask | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        // What looks like the head of a frame that closes, if it is taken for one.
        bytes.resize(bytes.len() + payload + if is_masked { 4 } else { 0 }, 0x80 | CLOSE);
        bytes
    }

    proptest! {
        /// Wherever the packets end, and however long the frames are.
        #[test]
        fn a_frame_may_follow_where_one_has_ended_and_nowhere_else(
            frames in proptest::collection::vec((0u8..3, prop_oneof![0usize..300, 65_530usize..65_540]), 1..5),
            is_masked in any::<bool>(),
            packet in 1usize..5_000,
        ) {
            let frames: Vec<Vec<u8>> = frames.into_iter().map(|(kind, length)| frame(kind, length, is_masked)).collect();
            let mut ends = vec![0];
            ends.extend(frames.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) }));
            let (bytes, mut followed, mut at) = (frames.concat(), Frames::default(), 0);
            for packet in bytes.chunks(packet) {
                prop_assert_eq!(followed.may_close(), ends.contains(&at), "at {} of {:?}", at, ends);
                followed.follow(packet);
                at += packet.len();
            }
            prop_assert!(followed.may_close());
            followed.follow(&frame(CLOSE, 2, is_masked));
            prop_assert!(!followed.may_close(), "nothing may follow the one that closes");
        }
    }

    #[test]
    fn one_that_never_ends_is_no_harm() {
        let mut frames = Frames::default();
        frames.follow(&[[0x82, 0xff].as_slice(), &[0xff; 300]].concat());
        assert!(!frames.may_close());
    }

    #[test]
    fn what_closes_is_a_frame_that_closes() {
        for close in [close_for_client(), close_for_server([1, 2, 3, 4])] {
            let mut frames = Frames::default();
            frames.follow(&close);
            assert!(frames.seen == 0 && frames.left == 0 && frames.has_closed, "{close:?}");
        }
        assert_eq!(&close_for_server([1, 2, 3, 4])[6..], [0x03 ^ 1, 0xe9 ^ 2]);
    }
}
