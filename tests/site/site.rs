//! The application that the end-to-end tests deploy: one file, std only, compiled by `rustc` to a static binary that
//! runs `FROM scratch`. How it behaves is set by `key=value` lines in `/behaviour` (or `$SITE_FILE`); an environment
//! variable `SITE_<KEY>` wins over the file. The keys are documented in `tests/support/site.rs`.
//!
//! `site` serves; `site worker` ticks without a port; `site migrate` is a release command; `site healthcheck` probes
//! the server of the same container.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, read_request};

mod http;
mod signals;
mod websocket;

struct Behaviour(HashMap<String, String>);

impl Behaviour {
    fn load() -> Self {
        let file = std::env::var("SITE_FILE").unwrap_or_else(|_| "/behaviour".into());
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let mut all: HashMap<_, _> = pairs.map(|(key, value)| (key.trim().into(), value.trim().into())).collect();
        for (key, value) in std::env::vars_os() {
            if let (Some(key), Some(value)) = (key.to_str().and_then(|key| key.strip_prefix("SITE_")), value.to_str()) {
                all.insert(key.to_ascii_lowercase(), value.to_owned());
            }
        }
        if all.get("only_on").is_some_and(|suffix| !hostname().ends_with(suffix.as_str())) {
            all.retain(|key, _| key == "version" || key == "port");
        }
        Self(all)
    }

    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).filter(|value| !value.is_empty()).map(|value| match value.parse() {
            Ok(number) => number,
            Err(_) => fail(&format!("behaviour {key}={value} is not a number")),
        })
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "1" | "true" | "yes")
    }
}

fn fail(text: &str) -> ! {
    eprintln!("site: {text}");
    exit(70)
}

/// What all connections share.
struct Site {
    behaviour: Behaviour,
    started: Instant,
    requests: AtomicU64,
    stopping: AtomicBool,
    broken: AtomicBool,
    in_flight: Mutex<u64>,
    idle: Condvar,
    ballast: Mutex<Vec<Vec<u8>>>,
}

impl Site {
    fn is_ready(&self) -> bool {
        let wait = Duration::from_millis(self.behaviour.number("ready_after_ms").unwrap_or(0));
        !self.behaviour.flag("never_ready") && !self.broken.load(SeqCst) && self.started.elapsed() >= wait
    }
}

fn main() {
    let behaviour = Behaviour::load();
    let mode = std::env::args().nth(1).unwrap_or_default();
    if mode == "healthcheck" {
        exit(healthcheck(&behaviour));
    }
    if mode == "migrate" {
        println!("site: migrating for {} {}", behaviour.text("version"), behaviour.text("migrate_says"));
        thread::sleep(Duration::from_millis(behaviour.number("migrate_ms").unwrap_or(0)));
        exit(behaviour.number("migrate_exit").unwrap_or(0) as i32);
    }
    println!("site: {} starts as {}", behaviour.text("version"), hostname());
    if let Some(code) = behaviour.number("exit_at_once") {
        eprintln!("site: exits at once with {code}");
        exit(code as i32);
    }

    let graceful = !behaviour.flag("ignore_sigterm") && !behaviour.flag("abrupt_sigterm");
    let mut sigterm = graceful.then(signals::take_sigterm);
    if behaviour.flag("ignore_sigterm") {
        signals::ignore_sigterm();
    }
    let site = Arc::new(Site {
        behaviour,
        started: Instant::now(),
        requests: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        broken: AtomicBool::new(false),
        in_flight: Mutex::new(0),
        idle: Condvar::new(),
        ballast: Mutex::new(Vec::new()),
    });
    if let Some(after) = site.behaviour.number("crash_after_ready_ms") {
        let site = Arc::clone(&site);
        thread::spawn(move || {
            let ready_after = site.behaviour.number("ready_after_ms").unwrap_or(0);
            thread::sleep(Duration::from_millis(ready_after + after));
            eprintln!("site: crashes as told");
            exit(site.behaviour.number("crash_code").unwrap_or(1) as i32);
        });
    }
    if mode == "worker" {
        if let Some(wait) = sigterm.take() {
            thread::spawn(move || {
                wait();
                exit(0)
            });
        }
        for tick in 1.. {
            println!("site: tick {tick} of {}", site.behaviour.text("version"));
            thread::sleep(Duration::from_secs(1));
        }
    }

    thread::sleep(Duration::from_millis(site.behaviour.number("listen_after_ms").unwrap_or(0)));
    let port = port(&site.behaviour);
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap_or_else(|error| fail(&format!("port {port}: {error}")));
    if let Some(wait) = sigterm.take() {
        let site = Arc::clone(&site);
        thread::spawn(move || {
            wait();
            site.stopping.store(true, SeqCst);
            // Wakes the accept loop, which then closes the listener.
            let _ = TcpStream::connect(("127.0.0.1", port));
            let busy = site.in_flight.lock().unwrap();
            drop(site.idle.wait_while(busy, |busy| *busy > 0).unwrap());
            println!("site: stopped gracefully");
            exit(0);
        });
    }
    for stream in listener.incoming().flatten() {
        if site.stopping.load(SeqCst) {
            break;
        }
        let site = Arc::clone(&site);
        thread::spawn(move || drop(serve(&site, stream)));
    }
    drop(listener);
    loop {
        thread::park();
    }
}

