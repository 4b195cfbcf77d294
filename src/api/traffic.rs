//! What the proxy counts, as the API shows it: now, and during a rollout. What has not been counted is `null`, never zero.

use serde::{Deserialize, Serialize};

use crate::config::{App, Service};
use crate::histogram::Histogram;
use crate::model::InstanceId;
use crate::proxy::Counts;
use crate::rollout::InstanceState;
use crate::store::{Latency, Requests};

/// What became of the app's requests during a rollout; null is what is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestsView {
    /// Answered.
    pub served: Option<u64>,
    /// Those of them that the app itself answered with 5xx.
    pub server_errors: Option<u64>,
    /// Not answered.
    pub failed: Option<u64>,
    /// Given to a second instance.
    pub retried: Option<u64>,
    /// Ended when an instance's time to finish was over.
    pub cut_requests: Option<u64>,
    /// The same of WebSockets and event streams.
    pub cut_streams: Option<u64>,
    /// The longest time that a replaced instance took to finish.
    pub longest_drain_seconds: Option<f64>,
    /// How long answers took to begin.
    pub latency: LatencyView,
}

/// Before and during a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyView {
    /// Before.
    pub before: Option<QuantilesView>,
    /// During.
    pub during: Option<QuantilesView>,
}

/// In milliseconds, to the width of the proxy's buckets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QuantilesView {
    /// Half of them took less.
    pub p50_ms: f64,
    /// One in a hundred took longer.
    pub p99_ms: f64,
}

impl From<Latency> for QuantilesView {
    fn from(Latency { p50_us, p99_us }: Latency) -> Self {
        Self { p50_ms: p50_us as f64 / 1000.0, p99_ms: p99_us as f64 / 1000.0 }
    }
}

impl From<Requests> for RequestsView {
    fn from(requests: Requests) -> Self {
        let Requests { served, server_errors, failed, retried, latency_before, latency_during, drains } = requests;
        Self {
            served,
            server_errors,
            failed,
            retried,
            cut_requests: drains.and_then(|drains| drains.cut_requests),
            cut_streams: drains.and_then(|drains| drains.cut_streams),
            longest_drain_seconds: drains.map(|drains| drains.longest_ms as f64 / 1000.0),
            latency: LatencyView {
                before: latency_before.map(QuantilesView::from),
                during: latency_during.map(QuantilesView::from),
            },
        }
    }
}

/// What became of an app's requests since the proxy began. One that took over goes on counting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Answered whole by an instance.
    pub served: u64,
    /// Not answered, or not whole.
    pub failed: u64,
    /// Answers of the app itself with 5xx.
    pub server_errors: u64,
    /// Given to a second instance.
    pub retried: u64,
    /// Left by their clients before the end: neither served nor failed.
    pub client_aborted: u64,
    /// Requests for static files, for which no instance was asked: none of the above.
    pub files: u64,
    /// How long the instances' answers took to begin; null when there are none.
    pub latency: Option<QuantilesView>,
}

/// What a service has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceTrafficView {
    /// Requests and streams under way at its instances, those that drain included; null when the proxy does not answer or
    /// the instances are not known yet, and for a service without requests.
    pub in_flight: Option<u64>,
    /// Requests that wait for an instance with room; null when the proxy does not answer, and for a service without requests.
    pub waiting: Option<u64>,
}

/// What an instance has to do, and what it has done since it came into the table of this proxy process.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceTrafficView {
    /// Requests and streams under way; null when the proxy does not answer, and for an instance that it does not know.
    pub in_flight: Option<u64>,
    /// Answers that began; null like `in_flight`.
    pub answered: Option<u64>,
    /// Those of them with a 5xx.
    pub server_errors: Option<u64>,
    /// How long they took to begin; null when there are none.
    pub latency: Option<QuantilesView>,
}

