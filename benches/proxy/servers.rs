//! What is measured: longshore's proxy, its peers, the two bounds of a proxy like it, and the backends behind all of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore::model::InstanceId;
use longshore::proxy::table::{Member, Route, Table};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{HOST, PAGES};
use crate::support::ports::free_port;

/// The processors of what is measured, and of all else.
const PROXY: &str = "0";
pub const CLIENT: &str = "1";
pub const UP: Duration = Duration::from_secs(10);
const CERTIFICATE: &str = "shop.pem";
const KEY: &str = "shop.key";
/// Of our proxy, in its directory.
pub const LOG: &str = "proxy.log";

/// A certificate for [`HOST`], signed by itself, its key, and both in one file as HAProxy wants them.
pub fn pem_files(directory: &Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).expect("a certificate");
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let paths = (directory.join(CERTIFICATE), directory.join(KEY));
    write(&paths.0, &cert);
    write(&paths.1, &key);
    write(&directory.join("both.pem"), &format!("{cert}{key}"));
    fs::set_permissions(&paths.1, fs::Permissions::from_mode(0o600)).expect("its own file");
    paths
}

/// This program as a forwarder that does nothing else: see [`super::bare`].
pub async fn bare(kind: &'static str, name: &'static str, upstream: u16) -> Server {
    let port = free_port();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([super::bare::FLAG, kind, &port.to_string(), &upstream.to_string()]);
    Server::start(name, PROXY, port, command).await
}

/// A program that listens.
pub struct Server {
    pub name: &'static str,
    child: Child,
    pub port: u16,
    /// Where it speaks TLS, if it does.
    pub tls_port: Option<u16>,
    /// Its own, if it has one.
    pub directory: Option<TempDir>,
}

impl Server {
    /// Starts it on one processor; it is up when it takes connections.
    pub async fn start(name: &'static str, processor: &str, port: u16, mut command: Command) -> Self {
        let mut pinned = Command::new("taskset");
        pinned.args(["--cpu-list", processor]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            pinned.env(key, value.unwrap_or_default());
        }
        command = pinned;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let child = command.spawn().unwrap_or_else(|why| panic!("{name} (./dev setup installs it): {why}"));
        let server = Self { name, child, port, tls_port: None, directory: None };
        let end = Instant::now() + UP;
        while let Err(why) = TcpStream::connect(("127.0.0.1", port)).await {
            assert!(Instant::now() < end, "{name} does not listen within {UP:?}: {why}");
            // It says nothing when it listens.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server
    }

    fn with_tls(mut self, port: u16) -> Self {
        self.tls_port = Some(port);
        self
    }

    /// taskset becomes the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
}

/// An nginx that answers from memory.
pub async fn backend(directory: &Path, number: usize) -> Server {
    let port = free_port();
    let root = directory.join("pages");
    fs::create_dir_all(&root).expect("a directory");
    for (_, size) in PAGES {
        write(&root.join(size.to_string()), &"x".repeat(size));
    }
    let conf = format!(
        "daemon off; master_process off; pid {pid}; error_log /dev/null; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 600; open_file_cache max=10;\n\
         server {{ listen 127.0.0.1:{port}; root {root}; }} }}",
        pid = directory.join(format!("backend{number}.pid")).display(),
        root = root.display(),
    );
    let path = directory.join(format!("backend{number}.conf"));
    write(&path, &conf);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&path);
    Server::start("a backend (nginx)", CLIENT, port, command).await
}

pub async fn nginx(directory: &Path, [one, other]: [u16; 2]) -> Server {
    let (port, tls_port) = (free_port(), free_port());
    let conf = format!(
        "daemon off; master_process off; pid {pid}; error_log /dev/null; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600;\n\
         upstream shop {{ least_conn; server 127.0.0.1:{one}; server 127.0.0.1:{other}; keepalive 64; }}\n\
         server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl; server_name {HOST}; \
         ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; location / {{ proxy_pass http://shop; \
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; }} }} }}",
        pid = directory.join("nginx.pid").display(),
        cert = directory.join(CERTIFICATE).display(),
        key = directory.join(KEY).display(),
    );
    let path = directory.join("nginx.conf");
    write(&path, &conf);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&path);
    Server::start("nginx", PROXY, port, command).await.with_tls(tls_port)
}

