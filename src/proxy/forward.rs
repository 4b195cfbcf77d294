//! One request: claim an instance, send, retry where that is safe, relay the answer.
//!
//! What may be tried again (at most twice more):
//! * nothing was written (no connection, or it closed before the first byte): any method;
//! * the connection broke without a byte of an answer: idempotent requests without a body, once. All others never use
//!   an idle connection, so they do not meet the one that closes as it is used.
//!
//! An idle connection that broke is replaced by a fresh one to the same instance; an instance that does not take a
//! connection, or breaks a fresh one, is passed over for another.
//!
//! After the first byte of an answer nothing is tried again.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderMap, HeaderValue, SET_COOKIE, STRICT_TRANSPORT_SECURITY, UPGRADE};
use hyper::http::response;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::access_log::{Maker, Sending, Visit};
use super::answer::Own;
use super::body::{Answer, Carrier, ClientBody, Outgoing, Progress, Relay};
use super::challenges::CHALLENGE_PATH;
use super::counts::Tally;
use super::files;
use super::headers::{self, Origin};
use super::instance::{Claim, Instance};
use super::path_prefix::PathPrefix;
use super::pool::{Link, SendError};
use super::routing::{NoClaim, Seeker, Way};
use super::server::Proxy;
use super::table::lookup_host;
use super::tunnel;

/// Tries after the first.
const EXTRA_TRIES: u32 = 2;

/// Answers one request of a client.
pub async fn handle(proxy: Arc<Proxy>, origin: Arc<Origin>, request: Request<Incoming>) -> Response<Sending> {
    let id = proxy.next_request_id();
    let mut visit = proxy.fronts.access_log().begin(&request, &origin, &id);
    let method = request.method().clone();
    let form = headers::form_of_errors(request.headers());
    let is_http2 = request.version() == Version::HTTP_2;
    let is_held_back = request.headers().contains_key(EXPECT);
    let most = origin.limits.max_body_size;
    let request = request.map(|body| ClientBody::new(body, is_held_back, most, visit.bytes()));
    let (mut response, by) = match forward(&proxy, &origin, request, id.clone(), &mut visit).await {
        Ok(response) => (response, Maker::App),
        Err(own) => (own.response(form, &id), Maker::Proxy),
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
    id: HeaderValue,
    visit: &mut Visit,
) -> Result<Response<Answer>, Own> {
    let arrived = Instant::now();
    if request.method() == Method::CONNECT {
        return Err(Own::MethodNotAllowed);
    }
    headers::check_framing(request.headers()).map_err(Own::BadRequest)?;
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
    let upgrade = if request.body().is_end_stream() { headers::upgrade(request.headers()) } else { None };
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    headers::prepare_request(&mut head.headers, origin, authority.clone(), id, upgrade);
    let uri = match &way.strip {
        None => origin_form(head.uri),
        Some(prefix) => {
            headers::set_prefix(&mut head.headers, prefix);
            without(prefix, &origin_form(head.uri))
        }
    };
    let head = Head { method: head.method, uri, headers: head.headers };
    tracing::debug!(method = %head.method, uri = %head.uri, %host, instance = %claim.instance().id, "request");

    let progress = if body.is_end_stream() { None } else { Some(Arc::new(Progress::default())) };
    let replayable = progress.is_none() && client.is_none() && head.method.is_idempotent();
    let mut attempt = Attempt {
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
        may_reuse: replayable,
        replayable,
        progress,
        visit,
    };
    let outgoing = match &attempt.progress {
        None => Outgoing::Empty,
        Some(progress) => Outgoing::Upload(body, Arc::clone(progress)),
    };
    match attempt.run(head.with(outgoing)).await {
        Ok((link, response)) => attempt.relay(link, response, client),
        Err(NoAnswer::ClientLeft) => Err(Own::BadRequest("the request's body is malformed or incomplete")),
        Err(NoAnswer::ClientStalled) => Err(Own::RequestTimeout),
        Err(NoAnswer::TooLarge) => Err(Own::TooLarge),
        Err(NoAnswer::Unreachable) => {
            attempt.tally.failed();
            Err(Own::BadGateway)
        }
        Err(NoAnswer::TooLate) => {
            attempt.tally.failed();
            Err(Own::GatewayTimeout)
        }
    }
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

/// The target as an origin server expects it: path and query alone.
fn origin_form(uri: Uri) -> Uri {
    if uri.authority().is_none() {
        return uri;
    }
    let path = uri.into_parts().path_and_query;
    path.map(Uri::from).unwrap_or_default()
}

fn without(prefix: &PathPrefix, uri: &Uri) -> Uri {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    prefix.strip(target).parse().unwrap_or_default()
}

/// The head of a request, kept while it may have to be sent again.
#[derive(Debug, Clone)]
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn with(self, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }

    fn of(request: &Request<Outgoing>) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone(), headers: request.headers().clone() }
    }
}

