//! From the file's text to a [`Config`], or to every problem at once.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::absent::{Absences, Kept, Source};
use super::app::Claim;
use super::field::Field;
use super::problem::{Fault, Problem, Problems};
use super::reader::{Findings, Reader, Section};
use super::secret_ref::Environment;
use super::source_url::is_loopback;
use super::volumes::Forbidden;
use super::{AgentConfig, App, Config, ProxyConfig, RuntimeConfig, app, canary_of, notify, proxy, syntax};
use crate::model::{AppName, shorten};
use crate::proxy::PathPrefix;

/// A configuration is written by a person.
const LARGEST_FILE: u64 = 1024 * 1024;

const DEFAULT_DATA_DIR: &str = "/var/lib/longshore";
const DEFAULT_DOCKER_HOST: &str = "unix:///var/run/docker.sock";

/// Reads and validates the file, secrets included: each reference must resolve now.
pub fn load(path: &Path) -> Result<Config, Problems> {
    nothing_absent(load_to_start(path)?, &path.display().to_string())
}

/// The same for a start, which nothing but the file's own faults may keep from happening: a secret that cannot be had is
/// absent ([`Config::absent`]), and what needs it does without.
pub fn load_to_start(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let refused = |problem| Problems { file: file.clone(), problems: vec![problem] };
    let text = read(path).map_err(refused)?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let dir = absolute.parent().unwrap_or(Path::new("/"));
    parse_to_start(&text, &file, dir, &|name: &str| std::env::var_os(name))
}

fn nothing_absent(config: Config, file: &str) -> Result<Config, Problems> {
    if config.absent.is_empty() {
        return Ok(config);
    }
    let problems = config.absent.all.into_iter().map(|absent| absent.problem).collect();
    Err(Problems { file: file.to_owned(), problems })
}

fn read(path: &Path) -> Result<String, Problem> {
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::of_file(
            format!("there is no configuration at {}", path.display()),
            "copy deploy.toml.example there and adapt it, or name another file with --config PATH",
        ),
        _ => Problem::of_file(format!("cannot be read: {error}"), "check that it is a file and who may read it"),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Problem::of_file("is larger than 1 MiB", "this is not a deploy.toml"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        let places = super::problem::Places::new(&valid);
        let end = valid.len()..valid.len();
        places.problem(&end, "is not UTF-8 text here".to_owned(), Some("save the file as UTF-8".to_owned()))
    })
}

/// Validates text; `file` is only for messages, `dir` is what relative paths are relative to. Secrets are read from
/// the process's own environment and from files.
pub fn parse(text: &str, file: &str, dir: &Path) -> Result<Config, Problems> {
    parse_in(text, file, dir, &|name: &str| std::env::var_os(name))
}

/// [`parse`] with `environment` in place of the process's own.
pub fn parse_in(text: &str, file: &str, dir: &Path, environment: &Environment<'_>) -> Result<Config, Problems> {
    nothing_absent(parse_to_start(text, file, dir, environment)?, file)
}

/// [`load_to_start`] of text.
pub(super) fn parse_to_start(
    text: &str,
    file: &str,
    dir: &Path,
    environment: &Environment<'_>,
) -> Result<Config, Problems> {
    parse_again(text, file, dir, environment, &Kept::new())
}

/// The same with what was read `before`.
pub(super) fn parse_again(
    text: &str,
    file: &str,
    dir: &Path,
    environment: &Environment<'_>,
    before: &Kept,
) -> Result<Config, Problems> {
    let tree = tree(text, file)?;
    let reader = Reader::new(text, dir, environment, before);
    let config = whole(Section::new(&reader, String::new(), 0..0, tree.get_ref()));
    let files = reader.take_files();
    let findings = reader.into_findings();
    if !findings.problems.is_empty() {
        return Err(Problems { file: file.to_owned(), problems: findings.into_problems() });
    }
    let Findings { warnings, absent: all, kept, .. } = findings;
    let source = Source { text: text.to_owned(), file: file.to_owned(), dir: dir.to_owned() };
    Ok(Config { files, warnings, absent: Absences { all, source, kept }, ..config })
}

fn tree<'t>(text: &'t str, file: &str) -> Result<Spanned<DeTable<'t>>, Problems> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(Problems { file: file.to_owned(), problems: syntax::problems(text, &errors) });
    }
    if tree.get_ref().is_empty() {
        // Read again at the wrong moment it would let every app go.
        let problem = Problem::of_file(
            "has no settings at all: it may be half written",
            "write it whole; to let every app go, leave a table such as [agent] in it",
        );
        return Err(Problems { file: file.to_owned(), problems: vec![problem] });
    }
    Ok(tree)
}

/// `[proxy]` alone, whatever is wrong elsewhere in the file: the proxy needs nothing else, and no secret.
pub fn load_proxy(path: &Path) -> Result<ProxyConfig, Problems> {
    let file = path.display().to_string();
    let text = read(path).map_err(|problem| Problems { file: file.clone(), problems: vec![problem] })?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let tree = tree(&text, &file)?;
    let before = Kept::new();
    let reader = Reader::new(&text, absolute.parent().unwrap_or(Path::new("/")), &|_: &str| None, &before);
    let section = Section::new(&reader, String::new(), 0..0, tree.get_ref());
    let (proxy, _) = proxy::read(section.take("proxy"));
    match reader.into_findings().into_problems() {
        problems if problems.is_empty() => Ok(proxy),
        problems => Err(Problems { file, problems }),
    }
}

