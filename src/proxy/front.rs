//! What the proxy shows to clients beside the routes: certificates, the way to https, and whom it believes; and whether it
//! keeps a log of them. Read from the configuration at the start and again when it is told to; certificates also when their
//! files change.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hyper::header::HeaderValue;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::rustls;

use rustls::crypto::ring;
use rustls::server::ProducesTickets;

use super::access_log::AccessLog;
use super::certificate::Certificate;
use super::certificates::{Certificates, best};
use super::headers::Origin;
use super::instance::lock;
use super::routing::Routing;
use crate::config::{self, CertificateFiles, ProxyConfig};

/// How often the certificates' files are looked at: they may be links to links, whose changes no event tells.
const LOOK: Duration = Duration::from_secs(2);
/// Where the agent puts the certificates that were issued to it, in the data directory.
pub const ISSUED: &str = "acme/certificates";

/// The settings in force.
#[derive(Debug)]
pub struct Front {
    /// As configured. The listeners in it are those of the start.
    pub settings: ProxyConfig,
    /// `Strict-Transport-Security`
    pub hsts: Option<HeaderValue>,
    certificates: Certificates,
    issued: Certificates,
}

impl Front {
    fn new(settings: ProxyConfig, certificates: Certificates, issued: Certificates) -> Self {
        let hsts = settings.hsts.and_then(|hsts| HeaderValue::from_str(&format!("max-age={}", hsts.as_secs())).ok());
        Self { settings, hsts, certificates, issued }
    }

    /// Whether clients can reach this host by https.
    pub fn has_certificate(&self, host: &str) -> bool {
        self.certificates_of(host).next().is_some()
    }

    /// A person's choice comes before what was ordered.
    fn certificates_of(&self, host: &str) -> impl Iterator<Item = &Arc<Certificate>> + Clone {
        self.certificates.of(host).chain(self.issued.of(host))
    }

    /// Whether there are files that may change.
    fn has_files(&self) -> bool {
        !self.settings.certificates.is_empty() || self.settings.acme.is_some()
    }
}

/// The settings, and how they change.
pub struct Fronts {
    current: RwLock<Arc<Front>>,
    /// How often they have changed.
    changes: AtomicU64,
    /// `deploy.toml`, when there is one.
    config: Option<PathBuf>,
    /// The directory of certificates that were issued to the agent.
    issued: PathBuf,
    tickets: Arc<dyn ProducesTickets>,
    self_signed: Mutex<Vec<Arc<Certificate>>>,
    read_again: Arc<Notify>,
    access_log: Arc<AccessLog>,
}

