//! Tells people how deployments go, when the engine does not answer, when a permanent canary gets no requests, and when a
//! certificate cannot be had.
//!
//! The outbox on disk is written with the states it tells about ([`crate::store`]); here each configured receiver
//! has a task of its own that works through it at its own pace, so a slow or broken one delays neither a deployment
//! nor another receiver:
//!
//! notice → `facts` (what the journal knows now) → [`message`] (what to say) → [`discord`] (how a channel wants it)
//! → `webhook` (the request and what its answer means) → `delivery` (again, later, or done).

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Channel, Config, NoticeKind};
use crate::journal::Journal;
use crate::store::Store;

mod canary;
mod certificate;
mod delivery;
pub mod discord;
mod facts;
pub mod message;
mod outage;
mod text;
mod webhook;

use delivery::{Courier, Timing};

/// Starts telling the configured receivers, and follows changes of the configuration. Ends soon after `shutdown`;
/// what has not been told by then stays in the outbox.
pub fn start(
    store: Store,
    journal: Journal,
    config: watch::Receiver<Arc<Config>>,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(supervise(store, journal, config, shutdown, Timing::default()))
}

/// A receiver as it is configured now.
#[derive(Debug, Clone)]
struct Target {
    /// Its address.
    url: SecretString,
    /// A loopback address is accepted.
    allow_local: bool,
    /// What it wants to be told.
    events: Vec<NoticeKind>,
}

/// The configured receivers by the name that the outbox knows them under: made from the address, so that neither
/// their order nor another setting changes it. Two entries with one address are one receiver of both's events. One whose
/// address is absent has no name: what there is to tell it waits in the outbox.
fn targets(config: &Config) -> BTreeMap<String, Target> {
    let mut targets: BTreeMap<String, Target> = BTreeMap::new();
    for entry in &config.notify {
        let Channel::Discord { url, allow_local } = &entry.channel;
        let Ok(url) = url else { continue };
        let target = targets.entry(target_name(url)).or_insert_with(|| Target {
            url: url.clone(),
            allow_local: false,
            events: Vec::new(),
        });
        target.allow_local |= *allow_local;
        target.events.extend(&entry.events);
    }
    targets
}

/// `discord:` and the first 16 hexadecimal digits of the address's SHA-256: stable, and no secret.
fn target_name(url: &SecretString) -> String {
    let digest = hex::encode(Sha256::digest(url.expose_secret().as_bytes()));
    format!("discord:{}", &digest[..16])
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Keeps one task per configured receiver.
async fn supervise(
    store: Store,
    journal: Journal,
    mut config: watch::Receiver<Arc<Config>>,
    shutdown: CancellationToken,
    timing: Timing,
) {
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    loop {
        let wanted = targets(&config.borrow_and_update().clone());
        let gone: Vec<String> = running.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            end(running.remove(&name)).await;
        }
        for name in wanted.into_keys() {
            running.entry(name.clone()).or_insert_with(|| {
                let stop = shutdown.child_token();
                let courier = Courier::new(name, store.clone(), journal.clone(), config.clone(), timing);
                Running { task: tokio::spawn(courier.run(stop.clone())), stop }
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = config.changed() => if changed.is_err() {
                // Nobody can change the configuration any more; the receivers stay as they are.
                shutdown.cancelled().await;
                break;
            }
        }
    }
    for (_, task) in running {
        end(Some(task)).await;
    }
}

async fn end(task: Option<Running>) {
    let Some(Running { stop, task }) = task else { return };
    stop.cancel();
    if let Err(err) = task.await {
        tracing::error!(%err, "a notification task ended badly");
    }
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod tests;
