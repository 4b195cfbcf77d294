//! A text that says nothing for a while: a line of blanks now and then tells its reader that somebody is there.

use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::timeout;

/// Below the idle limits of the usual reverse proxies, and of the hook's own.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// No line of a log is told from it by its sight, and the hook does not show it. So long, as curl counts whole bytes a second
/// over several seconds: a shorter one would be silence to it.
pub const SIGN: &str = "                                                               \n";

/// `pieces`, and the sign whenever none has come for so long.
pub fn kept_alive(
    pieces: impl Stream<Item = String> + Send + 'static,
    every: Duration,
) -> impl Stream<Item = String> + Send + 'static {
    stream::unfold(pieces.boxed(), move |mut pieces| async move {
        match timeout(every, pieces.next()).await {
            Ok(piece) => piece.map(|piece| (piece, pieces)),
            Err(_) => Some((SIGN.to_owned(), pieces)),
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_reader_hears_something_at_least_so_often() {
        let (say, said) = mpsc::channel::<String>(1);
        let said = stream::unfold(said, |mut said| async move { Some((said.recv().await?, said)) });
        let every = Duration::from_millis(50);
        let mut heard = kept_alive(said, every).boxed();
        let began = tokio::time::Instant::now();
        say.send("building\n".into()).await.unwrap();
        assert_eq!(heard.next().await.unwrap(), "building\n");
        assert_eq!(heard.next().await.unwrap(), SIGN);
        assert_eq!(heard.next().await.unwrap(), SIGN);
        assert!(began.elapsed() >= every * 2);
        say.send("built\n".into()).await.unwrap();
        drop(say);
        assert_eq!(heard.collect::<Vec<_>>().await, ["built\n"], "and it ends with what it keeps alive");
    }
}
