//! What of a message's headers is passed on, and what the proxy adds (RFC 9110 §7.6).

use std::net::IpAddr;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::Authority;

use super::fields::{Fields, is, same};
use super::front::Front;
use super::path_prefix::PathPrefix;
use crate::config::ProxyLimits;

pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// What the proxy says about where a request came from, and what else is the same for a whole connection.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Which of the settings this goes by: see [`super::front::Fronts::newer`].
    pub as_of: u64,
    /// The peer.
    pub peer: IpAddr,
    /// The client's address.
    pub address: HeaderValue,
    /// The same as an element of `Forwarded` (RFC 7239 §6): an IPv6 address stands in brackets and quotes.
    node: String,
    /// `http` or `https`, as the client spoke it.
    pub scheme: HeaderValue,
    /// What it says of where a request came from is passed on.
    pub is_trusted: bool,
    /// Requests may have to be sent to https.
    pub leads_to_https: bool,
    /// Answers tell browsers to use https alone.
    pub hsts: Option<HeaderValue>,
    /// What it may ask for.
    pub limits: ProxyLimits,
}

impl Origin {
    /// Of a peer, on a listener with or without TLS.
    pub fn new(peer: IpAddr, secure: bool, front: &Front, as_of: u64) -> Self {
        let address = HeaderValue::from_str(&peer.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let node = if peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer.to_string() };
        Self {
            as_of,
            peer,
            address,
            node,
            scheme: HeaderValue::from_static(if secure { "https" } else { "http" }),
            is_trusted: front.settings.trusted_proxies.iter().any(|network| network.contains(&peer)),
            leads_to_https: !secure && front.settings.https.is_some(),
            hsts: front.hsts.clone().filter(|_| secure),
            limits: front.settings.limits,
        }
    }

    /// Whether the client itself used https: by a proxy in front, if that is believed.
    pub fn is_secure(&self, fields: &Fields) -> bool {
        let said = if self.is_trusted { said_scheme(fields) } else { None };
        said.unwrap_or(self.scheme.as_bytes()).eq_ignore_ascii_case(b"https")
    }
}

/// The scheme that the client used, as proxies in front say. Each adds at the end, so the first saw the client.
fn said_scheme(fields: &Fields) -> Option<&[u8]> {
    let listed = fields.get_all(&X_FORWARDED_PROTO).flat_map(tokens).next();
    listed.or_else(|| fields.get(&FORWARDED).and_then(forwarded_scheme))
}

/// `proto` of the first element of `Forwarded` (RFC 7239 §4, §5.4).
fn forwarded_scheme(value: &[u8]) -> Option<&'static [u8]> {
    let first = split_unquoted(value, b',').find(|element| !element.trim_ascii().is_empty())?;
    let scheme = split_unquoted(first, b';').find_map(|pair| {
        let mut sides = pair.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
        if same(sides.next()?, "proto") { sides.next() } else { None }
    })?;
    let scheme = scheme.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(scheme);
    [&b"https"[..], b"http"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known))
}

/// The parts between separators that are in no quoted string (RFC 9110 §5.6.4).
fn split_unquoted(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    value.split(move |&byte| {
        let is_literal = std::mem::take(&mut is_escaped);
        match byte {
            _ if is_literal => {}
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => return byte == separator && !is_quoted,
        }
        false
    })
}

/// The authority a request is for: its target's when that is a full URI, else its one `Host` header
/// (RFC 9112 §3.2). The error says what is wrong.
pub fn authority(uri: &Uri, fields: &Fields) -> Result<HeaderValue, &'static str> {
    if fields.get_all(&HOST).nth(1).is_some() {
        return Err("the request has more than one Host header");
    }
    match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).map_err(|_| "the request's target is malformed"),
        None => fields.value(&HOST).ok_or("the request has no Host header"),
    }
}

