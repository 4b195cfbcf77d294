//! The engine's events as [`Happened`], over any number of lost connections.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptions;
use jiff::Timestamp;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::observe::{self, Whose};
use super::{Docker, Kill};
use crate::runtime::{Exited, Happened, labels};
use crate::text::with_causes;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Every moment counts: the addresses of its containers move when an engine starts.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// After this long without an event the engine is asked whether it is still there: a frozen one keeps its
/// connections open.
const SILENCE: Duration = Duration::from_secs(30);
/// That a container was killed for its memory limit the engine may tell so long after its end.
const WORD_OF_MEMORY: Duration = Duration::from_millis(300);

mod ahead;
mod networks;

use ahead::Ahead;

/// Where the next connection goes on: nanoseconds since the epoch.
struct Position(i64);

impl Position {
    /// As the engine takes it.
    fn since(&self) -> String {
        let (seconds, nanos) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        format!("{seconds}.{nanos:09}")
    }
}

/// Sends events until the receiver is gone. Never returns by itself.
pub(super) async fn follow(docker: &Docker, events: &Sender<Happened>) {
    let mut position = Position(Timestamp::now().as_nanosecond().try_into().unwrap_or(0));
    let mut killed_for_memory = HashSet::new();
    loop {
        let why = one_connection(docker, events, &mut position, &mut killed_for_memory).await;
        if events.is_closed() {
            return;
        }
        warn!(%why, "the Docker engine's event stream was interrupted");
        if events.send(Happened::Interrupted).await.is_err() {
            return;
        }
        let mut pause = FIRST_PAUSE;
        // The pause is a back-off between attempts; what is waited for is the engine's answer.
        while docker.ping().await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        info!("the Docker engine answers again");
        if events.send(Happened::Reconnected).await.is_err() {
            return;
        }
    }
}

/// Reads until a connection has ended, and says why it did. There are two: no filter has both our containers' events and
/// those of their networks, which carry no labels.
async fn one_connection(
    docker: &Docker,
    events: &Sender<Happened>,
    position: &mut Position,
    killed_for_memory: &mut HashSet<String>,
) -> String {
    let since = position.since();
    tokio::select! {
        why = containers(docker, events, position, killed_for_memory) => why,
        why = networks::follow(docker, events, since) => why,
    }
}

async fn containers(
    docker: &Docker,
    events: &Sender<Happened>,
    position: &mut Position,
    killed_for_memory: &mut HashSet<String>,
) -> String {
    let mut stream = Ahead::of(docker.client.events(Some(options(docker.agent_id(), position))));
    loop {
        let next = match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(next) => next,
            Err(_) => match docker.ping().await {
                Ok(()) => continue,
                Err(error) => return error.to_string(),
            },
        };
        let event = match next {
            Some(Ok(event)) => event,
            Some(Err(error)) => return with_causes(&error),
            None => return "the engine closed it".to_owned(),
        };
        if let Some(at) = event.time_nano {
            position.0 = position.0.max(at.saturating_add(1));
        }
        let Some(happened) = read(docker, event, killed_for_memory, &mut stream).await else { continue };
        if events.send(happened).await.is_err() {
            return "nobody listens".to_owned();
        }
    }
}

fn options(agent: &str, position: &Position) -> EventsOptions {
    let mut filters: HashMap<String, Vec<String>> = labels::filter(&[(labels::AGENT, agent)]);
    // Without this the health checks' own exec events come along, several a second.
    let wanted = ["start", "die", "oom", "destroy", "health_status"].map(str::to_owned).to_vec();
    filters.insert("event".to_owned(), wanted);
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    EventsOptions { since: Some(position.since()), until: None, filters: Some(filters) }
}

async fn read(
    docker: &Docker,
    event: EventMessage,
    killed_for_memory: &mut HashSet<String>,
    ahead: &mut Ahead,
) -> Option<Happened> {
    let actor = event.actor?;
    let container = actor.id?;
    let attributes = actor.attributes?;
    let action = event.action?;
    let name = attributes.get("name").map_or("", String::as_str);
    let instance = match observe::whose(docker.agent_id(), name, &attributes) {
        Whose::Instance(id) => id,
        Whose::ReleaseCommand(_) | Whose::Files => return None,
        Whose::Unknown(_) => {
            let app = attributes.get(labels::APP)?.parse().ok()?;
            return (action == "start").then_some(Happened::StartedUnknown(app));
        }
    };
    match action.as_str() {
        "start" => Some(Happened::Started(instance)),
        "oom" => {
            killed_for_memory.insert(container);
            None
        }
        "die" => {
            let code = attributes.get("exitCode").and_then(|code| code.parse().ok()).unwrap_or(0);
            let told = killed_for_memory.remove(&container);
            // The oom event also comes for a child that died while the main process lived on: 137 is what the
            // kernel's kill looks like. A restarted container shows nothing of it any more, hence the event.
            let shown = if code == 137 { docker.shown_of_kill(&container).await } else { Kill::default() };
            let oom = code == 137 && (told || shown.for_memory);
            // Under load the two events change places.
            let may_follow = shown.is_limited && !oom && !shown.removed;
            let oom = oom || (may_follow && ahead.tells_of_memory(&container, WORD_OF_MEMORY).await);
            let exited = Exited { code, oom, removed: shown.removed && !oom, output: Vec::new() };
            Some(Happened::Exited(instance, exited))
        }
        "destroy" => Some(Happened::Removed(instance)),
        "health_status: healthy" => Some(Happened::ImageHealth(instance, true)),
        "health_status: unhealthy" => Some(Happened::ImageHealth(instance, false)),
        _ => None,
    }
}
