//! The Nth write to the journal or the Nth request to the engine fails, N = 1, 2, 3 …, until a run passes without
//! reaching N: SQLite's way of testing. After each fault the agent starts again, and all that is promised is checked.
//!
//! By itself a test takes a sample of the points, chosen by a seed that it prints. `LONGSHORE_FAULTS=all` takes them all,
//! `LONGSHORE_FAULTS=200..` those from the 200th on, `LONGSHORE_FAULT_SEED=7` the same sample again.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::shop::{HOST, LIMIT, Options, SECRET, Shop};
use crate::support::engine::{self, Engine};
use crate::support::github::Push;
use crate::support::load::{Load, Shape};
use crate::support::relay::{Fault, Relay};
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

/// A deployment that is still under way after this long, when a fault has struck that leaves something hanging, is not
/// waited for: the agent is killed.
const HANGING: Duration = Duration::from_secs(8);
/// The same of a journal that hangs: nothing ends that but a kill.
const JOURNAL_HANGING: Duration = Duration::from_secs(3);

/// What is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// It goes live.
    Good,
    /// It exits at once: the old one goes on.
    Bad,
    /// Two good ones right after each other.
    Two,
    /// A good one that is first given half of the requests.
    Canary,
}

/// Where the fault strikes.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// The journal: before a group of calls is on disk, and after it.
    Journal(&'static str),
    /// The engine.
    Engine(Fault),
}

impl Point {
    /// Whether the deployment may fail of it: the engine said no, and nobody died.
    fn excuses(self) -> bool {
        !matches!(self, Self::Journal("crash" | "hang") | Self::Engine(Fault::CrashBefore | Fault::CrashAfter))
    }

    /// Whether an agent that runs when its deployment has ended may meet the fault, or die of it, later.
    fn may_yet_strike(self, struck: bool) -> bool {
        match self {
            Self::Journal(_) => true,
            Self::Engine(fault) => struck && matches!(fault, Fault::CrashBefore | Fault::CrashAfter),
        }
    }
}

/// Which points are tried: each `step`-th, from `first`.
struct Sample {
    first: usize,
    step: usize,
}

impl Sample {
    fn of(test: &str, step: usize) -> Self {
        let which = std::env::var("LONGSHORE_FAULTS").unwrap_or_default();
        let first = if which == "all" { Some("1") } else { which.strip_suffix("..") };
        if let Some(first) = first {
            return Self { first: first.parse().expect("LONGSHORE_FAULTS is all or N.."), step: 1 };
        }
        let now =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis() as usize);
        let given = std::env::var("LONGSHORE_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: usize = given.unwrap_or_else(now);
        println!("{test}: every {step}th point; LONGSHORE_FAULT_SEED={seed}");
        Self { first: seed % step + 1, step }
    }
}

/// A shop whose engine is behind a relay, under load, with a version live.
struct Yard {
    shop: Shop,
    relay: Relay,
    load: Load,
    pushed: usize,
    /// What must be live.
    live: String,
    /// What hangs is waited for so long.
    patience: Duration,
    _directory: tempfile::TempDir,
}

