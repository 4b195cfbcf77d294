//! The route table: replaced whole, never edited.

use std::borrow::Cow;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use serde::{Deserialize, Serialize};

use super::giving_way;
use super::path_prefix::PathPrefix;
use super::pick::Balance;
use super::queue::RouteLimits;
use crate::model::{AppName, InstanceId, ServiceName};

/// Everything the proxy routes by. The agent numbers each table it sends; the proxy keeps the newest on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Grows with every table.
    pub generation: u64,
    /// One per routed service.
    #[serde(with = "giving_way")]
    pub routes: Vec<Route>,
}

/// The way from hosts, and from one part of their paths, to the instances of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Lower-case host names, without port; `*.example.com` is every name with one more label in front.
    pub hosts: Vec<String>,
    /// Which paths: `/api` is `/api` and everything below `/api/`. The longest that fits a request is its route.
    #[serde(default, skip_serializing_if = "PathPrefix::is_root")]
    pub path: PathPrefix,
    /// Whether the instances are asked without it: `/api/users` becomes `/users`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strip: bool,
    /// How the instance is chosen among those of one weight.
    #[serde(default)]
    pub balance: Balance,
    /// Whether a client stays with the instance that answered it first, by a cookie.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    /// What the instances speak.
    #[serde(default)]
    pub protocol: Protocol,
    /// How many requests its instances are given, and how many may wait.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: RouteLimits,
    /// While it is there no instance is asked: every request gets a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    /// Requests below these prefixes are answered with files, whether an instance runs or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<StaticFiles>,
    /// Whose: requests are counted per app.
    pub app: AppName,
    /// Which service.
    pub service: ServiceName,
    /// The instances that are chosen; none when nothing of the app runs.
    pub members: Vec<Member>,
}

impl Route {
    /// All paths of these hosts, to instances that are shared by least connections.
    pub fn new(app: AppName, service: ServiceName, hosts: Vec<String>, members: Vec<Member>) -> Self {
        Self {
            hosts,
            path: PathPrefix::default(),
            strip: false,
            balance: Balance::default(),
            sticky: false,
            protocol: Protocol::default(),
            limits: RouteLimits::default(),
            maintenance: None,
            files: Vec::new(),
            app,
            service,
            members,
        }
    }
}

/// What instances speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1, and what it can be upgraded to.
    #[default]
    Http1,
    /// HTTP/2 without TLS, with prior knowledge (RFC 9113 §3.3): gRPC.
    H2c,
}

fn is_default(limits: &RouteLimits) -> bool {
    *limits == RouteLimits::default()
}

/// What is answered in place of an app that is being worked on: always with 503.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Maintenance {
    /// HTML; without any, a page of the proxy's own.
    pub page: Option<String>,
}

/// Files below a prefix of a host's paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticFiles {
    /// Which paths, as they are sent; a file's name is what follows it.
    pub prefix: PathPrefix,
    /// Where they are. The first that has a file answers, so those of an earlier release stay behind those of the live one.
    pub roots: Vec<FileRoot>,
}

impl StaticFiles {
    /// Adds directories that are not among these yet, behind them.
    pub fn add_roots(&mut self, more: &[FileRoot]) {
        for root in more {
            if !self.roots.contains(root) {
                self.roots.push(root.clone());
            }
        }
    }
}

/// A directory with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRoot {
    /// The agent's own; it may be a link.
    pub dir: PathBuf,
    /// A path below it, in which no link is followed: apps may write there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub below: String,
}

/// An instance that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which.
    pub instance: InstanceId,
    /// Where.
    pub address: SocketAddr,
    /// Its integer share, 1 and up.
    pub weight: u32,
    /// Inside a group members of one weight stand in for each other, and the least busy is chosen; between groups shares are
    /// exact. The instances of a canary are a group of their own. Not known to earlier versions.
    #[serde(default)]
    pub group: u8,
}

/// How long an instance that left the table may finish what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainLimits {
    /// For requests.
    pub requests: Duration,
    /// For open streams.
    pub streams: Duration,
}

