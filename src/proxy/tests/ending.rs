//! The end of a proxy that is told to go.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::support::*;
use crate::proxy::control::SOCKET_NAME;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_keeps_it_from_ending() {
    let (proxy, listener) = played_instance().await;
    let request = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    let mut waits = proxy.wire().await;
    waits.send(request).await;
    let (mut hangs, _) = listener.accept().await.unwrap();
    hangs.read_u8().await.unwrap();
    let mut reads_nothing = proxy.wire().await;
    reads_nothing.send(request).await;
    let (mut sends, _) = listener.accept().await.unwrap();
    sends.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
    let page = vec![b'x'; 1 << 20];
    while timeout(Duration::from_millis(200), sends.write_all(&page)).await.is_ok() {}

    let mut agent = UnixStream::connect(proxy.dir.path().join(SOCKET_NAME)).await.unwrap();
    agent.write_all(b"{\"shutdown\":{\"grace_ms\":100}}\n").await.unwrap();
    assert_eq!(waits.reply().await.status, 504, "its time is over");
    timeout(Duration::from_secs(15), proxy.task).await.expect("it ends").unwrap().unwrap();
    drop((hangs, sends, reads_nothing));
}
