//! One service: a process type of an app.

use std::collections::BTreeMap;
use std::time::Duration;

use super::build::BuildKeys;
use super::field::Field;
use super::reader::Section;
use super::volumes::Forbidden;
use super::{Drain, EnvValue, HealthCheck, Service, build, environment, health, route, static_files, volumes};
use crate::model::ServiceName;

/// Keys of a service that a one-service app may put straight under `[apps.NAME]`.
pub(super) const SHORTHAND: [&str; 12] = [
    "command",
    "port",
    "instances",
    "health",
    "memory",
    "cpus",
    "stop_grace",
    "drain",
    "autoscale",
    "volumes",
    "route",
    "static",
];

/// The smallest memory limit that container engines take.
const LEAST_MEMORY: u64 = 6 << 20;

/// What an app gives to each of its services.
pub(super) struct Inherited<'a> {
    pub build: &'a BuildKeys,
    pub env: &'a BTreeMap<String, EnvValue>,
    pub forbidden: &'a Forbidden,
}

/// The service that requests reach without a `route` of its own: `web`, else the only one with a port and without a
/// route.
pub fn routed_service<'a>(services: impl Iterator<Item = &'a Service> + Clone) -> Option<&'a Service> {
    let mut with_port = services.filter(|service| service.port.is_some() && service.route.is_none());
    let web = with_port.clone().find(|service| service.name.as_str() == "web");
    match (web, with_port.next(), with_port.next()) {
        (Some(web), ..) => Some(web),
        (None, only, None) => only,
        (None, ..) => None,
    }
}

/// A service with a table of its own.
pub(super) fn read(
    name: ServiceName,
    field: &Field<'_>,
    inherited: &Inherited<'_>,
) -> Option<(Service, Option<route::Read>)> {
    let section = field.section("write [apps.NAME.services.SERVICE] on a line of its own")?;
    let build = inherited.build.clone().overridden_by(build::of_service(section.take("build")));
    let mut env = inherited.env.clone();
    env.extend(environment::read(section.take("env")));
    let service = settings(&section, name, build, env, inherited.forbidden);
    section.finish();
    Some(service)
}

/// The one service of an app in shorthand: its keys stand in the app's own table.
pub(super) fn shorthand(
    app: &Section<'_>,
    name: ServiceName,
    inherited: &Inherited<'_>,
) -> (Service, Option<route::Read>) {
    settings(app, name, inherited.build.clone(), inherited.env.clone(), inherited.forbidden)
}

fn settings(
    section: &Section<'_>,
    name: ServiceName,
    build: BuildKeys,
    env: BTreeMap<String, EnvValue>,
    forbidden: &Forbidden,
) -> (Service, Option<route::Read>) {
    if build.gives_secrets_to_classic() {
        section.problem(
            format!("{}: the classic builder knows no build secrets", section.path),
            "write builder = \"buildkit\", or remove build.secrets",
        );
    }
    section.unsupported("autoscale", "remove it and set instances");
    let port = section.take("port");
    // A port with a problem is still a port: nothing else should complain that there is none.
    let port =
        port.map(|field| field.number(1..=65_535, "1 to 65535").and_then(|n| u16::try_from(n).ok()).unwrap_or(1));
    let instances = section.take("instances");
    let instances =
        instances.and_then(|field| field.number(0..=64, "1 to 64 (0 switches the service off)")).unwrap_or(1);
    let health = health::read(section.take("health"), port.is_some());
    if let (Some(port), HealthCheck::Unset { .. }, true) = (port, &health.check, instances > 0) {
        section.reader.warning(
            &section.span,
            format!("{}: port {port} has no health check, so an instance that answers errors goes live", section.path),
            "write health = { path = \"/healthz\" }; an image's own HEALTHCHECK is used where it has one",
        );
    }
    let grace = Duration::from_millis(1)..=Duration::from_secs(3600);
    let route_field = section.take("route");
    let route = route_field.as_ref().and_then(route::read);
    if let (Some(field), None) = (&route_field, port) {
        field.problem(" leads to a service without a port", "set port, or remove route");
    }
    let mut service = Service {
        name,
        build: build.finish(),
        command: section.take("command").and_then(|field| field.argv()),
        port,
        instances,
        health,
        memory: section.take("memory").and_then(|field| field.size(LEAST_MEMORY, "6MiB")),
        cpu_millis: section.take("cpus").and_then(|field| field.thousandths(10..=1_024_000, "0.01 to 1024")),
        stop_grace: section.take("stop_grace").and_then(|field| field.duration(grace)).unwrap_or(10 * SECOND),
        drain: drain(section.take("drain")),
        volumes: section.take("volumes").and_then(|field| volumes::read(&field, forbidden)).unwrap_or_default(),
        env,
        static_files: BTreeMap::new(),
        route: route.as_ref().map(|read| read.route.clone()),
    };
    if let Some(field) = section.take("static") {
        if port.is_none() {
            field.problem(
                " belongs to a service without a port, to which no request leads",
                "set port, or remove static",
            );
        }
        let within = route.as_ref().map(|read| read.route.path.clone()).unwrap_or_default();
        service.static_files = static_files::read(&field, &within, &service.volumes);
    }
    (service, route)
}

const SECOND: Duration = Duration::from_secs(1);

fn drain(field: Option<Field<'_>>) -> Drain {
    let mut drain = Drain { requests: 30 * SECOND, streams: 60 * SECOND };
    let table = "write drain = { requests = \"30s\", streams = \"60s\" }";
    let Some(section) = field.and_then(|field| field.section(table)) else { return drain };
    if let Some(field) = section.take("requests") {
        let bounds = Duration::from_millis(1)..=3600 * SECOND;
        drain.requests = field.duration(bounds).unwrap_or(drain.requests);
    }
    if let Some(field) = section.take("streams") {
        let bounds = Duration::from_millis(1)..=24 * 3600 * SECOND;
        drain.streams = field.duration_or_zero(bounds).unwrap_or(drain.streams);
    }
    section.finish();
    drain
}
