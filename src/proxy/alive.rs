//! At the start: which members of the table from the file are alive. Those that take no connection are passed over
//! until they do, without waiting for the agent.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::instance::Instance;
use super::routing::Routing;

/// Who has not taken a connection by then is passed over: the start waits no longer.
const FIRST_LIMIT: Duration = Duration::from_millis(250);
/// Later attempts have time, and pauses between them.
const LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);

/// Asks every member at once; those that do not answer are passed over from now on.
pub(super) async fn pass_over_dead(routing: &Routing) -> Vec<Arc<Instance>> {
    let asked = join_all(routing.instances().into_iter().map(|instance| async {
        let alive = takes_connections(&instance, FIRST_LIMIT).await;
        (!alive).then_some(instance)
    }));
    let dead: Vec<Arc<Instance>> = asked.await.into_iter().flatten().collect();
    for instance in &dead {
        tracing::warn!(instance = %instance.id, address = %instance.pool.address(), "takes no connection; passed over until it does");
        instance.pass_over();
    }
    dead
}

/// Takes them back as they answer; those that leave the table are forgotten.
pub(super) async fn take_back(dead: Vec<Arc<Instance>>) {
    let each = dead.into_iter().map(|instance| async move {
        while instance.is_routed() {
            if takes_connections(&instance, LIMIT).await {
                tracing::info!(instance = %instance.id, "takes connections again");
                instance.take_back();
                return;
            }
            sleep(PAUSE).await;
        }
    });
    join_all(each).await;
}

async fn takes_connections(instance: &Instance, within: Duration) -> bool {
    matches!(timeout(within, TcpStream::connect(instance.pool.address())).await, Ok(Ok(_)))
}
