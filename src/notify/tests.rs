//! The whole way from a state in the journal to a channel, with a real journal on disk and real HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::stand_in::{Discord, Script, Seen};
use super::*;
use crate::config::{
    Absent, AgentConfig, Build, BuilderKind, Drain, HealthCheck, HealthPolicy, NotifyTarget, Order, Problem,
    ProxyConfig, RolloutPolicy, RuntimeConfig, Service, Strategy,
};
use crate::model::{AppName, CommitSha, DeploymentId, ImageId, InstanceId, ReleaseNumber, Status, Trigger};
use crate::proxy::client::Drained;
use crate::queue::Request;
use crate::store::{
    Admission, CertificateTrouble, Finish, Latency, NewDeployment, ReleaseBody, ReleasedService, Requests, Served,
    ServiceServed,
};

/// Waits short enough for a test.
const QUICK: Timing = Timing {
    request: Duration::from_secs(5),
    first_retry: Duration::from_millis(5),
    longest_retry: Duration::from_millis(20),
    shortest_limit: Duration::from_millis(5),
    check: Duration::from_secs(30),
    max_age: Duration::from_secs(3600),
    patience: Duration::from_secs(10),
};

/// An agent's journal and what tells of it.
struct World {
    dir: tempfile::TempDir,
    store: Store,
    journal: Journal,
    config: watch::Sender<Arc<Config>>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    timing: Timing,
}

impl World {
    /// Tells `discord` of every event.
    async fn new(discord: &Discord) -> Self {
        Self::with(vec![entry(&discord.url, &NoticeKind::ALL)], QUICK).await
    }

