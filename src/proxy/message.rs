//! Heads of requests and of answers on their way through the proxy, whoever reads and writes them. They are boxed, as they pass
//! through a dozen hands.

use hyper::ext::ReasonPhrase;
use hyper::header::HeaderValue;
use hyper::http::{request, response};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::fields::Fields;
use super::upload::Outgoing;

/// What one request is called in logs, its app's and ours.
#[derive(Debug, Clone, Copy)]
pub struct RequestId<'a> {
    /// Of the process that took it.
    pub process: &'a str,
    /// Among those of the process.
    pub number: u64,
}

impl RequestId<'_> {
    /// As it is sent: made where it is needed, which is most often once.
    pub fn value(&self) -> HeaderValue {
        let digits = (u64::BITS - self.number.leading_zeros()).div_ceil(4).max(1);
        let mut text = String::with_capacity(self.process.len() + 1 + digits as usize);
        text.push_str(self.process);
        text.push('-');
        let digit = |place: u32| char::from_digit((self.number >> (4 * place)) as u32 & 0xf, 16);
        text.extend((0..digits).rev().filter_map(digit));
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("-"))
    }
}

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
    pub head: Box<RequestHead>,
    /// What it brings.
    pub body: Outgoing,
}

impl ForInstance {
    /// As hyper sends it, in HTTP/1.1.
    pub fn into_request(self) -> Request<Outgoing> {
        let RequestHead { method, uri, fields, .. } = *self.head;
        let mut request = Request::new(self.body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = fields.into_map();
        request
    }
}

impl From<Request<Outgoing>> for ForInstance {
    fn from(request: Request<Outgoing>) -> Self {
        let (head, body) = request.into_parts();
        Self { head: Box::new(head.into()), body }
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
    pub head: Box<AnswerHead>,
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
        let AnswerHead { status, reason, fields } = *self.head;
        let mut response = Response::new(self.body);
        *response.status_mut() = status;
        *response.headers_mut() = fields.into_map();
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

impl<B> From<Response<B>> for Reply<B> {
    fn from(response: Response<B>) -> Self {
        let (response::Parts { status, headers, mut extensions, .. }, body) = response.into_parts();
        let reason = extensions.remove::<ReasonPhrase>();
        Self { head: Box::new(AnswerHead { status, reason, fields: Fields::Map(headers) }), body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_called_by_its_process_and_its_number() {
        for (number, expected) in
            [(0, "5f-0"), (9, "5f-9"), (16, "5f-10"), (0xabc, "5f-abc"), (u64::MAX, "5f-ffffffffffffffff")]
        {
            assert_eq!(RequestId { process: "5f", number }.value(), expected);
        }
    }
}