impl DrainLimits {
    /// Of an instance that cannot answer any more.
    pub const NONE: Self = Self { requests: Duration::ZERO, streams: Duration::ZERO };

    /// Whether nothing is waited for.
    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// What no clock can add to the time of now is as good as a year.
    pub(super) fn bounded(self) -> Self {
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        Self { requests: self.requests.min(LONGEST), streams: self.streams.min(LONGEST) }
    }
}

/// Why a table cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTable {
    /// A host that no request could name.
    #[error("route of {app}: {host:?} is not a host name (lower case, without port or path)")]
    Host {
        /// Whose route.
        app: AppName,
        /// The text.
        host: String,
    },
    /// Two routes claim one host and path.
    #[error("{first} and {second} both claim the host {host}{path}")]
    HostTwice {
        /// The host.
        host: String,
        /// The path; empty for all of it.
        path: PathPrefix,
        /// Whose route came first.
        first: AppName,
        /// Whose came second.
        second: AppName,
    },
    /// A share of nothing: what is not to be chosen is left out instead.
    #[error("instance {0} has weight 0; leave it out of the table instead")]
    ZeroWeight(InstanceId),
    /// Each table has a higher number than the one before.
    #[error("generation {} leaves no number for the next table", u64::MAX)]
    LastGeneration,
    /// An id stands for one running copy, so it has one address and one place.
    #[error("instance {0} is listed twice")]
    InstanceTwice(InstanceId),
}

impl Table {
    /// Checks what the types do not: hosts are names and claimed once, instances are listed once with a share.
    pub fn validate(&self) -> Result<(), InvalidTable> {
        if self.generation == u64::MAX {
            return Err(InvalidTable::LastGeneration);
        }
        let mut owner: HashMap<(&str, &PathPrefix), &AppName> = HashMap::with_capacity(self.routes.len());
        let mut instances = HashSet::with_capacity(self.routes.iter().map(|route| route.members.len()).sum());
        for route in giving_way::each(&self.routes) {
            for host in &route.hosts {
                if !is_host(host.strip_prefix("*.").unwrap_or(host)) {
                    return Err(InvalidTable::Host { app: route.app.clone(), host: host.clone() });
                }
                if let Some(first) = owner.insert((host, &route.path), &route.app) {
                    let (host, path) = (host.clone(), route.path.clone());
                    return Err(InvalidTable::HostTwice {
                        host,
                        path,
                        first: first.clone(),
                        second: route.app.clone(),
                    });
                }
            }
            for member in &route.members {
                if member.weight == 0 {
                    return Err(InvalidTable::ZeroWeight(member.instance.clone()));
                }
                if !instances.insert(&member.instance) {
                    return Err(InvalidTable::InstanceTwice(member.instance.clone()));
                }
            }
        }
        Ok(())
    }
}

fn is_host(host: &str) -> bool {
    lookup_host(host).is_some_and(|found| found == host)
}

/// The name that a `Host` header asks for, as tables spell it: lower case, no port, no trailing dot.
/// `None` when it is no host at all.
pub fn lookup_host(authority: &str) -> Option<Cow<'_, str>> {
    let mut has_upper = true;
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (&authority[..address.len() + 2], port)
        }
        None => {
            let (end, upper) = name_in(authority.as_bytes())?;
            let (name, port) = authority.split_at(end);
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() || name.len() > 253 {
                return None;
            }
            has_upper = upper;
            (name, port)
        }
    };
    let port_is_number = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() <= 5,
        None => port.is_empty(),
    };
    if !port_is_number {
        return None;
    }
    Some(match has_upper {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    })
}

/// What a byte is in the name of a host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Of a label: a letter, a digit, `-` or `_`.
    Label,
    UpperLabel,
    Dot,
    Port,
    Nothing,
}

