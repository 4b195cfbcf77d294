//! The answers of the proxy's own making: short, escaped, a page for browsers, JSON for programs that ask for it, and plain
//! text for all others. Each names its request, as the app's logs and the access log do.

use bytes::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};

use super::headers::{Form, X_REQUEST_ID};
use super::relay::Answer;
use crate::model::shorten;

/// What the proxy has to say itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// The request cannot be taken as it is; the connection is closed.
    BadRequest(&'static str),
    /// The request's head has more bytes than it may, or more fields; the connection is closed.
    HeadTooLarge,
    /// The request's body has more bytes than it may; the connection is closed.
    TooLarge,
    /// A method that makes no sense here.
    MethodNotAllowed,
    /// The client stopped in the middle of its body.
    RequestTimeout,
    /// No route has this host.
    UnknownHost(String),
    /// A route has this host, but not for this path.
    UnknownPath(String),
    /// The app is being worked on; its user's own page, if there is one.
    Maintenance(Option<String>),
    /// The host is an app's, and no instance of it runs.
    NothingRuns(String),
    /// Every instance has as many requests as it may, and so has the queue.
    Busy(String),
    /// A static file is not there, or its name is none.
    UnknownFile,
    /// A static file is there and cannot be read.
    UnreadableFile,
    /// Static files are only read.
    FilesAreRead,
    /// No instance took the request, or it broke off before answering.
    BadGateway,
    /// No answer in time.
    GatewayTimeout,
    /// The same is to be asked for here, by https.
    ByHttps(HeaderValue),
    /// What a certificate authority is to be told (RFC 8555, section 8.3).
    Challenge(String),
}

