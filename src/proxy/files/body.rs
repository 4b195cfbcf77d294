//! A large file on its way: read in pieces, as fast as the client takes them.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{fs, io};

use bytes::{Bytes, BytesMut};
use tokio::fs::File;
use tokio_util::io::poll_read_buf;

/// What is read at once.
const PIECE: usize = 64 << 10;

/// Some bytes of a file that is at their beginning.
#[derive(Debug)]
pub struct FileBody {
    file: File,
    left: u64,
    piece: BytesMut,
}

impl FileBody {
    /// Seeks to the first of `bytes`. Blocks.
    pub fn new(mut file: fs::File, bytes: &Range<u64>) -> io::Result<Self> {
        io::Seek::seek(&mut file, io::SeekFrom::Start(bytes.start))?;
        let mut file = File::from_std(file);
        file.set_max_buf_size(PIECE);
        Ok(Self { file, left: bytes.end - bytes.start, piece: BytesMut::new() })
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` at the end. A file that became shorter is an error: its length has been announced.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.piece.reserve(PIECE);
        let read = match ready!(poll_read_buf(Pin::new(&mut self.file), cx, &mut self.piece)) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        Poll::Ready(Some(read.map(|_| {
            let mut piece = self.piece.split();
            piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= piece.len() as u64;
            piece.freeze()
        })))
    }
}
