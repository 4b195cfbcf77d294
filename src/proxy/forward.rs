//! One request: claim an instance, send, retry where that is safe, relay the answer.
//!
//! What is tried again, and when, is in [`super::attempt`].

use std::sync::Arc;
use std::time::Instant;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderValue, STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::access_log::{Maker, Sending, Visit};
use super::answer::Own;
use super::attempt::{Attempt, EXTRA_TRIES};
use super::challenges::CHALLENGE_PATH;
use super::counts::Tally;
use super::fields::Fields;
use super::files;
use super::headers::{self, Form, Origin};
use super::http1;
use super::http1::Interims;
use super::instance::Claim;
use super::message::{ForInstance, Reply, RequestHead, RequestId};
use super::path_prefix::PathPrefix;
use super::relay::Answer;
use super::routing::{NoClaim, Seeker, Way};
use super::server::Proxy;
use super::table::{Protocol, lookup_host};
use super::upload::{ClientBody, Outgoing, Progress};
use super::wait::Waits;

/// What a client asks for.
#[derive(Debug)]
pub struct Asked<'a> {
    head: Box<RequestHead>,
    /// `None` for a plain request ([`super::http1`]), which has none.
    body: Option<Incoming>,
    /// To become something else with its connection.
    upgrade: Option<OnUpgrade>,
    /// Where interim answers go. hyper sends a client none.
    interims: Option<&'a Interims>,
    /// What may end its waits.
    waits: &'a mut Waits,
    /// When the head was there.
    arrived: Instant,
}

impl<'a> Asked<'a> {
    /// By a plain request.
    pub fn plainly(head: Box<RequestHead>, interims: &'a Interims, waits: &'a mut Waits, arrived: Instant) -> Self {
        Self { head, body: None, upgrade: None, interims: Some(interims), waits, arrived }
    }

