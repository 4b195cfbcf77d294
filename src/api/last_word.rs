//! Streams that would go on: they end with the agent, at once, and say so last.

use futures_util::stream::{self, Stream, StreamExt};
use tokio_util::sync::CancellationToken;

/// `items` until `ending` is cancelled, and then `last`. What is still to come is on record for whoever comes back.
pub fn until_the_agent_ends<T: Send + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
    ending: CancellationToken,
    last: T,
) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(Some((items.boxed(), ending, last)), |state| async move {
        let (mut items, ending, last) = state?;
        tokio::select! {
            biased;
            () = ending.cancelled() => Some((last, None)),
            item = items.next() => item.map(|item| (item, Some((items, ending, last)))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_has_its_own_end_or_the_agents() {
        let ending = CancellationToken::new();
        let short = until_the_agent_ends(stream::iter(["a", "b"]), ending.clone(), "the agent ends");
        assert_eq!(short.collect::<Vec<_>>().await, ["a", "b"]);
        let mut endless = until_the_agent_ends(stream::repeat("a"), ending.clone(), "the agent ends").boxed();
        assert_eq!(endless.next().await, Some("a"));
        ending.cancel();
        assert_eq!(endless.collect::<Vec<_>>().await, ["the agent ends"]);
    }
}
