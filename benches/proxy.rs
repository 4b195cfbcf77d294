//! The proxy against nginx, HAProxy and Caddy: the same two backends behind each, each proxy alone on one processor, the
//! client and the backends on the other.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore::model::InstanceId;
use longshore::proxy::ProxyClient;
use longshore::proxy::table::{Member, Route, Table};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::figure::{Figure, Target};
use crate::machine::{memory, processor_time};
use crate::rounds::{ROUNDS, median, ms, show};
use crate::support::ports::free_port;
use crate::support::wait::eventually;

const PROXY: &str = "0";
const CLIENT: &str = "1";
const SECONDS: u32 = 3;
const CONNECTIONS: u32 = 64;
const UP: Duration = Duration::from_secs(10);
/// The host that every request names.
const HOST: &str = "shop.test";
/// Kept connections that do nothing.
const IDLE: usize = 8_000;

/// What is asked for: a name and the size of its answer.
const PAGES: [(&str, usize); 2] = [("1 KB", 1 << 10), ("64 KB", 64 << 10)];

pub async fn run() -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    let backends = [backend(directory.path(), 1).await, backend(directory.path(), 2).await];
    let ports = backends.each_ref().map(|backend| backend.port);
    let mut servers = vec![
        longshore(&table(ports, 1)).await,
        nginx(directory.path(), ports).await,
        haproxy(directory.path(), ports).await,
        caddy(directory.path(), ports).await,
    ];
    let mut figures = Vec::new();
    for (page, size) in PAGES {
        figures.extend(throughput(&mut servers, page, size).await);
    }
    let loaded = memory(servers[0].pid(), "VmRSS");
    figures.push(Figure::new("the proxy's memory after that", loaded, "MiB").target(Target::AtMost(16.0)));
    figures.push(idle_connections(&servers[0]).await);
    drop(servers);
    figures.extend(tables(ports).await);
    figures
}

/// A program that listens.
struct Server {
    name: &'static str,
    child: Child,
    port: u16,
    /// Its own, if it has one.
    directory: Option<TempDir>,
}

impl Server {
    /// Starts it on one processor; it is up when it takes connections.
    async fn start(name: &'static str, processor: &str, port: u16, mut command: Command) -> Self {
        let mut pinned = Command::new("taskset");
        pinned.args(["--cpu-list", processor]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            pinned.env(key, value.unwrap_or_default());
        }
        command = pinned;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let child = command.spawn().unwrap_or_else(|why| panic!("{name} (./dev setup installs it): {why}"));
        let server = Self { name, child, port, directory: None };
        eventually(name, UP, async || TcpStream::connect(("127.0.0.1", port)).await.map(drop)).await;
        server
    }

    /// taskset becomes the program.
    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
}

/// An nginx that answers from memory.
async fn backend(directory: &Path, number: usize) -> Server {
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

async fn nginx(directory: &Path, [one, other]: [u16; 2]) -> Server {
    let port = free_port();
    let conf = format!(
        "daemon off; master_process off; pid {pid}; error_log /dev/null; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600;\n\
         upstream shop {{ least_conn; server 127.0.0.1:{one}; server 127.0.0.1:{other}; keepalive 64; }}\n\
         server {{ listen 127.0.0.1:{port}; server_name {HOST}; location / {{ proxy_pass http://shop; \
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; }} }} }}",
        pid = directory.join("nginx.pid").display(),
    );
    let path = directory.join("nginx.conf");
    write(&path, &conf);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&path);
    Server::start("nginx", PROXY, port, command).await
}

async fn haproxy(directory: &Path, [one, other]: [u16; 2]) -> Server {
    let port = free_port();
    let conf = format!(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n \
         timeout server 600s\n option http-keep-alive\n http-reuse always\nfrontend all\n bind 127.0.0.1:{port}\n \
         option forwardfor\n use_backend shop if {{ hdr(host) -i {HOST} }}\nbackend shop\n balance leastconn\n \
         server one 127.0.0.1:{one}\n server other 127.0.0.1:{other}\n"
    );
    let path = directory.join("haproxy.cfg");
    write(&path, &conf);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    Server::start("HAProxy", PROXY, port, command).await
}

async fn caddy(directory: &Path, [one, other]: [u16; 2]) -> Server {
    let port = free_port();
    let conf = format!(
        "{{\n admin off\n auto_https off\n}}\nhttp://{HOST}:{port} {{\n bind 127.0.0.1\n \
         reverse_proxy 127.0.0.1:{one} 127.0.0.1:{other} {{\n  lb_policy least_conn\n }}\n}}\n"
    );
    let path = directory.join("Caddyfile");
    write(&path, &conf);
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&path);
    command.env("HOME", directory).env("GOMAXPROCS", "1");
    Server::start("Caddy", PROXY, port, command).await
}

