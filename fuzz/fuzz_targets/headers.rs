//! What of a message's headers crosses the proxy: nothing that is meant for this hop, nothing that only the proxy may say, and
//! all the rest as it came.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use http::{HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use longshore::fuzzing::{Heads, Line, instance_in_cookie, read_all};
use longshore::proxy::table::lookup_host;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    lines: Vec<(Name<'a>, Value<'a>)>,
    peer: u8,
    is_secure: bool,
    is_switching: bool,
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    Known(u8),
    Free(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    /// A list of names, as in `Connection`.
    Names(Vec<(u8, bool)>),
    Known(u8),
    Free(&'a [u8]),
}

/// RFC 9110 §7.6.1, and `Proxy-Authenticate`, which is for the next hop as well.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
const OURS: [&str; 4] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"];
const NAMES: [&str; 32] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded_for",
    "x_forwarded_for",
    "x-real-ip",
    "x-request-id",
    "forwarded",
    "content-length",
    "expect",
    "cookie",
    "accept",
    "content-type",
    "trailer",
    "x-own",
    "x-secret",
    "http2-settings",
    "authorization",
    "set-cookie",
    "host",
    "connection",
];
const VALUES: [&str; 20] = [
    "shop.test",
    "Shop.test:81",
    "close",
    "keep-alive, Upgrade",
    "websocket",
    "h2c",
    "websocket, h2c",
    "chunked",
    "gzip, chunked",
    "trailers, deflate",
    "127.0.0.1",
    "for=127.0.0.1",
    "https",
    "timeout=5, max=100",
    "longshore-web=d1-web-1; a=b",
    "a=b;longshore-web=x",
    "text/event-stream",
    "text/html;q=0.5, application/json",
    "100-continue",
    "4",
];

static HEADS: LazyLock<Heads> = LazyLock::new(|| {
    Heads::new(vec!["10.0.0.0/8".parse().expect("a network"), "fd00::/8".parse().expect("a network")])
        .expect("a proxy's settings")
});

fn pick<'a>(from: &[&'a str], number: u8) -> &'a str {
    from[usize::from(number) % from.len()]
}

/// As a parser of HTTP gives them: what is no header is not among them.
fn lines(input: &Input) -> Vec<Line> {
    let line = |(name, value): &(Name, Value)| {
        let name = match name {
            Name::Known(number) => pick(&NAMES, *number),
            Name::Free(text) => text,
        };
        let value = match value {
            Value::Names(numbers) => {
                let name = |&(number, upper): &(u8, bool)| {
                    let name = pick(&NAMES, number);
                    if upper { name.to_ascii_uppercase() } else { name.to_owned() }
                };
                numbers.iter().map(name).collect::<Vec<_>>().join(if numbers.len() % 2 == 0 { ", " } else { ",\t" })
            }
            .into_bytes(),
            Value::Known(number) => pick(&VALUES, *number).as_bytes().to_vec(),
            Value::Free(bytes) => bytes.to_vec(),
        };
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(&value).ok()?);
        Some((name.as_str().to_owned(), value.as_bytes().to_vec()))
    };
    input.lines.iter().filter_map(line).collect()
}

fn values<'a>(lines: &'a [Line], name: &str) -> Vec<&'a [u8]> {
    lines.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_slice()).collect()
}

/// The elements of a header's lists, in lower case.
fn elements(lines: &[Line], name: &str) -> BTreeSet<String> {
    let text = values(lines, name).join(&b","[..]);
    let elements = text.split(|&b| b == b',').map(|element| element.trim_ascii().to_ascii_lowercase());
    elements.map(|element| String::from_utf8_lossy(&element).into_owned()).collect()
}

/// What one side alone may not hide of a message.
fn is_protected(name: &str) -> bool {
    matches!(name, "host" | "content-length")
}

/// Those that are nobody's but the two ends', by name.
fn for_the_other_end(lines: &[Line], is_ours: impl Fn(&str) -> bool) -> BTreeMap<&str, Vec<&[u8]>> {
    let nominated = elements(lines, "connection");
    let mut rest: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
    for (name, value) in lines {
        let is_hop = HOP_BY_HOP.contains(&name.as_str());
        if !is_hop && !is_ours(name) && (!nominated.contains(name) || is_protected(name)) {
            rest.entry(name).or_default().push(value);
        }
    }
    rest
}

