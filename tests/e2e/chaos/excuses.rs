//! Which requests may fail: what was taken away, and when.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clients::{Failure, Kind, What};

/// A death is heard of a little before or after its request breaks.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// What is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outage {
    /// The proxy: from its kill until it takes connections.
    Proxy,
    /// The engine, having ended its containers: from its kill until every instance is routed again.
    Engine,
}

/// Why a failed request counts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// The request met a killed proxy.
    ProxyKilled,
    /// The connection was open when the proxy was killed.
    ConnectionOfKilledProxy,
    /// The engine had taken every container with it.
    EngineDown,
    /// A request that must not be sent twice was with an instance that died.
    InstanceDied,
    /// A bad version's own answer: it was not the proxy's to mend.
    BadVersion,
}

impl Excuse {
    pub fn words(self) -> &'static str {
        match self {
            Self::ProxyKilled => "while the proxy was killed",
            Self::ConnectionOfKilledProxy => "connection open when the proxy was killed",
            Self::EngineDown => "no container runs: the engine was killed without live restore",
            Self::InstanceDied => "POST on an instance that died",
            Self::BadVersion => "500 of a bad version",
        }
    }
}

#[derive(Default)]
struct Record {
    outages: Vec<(Outage, Instant, Option<Instant>)>,
    deaths: Vec<Instant>,
    bad_versions: BTreeSet<String>,
}

/// What was declared, as it happens.
#[derive(Clone, Default)]
pub struct Excuses(Arc<Mutex<Record>>);

impl Excuses {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }

    /// Begins an outage; the number ends it.
    pub fn begin(&self, outage: Outage) -> usize {
        let mut record = self.record();
        record.outages.push((outage, Instant::now(), None));
        record.outages.len() - 1
    }

    pub fn end(&self, outage: usize) {
        self.record().outages[outage].2 = Some(Instant::now());
    }

    /// An instance ended with a code other than 0.
    pub fn died(&self, at: Instant) {
        self.record().deaths.push(at);
    }

    /// The version answers 500 now and then.
    pub fn bad_version(&self, version: &str) {
        self.record().bad_versions.insert(version.to_owned());
    }

    /// Whether something of the kind is away, or was a moment ago.
    pub fn is_away(&self, outage: Outage, moment: Duration) -> bool {
        let ended_before = |end: &Option<Instant>| end.is_some_and(|end| end.elapsed() > moment);
        self.record().outages.iter().any(|(which, _, end)| *which == outage && !ended_before(end))
    }

    /// Whether something of the kind was away at that time.
    pub fn was_away(&self, outage: Outage, at: Instant) -> bool {
        let outages = &self.record().outages;
        outages.iter().any(|(which, begin, end)| *which == outage && *begin <= at && end.is_none_or(|end| at <= end))
    }

    pub fn deaths_within(&self, time: Duration) -> usize {
        self.record().deaths.iter().filter(|at| at.elapsed() < time).count()
    }

    /// How long each outage of a kind was.
    pub fn lengths(&self, outage: Outage) -> Vec<Duration> {
        let record = self.record();
        let of_kind = record.outages.iter().filter(|(which, ..)| *which == outage);
        of_kind.filter_map(|(_, begin, end)| Some(end.as_ref()?.duration_since(*begin))).collect()
    }

    /// Why a failure is nobody's fault; `None`: it is one that was promised not to be.
    pub fn for_failure(&self, failure: &Failure) -> Option<Excuse> {
        let record = self.record();
        let during = |outage| {
            let outages = record.outages.iter().filter(move |(which, ..)| *which == outage);
            outages.clone().any(|(_, begin, end)| *begin <= failure.ended && end.is_none_or(|end| failure.began <= end))
        };
        match &failure.what {
            // An answer of another request is never right.
            What::Wrong(_) => return None,
            What::Status { status: 500, version, .. } if record.bad_versions.contains(version) => {
                return Some(Excuse::BadVersion);
            }
            What::Status { .. } | What::Broken(_) => {}
        }
        if during(Outage::Proxy) {
            return Some(Excuse::ProxyKilled);
        }
        let proxy_kills = record.outages.iter().filter(|(which, ..)| *which == Outage::Proxy);
        if failure.connected.is_some_and(|connected| {
            proxy_kills.clone().any(|(_, begin, _)| (connected..=failure.ended).contains(begin))
        }) {
            return Some(Excuse::ConnectionOfKilledProxy);
        }
        if during(Outage::Engine) {
            return Some(Excuse::EngineDown);
        }
        let near = |at: &Instant| *at + HEARD_WITHIN >= failure.began && *at <= failure.ended + HEARD_WITHIN;
        if failure.kind == Kind::Post && record.deaths.iter().any(near) {
            return Some(Excuse::InstanceDied);
        }
        None
    }
}
