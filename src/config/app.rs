//! `[apps.NAME]`: what one repository branch deploys to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::field::Field;
use super::health::DEFAULT_START_DEADLINE;
use super::problem::Fault;
use super::reader::Section;
use super::service::{Inherited, SHORTHAND};
use super::suggest::valid_name;
use super::units::show_duration;
use super::volumes::Forbidden;
use super::{
    AgentConfig, App, Provider, ReleaseCommand, RepoUrl, Service, Strategy, Webhook, build, canary_of, credential,
    environment, rollout, route, routed_service, service,
};
use crate::model::{AppName, GitRef, ParseError, ServiceName, shorten};
use crate::proxy::PathPrefix;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) const DEFAULT_BUILD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
pub(super) const DEFAULT_DEADLINE: Duration = HOUR;
pub(super) const DEFAULT_KEEP_RELEASES: u32 = 5;
const DEFAULT_RELEASE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Shorter secrets could be guessed from one signed delivery.
const LEAST_WEBHOOK_SECRET: usize = 16;

/// An app, and what is compared with the other apps even when it has problems of its own.
pub(super) struct Read<'s> {
    pub name: String,
    pub claims: Vec<Claim>,
    pub canary: canary_of::Written<'s>,
    /// `None` when something that has no stand-in is missing; a problem says what.
    pub app: Option<App>,
}

/// A host and path that leads to a service, and where that is written.
pub(super) struct Claim {
    pub domain: String,
    pub path: PathPrefix,
    pub span: Range<usize>,
}

pub(super) fn read<'s>(name: &str, field: &Field<'s>, agent: &AgentConfig, forbidden: &Forbidden) -> Option<Read<'s>> {
    let section = field.section("write [apps.NAME] on a line of its own")?;
    let app_name: Option<AppName> = parse_name(name, field);
    let repo_field = section.require("repo", "write repo = \"https://HOST/PATH\"");
    let branch = section.take("branch").and_then(|field| field.parsed(branch));
    let allow_local = section.take("allow_local").and_then(|field| field.boolean()).unwrap_or(false);
    let repo = repo_field.as_ref().and_then(|field| field.parsed(|text| repo_url(text, allow_local)));
    let credential = credential::read(&section, repo.as_ref().zip(repo_field.as_ref()));
    let submodules = section.take("submodules").and_then(|field| field.boolean()).unwrap_or(false);
    let webhook = webhook(&section, agent);
    let canary = canary_of::read(&section);
    let domains_field = section.take("domains");
    let domains = domains_field.as_ref().map(route::domains).unwrap_or_default();
    let maintenance_field = section.take("maintenance");
    let maintenance = maintenance_field.as_ref().and_then(route::maintenance);
    section.unsupported("compose", "remove it, and describe the services under [apps.NAME.services]");
    section.unsupported("accessories", "run databases beside longshore, and name their address in env");

    let (build, build_timeout) = build::of_app(section.take("build"));
    let env = environment::read(section.take("env"));
    let (services, routes) = services(&section, &Inherited { build: &build, env: &env, forbidden });
    canary.refuse_ways_of_its_own([domains_field.as_ref(), maintenance_field.as_ref()], &routes);
    match &domains_field {
        _ if canary.is_canary() => {}
        Some(field) => check_route(field, &services),
        None => warn_without_domains(&section, &services, &routes),
    }
    let claims = if canary.is_canary() { Vec::new() } else { claims(&services, &domains, routes) };
    let release = section.take("release").and_then(|field| release(&field, &services));
    let leads_somewhere =
        services.values().any(|service| service.route.is_some()) || routed_service(services.values()).is_some();
    let requests = match leads_somewhere && !claims.is_empty() {
        _ if canary.is_canary() => rollout::Requests::Shared,
        true => rollout::Requests::Own,
        false => rollout::Requests::None,
    };
    let rollout = rollout::read(section.take("rollout"), requests);
    let deadline_field = section.take("deadline");
    let deadline =
        deadline_field.as_ref().and_then(|field| field.duration(SECOND..=7 * DAY)).unwrap_or(DEFAULT_DEADLINE);
    let keep_releases = section.take("keep_releases").and_then(|field| field.number(1..=100, "1 to 100"));
    let keep_releases = keep_releases.unwrap_or(DEFAULT_KEEP_RELEASES);

    let app = app_name.zip(repo).map(|(name, repo)| App {
        name,
        repo,
        branch: branch.unwrap_or_else(|| "main".to_owned()),
        credential,
        submodules,
        canary_of: canary.of.clone(),
        webhook,
        domains: domains.iter().map(|(domain, _)| domain.clone()).collect(),
        maintenance,
        release,
        services,
        rollout,
        build_timeout: build_timeout.unwrap_or(DEFAULT_BUILD_TIMEOUT),
        deadline,
        keep_releases,
    });
    if let Some(app) = &app {
        check_deadline(app, deadline_field.as_ref(), &section);
    }
    section.finish();
    Some(Read { name: name.to_owned(), claims, canary, app })
}

