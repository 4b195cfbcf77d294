//! The table in force, and the lock under which requests are given to instances.
//!
//! Swapping the table and "pick an instance and count the request in" happen under one mutex. Once a swap is done,
//! no request can reach an instance that left: either it was counted in before (and the drain sees it) or it is
//! picked from the new table.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::control::{AppCounts, InstanceCounts};
use super::counts::Counters;
use super::instance::{Claim, Instance, lock};
use super::pick::Picker;
use super::pool::Pool;
use super::table::Table;
use crate::model::{AppName, InstanceId};

/// Routes and everything known of instances.
#[derive(Debug, Default)]
pub struct Routing {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    /// Host to position in `routes`.
    hosts: HashMap<String, usize>,
    routes: Vec<ActiveRoute>,
    /// Those of the table, and those that left it with something under way. An instance that came back elsewhere
    /// while its former self was still busy is here twice.
    instances: Vec<Arc<Instance>>,
    /// Totals outlive routes: they count from the start of the process.
    apps: BTreeMap<AppName, Arc<Counters>>,
}

#[derive(Debug)]
struct ActiveRoute {
    counters: Arc<Counters>,
    members: Vec<Arc<Instance>>,
    picker: Picker,
}

/// Why a request has no instance.
#[derive(Debug)]
pub enum NoClaim {
    /// No route has the host.
    UnknownHost,
    /// The route has no instance left to try.
    NoMember(Arc<Counters>),
}

impl Routing {
    /// Picks an instance for a request to `host` that is not among `tried`, and counts the request in.
    pub fn claim(&self, host: &str, tried: &[Arc<Instance>]) -> Result<(Claim, Arc<Counters>), NoClaim> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let route = state.hosts.get(host).and_then(|&place| state.routes.get_mut(place));
        let Some(ActiveRoute { counters, members, picker }) = route else { return Err(NoClaim::UnknownHost) };
        let untried = |member: usize| !tried.iter().any(|gone| Arc::ptr_eq(gone, &members[member]));
        let load = |member: usize| members[member].load();
        let chosen = picker
            .choose(load, |member| !members[member].is_ejected() && untried(member))
            // All of them failed a moment ago: trying one is better than none.
            .or_else(|| picker.choose(load, untried));
        match chosen {
            Some(member) => Ok((Claim::new(&members[member]), Arc::clone(counters))),
            None => Err(NoClaim::NoMember(Arc::clone(counters))),
        }
    }

    /// Whether a route has this host.
    pub fn has_host(&self, host: &str) -> bool {
        lock(&self.state).hosts.contains_key(host)
    }

    /// The number of the table in force.
    pub fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Puts a valid table in force. When this returns, nothing outside it is chosen any more.
    pub fn replace(&self, table: &Table) {
        let mut state = lock(&self.state);
        // An instance whose requests were cut is beyond return; should its id come back, it starts anew.
        let sound = state.instances.iter().filter(|instance| !instance.requests_cut().is_cancelled());
        let known: HashMap<(InstanceId, SocketAddr), Arc<Instance>> =
            sound.map(|instance| ((instance.id.clone(), instance.pool.address()), Arc::clone(instance))).collect();
        let mut kept: Vec<Arc<Instance>> = Vec::new();
        let mut hosts = HashMap::new();
        let mut routes = Vec::with_capacity(table.routes.len());
        for (place, route) in table.routes.iter().enumerate() {
            hosts.extend(route.hosts.iter().map(|host| (host.clone(), place)));
            let members: Vec<Arc<Instance>> = route
                .members
                .iter()
                .map(|member| match known.get(&(member.instance.clone(), member.address)) {
                    Some(same) => Arc::clone(same),
                    None => Instance::new(member.instance.clone(), Pool::new(member.address)),
                })
                .collect();
            kept.extend(members.iter().cloned());
            let picker = Picker::new(route.members.iter().map(|member| member.weight));
            let counters = Arc::clone(state.apps.entry(route.app.clone()).or_default());
            routes.push(ActiveRoute { counters, members, picker });
        }
        let is_kept = |instance: &Arc<Instance>| kept.iter().any(|other| Arc::ptr_eq(other, instance));
        let left: Vec<Arc<Instance>> = state.instances.iter().filter(|instance| !is_kept(instance)).cloned().collect();
        let busy = left.iter().filter(|instance| instance.load() > 0).cloned();
        let members = kept.clone();
        state.instances = kept.into_iter().chain(busy).collect();
        state.generation = table.generation;
        state.hosts = hosts;
        let replaced = std::mem::replace(&mut state.routes, routes);
        drop(state);
        // Closing sockets takes its time, and the lock is everyone's.
        drop(replaced);
        members.iter().filter(|instance| !instance.is_routed()).for_each(|instance| instance.set_routed(true));
        left.iter().filter(|instance| instance.is_routed()).for_each(|instance| instance.set_routed(false));
    }

    /// What is known under an id: usually one; none when it has nothing under way and is in no table.
    pub fn find(&self, id: &InstanceId) -> Vec<Arc<Instance>> {
        lock(&self.state).instances.iter().filter(|instance| &instance.id == id).cloned().collect()
    }

    /// All that are in the table or have something under way.
    pub fn instances(&self) -> Vec<Arc<Instance>> {
        lock(&self.state).instances.clone()
    }

    /// Totals per app.
    pub fn counts(&self) -> BTreeMap<AppName, AppCounts> {
        lock(&self.state).apps.iter().map(|(app, counters)| (app.clone(), counters.read())).collect()
    }

    /// Requests and streams under way, where there are any.
    pub fn in_flight(&self) -> BTreeMap<InstanceId, u64> {
        let mut busy = BTreeMap::new();
        for instance in &lock(&self.state).instances {
            let load = instance.load();
            if load > 0 {
                *busy.entry(instance.id.clone()).or_insert(0) += load;
            }
        }
        busy
    }

    /// What the instances have answered that are in the table or have something under way.
    pub fn instance_counts(&self) -> BTreeMap<InstanceId, InstanceCounts> {
        let mut counts: BTreeMap<InstanceId, InstanceCounts> = BTreeMap::new();
        for instance in &lock(&self.state).instances {
            *counts.entry(instance.id.clone()).or_default() += instance.counts();
        }
        counts
    }

    /// Closes old idle connections and forgets instances that left and are done.
    pub fn sweep(&self) {
        let mut state = lock(&self.state);
        state.instances.retain(|instance| instance.is_routed() || instance.load() > 0);
        let instances = state.instances.clone();
        drop(state);
        instances.iter().for_each(|instance| instance.pool.sweep());
    }
}

impl NoClaim {
    /// Counts the request as failed where it belongs to an app.
    pub fn count(&self) {
        if let Self::NoMember(counters) = self {
            counters.failed();
        }
    }
}
