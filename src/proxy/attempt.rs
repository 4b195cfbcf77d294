//! A request on its way from a claimed instance to its answer, over as many tries as are safe.
//!
//! What may be tried again (at most twice more):
//! * nothing was written (no connection, or it closed before the first byte): any method;
//! * the connection broke without a byte of an answer: idempotent requests without a body, once. All others never use
//!   an idle connection, so they do not meet the one that closes as it is used;
//! * the same when the agent says that the instance is lost, as one is that was taken out of its network: its connections
//!   say nothing any more, and do not break either.
//!
//! An idle connection that broke is replaced by a fresh one to the same instance; an instance that does not take a
//! connection, or breaks a fresh one, is passed over for another.
//!
//! After the first byte of an answer nothing is tried again.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, SET_COOKIE, UPGRADE};
use hyper::upgrade::OnUpgrade;

use super::access_log::{Maker, Visit};
use super::answer::Own;
use super::counts::Tally;
use super::fields::Fields;
use super::headers;
use super::http1::{Interims, LinkError};
use super::instance::{Claim, Instance};
use super::message::{ForInstance, Reply};
use super::pool::{Link, SendError, Speech};
use super::relay::{Answer, Carrier, Relay, Source};
use super::routing::{Seeker, Way};
use super::server::Proxy;
use super::table::Protocol;
use super::upload::Progress;
use super::wait::Waits;
use super::{tunnel, websocket};

/// Tries after the first.
pub(super) const EXTRA_TRIES: u32 = 2;

