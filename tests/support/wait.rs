//! Waiting for something to become true, with an end.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Asks `probe` every 20 ms until it gives `Ok`; panics with `what` and the last `Err` when `limit` is over.
pub async fn eventually<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        let last = match tokio::time::timeout_at(end.into(), probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(why)) => why.to_string(),
            Err(_) => "the last attempt did not come back".to_owned(),
        };
        if Instant::now() + POLL >= end {
            panic!("{what}: not within {limit:?}; last seen: {last}");
        }
        tokio::time::sleep(POLL).await;
    }
}