/// A request on its way to an answer.
struct Attempt<'a> {
    proxy: &'a Proxy,
    host: &'a str,
    path: &'a str,
    way: Arc<Way>,
    /// Whether the client named the instance that was claimed first.
    stays: bool,
    is_secure: bool,
    /// How long an instance may take to begin its answer, counted from the last sign of life of an upload.
    answer_timeout: Duration,
    claim: Claim,
    /// When the request's head was there.
    arrived: Instant,
    /// When the instance was given it: one is not blamed for the time that another one took before.
    claimed: Instant,
    tally: Tally,
    /// Instances that did not take it.
    tried: Vec<Arc<Instance>>,
    tries_left: u32,
    /// Whether it may meet a connection that its other side is closing.
    may_reuse: bool,
    /// Whether it does no harm twice and is still there to be sent again: idempotent, without a body.
    replayable: bool,
    /// Of its body, if it has one.
    progress: Option<Arc<Progress>>,
    visit: &'a mut Visit,
}

/// Why a request ends without an instance's answer.
enum NoAnswer {
    /// Its client broke the body off.
    ClientLeft,
    /// Its client stopped sending the body.
    ClientStalled,
    /// Its body has more bytes than it may.
    TooLarge,
    /// No instance took it, or the one that did broke off.
    Unreachable,
    /// The answer did not begin in time, or the instance's time to finish is over.
    TooLate,
}

