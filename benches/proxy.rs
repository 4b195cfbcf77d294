//! The proxy against nginx, HAProxy and Caddy: the same two backends behind each, each proxy alone on one processor, the
//! client and the backends on the other. And against what a proxy like it cannot be cheaper than: a forwarder of nothing
//! but hyper, and one that copies bytes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::figure::{Figure, Target};
use crate::machine::{memory, processor_time};
use crate::rounds::{median, show};

pub mod bare;
mod servers;
mod tables;

use servers::{CLIENT, Server, write};

/// Many short turns: a processor that is slower for some seconds, as virtual ones are, is so for all.
const ROUNDS: usize = 15;
const SECONDS: u32 = 1;
const CONNECTIONS: u32 = 64;
/// The host that every request names.
const HOST: &str = "localhost";
/// Kept connections that do nothing.
const IDLE: usize = 8_000;
/// The most milliseconds that each connection waits between two requests, where all proxies are offered the same load: at
/// random, as clients that all ask at once mostly wait for each other.
const PAUSE: u32 = 10;
const AT_ONE_LOAD: Load = Load { size: PAGES[0].1, tls: false, pause: PAUSE };

/// What is asked for: a name and the size of its answer.
const PAGES: [(&str, usize); 2] = [("1 KB", 1 << 10), ("64 KB", 64 << 10)];

pub async fn run() -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    servers::pem_files(directory.path());
    let backends = [servers::backend(directory.path(), 1).await, servers::backend(directory.path(), 2).await];
    let ports = backends.each_ref().map(|backend| backend.port);
    let proxies = [
        servers::longshore(&servers::table(ports, 1)).await,
        servers::nginx(directory.path(), ports).await,
        servers::haproxy(directory.path(), ports).await,
        servers::caddy(directory.path(), ports).await,
        servers::bare("hyper", "a bare forwarder of hyper", ports[0]).await,
        servers::bare("copy", "a copier of bytes", ports[0]).await,
    ];
    let mut figures = Vec::new();
    for (page, size) in PAGES {
        figures.extend(throughput(&proxies, page, size).await);
    }
    figures.extend(over_tls(&proxies[..4]).await);
    figures.push(at_the_same_load(&proxies[..2]).await);
    let loaded = memory(proxies[0].pid(), "VmRSS");
    figures.push(Figure::new("the proxy's memory after that", loaded, "MiB").target(Target::AtMost(16.0)));
    figures.push(idle_connections(&proxies[0]).await);
    drop(proxies);
    figures.extend(tables::figures(ports).await);
    figures
}

/// What one run of wrk showed.
struct Run {
    rate: f64,
    /// Microseconds of the proxy's processor time to a request.
    processor: f64,
    /// Milliseconds.
    p99: f64,
}

/// How requests are sent.
#[derive(Clone, Copy)]
struct Load {
    size: usize,
    tls: bool,
    /// The most milliseconds between two requests of a connection.
    pause: u32,
}

async fn wrk(server: &Server, load: Load) -> Run {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("done.lua");
    let pause = match load.pause {
        0 => String::new(),
        pause => format!("function delay()\n   return math.random(0, {pause})\nend\n"),
    };
    write(&script, &format!("{}{pause}", include_str!("done.lua")));
    let (scheme, port) = match load.tls {
        true => ("https", server.tls_port.expect("it speaks TLS")),
        false => ("http", server.port),
    };
    let before = processor_time(server.pid());
    let mut command = tokio::process::Command::new("taskset");
    command.args(["--cpu-list", CLIENT, "wrk", "-t1", &format!("-c{CONNECTIONS}"), &format!("-d{SECONDS}s"), "-s"]);
    command.arg(&script).arg(format!("{scheme}://{HOST}:{port}/{}", load.size));
    let output = command.output().await.expect("wrk (./dev setup installs it)");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("done ")).unwrap_or_else(|| panic!("wrk: {text}"));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [requests, bytes, micros, errors, p99] = numbers[..] else { panic!("wrk: {line}") };
    assert_eq!(errors, 0.0, "{}: some requests failed: {text}", server.name);
    assert!(bytes >= requests * load.size as f64, "{}: it did not send the page: {text}", server.name);
    Run { rate: requests / micros * 1e6, processor: (processor_time(server.pid()) - before) / requests, p99: p99 / 1e3 }
}

/// Each in turn, again and again: of each the medians.
async fn rounds(servers: &[Server], what: &str, load: Load) -> Vec<Run> {
    let mut runs: Vec<Vec<Run>> = servers.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (server, runs) in servers.iter().zip(&mut runs) {
            runs.push(wrk(server, load).await);
        }
    }
    let medians = servers.iter().zip(&runs).map(|(server, runs)| {
        let of = |value: fn(&Run) -> f64, unit: &str| {
            let values: Vec<f64> = runs.iter().map(value).collect();
            show(&format!("{}, {what}, {unit}", server.name), &values);
            median(&values)
        };
        Run {
            rate: of(|run| run.rate, "requests/s"),
            processor: of(|run| run.processor, "µs of processor time"),
            p99: of(|run| run.p99, "p99 ms"),
        }
    });
    medians.collect()
}

async fn throughput(servers: &[Server], page: &str, size: usize) -> Vec<Figure> {
    let medians = rounds(servers, page, Load { size, tls: false, pause: 0 }).await;
    let [ours, nginx, haproxy, caddy, hyper, copy] = &medians[..] else { panic!("six of them") };
    let what = format!("proxied GET of {page}, processor time");
    let against = |name, other: &Run| Figure::new(&what, ours.processor, "µs").against(name, other.processor);
    vec![
        against("nginx", nginx).target(Target::RatioAtMost(1.0)),
        against("HAProxy", haproxy).target(Target::RatioAtMost(1.0)),
        against("Caddy", caddy).target(Target::RatioAtMost(0.3)),
        against("a bare forwarder of hyper", hyper),
        against("a copier of bytes", copy),
        Figure::new(format!("the same, {CONNECTIONS} connections"), ours.rate, "/s").against("nginx", nginx.rate),
        Figure::new("the same, 99th percentile at full load", ours.p99, "ms").against("nginx", nginx.p99),
    ]
}

/// On connections that are kept: what the handshakes cost is not in it.
async fn over_tls(servers: &[Server]) -> Vec<Figure> {
    let medians = rounds(servers, "1 KB over TLS", Load { size: PAGES[0].1, tls: true, pause: 0 }).await;
    let [ours, nginx, haproxy, caddy] = &medians[..] else { panic!("four of them") };
    let against = |name, other: &Run| {
        Figure::new("proxied GET of 1 KB over TLS, processor time", ours.processor, "µs").against(name, other.processor)
    };
    vec![against("nginx", nginx).target(Target::RatioAtMost(1.0)), against("HAProxy", haproxy), against("Caddy", caddy)]
}

/// Well below what either can do.
async fn at_the_same_load(servers: &[Server]) -> Figure {
    let medians = rounds(servers, "1 KB at the same load", AT_ONE_LOAD).await;
    let [ours, nginx] = &medians[..] else { panic!("two of them") };
    let rate = (ours.rate / 1000.0).round();
    let what = format!("99th percentile of a GET of 1 KB, {rate},000 requests/s offered");
    Figure::new(what, ours.p99, "ms").against("nginx", nginx.p99).target(Target::RatioAtMost(1.0))
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
