//! From one proxy process to the next: the listening sockets, without a moment in which nobody listens.
//!
//! The new process asks on the control socket ([`ask`]), gets the sockets as attached descriptors, makes itself ready and
//! says so ([`Offer::take`]). Until then the old one serves on, and takes no table, so that what it hands over
//! is in force. When the new one ends or is not ready in time, the old one goes on as if nothing had been.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::timeout;

use super::client::{ProxyClient, ProxyStatus};
use super::control::{LineBuffer, Order, Report, SOCKET_NAME, read_message, write_message};
use super::instance::lock;
use super::listen::Inherited;
use super::orders::{Conversation, Successor};
use super::predecessor::Predecessor;
use super::table::{DrainLimits, Table};

/// The new process has so long to get ready. Shorter than an agent waits for a table, which waits for this.
const READY_LIMIT: Duration = Duration::from_secs(3);
/// An answer that needs nothing but a look.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Descriptors in one message.
const MOST_FILES: usize = 16;

/// What a serving proxy can hand over: second handles of its sockets and its lock.
#[derive(Debug)]
pub(super) struct Estate {
    pub control: OwnedFd,
    pub lock: OwnedFd,
    /// Those with TLS are the last ones.
    pub listeners: Vec<OwnedFd>,
    /// How many these are.
    pub secure: usize,
}

/// The old process's part: hands over what it has, or goes on and says why.
pub(super) async fn offer(mut conversation: Conversation) -> io::Result<()> {
    let Some(estate) = lock(&conversation.proxy.estate).take() else {
        let why = "it is being handed over already, or ends".to_owned();
        return conversation.say(&Report::HandOverRefused { why }).await;
    };
    let tables = Arc::clone(&conversation.proxy.tables);
    let agreed = match timeout(ANSWER_LIMIT, tables.lock_owned()).await {
        Ok(frozen) => {
            let agreed = agree(&mut conversation, &estate, &frozen.in_force).await;
            agreed.map(|(listeners, limits)| (listeners, limits, frozen))
        }
        Err(_) => Err("a table is just being put in force".to_owned()),
    };
    match agreed {
        Ok((listeners, limits, frozen)) => {
            let successors = conversation.proxy.successors.clone();
            // The process has ended when nobody takes it.
            let _ = successors.send(Successor { conversation, listeners, limits, frozen }).await;
            Ok(())
        }
        Err(why) => {
            tracing::warn!(why, "not handed over; going on");
            conversation.proxy.give_back(estate);
            conversation.say(&Report::HandOverRefused { why }).await
        }
    }
}

async fn agree(
    conversation: &mut Conversation,
    estate: &Estate,
    table: &Table,
) -> Result<(Vec<String>, DrainLimits), String> {
    let broke = |error: io::Error| format!("the new proxy ended before it was ready: {error}");
    tracing::info!(generation = table.generation, "handing over to a new proxy");
    let files: Vec<BorrowedFd<'_>> =
        [&estate.control, &estate.lock].into_iter().chain(&estate.listeners).map(AsFd::as_fd).collect();
    send(&mut conversation.write, &Report::HandOver { table: table.clone(), secure: estate.secure }, &files)
        .await
        .map_err(broke)?;
    let order = timeout(READY_LIMIT, read_message(&mut conversation.read, &mut conversation.line)).await;
    match order.map_err(|_| format!("the new proxy was not ready within {READY_LIMIT:?}"))?.map_err(broke)? {
        Some(Order::TakeOver { .. }) if conversation.proxy.is_closing() => Err("it ends".to_owned()),
        Some(Order::TakeOver { listeners, limits }) => {
            conversation.say(&Report::HandedOver).await.map_err(broke)?;
            Ok((listeners, limits))
        }
        Some(_) => Err("the new proxy said something else than that it is ready".to_owned()),
        None => Err("the new proxy ended before it was ready".to_owned()),
    }
}