pub async fn haproxy(directory: &Path, [one, other]: [u16; 2]) -> Server {
    let (port, tls_port) = (free_port(), free_port());
    let both = directory.join("both.pem").display().to_string();
    let conf = format!(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n \
         timeout server 600s\n option http-keep-alive\n http-reuse always\nfrontend all\n bind 127.0.0.1:{port}\n bind 127.0.0.1:{tls_port} ssl crt {both}\n \
         option forwardfor\n use_backend shop if {{ hdr_beg(host) -i {HOST} }}\nbackend shop\n balance leastconn\n \
         server one 127.0.0.1:{one}\n server other 127.0.0.1:{other}\n"
    );
    let path = directory.join("haproxy.cfg");
    write(&path, &conf);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    Server::start("HAProxy", PROXY, port, command).await.with_tls(tls_port)
}

pub async fn caddy(directory: &Path, [one, other]: [u16; 2]) -> Server {
    let (port, tls_port) = (free_port(), free_port());
    let (cert, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let conf = format!(
        "{{\n admin off\n auto_https off\n}}\n(shop) {{\n bind 127.0.0.1\n \
         reverse_proxy 127.0.0.1:{one} 127.0.0.1:{other} {{\n  lb_policy least_conn\n }}\n}}\n\
         http://{HOST}:{port} {{\n import shop\n}}\nhttps://{HOST}:{tls_port} {{\n tls {cert} {key}\n import shop\n}}\n",
        cert = cert.display(),
        key = key.display(),
    );
    let path = directory.join("Caddyfile");
    write(&path, &conf);
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&path);
    command.env("HOME", directory).env("GOMAXPROCS", "1");
    Server::start("Caddy", PROXY, port, command).await.with_tls(tls_port)
}

/// A route of two instances for [`HOST`], and as many other routes of five as make `routes`.
pub fn table(ports: [u16; 2], routes: usize) -> Table {
    let member = |number: usize, member: usize| Member {
        instance: InstanceId::parse(&format!("d{}-web-{}", number + 1, member + 1)).expect("an id"),
        address: ([127, 0, 0, 1], ports[member % 2]).into(),
        weight: 1,
        group: 0,
    };
    let route = |number: usize, members: usize| {
        let host = if number == 0 { HOST.to_owned() } else { format!("app{number}.test") };
        let app = format!("app{number}").parse().expect("a name");
        let members = (0..members).map(|place| member(number, place)).collect();
        Route::new(app, "web".parse().expect("a name"), vec![host], members)
    };
    let routes = (0..routes).map(|number| route(number, if number == 0 { 2 } else { 5 }));
    Table { generation: 1, routes: routes.collect() }
}

/// Our proxy alone, which serves from its file.
pub async fn longshore(table: &Table) -> Server {
    ready(table).start().await
}

/// Our proxy before its start: its file is written.
pub struct Ready {
    directory: TempDir,
    port: u16,
    tls_port: u16,
    command: Command,
}

impl Ready {
    pub async fn start(self) -> Server {
        let mut server = Server::start("longshore", PROXY, self.port, self.command).await;
        server.directory = Some(self.directory);
        server.with_tls(self.tls_port)
    }
}

pub fn ready(table: &Table) -> Ready {
    let directory = tempfile::tempdir().expect("a directory");
    let (port, tls_port, agent) = (free_port(), free_port(), free_port());
    let (cert, key) = pem_files(directory.path());
    let data = directory.path().join("data");
    fs::create_dir(&data).expect("a directory");
    write(&data.join("routes.json"), &serde_json::to_string(table).expect("a table is JSON"));
    let config = directory.path().join("deploy.toml");
    write(
        &config,
        &format!(
            "[agent]\nlisten = \"127.0.0.1:{agent}\"\ndata_dir = {data:?}\n[proxy]\nhttp = \"127.0.0.1:{port}\"\nhttps = \"127.0.0.1:{tls_port}\"\n\
             certificates = [{{ cert = {cert:?}, key = {key:?} }}]\nredirect_http = false\n\
             [proxy.limits]\nconnections_per_client = 100000\n"
        ),
    );
    let binary = std::env::var("LONGSHORE_BENCH_BINARY").unwrap_or(env!("CARGO_BIN_EXE_longshore").to_owned());
    let mut command = Command::new(binary);
    command.arg("proxy").arg("--config").arg(&config).arg("--log").arg(directory.path().join(LOG));
    Ready { directory, port, tls_port, command }
}