/// Of each byte: every request asks.
static MEANINGS: [Of; 256] = {
    let mut meanings = [Of::Nothing; 256];
    let mut byte = 0;
    while byte < 128 {
        meanings[byte] = match byte as u8 {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => Of::Label,
            b'A'..=b'Z' => Of::UpperLabel,
            b'.' => Of::Dot,
            b':' => Of::Port,
            _ => Of::Nothing,
        };
        byte += 1;
    }
    meanings
};

/// Where the name at the beginning ends, whose labels are not empty, and whether it has letters in upper case.
fn name_in(authority: &[u8]) -> Option<(usize, bool)> {
    let (mut before, mut has_upper) = (Of::Dot, false);
    for (place, &byte) in authority.iter().enumerate() {
        let meaning = MEANINGS[usize::from(byte)];
        match meaning {
            Of::Label => {}
            Of::UpperLabel => has_upper = true,
            Of::Dot if before != Of::Dot => {}
            Of::Port => return Some((place, has_upper)),
            Of::Dot | Of::Nothing => return None,
        }
        before = meaning;
    }
    Some((authority.len(), has_upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(app: &str, hosts: &[&str], members: &[(&str, u32)]) -> Route {
        let member = |&(id, weight): &(&str, u32)| Member {
            instance: InstanceId::parse(id).unwrap(),
            address: ([127, 0, 0, 1], 80).into(),
            weight,
            group: 0,
        };
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Route::new(app.parse().unwrap(), "web".parse().unwrap(), hosts, members.iter().map(member).collect())
    }

    #[test]
    fn a_host_header_is_read_as_tables_spell_it() {
        for (header, host) in [
            ("shop.example.com", Some("shop.example.com")),
            ("Shop.Example.COM:8080", Some("shop.example.com")),
            ("shop.example.com.", Some("shop.example.com")),
            ("localhost:", Some("localhost")),
            ("[::1]:80", Some("[::1]")),
            ("", None),
            (".", None),
            // A label of nothing is none, and so no `*.shop.example.com`.
            (".shop.example.com", None),
            ("shop..example.com", None),
            ("shop.example.com..", None),
            (":80", None),
            ("a b", None),
            ("a/b", None),
            ("user@a", None),
            ("a:80:90", None),
            ("a:x", None),
            ("[::1", None),
            ("[zz]", None),
            ("<script>", None),
        ] {
            assert_eq!(lookup_host(header).as_deref(), host, "{header}");
        }
    }

    #[test]
    fn limits_beyond_every_clock_have_an_end() {
        let limits = DrainLimits { requests: Duration::MAX, streams: Duration::from_secs(5) }.bounded();
        assert!(std::time::Instant::now().checked_add(limits.requests).is_some());
        assert_eq!(limits.streams, Duration::from_secs(5));
    }

    #[test]
    fn a_table_that_cannot_be_served_says_why() {
        let check = |routes: Vec<Route>| Table { generation: 1, routes }.validate().err().map(|e| e.to_string());
        assert_eq!(check(vec![route("a", &["a.test"], &[("d1-web-1", 1)]), route("b", &["b.test"], &[])]), None);
        let twice = check(vec![route("a", &["x.test"], &[]), route("b", &["x.test"], &[])]).unwrap();
        assert_eq!(twice, "a and b both claim the host x.test");
        assert!(check(vec![route("a", &["X.test"], &[])]).unwrap().contains("lower case"));
        assert!(check(vec![route("a", &["x.test:80"], &[])]).unwrap().contains("x.test:80"));
        assert!(check(vec![route("a", &[], &[("d1-web-1", 0)])]).unwrap().contains("weight 0"));
        let same = check(vec![route("a", &[], &[("d1-web-1", 1)]), route("b", &[], &[("d1-web-1", 1)])]);
        assert_eq!(same.unwrap(), "instance d1-web-1 is listed twice");
        let last = Table { generation: u64::MAX, routes: Vec::new() }.validate().unwrap_err().to_string();
        assert_eq!(last, "generation 18446744073709551615 leaves no number for the next table");
    }
}
