//! Against pages in a browser that reach for the agent: DNS rebinding (a foreign name that resolves to us) and
//! cross-site requests.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

use super::ApiState;
use super::auth::LocalPeer;
use super::problem::Problem;

/// Refuses foreign names (421) and foreign pages (403). The agent's own socket is reached by no browser.
pub(super) async fn check(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    if request.extensions().get::<LocalPeer>().is_some() {
        return next.run(request).await;
    }
    let public = api.agent.config().agent.public_url.clone();
    let public_host = public.as_deref().and_then(host_of_url);
    match refuse(request.method(), request.uri(), request.headers(), public_host.as_deref()) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

fn refuse(method: &Method, uri: &Uri, headers: &HeaderMap, public_host: Option<&str>) -> Option<Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next().and_then(|value| value.to_str().ok()), hosts.next());
    let asked = uri.authority().map(|authority| authority.as_str()).or(host);
    let (Some(asked), None) = (asked, second) else {
        return Some(Problem::new(StatusCode::BAD_REQUEST, "exactly one Host header is needed").field("Host"));
    };
    if !is_ours(asked, public_host) || host.is_some_and(|host| !is_ours(host, public_host)) {
        let detail = "the agent does not answer under this name; use its address, localhost, or the host of \
                      agent.public_url";
        return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).field("Host"));
    }
    let origin = headers.get(header::ORIGIN).map(|value| value.to_str().unwrap_or("null"));
    let foreign_page = origin.is_some_and(|origin| !same_host(origin, asked));
    let fetch_site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    let foreign_call = !method.is_safe() && matches!(fetch_site, Some("cross-site" | "same-site"));
    if foreign_page || foreign_call {
        return Some(
            Problem::new(StatusCode::FORBIDDEN, "pages of other sites may not call the agent").field("Origin"),
        );
    }
    None
}

/// A numeric address cannot be rebound by DNS, so it is ours whatever it is: the connection got here.
fn is_ours(authority: &str, public_host: Option<&str>) -> bool {
    let Some(host) = host_of_authority(authority) else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || host == "localhost"
        || host.ends_with(".localhost")
        || public_host.is_some_and(|public| public == host)
}

fn same_host(origin: &str, asked: &str) -> bool {
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(asked))
}

fn host_of_authority(text: &str) -> Option<String> {
    let authority: axum::http::uri::Authority = text.parse().ok()?;
    if text.contains('@') {
        return None;
    }
    Some(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

fn host_of_url(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(uri.host()?.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, more: &[(&'static str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        for (name, value) in more {
            headers.append(*name, value.parse().unwrap());
        }
        refuse(&Method::POST, &Uri::from_static("/api/v1/apps"), &headers, Some("deploy.example.com"))
            .map_or(200, |problem| problem.status.as_u16())
    }

    #[test]
    fn only_our_own_names_are_answered() {
        for ours in ["127.0.0.1:9000", "[::1]:9000", "10.1.2.3", "localhost:9000", "Deploy.Example.com", "a.localhost"]
        {
            assert_eq!(check(ours, &[]), 200, "{ours}");
        }
        for foreign in
            ["evil.test", "evil.test:9000", "127.0.0.1.nip.io", "deploy.example.com.evil.test", "x@localhost"]
        {
            assert_eq!(check(foreign, &[]), 421, "{foreign}");
        }
        assert_eq!(check("localhost", &[("host", "evil.test")]), 400);
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        assert_eq!(check("localhost:9000", &[("origin", "http://localhost:9000")]), 200);
        assert_eq!(check("localhost:9000", &[("origin", "https://evil.test")]), 403);
        assert_eq!(check("localhost:9000", &[("origin", "http://localhost:3000")]), 403);
        assert_eq!(check("localhost:9000", &[("origin", "null")]), 403);
        assert_eq!(check("localhost:9000", &[("sec-fetch-site", "cross-site")]), 403);
    }
}
