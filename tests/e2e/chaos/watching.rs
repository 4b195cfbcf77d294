//! What is seen meanwhile: which instances die, and how many the proxy chooses among.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::sleep;

use super::excuses::{Excuses, Outage};
use crate::support::engine::Engine;

const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Instances that died within this may not be back yet.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(20);

/// Tells of each container that ends with a code other than 0, as long as it runs.
pub async fn deaths(engine: Engine, excuses: Excuses) {
    let filters = std::collections::HashMap::from([("event".to_owned(), vec!["die".to_owned()])]);
    let mut since = now();
    loop {
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters).build();
        let mut events = engine.docker.events(Some(options));
        while let Some(Ok(event)) = events.next().await {
            let code = event.actor.and_then(|actor| actor.attributes?.remove("exitCode"));
            let at = Duration::from_nanos(event.time_nano.unwrap_or_default().unsigned_abs());
            since = since.max(at.as_secs());
            if code.is_some_and(|code| code != "0") {
                let ago = SystemTime::now().duration_since(UNIX_EPOCH + at).unwrap_or_default();
                excuses.died(Instant::now().checked_sub(ago).unwrap_or_else(Instant::now));
            }
        }
        // The engine is away.
        sleep(BETWEEN_LOOKS).await;
    }
}

/// Tells of each address that the engine gives to two containers that run: what is asked of one may then be answered by
/// the other.
pub async fn addresses(engine: Engine, told: Arc<Mutex<BTreeSet<String>>>) {
    loop {
        sleep(BETWEEN_LOOKS * 4).await;
        let Ok(containers) = engine.docker.list_containers(None).await else { continue };
        let mut owners = BTreeMap::<String, Vec<String>>::new();
        for container in containers {
            let name = container.names.unwrap_or_default().join(" ");
            let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            for address in networks.into_values().filter_map(|network| network.ip_address) {
                owners.entry(address).or_default().push(name.clone());
            }
        }
        for (address, names) in owners.into_iter().filter(|(address, names)| !address.is_empty() && names.len() > 1) {
            told.lock().unwrap().insert(format!("{address}: {}", names.join(", ")));
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The fewest instances that the proxy chose among, by host, and when they were fewer than they may be.
#[derive(Debug, Clone, Default)]
pub struct Fewest {
    pub by_host: BTreeMap<String, usize>,
    pub wrong: Vec<String>,
}

/// Reads the table that the proxy keeps, again and again. `wanted` says how many instances each host has at least.
pub async fn routes(data_dir: &Path, wanted: BTreeMap<&str, usize>, excuses: Excuses, seen: Arc<Mutex<Fewest>>) {
    let mut told = None;
    loop {
        sleep(BETWEEN_LOOKS).await;
        // It is written under another name and renamed: what is read is whole.
        let Ok(text) = tokio::fs::read(data_dir.join("routes.json")).await else { continue };
        let Ok(table) = serde_json::from_slice::<Value>(&text) else {
            seen.lock().unwrap().wrong.push("routes.json is no table".to_owned());
            continue;
        };
        if excuses.is_away(Outage::Engine, COMES_BACK_WITHIN) {
            continue;
        }
        let generation = generation(&table);
        for (&host, &wanted) in &wanted {
            let members = members(&table, host);
            // One may be away, be it that nobody knows yet that it died.
            let dead = excuses.deaths_within(COMES_BACK_WITHIN).max(1);
            let floor = wanted.saturating_sub(dead).max(1);
            let mut seen = seen.lock().unwrap();
            let fewest = seen.by_host.entry(host.to_owned()).or_insert(members);
            *fewest = members.min(*fewest);
            if members < floor && told != Some(generation) {
                told = Some(generation);
                seen.wrong.push(format!("{host}: {members} instances in table {generation}, {floor} were to be"));
            }
        }
    }
}

fn generation(table: &Value) -> u64 {
    find(table, "generation").and_then(Value::as_u64).unwrap_or_default()
}

fn members(table: &Value, host: &str) -> usize {
    let routes = find(table, "routes").and_then(Value::as_array).into_iter().flatten();
    let ours = routes.filter(|route| route["hosts"].as_array().is_some_and(|hosts| hosts.contains(&host.into())));
    ours.filter_map(|route| route["members"].as_array()).map(Vec::len).sum()
}

/// A key of the file's first two levels.
fn find<'a>(table: &'a Value, key: &str) -> Option<&'a Value> {
    table.get(key).or_else(|| table.as_object()?.values().find_map(|inner| inner.get(key)))
}
