//! A git server over http on loopback: `git http-backend` behind a few lines of HTTP, which can also misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;

/// What a server does with requests.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Serves the repositories below its root.
    Honest,
    /// The same, by protocol version 0 alone.
    HonestV0,
    /// Sends the pack in pieces of a few bytes with pauses.
    Slow,
    /// Redirects to the same path below this address.
    RedirectTo(String),
    /// Moves `/old/…` to `/…` on itself.
    RedirectWithin,
    /// Answers everything with this status.
    Status(u16),
    /// Answers with a web page.
    Page,
    /// Accepts and never answers.
    Hang,
    /// Goes silent after this many bytes of a POST's answer.
    HangAfter(usize),
    /// Closes properly after this many bytes of a POST's answer.
    CloseAfter(usize),
    /// Resets the connection after this many bytes of a POST's answer.
    ResetAfter(usize),
    /// Swaps bytes of a POST's answer from this offset on.
    GarbageAfter(usize),
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Method and target.
    pub line: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// A server that runs until the test process ends.
pub struct GitServer {
    port: u16,
    arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl GitServer {
    /// Serves `root` with `behaviour`; with `user:token` where one is given.
    pub fn start(root: &Path, behaviour: Behaviour, login: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let expected = login.map(|login| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login)));
        let (root, log) = (root.to_owned(), Arc::clone(&arrived));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = Site {
                    root: root.clone(),
                    behaviour: behaviour.clone(),
                    expected: expected.clone(),
                    log: Arc::clone(&log),
                };
                std::thread::spawn(move || site.serve(stream));
            }
        });
        Self { port, arrived }
    }

    /// `127.0.0.1:PORT`
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.authority())
    }

    /// Everything that arrived so far.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }
}

struct Site {
    root: PathBuf,
    behaviour: Behaviour,
    expected: Option<String>,
    log: Arc<Mutex<Vec<Arrived>>>,
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first).ok().filter(|&n| n > 0)?;
        let mut words = first.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut request = Self { method, path: path.to_owned(), query: query.to_owned(), headers, body: Vec::new() };
        let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Site {
    fn serve(&self, mut stream: TcpStream) {
        let Some(request) = Request::read(&stream) else { return };
        let authorization = request.header("authorization").map(str::to_owned);
        let line = format!("{} {}", request.method, request.path);
        self.log.lock().unwrap().push(Arrived { line, authorization: authorization.clone() });
        if self.expected.is_some() && authorization != self.expected {
            return status(&mut stream, 401);
        }
        let posted = request.method == "POST";
        match &self.behaviour {
            Behaviour::Status(code) => status(&mut stream, *code),
            Behaviour::Page => send(&mut stream, "200 OK", "content-type: text/html\r\n", b"<html>Log in</html>"),
            Behaviour::Hang => hold(stream),
            Behaviour::RedirectTo(base) => redirect(&mut stream, &format!("{base}{}?{}", request.path, request.query)),
            Behaviour::RedirectWithin if request.path.starts_with("/old/") => {
                redirect(&mut stream, &format!("{}?{}", &request.path[4..], request.query));
            }
            Behaviour::HangAfter(bytes) if posted => {
                let answer = self.backend(&request);
                let _ = stream.write_all(&answer[..answer.len().min(*bytes)]);
                hold(stream);
            }
            Behaviour::CloseAfter(bytes) if posted => {
                let answer = self.backend(&request);
                let _ = stream.write_all(&answer[..answer.len().min(*bytes)]);
            }
            Behaviour::ResetAfter(bytes) if posted => {
                let answer = self.backend(&request);
                let _ = stream.write_all(&answer[..answer.len().min(*bytes)]);
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
            }
            Behaviour::GarbageAfter(offset) if posted => {
                let mut answer = self.backend(&request);
                answer.iter_mut().skip(*offset).for_each(|byte| *byte ^= 0x55);
                let _ = stream.write_all(&answer);
            }
            Behaviour::Slow if posted => {
                for piece in self.backend(&request).chunks(64) {
                    if stream.write_all(piece).is_err() {
                        return;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
            _ => {
                let answer = self.backend(&request);
                let _ = stream.write_all(&answer);
            }
        }
    }

    /// The whole answer of `git http-backend`, as HTTP.
    fn backend(&self, request: &Request) -> Vec<u8> {
        let mut command = Command::new("git");
        command
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", &request.path)
            .env("QUERY_STRING", &request.query)
            .env("REQUEST_METHOD", &request.method)
            .env("CONTENT_TYPE", request.header("content-type").unwrap_or_default())
            .env("CONTENT_LENGTH", request.body.len().to_string())
            .env("REMOTE_ADDR", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        match (&self.behaviour, request.header("git-protocol")) {
            (Behaviour::HonestV0, _) | (_, None) => command.env_remove("GIT_PROTOCOL"),
            (_, Some(version)) => command.env("GIT_PROTOCOL", version),
        };
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let body = request.body.clone();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&body);
        });
        let mut output = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        writer.join().unwrap();
        child.wait().unwrap();
        let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0);
        let head = String::from_utf8_lossy(&output[..end]).into_owned();
        let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
        let body = output.get(end + 4..).unwrap_or_default();
        let mut answer =
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len()).into_bytes();
        for line in head.lines().filter(|line| !line.starts_with("Status: ")) {
            answer.extend_from_slice(format!("{line}\r\n").as_bytes());
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(body);
        answer
    }
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn status(stream: &mut TcpStream, code: u16) {
    send(stream, &format!("{code} Status"), "www-authenticate: Basic realm=\"git\"\r\n", b"no");
}

fn redirect(stream: &mut TcpStream, to: &str) {
    send(stream, "302 Found", &format!("location: {to}\r\n"), b"");
}

/// Keeps the connection open until the client closes it.
fn hold(mut stream: TcpStream) {
    let _ = stream.read(&mut [0; 1]);
}