fn port(behaviour: &Behaviour) -> u16 {
    let number = behaviour.number("port").or_else(|| std::env::var("PORT").ok()?.parse().ok()).unwrap_or(8000);
    u16::try_from(number).unwrap_or_else(|_| fail(&format!("port {number} is out of range")))
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// `site healthcheck`: 0 when the server of this container answers /healthz with 200.
fn healthcheck(behaviour: &Behaviour) -> i32 {
    let probe = || -> io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port(behaviour)))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: self\r\nconnection: close\r\n\r\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.starts_with("HTTP/1.1 200"))
    };
    i32::from(!probe().unwrap_or(false))
}

/// One connection, request after request.
fn serve(site: &Site, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader)? {
        *site.in_flight.lock().unwrap() += 1;
        let result = answer(site, &request, &mut reader, &mut writer);
        let mut busy = site.in_flight.lock().unwrap();
        *busy -= 1;
        site.idle.notify_all();
        drop(busy);
        if !result? {
            break;
        }
    }
    Ok(())
}

/// Answers one request; false = the connection is over.
fn answer(site: &Site, request: &Request, reader: &mut BufReader<TcpStream>, out: &mut TcpStream) -> io::Result<bool> {
    let behaviour = &site.behaviour;
    let health = request.path == "/healthz";
    let served = if health { 0 } else { site.requests.fetch_add(1, SeqCst) };
    let failing = behaviour.number("fail_percent").unwrap_or(0);
    if !health {
        thread::sleep(Duration::from_millis(behaviour.number("delay_ms").unwrap_or(0)));
    }
    if health && behaviour.flag("hang_health") {
        thread::sleep(Duration::from_secs(3600));
    }
    let broken = behaviour.text("answer_500");
    let wanted =
        |name: &str| request.query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name));
    let number = |name: &str| wanted(name).and_then(|(_, value)| value.parse::<u64>().ok()).unwrap_or(0);
    if request.method == "POST" {
        note(behaviour, "posts", request, request.body.len())?;
    }
    let (status, body) = match request.path.as_str() {
        // Evenly spread, so that any hundred pages in a row have exactly so many.
        _ if !health && (served * failing) % 100 + failing >= 100 => {
            ("500 Internal Server Error", format!("{} fails as told\n", behaviour.text("version")).into())
        }
        _ if broken == "all" || (broken == "pages" && !health) => {
            ("500 Internal Server Error", "broken as told\n".into())
        }
        "/healthz" if site.is_ready() => ("200 OK", b"ready\n".to_vec()),
        "/healthz" => ("503 Service Unavailable", b"not ready\n".to_vec()),
        "/readyz" => ("200 OK", b"ready\n".to_vec()),
        "/" => ("200 OK", format!("{}\n", behaviour.text("version")).into()),
        "/id" => ("200 OK", format!("{}\n", hostname()).into()),
        "/env" => match std::env::var(&request.query) {
            Ok(value) => ("200 OK", format!("{value}\n").into()),
            Err(_) => ("404 Not Found", Vec::new()),
        },
        "/headers" => {
            let mut lines: Vec<_> = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
            lines.sort();
            ("200 OK", format!("{} {}\n{}", request.method, request.path, lines.concat()).into())
        }
        "/echo" => ("200 OK", request.body.clone()),
        "/count" => ("200 OK", format!("{}\n", site.requests.load(SeqCst)).into()),
        "/slow" => {
            thread::sleep(Duration::from_millis(number("ms")));
            ("200 OK", format!("{}\n", behaviour.text("version")).into())
        }
        "/alloc" => {
            // Written, not only reserved: the memory limit counts pages that were touched.
            site.ballast.lock().unwrap().push(vec![1; number("mb") as usize * 1024 * 1024]);
            ("200 OK", b"allocated\n".to_vec())
        }
        // From now on its health check fails; its pages go on being answered.
        "/break" => {
            site.broken.store(true, SeqCst);
            ("200 OK", b"unready from now on\n".to_vec())
        }
        "/exit" => exit(number("code") as i32),
        "/sse" => return send_events(site, out),
        "/download" => {
            let (pieces, bytes) = (number("pieces").max(1), number("bytes"));
            return send_slowly(site, request, Duration::from_millis(number("ms")), pieces, bytes as usize, out);
        }
        "/ws" => return echo_messages(behaviour, request, reader, out),
        _ => ("404 Not Found", b"no such page\n".to_vec()),
    };
    let close = site.stopping.load(SeqCst)
        || request.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let connection = if close { "close" } else { "keep-alive" };
    // Whose answer this is: the load sends a number with each request.
    let id = request.headers.get("x-load-id").map_or(String::new(), |id| format!("x-load-id: {id}\r\n"));
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nx-version: {}\r\nx-instance: {}\r\n\
         {id}connection: {connection}\r\n\r\n",
        body.len(),
        behaviour.text("version"),
        hostname()
    )
    .into_bytes();
    if request.method != "HEAD" {
        bytes.extend_from_slice(&body);
    }
    out.write_all(&bytes)?;
    Ok(!close)
}

