//! The proof that deployments drop no request: clients of every kind, through rolling deployments and rollbacks, with the
//! agent killed and the proxy upgraded in the middle of them. Here nothing is excused.
//!
//! By itself it runs for about a minute; `./dev proof` runs all of it (`LONGSHORE_PROOF_DEPLOYMENTS`). It prints its
//! seed: `LONGSHORE_PROOF_SEED=7` has the same order again, though not the same moments.

mod plan;
mod sockets;
mod verdict;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chance::Chance;
use crate::clients::{Kind, Load};
use crate::shop::{HOST, Options, Shop};
use crate::support::agent::rebuilt;
use crate::support::engine;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;
use plan::{Blow, Change, Plan, Turn};
use sockets::Sockets;
use verdict::{Proof, Wrong};

/// A deployment, builds on a loaded machine and a start of the agent included.
const ENDS_WITHIN: Duration = Duration::from_secs(180);
/// The last connections of a proxy that was replaced end after 30 s.
const SETTLES_WITHIN: Duration = Duration::from_secs(90);
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(150);
/// How long open WebSockets outlive a switch, in milliseconds. The closing begins in the last fifth of it.
const STREAMS_MS: u64 = 2000;
/// Where the app's instances note what they saw.
const SEEN: &str = "/seen";

/// The clients, as many of each kind.
const CLIENTS: [(Kind, usize); 9] = [
    (Kind::KeepAlive, 25),
    (Kind::Post, 25),
    (Kind::Fresh, 25),
    (Kind::FreshPost, 25),
    (Kind::Http2, 10),
    (Kind::Http2Post, 10),
    (Kind::WebSocket, 20),
    (Kind::Upload, 10),
    (Kind::Download, 10),
];

/// Drains that are short, but longer than the longest transfer.
fn options(seen: &Path) -> Options {
    Options::web(&format!(
        "instances = 2\nstop_grace = \"2s\"\ndrain = {{ requests = \"15s\", streams = \"{STREAMS_MS}ms\" }}\n\
         health = {{ path = \"/healthz\", interval = \"200ms\", start_deadline = \"30s\" }}\n\
         volumes = [\"{}:/seen\"]\n",
        seen.display()
    ))
    .watch("300ms")
}