/// Makes of the headers of an HTTP/2 request what HTTP/1.1 has: one line of cookies, as they may come in several
/// (RFC 9113 §8.2.3). The error says what is wrong: two names for one request (§8.3.1).
pub fn join_http2(target: Option<&Authority>, headers: &mut HeaderMap) -> Result<(), &'static str> {
    if let (Some(target), Some(host)) = (target, headers.get(HOST))
        && !host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes())
    {
        return Err("the request's :authority and its Host header differ");
    }
    let mut cookies = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (cookies.next(), cookies.next()) {
        let mut all = [first.as_bytes(), b"; ", second.as_bytes()].concat();
        for more in cookies {
            all.extend_from_slice(b"; ");
            all.extend_from_slice(more.as_bytes());
        }
        headers.insert(COOKIE, HeaderValue::from_bytes(&all).map_err(|_| "the request's cookies are malformed")?);
    }
    Ok(())
}

/// Refuses a body framing that two parties might read differently.
pub fn check_framing(fields: &Fields) -> Result<(), &'static str> {
    if is_plain_chunked(fields) { Ok(()) } else { Err("the only transfer coding understood is chunked, once") }
}

/// Whether there is no transfer coding, or `chunked` alone: others would be lost on the way.
pub fn is_plain_chunked(fields: &Fields) -> bool {
    let mut codings = fields.get_all(&TRANSFER_ENCODING);
    match codings.next() {
        None => true,
        Some(coding) => codings.next().is_none() && coding.trim_ascii().eq_ignore_ascii_case(b"chunked"),
    }
}

/// Leaves of what an answer says of its end what can be read in one way only (RFC 9112 §6.3): beside a coding no length, else
/// one length at the most. Whether there is such a way.
pub fn settle_framing(fields: &mut Fields) -> bool {
    if !is_plain_chunked(fields) {
        return false;
    }
    if fields.contains(&TRANSFER_ENCODING) {
        // A length beside it is not to be believed.
        fields.remove(&CONTENT_LENGTH);
        return true;
    }
    let Some(length) = fields.value(&CONTENT_LENGTH) else { return true };
    let mut others = fields.get_all(&CONTENT_LENGTH).skip(1).peekable();
    let is_repeated = others.peek().is_some();
    if length_of(length.as_bytes()).is_none() || others.any(|other| other != length.as_bytes()) {
        return false;
    }
    drop(others);
    if is_repeated {
        fields.insert(&CONTENT_LENGTH, length);
    }
    true
}