impl TrafficView {
    /// `None` for a permanent canary: the proxy counts its requests as its production's.
    pub(super) fn of(app: &App, counts: &Counts) -> Option<Self> {
        let counted = counts.apps.get(&app.name).copied().unwrap_or_default();
        app.canary_of.is_none().then(|| Self {
            served: counted.served,
            failed: counted.failed,
            server_errors: counted.server_errors,
            retried: counted.retried,
            client_aborted: counted.client_aborted,
            files: counted.files,
            latency: quantiles(&counted.latency),
        })
    }
}

impl ServiceTrafficView {
    /// Without `instances` it is not known which there are.
    pub(super) fn of(
        app: &App,
        service: &Service,
        instances: Option<&[InstanceState]>,
        counts: Option<&Counts>,
    ) -> Self {
        let Some(counts) = counts.filter(|_| app.leads_to(service)) else { return Self::default() };
        let of_all = |instances: &[InstanceState]| {
            let own = instances.iter().filter(|instance| instance.service == service.name);
            sum(own.filter_map(|instance| in_flight(&instance.id, counts)))
        };
        let here = counts.queues.iter().filter(|queue| (&queue.app, &queue.service) == (&app.name, &service.name));
        Self { in_flight: instances.map(of_all), waiting: Some(sum(here.map(|queue| queue.waiting as u64))) }
    }
}

impl InstanceTrafficView {
    pub(super) fn of(instance: &InstanceId, counts: Option<&Counts>) -> Self {
        let Some(counts) = counts else { return Self::default() };
        let own = counts.instances.get(instance);
        Self {
            in_flight: in_flight(instance, counts),
            answered: own.map(|own| own.answered),
            server_errors: own.map(|own| own.server_errors),
            latency: own.and_then(|own| quantiles(&own.latency)),
        }
    }
}

/// Nothing is reported of an instance that has nothing: whether it is known tells the other list.
fn in_flight(instance: &InstanceId, counts: &Counts) -> Option<u64> {
    let busy = counts.in_flight.get(instance).copied();
    busy.or_else(|| counts.instances.contains_key(instance).then_some(0))
}

fn quantiles(histogram: &Histogram) -> Option<QuantilesView> {
    Latency::of(histogram).map(QuantilesView::from)
}

/// Counts come from another process: whatever they are, there is a sum.
fn sum(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proxy::control::InstanceCounts;

    #[test]
    fn each_instance_has_its_own_figures_and_what_is_not_known_is_null() {
        let id = |name: &str| InstanceId::parse(name).unwrap();
        let mut web = InstanceCounts { answered: 2, server_errors: 1, ..InstanceCounts::default() };
        web.latency.add(Duration::from_micros(500));
        let counts = Counts {
            apps: [].into(),
            in_flight: [(id("d2-web-1"), 3), (id("d1-web-1"), 1)].into(),
            instances: [(id("d2-web-1"), web), (id("d2-web-2"), InstanceCounts::default())].into(),
            queues: Vec::new(),
            boot: "boot".into(),
        };
        let of = |name: &str, counts| serde_json::to_value(InstanceTrafficView::of(&id(name), counts)).unwrap();
        let view = |in_flight: Option<u64>, answered: Option<u64>, server_errors: Option<u64>| {
            let latency = answered.filter(|&answered| answered > 0);
            let latency = latency.map(|_| serde_json::json!({ "p50_ms": 1.0, "p99_ms": 1.0 }));
            serde_json::json!({
                "in_flight": in_flight, "answered": answered, "server_errors": server_errors, "latency": latency,
            })
        };
        assert_eq!(of("d2-web-1", Some(&counts)), view(Some(3), Some(2), Some(1)));
        assert_eq!(of("d2-web-2", Some(&counts)), view(Some(0), Some(0), Some(0)), "nothing came yet");
        assert_eq!(
            of("d1-web-1", Some(&counts)),
            view(Some(1), None, None),
            "a process before this one has its streams"
        );
        assert_eq!(of("d2-worker-1", Some(&counts)), view(None, None, None));
        assert_eq!(of("d2-web-1", None), view(None, None, None), "the proxy does not answer");
    }
}