impl Attempt<'_> {
    async fn run(&mut self, mut request: Request<Outgoing>) -> Result<(Box<Link>, Response<Incoming>), NoAnswer> {
        loop {
            let idle = if self.may_reuse { self.claim.instance().pool.take() } else { None };
            let mut link = match idle {
                Some(link) => link,
                None => match self.claim.instance().pool.connect().await {
                    Ok(link) => link,
                    Err(error) => {
                        self.go_elsewhere(&error)?;
                        continue;
                    }
                },
            };
            self.decide_end(&mut link, &mut request);
            let replay = self.replayable.then(|| Head::of(&request));
            let error = match self.exchange(&mut link, request).await? {
                Ok(response) => return Ok((link, response)),
                Err(error) => error,
            };
            // Whatever follows takes a fresh connection: other idle ones may be just as stale.
            self.may_reuse = false;
            let (next, error) = match (error, replay) {
                (SendError::NotSent(unsent, error), _) => (*unsent, error),
                // An instance that is just dying breaks an idle connection and then the fresh one too; the tries end it.
                (SendError::Broken { silent: true, error }, Some(head)) => (head.with(Outgoing::Empty), error),
                (SendError::Broken { error, .. }, _) => {
                    match &self.progress {
                        Some(progress) if progress.is_too_large() => return Err(NoAnswer::TooLarge),
                        Some(progress) if progress.is_broken() => return Err(NoAnswer::ClientLeft),
                        _ => {}
                    }
                    self.blame(&error);
                    return Err(NoAnswer::Unreachable);
                }
            };
            match link.reused {
                // An idle connection closed as it was used: nothing is wrong with the instance.
                true => self.take_try()?,
                false => self.go_elsewhere(&error)?,
            }
            request = next;
        }
    }

    /// A request that takes no idle connection would leave one more behind. When there are enough of them, the
    /// instance is asked to close it: of many connections closed from this side each would hold a port for a minute.
    fn decide_end(&self, link: &mut Link, request: &mut Request<Outgoing>) {
        if self.replayable || request.headers().contains_key(UPGRADE) {
            return;
        }
        link.is_extra = true;
        link.ends = self.claim.instance().pool.has_enough();
        match link.ends {
            true => request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close")),
            false => request.headers_mut().remove(CONNECTION),
        };
    }

    /// Waits for the head of the answer, as long as is reasonable.
    async fn exchange(
        &self,
        link: &mut Link,
        request: Request<Outgoing>,
    ) -> Result<Result<Response<Incoming>, SendError>, NoAnswer> {
        let mut answer = pin!(link.send(request));
        let mut cut = pin!(self.claim.instance().requests_cut().cancelled());
        let mut seen = 0;
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => return Ok(answered),
                () = &mut cut => return Err(NoAnswer::TooLate),
                () = tokio::time::sleep(self.answer_timeout) => match &self.progress {
                    Some(upload) if upload.frames() > seen => seen = upload.frames(),
                    Some(upload) if upload.is_waiting_for_client() => return Err(NoAnswer::ClientStalled),
                    _ => return Err(NoAnswer::TooLate),
                },
            }
        }
    }

    /// The instance did not take the request: hand it to another one that was not tried yet.
    fn go_elsewhere(&mut self, error: &dyn std::error::Error) -> Result<(), NoAnswer> {
        self.blame(error);
        self.take_try()?;
        self.tried.push(Arc::clone(self.claim.instance()));
        // Without a cookie: the instance that it names has just been tried.
        let seeker =
            Seeker { host: self.host, path: self.path, headers: &HeaderMap::new(), tried: &self.tried, waited: false };
        let (claim, _) = self.proxy.routing.claim(seeker).map_err(|_| NoAnswer::Unreachable)?;
        self.stays = false;
        self.tally.retried();
        self.visit.given_to(claim.instance());
        self.claim = claim;
        self.claimed = Instant::now();
        Ok(())
    }

    fn blame(&self, error: &dyn std::error::Error) {
        self.proxy.upstream_failed(self.claim.instance(), error);
    }

    fn take_try(&mut self) -> Result<(), NoAnswer> {
        self.tries_left = self.tries_left.checked_sub(1).ok_or(NoAnswer::Unreachable)?;
        self.visit.retried();
        Ok(())
    }

    fn relay(
        mut self,
        mut link: Box<Link>,
        response: Response<Incoming>,
        client: Option<hyper::upgrade::OnUpgrade>,
    ) -> Result<Response<Answer>, Own> {
        let (mut head, body) = response.into_parts();
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if (switching && client.is_none()) || !headers::is_plain_chunked(&head.headers) {
            self.blame(&UnusableAnswer);
            self.tally.failed();
            return Err(Own::BadGateway);
        }
        let is_server_error = head.status.is_server_error();
        let now = Instant::now();
        self.claim.instance().note_answer(is_server_error, now - self.claimed);
        self.tally.answered(now - self.arrived);
        if is_server_error {
            self.tally.server_error();
        }
        if let Some(limit) = headers::keep_alive_timeout(&head.headers) {
            link.keep_at_most(limit);
        }
        let is_stream = headers::is_event_stream(&head.headers);
        prepare(&mut head, switching);
        if let Some(cookie) = self.way.sticky.as_ref().filter(|_| !self.stays)
            && let Some(tie) = cookie.tie_to(&self.claim.instance().id, self.is_secure)
        {
            head.headers.append(SET_COOKIE, tie);
        }
        if let (true, Some(client)) = (switching, client) {
            self.tally.served();
            self.visit.answered(head.status, Maker::App);
            self.proxy.spawn(tunnel::run(client, link, self.claim, std::mem::take(self.visit)));
            return Ok(Response::from_parts(head, Answer::Own(None)));
        }
        let still_uploading = self.progress.is_some_and(|progress| !progress.is_done());
        let link = if still_uploading {
            // The rest of the upload must move while nobody reads the answer, and the other way round.
            Carrier::ByItself(link.detach())
        } else {
            Carrier::Here(link)
        };
        Ok(Response::from_parts(head, Answer::Relayed(Relay::new(body, link, self.claim, self.tally, is_stream))))
    }
}

fn prepare(head: &mut response::Parts, switching: bool) {
    headers::prepare_response(&mut head.headers, switching);
    head.version = Version::HTTP_11;
}

#[derive(Debug, thiserror::Error)]
#[error("answered in a way that cannot be passed on")]
struct UnusableAnswer;
