//! How agent and proxy talk: JSON lines over a Unix socket, each at most 16 MiB.
//!
//! The agent sends [`Order`]s, the proxy answers with [`Report`]s. A connection starts with [`Report::Hello`].
//! Several agents may connect one after another (an upgrade); orders of the newest connection count.

use std::collections::BTreeMap;
use std::io;
use std::ops::AddAssign;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::table::{DrainLimits, Table};
use crate::config::Challenge;
use crate::histogram::Histogram;
use crate::model::{AppName, InstanceId, ServiceName};

/// The longest line.
pub const LINE_LIMIT: usize = 16 << 20;
/// A message that is worth a thread of its own.
const LARGE: usize = 16 << 10;
/// The socket's name in the data directory.
pub const SOCKET_NAME: &str = "proxy.sock";
/// The file that the proxy of a data directory has locked; its process id is in it.
pub(super) const LOCK_NAME: &str = "proxy.lock";

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Replace the table. Answered by [`Report::Applied`] once no request can be given to what left it.
    Apply(Table),
    /// Report when this instance, which left the table, has finished; cut what is left at the limits. Without any time it
    /// is lost: what it has not begun to answer goes to another one, where that does no harm.
    Drain {
        /// Which.
        instance: InstanceId,
        /// Its budgets.
        limits: DrainLimits,
    },
    /// Answered by [`Report::Counts`].
    Count,
    /// From a new proxy: hand over the listening sockets. Answered by [`Report::HandOver`], with the sockets attached,
    /// or [`Report::HandOverRefused`]. Until [`Order::TakeOver`] no table is taken.
    HandOver,
    /// From a new proxy that has what was handed over and is ready: stop to accept, finish what is under way, end.
    /// Answered by [`Report::HandedOver`]. From then on the new proxy gives the orders on this connection.
    TakeOver {
        /// Where it listens: connections that wait elsewhere are still to be accepted.
        listeners: Vec<String>,
        /// How long requests and streams may go on.
        limits: DrainLimits,
    },
    /// Read `[proxy]` of the configuration again, and the certificates.
    Reload,
    /// Answer certificate authorities so, and no longer as before. Answered by [`Report::Answering`]. Only for a proxy whose
    /// [`Report::Hello`] says that it knows this order.
    Answer {
        /// Comes back in the report.
        number: u64,
        /// All of them.
        answers: Vec<ChallengeAnswer>,
    },
    /// Finish what is under way (at most this long) and end.
    Shutdown {
        /// Milliseconds.
        grace_ms: u64,
    },
}

/// What proves to a certificate authority that a host is served here. No secret: whoever asks is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeAnswer {
    /// Asked for how.
    pub challenge: Challenge,
    /// In lower case.
    pub host: String,
    /// What is asked for.
    pub token: String,
    /// What is to be answered (RFC 8555, section 8.1).
    pub key_authorization: String,
}

/// From the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// First line of every connection.
    Hello {
        /// The binary's version.
        version: String,
        /// Process id.
        pid: u32,
        /// Random per process: counts start from zero with each. A process that took over goes on with that of the
        /// one before it, whose counts and drains it answers for.
        boot: String,
        /// Of the table in force.
        generation: u64,
        /// Addresses it listens on.
        listeners: Vec<String>,
        /// Whether a service manager gave it these, so that starting it anew is that one's business.
        #[serde(default)]
        activated: bool,
        /// Whether it knows [`Order::Answer`].
        #[serde(default)]
        answers: bool,
    },
    /// Attached: the control socket, the lock of the data directory, then the listeners.
    HandOver {
        /// In force.
        table: Table,
        /// How many of the listeners, the last ones, are for TLS.
        #[serde(default)]
        secure: usize,
    },
    /// It goes on as before.
    HandOverRefused {
        /// Why.
        why: String,
    },
    /// It accepts nothing any more.
    HandedOver,
    /// This generation is in force: from now on nothing outside it is chosen.
    Applied {
        /// The table's number.
        generation: u64,
    },
    /// The table was not taken.
    Refused {
        /// The table's number.
        generation: u64,
        /// Why.
        why: String,
    },
    /// From now on certificate authorities are answered so.
    Answering {
        /// The order's.
        number: u64,
    },
    /// An instance has nothing under way any more.
    Drained {
        /// Which.
        instance: InstanceId,
        /// Requests ended by the limit.
        cut_requests: u64,
        /// Streams ended by the limit.
        cut_streams: u64,
        /// How long it took.
        took_ms: u64,
    },
    /// An instance refused connections or broke off before answering.
    UpstreamFailed {
        /// Which.
        instance: InstanceId,
        /// How.
        why: String,
    },
    /// Totals since this process started.
    Counts {
        /// Per app.
        apps: BTreeMap<AppName, AppCounts>,
        /// Requests and streams under way per instance, where there are any.
        in_flight: BTreeMap<InstanceId, u64>,
        /// What each instance of the table has answered, in this process alone.
        #[serde(default)]
        instances: BTreeMap<InstanceId, InstanceCounts>,
        /// Where requests wait for an instance with room.
        #[serde(default)]
        queues: Vec<QueueCount>,
    },
}

