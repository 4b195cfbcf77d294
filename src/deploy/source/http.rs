//! git over https: the "smart" protocol of gitprotocol-http(5) by reqwest.

use base64::Engine as _;
use futures_util::TryStreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use secrecy::ExposeSecret;
use tokio_util::io::StreamReader;

use super::limits::{Limits, Timeouts, Trouble, one_line};
use super::pkt::{PktReader, Reply, root_cause};
use crate::config::Credential;

/// Redirects that are followed, on the same host.
const MOST_REDIRECTS: usize = 5;
const INFO_REFS: &str = "/info/refs";

/// A client for git servers. Redirects are never followed by it: they are looked at one by one.
pub(super) fn client(timeouts: Timeouts) -> Result<Client, Trouble> {
    // Fails only when another part has installed a provider, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeouts.connect)
        .user_agent(concat!("git/longshore-", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Trouble::Failed(format!("cannot set up https: {}", root_cause(&error))))
}

/// One repository on an http server.
pub(super) struct HttpWire {
    client: Client,
    repository: String,
    authorization: Option<HeaderValue>,
    limits: Limits,
    host: String,
}

impl HttpWire {
    /// Asks for the refs; the answer is where a conversation begins.
    pub async fn connect(
        client: Client,
        url: &str,
        credential: &Credential,
        limits: &Limits,
    ) -> Result<(Self, PktReader), Trouble> {
        let parsed = Url::parse(url).map_err(|error| Trouble::Failed(format!("{url:?} is not a URL: {error}")))?;
        let mut wire = Self {
            client,
            repository: url.trim_end_matches('/').to_owned(),
            authorization: authorization(credential)?,
            limits: limits.clone(),
            host: place(&parsed),
        };
        let response = wire.info_refs(&parsed).await?;
        let reader = wire.answer(response, "application/x-git-upload-pack-advertisement").await?;
        Ok((wire, reader))
    }

    /// What the server is called in messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sends one request of the conversation; its answer replaces the one before.
    pub async fn post(&self, body: Vec<u8>) -> Result<PktReader, Trouble> {
        let request = self
            .client
            .post(format!("{}/git-upload-pack", self.repository))
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(ACCEPT, "application/x-git-upload-pack-result")
            .body(body);
        let response = self.send(request).await?;
        self.answer(response, "application/x-git-upload-pack-result").await
    }

    /// Follows redirects within the configured server, and no further: neither credential nor trust is for others.
    async fn info_refs(&mut self, configured: &Url) -> Result<Response, Trouble> {
        for _ in 0..=MOST_REDIRECTS {
            let address = format!("{}{INFO_REFS}?service=git-upload-pack", self.repository);
            let response = self.send(self.client.get(&address)).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let target = response
                .url()
                .join(location)
                .map_err(|_| Trouble::Failed(format!("{} redirects to something that is no URL", self.host)))?;
            if target.origin() != configured.origin() {
                return Err(Trouble::Failed(format!(
                    "{} redirects to {}, which is another server; nothing was sent there. If that is where the \
                     repository is now, set `repo` to it",
                    self.host,
                    place(&target),
                )));
            }
            let Some(repository) = target.path().strip_suffix(INFO_REFS) else {
                return Err(Trouble::Failed(format!(
                    "{} redirects to {}, which is not a git repository",
                    self.host,
                    one_line(target.path().as_bytes()),
                )));
            };
            self.repository = format!("{}{}", target.origin().ascii_serialization(), repository);
        }
        Err(Trouble::Failed(format!("{} redirects more than {MOST_REDIRECTS} times", self.host)))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Trouble> {
        let mut request = request.header("git-protocol", "version=2");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let sent = self.limits.io(&self.host, request.send()).await?;
        sent.map_err(|error| {
            if error.is_timeout() {
                Trouble::Failed(format!("cannot reach {} within {:?}", self.host, self.limits.timeouts.connect))
            } else if error.is_connect() {
                Trouble::Failed(format!("cannot reach {}: {}", self.host, root_cause(&error)))
            } else {
                Trouble::Failed(format!("the connection to {} broke: {}", self.host, root_cause(&error)))
            }
        })
    }

    async fn answer(&self, response: Response, expected: &str) -> Result<PktReader, Trouble> {
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Trouble::Failed(self.refusal(status)));
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.starts_with(expected) {
            return Err(Trouble::Failed(format!(
                "{} is not a git repository: the server answered {}",
                self.repository,
                if kind.is_empty() { "without a content type".to_owned() } else { one_line(kind.as_bytes()) },
            )));
        }
        let body = response.bytes_stream().map_err(|error| std::io::Error::other(root_cause(&error)));
        let reply: Reply = Box::new(StreamReader::new(Box::pin(body)));
        Ok(PktReader::new(reply, self.limits.clone(), self.host.clone()))
    }

    fn refusal(&self, status: StatusCode) -> String {
        let host = &self.host;
        match (status, &self.authorization) {
            (StatusCode::UNAUTHORIZED, None) => {
                format!("{host} asks for credentials (401): set `credential` for this app")
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(_)) => {
                format!(
                    "{host} refuses the token in `credential` ({}): is it expired, or without read access?",
                    status.as_u16()
                )
            }
            (StatusCode::FORBIDDEN, None) => format!("{host} refuses access (403): set `credential` for this app"),
            (StatusCode::NOT_FOUND, None) => {
                format!("there is no repository at {} (404), or it is private and needs `credential`", self.repository)
            }
            (StatusCode::NOT_FOUND, Some(_)) => {
                format!(
                    "there is no repository at {} (404), or the token in `credential` may not read it",
                    self.repository
                )
            }
            _ => format!("{host} answered {status}"),
        }
    }
}

/// Basic authentication, as every git host takes a token.
fn authorization(credential: &Credential) -> Result<Option<HeaderValue>, Trouble> {
    let (username, token) = match credential {
        Credential::Token { username, token } => (username, token),
        Credential::None | Credential::SshKey { .. } => return Ok(None),
        Credential::Absent(absent) => return Err(Trouble::Failed(absent.to_string())),
    };
    let pair = format!("{username}:{}", token.expose_secret());
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}"))
        .map_err(|_| Trouble::failed("`credential` cannot be sent as a header"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn place(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => url.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Absent, Problem};

    #[test]
    fn without_the_token_that_is_configured_nothing_is_asked_for() {
        let problem = Problem { line: 1, column: 1, what: "apps.shop.credential.token: gone".into(), hint: None };
        let absent = Absent { key: "apps.shop.credential.token".into(), problem, in_use: false };
        let Err(Trouble::Failed(why)) = authorization(&Credential::Absent(absent)) else { panic!("asked anonymously") };
        assert_eq!(why, "apps.shop.credential.token: gone");
        assert!(authorization(&Credential::None).is_ok_and(|header| header.is_none()));
    }
}
