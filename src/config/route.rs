//! `route`: which requests reach a service, and how they are shared among its instances; and what keeps all of them out.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use super::ServiceRoute;
use super::domain;
use super::field::Field;
use super::problem::Fault;
use super::reader::Section;
use crate::model::shorten;
use crate::proxy::table::{Maintenance, Protocol};
use crate::proxy::{Balance, PathPrefix, RouteLimits};

const FORM: &str = "write route = { path = \"/api\" }";

/// In bytes.
const LARGEST_PAGE: usize = 64 << 10;
/// Clients rarely wait for longer.
const LONGEST_WAITS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

/// A route, and where its parts are written.
pub(super) struct Read {
    pub route: ServiceRoute,
    pub span: Range<usize>,
    pub domains: Vec<(String, Range<usize>)>,
    /// Its path has a problem of its own.
    pub unclear: bool,
}

pub(super) fn read(field: &Field<'_>) -> Option<Read> {
    let section = field.section(FORM)?;
    let domains = section.take("domains").map(|field| self::domains(&field));
    let path = section.take("path").map(|field| field.parsed(path));
    let unclear = path == Some(None);
    let route = ServiceRoute {
        domains: domains.as_ref().map(|domains| domains.iter().map(|(domain, _)| domain.clone()).collect()),
        path: path.flatten().unwrap_or_default(),
        strip: section.take("strip").and_then(|field| field.boolean()).unwrap_or(false),
        balance: section.take("balance").and_then(|field| field.word(&BALANCES)).unwrap_or_default(),
        sticky: section.take("sticky").and_then(|field| field.boolean()).unwrap_or(false),
        protocol: section.take("protocol").and_then(|field| field.word(&PROTOCOLS)).unwrap_or_default(),
        limits: limits(&section),
    };
    if route.strip && route.path.is_root() && !unclear {
        section.problem(format!("{}: strip has no path to take off", section.path), "set path, or remove strip");
    }
    section.finish();
    Some(Read { route, span: field.span(), domains: domains.unwrap_or_default(), unclear })
}

/// `maintenance = true`, or with a page of the user's own.
pub(super) fn maintenance(field: &Field<'_>) -> Option<Maintenance> {
    if !field.is_table() {
        return field.boolean().filter(|&on| on).map(|_| Maintenance::default());
    }
    let section = field.section("write maintenance = true or maintenance = { page = \"maintenance.html\" }")?;
    let page = section.require("page", "write the path of an HTML file").and_then(|field| page(&field));
    section.finish();
    Some(Maintenance { page })
}

fn page(field: &Field<'_>) -> Option<String> {
    let path = field.file_path()?;
    // One app's page is no reason to keep the others waiting: until it is there, the proxy shows its own.
    let bad = |what: String, hint: &str| {
        field.absent(format!(" ({}) {what}", path.display()), hint);
        None
    };
    match std::fs::read(&path) {
        Err(why) => bad(format!("cannot be read: {why}"), "name an HTML file that the agent may read"),
        Ok(bytes) if bytes.len() > LARGEST_PAGE => {
            bad(format!("has {} bytes", bytes.len()), "write at most 65536 bytes; it is part of the route table")
        }
        Ok(bytes) => String::from_utf8(bytes).ok().or_else(|| bad("is not UTF-8".to_owned(), "save it as UTF-8")),
    }
}

/// How many requests an instance is given at a time, and how many may wait for how long.
fn limits(section: &Section<'_>) -> RouteLimits {
    let number = |key: &'static str, least| {
        let field = section.take(key)?;
        Some(field.number(least..=100_000, &format!("a number from {least} to 100000")))
    };
    let (most, queue) = (number("max_requests", 1).flatten(), number("queue", 0));
    let wait = section.take("queue_wait");
    // One that is wrong is still meant to be a queue.
    let is_without = matches!(queue, None | Some(Some(0)));
    let queue = queue.flatten();
    if let Some(field) = wait.as_ref().filter(|_| is_without) {
        field.problem(" is of no use without a queue", "add queue = 100, or remove it");
    }
    let usual = RouteLimits::default();
    RouteLimits {
        max_requests: most.map(u64::from),
        queue: queue.and_then(|queue| usize::try_from(queue).ok()).unwrap_or(usual.queue),
        queue_wait: wait.and_then(|field| field.duration(LONGEST_WAITS)).unwrap_or(usual.queue_wait),
    }
}

const BALANCES: [(&str, Balance); 2] =
    [("least_connections", Balance::LeastConnections), ("round_robin", Balance::RoundRobin)];

const PROTOCOLS: [(&str, Protocol); 2] = [("http1", Protocol::Http1), ("h2c", Protocol::H2c)];

pub(super) fn domains(field: &Field<'_>) -> Vec<(String, Range<usize>)> {
    let elements = field.list("write domains = [\"shop.example.com\"]").unwrap_or_default();
    let mut domains: Vec<(String, Range<usize>)> = Vec::new();
    for element in &elements {
        let Some(domain) = element.parsed(domain::read) else { continue };
        if domains.iter().any(|(other, _)| *other == domain) {
            element.problem(format!(": {domain} is there twice"), "remove one");
        } else {
            domains.push((domain, element.span()));
        }
    }
    domains
}

pub(super) fn path(text: &str) -> Result<PathPrefix, Fault> {
    PathPrefix::parse(text).map_err(|why| {
        let hint = "write the beginning of a path as it is sent, such as \"/api\"";
        Fault::new(format!(": {:?} {why}", shorten(text, 80)), hint)
    })
}
