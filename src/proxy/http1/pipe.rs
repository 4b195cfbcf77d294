//! Bytes that go from one socket to another without coming through this process' memory: moved into a pipe and out of it
//! (`splice(2)`). For a large body that saves both of its copies.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Less is not worth the calls.
pub const WORTH: u64 = 32 << 10;
/// What a pipe holds: as pages, which may be a fraction full.
const SIZE: usize = 256 << 10;
/// Pipes in use at a time, each with two descriptors: what more clients are slow to take goes through memory.
pub const MOST: usize = 64;
/// Pipes that a thread keeps. One is in use only as long as there are bytes in it.
const SPARE: usize = 4;

/// How many there are.
static THERE_ARE: AtomicUsize = AtomicUsize::new(0);
/// This system does not let bytes go so.
static IS_REFUSED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static EMPTY: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

/// A pipe and how much is in it.
#[derive(Debug)]
pub struct Pipe {
    /// `None` once it is given back.
    ends: Option<Ends>,
    bytes: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// An empty one; `None` when too many are in use, or none can be had.
    pub fn take() -> Option<Self> {
        if IS_REFUSED.load(Relaxed) {
            return None;
        }
        let ends = EMPTY.with_borrow_mut(Vec::pop).or_else(Ends::new)?;
        Some(Self { ends: Some(ends), bytes: 0 })
    }

    /// How many bytes are in it.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether all that was in it has left.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Moves what there is at `socket` into the empty pipe, at most so much; how much that was, 0 at the socket's end.
    pub fn fill(&mut self, socket: &TcpStream, most: u64) -> io::Result<Filled> {
        let Some(ends) = &self.ends else { return Ok(Filled::Refused) };
        let most = usize::try_from(most).unwrap_or(SIZE).min(SIZE);
        let moved = socket.try_io(Interest::READABLE, || {
            Ok(splice(socket, None, &ends.write, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
        });
        match moved {
            Ok(bytes) => {
                self.bytes += bytes;
                Ok(Filled::With(bytes))
            }
            Err(error) if is_refusal(&error) => {
                IS_REFUSED.store(true, Relaxed);
                Ok(Filled::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// Moves as much to `socket` as it takes now.
    pub fn drain(&mut self, socket: &TcpStream) -> io::Result<()> {
        let Some(ends) = &self.ends else { return Ok(()) };
        let moved = socket.try_io(Interest::WRITABLE, || {
            Ok(splice(&ends.read, None, socket, None, self.bytes, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
        })?;
        if moved == 0 && self.bytes > 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes = self.bytes.saturating_sub(moved);
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take().filter(|_| self.bytes == 0) else { return };
        // A thread that ends has no room any more.
        let _ = EMPTY.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE {
                spare.push(ends);
            }
        });
    }
}

/// What came into a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes; none at the end of what a socket has to say.
    With(usize),
    /// Nothing, and never anything: this is to go through memory.
    Refused,
}

impl Ends {
    fn new() -> Option<Self> {
        if THERE_ARE.fetch_add(1, Relaxed) < MOST
            && let Ok((read, write)) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)
        {
            // One that stays smaller, because its user has many, works as well.
            let _ = fcntl_setpipe_size(&write, SIZE);
            return Some(Self { read, write });
        }
        THERE_ARE.fetch_sub(1, Relaxed);
        None
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        THERE_ARE.fetch_sub(1, Relaxed);
    }
}

/// A kernel, or whoever stands between it and us (seccomp), that does not do this.
fn is_refusal(error: &io::Error) -> bool {
    const REFUSALS: [Errno; 6] =
        [Errno::ACCESS, Errno::INVAL, Errno::NOMEM, Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM];
    REFUSALS.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether to try the same again: it was not the time for it.
pub fn is_to_be_repeated(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Writes bytes that others follow at once (`MSG_MORE`), as much as `socket` takes now.
pub fn write_ahead(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    socket.try_io(Interest::WRITABLE, || Ok(rustix::net::send(socket, bytes, SendFlags::MORE | SendFlags::NOSIGNAL)?))
}