/// A route of two instances for [`HOST`], and as many other routes of five as make `routes`.
fn table(ports: [u16; 2], routes: usize) -> Table {
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
async fn longshore(table: &Table) -> Server {
    let directory = tempfile::tempdir().expect("a directory");
    let (port, agent) = (free_port(), free_port());
    let data = directory.path().join("data");
    fs::create_dir(&data).expect("a directory");
    write(&data.join("routes.json"), &serde_json::to_string(table).expect("a table is JSON"));
    let config = directory.path().join("deploy.toml");
    write(
        &config,
        &format!(
            "[agent]\nlisten = \"127.0.0.1:{agent}\"\ndata_dir = {data:?}\n[proxy]\nhttp = \"127.0.0.1:{port}\"\n\
             [proxy.limits]\nconnections_per_client = 100000\n"
        ),
    );
    let binary = std::env::var("LONGSHORE_BENCH_BINARY").unwrap_or(env!("CARGO_BIN_EXE_longshore").to_owned());
    let mut command = Command::new(binary);
    command.arg("proxy").arg("--config").arg(&config);
    let mut server = Server::start("longshore", PROXY, port, command).await;
    server.directory = Some(directory);
    server
}

/// What one run of wrk showed.
struct Run {
    rate: f64,
    /// Microseconds of the proxy's processor time to a request.
    processor: f64,
    p99: f64,
}

async fn wrk(server: &Server, script: &Path, size: usize) -> Run {
    let before = processor_time(server.pid());
    let mut command = tokio::process::Command::new("taskset");
    command.args(["--cpu-list", CLIENT, "wrk", "-t1", &format!("-c{CONNECTIONS}"), &format!("-d{SECONDS}s")]);
    command.args(["-H", &format!("Host: {HOST}"), "-s"]).arg(script);
    command.arg(format!("http://127.0.0.1:{}/{size}", server.port));
    let output = command.output().await.expect("wrk (./dev setup installs it)");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("done ")).unwrap_or_else(|| panic!("wrk: {text}"));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [requests, micros, errors, p99] = numbers[..] else { panic!("wrk: {line}") };
    assert_eq!(errors, 0.0, "{}: some requests failed: {text}", server.name);
    Run { rate: requests / micros * 1e6, processor: (processor_time(server.pid()) - before) / requests, p99: p99 / 1e3 }
}

/// Each proxy in turn.
async fn throughput(servers: &mut [Server], page: &str, size: usize) -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("done.lua");
    write(&script, include_str!("done.lua"));
    let mut runs: Vec<Vec<Run>> = servers.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (server, runs) in servers.iter().zip(&mut runs) {
            runs.push(wrk(server, &script, size).await);
        }
    }
    let mut values = Vec::new();
    for (server, runs) in servers.iter().zip(&runs) {
        let of = |value: fn(&Run) -> f64| runs.iter().map(value).collect::<Vec<f64>>();
        show(&format!("{}, {page}, requests/s", server.name), &of(|run| run.rate));
        show(&format!("{}, {page}, µs of processor time", server.name), &of(|run| run.processor));
        show(&format!("{}, {page}, p99 ms", server.name), &of(|run| run.p99));
        values.push([median(&of(|run| run.processor)), median(&of(|run| run.rate)), median(&of(|run| run.p99))]);
    }
    let [ours, nginx, haproxy, caddy] = values[..] else { panic!("four proxies") };
    let what = format!("proxied GET of {page}, processor time");
    vec![
        Figure::new(&what, ours[0], "µs").against("nginx", nginx[0]).target(Target::RatioAtMost(1.0)),
        Figure::new(&what, ours[0], "µs").against("HAProxy", haproxy[0]).target(Target::RatioAtMost(1.0)),
        Figure::new(&what, ours[0], "µs").against("Caddy", caddy[0]).target(Target::RatioAtMost(0.3)),
        Figure::new(format!("the same, {CONNECTIONS} connections"), ours[1], "/s").against("nginx", nginx[1]),
        Figure::new("the same, 99th percentile at full load", ours[2], "ms").against("nginx", nginx[2]),
    ]
}

/// What a kept connection costs that does nothing.
async fn idle_connections(server: &Server) -> Figure {
    let before = memory(server.pid(), "VmRSS");
    let mut connections = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        connections.push(asked(server.port).await);
    }
    let each = (memory(server.pid(), "VmRSS") - before) * 1024.0 / IDLE as f64;
    Figure::new(format!("memory of each of {IDLE} idle connections"), each, "KiB").target(Target::AtMost(10.0))
}

/// A connection on which one request was answered.
async fn asked(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    stream.write_all(format!("HEAD /1024 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.expect("a request");
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
    stream
}

/// Large tables: a switch among 200 routes, and a start with 10,000.
async fn tables(ports: [u16; 2]) -> Vec<Figure> {
    let many = table(ports, 200);
    let server = longshore(&many).await;
    let data = server.directory.as_ref().expect("its own directory").path().join("data");
    let client = ProxyClient::start(&data);
    assert!(client.connected(UP).await, "the proxy answers");
    let mut switches = Vec::new();
    for round in 0..50 {
        let mut routes = many.routes.clone();
        routes[0].members.truncate(1 + round % 2);
        let began = Instant::now();
        client.apply(routes).await.expect("the table is taken");
        switches.push(ms(began.elapsed()));
    }
    drop(server);
    let large = table(ports, 10_000);
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let few = longshore(&table(ports, 1)).await;
        asked(few.port).await;
        let small = ms(began.elapsed());
        let began = Instant::now();
        let server = longshore(&large).await;
        asked(server.port).await;
        starts.push(ms(began.elapsed()) - small);
    }
    show("a switch among 200 routes of 5, on disk and acknowledged, ms", &switches[..5]);
    show("a start with 10,000 routes, ms more than with one", &starts);
    vec![
        Figure::new("a switch among 200 routes of 5, on disk and acknowledged", median(&switches), "ms"),
        Figure::new("a start with 10,000 routes of 5, beyond one with a single route", median(&starts), "ms")
            .target(Target::AtMost(100.0)),
    ]
}