fn version(number: usize) -> Behaviour {
    Behaviour::version(&format!("v{number}")).notes_what_it_sees_in(SEEN)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_dropped_by_deployments_rollbacks_kills_and_upgrades() {
    let test = "no_request_is_dropped";
    let Some(engine) = engine::or_skip(test).await else { return };
    let plan = Plan::of_environment();
    println!("{test}: {plan}; LONGSHORE_PROOF_SEED={}", plan.seed);
    // In a directory that the engine may mount, on the same file system as all instances.
    let seen = tempfile::Builder::new().prefix("longshore-seen-").tempdir().expect("a temporary directory");
    let options = options(seen.path());
    let shop = Shop::live(&engine, &version(1), options).await;
    let mut proof = Run::new(shop, Chance::of(plan.seed, "moments"));
    proof.push_and_wait().await;
    let before = proof.sockets_at_rest(None).await;

    let began = Instant::now();
    let load = Load::with_pause(proof.shop.agent.proxy, PAUSE);
    let load = CLIENTS.iter().fold(load, |load, (kind, count)| load.on(HOST, *kind, *count));
    for turn in plan.turns() {
        proof.take(turn, began).await;
        let failed = load.failures();
        if failed > Wrong::ENOUGH {
            proof.wrong.add(format!("stopped early: {failed} requests have failed"));
            break;
        }
    }
    let load = load.stop().await;
    let time = began.elapsed();

    // Of the pools of instances that go nothing is left; then every socket must be.
    proof.push_and_wait().await;
    let after = proof.sockets_at_rest(Some(&before)).await;
    let records = proof.records().await;
    let seen =
        ["posts", "streams"].map(|file| std::fs::read_to_string(seen.path().join(file)).expect("the app saw some"));
    let Run { shop, kills, upgrades, wrong, .. } = proof;
    let proof = Proof { seed: plan.seed, time, began, load, records, kills, upgrades, before, after, seen };
    proof.judge(wrong, &shop.agent.log());
    shop.finish().await;
}

/// What is done to the shop, and what was.
struct Run {
    shop: Shop,
    chance: Chance,
    pushed: usize,
    binaries: tempfile::TempDir,
    kills: usize,
    upgrades: usize,
    /// Proxies that were replaced.
    retired: Vec<i32>,
    wrong: Wrong,
}

impl Run {
    fn new(shop: Shop, chance: Chance) -> Self {
        let binaries = tempfile::Builder::new().prefix("longshore-rebuilt-").tempdir().expect("a temporary directory");
        Self { shop, chance, pushed: 1, binaries, kills: 0, upgrades: 0, retired: Vec::new(), wrong: Wrong::default() }
    }

    /// One deployment, and what befalls the agent in the middle of it.
    async fn take(&mut self, turn: Turn, began: Instant) {
        let (started, since) = (began.elapsed(), Instant::now());
        let id = match turn.change {
            Change::Deploy => self.push().await,
            Change::Rollback => self.roll_back().await,
        };
        if let Some(blow) = turn.blow {
            tokio::time::sleep(self.chance.millis(0, 4000)).await;
            match blow {
                Blow::Kill => self.kill().await,
                Blow::Upgrade => self.upgrade().await,
            }
        }
        let ended = self.shop.agent.deployment_ended(id, ENDS_WITHIN).await;
        let (at, took, status) = (started.as_secs_f64(), since.elapsed().as_secs_f64(), &ended["status"]);
        let requests = &ended["requests"];
        let (served, cut) = (&requests["served"], &requests["cut_streams"]);
        println!("{at:>7.1} s  {turn} {id}: {status} in {took:.1} s, {served} served, {cut} streams cut");
        if ended["status"] != "succeeded" {
            self.wrong.add(format!("deployment {id}: {} {}", ended["status"], ended["reason"]));
            self.wrong.tell(format!("--- the log of deployment {id} ---\n{}", self.shop.log(id).await));
        }
    }

    async fn push(&mut self) -> u64 {
        self.pushed += 1;
        self.shop.push_without_waiting(&version(self.pushed)).await
    }

    async fn push_and_wait(&mut self) {
        let id = self.push().await;
        let ended = self.shop.agent.deployment_ended(id, ENDS_WITHIN).await;
        assert_eq!(ended["status"], "succeeded", "{ended:#}");
    }

    /// To one of the last releases.
    async fn roll_back(&mut self) -> u64 {
        let releases = self.shop.agent.get("/api/v1/apps/shop/releases").await;
        let mut others: Vec<u64> = releases
            .as_array()
            .expect("a list")
            .iter()
            .filter(|release| release["good"] == true && release["live"] == false)
            .filter_map(|release| release["release"].as_u64())
            .collect();
        others.sort_unstable_by(|a, b| b.cmp(a));
        others.truncate(3);
        let to = others[self.chance.below(others.len())];
        self.shop.rollback(json!({ "to": to })).await.expect(202).json()["id"].as_u64().expect("a deployment's number")
    }

    async fn kill(&mut self) {
        self.shop.agent.kill().await;
        self.shop.agent.start().await;
        self.kills += 1;
    }

    /// Another binary: its agent has the proxy that serves hand over to one of that binary.
    async fn upgrade(&mut self) {
        self.upgrades += 1;
        let old = self.shop.agent.proxy_pid();
        let binary = rebuilt(self.binaries.path(), self.upgrades);
        self.shop.agent.set_binary(binary);
        self.shop.agent.restart().await;
        eventually("another proxy serves", ENDS_WITHIN, async || match self.shop.agent.proxy_pid() {
            new if new != old => Ok(()),
            _ => Err(self.shop.agent.log()),
        })
        .await;
        self.retired.push(old);
    }

    /// The proxy's sockets once nobody asks for anything; not more than at another time, if one is given, or after a
    /// while what they are all the same.
    async fn sockets_at_rest(&mut self, limit: Option<&Sockets>) -> Sockets {
        let end = Instant::now() + SETTLES_WITHIN;
        loop {
            let old = self.retired.iter().filter(|pid| sockets::is_alive(**pid)).count();
            let now = Sockets::of(self.shop.agent.proxy.port(), self.shop.agent.proxy_pid(), old);
            let is_enough = match limit {
                None => now.open == 0,
                Some(limit) => now.open <= limit.open && now.files <= limit.files && now.retired == 0,
            };
            if is_enough || Instant::now() >= end {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// All deployments by number.
    async fn records(&self) -> BTreeMap<u64, Value> {
        let mut records = BTreeMap::new();
        let newest = self.shop.deployments().await.first().and_then(|one| one["id"].as_u64()).unwrap_or_default();
        for id in 1..=newest {
            records.insert(id, self.shop.deployment(id).await);
        }
        records
    }
}
