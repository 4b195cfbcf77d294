//! One request: claim an instance, send, retry where that is safe, relay the answer.
//!
//! What is tried again, and when, is in [`super::attempt`].

use std::sync::Arc;
use std::time::Instant;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderValue, STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::access_log::{Maker, Sending, Visit};
use super::answer::Own;
use super::attempt::{Attempt, EXTRA_TRIES, Head};
use super::body::{Answer, ClientBody, Progress};
use super::challenges::CHALLENGE_PATH;
use super::counts::Tally;
use super::files;
use super::headers::{self, Origin};
use super::path_prefix::PathPrefix;
use super::routing::{NoClaim, Seeker};
use super::server::Proxy;
use super::table::{Protocol, lookup_host};

/// Answers one request of a client. `None` for its body: the request is a plain one ([`super::http1`]), without any.
pub async fn handle(proxy: Arc<Proxy>, origin: Arc<Origin>, request: Request<Option<Incoming>>) -> Response<Sending> {
    let is_plain = request.body().is_none();
    let id = proxy.next_request_id();
    let mut visit = proxy.fronts.access_log().begin(&request, &origin, &id);
    let method = request.method().clone();
    let accepted = headers::accepted(request.headers());
    let is_http2 = request.version() == Version::HTTP_2;
    let is_held_back = !is_plain && request.headers().contains_key(EXPECT);
    let most = origin.limits.max_body_size;
    let request = request.map(|body| ClientBody::new(body, is_held_back, most, visit.bytes()));
    let (mut response, by) = match forward(&proxy, &origin, request, is_plain, id.clone(), &mut visit).await {
        Ok(response) => (response, Maker::App),
        Err(own) => (own.response(headers::form_of_errors(&accepted), &id), Maker::Proxy),
    };
    visit.answered(response.status(), by);
    // A body that was never asked for leaves no way to tell where the next request begins.
    let is_own = !matches!(response.body(), Answer::Relayed(_));
    if is_http2 {
        // What is said of a connection is said in frames there (RFC 9113 §8.2.2).
        response.headers_mut().remove(CONNECTION);
    } else if (proxy.is_closing() || (is_own && is_held_back)) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(hsts) = &origin.hsts {
        response.headers_mut().entry(STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
    }
    let status = response.status();
    response.map(|answer| Sending::new(answer, visit, &method, status))
}

/// Where a plain request is to go instead, if its host can be reached by https.
fn by_https(proxy: &Proxy, origin: &Origin, host: &str, request: &Request<ClientBody>) -> Option<HeaderValue> {
    let front = proxy.fronts.current();
    let https = front.settings.https.filter(|_| front.settings.redirect_http)?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // What proves to a certificate authority whose host it is must be answered as it was asked (RFC 8555 §8.3).
    if path.starts_with(CHALLENGE_PATH) || origin.is_secure(request.headers()) {
        return None;
    }
    let port = if https.port() == 443 { String::new() } else { format!(":{}", https.port()) };
    let path = if path.starts_with('/') { path } else { "/" };
    front.has_certificate(host).then(|| HeaderValue::from_str(&format!("https://{host}{port}{path}")).ok())?
}

async fn forward(
    proxy: &Proxy,
    origin: &Origin,
    mut request: Request<ClientBody>,
    is_plain: bool,
    id: HeaderValue,
    visit: &mut Visit,
) -> Result<Response<Answer>, Own> {
    let arrived = Instant::now();
    if request.method() == Method::CONNECT {
        return Err(Own::MethodNotAllowed);
    }
    if !is_plain {
        headers::check_framing(request.headers()).map_err(Own::BadRequest)?;
    }
    if request.version() == Version::HTTP_2 {
        let target = request.uri().authority().cloned();
        headers::join_http2(target.as_ref(), request.headers_mut()).map_err(Own::BadRequest)?;
    }
    if origin.limits.max_body_size.is_some_and(|most| request.body().size_hint().lower() > most) {
        return Err(Own::TooLarge);
    }
    let authority = headers::authority(request.uri(), request.headers()).map_err(Own::BadRequest)?;
    let host = authority.to_str().ok().and_then(lookup_host).ok_or(Own::BadRequest("the Host header is malformed"))?;
    visit.asks_for(&host);
    if let Some(token) = request.uri().path().strip_prefix(CHALLENGE_PATH)
        && let Some(answer) = proxy.challenges.page(&host, token)
    {
        return Err(Own::Challenge(answer));
    }
    if origin.leads_to_https
        && let Some(location) = by_https(proxy, origin, &host, &request)
    {
        return Err(Own::ByHttps(location));
    }

    let asked = request.uri().clone();
    let seeker = Seeker { host: &host, path: asked.path(), headers: request.headers(), tried: &[], waited: false };
    let (claim, way) = match proxy.routing.admit(seeker).await {
        Ok(claimed) => claimed,
        Err(none) => return without_instance(none, &host, &request, visit).await,
    };
    visit.found(&way);
    visit.given_to(claim.instance());
    let is_secure = origin.is_secure(request.headers());
    let stays =
        way.sticky.as_ref().is_some_and(|cookie| cookie.read(request.headers()) == Some(claim.instance().id.as_str()));
    let protocol = way.protocol;
    let may_upgrade = !is_plain && protocol == Protocol::Http1 && request.body().is_end_stream();
    let upgrade = if may_upgrade { headers::upgrade(request.headers()) } else { None };
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    headers::prepare_request(&mut head.headers, origin, authority.clone(), id, upgrade);
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        // Said here, as hyper takes a GET without a length for one without a body, and would leave it out.
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(prefix) = &way.strip {
        headers::set_prefix(&mut head.headers, prefix);
    }
    let uri = target_for_instance(head.uri, way.strip.as_ref());
    let head = Head { method: head.method, uri, headers: head.headers };
    tracing::debug!(method = %head.method, uri = %head.uri, %host, instance = %claim.instance().id, "request");

    let progress = if body.is_end_stream() { None } else { Some(Arc::new(Progress::default())) };
    let replayable = progress.is_none() && client.is_none() && head.method.is_idempotent();
    let attempt = Attempt {
        proxy,
        host: &host,
        path: asked.path(),
        stays,
        is_secure,
        answer_timeout: origin.limits.answer_timeout,
        claim,
        arrived,
        // The time in the queue is not the instance's.
        claimed: if way.limits.queue == 0 { arrived } else { Instant::now() },
        tally: Tally::new(&way.counters),
        way,
        tried: Vec::new(),
        tries_left: EXTRA_TRIES,
        // In HTTP/2 the other side says what it has not looked at before it closes (RFC 9113 §6.8).
        may_reuse: replayable || protocol == Protocol::H2c,
        replayable,
        progress,
        visit,
    };
    attempt.answer(head, body, client).await
}

/// What is answered where no instance is asked.
async fn without_instance(
    none: NoClaim,
    host: &str,
    request: &Request<ClientBody>,
    visit: &mut Visit,
) -> Result<Response<Answer>, Own> {
    none.count();
    match none {
        NoClaim::UnknownHost => Err(Own::UnknownHost(host.to_owned())),
        NoClaim::UnknownPath => Err(Own::UnknownPath(host.to_owned())),
        NoClaim::Maintenance(way) => {
            visit.found(&way);
            Err(Own::Maintenance(way.maintenance.as_ref().and_then(|it| it.page.clone())))
        }
        NoClaim::NoMember(way) => {
            visit.found(&way);
            Err(Own::NothingRuns(host.to_owned()))
        }
        NoClaim::Busy(way) => {
            visit.found(&way);
            Err(Own::Busy(host.to_owned()))
        }
        NoClaim::Files(way, place) => {
            visit.found(&way);
            visit.is_for_a_file();
            let files = way.files.get(place).ok_or(Own::UnknownFile)?;
            files::answer(files, request.method(), request.uri().path(), request.headers()).await
        }
    }
}

/// The target as an origin server expects it: path and query alone, and those without a prefix that is taken off.
pub(super) fn target_for_instance(uri: Uri, strip: Option<&PathPrefix>) -> Uri {
    let uri = origin_form(uri);
    let Some(prefix) = strip else { return uri };
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    prefix.strip(target).parse().unwrap_or_default()
}

fn origin_form(uri: Uri) -> Uri {
    if uri.authority().is_none() {
        return uri;
    }
    let path = uri.into_parts().path_and_query;
    path.map(Uri::from).unwrap_or_default()
}
