//! Who joins and leaves our apps' networks. An event says which container moved and nothing of where it is now, so that is
//! looked at: one look at a time at each container, the last of them after the last event.

use std::collections::{BTreeMap, HashMap};

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptions;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::Sender;

use super::super::{CALL, Docker, within};
use crate::runtime::{Happened, Observed, RuntimeError, labels};
use crate::text::with_causes;

/// Reads one connection to its end, and says why it ended. That it is still there the containers' one finds out.
pub(super) async fn follow(docker: &Docker, events: &Sender<Happened>, since: String) -> String {
    let mut stream = std::pin::pin!(docker.client.events(Some(options(docker.agent_id(), since))));
    let mut looks = Looks::default();
    loop {
        tokio::select! {
            next = stream.next() => match next {
                Some(Ok(event)) => {
                    if let Some(container) = container(event) {
                        looks.ask(docker, container);
                    }
                }
                Some(Err(error)) => return with_causes(&error),
                None => return "the engine closed it".to_owned(),
            },
            Some((container, seen)) = looks.under_way.next() => {
                looks.ended(docker, &container);
                // One that could not be looked at is found by the next comparison of what there is.
                let Ok(Some(observed)) = seen else { continue };
                if events.send(Happened::Rewired(Box::new(observed))).await.is_err() {
                    return "nobody listens".to_owned();
                }
            }
        }
    }
}

fn options(agent: &str, since: String) -> EventsOptions {
    // The beginning of a name is enough for this filter.
    let ours = labels::network_prefix(agent);
    let filters: [(&str, &[&str]); 3] =
        [("type", &["network"]), ("event", &["connect", "disconnect"]), ("network", &[&ours])];
    let owned = |(name, values): (&str, &[&str])| (name.to_owned(), values.iter().map(|v| (*v).to_owned()).collect());
    EventsOptions { since: Some(since), until: None, filters: Some(HashMap::from(filters.map(owned))) }
}

fn container(event: EventMessage) -> Option<String> {
    event.actor?.attributes?.remove("container")
}

type Look = (String, Result<Option<Observed>, RuntimeError>);

/// The containers that are being looked at. The engine answers for one that it starts or stops when it has done so.
#[derive(Default)]
struct Looks {
    under_way: FuturesUnordered<BoxFuture<'static, Look>>,
    /// Whether each of them moved again meanwhile.
    again: BTreeMap<String, bool>,
}

impl Looks {
    fn ask(&mut self, docker: &Docker, container: String) {
        if let Some(again) = self.again.get_mut(&container) {
            *again = true;
            return;
        }
        self.again.insert(container.clone(), false);
        let docker = docker.clone();
        let look = async move {
            let seen = within(CALL, docker.observe(&container)).await;
            (container, seen)
        };
        self.under_way.push(look.boxed());
    }

    fn ended(&mut self, docker: &Docker, container: &str) {
        if self.again.remove(container) == Some(true) {
            self.ask(docker, container.to_owned());
        }
    }
}