/// The name of an app or a service; what is no name is reported with one that is.
fn parse_name<T: std::str::FromStr<Err = ParseError>>(name: &str, field: &Field<'_>) -> Option<T> {
    match name.parse() {
        Ok(name) => Some(name),
        Err(ParseError(what)) => {
            let hint = valid_name(name).map_or("such as \"web\"".to_owned(), |name| format!("write {name:?}"));
            field.reader.problem(&field.key_span, shorten(&what, 200), hint);
            None
        }
    }
}

fn repo_url(text: &str, allow_local: bool) -> Result<RepoUrl, Fault> {
    RepoUrl::read(text, allow_local).map_err(|fault| Fault { what: format!(": {}", fault.what), ..fault })
}

fn branch(text: &str) -> Result<String, Fault> {
    let bad = |why: &str, hint: String| Err(Fault::new(format!(": {:?} {why}", shorten(text, 80)), hint));
    if let Some(short) = text.strip_prefix("refs/heads/") {
        return bad("is a full ref", format!("write the branch's short name, {:?}", shorten(short, 80)));
    }
    if text.starts_with("refs/") {
        return bad("is no branch", "write a branch's short name, such as \"main\"".to_owned());
    }
    let reserved = text == "HEAD" || text == "@" || text.starts_with('-');
    if reserved || GitRef::of_branch(text).is_err() {
        return bad("is no valid branch name", "write one branch's short name, such as \"main\"".to_owned());
    }
    Ok(text.to_owned())
}

fn webhook(app: &Section<'_>, agent: &AgentConfig) -> Option<Webhook> {
    const FORM: &str = "write webhook = { provider = \"github\", secret = { env = \"NAME\" } }";
    let Some(field) = app.take("webhook") else {
        let what = match agent.reconcile {
            Some(interval) => format!("a push is noticed only by the check every {}", show_duration(interval)),
            None => "no push is noticed, and only the CLI and the API deploy".to_owned(),
        };
        app.reader.warning(&app.span, format!("{} has no webhook: {what}", app.path), FORM);
        return None;
    };
    let section = field.section(FORM)?;
    if let Some(field) = section.take("provider") {
        match field.as_text() {
            Some(provider @ ("gitlab" | "gitea" | "forgejo" | "bitbucket" | "gogs")) => {
                let what = format!(" = {provider:?} is not supported by this version");
                field.problem(what, "use the post-receive hook, or write provider = \"github\"");
            }
            _ => {
                field.word(&[("github", ())]);
            }
        }
    }
    let field = section.require("secret", FORM);
    section.finish();
    let secret = field?.secret(|secret| match secret.len() {
        length if length < LEAST_WEBHOOK_SECRET => Err(Fault::new(
            format!("holds {length} bytes, and a webhook's secret needs at least 16"),
            "make one with: openssl rand -hex 32",
        )),
        _ => Ok(()),
    })?;
    Some(Webhook { provider: Provider::GitHub, secret })
}

type Services = BTreeMap<ServiceName, Service>;

fn services(app: &Section<'_>, inherited: &Inherited<'_>) -> (Services, Vec<route::Read>) {
    let Some(field) = app.take("services") else {
        // A one-service app: its keys stand in the app's own table.
        let web = "web".parse().ok().map(|web| service::shorthand(app, web, inherited));
        let (web, route) = web.unzip();
        let services = web.into_iter().map(|web| (web.name.clone(), web)).collect();
        return (services, route.flatten().into_iter().collect());
    };
    for key in SHORTHAND {
        if let Some(stray) = app.take(key) {
            let hint = format!("move it to [{}.services.web], or drop the services table", app.path);
            let what = format!("{} belongs to one service, and this app has {}.services", stray.path, app.path);
            stray.reader.problem(&stray.key_span, what, hint);
        }
    }
    let hint = "write [apps.NAME.services.SERVICE] for each service";
    let Some(section) = field.section(hint) else { return Default::default() };
    let (mut services, mut routes) = (BTreeMap::new(), Vec::new());
    let mut none = true;
    for (name, field) in section.entries() {
        none = false;
        let valid: Option<ServiceName> = parse_name(name, &field);
        // Under another name its own problems are found all the same.
        let name = valid.or_else(|| valid_name(name)?.parse().ok());
        if let Some((service, route)) = name.and_then(|name| service::read(name, &field, inherited)) {
            services.insert(service.name.clone(), service);
            routes.extend(route);
        }
    }
    if none {
        field.problem(" names no service", hint);
    }
    (services, routes)
}

