//! What the fuzz targets in `fuzz/` call of the parts that read what clients send: the functions of a request's way, with plain
//! data on both sides. The properties are the targets' own. Only with the feature `fuzzing`, never in a release.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use ipnet::IpNet;

pub use super::http1::fuzzing as http1;

use super::access_log::AccessLog;
use super::fields::Fields;
use super::files;
use super::forward;
use super::front::Fronts;
use super::headers;
use super::lookup::Lookup;
use super::path_prefix::PathPrefix;
use super::sticky::StickyCookie;
use super::table::{Route, StaticFiles, lookup_host};
use crate::config::ProxyConfig;
use crate::model::ServiceName;

/// A header, its name in lower case.
pub type Line = (String, Vec<u8>);

/// The position of the route for a host, as [`lookup_host`] spells it, and a path.
pub fn route_of(routes: &[Route], host: &str, path: &str) -> Option<usize> {
    Lookup::new(routes).find(host, path).ok()
}

/// The path of a request's target, and what an instance is asked for instead. `None`: it is no target.
pub fn target_for_instance(target: &[u8], strip: Option<&PathPrefix>) -> Option<(String, String)> {
    let uri = Uri::try_from(target).ok()?;
    let path = uri.path().to_owned();
    Some((path, forward::target_for_instance(uri, strip).to_string()))
}

/// Heads of messages on their way through a proxy.
#[derive(Debug)]
pub struct Heads(Fronts);

impl Heads {
    /// Of a proxy that believes what these peers say of where a request came from.
    pub fn new(trusted: Vec<IpNet>) -> io::Result<Self> {
        let front = ProxyConfig { trusted_proxies: trusted, ..ProxyConfig::plain(([127, 0, 0, 1], 0).into()) };
        let access_log = AccessLog::off(Path::new(""));
        let fronts = Fronts::new(front, None, PathBuf::new(), Arc::default(), access_log);
        fronts.map(Self).map_err(|error| io::Error::other(error.to_string()))
    }

    /// What an instance gets of a request with these headers; the error is what its client is told.
    pub fn request(&self, peer: IpAddr, secure: bool, lines: &[Line]) -> Result<Vec<Line>, &'static str> {
        let mut fields = fields(lines);
        let origin = self.0.origin(peer, secure);
        headers::check_framing(&fields)?;
        let authority = headers::authority(&Uri::default(), &fields)?;
        authority.to_str().ok().and_then(lookup_host).ok_or("the Host header is malformed")?;
        let upgrade = headers::upgrade(&fields);
        headers::prepare_request(&mut fields, &origin, authority.clone(), HeaderValue::from_static("id"), upgrade);
        Ok(lines_of(&fields.into_map()))
    }

    /// What a client gets of an answer with these headers.
    pub fn answer(&self, switching: bool, lines: &[Line]) -> Vec<Line> {
        let mut fields = fields(lines);
        headers::prepare_response(&mut fields, switching);
        lines_of(&fields.into_map())
    }
}

/// What else is read of headers, for its panics: the form of errors, streams of events, `Keep-Alive`, and the cookie lines that
/// HTTP/2 splits.
pub fn read_all(lines: &[Line]) -> bool {
    let fields = fields(lines);
    let _ = headers::form_of_errors(&headers::accepted(&fields));
    let _ = headers::is_event_stream(&fields);
    let _ = headers::keep_alive_timeout(&fields);
    headers::join_http2(None, &mut fields.into_map()).is_ok()
}

/// The instance that the cookie of a sticky route names.
pub fn instance_in_cookie(service: &ServiceName, lines: &[Line]) -> Option<String> {
    StickyCookie::of(service, &PathPrefix::default()).read(&fields(lines)).map(str::to_owned)
}

/// An answer from files.
#[derive(Debug)]
pub struct FileAnswer {
    /// Of HTTP.
    pub status: u16,
    /// Its headers.
    pub lines: Vec<Line>,
    /// All of it.
    pub body: Vec<u8>,
}

/// What is answered for a path below the prefix of static files; `None`: with an error.
pub async fn file_answer(files: &StaticFiles, is_head: bool, path: &str, lines: &[Line]) -> Option<FileAnswer> {
    let method = if is_head { Method::HEAD } else { Method::GET };
    let (head, body) = files::answer(files, &method, path, &map(lines)).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes().to_vec();
    Some(FileAnswer { status: head.status.as_u16(), lines: lines_of(&head.headers), body })
}

fn fields(lines: &[Line]) -> Fields {
    Fields::Map(map(lines))
}

/// What cannot be sent is left out.
fn map(lines: &[Line]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn lines_of(headers: &HeaderMap) -> Vec<Line> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}
