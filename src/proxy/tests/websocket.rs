//! WebSockets at the end of their instance's time, as a client and a server of another make see it.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use super::support::*;
use crate::model::InstanceId;
use crate::proxy::control::SOCKET_NAME;

type Socket = WebSocketStream<TcpStream>;

/// A client and the server behind the proxy, joined.
async fn joined(proxy: &TestProxy, listener: &TcpListener) -> (Socket, Socket) {
    let client = client_async("ws://shop.test/ws", TcpStream::connect(proxy.address).await.unwrap());
    let server = async { accept_async(listener.accept().await.unwrap().0).await.unwrap() };
    let (client, server) = tokio::join!(client, server);
    (client.unwrap().0, server)
}

/// The code that came with the last frame, and that the connection has ended properly after it.
async fn goodbye(socket: &mut Socket) -> Option<CloseCode> {
    let saying = async {
        let code = match socket.next().await {
            Some(Ok(Message::Close(Some(close)))) => Some(close.code),
            other => panic!("{other:?}"),
        };
        assert!(matches!(socket.next().await, None | Some(Err(Error::ConnectionClosed))));
        code
    };
    timeout(Duration::from_secs(10), saying).await.expect("an end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_of_its_time_both_sides_are_told_in_a_frame() {
    let (proxy, listener) = played_instance().await;
    let (mut client, mut server) = joined(&proxy, &listener).await;
    let long = "a".repeat(100_000);
    for text in ["hello", &long] {
        client.send(Message::text(text)).await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap(), Message::text(text));
        server.send(Message::text(text)).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text(text));
    }
    proxy.client.apply(vec![route("shop", "shop.test", &[])]).await.unwrap();
    let instance = InstanceId::parse("d1-web-1").unwrap();
    let drain = proxy.client.drain(&instance, limits(50, 200));
    let (drained, by_client, by_server) = tokio::join!(drain, goodbye(&mut client), goodbye(&mut server));
    assert_eq!((by_client, by_server), (Some(CloseCode::Restart), Some(CloseCode::Away)));
    assert_eq!((drained.cut_streams, drained.confirmed), (1, true), "{drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_told_to_go_says_goodbye_too() {
    let (proxy, listener) = played_instance().await;
    let (mut client, mut server) = joined(&proxy, &listener).await;
    let mut agent = UnixStream::connect(proxy.dir.path().join(SOCKET_NAME)).await.unwrap();
    agent.write_all(b"{\"shutdown\":{\"grace_ms\":100}}\n").await.unwrap();
    let (by_client, by_server) = tokio::join!(goodbye(&mut client), goodbye(&mut server));
    assert_eq!((by_client, by_server), (Some(CloseCode::Restart), Some(CloseCode::Away)));
    proxy.task.await.unwrap().unwrap();
}

/// In the middle of a frame nothing can be said, and after the last frame nothing may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_where_no_frame_may_be() {
    for (what, said) in [("half a frame", &[0x82, 5, b'h', b'e'][..]), ("its own last frame", &[0x88, 2, 0x03, 0xe8])] {
        let (proxy, listener) = played_instance().await;
        let (client, server) = joined(&proxy, &listener).await;
        let (mut client, mut server) = (client.into_inner(), server.into_inner());
        server.write_all(said).await.unwrap();
        let mut got = vec![0; said.len()];
        client.read_exact(&mut got).await.unwrap();
        proxy.client.apply(vec![route("shop", "shop.test", &[])]).await.unwrap();
        proxy.client.drain(&InstanceId::parse("d1-web-1").unwrap(), limits(50, 50)).await;
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "{what}");
        let mut close = Vec::new();
        server.read_to_end(&mut close).await.unwrap();
        assert_eq!((close.len(), close[0]), (8, 0x88), "{what}: the server was told");
    }
}
