//! Benchmarks against peers and limits that are measured in the same run: `./dev bench [NAME…]`.
//!
//! Every figure is a median of interleaved rounds, so that both sides see the same machine. The table that is printed
//! is the one in `docs/PERFORMANCE.md`. Exit code 1: a target was missed.
// A benchmark that cannot be carried out ends with a sentence, as a test does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

#[path = "../tests/support/git.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod git;
#[path = "../tests/support/git_server.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod git_server;
#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod support;

mod canary;
mod engine_calls;
mod figure;
mod footprint;
mod machine;
mod proxy;
mod rollout;
mod rounds;
mod shop;
mod source;
mod swarm;
mod unchanged;
mod webhooks;

use figure::Figure;
use support::engine::{self, Engine};

/// What can be asked for by name.
const BENCHMARKS: [(&str, &str); 8] = [
    ("rollout", "replacing five instances, against the engine's bare calls and against a Swarm service"),
    ("unchanged", "a push that changes nothing of 5,000 files"),
    ("fetch", "one new commit into a kept mirror, against git fetch"),
    ("context", "5,000 files as a tar, against git archive"),
    ("webhooks", "signed pushes put on disk, against webhook(1), which records nothing"),
    ("proxy", "requests through the proxy, against nginx, HAProxy and Caddy; large tables"),
    ("footprint", "memory of agent and proxy at rest, size of the binary"),
    ("canary", "the judge of canaries, simulated: false alarms, misses, time to detection"),
];

async fn run(name: &str, engine: &Engine) -> Vec<Figure> {
    match name {
        "canary" => canary::run(),
        "rollout" => rollout::run(engine).await,
        "unchanged" => unchanged::run(engine).await,
        "fetch" => source::fetch().await,
        "context" => source::context().await,
        "webhooks" => webhooks::run(engine).await,
        "proxy" => proxy::run().await,
        _ => footprint::run(engine).await,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    proxy::bare::if_asked().await;
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Some(unknown) = asked.iter().find(|name| !BENCHMARKS.iter().any(|(known, _)| known == name)) {
        eprintln!("there is no benchmark {unknown:?}; there are:");
        BENCHMARKS.iter().for_each(|(name, what)| eprintln!("  {name:<10} {what}"));
        return ExitCode::from(2);
    }
    // Computed alone, on whatever machine.
    if asked == ["canary"] {
        return conclude(&canary::run());
    }
    let Some(engine) = engine::or_skip("benchmarks").await else { return ExitCode::SUCCESS };
    println!("{}", machine::describe(&engine).await);
    let mut figures = Vec::new();
    for (name, what) in BENCHMARKS.iter().filter(|(name, _)| asked.is_empty() || asked.iter().any(|a| a == name)) {
        eprintln!("{name}: {what}");
        figures.extend(run(name, &engine).await);
    }
    conclude(&figures)
}

/// Prints the table; whether every target was met.
fn conclude(figures: &[Figure]) -> ExitCode {
    println!("\n{}", figure::table(figures));
    match figures.iter().filter(|figure| figure.is_met() == Some(false)).count() {
        0 => ExitCode::SUCCESS,
        missed => {
            println!("\n{missed} of the targets missed");
            ExitCode::FAILURE
        }
    }
}
