//! The ways down: told to end, or replaced by a process that serves in its place.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::control::Report;
use super::orders::Successor;
use super::server::Proxy;
use super::stagger::Stagger;
use super::table::DrainLimits;
use super::tunnel::{LINGER, QUIET_LIMIT};

/// At a shutdown, idle clients get this long to send one more request and be told to close; closing at once would
/// meet requests on their way.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// How often the open streams are counted anew while they are being closed.
const RECOUNT: Duration = Duration::from_secs(1);
/// What was cut notices within this time; a stream may wait for the end of a message.
const CUT_SETTLES: Duration = QUIET_LIMIT.saturating_add(LINGER);
/// Nothing to accept for so long.
const NOBODY_WAITS: Duration = Duration::from_millis(10);
/// The last word to the successor.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Told to go: no new connections (the listener is gone), answers say `Connection: close`, then idle clients are
/// closed, then everything.
pub(super) async fn wind_down(proxy: &Proxy) {
    let grace = proxy.grace();
    let now = Instant::now();
    tracing::info!(connections = proxy.tasks.len(), ?grace, "proxy ends");
    proxy.close();
    let _ = timeout_at(now + IDLE_GRACE.min(grace), proxy.tasks.wait()).await;
    proxy.close_idle.set();
    if timeout_at(now + grace, proxy.tasks.wait()).await.is_err() {
        tracing::warn!(connections = proxy.tasks.len(), "closing what did not end in time");
        for instance in proxy.routing.instances() {
            instance.cut_requests();
            instance.cut_streams(usize::MAX);
        }
        let _ = timeout(CUT_SETTLES, proxy.tasks.wait()).await;
    }
    proxy.abort.cancel();
    proxy.tasks.wait().await;
}

/// Replaced: what is under way goes on here, by the tables and drains that the successor passes on, until it has ended
/// or its limits have come. When the successor is lost, or this process is told to go, it ends like any other.
pub(super) async fn retire(proxy: &Arc<Proxy>, successor: Successor, shutdown: &CancellationToken) {
    let Successor { mut conversation, limits, frozen, .. } = successor;
    tracing::info!(connections = proxy.tasks.len(), "handed over; finishing what is under way");
    proxy.close();
    drop(frozen);
    let enough = CancellationToken::new();
    let finished = {
        let talk = conversation.talk(&enough);
        tokio::pin!(talk);
        tokio::select! {
            () = finish(proxy, limits) => {
                enough.cancel();
                timeout(LAST_WORD, &mut talk).await.is_ok()
            }
            _ = &mut talk => false,
            () = shutdown.cancelled() => false,
            () = proxy.stop.cancelled() => false,
        }
    };
    if finished {
        let (apps, in_flight) = proxy.count().await;
        let instances = proxy.routing.instance_counts();
        // The successor answers for these counts from now on; without them it does by the ones before.
        let counts = Report::Counts { apps, in_flight, instances, queues: Vec::new() };
        let _ = conversation.say(&counts).await;
        tracing::info!("everything has ended here");
    } else {
        wind_down(proxy).await;
    }
}

/// Resolves when nothing is under way any more, here and in the process before this one.
async fn finish(proxy: &Proxy, limits: DrainLimits) {
    let (started, limits) = (Instant::now(), limits.bounded());
    // A client that idles is told with its next answer, or closed as it always would be: never as it sends a request.
    let requests = started + limits.requests.max(proxy.fronts.current().settings.limits.header_timeout);
    let streams = started + limits.streams;
    let cut_requests = async {
        sleep_until(requests).await;
        proxy.close_idle.set();
        proxy.routing.instances().iter().map(|instance| instance.cut_requests()).sum::<u64>()
    };
    let cuts = async {
        let (cut_requests, cut_streams) = tokio::join!(cut_requests, cut_streams(proxy, started, streams));
        tracing::warn!(cut_requests, cut_streams, "closing what did not end in time");
        let _ = timeout(CUT_SETTLES, proxy.tasks.wait()).await;
        proxy.abort.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = proxy.tasks.wait() => {}
        () = cuts => {}
    }
    if let Some(before) = proxy.predecessor() {
        before.gone().await;
    }
}

/// Closes streams one after another over the last part of their budget.
async fn cut_streams(proxy: &Proxy, started: Instant, limit: Instant) -> u64 {
    let (mut cut, mut stagger) = (0, Stagger::new(started.into_std()));
    loop {
        let instances = proxy.routing.instances();
        let now = Instant::now();
        if now >= limit {
            return cut + instances.iter().map(|instance| instance.cut_streams(usize::MAX)).sum::<u64>();
        }
        let open = || instances.iter().map(|instance| instance.uncut_streams()).sum();
        let next: Instant = stagger.next(limit.into_std(), open()).into();
        sleep_until(next.min(now + RECOUNT)).await;
        for _ in 0..stagger.take_due(limit.into_std(), open(), Instant::now().into_std()) {
            if let Some(busiest) = instances.iter().max_by_key(|instance| instance.uncut_streams()) {
                cut += busiest.cut_streams(1);
            }
        }
    }
}

/// Connections that wait at a listener which the successor does not have: nobody else would accept them.
pub(super) async fn accept_waiting(listener: &TcpListener) -> Vec<(tokio::net::TcpStream, std::net::SocketAddr)> {
    let mut waiting = Vec::new();
    let accepting = async {
        while let Ok(Ok(accepted)) = timeout(NOBODY_WAITS, listener.accept()).await {
            waiting.push(accepted);
        }
    };
    // Those that come all the while are as well off at the new address.
    let _ = timeout(NOBODY_WAITS * 10, accepting).await;
    waiting
}
