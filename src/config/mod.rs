//! `deploy.toml`: what the operator wants, validated as a whole.
//!
//! `reader` and `field` walk the file as a tree of values that know their places, and gather every problem. Each table of
//! `deploy.toml` has a file here (`app`, `service`, `build`, `health` …), and so has each rule for a value (`source_url`,
//! `units`, `domain` …); `validate` begins at the top.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::model::{AppName, ServiceName};
use crate::proxy::table::{Maintenance, Protocol};
use crate::proxy::{Balance, PathPrefix, RouteLimits};

mod absent;
mod acme;
mod app;
mod build;
mod canary_of;
mod credential;
mod domain;
mod environment;
mod field;
mod health;
mod limits;
mod notify;
mod problem;
mod proxy;
mod reader;
mod rollout;
mod route;
mod secret_ref;
mod service;
mod source_url;
mod static_files;
mod suggest;
mod syntax;
mod units;
mod validate;
mod volumes;

#[cfg(test)]
mod tests;

pub use absent::{Absences, Absent, Secret};
pub use canary_of::{CanaryOf, Fraction};
pub use problem::{Place, Problem, Problems};
pub use secret_ref::Environment;
pub use service::routed_service;
pub use source_url::RepoUrl;
pub use validate::{load, load_proxy, load_to_start, parse, parse_in};

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's own settings.
    pub agent: AgentConfig,
    /// The proxy's listeners.
    pub proxy: ProxyConfig,
    /// Where instances run.
    pub runtime: RuntimeConfig,
    /// Who is told.
    pub notify: Vec<NotifyTarget>,
    /// What is deployed.
    pub apps: BTreeMap<AppName, App>,
    /// Where the files that it names are written, by the dotted keys, such as `proxy.certificates[0].cert`.
    pub files: BTreeMap<String, Place>,
    /// What is accepted but deserves a word, such as a service without a health check.
    pub warnings: Vec<Problem>,
    /// Secrets and pages that are named and cannot be had: at the start, see [`load_to_start`], or since.
    pub absent: Absences,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Webhooks and API. Default `127.0.0.1:9000`.
    pub listen: SocketAddr,
    /// Journal, git mirrors, control sockets. Default `/var/lib/longshore`.
    pub data_dir: PathBuf,
    /// Used in links; no trailing slash.
    pub public_url: Option<String>,
    /// How often the branches' tips are compared with the journal (`reconcile = "5m"`); `None` = off (`"0s"`).
    pub reconcile: Option<Duration>,
    /// With fewer bytes left for the data directory or for the engine, no deployment is begun that builds. Default 1 GiB.
    pub min_free: u64,
}

/// `[proxy]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The plain HTTP listener. Default `0.0.0.0:80`.
    pub http: SocketAddr,
    /// The listener for HTTP over TLS; `None` = none.
    pub https: Option<SocketAddr>,
    /// Certificates on disk; each is used for the names that are in it.
    pub certificates: Vec<CertificateFiles>,
    /// Who issues certificates for the hosts that none of these files has one for; `None` = nobody.
    pub acme: Option<AcmeConfig>,
    /// Plain requests to a host that has a certificate are sent to https. Default on.
    pub redirect_http: bool,
    /// How long browsers are told to use https alone (`Strict-Transport-Security`); `None` = they are told nothing.
    pub hsts: Option<Duration>,
    /// Configured hosts without a certificate get one that nobody has signed. Default off.
    pub self_signed: bool,
    /// Peers whose word about where a request came from is passed on.
    pub trusted_proxies: Vec<IpNet>,
    /// A line for each request; `None` = none.
    pub access_log: Option<AccessLogConfig>,
    /// What a client may ask for.
    pub limits: ProxyLimits,
}

