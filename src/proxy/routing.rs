//! The table in force, and the lock under which requests are given to instances.
//!
//! Swapping the table and "pick an instance and count the request in" happen under one mutex. Once a swap is done,
//! no request can reach an instance that left: either it was counted in before (and the drain sees it) or it is
//! picked from the new table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::control::{AppCounts, InstanceCounts, QueueCount};
use super::counts::Counters;
use super::fields::Fields;
use super::giving_way;
use super::instance::{Claim, Instance, lock};
use super::lookup::{Lookup, NoRoute};
use super::path_prefix::PathPrefix;
use super::pick::Picker;
use super::pool::Pool;
use super::queue::{Queue, RouteLimits};
use super::sticky::StickyCookie;
use super::table::{Maintenance, Protocol, StaticFiles, Table};
use super::wait::Bell;
use crate::model::{AppName, InstanceId, ServiceName};

/// Routes and everything known of instances.
#[derive(Debug, Default)]
pub struct Routing {
    state: Mutex<State>,
    bell: Bell,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    /// To positions in `routes`.
    lookup: Lookup,
    routes: Vec<ActiveRoute>,
    /// Those of the table, and those that left it with something under way. An instance that came back elsewhere
    /// while its former self was still busy is here twice.
    instances: Vec<Arc<Instance>>,
    lasting: Lasting,
}

/// What outlives tables.
#[derive(Debug, Clone, Default)]
struct Lasting {
    /// Totals count from the start of the process.
    apps: BTreeMap<AppName, Arc<Counters>>,
    queues: BTreeMap<(AppName, ServiceName), Arc<Queue>>,
}

#[derive(Debug)]
struct ActiveRoute {
    way: Arc<Way>,
    members: Vec<Arc<Instance>>,
    picker: Picker,
}

/// What the requests of a route have in common.
#[derive(Debug)]
pub struct Way {
    /// Whose it is.
    pub app: AppName,
    /// Which service's.
    pub service: ServiceName,
    /// The app's totals.
    pub counters: Arc<Counters>,
    /// Taken off the target before an instance sees it.
    pub strip: Option<PathPrefix>,
    /// Where clients stay with an instance.
    pub sticky: Option<StickyCookie>,
    /// What its instances speak.
    pub protocol: Protocol,
    /// How many requests its instances are given.
    pub limits: RouteLimits,
    /// Where others wait meanwhile.
    pub queue: Arc<Queue>,
    /// In place of all instances.
    pub maintenance: Option<Maintenance>,
    /// In place of an instance for some paths; the longest prefix first.
    pub files: Vec<StaticFiles>,
}

/// A request in search of an instance.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    /// As [`super::table::lookup_host`] spells it.
    pub host: &'a str,
    /// Of its target, as it was sent.
    pub path: &'a str,
    /// For the cookie of a sticky route.
    pub fields: &'a Fields,
    /// Instances that did not take it.
    pub tried: &'a [Arc<Instance>],
    /// Whether it has waited for its turn.
    pub waited: bool,
}

impl Seeker<'_> {
    /// It has neither waited nor been anywhere.
    fn is_new(&self) -> bool {
        !self.waited && self.tried.is_empty()
    }
}

/// Why a request has no instance.
#[derive(Debug)]
pub enum NoClaim {
    /// No route has the host.
    UnknownHost,
    /// The host is there, but not for this path.
    UnknownPath,
    /// The app is being worked on.
    Maintenance(Arc<Way>),
    /// It is answered with a file of these: the position among those of the way.
    Files(Arc<Way>, usize),
    /// The route has no instance left to try.
    NoMember(Arc<Way>),
    /// Every instance has as many requests as it may.
    Busy(Arc<Way>),
}

