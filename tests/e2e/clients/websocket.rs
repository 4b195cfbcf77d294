//! Clients that talk over a WebSocket, and want every message back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{ANSWER_WITHIN, Asked, Kind, Run, What};

type Socket = WebSocketStream<TcpStream>;

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

    async fn open(&self, asked: &mut Asked) -> Result<Socket, What> {
        let broken = |error: std::io::Error| What::Broken(error.to_string());
        let stream = TcpStream::connect(self.proxy).await.map_err(broken)?;
        asked.connected = Some(Instant::now());
        stream.set_nodelay(true).map_err(broken)?;
        let url = format!("ws://{}/ws", asked.host).into_client_request();
        let mut request = url.map_err(|error| What::Broken(error.to_string()))?;
        request.headers_mut().insert("x-load-id", asked.id.into());
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(answer)) => {
                let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
                let version = header("x-version").unwrap_or_default().to_owned();
                let (status, text) = (answer.status().as_u16(), answer.status().to_string());
                Err(What::Status { status, version, text })
            }
            Err(error) => Err(What::Broken(error.to_string())),
        }
    }

    /// Until the connection ends: a switch closes it when the old instance's time for streams is over.
    async fn echo(&self, mut asked: Asked, mut socket: Socket) {
        for number in 0_u64.. {
            if self.stop.is_cancelled() {
                let _ = socket.close(None).await;
                return;
            }
            let message = format!("{:012}.{number:012};", asked.id);
            asked.began = Instant::now();
            let exchange = async {
                // What closes the connection may be there already; it is read all the same.
                let sent = socket.send(Message::text(&message)).await;
                match socket.next().await {
                    None => Err(sent.err().unwrap_or(Error::ConnectionClosed)),
                    Some(came) => came,
                }
            };
            match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
                Ok(Ok(Message::Text(back))) if back == message.as_str() => {
                    let sockets = &mut self.report().sockets;
                    sockets.echoed += 1;
                    *sockets.bytes.entry(asked.id).or_default() += message.len() as u64;
                }
                Ok(Ok(Message::Close(close))) => return self.ended(&asked, true, Ok(close)),
                Ok(Ok(other)) => {
                    return self.failed(asked, What::Wrong(format!("{message:?} came back as {other:?}")));
                }
                Ok(Err(error)) => return self.ended(&asked, true, Err(error)),
                Err(_) => return self.failed(asked, What::Broken("the message did not come back".to_owned())),
            }
            // The end is seen as it comes, so that the next message does not meet it.
            match tokio::time::timeout(self.pause, socket.next()).await {
                Err(_) => {}
                Ok(Some(Ok(Message::Close(close)))) => return self.ended(&asked, false, Ok(close)),
                Ok(Some(Ok(_))) => {
                    return self.failed(asked, What::Wrong("a message came twice".to_owned()));
                }
                Ok(end) => {
                    let error = end.and_then(Result::err).unwrap_or(Error::ConnectionClosed);
                    return self.ended(&asked, false, Err(error));
                }
            }
        }
    }

    fn ended(&self, asked: &Asked, with_message: bool, how: Result<Option<CloseFrame>, Error>) {
        let age = asked.connected.map(|connected| connected.elapsed());
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
        match how {
            Ok(Some(CloseFrame { code: CloseCode::Restart, .. })) => sockets.told += 1,
            Err(Error::Io(_)) => sockets.reset += 1,
            Ok(_) | Err(_) => {}
        }
        sockets.youngest = [sockets.youngest, age].into_iter().flatten().min();
    }
}