/// `[proxy.limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyLimits {
    /// Open at a time, in all; more wait until one has ended. Default, and at most: what the open files that the process
    /// may have are enough for. Counts from the proxy's next start on.
    pub connections: Option<usize>,
    /// Open at a time from one address (IPv6: one /64), unless it is a trusted proxy's. Default 1000.
    pub connections_per_client: usize,
    /// For the head of a request, from the beginning of the connection or the end of the answer before. Default 30 s.
    pub header_timeout: Duration,
    /// For the first byte of an answer, from the end of the request or the last sign of life of its body. Default 60 s.
    pub answer_timeout: Duration,
    /// A client that takes nothing of what is sent to it for so long is gone. Default 60 s.
    pub send_timeout: Duration,
    /// Of a request's head, in bytes. Default 64 KiB, at most 16 MiB.
    pub max_header_size: u32,
    /// Of a request's body, in bytes. Default: without a limit.
    pub max_body_size: Option<u64>,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections: None,
            connections_per_client: 1000,
            header_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
            max_header_size: 64 << 10,
            max_body_size: None,
        }
    }
}

impl ProxyConfig {
    /// One that serves plain HTTP alone.
    pub fn plain(http: SocketAddr) -> Self {
        Self {
            http,
            https: None,
            certificates: Vec::new(),
            acme: None,
            redirect_http: true,
            hsts: None,
            self_signed: false,
            trusted_proxies: Vec::new(),
            access_log: None,
            limits: ProxyLimits::default(),
        }
    }
}

/// `access_log`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Default: `access.log` in the data directory.
    pub path: Option<PathBuf>,
    /// Bytes until the file is set aside. Default 100 MiB.
    pub max_size: u64,
    /// How many of those are kept. Default 5.
    pub keep: u32,
}

/// A certificate with its chain, and its private key, each in a PEM file; both may be in one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// The certificate first, then those that lead to a root.
    pub cert: PathBuf,
    /// The private key: not readable by other users.
    pub key: PathBuf,
}

/// `acme` of `[proxy]`: a certificate authority that is asked by RFC 8555. To write it is to agree to its terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Of the account, for the authority to write to.
    pub email: String,
    /// Where the authority is. Default: Let's Encrypt.
    pub directory_url: String,
    /// How hosts are proven to be ours.
    pub challenge: Challenge,
    /// Roots (PEM) for the connection to the authority, in place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// `challenge`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Challenge {
    /// The authority asks for a page by plain HTTP on port 80 (RFC 8555, section 8.3).
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// It begins a TLS connection of a kind of its own on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Challenge {
    /// As it is written, here and in the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// `unix:///path` or `tcp://host:port`. Default: `$DOCKER_HOST`, else `unix:///var/run/docker.sock`.
    pub docker_host: String,
}

/// One `[[notify]]` entry.
#[derive(Debug, Clone)]
pub struct NotifyTarget {
    /// Where to.
    pub channel: Channel,
    /// What is told.
    pub events: Vec<NoticeKind>,
}

/// A kind of receiver.
#[derive(Debug, Clone)]
pub enum Channel {
    /// A Discord webhook.
    Discord {
        /// The webhook's address, a secret in itself.
        url: Secret,
        /// A loopback address is accepted (for tests and local stand-ins).
        allow_local: bool,
    },
}

/// What a notice tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// A deployment began.
    Started,
    /// It is live.
    Succeeded,
    /// It ended before anything was switched.
    Failed,
    /// It was undone.
    RolledBack,
    /// A newer one took its place.
    Superseded,
    /// A person ended it.
    Cancelled,
    /// The Docker engine has not answered for a while.
    EngineDown,
    /// It answers again.
    EngineUp,
    /// A canary that has a fixed share of the requests fails or is down, and production gets them all.
    CanaryDown,
    /// It gets its share again.
    CanaryUp,
    /// A certificate cannot be ordered or renewed, or the authority cannot be used, again and again.
    CertificateFailed,
    /// It is in order again.
    CertificateIssued,
}