impl Yard {
    async fn open(engine: &Engine, version: Version) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let relay = Relay::start(directory.path().join("engine.sock"), "/var/run/docker.sock".as_ref());
        let keys = "instances = 2\nhealth = { path = \"/healthz\", interval = \"100ms\", start_deadline = \"5s\" }\n\
                    stop_grace = \"1s\"";
        // Keys of [apps.shop.rollout] stand before the next table.
        let strategy = match version {
            Version::Canary => "strategy = \"canary\"\nsteps = [50]\npause = \"1s\"\n",
            Version::Good | Version::Bad | Version::Two => "",
        };
        let table = format!("{strategy}[runtime]\ndocker_host = \"{}\"", relay.address());
        let options = Options::web(keys).watch("100ms").table(&table);
        let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
        let shop = Shop::start_on(engine, repo, options, "0s").await;
        shop.deploy_first().await;
        // Enough to meet every gap, and little enough for the agent to be what the time goes to.
        let load = Load::start(Shape { pause: Duration::from_millis(50), ..shop.agent.load(HOST) });
        Self { shop, relay, load, pushed: 1, live: "v1".into(), patience: HANGING, _directory: directory }
    }

    /// One run with the fault at the `at`-th point; false when it was not reached.
    async fn run(&mut self, version: Version, point: Point, at: usize) -> bool {
        let what = format!("{version:?}, {point:?} number {at}");
        self.shop.agent.stop().await;
        self.patience = if matches!(point, Point::Journal("hang")) { JOURNAL_HANGING } else { HANGING };
        match point {
            Point::Journal(fault) => {
                self.shop.agent.set_env("LONGSHORE_FAIL_POINT", &format!("journal:{at}={fault}"));
            }
            Point::Engine(fault) => self.relay.arm(at, fault),
        }
        if matches!(point, Point::Engine(Fault::Hang)) {
            self.shop.agent.set_env("LONGSHORE_HURRY", "1");
        }
        let marks = self.shop.agent.log().matches("struck").count();
        self.shop.agent.spawn();

        let mut ids = vec![self.push(version == Version::Bad).await];
        if version == Version::Two {
            ids.push(self.push(false).await);
        }
        let ended = self.follow(&ids, marks).await;
        let struck = self.relay.disarm() || self.struck_journal(marks);
        self.shop.agent.set_env("LONGSHORE_FAIL_POINT", "");
        // The one that runs may still be about to die of its fault.
        if !self.shop.agent.is_running() || point.may_yet_strike(struck) {
            self.kill().await;
            self.shop.agent.start().await;
        }
        self.check(&what, version, point, &ended).await;
        struck
    }

    /// Commits, pushes and delivers until the push was accepted, as a person does who presses "redeliver".
    async fn push(&mut self, bad: bool) -> u64 {
        self.pushed += 1;
        let name = format!("v{}", self.pushed);
        let version = Behaviour::version(&name);
        self.shop.repo.write_site(&if bad { version.exit_at_once(3) } else { version });
        self.shop.repo.commit(&format!("Version {}", self.pushed));
        let delivery = Push::of("main", &self.shop.repo.push("main")).delivery();
        let (began, mut killed) = (std::time::Instant::now(), false);
        let accepted = eventually("the push is accepted", LIMIT, async || {
            self.ensure_spawned();
            let is_late = !killed && began.elapsed() > self.patience;
            let headers = delivery.headers(SECRET);
            let sending = delivery.try_send(self.shop.agent.listen, "shop", &headers);
            match tokio::time::timeout(self.patience, sending).await {
                Ok(Ok(answer)) if matches!(answer.status.as_u16(), 200 | 202) => Ok(answer.json()),
                // It hangs before it listens.
                Ok(Err(why)) if is_late => {
                    killed = true;
                    self.kill().await;
                    Err(why)
                }
                Ok(answer) => Err(answer.map_or_else(|why| why, |a| format!("{} {}", a.status, a.text()))),
                Err(_) => {
                    self.kill().await;
                    Err("it was not answered".to_owned())
                }
            }
        });
        let id = accepted.await["deployment"].as_u64().expect("a deployment's number");
        if !bad {
            self.live = name;
        }
        id
    }

    /// Starts the agent again, without a fault, when it has died.
    fn ensure_spawned(&mut self) {
        if !self.shop.agent.is_running() {
            self.shop.agent.set_env("LONGSHORE_FAIL_POINT", "");
            self.shop.agent.spawn();
        }
    }

    async fn kill(&mut self) {
        if self.shop.agent.is_running() {
            self.shop.agent.kill().await;
        }
    }

    fn struck(&self, marks: usize) -> bool {
        self.relay.struck().is_some() || self.struck_journal(marks)
    }

    fn struck_journal(&self, marks: usize) -> bool {
        self.shop.agent.log().matches("struck").count() > marks
    }

    /// Waits for the ends of the deployments. An agent that dies is started again, one that hangs is killed.
    async fn follow(&mut self, ids: &[u64], marks: usize) -> Vec<Value> {
        let (mut ended, began) = (Vec::new(), std::time::Instant::now());
        let mut killed = false;
        for id in ids {
            let what = format!("deployment {id} ends");
            let one = eventually(&what, LIMIT, async || {
                self.ensure_spawned();
                if !killed && began.elapsed() > self.patience && self.struck(marks) {
                    killed = true;
                    self.kill().await;
                    return Err("it hung".to_owned());
                }
                let deployment = self.shop.agent.try_get(&format!("/api/v1/deployments/{id}")).await?;
                match deployment["status"].as_str() {
                    Some("succeeded" | "failed" | "rolled_back" | "superseded" | "cancelled") => Ok(deployment),
                    _ => Err(format!("{deployment:#}")),
                }
            });
            ended.push(one.await);
        }
        ended
    }

    /// All that is promised, after a fault.
    async fn check(&mut self, what: &str, version: Version, point: Point, ended: &[Value]) {
        let statuses: Vec<&str> = ended.iter().filter_map(|deployment| deployment["status"].as_str()).collect();
        let last = *statuses.last().expect("a deployment");
        let fine = match version {
            Version::Bad => matches!(last, "rolled_back" | "failed"),
            Version::Good | Version::Canary => last == "succeeded",
            Version::Two => last == "succeeded" && matches!(statuses[0], "succeeded" | "superseded"),
        };
        if !fine {
            let failed = matches!(last, "rolled_back" | "failed");
            assert!(point.excuses() && failed, "{what}: {statuses:?}\n{ended:#?}\n{}", self.shop.agent.log());
            // A person tries again.
            let again = self.shop.agent.api("POST", "/api/v1/apps/shop/deployments", Some(serde_json::json!({}))).await;
            let id = again.expect(202).json()["id"].as_u64().expect("a number");
            let again = self.shop.agent.deployment_ended(id, LIMIT).await;
            let wanted = if version == Version::Bad { "rolled_back" } else { "succeeded" };
            assert_eq!(again["status"], wanted, "{what}: {again:#}");
        }
        let (live, containers) = (self.live.clone(), self.shop.engine.clone());
        eventually(&format!("{what}: two instances of {live} and nothing else"), LIMIT, async || {
            let app = self.shop.app().await;
            let all = app["instances"].as_array().expect("instances").clone();
            let serving = |i: &&Value| i["health"] == "ready" && i["duty"] == "serving";
            let commit = &app["live"]["subject"];
            let right = commit == &Value::from(format!("Version {}", &live[1..])) || live == "v1";
            let here = containers.instances(&self.shop.agent.id(), "shop", "web").await.len();
            let page = self.shop.agent.visit(HOST, "/").await.map(|page| page.text().trim().to_owned());
            let same = page.as_ref() == Ok(&live);
            if all.len() == 2 && all.iter().filter(serving).count() == 2 && right && here == 2 && same {
                Ok(())
            } else {
                Err(format!("{page:?}, {here} containers\n{app:#}\n{}", self.shop.agent.log()))
            }
        })
        .await;
        let so_far = self.load.so_far();
        assert_eq!(so_far.failed, 0, "{what}: {so_far:#?}");
    }

    async fn close(self) {
        self.load.stop().await.assert_flawless(100);
        let (mut agent, engine) = (self.shop.agent, self.shop.engine);
        eventually("nothing is left behind", LIMIT, async || {
            let left = engine.leftovers(&agent.id()).await;
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        })
        .await;
        agent.stop().await;
        let journal = rusqlite::Connection::open(agent.data_dir().join("journal.db")).expect("the journal");
        let check: String = journal.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        assert_eq!(check, "ok");
        drop(journal);
        agent.finish().await;
    }
}

