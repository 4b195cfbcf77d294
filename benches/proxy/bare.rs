//! Two forwarders that do nothing else, to be compared with: no routes, no limits, no counts, no care for what may go wrong.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Makes this program such a forwarder: `--bare hyper|copy PORT UPSTREAM`.
pub const FLAG: &str = "--bare";
const CHUNK: usize = 64 << 10;

/// Idle connections to the backend.
struct Pool<T> {
    idle: Mutex<Vec<T>>,
}

impl<T> Pool<T> {
    const fn new() -> Self {
        Self { idle: Mutex::new(Vec::new()) }
    }

    fn take(&self) -> Option<T> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, one: T) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }
}

/// Serves if the program was asked to. Does not return then.
pub async fn if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, kind, port, upstream] = &arguments[..] else { return };
    if flag != FLAG {
        return;
    }
    let (port, upstream): (u16, u16) = (port.parse().expect("a port"), upstream.parse().expect("a port"));
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let _ = socket.set_nodelay(true);
        if kind == "hyper" {
            let service = service_fn(move |request| forward(request, upstream));
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(socket), service));
        } else {
            tokio::spawn(copy(socket, upstream));
        }
    }
}

async fn connect(upstream: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", upstream)).await.expect("a backend");
    socket.set_nodelay(true).expect("an option");
    socket
}

type Sender = client::SendRequest<Incoming>;
static SENDERS: Pool<Sender> = Pool::new();

/// Gives its connection back when the answer has been sent.
struct Return(Option<Sender>);

impl Drop for Return {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            SENDERS.put(sender);
        }
    }
}

async fn forward(
    request: Request<Incoming>,
    upstream: u16,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let mut sender = loop {
        let mut sender = match SENDERS.take() {
            Some(sender) => sender,
            None => {
                let socket = TokioIo::new(connect(upstream).await);
                let (sender, connection) = client::handshake(socket).await.expect("a connection");
                tokio::spawn(connection);
                sender
            }
        };
        if sender.ready().await.is_ok() {
            break sender;
        }
    };
    let answer = sender.send_request(request).await.expect("an answer");
    let held = Return(Some(sender));
    Ok(answer.map(|body| {
        let held = held;
        body.map_frame(move |frame| {
            let _ = &held;
            frame
        })
        .boxed()
    }))
}

static SOCKETS: Pool<TcpStream> = Pool::new();

/// A head is looked for, and in an answer its length; everything goes on as it came.
async fn copy(mut client: TcpStream, upstream: u16) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut there = 0;
        loop {
            match client.read(&mut buffer[there..]).await? {
                0 => return Ok(()),
                read => there += read,
            }
            let mut fields = [httparse::EMPTY_HEADER; 32];
            if httparse::Request::new(&mut fields).parse(&buffer[..there]).is_ok_and(|parsed| parsed.is_complete()) {
                break;
            }
        }
        let mut backend = match SOCKETS.take() {
            Some(backend) => backend,
            None => connect(upstream).await,
        };
        backend.write_all(&buffer[..there]).await?;
        there = 0;
        let mut left = loop {
            there += backend.read(&mut buffer[there..]).await?;
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut answer = httparse::Response::new(&mut fields);
            if let Ok(httparse::Status::Complete(head)) = answer.parse(&buffer[..there]) {
                let length = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
                let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
                break head + length.expect("a length") - there;
            }
        };
        client.write_all(&buffer[..there]).await?;
        while left > 0 {
            let read = backend.read(&mut buffer).await?;
            client.write_all(&buffer[..read]).await?;
            left -= read;
        }
        SOCKETS.put(backend);
    }
}
