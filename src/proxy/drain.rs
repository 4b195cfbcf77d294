//! An instance that left the table finishes what it has, within its budgets.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::client;
use super::control::Report;
use super::instance::{Instance, lock};
use super::server::Proxy;
use super::stagger::Stagger;
use super::table::{DrainLimits, Table};
use super::tunnel::QUIET_LIMIT;
use crate::model::InstanceId;

/// How long a cut may take to be noticed by whoever holds the claims; a stream may wait for the end of a message.
const CUT_SETTLES: Duration = QUIET_LIMIT.saturating_add(Duration::from_millis(250));
/// Ended drains whose numbers are kept for an agent that lost its connection meanwhile.
const REMEMBERED: usize = 256;

/// What a drain came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Requests ended by the limit.
    pub cut_requests: u64,
    /// Streams ended by the limit.
    pub cut_streams: u64,
    /// How long it took.
    pub took: Duration,
}

impl Drained {
    /// Of both.
    fn and(self, other: Self) -> Self {
        Self {
            cut_requests: self.cut_requests + other.cut_requests,
            cut_streams: self.cut_streams + other.cut_streams,
            took: self.took.max(other.took),
        }
    }
}

impl From<client::Drained> for Drained {
    fn from(told: client::Drained) -> Self {
        Self { cut_requests: told.cut_requests, cut_streams: told.cut_streams, took: told.took }
    }
}

/// The drains under way and those that ended lately.
#[derive(Debug, Default)]
pub struct Drains {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The limits as absolute times; a repeated order may only shorten them.
    active: HashMap<InstanceId, watch::Sender<Deadlines>>,
    ended: VecDeque<(InstanceId, Drained)>,
}

#[derive(Debug, Clone, Copy)]
struct Deadlines {
    requests: Instant,
    streams: Instant,
}

impl Deadlines {
    fn from(limits: DrainLimits) -> Self {
        let (now, limits) = (Instant::now(), limits.bounded());
        Self { requests: now + limits.requests, streams: now + limits.streams }
    }

    fn sooner(self, other: Self) -> Self {
        Self { requests: self.requests.min(other.requests), streams: self.streams.min(other.streams) }
    }
}

impl Drains {
    /// What came back into the table leaves it afresh the next time.
    pub fn forget(&self, table: &Table) {
        let routed: HashSet<&InstanceId> =
            table.routes.iter().flat_map(|route| &route.members).map(|member| &member.instance).collect();
        lock(&self.state).ended.retain(|(id, _)| !routed.contains(id));
    }
}

/// Begins to drain an instance; its end is told to every connected agent. Told again (by an agent that lost its
/// connection), it goes on, or its end is told again.
pub fn begin(proxy: &Arc<Proxy>, id: &InstanceId, limits: DrainLimits) {
    let deadlines = Deadlines::from(limits);
    let instances = proxy.routing.find(id);
    if instances.iter().any(|instance| instance.is_routed()) {
        tracing::warn!(instance = %id, "asked to drain an instance that the table still has; ignored");
        return;
    }
    let busy: Vec<Arc<Instance>> = instances.into_iter().filter(|instance| instance.load() > 0).collect();
    if limits.is_none() {
        busy.iter().for_each(|instance| instance.set_lost());
    }
    let before = proxy.predecessor().filter(|before| before.is_there());
    let watched = {
        let mut state = lock(&proxy.drains.state);
        if let Some(active) = state.active.get(id) {
            active.send_modify(|current| *current = current.sooner(deadlines));
            drop(state);
            if let Some(before) = before {
                let id = id.clone();
                // The first one who asked gets the answer; this only shortens the limits.
                tokio::spawn(async move { before.drain(&id, limits).await });
            }
            return;
        }
        if busy.is_empty() {
            let known = state.ended.iter().rev().find(|(ended, _)| ended == id).map(|&(_, drained)| drained);
            if known.is_some() || before.is_none() {
                drop(state);
                proxy.tell(report(id, known.unwrap_or_default()));
                return;
            }
        }
        let (sender, watched) = watch::channel(deadlines);
        state.active.insert(id.clone(), sender);
        watched
    };
    let (proxy, id) = (Arc::clone(proxy), id.clone());
    tokio::spawn(async move {
        let in_process_before = async {
            match before {
                Some(before) => before.drain(&id, limits).await.into(),
                None => Drained::default(),
            }
        };
        let (here, there) = tokio::join!(drain_all(&busy, watched), in_process_before);
        let drained = here.and(there);
        {
            let mut state = lock(&proxy.drains.state);
            state.active.remove(&id);
            state.ended.push_back((id.clone(), drained));
            if state.ended.len() > REMEMBERED {
                state.ended.pop_front();
            }
        }
        proxy.tell(report(&id, drained));
    });
}

fn report(id: &InstanceId, drained: Drained) -> Report {
    Report::Drained {
        instance: id.clone(),
        cut_requests: drained.cut_requests,
        cut_streams: drained.cut_streams,
        took_ms: u64::try_from(drained.took.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Usually one; an instance that had moved to another address may have left something at the old one.
async fn drain_all(instances: &[Arc<Instance>], watched: watch::Receiver<Deadlines>) -> Drained {
    let ended = instances.iter().map(|instance| drain(instance, watched.clone()));
    let mut sum = Drained::default();
    for one in futures_util::future::join_all(ended).await {
        sum = sum.and(one);
    }
    sum
}

async fn drain(instance: &Instance, mut watched: watch::Receiver<Deadlines>) -> Drained {
    let started = Instant::now();
    let mut drained = Drained::default();
    let (mut requests_cut, mut streams_cut, mut stagger) = (false, false, Stagger::new(started.into_std()));
    // A table that has the instance again ends the drain: it is to stay.
    let is_over = |instance: &Instance| instance.load() == 0 || instance.is_routed();
    loop {
        let deadlines = *watched.borrow_and_update();
        if Instant::now() >= deadlines.streams {
            streams_cut = true;
            drained.cut_streams += instance.cut_streams(usize::MAX);
        }
        if requests_cut && (streams_cut || instance.streams() == 0) {
            // Whoever has not noticed by then is not waited for.
            let _ = timeout(CUT_SETTLES, instance.until(is_over)).await;
            break;
        }
        let (open, uncut) = (instance.streams(), instance.uncut_streams());
        tokio::select! {
            biased;
            () = instance.until(|now| is_over(now) || now.streams() != open) => if is_over(instance) { break },
            () = sleep_until(deadlines.requests), if !requests_cut => {
                requests_cut = true;
                drained.cut_requests = instance.cut_requests();
            }
            () = sleep_until(stagger.next(deadlines.streams.into_std(), uncut).into()), if open > 0 && !streams_cut => {
                let due = stagger.take_due(deadlines.streams.into_std(), uncut, Instant::now().into_std());
                drained.cut_streams += instance.cut_streams(due);
            }
            _ = watched.changed() => {}
        }
    }
    drained.took = started.elapsed();
    drained
}