fn whole(file: Section<'_>) -> Config {
    let (agent, listen_at) = agent(file.take("agent"));
    let (proxy, at) = proxy::read(file.take("proxy"));
    let listeners = [
        ("proxy.http", Some(proxy.http), at.http.clone()),
        ("proxy.https", proxy.https, at.https.clone()),
        ("agent.listen", Some(agent.listen), listen_at),
    ];
    for (earlier, (name, address, at)) in listeners.iter().enumerate() {
        for (other, taken, other_at) in listeners.iter().take(earlier) {
            if let (Some(address), Some(taken)) = (address, taken)
                && overlap(address, taken)
                && let Some(at) = other_at.as_ref().or(at.as_ref())
            {
                let what = format!("{other} ({taken}) and {name} ({address}) cannot both be listened on");
                file.reader.problem(at, what, "give the two different ports");
            }
        }
    }
    let runtime = runtime(file.reader, file.take("runtime"));
    let notify = notify::targets(file.take("notify"));
    let forbidden = Forbidden::new(&agent.data_dir, &runtime.docker_host);
    let apps = apps(file.take("apps"), &agent, &forbidden);
    file.finish();
    Config {
        agent,
        proxy,
        runtime,
        notify,
        apps,
        files: BTreeMap::new(),
        warnings: Vec::new(),
        absent: Absences::default(),
    }
}

/// `[agent]`, and where its `listen` is written.
fn agent(field: Option<Field<'_>>) -> (AgentConfig, Option<Range<usize>>) {
    let mut config = AgentConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
        data_dir: PathBuf::from(DEFAULT_DATA_DIR),
        public_url: None,
        reconcile: Some(Duration::from_secs(300)),
        min_free: 1 << 30,
    };
    let Some(section) = field.and_then(|field| field.section("write [agent] on a line of its own")) else {
        return (config, None);
    };
    let listen = section.take("listen");
    config.listen = listen.as_ref().and_then(socket_address).unwrap_or(config.listen);
    if let Some(field) = section.take("data_dir")
        && let Some(data_dir) = field.file_path()
    {
        if data_dir.parent().is_none() {
            field.problem(" is the root directory", "name a directory of the agent's own, such as /var/lib/longshore");
        }
        config.data_dir = data_dir;
    }
    config.public_url = section.take("public_url").and_then(|field| field.parsed(public_url));
    if let Some(field) = section.take("reconcile") {
        let bounds = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        config.reconcile = field.duration_or_zero(bounds).filter(|interval| !interval.is_zero());
    }
    if let Some(field) = section.take("min_free") {
        config.min_free = field.size(0, "0B").unwrap_or(config.min_free);
    }
    section.finish();
    (config, listen.map(|field| field.span()))
}

/// Whether two listeners would be in each other's way. Port 0 asks the system for a free one.
fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_host
}

fn runtime(reader: &Reader<'_>, field: Option<Field<'_>>) -> RuntimeConfig {
    let section = field.and_then(|field| field.section("write [runtime] on a line of its own"));
    let written = section.as_ref().and_then(|section| {
        if let Some(field) = section.take("kind") {
            match field.as_text() {
                Some(kind @ ("process" | "swarm")) => {
                    let what = format!(" = {kind:?} is not supported by this version");
                    field.problem(what, "write kind = \"docker\" or leave it out");
                }
                _ => {
                    field.word(&[("docker", ())]);
                }
            }
        }
        section.take("docker_host")
    });
    if let Some(section) = section {
        section.finish();
    }
    if let Some(field) = written {
        let docker_host = field.parsed(docker_host).unwrap_or_else(|| DEFAULT_DOCKER_HOST.to_owned());
        if reaches_over_network(&docker_host) {
            field.warning(
                format!(" = {docker_host:?} is neither encrypted nor authenticated"),
                "whoever reaches that address is root on its host; prefer unix:///var/run/docker.sock",
            );
        }
        return RuntimeConfig { docker_host };
    }
    let inherited = (reader.environment)("DOCKER_HOST").and_then(|host| host.into_string().ok());
    let docker_host = match inherited.filter(|host| !host.is_empty()).map(|host| docker_host(&host)) {
        None => DEFAULT_DOCKER_HOST.to_owned(),
        Some(Ok(host)) => host,
        Some(Err(fault)) => {
            let what = format!("the environment variable DOCKER_HOST{}", fault.what);
            reader.problem_of_file(what, "mend it, or write docker_host under [runtime]");
            DEFAULT_DOCKER_HOST.to_owned()
        }
    };
    RuntimeConfig { docker_host }
}

fn reaches_over_network(docker_host: &str) -> bool {
    let address = docker_host.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
    address.is_some_and(|(host, _)| !is_loopback(host))
}