    async fn with(notify: Vec<NotifyTarget>, timing: Timing) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.sqlite")).unwrap();
        let journal = Journal::new(store.clone());
        let mut world = Self { dir, store, journal, config: watch::Sender::new(config(notify)), running: None, timing };
        world.begin().await;
        world
    }

    /// Starts the notifications, and waits until the outbox knows every receiver.
    async fn begin(&mut self) {
        let shutdown = CancellationToken::new();
        let (store, journal) = (self.store.clone(), self.journal.clone());
        for name in targets(&self.config.borrow().clone()).into_keys() {
            store.next_notice(&name).await.unwrap();
        }
        let task = tokio::spawn(supervise(store, journal, self.config.subscribe(), shutdown.clone(), self.timing));
        self.running = Some((shutdown, task));
    }

    async fn end(&mut self) {
        let (shutdown, task) = self.running.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(2), task).await.expect("the end is prompt").unwrap();
    }

    /// The agent ends and a new one opens the same journal.
    async fn restart(mut self) -> Self {
        self.end().await;
        let Self { dir, config, timing, store, journal, .. } = self;
        drop((store, journal));
        let store = reopen(dir.path()).await;
        let journal = Journal::new(store.clone());
        let mut world = Self { dir, store, journal, config, running: None, timing };
        world.begin().await;
        world
    }

    async fn push(&self, digit: char, subject: &str) -> DeploymentId {
        let commit: CommitSha = digit.to_string().repeat(40).parse().unwrap();
        let new = NewDeployment {
            app: app(),
            trigger: Trigger::Push,
            request: Request::Deploy { commit: Some(commit), before: None, forced: true },
            git_ref: Some("refs/heads/main".parse().unwrap()),
            pusher: Some("ada".into()),
            author: Some("Ada".into()),
            subject: Some(subject.into()),
            delivery: None,
        };
        let Admission::Queued { id, replaced } = self.store.admit(new).await.unwrap() else { panic!("not queued") };
        for old in replaced {
            self.journal.publish_end(&app(), old).await.unwrap();
        }
        id
    }

    /// The deployment makes a release with so many web instances.
    async fn release(&self, id: DeploymentId, digit: char, instances: u32) -> ReleaseNumber {
        let service = Service {
            name: "web".parse().unwrap(),
            build: Build {
                dockerfile: "Dockerfile".into(),
                context: ".".into(),
                target: None,
                args: BTreeMap::new(),
                secrets: BTreeMap::new(),
                builder: BuilderKind::Auto,
            },
            command: None,
            port: Some(8000),
            instances,
            health: HealthPolicy {
                check: HealthCheck::Tcp,
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(5),
                successes: 2,
                failures: 3,
                start_deadline: Duration::from_secs(60),
            },
            memory: None,
            cpu_millis: None,
            stop_grace: Duration::from_secs(10),
            drain: Drain { requests: Duration::from_secs(30), streams: Duration::from_secs(60) },
            volumes: Vec::new(),
            static_files: BTreeMap::new(),
            env: BTreeMap::new(),
            route: None,
        };
        let body = ReleaseBody {
            services: vec![ReleasedService {
                service,
                image: ImageId("sha256:1".into()),
                artifact: "1".into(),
                base: None,
            }],
            release_command: None,
            rollout: RolloutPolicy {
                strategy: Strategy::Rolling,
                order: Order::StartFirst,
                watch: Duration::from_secs(60),
            },
            author: "Ada".into(),
            subject: "Fix cart".into(),
        };
        let commit = digit.to_string().repeat(40).parse().unwrap();
        self.store.create_release(&app(), id, &commit, body).await.unwrap().number
    }

    async fn advance(&self, id: DeploymentId) {
        self.journal.advance(&app(), id, Status::Preparing).await.unwrap();
    }

    async fn finish(&self, id: DeploymentId, status: Status, reason: Option<&str>) {
        let finish = Finish { status, reason: reason.map(str::to_owned), superseded_by: None, hold: false };
        assert!(self.journal.finish(&app(), id, finish).await.unwrap());
    }

    /// Waits until the receiver has been told everything.
    async fn settled(&self) {
        let names = targets(&self.config.borrow().clone()).into_keys();
        let wait = async {
            for name in names {
                while self.store.next_notice(&name).await.unwrap().is_some() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the outbox empties");
    }
}

/// The journal of an agent that has just ended: its thread may need a moment to let go of the file.
async fn reopen(dir: &std::path::Path) -> Store {
    for _ in 0..500 {
        match Store::open(&dir.join("journal.sqlite")) {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    panic!("the journal stays in use");
}

fn app() -> AppName {
    "shop".parse().unwrap()
}

fn entry(url: &str, events: &[NoticeKind]) -> NotifyTarget {
    let channel = Channel::Discord { url: Ok(url.to_owned().into()), allow_local: true };
    NotifyTarget { channel, events: events.to_vec() }
}

fn config(notify: Vec<NotifyTarget>) -> Arc<Config> {
    Arc::new(Config {
        agent: AgentConfig {
            min_free: 0,
            listen: ([127, 0, 0, 1], 0).into(),
            data_dir: "/nowhere".into(),
            public_url: None,
            reconcile: None,
        },
        proxy: ProxyConfig::plain(([127, 0, 0, 1], 0).into()),
        runtime: RuntimeConfig { docker_host: "unix:///nowhere".into() },
        notify,
        apps: BTreeMap::new(),
        files: BTreeMap::new(),
        warnings: Vec::new(),
        absent: Default::default(),
    })
}

fn trail(seen: &[Seen]) -> Vec<(&str, u16, &str)> {
    seen.iter().map(|seen| (seen.method, seen.status, seen.content())).collect()
}

fn fails(status: u16) -> Script {
    Script::Answer(status, json!({}), &[])
}

const BEGUN: &str = "shop: deploying aaaaaaa by Ada: Fix cart";
const LIVE: &str = "shop: the new release is live, aaaaaaa by Ada: Fix cart";

#[tokio::test]
async fn what_a_receiver_missed_while_its_address_was_absent_is_told_when_it_is_there() {
    let discord = Discord::start().await;
    let mut world = World::new(&discord).await;
    let there = world.config.borrow().notify.clone();
    world.end().await;
    let problem = Problem { line: 1, column: 1, what: "notify[0].url: it is not there".into(), hint: None };
    let url = Err(Absent { key: "notify[0].url".into(), problem, in_use: false });
    let channel = Channel::Discord { url, allow_local: true };
    world.config.send_replace(config(vec![NotifyTarget { channel, events: NoticeKind::ALL.to_vec() }]));
    world.begin().await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    world.config.send_replace(config(there));
    assert_eq!(trail(&discord.seen(1).await), [("POST", 200, BEGUN)]);
    world.settled().await;
    world.end().await;
}

#[tokio::test]
async fn one_message_follows_a_deployment_from_start_to_end() {
    let discord = Discord::start().await;
    let world = World::new(&discord).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    assert_eq!(trail(&discord.seen(1).await), [("POST", 200, BEGUN)]);
    world.settled().await;
    world.finish(id, Status::Succeeded, None).await;
    let seen = discord.seen(2).await;
    assert_eq!(trail(&seen), [("POST", 200, BEGUN), ("PATCH", 200, LIVE)]);
    assert_eq!(seen[1].message.as_deref(), Some("1000"));
    assert_eq!(discord.channel(), [LIVE]);
}

#[tokio::test]
async fn what_ended_before_it_was_told_is_told_once() {
    let discord = Discord::start().await;
    let mut world = World::new(&discord).await;
    world.end().await;
    let first = world.push('a', "Fix cart").await;
    world.advance(first).await;
    world.finish(first, Status::RolledBack, Some("web-2 exited with code 1\npanic")).await;
    let second = world.push('b', "Never runs").await;
    let third = world.push('c', "Newest").await;
    world.advance(third).await;
    world.begin().await;
    world.settled().await;
    assert_eq!(
        trail(&discord.seen(3).await),
        [
            ("POST", 200, "shop: aaaaaaa by Ada was rolled back: web-2 exited with code 1; nothing is live yet"),
            ("POST", 200, "shop: bbbbbbb by Ada was superseded by \\#3, ccccccc"),
            ("POST", 200, "shop: deploying ccccccc by Ada: Newest"),
        ]
    );
    assert_eq!((second, third), (DeploymentId(2), DeploymentId(3)));
}

#[tokio::test]
async fn too_many_requests_are_repeated_when_allowed_and_not_before() {
    let discord = Discord::start().await;
    discord.script([
        Script::Answer(429, json!({"message": "slow down", "retry_after": 0.06, "global": false}), &[]),
        Script::Answer(429, json!("<html>"), &[("retry-after", "0.05")]),
    ]);
    let world = World::new(&discord).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    let seen = discord.seen(3).await;
    assert_eq!(trail(&seen), [("POST", 429, BEGUN), ("POST", 429, BEGUN), ("POST", 200, BEGUN)]);
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(60));
    assert!(seen[2].at - seen[1].at >= Duration::from_millis(50));
}

#[tokio::test]
async fn an_allowance_that_is_used_up_is_waited_for() {
    let discord = Discord::start().await;
    let headers = &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset-after", "0.06")];
    discord.script([Script::Answer(200, json!({"id": "7"}), headers)]);
    let world = World::new(&discord).await;
    let first = world.push('a', "Fix cart").await;
    world.advance(first).await;
    let second = world.push('b', "Next").await;
    world.advance(second).await;
    let seen = discord.seen(2).await;
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(60));
}

#[tokio::test]
async fn trouble_is_outlasted_in_order() {
    let discord = Discord::start().await;
    discord.script([fails(500), fails(503), Script::Answer(502, json!("<html>"), &[])]);
    let world = World::new(&discord).await;
    let first = world.push('a', "Fix cart").await;
    world.finish(first, Status::Failed, Some("no Dockerfile")).await;
    let second = world.push('b', "Add it").await;
    world.finish(second, Status::Cancelled, Some("cancelled by Grace while it waited")).await;
    let (failed, cancelled) = (
        "shop: aaaaaaa by Ada failed: no Dockerfile; nothing is live yet",
        "shop: bbbbbbb by Ada was cancelled by Grace while it waited; nothing is live yet",
    );
    world.settled().await;
    assert_eq!(
        trail(&discord.seen(5).await),
        [
            ("POST", 500, failed),
            ("POST", 503, failed),
            ("POST", 502, failed),
            ("POST", 200, failed),
            ("POST", 200, cancelled)
        ]
    );
}

#[tokio::test]
async fn a_server_that_hangs_or_is_away_loses_nothing() {
    let discord = Discord::start().await;
    discord.script([Script::Hang]);
    let hasty = Timing { request: Duration::from_millis(100), ..QUICK };
    let world = World::with(vec![entry(&discord.url, &NoticeKind::ALL)], hasty).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    // The first was stored before it hung: told at least once.
    assert_eq!(trail(&discord.seen(2).await)[..2], [("POST", 200, BEGUN), ("POST", 200, BEGUN)]);

    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let url = format!("http://{address}/api/webhooks/1/token");
    let mut world = World::with(vec![entry(&url, &NoticeKind::ALL)], QUICK).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    world.end().await;
    assert!(world.store.next_notice(&target_name(&url.into())).await.unwrap().is_some());
}

#[tokio::test]
async fn a_deleted_message_is_posted_anew() {
    let discord = Discord::start().await;
    let world = World::new(&discord).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    discord.seen(1).await;
    world.settled().await;
    discord.clear_channel();
    world.finish(id, Status::Succeeded, None).await;
    world.settled().await;
    assert_eq!(trail(&discord.seen(3).await)[1..], [("PATCH", 404, LIVE), ("POST", 200, LIVE)]);
    assert_eq!(discord.channel(), [LIVE]);
}

#[tokio::test]
async fn an_answer_without_an_id_counts_as_told() {
    let discord = Discord::start().await;
    discord.script([Script::Garbage]);
    let world = World::new(&discord).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    discord.seen(1).await;
    world.settled().await;
    world.finish(id, Status::Succeeded, None).await;
    assert_eq!(trail(&discord.seen(2).await)[1], ("POST", 200, LIVE));
}

#[tokio::test]
async fn a_deleted_webhook_is_left_alone_until_the_configuration_changes() {
    let discord = Discord::start().await;
    discord.script([Script::Answer(404, json!({"message": "Unknown Webhook", "code": 10015}), &[])]);
    let world = World::new(&discord).await;
    let first = world.push('a', "Fix cart").await;
    world.advance(first).await;
    discord.seen(1).await;
    world.finish(first, Status::Succeeded, None).await;
    let second = world.push('b', "Next").await;
    world.advance(second).await;
    // Long enough for several retries, had there been any.
    tokio::time::sleep(QUICK.longest_retry * 5).await;
    assert_eq!(discord.count(), 1);

    world.config.send_replace(config(vec![entry(&discord.url, &NoticeKind::ALL)]));
    world.settled().await;
    assert_eq!(
        trail(&discord.seen(3).await)[1..],
        [("POST", 200, LIVE), ("POST", 200, "shop: deploying bbbbbbb by Ada: Next")]
    );
}

#[tokio::test]
async fn what_discord_refuses_is_told_plainly_and_does_not_block() {
    let discord = Discord::start().await;
    let refused = || Script::Answer(400, json!({"code": 50035, "message": "Invalid Form Body"}), &[]);
    discord.script([refused(), Script::Answer(200, json!({"id": "5"}), &[]), refused(), refused()]);
    let world = World::new(&discord).await;
    let first = world.push('a', "Fix cart").await;
    world.finish(first, Status::Failed, Some("no Dockerfile")).await;
    world.settled().await;
    let second = world.push('b', "Next").await;
    world.finish(second, Status::Failed, Some("no Dockerfile")).await;
    let third = world.push('c', "Last").await;
    world.finish(third, Status::Failed, Some("no Dockerfile")).await;
    world.settled().await;
    let seen = discord.seen(5).await;
    assert_eq!(seen.iter().map(|seen| seen.status).collect::<Vec<_>>(), [400, 200, 400, 400, 200]);
    assert_eq!((&seen[0].body["embeds"][0]["title"], &seen[1].body["embeds"]), (&json!("shop: failed"), &json!([])));
    assert_eq!(seen[0].content(), seen[1].content());
    assert!(seen[4].content().contains("ccccccc"));
}

#[tokio::test]
async fn a_restart_in_the_middle_goes_on_with_the_same_message() {
    let discord = Discord::start().await;
    let world = World::new(&discord).await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    discord.seen(1).await;
    world.settled().await;

    // The end is written while nobody delivers.
    discord.script((0..1000).map(|_| fails(503)));
    world.finish(id, Status::Succeeded, None).await;
    discord.seen(3).await;
    let world = world.restart().await;
    let again = discord.count();
    discord.seen(again + 1).await;
    discord.recover();
    world.settled().await;
    let seen = discord.seen(again + 2).await;
    assert!(seen[1..].iter().all(|seen| seen.method == "PATCH"), "{:?}", trail(&seen));
    assert_eq!(discord.channel(), [LIVE]);
}

#[tokio::test]
async fn each_receiver_gets_what_it_asked_for_at_its_own_pace() {
    let (slow, quick) = (Discord::start().await, Discord::start().await);
    slow.script((0..1000).map(|_| fails(500)));
    let entries = vec![entry(&slow.url, &NoticeKind::ALL), entry(&quick.url, &[NoticeKind::Failed])];
    let world = World::with(entries, QUICK).await;
    let first = world.push('a', "Fix cart").await;
    world.advance(first).await;
    world.finish(first, Status::Succeeded, None).await;
    let second = world.push('b', "Break it").await;
    world.advance(second).await;
    world.finish(second, Status::Failed, Some("no Dockerfile")).await;
    let failed = "shop: bbbbbbb by Ada failed: no Dockerfile; nothing is live yet";
    assert_eq!(trail(&quick.seen(1).await), [("POST", 200, failed)]);

    // The order in the file does not matter, and what was told is not told again.
    let entries = vec![entry(&quick.url, &NoticeKind::ALL), entry(&slow.url, &NoticeKind::ALL)];
    world.config.send_replace(config(entries));
    let third = world.push('c', "Mend it").await;
    world.advance(third).await;
    assert_eq!(trail(&quick.seen(2).await)[1], ("POST", 200, "shop: deploying ccccccc by Ada: Mend it"));

    // A receiver that is taken out is left alone.
    world.config.send_replace(config(vec![entry(&quick.url, &NoticeKind::ALL)]));
    world.finish(third, Status::Succeeded, None).await;
    quick.seen(3).await;
    let mut count = usize::MAX;
    let quiet = async {
        while std::mem::replace(&mut count, slow.count()) != slow.count() {
            tokio::time::sleep(QUICK.longest_retry * 3).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), quiet).await.expect("the requests end");
}

#[tokio::test]
async fn a_start_is_told_to_who_wants_to_know_no_more() {
    let discord = Discord::start().await;
    let mut world = World::with(vec![entry(&discord.url, &[NoticeKind::Started])], QUICK).await;
    world.end().await;
    let id = world.push('a', "Fix cart").await;
    world.advance(id).await;
    world.finish(id, Status::Succeeded, None).await;
    world.begin().await;
    world.settled().await;
    assert_eq!(trail(&discord.seen(1).await), [("POST", 200, BEGUN)]);
}

#[tokio::test]
async fn old_news_is_dropped() {
    let discord = Discord::start().await;
    let timing = Timing { max_age: Duration::from_millis(50), ..QUICK };
    let mut world = World::with(vec![entry(&discord.url, &NoticeKind::ALL)], timing).await;
    world.end().await;
    let old = world.push('a', "Fix cart").await;
    world.finish(old, Status::Failed, Some("no Dockerfile")).await;
    tokio::time::sleep(timing.max_age * 2).await;
    world.begin().await;
    world.settled().await;
    assert_eq!(discord.count(), 0);
}

#[tokio::test]
async fn a_receiver_that_is_behind_is_spared_a_message_for_every_push() {
    let discord = Discord::start().await;
    let timing = Timing { patience: Duration::from_millis(50), ..QUICK };
    let mut world = World::with(vec![entry(&discord.url, &NoticeKind::ALL)], timing).await;
    world.end().await;
    for digit in "abcdef0123456789".chars() {
        world.push(digit, "Again").await;
    }
    tokio::time::sleep(timing.patience * 2).await;
    world.begin().await;
    world.settled().await;
    let last = "shop: 8888888 by Ada was superseded by \\#16, 9999999, and 14 before it";
    assert_eq!(trail(&discord.seen(1).await), [("POST", 200, last)]);
}

#[tokio::test]
async fn what_the_journal_knows_is_told() {
    let discord = Discord::start().await;
    let mut world = World::new(&discord).await;
    world.end().await;
    let first = world.push('a', "Fix cart").await;
    world.advance(first).await;
    let release = world.release(first, 'a', 2).await;
    world.store.set_scale(&app(), &"web".parse().unwrap(), 2, 4).await.unwrap();
    world.store.set_live(&app(), release, true).await.unwrap();
    world.store.set_release(first, release).await.unwrap();
    world.finish(first, Status::Succeeded, None).await;

    let second = world.push('b', "Break it").await;
    world.advance(second).await;
    world.release(second, 'b', 2).await;
    world.journal.advance(&app(), second, Status::RollingOut).await.unwrap();
    let latency = |p50_us, p99_us| Some(Latency { p50_us, p99_us });
    let requests = Requests {
        served: Some(10_000),
        server_errors: Some(2_071),
        failed: Some(1),
        retried: Some(4),
        latency_before: latency(2_500, 48_700),
        latency_during: latency(2_900, 1_240_000),
        drains: None,
    };
    world.store.set_requests(second, requests).await.unwrap();
    let drained = |cut_requests, took| Drained { cut_requests, cut_streams: 0, took, confirmed: true };
    for (instance, cut) in [("d1-web-1", 0), ("d1-web-2", 2)] {
        let instance = InstanceId::parse(instance).unwrap();
        // Told again after a crash.
        for _ in 0..2 {
            let how = drained(cut, Duration::from_millis(cut * 700));
            world.store.record_drain(second, &instance, how).await.unwrap();
        }
    }
    let log = world.journal.log(&app(), second).await.unwrap();
    (1..=40).for_each(|n| log.line(format!("line {n}")));
    let finish = Finish {
        status: Status::RolledBack,
        reason: Some("web-2 was not ready after 60 s".into()),
        superseded_by: None,
        hold: true,
    };
    let web = |serving| ServiceServed { service: "web".parse().unwrap(), wanted: 4, serving };
    let served = Served { services: vec![web(0)], stand_ins: Vec::new(), why: Some("exited with code 3".into()) };
    assert!(world.journal.finish_with(&app(), second, finish.clone(), Some(served)).await.unwrap());
    // It has ended as it has: what is so later does not count.
    let later = Served { services: vec![web(4)], ..Served::default() };
    assert!(!world.journal.finish_with(&app(), second, finish, Some(later)).await.unwrap());
    world.begin().await;
    world.settled().await;

    let seen = discord.seen(2).await;
    let field = |seen: &Seen, name: &str| {
        let fields = seen.body["embeds"][0]["fields"].as_array().unwrap();
        fields.iter().find(|field| field["name"] == name).map(|field| field["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(seen[0].content(), "shop: v1 is live, aaaaaaa by Ada: Fix cart");
    assert_eq!(field(&seen[0], "Release").as_deref(), Some("v1"));
    assert_eq!(field(&seen[0], "Instances").as_deref(), Some("web 4"));
    assert_eq!(field(&seen[0], "Requests during the rollout"), None);

    assert_eq!(
        seen[1].content(),
        "shop: bbbbbbb by Ada was rolled back: web-2 was not ready after 60 s; v1 is live, but no instance of web serves: exited with code 3"
    );
    assert_eq!(
        field(&seen[1], "Release").as_deref(),
        Some("v2 is not live, v1 is live, but no instance of web serves: exited with code 3")
    );
    assert_eq!(
        field(&seen[1], "Requests during the rollout").as_deref(),
        Some(
            "10,000 served, 2,071 of them 5xx of the app's own, 4 tried a second time, 1 failed, 2 cut; median / 99 %: \
             2.9 ms / 1.2 s, before 2.5 ms / 49 ms"
        )
    );
    let record = world.store.deployment(second).await.unwrap().unwrap();
    assert_eq!(record.requests.drains.map(|drains| (drains.cut_streams, drains.longest_ms)), Some((Some(0), 1_400)));
    assert!(field(&seen[1], "Held").is_some_and(|held| held.starts_with("bbbbbbb is not deployed again")));
    let description = seen[1].body["embeds"][0]["description"].as_str().unwrap();
    assert!(description.starts_with("web-2 was not ready after 60 s\n```\nline 26\n"), "{description}");
    assert!(description.ends_with("line 40\n```"), "{description}");
}

#[tokio::test]
async fn the_stand_in_sees_hostile_text_as_text() {
    let discord = Discord::start().await;
    let world = World::new(&discord).await;
    let id = world.push('a', "@everyone <@&1> [x](javascript:1)").await;
    world.advance(id).await;
    let seen = discord.seen(1).await;
    assert_eq!(seen[0].content(), r"shop: deploying aaaaaaa by Ada: \@everyone \<\@&1\> \[x\]\(javascript:1\)");
    assert_eq!(seen[0].body["embeds"][0]["fields"][3]["value"], r"\@everyone \<\@&1\> \[x\]\(javascript:1\)");
}

#[tokio::test]
async fn failures_are_described_without_the_address() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}/api/webhooks/1/s3cret?thread_id=5");
    let target = Target { url: url.into(), allow_local: true, events: Vec::new() };
    let payload = discord::Payload::new(&message::compose(&fixtures::facts(message::News::Failed)));
    let webhook = webhook::Webhook::new(&target, Duration::from_millis(50)).unwrap();

    let webhook::Answer::Unavailable(late) = webhook.post(&payload).await else { panic!("nobody answers") };
    drop(listener);
    let webhook::Answer::Unavailable(refused) = webhook.post(&payload).await else { panic!("nobody listens") };
    assert_eq!(late, "no answer in time");
    assert!(refused.contains("refused") && !refused.contains("s3cret"), "{refused}");
}

#[test]
fn a_receivers_name_is_stable_and_tells_no_secret() {
    let url = "https://discord.com/api/webhooks/1/token";
    assert_eq!(target_name(&url.to_owned().into()), "discord:a5d61a203b80dcff");
    let twice = config(vec![entry(url, &[NoticeKind::Failed]), entry(url, &[NoticeKind::Started])]);
    let targets = targets(&twice);
    assert_eq!(targets.len(), 1);
    assert!(targets.values().all(|target| target.events == [NoticeKind::Failed, NoticeKind::Started]));
}

#[tokio::test]
async fn each_channel_is_told_of_an_outage_once_and_of_its_end_once() {
    let (one, other) = (Discord::start().await, Discord::start().await);
    // Two entries with one address are one channel.
    let entries = [&one, &one, &other].map(|discord| entry(&discord.url, &NoticeKind::ALL));
    let mut world = World::with(entries.to_vec(), QUICK).await;
    let since = jiff::Timestamp::now();
    world.journal.begin_outage("unix:///x", "gone", since).await.unwrap();
    assert!(one.seen(1).await[0].content().contains("has not answered since"));
    other.seen(1).await;
    world = world.restart().await;
    world.journal.begin_outage("unix:///x", "gone", since).await.unwrap();
    world.journal.end_outage().await.unwrap();
    for discord in [&one, &other] {
        let seen = discord.seen(2).await;
        assert!(seen[1].content().contains("answers again after"), "{}", seen[1].content());
        assert_eq!(seen[1].method, "POST", "an edit would make no phone ring");
    }
    world.settled().await;
    assert_eq!((one.channel().len(), other.channel().len()), (2, 2));
}

#[tokio::test]
async fn an_outage_that_is_over_before_it_is_told_is_told_by_its_end() {
    let discord = Discord::start().await;
    let mut world = World::new(&discord).await;
    world.end().await;
    world.journal.begin_outage("unix:///x", "gone", jiff::Timestamp::now()).await.unwrap();
    world.journal.end_outage().await.unwrap();
    world.begin().await;
    let seen = discord.seen(1).await;
    assert!(seen[0].content().contains("answers again after"), "{}", seen[0].content());
    world.settled().await;
    assert_eq!(discord.channel().len(), 1);
}

#[tokio::test]
async fn a_certificate_is_told_to_those_who_want_it_and_not_when_it_is_over_already() {
    let (all, failures) = (Discord::start().await, Discord::start().await);
    let entries = vec![
        entry(&all.url, &NoticeKind::ALL),
        entry(&failures.url, &[NoticeKind::CertificateFailed, NoticeKind::Failed]),
    ];
    let mut world = World::with(entries, QUICK).await;
    let trouble = |host: &str| CertificateTrouble {
        host: Some(host.into()),
        directory: "https://ca.example/dir".into(),
        why: "no valid A records".into(),
        times: 3,
        since: jiff::Timestamp::now(),
        good_until: None,
    };
    world.journal.raise_certificate_alert(&trouble("a.test")).await.unwrap();
    for discord in [&all, &failures] {
        let seen = discord.seen(1).await;
        assert!(seen[0].content().starts_with("a.test has no certificate"), "{}", seen[0].content());
    }
    world.journal.end_certificate_alert(Some("a.test"), Some(jiff::Timestamp::now()), true).await.unwrap();
    assert!(all.seen(2).await[1].content().starts_with("a.test has a new certificate, good until"));
    // One that is over before it is told is told by its end, and one that nobody wants any more not at all.
    world.end().await;
    for host in ["b.test", "c.test"] {
        world.journal.raise_certificate_alert(&trouble(host)).await.unwrap();
        world.journal.end_certificate_alert(Some(host), None, host == "b.test").await.unwrap();
    }
    world.begin().await;
    world.settled().await;
    assert!(all.seen(3).await[2].content().starts_with("b.test has a new certificate"));
    assert_eq!((all.channel().len(), failures.channel().len()), (3, 3), "{:?}", failures.channel());
}
