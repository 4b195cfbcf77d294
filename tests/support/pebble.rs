//! Pebble: a certificate authority that speaks ACME, validates for real and forgets everything when it ends. Every host is
//! 127.0.0.1 to it, by a name server of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::ports::free_port;
use super::wait::eventually;

/// A host for which it issues nothing.
pub const REFUSED: &str = "refused.test";
const UP_WITHIN: Duration = Duration::from_secs(20);

/// An authority with ports of its own; ended when dropped.
pub struct Pebble {
    dir: TempDir,
    acme: u16,
    management: u16,
    names: u16,
    running: Vec<Child>,
}

impl Pebble {
    /// One that is not there yet. It validates at these addresses, and its certificates are good for so many seconds.
    pub fn prepare(http: SocketAddr, https: u16, seconds: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("longshore-pebble-").tempdir().expect("a temporary directory");
        let pebble = Self { dir, acme: free_port(), management: free_port(), names: free_port(), running: Vec::new() };
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let (cert, key, config) = (pebble.ca_file(), pebble.file("key.pem"), pebble.file("pebble.json"));
        fs::write(&cert, own.cert.pem()).expect("a file");
        fs::write(&key, own.signing_key.serialize_pem()).expect("a file");
        let settings = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", pebble.acme),
            "managementListenAddress": format!("127.0.0.1:{}", pebble.management),
            "certificate": cert,
            "privateKey": key,
            "httpPort": http.port(),
            "tlsPort": https,
            "certificateValidityPeriod": seconds,
            "domainBlocklist": [REFUSED],
        }});
        fs::write(config, settings.to_string()).expect("a file");
        pebble
    }

    /// The line of `[proxy]` that has it used.
    pub fn line(&self, challenge: &str) -> String {
        let (port, ca_file) = (self.acme, self.ca_file());
        format!(
            "acme = {{ email = \"ops@example.com\", directory_url = \"https://127.0.0.1:{port}/dir\", \
             challenge = \"{challenge}\", ca_file = {ca_file:?} }}"
        )
    }

    /// Starts it, with another root than before. Where that root is.
    pub async fn start(&mut self) -> PathBuf {
        assert!(self.running.is_empty(), "it runs already");
        let (names, management) = (format!("127.0.0.1:{}", self.names), format!("127.0.0.1:{}", free_port()));
        let mut name_server = Command::new("pebble-challtestsrv");
        name_server.args([
            "-dns01",
            &names,
            "-management",
            &management,
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ]);
        name_server.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(self.file("pebble.json")).args(["-dnsserver", &names]);
        // It would wait before each validation, and answer some requests for an authorization with an old one.
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        for (program, log) in [(&mut name_server, "names.log"), (&mut pebble, "pebble.log")] {
            let log = fs::File::options().create(true).append(true).open(self.file(log)).expect("a log");
            program
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a second handle"))
                .stderr(log)
                .kill_on_drop(true);
            self.running.push(program.spawn().expect("pebble is installed: ./dev setup"));
        }
        let url = format!("https://127.0.0.1:{}/roots/0", self.management);
        let root = eventually("pebble answers", UP_WITHIN, async || {
            let mut curl = Command::new("curl");
            let output = curl.args(["-fsS", "-m", "5", "--cacert"]).arg(self.ca_file()).arg(&url).output().await;
            let output = output.expect("curl is installed: ./dev setup");
            if output.status.success() { Ok(output.stdout) } else { Err(self.log()) }
        })
        .await;
        let path = self.file("root.pem");
        fs::write(&path, root).expect("a file");
        path
    }

    /// Ends it.
    pub async fn stop(&mut self) {
        for mut child in self.running.drain(..) {
            child.kill().await.expect("a child of this process");
        }
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("pebble.log")).unwrap_or_default()
    }

    fn ca_file(&self) -> PathBuf {
        self.file("own.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