impl Routing {
    /// For what may end a wait for an instance: rings when requests of one are to end.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Waits in the queue of this route, if it has one, until an instance has room. A request that has been refused one comes here.
    pub async fn wait(&self, seeker: Seeker<'_>, way: &Way, none: NoClaim) -> Result<(Claim, Arc<Way>), NoClaim> {
        match way.queue.enter(way.limits.queue) {
            None => Err(none),
            Some(place) => {
                let seeker = Seeker { waited: true, ..seeker };
                let attempt = || match self.claim(seeker) {
                    Err(none @ (NoClaim::NoMember(_) | NoClaim::Busy(_))) => Err(none),
                    decided => Ok(decided),
                };
                place.wait(way.limits, attempt).await.unwrap_or_else(Err)
            }
        }
    }

    /// Picks an instance that was not tried, and counts the request in.
    pub fn claim(&self, seeker: Seeker<'_>) -> Result<(Claim, Arc<Way>), NoClaim> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let place = state.lookup.find(seeker.host, seeker.path).map_err(|none| match none {
            NoRoute::Host => NoClaim::UnknownHost,
            NoRoute::Path => NoClaim::UnknownPath,
        })?;
        let Some(ActiveRoute { way, members, picker }) = state.routes.get_mut(place) else {
            return Err(NoClaim::UnknownHost);
        };
        if way.maintenance.is_some() {
            return Err(NoClaim::Maintenance(Arc::clone(way)));
        }
        if let Some(place) = way.files.iter().position(|files| files.prefix.covers(seeker.path)) {
            return Err(NoClaim::Files(Arc::clone(way), place));
        }
        // Nobody passes those who wait.
        if seeker.is_new() && way.queue.waiting() > 0 {
            return Err(NoClaim::Busy(Arc::clone(way)));
        }
        // One that another instance did not take is not turned away for want of room.
        let has_room = |member: usize| !seeker.tried.is_empty() || way.limits.leave_room(members[member].requests());
        let untried = |member: usize| !seeker.tried.iter().any(|gone| Arc::ptr_eq(gone, &members[member]));
        let free = |member: usize| untried(member) && has_room(member);
        let sound = |member: usize| !members[member].is_ejected() && free(member);
        let load = |member: usize| members[member].load();
        let same_as_before = || {
            let id = way.sticky.as_ref()?.read(seeker.fields)?;
            members.iter().position(|member| member.id.as_str() == id).filter(|&member| sound(member))
        };
        let chosen = same_as_before()
            .or_else(|| picker.choose(load, sound))
            // All of them failed a moment ago: trying one is better than none.
            .or_else(|| picker.choose(load, free));
        let queue = way.limits.max_requests.map(|_| &way.queue);
        match chosen {
            Some(member) => Ok((Claim::new(&members[member], queue), Arc::clone(way))),
            None if (0..members.len()).any(untried) => Err(NoClaim::Busy(Arc::clone(way))),
            None => Err(NoClaim::NoMember(Arc::clone(way))),
        }
    }

    /// The name under which a route has this host: its own, or the wildcard that stands for it.
    pub fn name_of(&self, host: &str) -> Option<String> {
        lock(&self.state).lookup.name_of(host).map(str::to_owned)
    }

    /// The number of the table in force.
    pub fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Puts a valid table in force. When this returns, nothing outside it is chosen any more. One at a time.
    pub fn replace(&self, table: &Table) {
        // Everything is made ready before the lock is taken, which every request waits for.
        let (before, lasting) = {
            let state = lock(&self.state);
            (state.instances.clone(), state.lasting.clone())
        };
        let next = Next::of(table, &before, lasting, &self.bell);
        let is_kept = |instance: &&Arc<Instance>| next.kept.contains(&Arc::as_ptr(instance));
        let left: Vec<Arc<Instance>> = before.iter().filter(|instance| !is_kept(instance)).cloned().collect();
        // Before anything can look: what is not routed is forgotten once it has nothing under way.
        next.members.iter().filter(|instance| !instance.is_routed()).for_each(|instance| instance.set_routed(true));
        let instances = next.members.iter().chain(&left).cloned().collect();
        let mut state = lock(&self.state);
        state.instances = instances;
        state.generation = table.generation;
        state.lasting = next.lasting;
        let queues: Vec<Arc<Queue>> = state.lasting.queues.values().cloned().collect();
        let replaced =
            (std::mem::replace(&mut state.lookup, next.lookup), std::mem::replace(&mut state.routes, next.routes));
        drop(state);
        drop(replaced);
        queues.iter().for_each(|queue| queue.look_again());
        // Closing sockets takes its time too.
        left.iter().filter(|instance| instance.is_routed()).for_each(|instance| instance.set_routed(false));
        lock(&self.state).forget_done();
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
        lock(&self.state).lasting.apps.iter().map(|(app, counters)| (app.clone(), counters.read())).collect()
    }

    /// Requests that wait, where there are any.
    pub fn queues(&self) -> Vec<QueueCount> {
        let state = lock(&self.state);
        let counts = state.lasting.queues.iter().map(|((app, service), queue)| QueueCount {
            app: app.clone(),
            service: service.clone(),
            waiting: queue.waiting(),
        });
        counts.filter(|count| count.waiting > 0).collect()
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
        state.forget_done();
        let instances = state.instances.clone();
        drop(state);
        instances.iter().for_each(|instance| instance.pool.sweep());
    }
}