/// What a `Content-Length` says: digits, and nothing else.
pub fn length_of(value: &[u8]) -> Option<u64> {
    let digits = Some(value).filter(|value| value.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The protocol a client asks to switch to. `h2c` is not passed on: behind it requests would pass unseen.
pub fn upgrade(fields: &Fields) -> Option<HeaderValue> {
    let asked = fields.get_all(&CONNECTION).flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let protocol = fields.value(&UPGRADE)?;
    let is_only_one = fields.get_all(&UPGRADE).nth(1).is_none();
    let is_h2c = tokens(protocol.as_bytes()).any(|token| token.eq_ignore_ascii_case(b"h2c"));
    (asked && is_only_one && !is_h2c).then_some(protocol)
}

/// Turns a client's headers into those for an instance.
pub fn prepare_request(
    fields: &mut Fields,
    origin: &Origin,
    authority: HeaderValue,
    request_id: HeaderValue,
    upgrade: Option<HeaderValue>,
) {
    let wants_trailers = has_hop_by_hop(fields)
        && fields.get_all(&TE).flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    remove_hop_by_hop(fields);
    let forwarding = if origin.is_trusted { Some(Forwarding::of(fields)) } else { None };
    fields.remove_where(|name| is_clients_claim(name) || is(name, &EXPECT));
    if wants_trailers {
        fields.append(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        fields.append(CONNECTION, HeaderValue::from_static("upgrade"));
        fields.append(UPGRADE, protocol);
    }
    if fields.get(&HOST) != Some(authority.as_bytes()) {
        fields.insert(&HOST, authority.clone());
    }
    // None of these is left by now.
    fields.append(X_FORWARDED_FOR.clone(), origin.address.clone());
    fields.append(X_FORWARDED_PROTO.clone(), origin.scheme.clone());
    fields.append(X_FORWARDED_HOST.clone(), authority);
    fields.append(X_REQUEST_ID.clone(), request_id);
    if let Some(forwarding) = forwarding {
        forwarding.restore(fields, origin);
    }
}

/// What a trusted proxy says of where a request came from.
struct Forwarding {
    kept: Vec<(HeaderName, HeaderValue)>,
    scheme: Option<HeaderValue>,
    addresses: Vec<u8>,
    forwarded: Vec<u8>,
}

impl Forwarding {
    fn of(fields: &Fields) -> Self {
        let is_kept = |name: &[u8]| {
            let is_made_anew = is(name, &X_FORWARDED_FOR) || is(name, &X_FORWARDED_PROTO);
            let is_forwarding = starts_with(name, FORWARDING) && !is_made_anew;
            (is_forwarding || is(name, &X_REAL_IP)) && !name.contains(&b'_')
        };
        let kept = fields.iter().filter(|(name, _)| is_kept(name));
        let kept = kept.filter_map(|(name, value)| {
            Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
        });
        let kept = kept.collect();
        let scheme = said_scheme(fields).and_then(|scheme| HeaderValue::from_bytes(scheme).ok());
        Self { kept, scheme, addresses: joined(fields, &X_FORWARDED_FOR), forwarded: joined(fields, &FORWARDED) }
    }

    /// As it was, with the peer at the end; of schemes the client's alone, which is all that most apps understand.
    fn restore(self, fields: &mut Fields, origin: &Origin) {
        for (name, _) in &self.kept {
            fields.remove(name);
        }
        for (name, value) in self.kept {
            fields.append(name, value);
        }
        if let Some(scheme) = self.scheme {
            fields.insert(&X_FORWARDED_PROTO, scheme);
        }
        let list = |mut before: Vec<u8>, last: &[u8]| {
            if !before.is_empty() {
                before.extend_from_slice(b", ");
            }
            before.extend_from_slice(last);
            HeaderValue::from_bytes(&before)
        };
        if let Ok(addresses) = list(self.addresses, origin.address.as_bytes()) {
            fields.insert(&X_FORWARDED_FOR, addresses);
        }
        if !self.forwarded.is_empty()
            && let Ok(forwarded) = list(self.forwarded, format!("for={}", origin.node).as_bytes())
        {
            fields.insert(&FORWARDED, forwarded);
        }
    }
}

/// All values of a list, in one.
pub(super) fn joined(fields: &Fields, name: &HeaderName) -> Vec<u8> {
    let values: Vec<&[u8]> = fields.get_all(name).collect();
    values.join(&b", "[..])
}

/// Says which part of the path was taken off, so that the instance can write links. After [`prepare_request`].
pub fn set_prefix(fields: &mut Fields, prefix: &PathPrefix) {
    if let Ok(prefix) = HeaderValue::from_str(prefix.as_str()) {
        fields.insert(&X_FORWARDED_PREFIX, prefix);
    }
}

/// Turns an instance's headers into those for a client. Those of a switched protocol keep their `Upgrade`.
pub fn prepare_response(fields: &mut Fields, switching: bool) {
    let protocol = if switching { fields.value(&UPGRADE) } else { None };
    remove_hop_by_hop(fields);
    if switching {
        fields.append(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            fields.append(UPGRADE, protocol);
        }
    }
}

/// Removes what is meant for the next hop only: the fixed set, and what `Connection` names.
fn remove_hop_by_hop(fields: &mut Fields) {
    if !has_hop_by_hop(fields) {
        return;
    }
    let named: Vec<Vec<u8>> = fields.get_all(&CONNECTION).flat_map(tokens).map(<[u8]>::to_vec).collect();
    fields.remove_where(|name| {
        // What frames or directs the message is not the sender's to hide.
        let is_named = named.iter().any(|named| name.eq_ignore_ascii_case(named));
        is_hop_by_hop(name) || (is_named && !is(name, &HOST) && !is(name, &CONTENT_LENGTH))
    });
}

/// Nearly always there is none: one look at the names is cheaper than to ask for each.
fn has_hop_by_hop(fields: &Fields) -> bool {
    fields.any_name(is_hop_by_hop)
}

fn is_hop_by_hop(name: &[u8]) -> bool {
    let wanted = match name.len() {
        2 => "te",
        7 => "upgrade",
        10 => return same(name, "connection") || same(name, "keep-alive"),
        16 => "proxy-connection",
        17 => "transfer-encoding",
        18 => "proxy-authenticate",
        19 => "proxy-authorization",
        _ => return false,
    };
    same(name, wanted)
}

/// What only a proxy may say; and names with `_`, which many servers read as `-`.
fn is_clients_claim(name: &[u8]) -> bool {
    starts_with(name, FORWARDING)
        || is(name, &X_REAL_IP)
        || is(name, &FORWARDED)
        || is(name, &X_REQUEST_ID)
        || name.contains(&b'_')
}

/// How names begin that say where a request came from.
const FORWARDING: &str = "x-forwarded-";

fn starts_with(name: &[u8], start: &str) -> bool {
    name.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start.as_bytes()))
}

/// The elements of a comma-separated value.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// How an error is best told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A page, for a person.
    Html,
    /// For a program that reads it.
    Json,
    /// For all that say nothing of either.
    Plain,
}

