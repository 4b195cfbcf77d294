//! Bodies that nobody wants, read to their end: a connection that is closed with bytes unread is reset, and its sender
//! loses the answer.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// How much of a body is read for the sake of its sender.
const MOST: usize = 64 << 20;
/// For how long.
const LONGEST: Duration = Duration::from_secs(5);

/// Reads on beside the caller and forgets, within bounds of size and time.
pub fn discard<B>(body: B)
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Send,
{
    if body.is_end_stream() {
        return;
    }
    // Without a runtime the connection has ended as well.
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(timeout(LONGEST, read_up_to(MOST, body)));
    }
}

async fn read_up_to<B: Body<Data = Bytes> + Unpin>(most: usize, mut body: B) {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        seen += frame.data_ref().map_or(0, Bytes::len);
        if seen > most {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    #[tokio::test]
    async fn a_body_is_read_to_its_end_or_to_the_bound() {
        for (frames, wanted) in [(3, 3), (usize::MAX, 11)] {
            let read = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&read);
            let body = StreamBody::new(stream::iter((0..frames).map(move |_| {
                counted.fetch_add(1, SeqCst);
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"ten bytes.")))
            })));
            read_up_to(100, body).await;
            assert_eq!(read.load(SeqCst), wanted, "of {frames} frames");
        }
    }
}
