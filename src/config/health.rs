//! `health`: when an instance counts as ready.

use std::time::Duration;

use super::field::Field;
use super::problem::Fault;
use super::reader::Section;
use super::units::show_duration;
use super::{HealthCheck, HealthPolicy};
use crate::model::shorten;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const MILLISECONDS_10: Duration = Duration::from_millis(10);

/// How long an instance may take to become ready unless the file says otherwise.
pub(super) const DEFAULT_START_DEADLINE: Duration = MINUTE;

const TABLE: &str = "write health = { path = \"/healthz\" }";

/// The policy of a service that does or does not listen on a port.
pub(super) fn read(field: Option<Field<'_>>, has_port: bool) -> HealthPolicy {
    let Some(section) = field.and_then(|field| field.section(TABLE)) else {
        return HealthPolicy {
            check: HealthCheck::Unset { stable_for: 10 * SECOND },
            interval: SECOND,
            timeout: 5 * SECOND,
            successes: 2,
            failures: 3,
            start_deadline: DEFAULT_START_DEADLINE,
        };
    };
    let check = written_check(&section, has_port);
    let duration = |key, least: Duration, most: Duration| {
        let field = section.take(key);
        field.and_then(|field| Some((field.duration(least..=most)?, field)))
    };
    let interval = duration("interval", MILLISECONDS_10, 10 * MINUTE);
    let timeout = duration("timeout", MILLISECONDS_10, 10 * MINUTE);
    let start_deadline = duration("start_deadline", 10 * MILLISECONDS_10, 24 * HOUR);
    let stable_for = duration("stable_for", MILLISECONDS_10, HOUR);
    let number =
        |key, default| section.take(key).and_then(|field| field.number(1..=100, "1 to 100")).unwrap_or(default);
    let (successes, failures) = (number("successes", 2), number("failures", 3));
    let limit = start_deadline.as_ref().map_or(DEFAULT_START_DEADLINE, |(limit, _)| *limit);

    if let Some((timeout, field)) = timeout.as_ref().filter(|(timeout, _)| *timeout > limit) {
        let what = format!(" ({}) is longer than start_deadline ({})", show_duration(*timeout), show_duration(limit));
        field.problem(what, "one check must fit into the time that an instance has to become ready");
    }
    let pace = interval.as_ref().map_or(SECOND.min(limit / 4), |(interval, _)| *interval);
    if pace * (successes - 1) >= limit {
        let (count, pace, limit) = (successes, show_duration(pace), show_duration(limit));
        section.problem(
            format!(
                "{}: {count} successes at an interval of {pace} do not fit into start_deadline ({limit})",
                section.path
            ),
            "raise start_deadline, or lower successes or interval",
        );
    }
    if let Some((stable_for, field)) = &stable_for {
        if check.is_some() {
            field.problem(" has no meaning beside path, tcp or command", "remove it");
        } else if *stable_for >= limit {
            let (stable_for, limit) = (show_duration(*stable_for), show_duration(limit));
            field.problem(
                format!(" ({stable_for}) does not fit into start_deadline ({limit})"),
                "raise start_deadline or lower stable_for",
            );
        }
    }
    section.finish();
    // What the file leaves open fits into a start deadline that it names.
    let stable_for = stable_for.map_or((10 * SECOND).min(limit / 2), |(stable_for, _)| stable_for);
    HealthPolicy {
        check: check.unwrap_or(HealthCheck::Unset { stable_for }),
        interval: pace,
        timeout: timeout.map_or((5 * SECOND).min(limit), |(timeout, _)| timeout),
        successes,
        failures,
        start_deadline: limit,
    }
}

/// The one check that is written; says so when there are several, or when a check has no port to ask.
fn written_check(section: &Section<'_>, has_port: bool) -> Option<HealthCheck> {
    let path = section.take("path");
    let tcp = section.take("tcp").filter(|field| field.boolean().unwrap_or(true));
    let command = section.take("command");
    let written: Vec<&Field<'_>> = [&path, &tcp, &command].into_iter().flatten().collect();
    if let [_, second, ..] = written.as_slice() {
        second.problem(" is a second check beside the first", "keep one of path, tcp and command");
    }
    if let (Some(field), false) = (path.as_ref().or(tcp.as_ref()), has_port) {
        field.problem(" asks a port, and the service has none", "set port, or write health = { command = [\"…\"] }");
    }
    // A check with a problem stays a check: the stand-in is never used.
    if let Some(field) = path {
        return Some(HealthCheck::Http { path: field.parsed(http_path).unwrap_or_else(|| "/".to_owned()) });
    }
    if tcp.is_some() {
        return Some(HealthCheck::Tcp);
    }
    command.map(|field| HealthCheck::Command { command: field.argv().unwrap_or_default() })
}

fn http_path(text: &str) -> Result<String, Fault> {
    let shown = shorten(text, 80);
    if !text.starts_with('/') {
        let hint = match text.contains("://") {
            true => "write only the path, such as \"/healthz\"".to_owned(),
            false => format!("write \"/{shown}\""),
        };
        return Err(Fault::new(format!(" must begin with /, got {shown:?}"), hint));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        let hint = "write it as it goes over the wire, with %20 and the like";
        return Err(Fault::new(format!(" holds a character that no request path has, got {shown:?}"), hint));
    }
    Ok(text.to_owned())
}