/// What a client accepts, as it said it.
pub fn accepted(fields: &Fields) -> Vec<Vec<u8>> {
    fields.get_all(&ACCEPT).map(<[u8]>::to_vec).collect()
}

/// The form that `Accept` prefers: of those that are named the one with the greatest weight, and of equals the first
/// (RFC 9110 §12.5.1). Ranges such as `*/*` name none.
pub fn form_of_errors(accepted: &[Vec<u8>]) -> Form {
    let mut best = (0.0, Form::Plain);
    for range in accepted.iter().flat_map(|line| tokens(line)) {
        let mut parts = range.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let form = match media.as_slice() {
            b"text/html" | b"application/xhtml+xml" => Form::Html,
            b"text/plain" => Form::Plain,
            b"application/json" => Form::Json,
            media if media.starts_with(b"application/") && media.ends_with(b"+json") => Form::Json,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix(b"q="));
        let weight = weight.map_or(Some(1.0), |q| std::str::from_utf8(q).ok()?.parse::<f32>().ok()).unwrap_or(0.0);
        if weight > best.0 {
            best = (weight, form);
        }
    }
    best.1
}

/// Whether an answer is a stream of events, which stays open by its nature.
pub fn is_event_stream(fields: &Fields) -> bool {
    fields.get(&CONTENT_TYPE).is_some_and(|value| starts_with(value, "text/event-stream"))
}