impl std::fmt::Debug for Fronts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fronts").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Fronts {
    /// Reads the certificates. What is wrong with one is in the log: the others are served. Whenever `read_again` is notified,
    /// `config` is read again. Blocks.
    pub fn new(
        settings: ProxyConfig,
        config: Option<PathBuf>,
        issued: PathBuf,
        read_again: Arc<Notify>,
        access_log: Arc<AccessLog>,
    ) -> Result<Self, rustls::Error> {
        access_log.set(settings.access_log.as_ref());
        let tickets = ring::Ticketer::new()?;
        let certificates = Certificates::default().renewed(&settings.certificates, &tickets).unwrap_or_default();
        let found = Certificates::default().renewed(&issued_files(&settings, &issued), &tickets).unwrap_or_default();
        let current = RwLock::new(Arc::new(Front::new(settings, certificates, found)));
        Ok(Self {
            current,
            changes: AtomicU64::new(0),
            config,
            issued,
            tickets,
            self_signed: Mutex::default(),
            read_again,
            access_log,
        })
    }

    /// Those of now.
    pub fn current(&self) -> Arc<Front> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is the same for all requests of a connection, until the settings change.
    pub fn origin(&self, peer: IpAddr, secure: bool) -> Arc<Origin> {
        let as_of = self.changes.load(Acquire);
        Arc::new(Origin::new(peer, secure, &self.current(), as_of))
    }

    /// The same by the settings of now, if they have changed since.
    pub fn newer(&self, origin: &Origin) -> Option<Arc<Origin>> {
        (self.changes.load(Acquire) != origin.as_of).then(|| self.origin(origin.peer, origin.scheme == "https"))
    }

    /// Where requests are told.
    pub fn access_log(&self) -> &Arc<AccessLog> {
        &self.access_log
    }

    /// Has the configuration read again, soon.
    pub fn read_again(&self) {
        self.read_again.notify_one();
    }

    /// Follows the files for ever.
    pub async fn follow(self: &Arc<Self>) {
        loop {
            let asked = self.read_again.notified();
            let is_asked = match self.current().has_files() {
                true => timeout(LOOK, asked).await.is_ok(),
                false => {
                    asked.await;
                    true
                }
            };
            let fronts = Arc::clone(self);
            let _ = tokio::task::spawn_blocking(move || fronts.look(is_asked)).await;
        }
    }

    fn look(&self, at_config: bool) {
        let before = self.current();
        let mut settings = before.settings.clone();
        if at_config && let Some(path) = &self.config {
            match config::load_proxy(path) {
                // Where it listens is settled at the start.
                Ok(fresh) => settings = ProxyConfig { http: settings.http, https: settings.https, ..fresh },
                Err(problems) => tracing::error!("[proxy] is not read again, the old one stays in force:\n{problems}"),
            }
        }
        self.access_log.set(settings.access_log.as_ref());
        let renewed = before.certificates.renewed(&settings.certificates, &self.tickets);
        let issued = before.issued.renewed(&issued_files(&settings, &self.issued), &self.tickets);
        if renewed.is_none() && issued.is_none() && settings == before.settings {
            return;
        }
        let certificates = renewed.unwrap_or_else(|| before.certificates.clone());
        let issued = issued.unwrap_or_else(|| before.issued.clone());
        let front = Arc::new(Front::new(settings, certificates, issued));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = front;
        self.changes.fetch_add(1, Release);
        tracing::info!("[proxy] is in force as it is now");
    }

    /// What to serve a host with, one that is valid now if there is one; `None`: nothing.
    pub fn certificate(&self, host: &str, routing: &Routing) -> Option<Arc<Certificate>> {
        let front = self.current();
        if let Some(found) = best(front.certificates_of(host), Timestamp::now()) {
            return Some(Arc::clone(found));
        }
        if !front.settings.self_signed {
            return None;
        }
        // One for each name that is configured, and for a wildcard one in all: strangers cannot have certificates made.
        let name = routing.name_of(host)?;
        let mut made = lock(&self.self_signed);
        if let Some(found) = made.iter().find(|certificate| certificate.facts.names.contains(&name)) {
            return Some(Arc::clone(found));
        }
        match Certificate::self_signed(&name, &self.tickets) {
            Ok(certificate) => {
                let certificate = Arc::new(certificate);
                made.push(Arc::clone(&certificate));
                Some(certificate)
            }
            Err(error) => {
                tracing::error!(host, error, "cannot make a certificate");
                None
            }
        }
    }
}

/// Chain and key of each are in one file, so that both are replaced at once. None is served when none is wanted.
fn issued_files(settings: &ProxyConfig, issued: &Path) -> Vec<CertificateFiles> {
    if settings.acme.is_none() {
        return Vec::new();
    }
    let entries = match fs::read_dir(issued) {
        Ok(entries) => entries,
        // Before the first one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(%error, directory = %issued.display(), "issued certificates cannot be looked for");
            return Vec::new();
        }
    };
    let paths = entries.flatten().map(|entry| entry.path());
    // One that is being written has another ending.
    let mut whole: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ending| ending == "pem")).collect();
    whole.sort();
    whole.into_iter().map(|path| CertificateFiles { cert: path.clone(), key: path }).collect()
}