/// Numbered events until the client leaves or the server stops; the first names the version.
fn send_events(site: &Site, out: &mut TcpStream) -> io::Result<bool> {
    out.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nconnection: close\r\n\r\n",
    )?;
    for number in 0.. {
        if site.stopping.load(SeqCst) {
            break;
        }
        out.write_all(format!("id: {number}\ndata: {}\n\n", site.behaviour.text("version")).as_bytes())?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// Writes down, in a file that all instances share, how many bytes came with a request: one line in one write, which no
/// other write gets into (O_APPEND).
fn note(behaviour: &Behaviour, file: &str, request: &Request, bytes: usize) -> io::Result<()> {
    let (directory, Some(id)) = (behaviour.text("seen"), request.headers.get("x-load-id")) else { return Ok(()) };
    if directory.is_empty() {
        return Ok(());
    }
    let line = format!("{id} {bytes} {}\n", hostname());
    OpenOptions::new().create(true).append(true).open(format!("{directory}/{file}"))?.write_all(line.as_bytes())
}

/// The request's number, as fifteen digits and a point, again and again: so many bytes over so long.
fn send_slowly(
    site: &Site,
    request: &Request,
    time: Duration,
    pieces: u64,
    bytes: usize,
    out: &mut TcpStream,
) -> io::Result<bool> {
    let id = request.headers.get("x-load-id").map_or("0", String::as_str);
    let word = format!("{id:0>15}.");
    let body = word.repeat(bytes / word.len());
    let (version, length) = (site.behaviour.text("version"), body.len());
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nx-version: {version}\r\nx-load-id: {id}\r\n\r\n");
    out.write_all(head.as_bytes())?;
    for piece in body.as_bytes().chunks(length.div_ceil(pieces as usize).max(1)) {
        thread::sleep(time / pieces as u32);
        out.write_all(piece)?;
    }
    Ok(!site.stopping.load(SeqCst))
}

/// Agrees to a WebSocket and sends every message back.
fn echo_messages(
    behaviour: &Behaviour,
    request: &Request,
    reader: &mut BufReader<TcpStream>,
    out: &mut TcpStream,
) -> io::Result<bool> {
    let accept = websocket::accept(request.headers.get("sec-websocket-key").map_or("", String::as_str));
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    );
    out.write_all(head.as_bytes())?;
    let mut came = 0;
    let echoed = websocket::echo(reader, out, &mut came);
    note(behaviour, "streams", request, came)?;
    echoed.map(|()| false)
}