fn check_request(sent: &[Line], peer: IpAddr, is_trusted: bool, is_secure: bool) {
    let hosts = values(sent, "host");
    let codings = values(sent, "transfer-encoding");
    let is_readable = matches!(&hosts[..], [host] if host.iter().all(|b| (0x20..0x7f).contains(b) || *b == b'\t')
        && lookup_host(&String::from_utf8_lossy(host)).is_some())
        && (codings.is_empty() || matches!(&codings[..], [one] if one.trim_ascii().eq_ignore_ascii_case(b"chunked")));
    let passed = HEADS.request(peer, is_secure, sent);
    assert_eq!(passed.is_ok(), is_readable, "{passed:?}");
    let Ok(got) = passed else { return };
    let nominated = elements(sent, "connection");

    let upgrades = elements(sent, "upgrade");
    let asks = nominated.contains("upgrade") && values(sent, "upgrade").len() == 1 && !upgrades.contains("h2c");
    match asks {
        true => assert_eq!(
            (values(&got, "connection"), values(&got, "upgrade")),
            (vec![&b"upgrade"[..]], values(sent, "upgrade"))
        ),
        false => assert!(values(&got, "connection").is_empty() && values(&got, "upgrade").is_empty(), "{got:?}"),
    }
    let te: &[&[u8]] = if elements(sent, "te").contains("trailers") { &[b"trailers"] } else { &[] };
    assert_eq!(values(&got, "te"), te);
    for name in
        ["keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "transfer-encoding", "expect"]
    {
        assert!(values(&got, name).is_empty(), "{name}");
    }
    for (name, _) in &got {
        assert!(!name.contains('_'), "{name}");
        let is_own = OURS.contains(&name.as_str())
            || is_protected(name)
            || matches!(name.as_str(), "te" | "connection" | "upgrade");
        // A trusted proxy's `Forwarded` comes back when it says something, with the peer added.
        assert!(is_own || !nominated.contains(name), "{name} was for this hop alone");
    }
    assert_eq!(values(&got, "host"), hosts);
    assert_eq!(values(&got, "content-length"), values(sent, "content-length"));
    assert_eq!(values(&got, "x-request-id"), [b"id"]);
    let address = peer.to_string();
    let [forwarded_for] = values(&got, "x-forwarded-for")[..] else { panic!("{got:?}") };
    if is_trusted {
        assert!(forwarded_for.ends_with(address.as_bytes()), "{got:?}");
    } else {
        assert_eq!(forwarded_for, address.as_bytes());
        assert_eq!(values(&got, "x-forwarded-host"), hosts);
        assert_eq!(values(&got, "x-forwarded-proto"), [if is_secure { &b"https"[..] } else { b"http" }]);
        for (name, _) in &got {
            let claims = name.starts_with("x-forwarded-") || matches!(name.as_str(), "forwarded" | "x-real-ip");
            assert!(!claims || OURS.contains(&name.as_str()), "{name}");
        }
    }
    let is_ours = |name: &str| {
        let is_about_origin =
            name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "x-request-id");
        is_about_origin || name == "expect" || name.contains('_')
    };
    assert_eq!(for_the_other_end(&got, is_ours), for_the_other_end(sent, is_ours));
}

fn check_answer(sent: &[Line], is_switching: bool) {
    let got = HEADS.answer(is_switching, sent);
    let mut allowed: Vec<(&str, Vec<&[u8]>)> = Vec::new();
    if is_switching {
        allowed.push(("connection", vec![b"upgrade"]));
        allowed.extend(values(sent, "upgrade").first().map(|first| ("upgrade", vec![*first])));
    }
    for name in HOP_BY_HOP {
        let expected =
            allowed.iter().find(|(key, _)| *key == name).map(|(_, values)| values.clone()).unwrap_or_default();
        assert_eq!(values(&got, name), expected, "{name}");
    }
    assert_eq!(for_the_other_end(&got, |_| false), for_the_other_end(sent, |_| false));
}

fn check_cookie(sent: &[Line]) {
    let service = "web".parse().expect("a name");
    let read = instance_in_cookie(&service, sent);
    let mut expected = None;
    for line in values(sent, "cookie") {
        // As `HeaderValue::to_str`: visible ASCII, space and tab.
        if !line.iter().all(|b| (0x20..0x7f).contains(b) || *b == b'\t') {
            continue;
        }
        for pair in line.split(|&b| b == b';').map(<[u8]>::trim_ascii) {
            expected = expected.or(pair.strip_prefix(b"longshore-web="));
        }
    }
    assert_eq!(read.as_deref().map(str::as_bytes), expected);
}

fuzz_target!(|input: Input| {
    let sent = lines(&input);
    let peers = ["192.0.2.7", "10.1.2.3", "2001:db8::1", "fd00::1"];
    let peer: IpAddr = pick(&peers, input.peer).parse().expect("an address");
    check_request(&sent, peer, input.peer % 2 == 1, input.is_secure);
    check_answer(&sent, input.is_switching);
    check_cookie(&sent);
    read_all(&sent);
});
