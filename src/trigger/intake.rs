//! Bodies of strangers, read into memory within bounds of size, time and memory in all.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The largest body. GitHub sends nothing beyond 25 MB.
pub const LARGEST_BODY: usize = 25 << 20;
/// How much of a body does not count against the budget, so that ordinary deliveries pass while large ones fill it.
const FREE: usize = 32 << 10;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It is larger than [`LARGEST_BODY`].
    TooLarge,
    /// Other bodies fill the budget.
    Busy,
    /// It did not come in time.
    TooSlow,
    /// The sender broke off.
    Broken,
}

/// A body in memory; holds its share of the budget.
pub struct Taken {
    /// As it came.
    pub bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// Reads bodies within one budget.
pub struct Intake {
    budget: Arc<Semaphore>,
    patience: Duration,
}

impl Intake {
    /// An intake that holds at most `budget` bytes of large bodies at a time and waits for each body at most `patience`.
    pub fn new(budget: usize, patience: Duration) -> Self {
        Self { budget: Arc::new(Semaphore::new(budget)), patience }
    }

    /// Reads a body to its end; what is refused is given back.
    pub async fn read(&self, mut body: Body) -> Result<Taken, (Unread, Body)> {
        match timeout(self.patience, self.collect(&mut body)).await {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(why)) => Err((why, body)),
            Err(_) => Err((Unread::TooSlow, body)),
        }
    }

    async fn collect(&self, body: &mut Body) -> Result<Taken, Unread> {
        if body.size_hint().lower() > LARGEST_BODY as u64 {
            return Err(Unread::TooLarge);
        }
        // The usual delivery is one frame, handed on without a copy.
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let mut share: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
            let total = first.len() + rest.len() + data.len();
            if total > LARGEST_BODY {
                return Err(Unread::TooLarge);
            }
            let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            if total > FREE + held {
                let more = u32::try_from(total - FREE - held).map_err(|_| Unread::TooLarge)?;
                let granted = self.budget.clone().try_acquire_many_owned(more).map_err(|_| Unread::Busy)?;
                match &mut share {
                    Some(share) => share.merge(granted),
                    None => share = Some(granted),
                }
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                if !first.is_empty() {
                    rest.reserve(first.len() + data.len());
                    rest.extend_from_slice(&std::mem::take(&mut first));
                }
                rest.extend_from_slice(&data);
            }
        }
        let bytes = if rest.is_empty() { first } else { rest.freeze() };
        Ok(Taken { bytes, _share: share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    const LONG: Duration = Duration::from_secs(60);

    fn chunks(count: usize, size: usize) -> Body {
        let chunk = Bytes::from(vec![b'x'; size]);
        Body::from_stream(stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(chunk.clone()))))
    }

    async fn refused(intake: &Intake, body: Body) -> Unread {
        intake.read(body).await.map(|taken| taken.bytes.len()).map_err(|(why, _)| why).unwrap_err()
    }

    #[tokio::test]
    async fn a_body_is_read_whole_up_to_the_limit() {
        let intake = Intake::new(64 << 20, LONG);
        let taken = intake.read(chunks(25, 1 << 20)).await.map_err(|(why, _)| why).unwrap();
        assert_eq!(taken.bytes.len(), LARGEST_BODY);
        assert!(taken.bytes.iter().all(|b| *b == b'x'));
        assert_eq!(refused(&intake, chunks(26, 1 << 20)).await, Unread::TooLarge);
        assert_eq!(refused(&intake, chunks(usize::MAX, 1 << 20)).await, Unread::TooLarge);
    }

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_small_ones_always_pass() {
        let intake = Intake::new(1 << 20, LONG);
        let first = intake.read(chunks(16, 64 << 10)).await.map_err(|(why, _)| why).unwrap();
        assert_eq!(refused(&intake, chunks(2, 64 << 10)).await, Unread::Busy);
        assert!(intake.read(chunks(1, FREE)).await.is_ok());
        drop(first);
        assert!(intake.read(chunks(16, 64 << 10)).await.is_ok());
        assert_eq!(intake.budget.available_permits(), 1 << 20, "every share is given back");
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(refused(&Intake::new(1 << 20, Duration::from_millis(1)), silent).await, Unread::TooSlow);
    }
}
