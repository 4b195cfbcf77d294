//! The engine's events in their order, with a look at those that are still to come.

use std::collections::VecDeque;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::EventMessage;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use tokio::time::timeout;

/// A stream of events.
pub(super) struct Ahead {
    stream: BoxStream<'static, Result<EventMessage, Error>>,
    /// What a look ahead has met, to be read in its turn.
    met: VecDeque<Result<EventMessage, Error>>,
}

impl Ahead {
    pub fn of(stream: impl Stream<Item = Result<EventMessage, Error>> + Send + 'static) -> Self {
        Self { stream: stream.fuse().boxed(), met: VecDeque::new() }
    }

    /// The next event.
    pub async fn next(&mut self) -> Option<Result<EventMessage, Error>> {
        match self.met.pop_front() {
            Some(met) => Some(met),
            None => self.stream.next().await,
        }
    }

    /// Whether an oom event of this container comes within `patience`; it is taken out.
    pub async fn tells_of_memory(&mut self, container: &str, patience: Duration) -> bool {
        if let Some(at) = self.met.iter().position(|met| is_oom(met, container)) {
            self.met.remove(at);
            return true;
        }
        let coming = async {
            while let Some(event) = self.stream.next().await {
                if is_oom(&event, container) {
                    return true;
                }
                self.met.push_back(event);
            }
            false
        };
        timeout(patience, coming).await.unwrap_or(false)
    }
}

fn is_oom(event: &Result<EventMessage, Error>, container: &str) -> bool {
    event.as_ref().is_ok_and(|event| {
        let whose = event.actor.as_ref().and_then(|actor| actor.id.as_deref());
        event.action.as_deref() == Some("oom") && whose == Some(container)
    })
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;
    use futures_util::stream;

    use super::*;

    fn event(action: &str, container: &str) -> Result<EventMessage, Error> {
        let actor = EventActor { id: Some(container.to_owned()), ..Default::default() };
        Ok(EventMessage { action: Some(action.to_owned()), actor: Some(actor), ..Default::default() })
    }

    #[tokio::test]
    async fn an_oom_event_that_comes_late_is_found_and_the_others_keep_their_order() {
        let coming = [event("start", "a"), event("oom", "b"), event("oom", "a"), event("die", "b")];
        let mut ahead = Ahead::of(stream::iter(coming).chain(stream::pending()));
        let patience = Duration::from_millis(20);
        assert!(ahead.tells_of_memory("a", patience).await);
        assert!(!ahead.tells_of_memory("c", patience).await);
        assert!(ahead.tells_of_memory("b", patience).await, "also when it was met before");
        let mut left = Vec::new();
        for _ in 0..2 {
            let event = ahead.next().await.unwrap().unwrap();
            left.push((event.action.unwrap(), event.actor.unwrap().id.unwrap()));
        }
        assert_eq!(left, [("start".to_owned(), "a".to_owned()), ("die".to_owned(), "b".to_owned())]);
    }
}
