//! At random: pushes good and bad, and meanwhile agent, proxy, instances and engine are killed, stopped and started. Every
//! request must be answered, every accepted push must be accounted for, and at the end everything is in order.
//!
//! By itself it runs for less than a minute; `./dev chaos` runs it for long (`LONGSHORE_CHAOS_MINUTES`). It prints its
//! seed: `LONGSHORE_CHAOS_SEED=7` makes the same choices again, though not at the same moments.

mod checker;
mod excuses;
mod faults;
mod ledger;
mod pushes;
mod report;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::clients::{self, Kind, Load};
use crate::shop::{HOST, Options, SECRET, Shop};
use crate::support::engine;
use crate::support::private_engine::PrivateEngine;
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;
use checker::{Findings, Record};
use excuses::{Excuses, Outage};
use faults::{Fault, Faults, Harm, Sight};
use ledger::{Entries, Ledger, Version};
use pushes::{App, Door, LEAST_INSTANCES, Pusher};
use report::{Judged, Told};
use watching::Fewest;

const BLOG: &str = "blog.test";
/// In the app's environment, and nowhere else.
const DATABASE_URL: &str = "postgres://shop:opensesame-4711@db/shop";
/// All that was accepted has ended this long after the last fault.
const SETTLES_WITHIN: Duration = Duration::from_secs(240);

/// How long, how hard, and by what chance.
struct Plan {
    seed: u64,
    time: Duration,
    /// The longest pause between two faults, in milliseconds, and between what an app's people do.
    calm: (u64, u64),
    /// Whether engines are killed that end their containers: Docker 20.10 may then forget one that keeps its address, and
    /// what is started at that address is not reached.
    ends_all: bool,
}

impl Plan {
    fn of_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<f64>().ok();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        let seed = std::env::var("LONGSHORE_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(now);
        match number("LONGSHORE_CHAOS_MINUTES") {
            Some(minutes) => {
                Self { seed, time: Duration::from_secs_f64(minutes * 60.0), calm: (10_000, 8_000), ends_all: true }
            }
            None => Self { seed, time: Duration::from_secs(40), calm: (5_000, 5_000), ends_all: false },
        }
    }
}

/// Health is asked often and drains are short, so that much happens in little time.
fn service(instances: usize) -> String {
    format!(
        "port = 8000\ninstances = {instances}\nstop_grace = \"2s\"\ndrain = {{ requests = \"5s\", streams = \"2s\" }}\n\
         health = {{ path = \"/healthz\", interval = \"200ms\", start_deadline = \"8s\" }}\n"
    )
}

/// A shop and a blog on an engine of their own, each with a version live.
async fn open(engine: &PrivateEngine, blog: &Repo) -> Shop {
    let tables = format!(
        "[runtime]\ndocker_host = \"{}\"\n\
         [apps.shop.env]\nDATABASE_URL = {{ env = \"SHOP_DATABASE_URL\" }}\n\
         [apps.shop.release]\ncommand = [\"migrate\"]\n\
         [apps.blog]\nrepo = {:?}\nallow_local = true\ndomains = [\"{BLOG}\"]\n{}\
         webhook = {{ provider = \"github\", secret = {{ env = \"SHOP_SECRET\" }} }}\n\
         [apps.blog.release]\ncommand = [\"migrate\"]\n\
         [apps.blog.rollout]\nwatch = \"2s\"\nstrategy = \"canary\"\nsteps = [25]\npause = \"1s\"\n",
        engine.address(),
        blog.url(),
        service(2)
    );
    let options = Options { keys: service(LEAST_INSTANCES), tables, watch: "2s" };
    let first = Behaviour::version("shop-0");
    let env = [("SHOP_DATABASE_URL", DATABASE_URL)];
    let shop = Shop::start_with(&engine.engine(), &first, options, &env).await;
    shop.deploy_first().await;
    shop.ask_and_wait("POST", "/api/v1/apps/blog/deployments", json!({})).await;
    shop
}

/// Waits until nothing that was accepted is under way any more, and gives it all.
async fn all_ended(door: &Door, pushers: &mut [Pusher]) {
    eventually("everything that was accepted has ended", SETTLES_WITHIN, async || {
        for pusher in &mut *pushers {
            if !pusher.deliver_rest().await {
                return Err("a push is not accepted".to_owned());
            }
            let app = door.get(&format!("/api/v1/apps/{}", pusher.app.name)).await?;
            let idle = app["deployment"].is_null() && app["queued"] == 0;
            let serves = |one: &Value| one["health"] == "ready" && one["duty"] == "serving";
            let settled = app["instances"].as_array().is_some_and(|all| all.iter().all(serves));
            if !idle || !settled {
                return Err(format!("{app:#}"));
            }
        }
        Ok(())
    })
    .await;
}

