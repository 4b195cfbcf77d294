//! Reading and writing a socket without the C library in between: glibc (as of 2.36) lets a thread be cancelled in these
//! calls, and guards each with two locked instructions.

use std::io;
use std::mem::MaybeUninit;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::is_to_be_repeated;

/// What is read at a time.
pub const READ: usize = 4 << 10;

/// Adds what there is to `input`, through a buffer that is there only meanwhile; how much that was, 0 at the end.
pub fn poll_read(socket: &TcpStream, cx: &mut Context<'_>, input: &mut BytesMut) -> Poll<io::Result<usize>> {
    let mut space = [const { MaybeUninit::uninit() }; READ];
    let mut length = None;
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let tried = socket.try_io(Interest::READABLE, || {
            let ((read, left), _) = rustix::net::recv(socket, &mut space, RecvFlags::empty())?;
            input.extend_from_slice(read);
            length = Some(read.len());
            match read.is_empty() || left.is_empty() {
                true => Ok(()),
                // There is no more, which asking for it would say.
                false => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match (length, tried) {
            (Some(length), _) => return Poll::Ready(Ok(length)),
            (None, Err(error)) if !is_to_be_repeated(&error) => return Poll::Ready(Err(error)),
            _ => {}
        }
    }
}

/// Writes as much as is taken now: perhaps nothing.
pub fn write_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.try_io(Interest::WRITABLE, || Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)) {
        Err(error) if is_to_be_repeated(&error) => Ok(0),
        written => written,
    }
}

/// Writes as much as is taken at once, which is waited for.
pub async fn write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match write_now(socket, bytes)? {
            0 => socket.writable().await?,
            written => return Ok(written),
        }
    }
}