/// A request on its way to an answer.
pub(super) struct Attempt<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) way: Arc<Way>,
    /// Whether the client named the instance that was claimed first.
    pub(super) stays: bool,
    pub(super) is_secure: bool,
    /// How long an instance may take to begin its answer, counted from the last sign of life of an upload.
    pub(super) answer_timeout: Duration,
    pub(super) claim: Claim,
    /// When the request's head was there.
    pub(super) arrived: Instant,
    /// When the instance was given it: one is not blamed for the time that another one took before.
    pub(super) claimed: Instant,
    pub(super) tally: Tally,
    /// Instances that did not take it.
    pub(super) tried: Vec<Arc<Instance>>,
    pub(super) tries_left: u32,
    /// Whether it may meet a connection that its other side is closing.
    pub(super) may_reuse: bool,
    /// Whether it does no harm twice and is still there to be sent again: idempotent, without a body.
    pub(super) replayable: bool,
    /// Where interim answers go, if its client can be sent any.
    pub(super) interims: Option<&'a Interims>,
    /// What may end the wait for an answer.
    pub(super) waits: &'a mut Waits,
    /// Of its body, if it has one.
    pub(super) progress: Option<Arc<Progress>>,
    pub(super) visit: &'a mut Visit,
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
    /// Sends the request, and what comes of it.
    pub(super) async fn answer(
        mut self,
        request: ForInstance,
        client: Option<OnUpgrade>,
    ) -> Result<Reply<Answer>, Own> {
        match self.run(request).await {
            Ok((link, reply)) => self.relay(link, reply, client),
            Err(NoAnswer::ClientLeft) => Err(Own::BadRequest("the request's body is malformed or incomplete")),
            Err(NoAnswer::ClientStalled) => Err(Own::RequestTimeout),
            Err(NoAnswer::TooLarge) => Err(Own::TooLarge),
            Err(NoAnswer::Unreachable) => {
                self.tally.failed();
                Err(Own::BadGateway)
            }
            Err(NoAnswer::TooLate) => {
                self.tally.failed();
                Err(Own::GatewayTimeout)
            }
        }
    }

    async fn run(&mut self, mut request: ForInstance) -> Result<(Box<Link>, Reply<Source>), NoAnswer> {
        loop {
            let speech = self.speech();
            let idle = if self.may_reuse { self.claim.instance().pool.take(speech, self.claimed) } else { None };
            let mut link = match idle {
                Some(link) => link,
                None => match self.claim.instance().pool.connect(speech).await {
                    Ok(link) => link,
                    Err(error) => {
                        self.go_elsewhere(&error)?;
                        continue;
                    }
                },
            };
            self.decide_end(&mut link, &mut request);
            let error = match self.exchange(&mut link, request).await? {
                Ok(reply) => return Ok((link, reply)),
                Err(error) => error,
            };
            // Whatever follows takes a fresh connection: other idle ones may be just as stale.
            self.may_reuse = false;
            let (next, error) = match error {
                SendError::NotSent(unsent, error) => (*unsent, error),
                // An instance that is just dying breaks an idle connection and then the fresh one too; the tries end it.
                SendError::Broken { silent: true, error, request: Some(kept) } => (*kept, error),
                SendError::Broken { error, .. } => {
                    match &self.progress {
                        Some(progress) if progress.is_too_large() => return Err(NoAnswer::TooLarge),
                        Some(progress) if progress.is_broken() => return Err(NoAnswer::ClientLeft),
                        _ => {}
                    }
                    self.blame(&error);
                    return Err(NoAnswer::Unreachable);
                }
            };
            match link.reused && !matches!(error, LinkError::Cut) {
                // An idle connection closed as it was used: nothing is wrong with the instance.
                true => self.take_try()?,
                false => self.go_elsewhere(&error)?,
            }
            request = next;
        }
    }

    /// How it is said to an instance.
    fn speech(&self) -> Speech {
        match self.way.protocol {
            Protocol::H2c => Speech::Http2,
            Protocol::Http1 if self.replayable => Speech::Plain,
            Protocol::Http1 => Speech::Any,
        }
    }

    /// A request that takes no idle connection would leave one more behind. When there are enough of them, the
    /// instance is asked to close it: of many connections closed from this side each would hold a port for a minute.
    fn decide_end(&self, link: &mut Link, request: &mut ForInstance) {
        let fields = &mut request.head.fields;
        if self.replayable || fields.contains(&UPGRADE) {
            return;
        }
        link.is_extra = true;
        link.ends = self.claim.instance().pool.has_enough();
        match link.ends {
            true => fields.insert(&CONNECTION, HeaderValue::from_static("close")),
            false => fields.remove(&CONNECTION),
        }
    }

    /// Waits for the head of the answer, as long as is reasonable.
    async fn exchange(
        &mut self,
        link: &mut Link,
        request: ForInstance,
    ) -> Result<Result<Reply<Source>, SendError>, NoAnswer> {
        let instance = self.claim.instance();
        let Waits { timer, ear } = &mut *self.waits;
        let answered = {
            let is_cut = poll_fn(|cx| ear.poll(cx, instance.requests_cut()));
            let mut answer = pin!(link.send(request, self.replayable, self.interims, is_cut));
            let mut deadline = tokio::time::Instant::from_std(self.claimed) + self.answer_timeout;
            poll_fn(|cx| {
                if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Ok(answered));
                }
                while timer.poll(cx, deadline).is_ready() {
                    match &self.progress {
                        Some(upload) if upload.moved_at() + self.answer_timeout > deadline => {
                            deadline = upload.moved_at() + self.answer_timeout;
                        }
                        Some(upload) if upload.is_waiting_for_client() => {
                            return Poll::Ready(Err(NoAnswer::ClientStalled));
                        }
                        _ => return Poll::Ready(Err(NoAnswer::TooLate)),
                    }
                }
                Poll::Pending
            })
            .await
        };
        match answered {
            Ok(Err(SendError::Broken { error: LinkError::Cut, .. })) if !instance.is_lost() => Err(NoAnswer::TooLate),
            answered => answered,
        }
    }

    /// The instance did not take the request: hand it to another one that was not tried yet.
    fn go_elsewhere(&mut self, error: &dyn std::error::Error) -> Result<(), NoAnswer> {
        self.blame(error);
        self.take_try()?;
        self.tried.push(Arc::clone(self.claim.instance()));
        // Without a cookie: the instance that it names has just been tried.
        let nameless = Fields::Map(HeaderMap::new());
        let seeker = Seeker { host: self.host, path: self.path, fields: &nameless, tried: &self.tried, waited: false };
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
        reply: Reply<Source>,
        client: Option<OnUpgrade>,
    ) -> Result<Reply<Answer>, Own> {
        let Reply { mut head, body: source } = reply;
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        // On the link itself it was read, and so understood.
        let is_framed = matches!(source, Source::Link) || headers::settle_framing(&mut head.fields);
        if (switching && client.is_none()) || !is_framed {
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
        if let Some(limit) = headers::keep_alive_timeout(&head.fields) {
            link.keep_at_most(limit);
        }
        let is_stream = headers::is_event_stream(&head.fields);
        headers::prepare_response(&mut head.fields, switching);
        if let Some(cookie) = self.way.sticky.as_ref().filter(|_| !self.stays)
            && let Some(tie) = cookie.tie_to(&self.claim.instance().id, self.is_secure)
        {
            head.fields.append(SET_COOKIE, tie);
        }
        if let (true, Some(client)) = (switching, client) {
            self.tally.served();
            self.visit.answered(head.status, Maker::App);
            let is_websocket = websocket::is_agreed(&head.fields);
            tunnel::spawn(self.proxy, client, link, self.claim, is_websocket, std::mem::take(self.visit));
            return Ok(Reply { head, body: Answer::Own(None) });
        }
        let upload = self.progress.filter(|progress| !progress.is_done());
        let link = if upload.is_some() && !link.moves_by_itself() {
            // The rest of the upload must move while nobody reads the answer, and the other way round.
            Carrier::ByItself(link.detach())
        } else {
            Carrier::Here(link)
        };
        let relay = Relay::new(source, link, self.claim, self.tally, is_stream, upload);
        Ok(Reply { head, body: Answer::Relayed(relay) })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("answered in a way that cannot be passed on")]
struct UnusableAnswer;
