//! An app's requests in a line. Pure.

use std::time::Duration;

use super::text::{clean, thousands};
use crate::api::traffic::QuantilesView;
use crate::api::views::AppView;
use crate::text::briefly;

/// `12,345 served, 3 failed, 120 files; 4 under way, 0 waiting; p50 1.2 ms, p99 9.0 ms`; `None` of an app that gets no
/// requests, and when the proxy does not answer.
pub(super) fn traffic(app: &AppView) -> Option<String> {
    let of_services = || app.services.iter().map(|service| service.traffic);
    let waiting = of_services().filter_map(|service| service.waiting).reduce(u64::saturating_add)?;
    let in_flight = of_services().filter_map(|service| service.in_flight).reduce(u64::saturating_add);
    let in_flight = in_flight.map_or("?".to_owned(), thousands);
    let Some(traffic) = &app.traffic else {
        let counted = app.canary_of.as_ref().map(|of| format!("; counted as {}'s", clean(&of.app)));
        return Some(format!("{in_flight} under way{}", counted.unwrap_or_default()));
    };
    let some = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!(", {} {what}", thousands(count)),
    };
    let (served, failed) = (thousands(traffic.served), thousands(traffic.failed));
    let (errors, files) = (some(traffic.server_errors, "answered with 5xx"), some(traffic.files, "files"));
    let latency = traffic.latency.map(|latency| format!("; {}", quantiles(latency))).unwrap_or_default();
    Some(format!(
        "{served} served{errors}, {failed} failed{files}; {in_flight} under way, {} waiting{latency}",
        thousands(waiting)
    ))
}

fn quantiles(latency: QuantilesView) -> String {
    let told = |ms: f64| briefly(Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default());
    format!("p50 {}, p99 {}", told(latency.p50_ms), told(latency.p99_ms))
}