    /// By a request that hyper has read.
    fn at_length(mut request: Request<Incoming>, waits: &'a mut Waits) -> Self {
        let upgrade = Some(hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let (head, arrived) = (Box::new(head.into()), Instant::now());
        Self { head, body: Some(body), upgrade, interims: None, waits, arrived }
    }
}

/// Answers a request that hyper has read, for hyper to write the answer.
pub async fn handle(proxy: Arc<Proxy>, origin: Arc<Origin>, request: Request<Incoming>) -> Response<Sending> {
    let origin = proxy.fronts.newer(&origin).unwrap_or(origin);
    let mut waits = Waits::default();
    answer(&proxy, &origin, Asked::at_length(request, &mut waits)).await.into_response()
}

/// Answers one request of a client.
pub async fn answer(proxy: &Proxy, origin: &Origin, asked: Asked<'_>) -> Reply<Sending> {
    let Asked { head, body, upgrade, interims, waits, arrived } = asked;
    let is_plain = body.is_none();
    let id = proxy.next_request_id();
    let mut visit = proxy.fronts.access_log().begin(&head, origin, id);
    let method = head.method.clone();
    let accepted = headers::accepted(&head.fields);
    let is_http2 = head.version == Version::HTTP_2;
    let is_held_back = !is_plain && head.fields.contains(&EXPECT);
    let body = ClientBody::new(body, is_http2, is_held_back, origin.limits.max_body_size, visit.bytes());
    let request = Incomer { head, body, is_plain, upgrade, interims, waits, arrived };
    let (mut reply, by) = match forward(proxy, origin, request, id, &mut visit).await {
        Ok(reply) => (reply, Maker::App),
        Err(own) => (own.response(headers::form_of_errors(&accepted), &id.value()).into(), Maker::Proxy),
    };
    let status = reply.head.status;
    visit.answered(status, by);
    // A body that was never asked for leaves no way to tell where the next request begins.
    let is_own = !matches!(reply.body, Answer::Relayed(_));
    let fields = &mut reply.head.fields;
    if is_http2 {
        // What is said of a connection is said in frames there (RFC 9113 §8.2.2).
        fields.remove(&CONNECTION);
        if method == Method::HEAD
            && let Answer::Own(text) = &mut reply.body
            && let Some(text) = text.take()
        {
            // There hyper would send it, although nobody asks for it (RFC 9110 §9.3.2).
            fields.insert(&CONTENT_LENGTH, text.len().into());
        }
    } else if (proxy.is_closing() || (is_own && is_held_back)) && status != StatusCode::SWITCHING_PROTOCOLS {
        fields.insert(&CONNECTION, HeaderValue::from_static("close"));
    }
    lead_to_https(origin, fields);
    reply.map(|answer| Sending::new(answer, visit, &method, status))
}

/// Refuses what a client sent in place of a request, of which no more is known than perhaps its first line.
pub fn refuse(proxy: &Proxy, origin: &Origin, head: &[u8], own: &Own) -> Reply<Sending> {
    let id = proxy.next_request_id();
    let line = http1::first_line(head);
    let method = line.and_then(|(method, ..)| Method::from_bytes(method).ok()).unwrap_or(Method::GET);
    let mut visit = proxy.fronts.access_log().begin_refused(line, origin, id);
    let mut reply: Reply<Answer> = own.response(Form::Plain, &id.value()).into();
    let status = reply.head.status;
    visit.answered(status, Maker::Proxy);
    lead_to_https(origin, &mut reply.head.fields);
    reply.map(|answer| Sending::new(answer, visit, &method, status))
}

/// Tells browsers to use https alone, where that is wanted and the app says nothing of it.
fn lead_to_https(origin: &Origin, fields: &mut Fields) {
    if let Some(hsts) = &origin.hsts
        && !fields.contains(&STRICT_TRANSPORT_SECURITY)
    {
        fields.append(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
}

/// A request on its way in.
struct Incomer<'a> {
    head: Box<RequestHead>,
    body: ClientBody,
    is_plain: bool,
    upgrade: Option<OnUpgrade>,
    interims: Option<&'a Interims>,
    waits: &'a mut Waits,
    arrived: Instant,
}

/// Where a plain request is to go instead, if its host can be reached by https.
fn by_https(proxy: &Proxy, origin: &Origin, host: &str, request: &RequestHead) -> Option<HeaderValue> {
    let front = proxy.fronts.current();
    let https = front.settings.https.filter(|_| front.settings.redirect_http)?;
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    // What proves to a certificate authority whose host it is must be answered as it was asked (RFC 8555 §8.3).
    if path.starts_with(CHALLENGE_PATH) || origin.is_secure(&request.fields) {
        return None;
    }
    let port = if https.port() == 443 { String::new() } else { format!(":{}", https.port()) };
    let path = if path.starts_with('/') { path } else { "/" };
    front.has_certificate(host).then(|| HeaderValue::from_str(&format!("https://{host}{port}{path}")).ok())?
}

async fn forward(
    proxy: &Proxy,
    origin: &Origin,
    request: Incomer<'_>,
    id: RequestId<'_>,
    visit: &mut Visit,
) -> Result<Reply<Answer>, Own> {
    let Incomer { mut head, body, is_plain, upgrade: client, interims, waits, arrived } = request;
    if head.method == Method::CONNECT {
        return Err(Own::MethodNotAllowed);
    }
    if head.uri.scheme().is_none() && head.uri.authority().is_some() {
        // A host alone is a target of CONNECT (RFC 9112 §3.2.3).
        return Err(Own::BadRequest("the request's target is malformed"));
    }
    if !is_plain {
        headers::check_framing(&head.fields).map_err(Own::BadRequest)?;
    }
    if head.version == Version::HTTP_2
        && let Fields::Map(map) = &mut head.fields
    {
        headers::join_http2(head.uri.authority(), map).map_err(Own::BadRequest)?;
    }
    if origin.limits.max_body_size.is_some_and(|most| body.size_hint().lower() > most) {
        return Err(Own::TooLarge);
    }
    let authority = headers::authority(&head.uri, &head.fields).map_err(Own::BadRequest)?;
    let host = authority.to_str().ok().and_then(lookup_host).ok_or(Own::BadRequest("the Host header is malformed"))?;
    visit.asks_for(&host);
    if let Some(token) = head.uri.path().strip_prefix(CHALLENGE_PATH)
        && let Some(answer) = proxy.challenges.page(&host, token)
    {
        return Err(Own::Challenge(answer));
    }
    if origin.leads_to_https
        && let Some(location) = by_https(proxy, origin, &host, &head)
    {
        return Err(Own::ByHttps(location));
    }

    let asked = head.uri.clone();
    let seeker = Seeker { host: &host, path: asked.path(), fields: &head.fields, tried: &[], waited: false };
    let claimed = match proxy.routing.claim(seeker) {
        Ok((claim, way)) => Ok((claim, way, arrived)),
        // The time in the queue is not the instance's.
        Err(none) => {
            let waited = wait_for_room(proxy, seeker, none, visit).await;
            waited.map(|(claim, way)| (claim, way, Instant::now()))
        }
    };
    let (claim, way, claimed) = match claimed {
        Ok(claimed) => claimed,
        Err(none) => return without_instance(none, &host, head, visit).await,
    };
    visit.found(&way);
    visit.given_to(claim.instance());
    let is_secure = origin.is_secure(&head.fields);
    let stays =
        way.sticky.as_ref().is_some_and(|cookie| cookie.read(&head.fields) == Some(claim.instance().id.as_str()));
    let protocol = way.protocol;
    // In HTTP/1.0 it asks for nothing (RFC 9110 §7.8).
    let may_upgrade =
        !is_plain && head.version == Version::HTTP_11 && protocol == Protocol::Http1 && body.is_end_stream();
    let upgrade = if may_upgrade { headers::upgrade(&head.fields) } else { None };
    let client = client.filter(|_| upgrade.is_some());
    headers::prepare_request(&mut head.fields, origin, authority.clone(), id.value(), upgrade);
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        // Said here, as hyper takes a GET without a length for one without a body, and would leave it out.
        head.fields.insert(&TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(prefix) = &way.strip {
        headers::set_prefix(&mut head.fields, prefix);
    }
    head.uri = target_for_instance(std::mem::take(&mut head.uri), way.strip.as_ref());
    tracing::debug!(method = %head.method, uri = %head.uri, %host, instance = %claim.instance().id, "request");

    let progress = if body.is_end_stream() { None } else { Some(Arc::new(Progress::new())) };
    let replayable = progress.is_none() && client.is_none() && head.method.is_idempotent();
    let outgoing = match &progress {
        None => Outgoing::Empty,
        Some(progress) => Outgoing::Upload(body, Arc::clone(progress)),
    };
    let attempt = Attempt {
        proxy,
        host: &host,
        path: asked.path(),
        stays,
        is_secure,
        answer_timeout: origin.limits.answer_timeout,
        claim,
        arrived,
        claimed,
        tally: Tally::new(&way.counters),
        way,
        tried: Vec::new(),
        tries_left: EXTRA_TRIES,
        // In HTTP/2 the other side says what it has not looked at before it closes (RFC 9113 §6.8).
        may_reuse: replayable || protocol == Protocol::H2c,
        replayable,
        interims,
        waits,
        progress,
        visit,
    };
    attempt.answer(ForInstance { head, body: outgoing }, client).await
}

/// Where a route's instances have no room, the request waits in its queue. A client that leaves meanwhile is counted.
async fn wait_for_room(
    proxy: &Proxy,
    seeker: Seeker<'_>,
    none: NoClaim,
    visit: &mut Visit,
) -> Result<(Claim, Arc<Way>), NoClaim> {
    let (NoClaim::NoMember(way) | NoClaim::Busy(way)) = &none else { return Err(none) };
    let way = Arc::clone(way);
    visit.found(&way);
    let tally = Tally::new(&way.counters);
    let waited = proxy.routing.wait(seeker, &way, none).await;
    // Its end is told by whoever answers it.
    tally.forget();
    waited
}

/// What is answered where no instance is asked.
async fn without_instance(
    none: NoClaim,
    host: &str,
    request: Box<RequestHead>,
    visit: &mut Visit,
) -> Result<Reply<Answer>, Own> {
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
            let RequestHead { method, uri, fields, .. } = *request;
            files::answer(files, &method, uri.path(), &fields.into_map()).await.map(Reply::from)
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