/// Where to listen. A bare port is refused, since it leaves open who may connect.
pub(super) fn socket_address(field: &Field<'_>) -> Option<SocketAddr> {
    const FORM: &str = "write an IP address and a port in quotes, such as \"127.0.0.1:9000\" or \"[::]:80\"";
    if field.as_text().is_none() {
        field.problem(" must be IP:PORT in quotes", FORM);
        return None;
    }
    field.parsed(|text| {
        text.parse().map_err(|_| {
            let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
            let number = text.rsplit_once(':').map_or(text, |(_, port)| port);
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let hint = match (port.parse::<u16>(), number.parse::<u16>()) {
                (Ok(port), _) => {
                    format!("write \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for everybody")
                }
                (Err(_), Err(_)) if is_number => format!("{} is no port: ports are 1 to 65535", shorten(number, 20)),
                _ => FORM.to_owned(),
            };
            Fault::new(format!(" must be IP:PORT, got {:?}", shorten(text, 60)), hint)
        })
    })
}

fn public_url(text: &str) -> Result<String, Fault> {
    let hint = "write https://HOST, such as \"https://deploy.example.com\"";
    let url = text.trim_end_matches('/');
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~/:[]%".contains(c);
    match rest {
        // The value is not shown: what stands before the @ may be a password.
        Some(rest) if rest.contains('@') => Err(Fault::new(" holds credentials", hint)),
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') && rest.chars().all(allowed) => Ok(url.to_owned()),
        _ if text.contains('@') => Err(Fault::new(" must be an http or https address", hint)),
        _ => Err(Fault::new(format!(" must be an http or https address, got {:?}", shorten(text, 80)), hint)),
    }
}

fn docker_host(text: &str) -> Result<String, Fault> {
    let hint = "write \"unix:///var/run/docker.sock\" or \"tcp://127.0.0.1:2375\"";
    let bad = |why: &str| Err(Fault::new(format!(" {why}, got {:?}", shorten(text, 80)), hint));
    if let Some(path) = text.strip_prefix("unix://") {
        if path.starts_with('/') && path.len() > 1 && !path.contains('\0') {
            return Ok(text.to_owned());
        }
        return bad("must be an absolute path after unix://");
    }
    if let Some(address) = text.strip_prefix("tcp://") {
        let (host, port) = address.trim_end_matches('/').rsplit_once(':').unwrap_or((address, ""));
        let host_ok = !host.is_empty() && !host.contains(['@', '/', '?', '#']) && !host.contains(char::is_whitespace);
        if host_ok && port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Ok(text.to_owned());
        }
        return Err(Fault::new(" must be HOST:PORT after tcp://", hint));
    }
    match text.split_once("://").map(|(scheme, _)| scheme) {
        Some(scheme @ ("ssh" | "http" | "https" | "npipe")) => {
            Err(Fault::new(format!(" = \"{scheme}://…\" is not supported by this version"), hint))
        }
        _ if text.contains('@') => Err(Fault::new(" must begin with unix:// or tcp://", hint)),
        _ => bad("must begin with unix:// or tcp://"),
    }
}

fn apps(field: Option<Field<'_>>, agent: &AgentConfig, forbidden: &Forbidden) -> BTreeMap<AppName, App> {
    let Some(section) = field.and_then(|field| field.section("write [apps.NAME] for each app")) else {
        return BTreeMap::new();
    };
    let mut domains = Domains::default();
    let mut entries: Vec<(&str, Field<'_>)> = section.entries().collect();
    // In the order of the file, so that of two apps with one domain the second is the one to mend.
    entries.sort_by_key(|(_, field)| field.key_span.start);
    let reads = entries.iter().filter_map(|(name, field)| app::read(name, field, agent, forbidden));
    let reads: Vec<app::Read<'_>> = reads.collect();
    for read in &reads {
        for claim in &read.claims {
            domains.claim(section.reader, claim, &read.name);
        }
    }
    canary_of::check(&reads);
    reads.into_iter().filter_map(|read| read.app).map(|app| (app.name.clone(), app)).collect()
}

/// Which app has which domain, which of its paths are taken, and where that is written.
#[derive(Default)]
struct Domains(BTreeMap<String, (String, BTreeMap<PathPrefix, Range<usize>>)>);

impl Domains {
    fn claim(&mut self, reader: &Reader<'_>, claim: &Claim, app: &str) {
        let Claim { domain, path, span } = claim;
        let (first, paths) = self.0.entry(domain.clone()).or_insert_with(|| (app.to_owned(), BTreeMap::new()));
        let taken = match first == app {
            true => paths.get(path),
            false => paths.values().next(),
        };
        let Some(first_span) = taken else {
            paths.insert(path.clone(), span.clone());
            return;
        };
        let (one, other) = (reader.line_of(first_span), reader.line_of(span));
        let (what, hint) = match first == app {
            true => (
                format!("{app} names {domain}{path} twice (lines {one} and {other})"),
                "each path of a domain leads to one service; remove one, or give it another path",
            ),
            false => (
                format!("{first} and {app} both claim {domain} (lines {one} and {other})"),
                "a domain leads to one app; remove it from one of them",
            ),
        };
        reader.problem(span, what, hint);
    }
}
