//! The access log: a line for each request, written when its answer has ended. Off, it costs a look at a flag.
//!
//! A [`Visit`] goes along with a request and is told what becomes of it; dropped, it becomes a line. [`Sending`] takes it along
//! with the answer's body; a tunnel keeps it to its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hyper::header::{HOST, HeaderName, REFERER, USER_AGENT};
use hyper::{StatusCode, Version};
use jiff::Timestamp;

use super::fields::Fields;
use super::headers::{Origin, X_FORWARDED_FOR, joined};
use super::instance::Instance;
use super::message::{RequestHead, RequestId};
use super::routing::Way;
use crate::config::AccessLogConfig;

mod file;
mod line;
mod sending;
mod writer;

use file::Settings;
use line::{Entry, METHOD_LIMIT, TARGET_LIMIT, TEXT_LIMIT, bounded, bounded_end};
use writer::Writer;

pub use self::line::{End, Maker};
pub use self::sending::Sending;

/// Its name in the data directory, where no path is configured.
const FILE: &str = "access.log";

/// The log, on or off.
#[derive(Debug)]
pub struct AccessLog {
    default_path: PathBuf,
    /// Whether there is a writer: asked for each request.
    is_on: AtomicBool,
    writer: RwLock<Option<Writer>>,
}

impl AccessLog {
    /// Off, for the proxy of this data directory.
    pub fn off(data_dir: &Path) -> Arc<Self> {
        let default_path = data_dir.join(FILE);
        Arc::new(Self { default_path, is_on: AtomicBool::new(false), writer: RwLock::default() })
    }

    /// Turns it on or off, or to another file. What is under way is told where its end finds the log. Blocks.
    pub fn set(&self, config: Option<&AccessLogConfig>) {
        let wanted = config.map(|config| Settings {
            path: config.path.clone().unwrap_or_else(|| self.default_path.clone()),
            max_size: config.max_size,
            keep: config.keep,
        });
        let is_same = {
            let writer = self.writer.read().unwrap_or_else(PoisonError::into_inner);
            writer.as_ref().map(Writer::settings) == wanted.as_ref()
        };
        if is_same {
            return;
        }
        let next = wanted.map(Writer::start).transpose().unwrap_or_else(|error: io::Error| {
            tracing::error!(%error, "the access log is off: its thread cannot be started");
            None
        });
        self.is_on.store(next.is_some(), Relaxed);
        let before = std::mem::replace(&mut *self.writer.write().unwrap_or_else(PoisonError::into_inner), next);
        if let Some(before) = before {
            before.finish();
        }
    }

    /// Begins the story of a request whose head has come.
    pub fn begin(self: &Arc<Self>, request: &RequestHead, origin: &Origin, id: RequestId<'_>) -> Visit {
        if !self.is_on.load(Relaxed) {
            return Visit(None);
        }
        let text = |name: &HeaderName| Some(bounded(request.fields.get(name)?, TEXT_LIMIT));
        let host = request.uri.authority().map(|target| bounded(target.as_str().as_bytes(), TEXT_LIMIT));
        let target = request.uri.path_and_query().map_or("", |target| target.as_str());
        self.visit(Entry {
            forwarded_for: if origin.is_trusted { forwarded_for(&request.fields) } else { None },
            host: host.or_else(|| text(&HOST)),
            method: Some(bounded(request.method.as_str().as_bytes(), METHOD_LIMIT)),
            target: Some(bounded(target.as_bytes(), TARGET_LIMIT)),
            version: Some(version(request.version)),
            referer: text(&REFERER),
            user_agent: text(&USER_AGENT),
            ..unknown(origin, id)
        })
    }

    /// Begins the story of what came in place of a request: its method, target and version, if so much of it was one.
    pub fn begin_refused(
        self: &Arc<Self>,
        first_line: Option<(&[u8], &[u8], Version)>,
        origin: &Origin,
        id: RequestId<'_>,
    ) -> Visit {
        if !self.is_on.load(Relaxed) {
            return Visit(None);
        }
        self.visit(Entry {
            method: first_line.map(|(method, _, _)| bounded(method, METHOD_LIMIT)),
            target: first_line.map(|(_, target, _)| bounded(target, TARGET_LIMIT)),
            version: first_line.map(|(_, _, of)| version(of)),
            ..unknown(origin, id)
        })
    }