/// Requests that wait for an instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCount {
    /// Whose.
    pub app: AppName,
    /// Which service.
    pub service: ServiceName,
    /// How many.
    pub waiting: usize,
}

/// Totals of one app since the proxy started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppCounts {
    /// Requests that got one complete answer from an instance (5xx of the app's own included).
    pub served: u64,
    /// Requests that did not: 502/503/504 of the proxy's making, answers cut short.
    pub failed: u64,
    /// Those of the failed whose route had no instance at all: nobody was asked.
    #[serde(default)]
    pub nobody: u64,
    /// Answers that an instance gave with a 5xx status.
    pub server_errors: u64,
    /// Requests given to a second instance.
    pub retried: u64,
    /// Requests whose client went away before the answer was complete: neither served nor failed.
    #[serde(default)]
    pub client_aborted: u64,
    /// Requests below a prefix of static files, for which no instance was asked: none of the above.
    #[serde(default)]
    pub files: u64,
    /// From the request's head to the head of an instance's answer, for each that began. Empty when an earlier version
    /// counted.
    #[serde(default)]
    pub latency: Histogram,
}

impl AddAssign for AppCounts {
    fn add_assign(&mut self, more: Self) {
        let Self { served, failed, nobody, server_errors, retried, client_aborted, files, latency } = more;
        self.served = self.served.saturating_add(served);
        self.failed = self.failed.saturating_add(failed);
        self.nobody = self.nobody.saturating_add(nobody);
        self.server_errors = self.server_errors.saturating_add(server_errors);
        self.retried = self.retried.saturating_add(retried);
        self.client_aborted = self.client_aborted.saturating_add(client_aborted);
        self.files = self.files.saturating_add(files);
        self.latency += latency;
    }
}

/// Answers of one instance since it came into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InstanceCounts {
    /// All that began.
    pub answered: u64,
    /// Those of them with a 5xx status.
    pub server_errors: u64,
    /// From when it was given the request (that is the request's head, unless another one was tried before) to the head
    /// of its answer. Empty when an earlier version counted.
    #[serde(default)]
    pub latency: Histogram,
}

impl AddAssign for InstanceCounts {
    fn add_assign(&mut self, more: Self) {
        let Self { answered, server_errors, latency } = more;
        self.answered = self.answered.saturating_add(answered);
        self.server_errors = self.server_errors.saturating_add(server_errors);
        self.latency += latency;
    }
}

/// Reads one message; `None` at the end of the stream. What is too long or no message is `InvalidData`.
pub async fn read_message<T: DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut LineBuffer,
) -> io::Result<Option<T>> {
    if read_line(reader, line).await? { line.message().map(Some) } else { Ok(None) }
}

