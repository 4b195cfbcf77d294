//! The engine is asked whether it is there, for all who wait for it; when it has not answered for a while, people are
//! told once, and once more when it is back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::Agent;
use crate::fail_point::hurried;
use crate::runtime::presence::Away;

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(2);
/// An engine that is back before this was only restarted: no news.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The engine has been away for too long.
    Down,
    /// It is back.
    Up,
}

/// Whether there is something to tell. `told`: that it is away was told, in this life of the agent or before.
fn news(away: Option<&Away>, told: bool, now: Timestamp, patience: Duration) -> Option<News> {
    let lasted = |away: &Away| Duration::try_from(now.duration_since(away.since)).unwrap_or_default();
    match (away, told) {
        (None, true) => Some(News::Up),
        (Some(away), false) if lasted(away) >= patience => Some(News::Down),
        _ => None,
    }
}

/// Asks and tells until the agent ends.
pub async fn look_out(agent: Arc<Agent>) {
    let end = agent.shutdown().clone();
    end.run_until_cancelled(async {
        let mut told = remember(&agent).await;
        let patience = hurried(PATIENCE);
        loop {
            if let Ok(parts) = agent.parts() {
                let answer = parts.docker.ping().await;
                agent.presence.saw(&answer, Timestamp::now());
            }
            let away = agent.presence.away();
            if let Some(news) = news(away.as_ref(), told, Timestamp::now(), patience) {
                match tell(&agent, news, away).await {
                    Ok(()) => told = news == News::Down,
                    Err(why) => tracing::error!(%why, "the engine's outage could not be recorded; it is tried again"),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;
}

/// Whether an outage was told that was not over when the agent ended. It has lasted since then, unless the engine says
/// otherwise.
async fn remember(agent: &Agent) -> bool {
    match agent.store.open_outage().await {
        Ok(Some(open)) => {
            agent.presence.was_away(Away { since: open.since, why: open.why });
            true
        }
        Ok(None) => false,
        Err(err) => {
            tracing::error!(%err, "whether the engine was away could not be read");
            false
        }
    }
}

async fn tell(agent: &Agent, news: News, away: Option<Away>) -> Result<(), String> {
    let recorded = match (news, away) {
        (News::Down, Some(Away { since, why })) => {
            let address = agent.config().runtime.docker_host.clone();
            tracing::error!(address, %since, why, "the Docker engine does not answer; what runs goes on being served");
            agent.journal.begin_outage(&address, &why, since).await
        }
        _ => agent.journal.end_outage().await,
    };
    recorded.map(drop).map_err(|err| err.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What is told when the engine is away from second 100 to second 200, looked at every ten seconds.
    fn told(patience: u64) -> Vec<(i64, News)> {
        let mut told = Vec::new();
        for second in (0..300).step_by(10) {
            let away = (100..200).contains(&second).then(|| Away { since: at(100), why: "gone".into() });
            let so_far = told.last().is_some_and(|(_, news)| *news == News::Down);
            told.extend(
                news(away.as_ref(), so_far, at(second), Duration::from_secs(patience)).map(|news| (second, news)),
            );
        }
        told
    }

    #[test]
    fn an_engine_that_stays_away_is_told_once_and_its_return_once() {
        assert_eq!(told(30), [(130, News::Down), (200, News::Up)]);
    }

    #[test]
    fn one_that_is_restarted_is_no_news() {
        assert_eq!(told(101), []);
    }

    #[test]
    fn what_was_told_before_a_restart_of_the_agent_is_not_told_again() {
        let away = Away { since: at(0), why: "gone".into() };
        assert_eq!(news(Some(&away), true, at(1000), Duration::from_secs(30)), None);
    }

    #[test]
    fn a_clock_that_was_set_back_tells_nothing_early() {
        let away = Away { since: at(1000), why: "gone".into() };
        assert_eq!(news(Some(&away), false, at(0), Duration::from_secs(30)), None);
    }
}
