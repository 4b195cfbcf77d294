//! Whether the engine answers, as it was last seen; known to all who wait for it or judge what went wrong meanwhile.

use jiff::Timestamp;
use tokio::sync::watch;

use super::RuntimeError;

/// What was last seen of the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Presence(watch::Sender<Seen>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    away: Option<Away>,
    /// How often it was lost.
    losses: u64,
}

/// It does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    /// Since when.
    pub since: Timestamp,
    /// What asking it led to.
    pub why: String,
}

/// A moment in the engine's life: [`Presence::was_lost_since`] compares with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Presence {
    /// Of an engine that answers, as long as nothing else is known.
    pub fn new() -> Self {
        Self(watch::Sender::new(Seen::default()))
    }

    /// It was away before anybody here asked it; what it answered since says more than `before.why`.
    pub fn was_away(&self, before: Away) {
        self.0.send_modify(|seen| {
            let why = seen.away.take().map_or(before.why, |away| away.why);
            seen.away = Some(Away { since: before.since, why });
        });
    }

    /// Takes what asking the engine led to. While it is away, the time at which it went stays.
    pub fn saw<T>(&self, answer: &Result<T, RuntimeError>, now: Timestamp) {
        let why = answer.as_ref().err().map(|err| match err {
            RuntimeError::Unavailable(why) => why.clone(),
            other => other.to_string(),
        });
        self.0.send_if_modified(|seen| match (why, &mut seen.away) {
            (None, away) => away.take().is_some(),
            (Some(why), Some(away)) if away.why == why => false,
            (Some(why), Some(away)) => {
                away.why = why;
                true
            }
            (Some(why), None) => {
                seen.away = Some(Away { since: now, why });
                seen.losses += 1;
                true
            }
        });
    }

    /// A connection to it broke, as when it ends: it may be back before anybody asks.
    pub fn broke(&self) {
        self.0.send_modify(|seen| seen.losses += 1);
    }

    /// Since when it does not answer, if so.
    pub fn away(&self) -> Option<Away> {
        self.0.borrow().away.clone()
    }

    /// Now.
    pub fn mark(&self) -> Mark {
        Mark(self.0.borrow().losses)
    }

    /// Whether it was lost at least for a moment.
    pub fn was_lost_since(&self, mark: Mark) -> bool {
        let seen = self.0.borrow();
        seen.away.is_some() || Mark(seen.losses) != mark
    }

    /// Returns when it answers.
    pub async fn answers(&self) {
        // The sender is in our own hand.
        let _ = self.0.subscribe().wait_for(|seen| seen.away.is_none()).await;
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn silence(why: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unavailable(why.into()))
    }

    #[test]
    fn an_engine_is_away_since_its_first_silence() {
        let presence = Presence::new();
        presence.saw(&Ok(()), at(1));
        assert_eq!(presence.away(), None);
        presence.saw(&silence("a"), at(2));
        presence.saw(&silence("b"), at(4));
        let away = presence.away().unwrap();
        assert_eq!((away.since, away.why.as_str()), (at(2), "b"));
        presence.saw(&Ok(()), at(6));
        assert_eq!(presence.away(), None);
    }

    #[test]
    fn what_was_lost_for_a_moment_was_lost() {
        let presence = Presence::new();
        let before = presence.mark();
        assert!(!presence.was_lost_since(before));
        presence.broke();
        assert!(presence.was_lost_since(before));
        let after = presence.mark();
        assert!(!presence.was_lost_since(after));
        presence.saw(&silence("gone"), at(2));
        assert!(presence.was_lost_since(after) && presence.was_lost_since(presence.mark()), "it is away now");
        presence.saw(&Ok(()), at(3));
        assert!(presence.was_lost_since(after), "it is back, and was away");
    }

    #[tokio::test]
    async fn who_waits_for_it_goes_on_when_it_answers() {
        let presence = Presence::new();
        presence.saw(&silence("gone"), at(2));
        let waiting = tokio::spawn({
            let presence = presence.clone();
            async move { presence.answers().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        presence.saw(&Ok(()), at(3));
        waiting.await.unwrap();
    }
}
