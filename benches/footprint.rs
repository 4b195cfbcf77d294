//! What longshore takes up when nothing happens.

use std::path::Path;
use std::time::Duration;

use crate::figure::{Figure, Target};
use crate::machine::{file_size, memory, processes, proportional_memory};
use crate::shop::Shop;
use crate::support::engine::Engine;

pub async fn run(engine: &Engine) -> Vec<Figure> {
    let shop = Shop::live(engine, 5).await;
    // Long enough for the health checks of all instances to have come round a few times.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let all = processes(&shop.agent);
    assert_eq!(all.len(), 2, "the agent and its proxy");
    let resident: f64 = all.iter().map(|&pid| memory(pid, "VmRSS")).sum();
    let proportional: f64 = all.iter().map(|&pid| proportional_memory(pid)).sum();
    shop.agent.finish().await;
    let binary = file_size(Path::new(env!("CARGO_BIN_EXE_longshore")));
    vec![
        Figure::new("agent and proxy at rest, 5 instances live", resident, "MiB").target(Target::AtMost(30.0)),
        Figure::new("the same, what they share counted once (PSS)", proportional, "MiB"),
        Figure::new("the binary", binary, "MiB").target(Target::AtMost(25.0)),
    ]
}
