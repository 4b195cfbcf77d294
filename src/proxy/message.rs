//! Heads of requests and of answers on their way through the proxy, whoever reads and writes them.

use hyper::ext::ReasonPhrase;
use hyper::http::{request, response};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::body::Outgoing;
use super::fields::Fields;

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// What is to be done.
    pub method: Method,
    /// To what.
    pub uri: Uri,
    /// Of the client's HTTP.
    pub version: Version,
    /// All else.
    pub fields: Fields,
}

impl From<request::Parts> for RequestHead {
    fn from(parts: request::Parts) -> Self {
        let request::Parts { method, uri, version, headers, .. } = parts;
        Self { method, uri, version, fields: Fields::Map(headers) }
    }
}

/// A request for an instance.
#[derive(Debug)]
pub struct ForInstance {
    /// As the instance is to see it.
    pub head: RequestHead,
    /// What it brings.
    pub body: Outgoing,
}

impl ForInstance {
    /// As hyper sends it, in HTTP/1.1.
    pub fn into_request(self) -> Request<Outgoing> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.head.method;
        *request.uri_mut() = self.head.uri;
        *request.headers_mut() = self.head.fields.into_map();
        request
    }
}

impl From<Request<Outgoing>> for ForInstance {
    fn from(request: Request<Outgoing>) -> Self {
        let (head, body) = request.into_parts();
        Self { head: head.into(), body }
    }
}

/// The head of an answer.
#[derive(Debug)]
pub struct AnswerHead {
    /// How it went.
    pub status: StatusCode,
    /// The words beside the status, where they are not the usual ones.
    pub reason: Option<ReasonPhrase>,
    /// All else.
    pub fields: Fields,
}

/// An answer for a client.
#[derive(Debug)]
pub struct Reply<B> {
    /// Its head.
    pub head: AnswerHead,
    /// Its body.
    pub body: B,
}

impl<B> Reply<B> {
    /// With another body.
    pub fn map<C>(self, change: impl FnOnce(B) -> C) -> Reply<C> {
        Reply { head: self.head, body: change(self.body) }
    }

    /// As hyper sends it.
    pub fn into_response(self) -> Response<B> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.head.status;
        *response.headers_mut() = self.head.fields.into_map();
        if let Some(reason) = self.head.reason {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

impl<B> From<Response<B>> for Reply<B> {
    fn from(response: Response<B>) -> Self {
        let (response::Parts { status, headers, mut extensions, .. }, body) = response.into_parts();
        let reason = extensions.remove::<ReasonPhrase>();
        Self { head: AnswerHead { status, reason, fields: Fields::Map(headers) }, body }
    }
}
