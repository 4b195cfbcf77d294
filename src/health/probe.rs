//! Checks over fresh connections, each with its own deadline, reported one by one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::config::{HealthCheck, HealthPolicy};
use crate::model::InstanceId;
use crate::runtime::Runtime;

/// The first pause between two checks of an instance that is not ready yet; it doubles up to the policy's interval.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// What is probed.
#[derive(Clone)]
pub struct Target {
    /// Which instance.
    pub instance: InstanceId,
    /// Where it is reached; `None` for one without a port.
    pub address: Option<SocketAddr>,
    /// The `Host` header: the app's first domain, so that frameworks that check it let the probe in.
    pub host: String,
    /// How.
    pub policy: HealthPolicy,
    /// The image declares a HEALTHCHECK, which the engine runs and reports.
    pub image_healthcheck: bool,
}

impl Target {
    /// Whether the engine's own reports are the check, so that nothing is probed from here.
    pub fn engine_reports(&self) -> bool {
        self.image_healthcheck && matches!(self.policy.check, HealthCheck::Unset { .. })
    }
}

/// Probes for ever: at once, then 10 ms later, growing to the interval until the first pass. `report` gets each result
/// and answers whether the instance is ready by now. Ends with its task.
pub async fn watch(target: Target, runtime: Arc<dyn Runtime>, report: impl Fn(Result<(), String>) -> bool) {
    let mut pause = FIRST_PAUSE;
    loop {
        let result = check(&target, runtime.as_ref()).await;
        let passed = result.is_ok();
        let ready = report(result);
        // A pass is confirmed quickly; failures slow down to the interval.
        let next = match (ready, passed) {
            (true, _) => target.policy.interval,
            (false, true) => FIRST_PAUSE,
            (false, false) => pause,
        };
        pause = if passed { FIRST_PAUSE } else { pause.saturating_mul(2).min(target.policy.interval) };
        sleep(next.min(target.policy.interval)).await;
    }
}

/// One check; the error is what a person reads as "the last answer".
pub async fn check(target: &Target, runtime: &dyn Runtime) -> Result<(), String> {
    let limit = target.policy.timeout;
    let checked = async {
        match &target.policy.check {
            HealthCheck::Http { path } => http(target, path).await,
            HealthCheck::Tcp => connect(target).await.map(drop),
            HealthCheck::Unset { .. } if target.address.is_none() => Ok(()),
            HealthCheck::Unset { .. } => connect(target).await.map(drop),
            HealthCheck::Command { command } => {
                let exited = runtime.exec(&target.instance, command, limit).await.map_err(|err| err.to_string())?;
                if exited.code == 0 {
                    return Ok(());
                }
                let last = exited.output.last().map(|line| format!(": {line}")).unwrap_or_default();
                Err(format!("{:?} exited with {}{last}", command.join(" "), exited.code))
            }
        }
    };
    timeout(limit, checked).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

async fn connect(target: &Target) -> Result<TcpStream, String> {
    let address = target.address.ok_or("it has no address")?;
    let stream = TcpStream::connect(address).await;
    stream.map_err(|err| format!("no connection to port {}: {}", address.port(), plain(&err)))
}

async fn http(target: &Target, path: &str) -> Result<(), String> {
    let stream = connect(target).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|err| format!("GET {path}: {err}"))?;
    let request = Request::get(path)
        .header(HOST, &target.host)
        .header(USER_AGENT, "longshore-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|err| format!("GET {path}: {err}"))?;
    // Ends when `sender` is dropped at the end of this check.
    tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let status = response.map_err(|err| format!("GET {path}: {err}"))?.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("GET {path} answered {status}"))
}

/// An I/O error in the words that matter to a person.
fn plain(err: &std::io::Error) -> String {
    match err.kind() {
        std::io::ErrorKind::ConnectionRefused => "refused (is it listening on 0.0.0.0?)".into(),
        _ => err.to_string(),
    }
}
