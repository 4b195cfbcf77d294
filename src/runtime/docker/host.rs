//! Where the engine is, and plain HTTP/1.1 calls to it for what no client library does: the build's own stream, and
//! the connection on which BuildKit asks us back.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::AbortOnDropHandle;

/// How long a connection to the engine may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The engine's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineHost {
    /// A Unix socket's path.
    Unix(PathBuf),
    /// `host:port`, plain HTTP.
    Tcp(String),
}

/// A request's body.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer under way. Dropping it closes the connection, which is how the engine learns that a build is cancelled.
pub struct Call {
    /// The answer.
    pub response: Response<Incoming>,
    connection: AbortOnDropHandle<()>,
}

impl Call {
    /// The answer and what keeps its connection open.
    pub fn into_parts(self) -> (Response<Incoming>, AbortOnDropHandle<()>) {
        (self.response, self.connection)
    }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

impl EngineHost {
    /// Reads `unix:///path` or `tcp://host:port`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.starts_with('/') {
                return Ok(Self::Unix(PathBuf::from(path)));
            }
            return Err(format!("docker_host {text:?} needs an absolute path: unix:///var/run/docker.sock"));
        }
        if let Some(authority) = text.strip_prefix("tcp://").map(|rest| rest.trim_end_matches('/')) {
            let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            return match port {
                Some(_) if !authority.contains(['/', '@']) => Ok(Self::Tcp(authority.to_owned())),
                _ => Err(format!("docker_host {text:?} needs a host and a port: tcp://127.0.0.1:2375")),
            };
        }
        Err(format!("docker_host {text:?} is neither unix:///path/of/the/socket nor tcp://host:port"))
    }

    /// Whether the engine is on this machine, as far as its address tells.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(authority) => {
                let host = authority.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }

    async fn open(&self) -> io::Result<Box<dyn Socket>> {
        let opening = async {
            match self {
                Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?) as Box<dyn Socket>),
                Self::Tcp(authority) => Ok(Box::new(TcpStream::connect(authority.as_str()).await?) as Box<dyn Socket>),
            }
        };
        tokio::time::timeout(CONNECT, opening).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Opens and closes a connection; the error says what a person can do about it.
    pub async fn probe(&self) -> Result<(), String> {
        self.open().await.map(drop).map_err(|error| self.explain(&error))
    }

    /// Sends one request on a connection of its own. The target is a path; `Host` is filled in.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Call, String> {
        let socket = self.open().await.map_err(|error| self.explain(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| format!("{self}: {error}"))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What goes wrong on the connection reaches us through the answer and its body.
            let _ = connection.with_upgrades().await;
        }));
        let host = match self {
            Self::Unix(_) => "docker",
            Self::Tcp(authority) => authority.as_str(),
        };
        let host = host.parse().map_err(|_| format!("{self}: not a host name"))?;
        request.headers_mut().insert(hyper::header::HOST, host);
        let response = sender.send_request(request).await.map_err(|error| format!("{self}: {error}"))?;
        Ok(Call { response, connection })
    }

    fn explain(&self, error: &io::Error) -> String {
        let Self::Unix(path) = self else {
            return format!("cannot connect to {self}: {error}");
        };
        let path = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("there is no socket {path}: is the Docker engine installed and running, and docker_host right?")
            }
            io::ErrorKind::ConnectionRefused => format!("nothing listens on {path}: start the Docker engine"),
            io::ErrorKind::PermissionDenied => format!("{} may not open {path}{}", user(), self.owner()),
            _ => format!("cannot connect to {path}: {error}"),
        }
    }

    /// The socket's group, which is what a user must be in.
    fn owner(&self) -> String {
        use std::os::unix::fs::MetadataExt;
        let Self::Unix(path) = self else { return String::new() };
        let Ok(metadata) = std::fs::metadata(path) else { return String::new() };
        let gid = metadata.gid();
        let group = match Group::from_gid(Gid::from_raw(gid)) {
            Ok(Some(group)) => group.name,
            _ => gid.to_string(),
        };
        format!(": it belongs to group {group}; add the user to it (usermod -aG {group} USER) and log in again")
    }
}

fn user() -> String {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}

impl fmt::Display for EngineHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(authority) => write!(f, "tcp://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_host_and_port() {
        assert_eq!(EngineHost::parse("unix:///run/d.sock"), Ok(EngineHost::Unix("/run/d.sock".into())));
        assert_eq!(EngineHost::parse("tcp://10.0.0.1:2375/"), Ok(EngineHost::Tcp("10.0.0.1:2375".into())));
        for bad in ["", "/var/run/docker.sock", "unix://d.sock", "tcp://host", "tcp://a@b:1", "ssh://host"] {
            assert!(EngineHost::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let text = EngineHost::Unix(path.clone()).probe().await.unwrap_err();
        assert!(text.contains(&path.display().to_string()) && text.contains("installed and running"), "{text}");
        std::os::unix::net::UnixListener::bind(&path).unwrap();
        let text = EngineHost::Unix(path).probe().await.unwrap_err();
        assert!(text.contains("nothing listens"), "{text}");
    }
}
