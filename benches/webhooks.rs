//! Signed pushes, every one on disk before its answer, against Debian's `webhook`, which verifies the same signatures,
//! runs nothing and records nothing.
//!
//! The agent is busy meanwhile: one deployment sits in its release command, so that the queue is what works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;

use crate::figure::{Figure, Target};
use crate::machine::{forget_peak, memory, pin, processor_time, sync_time};
use crate::rounds::{ROUNDS, median, ms, percentile, show};
use crate::shop::{LIMIT, SECRET, Shop};
use crate::support::engine::Engine;
use crate::support::github::{Delivery, Push, sign};
use crate::support::http::{self, Connection};
use crate::support::ports::free_port;
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

const CONNECTIONS: usize = 64;
/// Of one burst.
const BURST: usize = 1000;
/// Different pushes that are sent in turn.
const POOL: usize = 2000;
/// The processor that either receiver has to itself, and that of wrk: what wrk costs is in no figure.
const RECEIVER: usize = 0;
const CLIENT: usize = 1;
/// Seconds of one run of wrk.
const SECONDS: u32 = 3;

pub async fn run(engine: &Engine) -> Vec<Figure> {
    let mut figures = throughput(engine).await;
    figures.extend(burst(engine).await);
    figures
}

/// An agent whose one deployment stays in its release command.
async fn busy_shop(engine: &Engine) -> (Shop, u64) {
    let behaviour = Behaviour::version("v1").migrate(0, 3_600_000, "working");
    let (repo, _) = Repo::with_site(&behaviour);
    let keys = "instances = 1\n[apps.shop.release]\ncommand = [\"migrate\"]\ntimeout = \"30m\"";
    let shop = Shop::start(engine, repo, keys).await;
    let id = shop.order().await;
    until_busy(&shop, id).await;
    (shop, id)
}

async fn until_busy(shop: &Shop, id: u64) {
    eventually("a deployment sits in its release command", LIMIT, async || {
        let deployment = shop.agent.get(&format!("/api/v1/deployments/{id}")).await;
        if deployment["status"] == "releasing" { Ok(()) } else { Err(format!("{deployment:#}")) }
    })
    .await;
}

/// wrk with 64 connections, each side three seconds at a time.
async fn throughput(engine: &Engine) -> Vec<Figure> {
    let (shop, _) = busy_shop(engine).await;
    let directory = tempfile::tempdir().expect("a directory");
    // Each push builds on the one before, as on a branch that many work on; whoever waits gives way to the newer one.
    let onto_the_last = |n: usize| Push::branch("main", &format!("{n:040x}"), &format!("{:040x}", n + 1));
    let pool = directory.path().join("deliveries");
    let size = write_pool(&pool, (0..POOL).map(|n| delivery(&onto_the_last(n + 1))));
    let script = directory.path().join("webhooks.lua");
    fs::write(&script, include_str!("webhooks.lua")).expect("a file");
    let peer = Peer::start(directory.path()).await;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut syncs = Vec::new();
    let mut sent = 0;
    let pid = shop.agent.pid().expect("the agent runs");
    pin(pid, RECEIVER);
    pin(peer.child.id(), RECEIVER);
    for round in 0..ROUNDS {
        syncs.push(sync_time(shop.agent.scratch(), 32 << 10));
        // Those that wrk did not wait for have used ids too.
        let second = sent + round * CONNECTIONS;
        let run = wrk(&script, &pool, (pid, shop.agent.listen.port()), second).await;
        sent += run.requests;
        ours.push(run);
        theirs.push(wrk(&script, &pool, (peer.child.id(), peer.port), second).await);
    }
    let stored = stored(shop).await;
    assert!(stored >= sent, "{sent} were acknowledged, {stored} are on disk");

    let values = |runs: &[Run], value: fn(&Run) -> f64| runs.iter().map(value).collect::<Vec<_>>();
    let (our_rates, their_rates) = (values(&ours, Run::rate), values(&theirs, Run::rate));
    show("longshore, requests/s", &our_rates);
    show("longshore, p50 ms", &values(&ours, |run| run.p50));
    show("longshore, p99 ms", &values(&ours, |run| run.p99));
    let (our_time, their_time) = (values(&ours, |run| run.processor), values(&theirs, |run| run.processor));
    show("longshore, µs of processor time to a push", &our_time);
    show("an append and its sync alone, ms", &syncs);
    show("webhook, requests/s", &their_rates);
    show("webhook, µs of processor time to a push", &their_time);
    show("webhook, p99 ms", &values(&theirs, |run| run.p99));
    let p99 = median(&values(&ours, |run| run.p99));
    let size = size as f64 / 1e3;
    let what = format!("signed pushes of {size:.1} KB, {CONNECTIONS} connections, each on disk");
    vec![
        Figure::new(what, median(&our_rates), "/s")
            .against("`webhook`, nothing recorded", median(&their_rates))
            .target(Target::RatioAtLeast(4.0)),
        Figure::new("the same, processor time to a push", median(&our_time), "µs")
            .against("`webhook`", median(&their_time))
            .target(Target::RatioAtMost(0.25)),
        Figure::new("the same, 99th percentile", p99, "ms")
            .against("`webhook`", median(&values(&theirs, |run| run.p99))),
        Figure::new("for scale: an append of 32 KiB and its sync", median(&syncs), "ms"),
    ]
}

