//! From the `Host` of a request and its target to a route: as looking at every route by hand finds it.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use longshore::fuzzing;
use longshore::proxy::PathPrefix;
use longshore::proxy::table::{Route, Table, lookup_host};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    routes: Vec<(Vec<Host<'a>>, Path<'a>)>,
    asked: Asked<'a>,
    path: Path<'a>,
    target: &'a [u8],
}

/// Of few labels, so that routes and requests meet.
#[derive(Arbitrary, Debug)]
enum Host<'a> {
    Of { is_wildcard: bool, labels: Vec<Label> },
    Free(&'a str),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Label {
    A,
    B,
    Ab,
    Upper,
    Empty,
}

#[derive(Arbitrary, Debug)]
enum Asked<'a> {
    Labels { labels: Vec<Label>, dot: bool, port: Option<u16> },
    Free(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Path<'a> {
    Of { segments: Vec<Segment>, slash: bool },
    Free(&'a str),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Segment {
    A,
    B,
    Ab,
    Escaped,
    Dots,
    Empty,
}

fn labels(labels: &[Label]) -> String {
    let text = |label: &Label| match label {
        Label::A => "a",
        Label::B => "b",
        Label::Ab => "ab",
        Label::Upper => "A",
        Label::Empty => "",
    };
    labels.iter().map(text).collect::<Vec<_>>().join(".")
}

impl Host<'_> {
    fn text(&self) -> String {
        match self {
            Self::Of { is_wildcard, labels: of } => format!("{}{}", if *is_wildcard { "*." } else { "" }, labels(of)),
            Self::Free(text) => (*text).to_owned(),
        }
    }
}

impl Path<'_> {
    fn text(&self) -> String {
        let text = |segment: &Segment| match segment {
            Segment::A => "/a",
            Segment::B => "/b",
            Segment::Ab => "/ab",
            Segment::Escaped => "/%61",
            Segment::Dots => "/..",
            Segment::Empty => "/",
        };
        match self {
            Self::Of { segments, slash } => {
                segments.iter().map(text).collect::<String>() + if *slash { "/" } else { "" }
            }
            Self::Free(text) => (*text).to_owned(),
        }
    }
}

/// Whether a table may name this host: one or more labels of letters, digits, `-` and `_`, or an IPv6 address in brackets.
fn may_be_in_a_table(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok() && !address.bytes().any(|b| b.is_ascii_uppercase());
    }
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Segment by segment.
fn lies_in(path: &str, prefix: &PathPrefix) -> bool {
    let (mut asked, mut of_prefix) = (path.split('/'), prefix.as_str().split('/'));
    prefix.is_root() || of_prefix.all(|segment| asked.next() == Some(segment))
}

/// The exact host before the wildcard, then the longest path.
fn by_hand(routes: &[Route], host: &str, path: &str) -> Option<usize> {
    let named = |name: &str| -> Vec<usize> {
        (0..routes.len()).filter(|&at| routes[at].hosts.iter().any(|host| host == name)).collect()
    };
    let mut found = named(host);
    if found.is_empty()
        && let Some((label, parent)) = host.split_once('.')
        && !label.is_empty()
    {
        found = named(&format!("*.{parent}"));
    }
    let mut best: Option<usize> = None;
    for at in found.into_iter().filter(|&at| lies_in(path, &routes[at].path)) {
        if best.is_none_or(|best| routes[at].path.as_str().len() > routes[best].path.as_str().len()) {
            best = Some(at);
        }
    }
    best
}

fn check_host(text: &str) {
    let Some(host) = lookup_host(text).map(|host| host.into_owned()) else { return };
    assert!(may_be_in_a_table(&host) && !host.starts_with("*."), "{text:?} asks for {host:?}, which no table can name");
    for same in [host.clone(), host.to_ascii_uppercase(), format!("{host}:8080"), format!("{host}:")] {
        assert_eq!(lookup_host(&same).as_deref(), Some(host.as_str()), "{same:?}");
    }
    assert_eq!(lookup_host(&format!("{host}/")), None);
    assert_eq!(lookup_host(&format!("user@{host}")), None);
}

fn check_prefix(prefix: &PathPrefix) {
    assert_eq!(PathPrefix::parse(&format!("{prefix}/")).as_ref(), Ok(prefix));
    let text = serde_json::to_string(prefix).expect("serialises");
    assert_eq!(&serde_json::from_str::<PathPrefix>(&text).expect("what was written can be read"), prefix);
}

fn check_target(target: &[u8], prefix: &PathPrefix) {
    let Some((path, plain)) = fuzzing::target_for_instance(target, None) else { return };
    assert!(plain.starts_with('/') || plain == "*", "{plain:?} is no target");
    assert!(!plain.bytes().any(|b| b.is_ascii_control() || b == b' '), "{plain:?} ends a request's first line");
    if !lies_in(&path, prefix) {
        return;
    }
    let (_, stripped) = fuzzing::target_for_instance(target, Some(prefix)).expect("it was one before");
    let rest = plain.strip_prefix(prefix.as_str()).expect("the prefix is as it was sent");
    let expected = if rest.starts_with('/') || rest == "*" { rest.to_owned() } else { format!("/{rest}") };
    assert_eq!(stripped, expected, "{plain:?} without {prefix}");
}

fuzz_target!(|input: Input| {
    let asked = match &input.asked {
        Asked::Labels { labels: of, dot, port } => {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}{}{port}", labels(of), if *dot { "." } else { "" })
        }
        Asked::Free(text) => (*text).to_owned(),
    };
    check_host(&asked);

    let mut routes = Vec::new();
    for (hosts, path) in &input.routes {
        let Ok(path) = PathPrefix::parse(&path.text()) else { continue };
        check_prefix(&path);
        check_target(input.target, &path);
        check_target(input.path.text().as_bytes(), &path);
        let hosts = hosts.iter().map(Host::text).collect();
        let route = Route::new("shop".parse().expect("a name"), "web".parse().expect("a name"), hosts, vec![]);
        routes.push(Route { path, ..route });
    }
    let table = Table { generation: 1, routes };
    let mut claimed = std::collections::HashSet::new();
    let mut claims = table.routes.iter().flat_map(|route| route.hosts.iter().map(|host| (host, &route.path)));
    let is_sound = claims.all(|(host, path)| may_be_in_a_table(host) && claimed.insert((host, path)));
    assert_eq!(table.validate().is_ok(), is_sound, "{:?}", table.validate());
    if let (true, Some(host)) = (is_sound, lookup_host(&asked)) {
        let path = input.path.text();
        assert_eq!(fuzzing::route_of(&table.routes, &host, &path), by_hand(&table.routes, &host, &path));
    }
});