/// What leads to the app's services: a route's own domains or else the app's, and the app's to the service without a
/// route.
fn claims(services: &Services, domains: &[(String, Range<usize>)], routes: Vec<route::Read>) -> Vec<Claim> {
    let claim = |(domain, span): &(String, Range<usize>), path: &PathPrefix| Claim {
        domain: domain.clone(),
        path: path.clone(),
        span: span.clone(),
    };
    let of_app = domains.iter().filter(|_| routed_service(services.values()).is_some() || routes.is_empty());
    let mut claims: Vec<Claim> = of_app.map(|domain| claim(domain, &PathPrefix::default())).collect();
    for read in routes.into_iter().filter(|read| !read.unclear) {
        let path = &read.route.path;
        match read.route.domains {
            Some(_) => claims.extend(read.domains.iter().map(|domain| claim(domain, path))),
            None => claims.extend(domains.iter().map(|(domain, _)| claim(&(domain.clone(), read.span.clone()), path))),
        }
    }
    claims
}

/// Domains lead to a service: to those with a route, and without any to exactly one.
fn check_route(domains: &Field<'_>, services: &Services) {
    let routed = services.values().any(|service| service.route.is_some());
    if services.is_empty() || routed || routed_service(services.values()).is_some() {
        return;
    }
    let with_port = services.values().filter(|service| service.port.is_some());
    match with_port.map(|service| service.name.as_str()).collect::<Vec<_>>().as_slice() {
        [] => domains.problem(" lead to no service: none has a port", "set port for the service that answers them"),
        several => domains.problem(
            format!(" could lead to {}", several.join(" or ")),
            "name the service that answers them \"web\", or write route = { path = \"/…\" } for each",
        ),
    }
}

fn warn_without_domains(app: &Section<'_>, services: &Services, routes: &[route::Read]) {
    for read in routes.iter().filter(|read| read.route.domains.is_none()) {
        let what = format!("{} has no domains for this route", app.path);
        app.reader.problem(&read.span, what, "write domains = [\"shop.example.com\"] for the app or in the route");
    }
    let unrouted = routed_service(services.values()).filter(|_| routes.is_empty());
    if let Some(service) = unrouted.or_else(|| services.values().find(|s| s.port.is_some() && routes.is_empty())) {
        let what = format!("{} has no domains: no request reaches its service {}", app.path, service.name);
        app.reader.warning(&app.span, what, "write domains = [\"shop.example.com\"]");
    }
}

fn release(field: &Field<'_>, services: &BTreeMap<ServiceName, Service>) -> Option<ReleaseCommand> {
    let section = field.section("write release = { command = [\"program\", \"argument\"] }")?;
    let command = section.require("command", "write command = [\"program\", \"argument\"]");
    let command = command.and_then(|field| field.argv());
    let timeout = section.take("timeout").and_then(|field| field.duration(SECOND..=DAY));
    let service = match section.take("service") {
        None => services.keys().find(|name| name.as_str() == "web").or_else(|| services.keys().next()).cloned(),
        Some(field) => field.text().and_then(|text| {
            let found = services.keys().find(|name| name.as_str() == text).cloned();
            if found.is_none() {
                let names: Vec<&str> = services.keys().map(ServiceName::as_str).collect();
                let what = format!(": the app has no service {:?}", shorten(text, 60));
                field.problem(what, format!("its services: {}", names.join(", ")));
            }
            found
        }),
    };
    section.finish();
    Some(ReleaseCommand { command: command?, timeout: timeout.unwrap_or(DEFAULT_RELEASE_TIMEOUT), service: service? })
}

/// What is longer than the whole deployment may take would never be waited for. Defaults do not count, except the
/// watch, which every deployment passes through to its end.
fn check_deadline(app: &App, field: Option<&Field<'_>>, section: &Section<'_>) {
    let mut stages = vec![("rollout.watch".to_owned(), app.rollout.watch)];
    if let Strategy::Canary(canary) = &app.rollout.strategy {
        let all = canary.all_pauses();
        stages
            .push((format!("rollout.pause, {} times, and rollout.watch", canary.steps.len()), all + app.rollout.watch));
    }
    if app.build_timeout != DEFAULT_BUILD_TIMEOUT {
        stages.push(("build.timeout".to_owned(), app.build_timeout));
    }
    if let Some(release) = app.release.as_ref().filter(|release| release.timeout != DEFAULT_RELEASE_TIMEOUT) {
        stages.push(("release.timeout".to_owned(), release.timeout));
    }
    for service in app.services.values().filter(|service| service.health.start_deadline != DEFAULT_START_DEADLINE) {
        stages.push((format!("start_deadline of {}", service.name), service.health.start_deadline));
    }
    let at = field.map_or_else(|| section.span.clone(), Field::span);
    for (stage, length) in stages.iter().filter(|(_, length)| *length >= app.deadline) {
        let (length, deadline) = (show_duration(*length), show_duration(app.deadline));
        section.reader.problem(
            &at,
            format!(
                "{}: {stage} ({length}) does not fit into the deadline of a whole deployment ({deadline})",
                section.path
            ),
            format!("raise deadline, or lower {stage}"),
        );
    }
}