/// One message with these descriptors on its first byte.
async fn send(write: &mut OwnedWriteHalf, report: &Report, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let stream = write.as_ref();
    let attach = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        if !attached.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("too many sockets for one message"));
        }
        Ok(rustix::net::sendmsg(stream, &[IoSlice::new(&line)], &mut attached, SendFlags::NOSIGNAL)?)
    };
    let sent = timeout(ANSWER_LIMIT, stream.async_io(Interest::WRITABLE, attach)).await??;
    write.write_all(&line[sent..]).await
}

/// What the running proxy hands over to this process, which is not ready yet.
#[derive(Debug)]
pub(super) struct Offer {
    pub link: UnixStream,
    /// What the running proxy said of itself.
    pub before: ProxyStatus,
    /// In force.
    pub table: Table,
    pub control: UnixListener,
    pub lock: File,
    pub listeners: Inherited,
}

/// Asks the running proxy of this directory to hand over. Blocks.
pub(super) fn ask(data_dir: &Path) -> anyhow::Result<Offer> {
    let path = data_dir.join(SOCKET_NAME);
    let link = UnixStream::connect(&path).with_context(|| format!("cannot reach {}", path.display()))?;
    link.set_read_timeout(Some(READY_LIMIT))?;
    link.set_write_timeout(Some(ANSWER_LIMIT))?;
    let mut heard = Heard::default();
    let said = heard.next(&link).context("it said no word")?;
    let before = ProxyStatus::of(said).map_err(|other| anyhow!("it began with {other:?}"))?;
    let about = format!("proxy {} (pid {})", before.version, before.pid);
    io::Write::write_all(&mut &link, &[&serde_json::to_vec(&Order::HandOver)?[..], b"\n"].concat())?;
    loop {
        match heard.next(&link).with_context(|| format!("the {about} cannot hand over"))? {
            Report::HandOver { table, secure } => {
                let mut files = heard.files.into_iter();
                let (Some(control), Some(lock)) = (files.next(), files.next()) else {
                    bail!("the {about} handed no sockets over");
                };
                let mut http: Vec<TcpListener> = files.map(TcpListener::from).collect();
                let https = http.split_off(http.len().saturating_sub(secure));
                let listeners = Inherited { http, https };
                let (control, lock) = (UnixListener::from(control), File::from(lock));
                return Ok(Offer { link, before, table, control, lock, listeners });
            }
            Report::HandOverRefused { why } => bail!("the {about} does not hand over: {why}"),
            // What it tells all agents.
            _ => {}
        }
    }
}

/// Reports and descriptors as they come.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Heard {
    fn next(&mut self, link: &UnixStream) -> io::Result<Report> {
        loop {
            if let Some(end) = self.bytes.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
            let mut attached = RecvAncillaryBuffer::new(&mut space);
            let mut read = [0; 4096];
            let mut parts = [IoSliceMut::new(&mut read)];
            let received = rustix::net::recvmsg(link, &mut parts, &mut attached, RecvFlags::CMSG_CLOEXEC)?;
            for message in attached.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    self.files.extend(files);
                }
            }
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes.extend_from_slice(&read[..received.bytes]);
        }
    }
}

/// Ready: from here on this process serves, and the one before finishes what it has.
pub(super) async fn take(
    link: UnixStream,
    before: ProxyStatus,
    listeners: Vec<String>,
    limits: DrainLimits,
) -> anyhow::Result<Predecessor> {
    link.set_nonblocking(true)?;
    let (read, mut write) = tokio::net::UnixStream::from_std(link)?.into_split();
    let (mut read, mut line) = (BufReader::new(read), LineBuffer::default());
    // When it cannot be written any more, the reason is there to be read.
    let _ = timeout(ANSWER_LIMIT, write_message(&mut write, &Order::TakeOver { listeners, limits })).await;
    // Longer than the running proxy waits: what it still took is not given up here.
    let answer = timeout(READY_LIMIT + ANSWER_LIMIT, read_message(&mut read, &mut line)).await;
    match answer.context("the running proxy did not say that it has handed over")?? {
        Some(Report::HandedOver) => Ok(Predecessor::new(ProxyClient::over(read, write, line, before))),
        Some(Report::HandOverRefused { why }) => bail!("the running proxy goes on: {why}"),
        other => bail!("the running proxy broke off the hand-over: {other:?}"),
    }
}
