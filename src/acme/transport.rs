//! How requests reach a certificate authority: by the HTTP client that the rest of the agent uses, with a deadline and a
//! bound on what is read.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::header::{HeaderValue, USER_AGENT};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::{Certificate, Client};

/// The largest answer is a chain of certificates.
const LARGEST: usize = 1 << 20;
/// An authority may refuse a client that does not say what it is (RFC 8555, section 6.1).
const AGENT: &str = concat!("longshore/", env!("CARGO_PKG_VERSION"));

/// A client for one order: nothing of it is kept meanwhile.
pub struct Transport {
    client: Client,
}

impl Transport {
    /// One that believes the system's roots, or those in a file and no others, and gives each request, its answer included,
    /// so long.
    pub fn new(roots: Option<&Path>, limit: Duration) -> Result<Self, String> {
        let cannot = |path: &Path, why: String| format!("ca_file {} cannot be used: {why}", path.display());
        let roots = roots.map(|path| read_roots(path).map_err(|why| cannot(path, why))).transpose()?;
        let client = client(roots, limit).map_err(|why| {
            format!(
                "no HTTPS client can be made ({why}): install the system's CA certificates, or name some in ca_file"
            )
        })?;
        Ok(Self { client })
    }
}

/// Whether the roots in a file can be believed; if not, why.
pub fn examine(roots: &Path) -> Result<(), String> {
    client(Some(read_roots(roots)?), Duration::from_secs(1)).map(drop)
}

fn read_roots(path: &Path) -> Result<Vec<Certificate>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let roots = Certificate::from_pem_bundle(&text).map_err(|error| error.to_string())?;
    if roots.is_empty() {
        return Err("it holds no certificate in PEM form".to_owned());
    }
    Ok(roots)
}

fn client(roots: Option<Vec<Certificate>>, limit: Duration) -> Result<Client, String> {
    let mut builder =
        Client::builder().redirect(reqwest::redirect::Policy::none()).referer(false).https_only(true).timeout(limit);
    if let Some(roots) = roots {
        builder = builder.tls_certs_only(roots);
    }
    builder.build().map_err(|error| crate::text::with_causes(&error))
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(exchange(self.client.clone(), request))
    }
}

async fn exchange(client: Client, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut headers = head.headers;
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let sending = client.request(head.method, head.uri.to_string()).headers(headers).body(body).send();
    let mut answer = sending.await.map_err(other)?;
    let mut parts = hyper::Response::new(()).into_parts().0;
    parts.status = answer.status();
    parts.headers = std::mem::take(answer.headers_mut());
    let mut read = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(other)? {
        read.extend_from_slice(&chunk);
        if read.len() > LARGEST {
            return Err(Error::Str("the rest of an answer of more than 1 MiB"));
        }
    }
    Ok(BytesResponse { parts, body: Box::new(read.freeze()) })
}

fn other(error: reqwest::Error) -> Error {
    Error::Other(Box::new(error))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[test]
    fn roots_that_are_none_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let why = || Transport::new(Some(&path), SHORT).err().unwrap();
        assert!(why().contains("ca.pem cannot be used: No such file"), "{}", why());
        std::fs::write(&path, "nothing").unwrap();
        assert!(why().contains("ca.pem cannot be used: it holds no certificate"), "{}", why());
    }

    #[tokio::test]
    async fn an_authority_that_says_nothing_is_not_waited_for() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/dir", silent.local_addr().unwrap());
        let transport = Transport::new(None, SHORT).unwrap();
        let request = Request::get(url).body(BodyWrapper::default()).unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(20), transport.request(request)).await;
        let why = asked.expect("it ends by itself").err().unwrap();
        assert!(crate::text::with_causes(&why).contains("timed out"), "{why:?}");
    }
}