/// Reads the line of one message, to be taken out of the buffer; `false` at the end of the stream. What is too long is
/// `InvalidData`. May be given up and called again.
pub async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut LineBuffer) -> io::Result<bool> {
    // Kept from an earlier call that was cancelled in the middle of a line.
    let LineBuffer(bytes) = line;
    let room = (LINE_LIMIT + 1).saturating_sub(bytes.len());
    reader.take(room as u64).read_until(b'\n', bytes).await?;
    if bytes.is_empty() {
        return Ok(false);
    }
    if bytes.last() != Some(&b'\n') {
        let why = if bytes.len() > LINE_LIMIT { "a line is longer than 16 MiB" } else { "the last line is incomplete" };
        return Err(invalid(why));
    }
    Ok(true)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Writes one message as a line.
pub async fn write_message<T: Serialize + Sync>(writer: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// What has been read of a line so far, so that reading may be interrupted.
#[derive(Debug, Default)]
pub struct LineBuffer(Vec<u8>);

impl LineBuffer {
    /// Takes the message of a whole line out. What is none is `InvalidData`.
    pub fn message<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let message = serde_json::from_slice(&self.0).map_err(|error| invalid(format!("not a message: {error}")));
        self.0.clear();
        // One large table should not be paid for ever.
        self.0.shrink_to(64 << 10);
        message
    }

    /// The same, on a thread of its own where it takes so long that this thread's other tasks would notice.
    pub async fn message_aside<T: DeserializeOwned + Send + 'static>(&mut self) -> io::Result<T> {
        if self.0.len() < LARGE {
            return self.message();
        }
        let mut line = std::mem::take(self);
        tokio::task::spawn_blocking(move || line.message()).await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_lines_and_garbage_is_refused() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &Order::Count).await.unwrap();
        write_message(&mut bytes, &Order::Shutdown { grace_ms: 5 }).await.unwrap();
        bytes.extend_from_slice(b"{\"apply\": 5}\n\"count\"");
        let (mut reader, mut line) = (bytes.as_slice(), LineBuffer::default());
        assert_eq!(read_message(&mut reader, &mut line).await.unwrap(), Some(Order::Count));
        assert_eq!(read_message(&mut reader, &mut line).await.unwrap(), Some(Order::Shutdown { grace_ms: 5 }));
        let garbage = read_message::<Order>(&mut reader, &mut line).await.unwrap_err();
        assert_eq!(garbage.kind(), io::ErrorKind::InvalidData);
        let half = read_message::<Order>(&mut reader, &mut line).await.unwrap_err();
        assert!(half.to_string().contains("incomplete"));
        let mut nothing: &[u8] = b"";
        assert_eq!(read_message::<Order>(&mut nothing, &mut LineBuffer::default()).await.unwrap(), None);
    }

    #[test]
    fn an_earlier_version_counted_no_latency() {
        let counts: InstanceCounts = serde_json::from_str(r#"{"answered": 7, "server_errors": 1}"#).unwrap();
        assert_eq!((counts.answered, counts.latency.total()), (7, 0));
        let app = r#"{"served": 7, "failed": 0, "server_errors": 1, "retried": 0, "later": [1]}"#;
        assert_eq!(serde_json::from_str::<AppCounts>(app).unwrap().latency.total(), 0);
    }

    /// What another process says has counted is added without a look: there is a sum, and no panic.
    #[test]
    fn counts_that_nobody_counted_have_a_sum() {
        let most = r#"{"served": 18446744073709551615, "failed": 0, "server_errors": 0, "retried": 0,
            "latency": [18446744073709551615, 18446744073709551615]}"#;
        let mut app: AppCounts = serde_json::from_str(most).unwrap();
        app += app;
        assert_eq!((app.served, app.failed, app.latency.total()), (u64::MAX, 0, u64::MAX));
        assert!(app.latency.quantile(0.99).is_some());
    }

    #[tokio::test]
    async fn a_line_has_a_limit() {
        let long = vec![b' '; LINE_LIMIT + 10];
        let error = read_message::<Order>(&mut long.as_slice(), &mut LineBuffer::default()).await.unwrap_err();
        assert!(error.to_string().contains("longer than 16 MiB"), "{error}");
    }
}