/// A thousand pushes of one branch at once, in an order of the network's choice.
async fn burst(engine: &Engine) -> Vec<Figure> {
    let (shop, mut busy) = busy_shop(engine).await;
    let pid = shop.agent.pid().expect("the agent runs");
    let (mut took, mut p99, mut grown) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ran, mut worked_off) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let deliveries = chain(&shop.repo, round);
        let before = memory(pid, "VmRSS");
        forget_peak(pid);
        let began = Instant::now();
        let (latencies, accepted) = send_all(&shop, deliveries).await;
        took.push(ms(began.elapsed()));
        grown.push(memory(pid, "VmHWM") - before);
        p99.push(percentile(&latencies, 0.99));
        assert_eq!(accepted.ids.len(), BURST, "every push has a deployment of its own");

        // The one that was in the way ends; the newest of the thousand is what comes next, and stays in turn.
        let cancelled = Instant::now();
        shop.agent.api("POST", &format!("/api/v1/deployments/{busy}/cancel"), None).await.expect(202);
        let next = eventually("the newest of the burst is under way", LIMIT, async || {
            let deployment = shop.agent.get(&format!("/api/v1/deployments/{}", accepted.newest)).await;
            if deployment["status"] == "releasing" { Ok(()) } else { Err(format!("{deployment:#}")) }
        });
        next.await;
        worked_off.push(ms(cancelled.elapsed()));
        busy = accepted.newest;
        ran.push(started_among(&shop, &accepted.ids).await);
    }
    shop.agent.api("POST", &format!("/api/v1/deployments/{busy}/cancel"), None).await.expect(202);
    shop.agent.deployment_ended(busy, LIMIT).await;
    let expected = 1 + ROUNDS * BURST;
    let stored = stored(shop).await;
    assert_eq!(stored, expected, "none is lost");

    show("burst, ms", &took);
    show("burst, p99 ms", &p99);
    show("burst, MiB more", &grown);
    show("burst, ms from the end of the one before to the release command of the newest", &worked_off);
    vec![
        Figure::new("1,000 pushes at once, all accepted and on disk", median(&took), "ms")
            .target(Target::AtMost(500.0)),
        Figure::new("the same, 99th percentile", median(&p99), "ms").target(Target::AtMost(50.0)),
        Figure::new("the same, memory at its peak over before", median(&grown), "MiB").target(Target::AtMost(16.0)),
        Figure::new("the same, deployments that ran of it", median(&ran), "").target(Target::AtMost(3.0)),
    ]
}

/// A thousand commits on top of each other, pushed to the origin, and their deliveries in a shuffled order.
fn chain(repo: &Repo, round: usize) -> Vec<Delivery> {
    let mut commits = vec![repo.head()];
    let tree = repo.git(&["rev-parse", "HEAD^{tree}"]);
    for n in 0..BURST {
        let parent = commits.last().expect("a parent").clone();
        let message = format!("Commit {n} of burst {round}");
        commits.push(repo.git(&["commit-tree", &tree, "-p", &parent, "-m", &message]));
    }
    repo.reset(commits.last().expect("a commit"));
    repo.push("main");
    let mut deliveries: Vec<_> =
        commits.windows(2).map(|pair| delivery(&Push::branch("main", &pair[0], &pair[1]))).collect();
    // Delivery ids are random.
    deliveries.sort_by(|a, b| a.id.cmp(&b.id));
    deliveries
}

/// A delivery of the size that GitHub's have: its repository comes with an address for every kind of thing in it.
fn delivery(push: &Push) -> Delivery {
    let mut payload = push.payload();
    for n in 0..65 {
        let address = format!("https://api.github.com/repos/example/shop/some-kind-of-thing-{n}{{/number}}");
        payload["repository"][format!("kind_{n}_url")] = address.into();
    }
    Delivery::new("push", &payload)
}

/// The deployments that a burst became.
struct Accepted {
    ids: Vec<u64>,
    /// Of the branch's tip.
    newest: u64,
}