impl NoticeKind {
    /// Every kind: the default of `events`.
    pub const ALL: [Self; 12] = [
        Self::Started,
        Self::Succeeded,
        Self::Failed,
        Self::RolledBack,
        Self::Superseded,
        Self::Cancelled,
        Self::EngineDown,
        Self::EngineUp,
        Self::CanaryDown,
        Self::CanaryUp,
        Self::CertificateFailed,
        Self::CertificateIssued,
    ];
}

/// `[apps.NAME]`
#[derive(Debug, Clone)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// Where the source comes from.
    pub repo: RepoUrl,
    /// The branch that deploys, by its short name. Default `main`.
    pub branch: String,
    /// How the repository is read.
    pub credential: Credential,
    /// Fetch submodules. Default off.
    pub submodules: bool,
    /// It gets a share of another app's requests instead of domains of its own.
    pub canary_of: Option<CanaryOf>,
    /// Who may push; without one there is no hook route.
    pub webhook: Option<Webhook>,
    /// Hosts routed to the app's services, unless their own routes name others; lower case.
    pub domains: Vec<String>,
    /// While it is there, requests get a page in place of the app.
    pub maintenance: Option<Maintenance>,
    /// Runs once in the new image before anything is switched.
    pub release: Option<ReleaseCommand>,
    /// Its process types; never empty.
    pub services: BTreeMap<ServiceName, Service>,
    /// How instances are replaced.
    pub rollout: RolloutPolicy,
    /// How long a build may take (`build.timeout`). Default 30 min.
    pub build_timeout: Duration,
    /// How long a whole deployment may take (`deadline`). Default 1 h.
    pub deadline: Duration,
    /// How many releases' images are kept. Default 5.
    pub keep_releases: u32,
}

impl Config {
    /// Whether every request that an app would get is answered with a page in its place: a canary's are its production's.
    pub fn in_maintenance(&self, app: &App) -> bool {
        let asked = app.canary_of.as_ref().map_or(Some(app), |canary| self.apps.get(&canary.app));
        asked.is_some_and(|app| app.maintenance.is_some())
    }
}

impl App {
    /// An app of which only the record knows any more: it can be undone, and nothing of it can be fetched or built.
    pub fn on_record(name: AppName, services: impl IntoIterator<Item = Service>) -> Self {
        Self {
            name,
            repo: RepoUrl::Local(PathBuf::new()),
            branch: String::new(),
            credential: Credential::None,
            submodules: false,
            canary_of: None,
            webhook: None,
            domains: Vec::new(),
            maintenance: None,
            release: None,
            services: services.into_iter().map(|service| (service.name.clone(), service)).collect(),
            rollout: RolloutPolicy { strategy: Strategy::Rolling, order: Order::StartFirst, watch: Duration::ZERO },
            build_timeout: app::DEFAULT_BUILD_TIMEOUT,
            deadline: app::DEFAULT_DEADLINE,
            keep_releases: app::DEFAULT_KEEP_RELEASES,
        }
    }

    /// Every host that leads to the app, its own first, each once.
    pub fn hosts(&self) -> Vec<&str> {
        let routes = self.services.values().filter_map(|service| service.route.as_ref()?.domains.as_ref());
        let mut hosts: Vec<&str> = Vec::new();
        for host in self.domains.iter().chain(routes.flatten()) {
            if !hosts.contains(&host.as_str()) {
                hosts.push(host);
            }
        }
        hosts
    }
}

/// How the agent proves itself to the git server.
#[derive(Debug, Clone)]
pub enum Credential {
    /// Anonymous.
    None,
    /// https with a token: `credential = { token = { env = "…" }, username = "x-access-token" }`.
    Token {
        /// The user name sent with it. Default `x-access-token`.
        username: String,
        /// The token.
        token: SecretString,
    },
    /// ssh with a deploy key and pinned host keys: `credential = { ssh_key = "PATH", known_hosts = "PATH" }`.
    SshKey {
        /// The private key's file, mode 0600.
        key: PathBuf,
        /// An OpenSSH known_hosts file; the server's key must be in it.
        known_hosts: PathBuf,
    },
    /// One is named and cannot be had: nothing is fetched, least of all without it.
    Absent(Absent),
}

