//! Clients that talk over a connection which was upgraded, and want every message back.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ANSWER_WITHIN, Asked, Kind, Run, What};

/// So long a stream whose time is over is kept open for the answer to a message.
const PROXY_WAITS: Duration = Duration::from_secs(2);

impl Run {
    /// Opens one WebSocket after the other and has every message come back.
    pub(super) async fn converse(self: Arc<Self>, host: &'static str) {
        while !self.stop.is_cancelled() {
            let mut asked = self.begin(host, Kind::WebSocket, None);
            let opening = tokio::time::timeout(ANSWER_WITHIN, self.open(&mut asked));
            match opening.await.unwrap_or_else(|_| Err(What::Broken(format!("no answer within {ANSWER_WITHIN:?}")))) {
                Ok(socket) => {
                    self.answered(&asked);
                    self.echo(asked, socket).await;
                }
                Err(what) => self.failed(asked, what),
            }
            self.pause().await;
        }
    }

    async fn open(&self, asked: &mut Asked) -> Result<TcpStream, What> {
        let broken = |error: std::io::Error| What::Broken(error.to_string());
        let mut socket = TcpStream::connect(self.proxy).await.map_err(broken)?;
        asked.connected = Some(Instant::now());
        socket.set_nodelay(true).map_err(broken)?;
        let request = format!(
            "GET /ws HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-load-id: {}\r\n\r\n",
            asked.host, asked.id
        );
        socket.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.map_err(broken)?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
        if status == 101 {
            return Ok(socket);
        }
        let header = |line: &str| line.strip_prefix("x-version: ").map(str::to_owned);
        let version = text.lines().find_map(header).unwrap_or_default();
        Err(What::Status { status, version, text: text.lines().next().unwrap_or_default().to_owned() })
    }

    /// Until the connection ends: a switch closes it when the old instance's time for streams is over.
    async fn echo(&self, mut asked: Asked, mut socket: TcpStream) {
        for number in 0_u64.. {
            if self.stop.is_cancelled() {
                return;
            }
            let message = format!("{:012}.{number:012};", asked.id);
            let mut back = vec![0; message.len()];
            asked.began = Instant::now();
            let exchange = async {
                socket.write_all(message.as_bytes()).await?;
                socket.read_exact(&mut back).await.map(drop)
            };
            match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
                Ok(Ok(())) if back == message.as_bytes() => {
                    let sockets = &mut self.report().sockets;
                    sockets.echoed += 1;
                    *sockets.bytes.entry(asked.id).or_default() += message.len() as u64;
                }
                Ok(Ok(())) => {
                    let what = What::Wrong(format!("{message:?} came back as {:?}", String::from_utf8_lossy(&back)));
                    return self.failed(asked, what);
                }
                Ok(Err(error)) => return self.ended(&asked, true, Some(error)),
                Err(_) => return self.failed(asked, What::Broken("the message did not come back".to_owned())),
            }
            // The end is seen as it comes, so that the next message does not meet it.
            match tokio::time::timeout(self.pause, socket.read(&mut [0; 1])).await {
                Err(_) => {}
                Ok(Ok(length)) if length > 0 => {
                    return self.failed(asked, What::Wrong("a message came twice".to_owned()));
                }
                Ok(end) => return self.ended(&asked, false, end.err()),
            }
        }
    }

    fn ended(&self, asked: &Asked, with_message: bool, error: Option<std::io::Error>) {
        let age = asked.connected.map(|connected| connected.elapsed());
        let was_reset = error.is_some_and(|error| error.kind() != ErrorKind::UnexpectedEof);
        let waited = asked.began.elapsed();
        let sockets = &mut self.report().sockets;
        match with_message {
            true => {
                sockets.ended_with_message += 1;
                if waited >= PROXY_WAITS {
                    sockets.unanswered.insert(asked.id);
                }
            }
            false => sockets.ended += 1,
        }
        sockets.reset += u64::from(was_reset);
        sockets.youngest = [sockets.youngest, age].into_iter().flatten().min();
    }
}
