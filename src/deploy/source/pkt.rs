//! pkt-line, the framing of git's wire protocol (gitprotocol-common(5)): four hexadecimal digits of length, then
//! the payload; lengths below four are marks.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use super::limits::{Limits, Trouble};

/// Ends a request or a list.
pub(super) const FLUSH: &[u8] = b"0000";
/// Parts the head of a version 2 request from its arguments.
pub(super) const DELIMITER: &[u8] = b"0001";
/// The longest packet, its length digits included.
const LONGEST: usize = 65_520;

/// A server's answer, still arriving.
pub(super) type Reply = Box<dyn AsyncBufRead + Send + Unpin>;

/// One packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pkt {
    Data(Vec<u8>),
    Flush,
    /// A delimiter or response end: marks that carry nothing we need.
    Mark,
}

/// Appends one line as a packet.
pub(super) fn push_line(out: &mut Vec<u8>, line: &str) {
    out.extend_from_slice(format!("{:04x}{line}\n", line.len() + 5).as_bytes());
}

/// A line without its line end.
pub(super) fn line(data: &[u8]) -> &[u8] {
    data.strip_suffix(b"\n").unwrap_or(data)
}

/// Reads packets under the fetch's limits.
pub(super) struct PktReader {
    reply: Reply,
    limits: Limits,
    host: String,
}

impl PktReader {
    pub fn new(reply: Reply, limits: Limits, host: String) -> Self {
        Self { reply, limits, host }
    }

    /// The next packet. An answer that ends before its last packet is an error: half a pack is never used.
    pub async fn read(&mut self) -> Result<Pkt, Trouble> {
        let mut digits = [0; 4];
        self.fill(&mut digits).await?;
        let length = std::str::from_utf8(&digits)
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .filter(|&length| length <= LONGEST)
            .ok_or_else(|| Trouble::Failed(format!("{} does not speak the git protocol", self.host)))?;
        match length {
            0 => Ok(Pkt::Flush),
            1..=3 => Ok(Pkt::Mark),
            _ => {
                let mut data = vec![0; length - 4];
                self.fill(&mut data).await?;
                Ok(Pkt::Data(data))
            }
        }
    }

    async fn fill(&mut self, mut wanted: &mut [u8]) -> Result<(), Trouble> {
        while !wanted.is_empty() {
            let read = self.limits.io(&self.host, self.reply.fill_buf()).await?;
            let there = read.map_err(|error| {
                Trouble::Closed(format!("the connection to {} broke: {}", self.host, root_cause(&error)))
            })?;
            if there.is_empty() {
                return Err(Trouble::Closed(format!(
                    "{} closed the connection in the middle of its answer",
                    self.host
                )));
            }
            let taken = there.len().min(wanted.len());
            let (now, later) = wanted.split_at_mut(taken);
            now.copy_from_slice(&there[..taken]);
            self.reply.consume(taken);
            wanted = later;
        }
        Ok(())
    }
}

/// The innermost error's text: what happened, without the layers that passed it on.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    super::limits::one_line(innermost.to_string().as_bytes())
}
