//! Answers so large that they do not come through the proxy's memory.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::support::*;
use crate::config::ProxyLimits;
use crate::model::InstanceId;

/// No two places in it look alike.
fn page(length: usize) -> Vec<u8> {
    (0..length as u64 / 8 + 1).flat_map(|number| (number * 2_654_435_761).to_be_bytes()).take(length).collect()
}

/// An instance that answers each request on each connection with that, in pieces of so many bytes with rests between.
async fn plays(listener: TcpListener, page: Vec<u8>, piece: usize, rest: Duration) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Wire { stream, rest: Vec::new() };
        let page = page.clone();
        tokio::spawn(async move {
            while wire.until(b"\r\n\r\n").await.is_some() {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", page.len());
                for part in [head.as_bytes(), &page].concat().chunks(piece) {
                    if wire.stream.write_all(part).await.is_err() {
                        return;
                    }
                    if !rest.is_zero() {
                        sleep(rest).await;
                    }
                }
            }
        });
    }
}

/// Asks, and reads it in pieces of so many bytes.
async fn ask(client: &mut Wire, length: usize, piece: usize) -> Vec<u8> {
    client.send("GET /page HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let head = client.until(b"\r\n\r\n").await.unwrap();
    assert!(head.to_lowercase().contains(&format!("content-length: {length}\r\n")), "{head}");
    let mut body = std::mem::take(&mut client.rest);
    let mut buffer = vec![0; piece];
    while body.len() < length {
        let wanted = piece.min(length - body.len());
        let read = client.stream.read(&mut buffer[..wanted]).await.unwrap();
        assert_ne!(read, 0, "it broke off after {} of {length}", body.len());
        body.extend_from_slice(&buffer[..read]);
        if piece < 1000 {
            tokio::task::yield_now().await;
        }
    }
    body
}

/// A proxy that lets go after this time of clients that take nothing, and an instance for the test to play.
async fn with_send_timeout(limit: Duration) -> (TestProxy, TcpListener) {
    let limits = ProxyLimits { send_timeout: limit, ..ProxyLimits::default() };
    let proxy = TestProxy::with_limits(limits).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut route = route("shop", "shop.test", &[]);
    let address = listener.local_addr().unwrap();
    let instance = InstanceId::parse("d1-web-1").unwrap();
    route.members.push(crate::proxy::table::Member { instance, address, weight: 1, group: 0 });
    proxy.client.apply(vec![route]).await.unwrap();
    (proxy, listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_come_whole_however_they_come_and_are_read() {
    let short = Duration::from_millis(1);
    for (length, pieces, rest, reads) in [
        (40 << 10, usize::MAX, Duration::ZERO, 64 << 10),
        (64 << 10, usize::MAX, Duration::ZERO, 64 << 10),
        (100_001, 7_001, short, 64 << 10),
        (3_000_017, usize::MAX, Duration::ZERO, 999),
        (8 << 20, usize::MAX, Duration::ZERO, 1 << 20),
    ] {
        let (proxy, listener) = played_instance().await;
        let page = page(length);
        let playing = tokio::spawn(plays(listener, page.clone(), pieces, rest));
        let mut client = proxy.wire().await;
        for _ in 0..3 {
            let body = timeout(Duration::from_secs(20), ask(&mut client, length, reads)).await.unwrap();
            assert!(body == page, "{length} bytes in pieces of {pieces}");
        }
        eventually("the last one is counted too", || async { proxy.counts().await.served == 3 }).await;
        assert_eq!(proxy.counts().await.failed, 0);
        playing.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_breaks_off_ends_its_connection_after_what_there_was() {
    let (proxy, listener) = played_instance().await;
    let page = page(200_000);
    let mut client = proxy.wire().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let mut instance = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
    instance.until(b"\r\n\r\n").await.unwrap();
    instance.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
    instance.stream.write_all(&page).await.unwrap();
    instance.stream.shutdown().await.unwrap();
    client.until(b"\r\n\r\n").await.unwrap();
    while client.more().await {}
    assert!(client.rest == page, "{} bytes", client.rest.len());
    let counts = proxy.counts().await;
    assert_eq!((counts.served, counts.failed), (0, 1));
}

/// What is there of it is not held back for the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_come_goes_out_at_once() {
    let (proxy, listener) = played_instance().await;
    let mut client = proxy.wire().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let mut instance = Wire { stream: listener.accept().await.unwrap().0, rest: Vec::new() };
    instance.until(b"\r\n\r\n").await.unwrap();
    instance.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await;
    for part in ["first", "second", "third"] {
        instance.send(part).await;
        timeout(Duration::from_millis(150), client.until(part.as_bytes())).await.expect(part).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_is_let_go_and_who_leaves_too() {
    let (proxy, listener) = with_send_timeout(Duration::from_millis(300)).await;
    let playing = tokio::spawn(plays(listener, page(64 << 20), usize::MAX, Duration::ZERO));
    for leaves in [false, true] {
        let mut client = proxy.wire().await;
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        client.until(b"\r\n\r\n").await.unwrap();
        let client = (!leaves).then_some(client);
        eventually("its request is over", || async { proxy.client.counts().await.unwrap().in_flight.is_empty() }).await;
        drop(client);
    }
    assert_eq!(proxy.counts().await.client_aborted, 2);
    playing.abort();
}

/// Its instance always has more to say, so the answer itself is never waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instances_time_is_over_for_clients_that_take_their_answers_slowly_as_well() {
    let length = 64 << 20;
    let get = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    // Its body makes hyper the one who writes the answer.
    let post = "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\n\r\n";
    for (request, takes_nothing) in [(get, true), (get, false), (post, true), (post, false)] {
        let (proxy, listener) = played_instance().await;
        let playing = tokio::spawn(plays(listener, page(length), usize::MAX, Duration::ZERO));
        let mut client = proxy.wire().await;
        client.send(request).await;
        client.until(b"\r\n\r\n").await.unwrap();
        let (over, is_over) = tokio::sync::oneshot::channel::<()>();
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 20 << 10];
            let mut total = client.rest.len();
            if takes_nothing {
                is_over.await.unwrap();
            }
            while let Ok(read @ 1..) = client.stream.read(&mut buffer).await {
                total += read;
                if !takes_nothing {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            total
        });
        proxy.client.apply(Vec::new()).await.unwrap();
        let drained = proxy.client.drain(&InstanceId::parse("d1-web-1").unwrap(), limits(200, 200)).await;
        assert_eq!((drained.confirmed, drained.cut_requests), (true, 1), "{drained:?}");
        assert!(drained.took < Duration::from_secs(1), "{request} takes nothing: {takes_nothing}, {drained:?}");
        assert_eq!((proxy.counts().await.served, proxy.counts().await.failed), (0, 1));
        let _ = over.send(());
        let total = timeout(Duration::from_secs(20), reading).await.expect("its connection is closed").unwrap();
        assert!(total < length, "{total}");
        playing.abort();
    }
}

/// Whatever its size, and so wherever on the way the rest of it was when its client was given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_counts_as_served_has_reached_the_client_whole() {
    let (mut whole, mut broken) = (0, 0);
    for length in (64 << 10..=1024 << 10).step_by(96 << 10) {
        let (proxy, listener) = with_send_timeout(Duration::from_millis(200)).await;
        let playing = tokio::spawn(plays(listener, page(length), usize::MAX, Duration::ZERO));
        let mut client = proxy.wire().await;
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        eventually("it is served or given up", || async {
            let counts = proxy.counts().await;
            counts.served + counts.client_aborted == 1
        })
        .await;
        let served = proxy.counts().await.served == 1;
        client.until(b"\r\n\r\n").await.unwrap();
        while client.rest.len() < length && client.more().await {}
        assert_eq!(client.rest.len() == length, served, "{} of {length} came", client.rest.len());
        if served {
            whole += 1
        } else {
            broken += 1
        }
        playing.abort();
    }
    assert!(whole > 0 && broken > 0, "{whole} whole, {broken} broken off");
}

/// Far slower than a send buffer of its full size empties to a third.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_a_little_all_the_time_is_waited_for() {
    let (proxy, listener) = with_send_timeout(Duration::from_secs(1)).await;
    let playing = tokio::spawn(plays(listener, page(64 << 20), usize::MAX, Duration::ZERO));
    let mut slow = proxy.wire().await;
    slow.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    slow.until(b"\r\n\r\n").await.unwrap();
    // What it takes at first is what the buffers on the way hold.
    let mut buffer = vec![0; 20 << 10];
    for number in 0..120 {
        sleep(Duration::from_millis(50)).await;
        slow.stream.read_exact(&mut buffer).await.unwrap_or_else(|why| panic!("piece {number}: {why}"));
    }
    assert_eq!(proxy.client.counts().await.unwrap().in_flight.len(), 1, "it is still served");
    playing.abort();
}