impl Credential {
    /// Whether it cannot be had now.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::None | Self::Token { .. } => false,
            Self::SshKey { key, known_hosts } => [key, known_hosts].iter().any(|file| std::fs::metadata(file).is_err()),
            Self::Absent(_) => true,
        }
    }
}

/// `webhook = { provider = "github", secret = … }`
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Whose format.
    pub provider: Provider,
    /// At least 16 bytes. Without it no delivery can be checked, and none is taken.
    pub secret: Secret,
}

/// A webhook's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// GitHub and GitHub Enterprise Server.
    GitHub,
}

/// `[apps.NAME.release]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseCommand {
    /// argv, never a shell.
    pub command: Vec<String>,
    /// Default 5 min.
    pub timeout: Duration,
    /// In which service's image and environment it runs: `web`, else the first.
    pub service: ServiceName,
}

/// One service of an app with every default filled in. Serialisable, because a release keeps what it ran with:
/// secrets stay references in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `web`, `worker` …
    pub name: ServiceName,
    /// What its image is made of.
    pub build: Build,
    /// argv; `None` = the image's own.
    pub command: Option<Vec<String>>,
    /// The TCP port it listens on; `None` = a worker.
    pub port: Option<u16>,
    /// How many, 1 to 64 (0 is allowed for a service that is switched off).
    pub instances: u32,
    /// When an instance counts as ready.
    pub health: HealthPolicy,
    /// Bytes; `None` = unlimited.
    pub memory: Option<u64>,
    /// Thousandths of a processor; `None` = unlimited.
    pub cpu_millis: Option<u64>,
    /// Between SIGTERM and SIGKILL. Default 10 s.
    pub stop_grace: Duration,
    /// How long what is under way may go on after the switch.
    pub drain: Drain,
    /// Volumes by name or host path.
    pub volumes: Vec<Mount>,
    /// The app's environment with the service's own on top.
    pub env: BTreeMap<String, EnvValue>,
    /// Files that the proxy answers with in its place, by the prefix of their paths.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub static_files: BTreeMap<PathPrefix, FilesSource>,
    /// Which requests reach it, where that is written; see [`routed_service`] for where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<ServiceRoute>,
}

/// `route`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceRoute {
    /// Hosts, in lower case; `*.example.com` is every name with one more label. `None` = the app's.
    pub domains: Option<Vec<String>>,
    /// Which of their paths. Default: all that no other service of these hosts has.
    pub path: PathPrefix,
    /// Take the path off before an instance sees the request. Default off.
    pub strip: bool,
    /// How requests are shared. Default: by least connections.
    pub balance: Balance,
    /// A client stays with the instance that answered it first. Default off.
    pub sticky: bool,
    /// What the instances speak. Default: HTTP/1.1.
    pub protocol: Protocol,
    /// How many requests an instance is given at a time, and how many may wait. Default: without a limit, and none.
    pub limits: RouteLimits,
}

/// `static`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesSource {
    /// A directory of the service's image: absolute, or relative to the image's working directory.
    Image(String),
    /// A volume of the app.
    Volume {
        /// Which: one that the service mounts.
        name: String,
        /// A directory in it; empty for all of it.
        path: String,
    },
}

/// `build`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Path inside the repository. Default `Dockerfile`, relative to the context.
    pub dockerfile: String,
    /// Directory inside the repository. Default `.`.
    pub context: String,
    /// The stage to build; `None` = the last.
    pub target: Option<String>,
    /// Build arguments; never secrets.
    pub args: BTreeMap<String, String>,
    /// Secrets by id for `RUN --mount=type=secret,id=ID`; BuildKit only.
    pub secrets: BTreeMap<String, SecretRef>,
    /// Which of the engine's builders.
    pub builder: BuilderKind,
}