impl State {
    fn forget_done(&mut self) {
        self.instances.retain(|instance| instance.is_routed() || instance.load() > 0);
    }
}

/// A table on its way into force.
struct Next {
    lookup: Lookup,
    routes: Vec<ActiveRoute>,
    members: Vec<Arc<Instance>>,
    /// The same, to be asked for.
    kept: HashSet<*const Instance>,
    lasting: Lasting,
}

impl Next {
    /// Instances that are known go on as they are.
    fn of(table: &Table, before: &[Arc<Instance>], mut lasting: Lasting, bell: &Bell) -> Self {
        // An instance whose requests were cut is beyond return; should its id come back, it starts anew.
        let sound = before.iter().filter(|instance| !instance.requests_cut().is_set());
        let mut known: HashMap<(&InstanceId, SocketAddr), &Arc<Instance>> = HashMap::with_capacity(before.len());
        known.extend(sound.map(|instance| ((&instance.id, instance.pool.address()), instance)));
        let mut members = Vec::with_capacity(before.len());
        let mut routes = Vec::with_capacity(table.routes.len());
        for route in giving_way::each(&table.routes) {
            let mut files = route.files.clone();
            files.sort_by_key(|files| std::cmp::Reverse(files.prefix.as_str().len()));
            let of_route: Vec<Arc<Instance>> = route
                .members
                .iter()
                .map(|member| match known.get(&(&member.instance, member.address)) {
                    Some(same) => Arc::clone(same),
                    None => Instance::new(member.instance.clone(), Pool::new(member.address), bell),
                })
                .collect();
            members.extend(of_route.iter().cloned());
            let way = Way {
                app: route.app.clone(),
                service: route.service.clone(),
                counters: Arc::clone(lasting.apps.entry(route.app.clone()).or_default()),
                protocol: route.protocol,
                limits: route.limits,
                queue: Arc::clone(lasting.queues.entry((route.app.clone(), route.service.clone())).or_default()),
                strip: route.strip.then(|| route.path.clone()).filter(|path| !path.is_root()),
                maintenance: route.maintenance.clone(),
                files,
                sticky: route.sticky.then(|| StickyCookie::of(&route.service, &route.path)),
            };
            let picker = Picker::new(route.balance, route.members.iter().map(|member| (member.group, member.weight)));
            routes.push(ActiveRoute { way: Arc::new(way), members: of_route, picker });
        }
        let mut kept = HashSet::with_capacity(members.len());
        kept.extend(members.iter().map(Arc::as_ptr));
        Self { lookup: Lookup::new(giving_way::each(&table.routes)), routes, members, kept, lasting }
    }
}

impl NoClaim {
    /// Counts the request where it belongs to an app: as failed, or as one that no instance was needed for.
    pub fn count(&self) {
        match self {
            Self::NoMember(way) => way.counters.nobody(),
            Self::Busy(way) => way.counters.failed(),
            Self::Files(way, _) => way.counters.file(),
            Self::UnknownHost | Self::UnknownPath | Self::Maintenance(_) => {}
        }
    }
}