/// Tries one kind of fault at point after point.
async fn at_every_point(test: &str, version: Version, point: Point, step: usize) {
    let Some(engine) = engine::or_skip(test).await else { return };
    let sample = Sample::of(test, step);
    let mut yard = Yard::open(&engine, version).await;
    let mut at = sample.first;
    while yard.run(version, point, at).await {
        at += sample.step;
        if sample.step == 1 && at.is_multiple_of(10) {
            println!("{test}: {at} is next");
        }
    }
    assert!(at > sample.first, "no point was reached at all");
    println!("{test}: {} points", (at - sample.first) / sample.step);
    yard.close().await;
}

macro_rules! tests {
    ($($name:ident: $version:ident, $point:expr, $step:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            at_every_point(stringify!($name), Version::$version, $point, $step).await;
        })*
    };
}

tests! {
    the_agent_dies_at_the_nth_write_of_a_good_deployment: Good, Point::Journal("crash"), 41;
    the_agent_dies_at_the_nth_write_of_a_bad_deployment: Bad, Point::Journal("crash"), 47;
    the_agent_dies_at_the_nth_write_of_two_deployments: Two, Point::Journal("crash"), 61;
    the_journal_hangs_at_the_nth_write: Good, Point::Journal("hang"), 97;
    the_nth_write_fails: Good, Point::Journal("error"), 67;
    the_nth_write_of_a_bad_deployment_fails: Bad, Point::Journal("error"), 83;
    the_agent_dies_before_the_nth_request_to_the_engine: Good, Point::Engine(Fault::CrashBefore), 7;
    the_agent_dies_after_the_nth_request_to_the_engine: Good, Point::Engine(Fault::CrashAfter), 7;
    the_agent_dies_after_the_nth_request_of_a_bad_deployment: Bad, Point::Engine(Fault::CrashAfter), 11;
    the_engine_hangs_at_the_nth_request: Good, Point::Engine(Fault::Hang), 17;
    the_engine_fails_the_nth_request: Good, Point::Engine(Fault::Error), 11;
    the_engine_fails_the_nth_request_of_a_bad_deployment: Bad, Point::Engine(Fault::Error), 13;
    the_connection_breaks_at_the_nth_request: Good, Point::Engine(Fault::Cut), 11;
    the_agent_dies_at_the_nth_write_of_a_canary: Canary, Point::Journal("crash"), 43;
    the_agent_dies_after_the_nth_request_of_a_canary: Canary, Point::Engine(Fault::CrashAfter), 13;
    the_nth_write_of_a_canary_fails: Canary, Point::Journal("error"), 89;
    the_nth_answer_is_garbage: Good, Point::Engine(Fault::Garbage), 13;
}