/// Which of the engine's builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuilderKind {
    /// BuildKit where the engine has it, else classic.
    Auto,
    /// BuildKit or failure.
    Buildkit,
    /// The classic builder.
    Classic,
}

/// `health`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthPolicy {
    /// What is asked.
    pub check: HealthCheck,
    /// Between two checks. Default 1 s; a starting instance is asked at once, then from 25 ms growing to this.
    pub interval: Duration,
    /// For one check. Default 5 s.
    pub timeout: Duration,
    /// Passes in a row until ready. Default 2.
    pub successes: u32,
    /// Failures in a row until a ready one is unready. Default 3.
    pub failures: u32,
    /// How long an instance may take to become ready. Default 60 s.
    pub start_deadline: Duration,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheck {
    /// `path = "/healthz"`: GET answers 2xx or 3xx.
    Http {
        /// Starts with `/`.
        path: String,
    },
    /// `tcp = true`: the port accepts a connection.
    Tcp,
    /// `command = […]`: exits 0 inside the instance.
    Command {
        /// argv.
        command: Vec<String>,
    },
    /// Nothing is configured: the image's own HEALTHCHECK where it has one; else TCP accept (with a port) and
    /// `stable_for` without a restart. Default 10 s.
    Unset {
        /// How long it must run without a restart.
        stable_for: Duration,
    },
}

/// `drain`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// For requests. Default 30 s.
    pub requests: Duration,
    /// For open streams (WebSocket, SSE). Default 60 s.
    pub streams: Duration,
}

/// `"media:/app/media"` or `"/srv/media:/app/media:ro"`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// A volume's name (kept per app) or an absolute host path.
    pub source: MountSource,
    /// Absolute path in the instance.
    pub target: String,
    /// `:ro`
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A named volume of the app, created when missing and never removed by a deployment.
    Volume(String),
    /// A directory of the host.
    Host(PathBuf),
}

/// A value of `env`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvValue {
    /// Written in the file.
    Literal(String),
    /// Found elsewhere.
    Secret(SecretRef),
}

/// Where a secret is. Only the reference is ever stored; [`SecretRef::resolve`] reads it when it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// `{ env = "NAME" }`: the agent's own environment.
    Env(String),
    /// `{ file = "PATH" }`: a file's content without the last line end; not readable by others.
    File(PathBuf),
}

/// `[apps.NAME.rollout]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPolicy {
    /// Which instances get requests on the way. Default: rolling, as in releases of earlier versions.
    #[serde(default)]
    pub strategy: Strategy,
    /// Whether the new instance starts before the old one stops.
    pub order: Order,
    /// How long the whole is watched after the last switch. Default 60 s. With none, errors that the app answers are not
    /// judged at all, not even while instances are replaced (by the analysis of a canary they are).
    pub watch: Duration,
}

/// `strategy`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// One instance after another.
    #[default]
    Rolling,
    /// New instances beside the old ones, with a share of the requests that grows in steps.
    Canary(CanaryPolicy),
}

/// `strategy = "canary"` with its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryPolicy {
    /// Shares of the requests in percent, growing, each below 100. Default 10 and 50. The last step, to all, goes without
    /// saying.
    pub steps: Vec<u32>,
    /// How long each of these shares is kept. Default 60 s.
    pub pause: Duration,
    /// Whether the new instances are compared with the old ones meanwhile. Default on.
    pub analysis: bool,
}

impl CanaryPolicy {
    /// How long it pauses in all, when nobody holds it.
    pub fn all_pauses(&self) -> Duration {
        self.pause * u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }
}

/// `order`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// New before old: never fewer than N.
    StartFirst,
    /// Old before new, where a volume or a port forces it: N − 1 for a while.
    StopFirst,
}