    fn visit(self: &Arc<Self>, entry: Entry) -> Visit {
        let bytes = Arc::default();
        Visit(Some(Box::new(Open { log: Arc::clone(self), began: Instant::now(), bytes, entry: Box::new(entry) })))
    }

    fn tell(&self, entry: Box<Entry>) {
        if let Some(writer) = &*self.writer.read().unwrap_or_else(PoisonError::into_inner) {
            writer.tell(entry);
        }
    }
}

/// What is told of a request of which only its client is known.
fn unknown(origin: &Origin, id: RequestId<'_>) -> Entry {
    Entry {
        time: Timestamp::now(),
        id: String::from_utf8_lossy(id.value().as_bytes()).into_owned(),
        client: String::from_utf8_lossy(origin.address.as_bytes()).into_owned(),
        forwarded_for: None,
        host: None,
        method: None,
        target: None,
        version: None,
        tls: origin.scheme == "https",
        app: None,
        service: None,
        instance: None,
        by: None,
        status: None,
        received: 0,
        sent: 0,
        first_byte_ms: None,
        duration_ms: 0.0,
        retries: 0,
        // Whatever else becomes of it is told.
        end: End::ClientLeft,
        referer: None,
        user_agent: None,
    }
}

/// Of all its lines: a proxy may leave what a client made up in one, and say what it saw itself in another.
fn forwarded_for(fields: &Fields) -> Option<String> {
    fields.contains(&X_FORWARDED_FOR).then(|| bounded_end(&joined(fields, &X_FORWARDED_FOR), TEXT_LIMIT))
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Bytes of bodies, counted as they pass.
#[derive(Debug, Default)]
pub struct PassedBytes {
    /// From the client.
    pub received: AtomicU64,
    /// To the client.
    pub sent: AtomicU64,
}

impl PassedBytes {
    /// Counts what came from the client.
    pub fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts what went to the client.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }
}

/// A request on its way to its line. With the log off there is nothing in it.
#[derive(Debug, Default)]
pub struct Visit(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    log: Arc<AccessLog>,
    began: Instant,
    bytes: Arc<PassedBytes>,
    entry: Box<Entry>,
}

impl Visit {
    /// Where its bytes are to be counted, if they are.
    pub fn bytes(&self) -> Option<Arc<PassedBytes>> {
        self.0.as_ref().map(|open| Arc::clone(&open.bytes))
    }

    /// The host that it asks for, as routes spell it.
    pub fn asks_for(&mut self, host: &str) {
        self.note(|entry| entry.host = Some(host.to_owned()));
    }

    /// The route it found.
    pub fn found(&mut self, way: &Way) {
        self.note(|entry| {
            entry.app = Some(way.app.to_string());
            entry.service = Some(way.service.to_string());
        });
    }

    /// It is answered with a static file, or with there being none.
    pub fn is_for_a_file(&mut self) {
        self.note(|entry| entry.by = Some(Maker::Static));
    }

    /// It is given to this instance.
    pub fn given_to(&mut self, instance: &Instance) {
        self.note(|entry| entry.instance = Some(instance.id.to_string()));
    }

    /// It is tried once more.
    pub fn retried(&mut self) {
        self.note(|entry| entry.retries += 1);
    }

    /// The answer is about to begin; who made it, where nobody has been named.
    pub fn answered(&mut self, status: StatusCode, by: Maker) {
        if let Some(open) = &mut self.0 {
            open.entry.first_byte_ms = Some(milliseconds(open.began.elapsed()));
            open.entry.status = Some(status.as_u16());
            open.entry.by.get_or_insert(by);
        }
    }

    /// This is how it ends, unless something else is told.
    pub fn ends(&mut self, end: End) {
        self.note(|entry| entry.end = end);
    }

    fn note(&mut self, change: impl FnOnce(&mut Entry)) {
        if let Some(open) = &mut self.0 {
            change(&mut open.entry);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let Open { log, began, bytes, mut entry } = *open;
            entry.duration_ms = milliseconds(began.elapsed());
            entry.received = bytes.received.load(Relaxed);
            entry.sent = bytes.sent.load(Relaxed);
            log.tell(entry);
        }
    }
}

/// With three decimal places.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}