/// A last good version of each app goes live, and every instance answers with it.
async fn last_version(door: &Door, proxy: std::net::SocketAddr, pushers: &mut [Pusher]) -> Vec<String> {
    for pusher in &mut *pushers {
        pusher.push_version(Version::Good).await;
    }
    all_ended(door, pushers).await;
    let mut wrong = Vec::new();
    for pusher in pushers {
        let wanted = format!("{}-{}", pusher.app.name, pusher.app.pushed);
        for _ in 0..20 {
            let page =
                crate::support::http::get(proxy, pusher.app.host, "/").await.map(|page| page.text().trim().to_owned());
            if page.as_ref() != Ok(&wanted) {
                wrong.push(format!("I6 {wanted} was pushed last, and the answer is {page:?}"));
                break;
            }
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_nothing_accepted_is_lost_and_no_request_fails() {
    let test = "whatever_is_killed_nothing_accepted_is_lost";
    let Some(_) = engine::or_skip(test).await else { return };
    let Some(private) = PrivateEngine::start_or_skip(test).await else { return };
    let plan = Plan::of_environment();
    println!("{test}: {:?} of chaos; LONGSHORE_CHAOS_SEED={}", plan.time, plan.seed);
    let (blog, _) = Repo::with_site(&Behaviour::version("blog-0"));
    let Shop { repo, agent, discord, engine } = open(&private, &blog).await;

    let door = Door { listen: agent.listen, socket: agent.data_dir().join("longshore.sock") };
    let (proxy, data_dir) = (agent.proxy, agent.data_dir());
    let apps = vec![("shop", HOST), ("blog", BLOG)];
    let sight = Sight { door: door.clone(), engine: private.engine(), proxy, apps };
    let (ledger, excuses, fewest) = (Ledger::default(), Excuses::default(), Arc::<Mutex<Fewest>>::default());
    // The first versions were asked for too.
    ledger.entries().operations.extend([("shop", 1), ("blog", 2)]);
    let load = Load::start(proxy).on(HOST, Kind::KeepAlive, 4).on(HOST, Kind::Fresh, 1).on(HOST, Kind::Slow, 2);
    let load = load.on(HOST, Kind::Post, 2).on(HOST, Kind::WebSocket, 3);
    let load = load.on(BLOG, Kind::KeepAlive, 2).on(BLOG, Kind::Post, 1).on(BLOG, Kind::WebSocket, 1);
    let wanted = BTreeMap::from([(HOST, LEAST_INSTANCES), (BLOG, 2)]);
    let twice_given = Arc::<Mutex<BTreeSet<String>>>::default();
    let watching = [
        tokio::spawn(watching::addresses(engine.clone(), Arc::clone(&twice_given))),
        tokio::spawn(watching::deaths(engine.clone(), excuses.clone())),
        tokio::spawn({
            let (excuses, fewest) = (excuses.clone(), Arc::clone(&fewest));
            async move { watching::routes(&data_dir, wanted, excuses, fewest).await }
        }),
    ];

    let (stop, began) = (CancellationToken::new(), Instant::now());
    let apps =
        [("shop", HOST, repo), ("blog", BLOG, blog)].map(|(name, host, repo)| App { name, host, repo, pushed: 0 });
    let pushing = apps.map(|app| {
        let chance = Chance::of(plan.seed, app.name);
        let pusher = Pusher::new(app, door.clone(), ledger.clone(), excuses.clone(), chance);
        tokio::spawn(pusher.run(stop.clone(), plan.calm.1))
    });
    let mut faults = Faults::new(agent, private, sight, excuses.clone(), Chance::of(plan.seed, "faults"));
    let timer = tokio::spawn({
        let (stop, time) = (stop.clone(), plan.time);
        async move {
            tokio::time::sleep(time).await;
            stop.cancel();
        }
    });
    faults.run(&stop, plan.calm.0, plan.ends_all).await;
    timer.await.expect("the timer");
    let time = began.elapsed();
    let mut pushers = Vec::new();
    for one in pushing {
        pushers.push(one.await.expect("a pusher does not panic"));
    }

    let harm = faults.settle().await;
    all_ended(&door, &mut pushers).await;
    let mut found = Findings::default();
    found.wrong.extend(last_version(&door, proxy, &mut pushers).await);
    let load = load.stop().await;
    for one in watching {
        one.abort();
    }

    let Faults { mut agent, engine: private, .. } = faults;
    agent.stop().await;
    let repo = pushers.swap_remove(0).app.repo;
    let shop = Shop { repo, agent, discord, engine };
    let ledger = std::mem::take(&mut *ledger.entries());
    let (fewest, twice_given) = (fewest.lock().unwrap().clone(), twice_given.lock().unwrap().clone());
    let aftermath = Aftermath { seed: plan.seed, began, time, ledger, harm, load, excuses, fewest, twice_given };
    aftermath.judge(&shop, found).await;
    shop.finish().await;
    drop(private);
}

/// What there is to judge when all is over.
struct Aftermath {
    seed: u64,
    began: Instant,
    time: Duration,
    ledger: Entries,
    harm: Harm,
    load: clients::Report,
    excuses: Excuses,
    fewest: Fewest,
    /// Addresses that the engine gave twice.
    twice_given: BTreeSet<String>,
}

impl Aftermath {
    /// Prints the table; fails with everything that is not as promised.
    async fn judge(self, shop: &Shop, mut found: Findings) {
        let record = Record::read(&shop.agent.data_dir()).expect("I10 the journal opens");
        found.add(checker::journal(&record, &self.ledger, &self.harm.strikes));
        checker::discord(&mut found, &record, shop, self.agent_kills());
        checker::engine(&mut found, &record, shop).await;
        checker::files(&mut found, shop, &[SECRET, shop.discord.token(), DATABASE_URL]);
        found.wrong.extend(self.harm.wrong.iter().map(|what| format!("I11 {what}")));
        found.wrong.extend(self.fewest.wrong.iter().map(|what| format!("I1 {what}")));
        let judged = Judged::of(&self.load.failures, &self.excuses);
        found.wrong.extend(judged.failed.iter().map(|failure| {
            let after = failure.began.saturating_duration_since(self.began);
            format!("I7 after {:.2} s: {failure}", after.as_secs_f64())
        }));
        found.wrong.extend(self.answered_though_bad());

        let Self { seed, time, ledger, harm, load, excuses, fewest, .. } = &self;
        let undone = &found.undone;
        let judged = &judged;
        Told { seed: *seed, time: *time, record: &record, ledger, harm, load, judged, excuses, fewest, undone }.print();
        for address in &self.twice_given {
            println!("the engine gave an address twice: {address}");
        }
        if found.wrong.is_empty() {
            return;
        }
        println!("--- the agent's log ---\n{}", shop.agent.log());
        for old in ["proxy.log.3", "proxy.log.2", "proxy.log.1", "proxy.log"] {
            let log = std::fs::read(shop.agent.data_dir().join(old)).unwrap_or_default();
            println!("--- {old} ---\n{}", String::from_utf8_lossy(&log));
        }
        for (id, _) in &found.undone {
            println!("--- the log of deployment {id} ---\n{}", record.log(*id));
        }
        panic!("LONGSHORE_CHAOS_SEED={seed}: {} findings\n{}", found.wrong.len(), found.wrong.join("\n"));
    }

    /// At most so often the agent may have died while it told of something.
    fn agent_kills(&self) -> u64 {
        let kills = [Fault::AgentKilled, Fault::BothKilled, Fault::EngineKilled, Fault::EngineKilledWithAll];
        self.harm.strikes.iter().filter(|strike| kills.contains(&strike.fault)).count() as u64
    }

    /// I4: versions that never pass their gate must never answer. An engine that starts every container anew gives their
    /// addresses out anew as well, before anybody can hear of it.
    fn answered_though_bad(&self) -> impl Iterator<Item = String> {
        let bad = self.ledger.pushes.iter().filter(|pushed| !pushed.version.may_serve());
        bad.filter_map(|bad| {
            let at = self.load.versions.get(&bad.name)?;
            let at = at.iter().find(|at| !self.excuses.was_away(Outage::Engine, **at))?;
            let after = at.saturating_duration_since(self.began);
            Some(format!("I4 {} answered a request after {after:.2?}: {:?}", bad.name, bad.version))
        })
    }
}
