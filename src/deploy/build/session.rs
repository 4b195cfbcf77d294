//! The connection on which BuildKit asks its client back during a build: for secrets, and for registry logins (we
//! have none to give, so that it pulls anonymously).
//!
//! `POST /session` is upgraded to HTTP/2 without TLS, with the roles turned round: the engine is the gRPC client.
//! Headers and services are those of github.com/moby/buildkit `session/`, `session/secrets/secrets.proto` and
//! `session/auth/auth.proto`. gRPC on the wire (github.com/grpc/grpc `doc/PROTOCOL-HTTP2.md`): one flag byte, the
//! length in four bytes, the message; the status in trailers. That little is written out here, for three unary calls.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::task::AbortOnDropHandle;

use crate::runtime::docker::EngineHost;
use crate::runtime::docker::host::Body;

const HEALTH: &str = "/grpc.health.v1.Health/Check";
const SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";

/// gRPC status codes.
const OK: u8 = 0;
const INVALID: u8 = 3;
const NOT_FOUND: u8 = 5;
const UNIMPLEMENTED: u8 = 12;

/// No request that we answer is longer.
const LONGEST_REQUEST: usize = 64 * 1024;

/// Secrets by id.
pub(super) type Secrets = BTreeMap<String, SecretString>;

/// An open session. Dropping it ends it.
pub(super) struct Session {
    id: String,
    _serving: AbortOnDropHandle<()>,
}

/// Why there is no session.
pub(super) enum SessionError {
    /// The engine has no BuildKit.
    NoBuildkit(String),
    /// No connection.
    Unavailable(String),
}

impl Session {
    /// Opens a session that gives out these secrets, to this build alone.
    pub(super) async fn open(host: &EngineHost, secrets: Secrets) -> Result<Self, SessionError> {
        let unavailable = |error: &dyn std::fmt::Display| SessionError::Unavailable(error.to_string());
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| unavailable(&error))?;
        let id = hex::encode(random);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri("/session")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "h2c")
            .header("X-Docker-Expose-Session-Uuid", &id)
            .header("X-Docker-Expose-Session-Name", "longshore");
        for method in [HEALTH, SECRET, CREDENTIALS] {
            request = request.header("X-Docker-Expose-Session-Grpc-Method", method);
        }
        let request = request.body(Body::default()).map_err(|error| unavailable(&error))?;
        let (response, connection) = host.send(request).await.map_err(SessionError::Unavailable)?.into_parts();
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(SessionError::NoBuildkit(format!("POST /session answered {}", response.status())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| unavailable(&error))?;
        let secrets = Arc::new(secrets);
        let serving = tokio::spawn(async move {
            let _open = connection;
            let answer = service_fn(move |request| answer(request, Arc::clone(&secrets)));
            let served =
                hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(upgraded, answer);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a build session ended");
            }
        });
        Ok(Self { id, _serving: AbortOnDropHandle::new(serving) })
    }

    /// The id that the build refers to.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

type Answer =
    Response<http_body_util::Either<http_body_util::combinators::WithTrailers<Full<Bytes>, Trailers>, Full<Bytes>>>;
type Trailers = std::future::Ready<Option<Result<HeaderMap, Infallible>>>;

async fn answer(request: Request<Incoming>, secrets: Arc<Secrets>) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let Ok(body) = Limited::new(request.into_body(), LONGEST_REQUEST).collect().await else {
        return Ok(failure(INVALID));
    };
    Ok(match call(&path, &body.to_bytes(), &secrets) {
        Ok(message) => success(&message),
        Err(status) => failure(status),
    })
}

/// One unary call: the answer's message, or a gRPC status.
fn call(path: &str, body: &[u8], secrets: &Secrets) -> Result<Vec<u8>, u8> {
    let message = unframed(body).ok_or(INVALID)?;
    match path {
        HEALTH => Ok(HealthCheckResponse { status: SERVING }.encode_to_vec()),
        SECRET => {
            let request = GetSecretRequest::decode(message).map_err(|_| INVALID)?;
            let secret = secrets.get(&request.id).ok_or(NOT_FOUND)?;
            Ok(GetSecretResponse { data: secret.expose_secret().as_bytes().to_vec() }.encode_to_vec())
        }
        // An empty message: no user, no password.
        CREDENTIALS => Ok(Vec::new()),
        _ => Err(UNIMPLEMENTED),
    }
}

/// The message of a frame that is whole and not compressed.
fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    (head[0] == 0 && usize::try_from(length) == Ok(message.len())).then_some(message)
}

fn success(message: &[u8]) -> Answer {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    let trailers: Trailers = std::future::ready(Some(Ok(status_header(OK))));
    let body = Full::new(frame.freeze()).with_trailers(trailers);
    respond(http_body_util::Either::Left(body))
}

fn failure(status: u8) -> Answer {
    let mut response = respond(http_body_util::Either::Right(Full::default()));
    response.headers_mut().extend(status_header(status));
    response
}

fn status_header(status: u8) -> HeaderMap {
    HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from(u16::from(status)),
    )])
}

fn respond<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// `HealthCheckResponse.ServingStatus.SERVING` of grpc.health.v1.
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct GetSecretRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Message)]
#[prost(skip_debug)]
struct GetSecretResponse {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], message].concat()
    }

    #[test]
    fn only_named_secrets_are_given_out() {
        let secrets = Secrets::from([("npm".to_owned(), SecretString::from("canary"))]);
        let ask = |id: &str| call(SECRET, &frame(&GetSecretRequest { id: id.to_owned() }.encode_to_vec()), &secrets);
        assert_eq!(ask("npm").unwrap(), GetSecretResponse { data: b"canary".to_vec() }.encode_to_vec());
        assert_eq!(ask("other"), Err(NOT_FOUND));
        assert_eq!(call("/x.Y/Z", &frame(b""), &secrets), Err(UNIMPLEMENTED));
    }

    #[tokio::test]
    async fn an_engine_without_buildkit_is_told_apart() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await;
            socket.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        });
        let host = EngineHost::Unix(path);
        let refused = Session::open(&host, Secrets::new()).await;
        assert!(matches!(refused, Err(SessionError::NoBuildkit(why)) if why.contains("404")));
        let gone = EngineHost::Unix(directory.path().join("none"));
        assert!(matches!(Session::open(&gone, Secrets::new()).await, Err(SessionError::Unavailable(_))));
    }

    #[test]
    fn broken_frames_are_refused() {
        let secrets = Secrets::new();
        for body in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02a", b"\x01\0\0\0\0", b"\0\xff\xff\xff\xffabc"] {
            assert_eq!(call(SECRET, body, &secrets), Err(INVALID), "{body:?}");
        }
    }
}
