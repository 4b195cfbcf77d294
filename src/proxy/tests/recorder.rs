//! An instance that reads requests by a reader of its own, stricter than the proxy's, and remembers where each began and ended.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::support::*;
use crate::model::InstanceId;
use crate::proxy::table::{Member, Route};

pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Recorded>>>,
    _stop: DropGuard,
}

/// A request, from its first byte to its last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub head: String,
    pub body: String,
}

impl Recorded {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// `POST /path body`
    fn summary(&self) -> String {
        let target = self.head.split(" HTTP/1.1\r\n").next().unwrap();
        format!("{target} {}", self.body).trim_end().to_owned()
    }
}

impl Recorder {
    /// Answers each request with what it was.
    pub async fn start() -> Self {
        Self::with(|request| {
            let text = request.summary();
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
        })
        .await
    }

    /// An empty answer closes the connection.
    pub async fn with(answer: fn(&Recorded) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let stop = CancellationToken::new();
        let (all, token) = (Arc::clone(&seen), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, mut wire) = (Arc::clone(&all), Wire { stream, rest: Vec::new() });
                tokio::spawn(token.clone().run_until_cancelled_owned(async move {
                    while let Some(request) = read(&mut wire).await {
                        let text = answer(&request);
                        seen.lock().unwrap().push(request);
                        wire.send(&text).await;
                        if text.is_empty() {
                            return;
                        }
                    }
                }));
            }
        }));
        Self { address, seen, _stop: stop.drop_guard() }
    }

    pub fn route(&self) -> Route {
        let mut route = route("shop", "shop.test", &[]);
        let instance = InstanceId::parse("d1-web-1").unwrap();
        route.members.push(Member { instance, address: self.address, weight: 1, group: 0 });
        route
    }

    pub fn seen(&self) -> Vec<Recorded> {
        self.seen.lock().unwrap().clone()
    }

    pub fn summaries(&self) -> Vec<String> {
        self.seen().iter().map(Recorded::summary).collect()
    }
}

/// `None` at the end of the connection, also in the middle of a request.
async fn read(wire: &mut Wire) -> Option<Recorded> {
    let head = wire.until(b"\r\n\r\n").await?;
    let is_plain = |line: &str| !line.contains(['\r', '\n', '\0']) && !line.starts_with([' ', '\t']);
    assert!(head.split("\r\n").all(is_plain), "lines that two might read differently: {head:?}");
    assert!(head.split("\r\n").next().unwrap().ends_with(" HTTP/1.1"), "{head:?}");
    let mut request = Recorded { head, body: String::new() };
    let count = |name: &str| request.head.to_ascii_lowercase().matches(&format!("\r\n{name}:")).count();
    let framings = (count("content-length"), count("transfer-encoding"));
    match framings {
        (0, 0) => {}
        (1, 0) => {
            let length: usize = request.header("content-length").unwrap().parse().unwrap();
            while wire.rest.len() < length {
                wire.more().await.then_some(())?;
            }
            request.body = String::from_utf8(wire.rest.drain(..length).collect()).unwrap();
        }
        (0, 1) => {
            assert_eq!(request.header("transfer-encoding"), Some("chunked"));
            loop {
                let size = wire.until(b"\r\n").await?;
                let size = usize::from_str_radix(size.trim_end(), 16).expect("a size and nothing else");
                if size == 0 {
                    break;
                }
                while wire.rest.len() < size + 2 {
                    wire.more().await.then_some(())?;
                }
                let piece: Vec<u8> = wire.rest.drain(..size + 2).collect();
                request.body += std::str::from_utf8(&piece).unwrap().strip_suffix("\r\n").expect("as long as it says");
            }
            // Trailers are remembered with the body.
            loop {
                let line = wire.until(b"\r\n").await?;
                if line == "\r\n" {
                    break;
                }
                request.body += line.trim_end();
            }
        }
        _ => panic!("a request with two framings: {request:?}"),
    }
    Some(request)
}
