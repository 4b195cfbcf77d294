//! At the start: which members of the table from the file are alive. Those that take no connection are passed over
//! until they do, without waiting for the agent.
//!
//! Of very many not all are asked before the first client is served: a request that meets a dead one is given to
//! another instance anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::instance::Instance;
use super::routing::Routing;

/// Who has not taken a connection by then is passed over: the start waits no longer.
const FIRST_LIMIT: Duration = Duration::from_millis(250);
/// No more are asked after this time. It is enough for two or three hundred that are alive.
const ASKING: Duration = Duration::from_millis(8);
/// Asked at a time.
const AT_ONCE: usize = 128;
/// Later attempts have time, and pauses between them.
const LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);

/// What the start leaves to be done.
#[derive(Debug, Default)]
pub(super) struct Doubtful {
    dead: Vec<Arc<Instance>>,
    unasked: Vec<Arc<Instance>>,
}

/// Asks the members; those that do not answer are passed over from now on.
pub(super) async fn pass_over_dead(routing: &Routing) -> Doubtful {
    let began = Instant::now();
    let mut doubtful = Doubtful { dead: Vec::new(), unasked: routing.instances() };
    while !doubtful.unasked.is_empty() && began.elapsed() < ASKING {
        let rest = doubtful.unasked.split_off(doubtful.unasked.len().min(AT_ONCE));
        let asked = std::mem::replace(&mut doubtful.unasked, rest);
        doubtful.dead.extend(join_all(asked.into_iter().map(passed_over_if_dead)).await.into_iter().flatten());
    }
    doubtful
}

/// Asks the others, and takes the dead back as they answer; those that leave the table are forgotten.
pub(super) async fn settle(doubtful: Doubtful) {
    let others = async {
        let asked = iter(doubtful.unasked.into_iter().map(passed_over_if_dead)).buffer_unordered(AT_ONCE);
        let dead: Vec<_> = asked.filter_map(std::future::ready).collect().await;
        join_all(dead.into_iter().map(take_back)).await
    };
    tokio::join!(join_all(doubtful.dead.into_iter().map(take_back)), others);
}

async fn passed_over_if_dead(instance: Arc<Instance>) -> Option<Arc<Instance>> {
    if takes_connections(&instance, FIRST_LIMIT).await {
        return None;
    }
    tracing::warn!(instance = %instance.id, address = %instance.pool.address(), "takes no connection; passed over until it does");
    instance.pass_over();
    Some(instance)
}

async fn take_back(instance: Arc<Instance>) {
    while instance.is_routed() {
        if takes_connections(&instance, LIMIT).await {
            tracing::info!(instance = %instance.id, "takes connections again");
            instance.take_back();
            return;
        }
        sleep(PAUSE).await;
    }
}

async fn takes_connections(instance: &Instance, within: Duration) -> bool {
    matches!(timeout(within, TcpStream::connect(instance.pool.address())).await, Ok(Ok(_)))
}