/// Sends them over 64 connections; the latency of each in milliseconds, and the deployments they became.
async fn send_all(shop: &Shop, deliveries: Vec<Delivery>) -> (Vec<f64>, Accepted) {
    let address = shop.agent.listen;
    let tip = format!("\"after\":\"{}\"", shop.repo.head());
    let mut senders = JoinSet::new();
    let per_connection = deliveries.len().div_ceil(CONNECTIONS);
    let parts: Vec<Vec<Delivery>> = deliveries.chunks(per_connection).map(<[_]>::to_vec).collect();
    for part in parts {
        let ready: Vec<_> = part
            .into_iter()
            .map(|delivery| {
                let newest = delivery.body.windows(tip.len()).any(|part| part == tip.as_bytes());
                let headers = delivery.headers(SECRET);
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let body = Bytes::from(delivery.body.clone());
                (newest, http::request("POST", "localhost", "/hooks/shop", &headers, body))
            })
            .collect();
        senders.spawn(async move {
            let mut connection = Connection::tcp(address).await.expect("a connection");
            let mut answers = Vec::new();
            for (newest, request) in ready {
                let began = Instant::now();
                let answer = connection.send(request).await.expect("an answer").expect(202);
                let latency = ms(began.elapsed());
                answers.push((latency, newest, answer.json()["deployment"].as_u64().expect("a number")));
            }
            answers
        });
    }
    let answers: Vec<(f64, bool, u64)> = senders.join_all().await.into_iter().flatten().collect();
    let latencies = answers.iter().map(|(latency, ..)| *latency).collect();
    let newest = answers.iter().find(|(_, newest, _)| *newest).expect("the tip was delivered").2;
    let mut ids: Vec<u64> = answers.iter().map(|(.., id)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    (latencies, Accepted { ids, newest })
}

/// How many of them ever left the queue.
async fn started_among(shop: &Shop, accepted: &[u64]) -> f64 {
    let mut started = 0;
    for id in accepted {
        let deployment = shop.agent.get(&format!("/api/v1/deployments/{id}")).await;
        started += usize::from(!deployment["started_at"].is_null());
    }
    started as f64
}

/// Ends the agent the hard way and counts what its journal holds.
async fn stored(mut shop: Shop) -> usize {
    shop.agent.kill().await;
    let journal = rusqlite::Connection::open(shop.agent.data_dir().join("journal.db")).expect("the journal");
    let count = journal.query_row("SELECT count(*) FROM deployments", [], |row| row.get::<_, u32>(0));
    count.expect("a count") as usize
}

/// Writes signed bodies for the script; the size of one.
fn write_pool(path: &Path, deliveries: impl Iterator<Item = Delivery>) -> usize {
    let mut text = Vec::new();
    let mut size = 0;
    for delivery in deliveries {
        size = delivery.body.len();
        text.extend_from_slice(format!("{} {size}\n", sign(SECRET, &delivery.body)).as_bytes());
        text.extend_from_slice(&delivery.body);
    }
    fs::write(path, text).expect("a file");
    size
}

/// What wrk saw.
struct Run {
    requests: usize,
    seconds: f64,
    p50: f64,
    p99: f64,
    /// Microseconds of processor time to a request.
    processor: f64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

async fn wrk(script: &Path, pool: &Path, (pid, port): (u32, u16), second: usize) -> Run {
    let before = processor_time(pid);
    let mut command = tokio::process::Command::new("taskset");
    command.args(["--cpu-list", &CLIENT.to_string(), "wrk"]);
    command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{SECONDS}s"), "-s"]).arg(script);
    command.arg(format!("http://127.0.0.1:{port}/hooks/shop")).arg("--").arg(pool).arg(second.to_string());
    let output = command.output().await.expect("wrk (./dev setup installs it)");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("done ")).unwrap_or_else(|| panic!("wrk: {text}"));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [requests, micros, errors, p50, p99] = numbers[..] else { panic!("wrk: {line}") };
    assert_eq!(errors, 0.0, "some requests failed: {text}");
    let processor = (processor_time(pid) - before) / requests;
    Run { requests: requests as usize, seconds: micros / 1e6, p50: p50 / 1e3, p99: p99 / 1e3, processor }
}

/// Debian's `webhook`, which verifies the signature, parses the body, and finds that the branch is not its own.
struct Peer {
    child: Child,
    port: u16,
}

impl Peer {
    async fn start(directory: &Path) -> Self {
        let hooks: PathBuf = directory.join("hooks.json");
        let signature = json!({"match": {"type": "payload-hmac-sha256", "secret": SECRET,
            "parameter": {"source": "header", "name": "X-Hub-Signature-256"}}});
        let branch = json!({"match": {"type": "value", "value": "refs/heads/another",
            "parameter": {"source": "payload", "name": "ref"}}});
        let hook = json!([{"id": "shop", "execute-command": "/bin/true",
            "trigger-rule": {"and": [signature, branch]}}]);
        fs::write(&hooks, hook.to_string()).expect("a file");
        let port = free_port();
        let mut command = Command::new("webhook");
        command.arg("-hooks").arg(&hooks).args(["-ip", "127.0.0.1", "-port", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let peer = Self { child: command.spawn().expect("webhook (./dev setup installs it)"), port };
        eventually("webhook listens", Duration::from_secs(10), async || {
            Connection::tcp(([127, 0, 0, 1], port).into()).await.map(drop)
        })
        .await;
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