impl Own {
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MethodNotAllowed | Self::FilesAreRead => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownHost(_) | Self::UnknownPath(_) | Self::UnknownFile => StatusCode::NOT_FOUND,
            Self::Maintenance(_) | Self::NothingRuns(_) | Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::UnreadableFile => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::ByHttps(_) => StatusCode::PERMANENT_REDIRECT,
            Self::Challenge(_) => StatusCode::OK,
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::BadRequest(why) => (*why).to_owned(),
            Self::HeadTooLarge => "the request's head is larger, or has more fields, than is taken here".to_owned(),
            Self::TooLarge => "the request's body is larger than is taken here".to_owned(),
            Self::MethodNotAllowed => "this is not a forward proxy".to_owned(),
            Self::RequestTimeout => "the rest of the request did not arrive in time".to_owned(),
            Self::UnknownHost(host) => format!("the host {} is not configured here", shorten(host, 100)),
            Self::UnknownPath(host) => format!("nothing is configured at this path of {}", shorten(host, 100)),
            Self::Maintenance(_) => "this site is being worked on; it is back soon".to_owned(),
            Self::NothingRuns(host) => {
                format!("nothing runs behind {} at the moment; try again later", shorten(host, 100))
            }
            Self::Busy(host) => {
                format!("{} has as many requests as it can take; try again later", shorten(host, 100))
            }
            Self::UnknownFile => "there is no such file".to_owned(),
            Self::UnreadableFile => "this file cannot be read at the moment".to_owned(),
            Self::FilesAreRead => "files are read, with GET or HEAD".to_owned(),
            Self::BadGateway => "no instance answered; try again in a moment".to_owned(),
            Self::GatewayTimeout => "the instance did not answer in time; try again later".to_owned(),
            Self::ByHttps(_) => "this host is served by https".to_owned(),
            Self::Challenge(answer) => answer.clone(),
        }
    }

    /// The whole response to the request with this id; problem+json is RFC 9457's.
    pub fn response(&self, form: Form, id: &HeaderValue) -> Response<Answer> {
        let (status, detail) = (self.status(), self.detail());
        let shown_id = id.to_str().unwrap_or("-");
        let (content_type, text) = match (form, self) {
            (_, Self::Challenge(answer)) => ("application/octet-stream", answer.clone()),
            (Form::Json, _) => ("application/problem+json", problem(status, &detail, shown_id)),
            // It is HTML, whoever asks.
            (_, Self::Maintenance(Some(page))) => ("text/html; charset=utf-8", page.clone()),
            (Form::Html, _) => ("text/html; charset=utf-8", page(status, &detail, shown_id)),
            (Form::Plain, _) => ("text/plain; charset=utf-8", format!("{status}: {detail}\nrequest {shown_id}\n")),
        };
        let mut response = Response::new(Answer::Own(Some(Bytes::from(text))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(&X_REQUEST_ID, id.clone());
        match self {
            Self::NothingRuns(_) | Self::Busy(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Maintenance(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("60"));
            }
            Self::MethodNotAllowed => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::BadRequest(_) | Self::HeadTooLarge | Self::TooLarge | Self::RequestTimeout => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::ByHttps(location) => {
                headers.insert(LOCATION, location.clone());
            }
            Self::FilesAreRead => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::UnknownHost(_)
            | Self::UnknownPath(_)
            | Self::UnknownFile
            | Self::UnreadableFile
            | Self::BadGateway
            | Self::GatewayTimeout
            | Self::Challenge(_) => {}
        }
        response
    }
}

fn problem(status: StatusCode, detail: &str, id: &str) -> String {
    let title = status.canonical_reason().unwrap_or_default();
    serde_json::json!({ "title": title, "status": status.as_u16(), "detail": detail, "request_id": id }).to_string()
}

fn page(status: StatusCode, detail: &str, id: &str) -> String {
    let (detail, id) = (escape(detail), escape(id));
    format!(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n<title>{status}</title>\n\
         <style>body{{font:1.1em/1.5 system-ui,sans-serif;max-width:34em;margin:18vh auto;padding:0 1.5em;color:#333}}\
         h1{{font-size:1.5em}}small{{color:#777}}@media(prefers-color-scheme:dark){{body{{background:#181818;color:#ddd}}}}</style>\n\
         <h1>{status}</h1>\n<p>{detail}\n<p><small>request {id}</small>\n"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: HeaderValue = HeaderValue::from_static("5f-1");

    fn text(own: &Own, form: Form) -> String {
        match own.response(form, &ID).into_body() {
            Answer::Own(Some(text)) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_client_sent_comes_back_escaped() {
        let own = Own::UnknownHost("<script>alert('x')</script>".to_owned());
        let page = text(&own, Form::Html);
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("&lt;script&gt;") && page.contains("404 Not Found"), "{page}");
        let problem: serde_json::Value = serde_json::from_str(&text(&own, Form::Json)).unwrap();
        assert_eq!(problem["status"], 404);
    }

    #[test]
    fn an_app_that_is_worked_on_has_the_page_of_its_user() {
        let own = Own::Maintenance(Some("<h1>Back at noon</h1>".to_owned()));
        assert_eq!(text(&own, Form::Html), "<h1>Back at noon</h1>");
        assert_eq!(text(&own, Form::Plain), "<h1>Back at noon</h1>");
        assert!(text(&own, Form::Json).contains("being worked on"));
        let response = own.response(Form::Plain, &ID);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (503, &HeaderValue::from_static("60"))
        );
        assert!(text(&Own::Maintenance(None), Form::Html).contains("503 Service Unavailable"));
    }

    #[test]
    fn an_empty_route_says_when_to_come_back() {
        let response = Own::NothingRuns("shop.test".to_owned()).response(Form::Html, &ID);
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (503, &HeaderValue::from_static("1"))
        );
    }

    #[test]
    fn each_answer_names_its_request_in_the_form_that_is_asked_for() {
        for (form, content_type, with_id) in [
            (Form::Html, "text/html; charset=utf-8", "<small>request 5f-1</small>"),
            (Form::Json, "application/problem+json", r#""request_id":"5f-1""#),
            (Form::Plain, "text/plain; charset=utf-8", "\nrequest 5f-1\n"),
        ] {
            for (own, status) in [(Own::BadGateway, "502 Bad Gateway"), (Own::GatewayTimeout, "504 Gateway Timeout")] {
                let text = text(&own, form);
                let number = status.split(' ').next().unwrap();
                assert!(text.contains(with_id) && text.contains(number), "{text}");
                let response = own.response(form, &ID);
                assert_eq!(
                    (&response.headers()[CONTENT_TYPE], &response.headers()["x-request-id"]),
                    (&content_type.parse().unwrap(), &ID)
                );
            }
        }
        assert_eq!(
            text(&Own::BadGateway, Form::Plain),
            "502 Bad Gateway: no instance answered; try again in a moment\nrequest 5f-1\n"
        );
    }
}