/// How long an instance says it keeps an idle connection (`Keep-Alive: timeout=5`).
pub fn keep_alive_timeout(fields: &Fields) -> Option<Duration> {
    let value = fields.get(&KEEP_ALIVE)?;
    let text = tokens(value).find_map(|token| token.strip_prefix(b"timeout="))?;
    std::str::from_utf8(text).ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn fields(lines: &[(&'static str, &str)]) -> Fields {
        map(lines).into()
    }

    fn origin(peer: &str, is_trusted: bool) -> Origin {
        Origin {
            as_of: 0,
            peer: peer.parse().unwrap(),
            address: HeaderValue::from_str(peer).unwrap(),
            node: peer.to_owned(),
            scheme: HeaderValue::from_static("http"),
            is_trusted,
            leads_to_https: false,
            hsts: None,
            limits: ProxyLimits::default(),
        }
    }

    fn forwarded(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut fields = fields(lines);
        let origin = origin("192.0.2.7", false);
        let upgrade = upgrade(&fields);
        let host = HeaderValue::from_static("shop.test:8080");
        prepare_request(&mut fields, &origin, host, HeaderValue::from_static("id-1"), upgrade);
        fields.into_map()
    }

    #[test]
    fn only_the_proxy_says_where_a_request_came_from() {
        let headers = forwarded(&[
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-port", "443"),
            ("x_forwarded_for", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("x-real-ip", "127.0.0.1"),
            ("x-request-id", "mine"),
            ("cookie", "a=b"),
        ]);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "cookie: a=b",
                "host: shop.test:8080",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: shop.test:8080",
                "x-forwarded-proto: http",
                "x-request-id: id-1",
            ]
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to() {
        let ask = |lines: &[(&'static str, &str)]| {
            let mut fields = fields(lines);
            let (origin, host) = (origin("10.0.0.9", true), HeaderValue::from_static("shop.test"));
            let is_secure = origin.is_secure(&fields);
            prepare_request(&mut fields, &origin, host, HeaderValue::from_static("id-1"), None);
            (fields.into_map(), is_secure)
        };
        let (headers, is_secure) = ask(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("x_forwarded_for", "127.0.0.1"),
            ("forwarded", "for=192.0.2.7;proto=https"),
            ("x-request-id", "mine"),
        ]);
        assert!(is_secure);
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.7, 10.0.0.1, 10.0.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-host", "shop.test"),
            ("forwarded", "for=192.0.2.7;proto=https, for=10.0.0.9"),
            ("x-request-id", "id-1"),
        ] {
            assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        assert!(!headers.contains_key("x_forwarded_for"));
        let (headers, is_secure) = ask(&[]);
        assert_eq!(
            (&headers["x-forwarded-for"], headers.get("forwarded"), is_secure),
            (&"10.0.0.9".parse().unwrap(), None, false)
        );
    }

    #[test]
    fn the_clients_scheme_is_the_first_that_a_trusted_proxy_names() {
        let (proto, forwarded) = ("x-forwarded-proto", "forwarded");
        let https = (forwarded, "for=192.0.2.7;proto=https");
        for (lines, scheme) in [
            (&[][..], "http"),
            (&[(proto, "https")], "https"),
            (&[(proto, "https, http")], "https"),
            (&[(proto, "https"), (proto, "http")], "https"),
            (&[(proto, "http,https")], "http"),
            (&[(proto, "http"), https], "http"),
            (&[(proto, ""), https], "https"),
            (&[https], "https"),
            (&[https, (forwarded, "for=10.0.0.1;proto=http")], "https"),
            (&[(forwarded, "FOR=1.1.1.1; Proto = \"HTTPS\" , proto=http")], "https"),
            (&[(forwarded, "for=1.1.1.1;proto=http, for=10.0.0.1;proto=https")], "http"),
            (&[(forwarded, "for=1.1.1.1, for=10.0.0.1;proto=https")], "http"),
            (&[(forwarded, r#"for="[2001:db8::1]:443";host="a, \";proto=http;";proto=https"#)], "https"),
            (&[(forwarded, "for=\"unterminated;proto=https")], "http"),
            (&[(forwarded, "proto=gopher")], "http"),
            (&[(forwarded, "proto")], "http"),
            (&[(forwarded, "")], "http"),
        ] {
            for is_trusted in [true, false] {
                let (mut fields, origin) = (fields(lines), origin("10.0.0.9", is_trusted));
                let expected = if is_trusted { scheme } else { "http" };
                assert_eq!(origin.is_secure(&fields), expected == "https", "{lines:?} {is_trusted}");
                let host = HeaderValue::from_static("shop.test");
                prepare_request(&mut fields, &origin, host, HeaderValue::from_static("id-1"), None);
                let told = fields.into_map();
                assert_eq!(told.get_all(proto).iter().collect::<Vec<_>>(), [expected], "{lines:?} {is_trusted}");
            }
        }
    }

    #[test]
    fn what_connection_names_goes_before_ours_are_added() {
        let headers = forwarded(&[
            ("connection", "close, X-Forwarded-For, x-secret"),
            ("connection", "host, keep-alive"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "Basic x"),
            ("expect", "100-continue"),
        ]);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["host"], "shop.test:8080");
        assert_eq!(headers["te"], "trailers");
        for gone in ["connection", "x-secret", "keep-alive", "transfer-encoding", "proxy-authorization", "expect"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn an_upgrade_is_passed_on_and_h2c_is_not() {
        let headers = forwarded(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        let refused =
            forwarded(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "x")]);
        assert!(!refused.contains_key("upgrade") && !refused.contains_key("http2-settings"));
        assert!(!forwarded(&[("upgrade", "websocket")]).contains_key("upgrade"));
    }

    #[test]
    fn a_request_names_one_host() {
        let target: Uri = "/x".parse().unwrap();
        assert!(authority(&target, &fields(&[])).is_err());
        assert!(authority(&target, &fields(&[("host", "a"), ("host", "b")])).is_err());
        assert_eq!(authority(&target, &fields(&[("host", "a")])).unwrap(), "a");
        let full: Uri = "http://b.test:81/x".parse().unwrap();
        assert_eq!(authority(&full, &fields(&[("host", "a")])).unwrap(), "b.test:81");
    }

    #[test]
    fn http2_names_one_host_and_may_split_its_cookies() {
        let target: Authority = "shop.test".parse().unwrap();
        let mut headers =
            map(&[("host", "Shop.test"), ("cookie", "a=1"), ("x", "1"), ("cookie", "b=2"), ("cookie", "c")]);
        join_http2(Some(&target), &mut headers).unwrap();
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c"]);
        assert!(join_http2(Some(&target), &mut map(&[("host", "else.test")])).is_err());
        assert!(join_http2(None, &mut map(&[("host", "shop.test")])).is_ok());
    }

    #[test]
    fn only_chunked_alone_is_a_framing() {
        for (lines, fine) in [
            (&[][..], true),
            (&[("transfer-encoding", "chunked")], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "identity")], false),
        ] {
            assert_eq!(is_plain_chunked(&fields(lines)), fine, "{lines:?}");
        }
    }

    #[test]
    fn an_answer_says_its_length_once() {
        let (coding, length) = (("transfer-encoding", "chunked"), ("content-length", "5"));
        for (lines, left) in [
            (&[][..], Some(None)),
            (&[length], Some(Some("5"))),
            (&[length, length], Some(Some("5"))),
            (&[length, ("content-length", "05")], None),
            (&[("content-length", "5, 5")], None),
            (&[("content-length", "+5")], None),
            (&[("content-length", "")], None),
            (&[("content-length", "18446744073709551616")], None),
            (&[coding, length], Some(None)),
            (&[length, coding, ("content-length", "x")], Some(None)),
            (&[length, ("transfer-encoding", "gzip")], None),
        ] {
            let mut fields = fields(lines);
            let left_over = settle_framing(&mut fields).then(|| {
                let map = fields.into_map();
                assert!(map.get_all(CONTENT_LENGTH).iter().count() <= 1, "{lines:?}");
                map.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned())
            });
            assert_eq!(left_over, left.map(|length| length.map(str::to_owned)), "{lines:?}");
        }
    }

    #[test]
    fn details_of_values() {
        for (accept, form) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Form::Html),
            ("application/json, text/plain, */*", Form::Json),
            ("text/html;q=0.1, Application/JSON; q=1", Form::Json),
            ("application/vnd.api+json", Form::Json),
            ("text/html;q=0, text/plain", Form::Plain),
            ("text/html;q=x", Form::Plain),
            ("*/*", Form::Plain),
            ("", Form::Plain),
        ] {
            assert_eq!(form_of_errors(&accepted(&fields(&[("accept", accept)]))), form, "{accept}");
        }
        assert_eq!(form_of_errors(&[]), Form::Plain);
        assert!(is_event_stream(&fields(&[("content-type", "text/event-stream; charset=utf-8")])));
        assert!(!is_event_stream(&fields(&[("content-type", "text/html")])));
        assert_eq!(keep_alive_timeout(&fields(&[("keep-alive", "timeout=5, max=100")])), Some(Duration::from_secs(5)));
        assert_eq!(keep_alive_timeout(&fields(&[("keep-alive", "max=100")])), None);
    }
}
