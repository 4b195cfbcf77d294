//! An app is taken out of the configuration, or renamed: what it has open ends before it is let go, and what serves runs on.

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::engine::{self, Container};
use crate::support::site::Behaviour;
use crate::support::spawned::Spawned;
use crate::support::wait::eventually;

const MINUTE: u64 = 60_000;
const TAKEN_OUT: &str = "cancelled because the app was taken out of deploy.toml";
const LEFT: &str = "warning: shop is not configured any more; 2 instances run on with the requests of its domains";

impl Shop {
    /// The configuration without the shop.
    fn without(&self) -> String {
        let config = Self::config(&self.repo, &Options::default());
        let (notify, _) = config.split_once("[apps.shop]").expect("what comes before the shop");
        format!("{notify}[apps.blog]\nrepo = {:?}\nallow_local = true\nport = 8000\n", self.repo.url())
    }

    /// The same with the shop under another name.
    fn renamed(&self, options: &Options) -> String {
        Self::config(&self.repo, options).replace("[apps.shop", "[apps.store")
    }

    async fn reload(&mut self, config: &str) {
        let reloads = |log: String| log.matches("configuration reloaded").count();
        let before = reloads(self.agent.log());
        self.agent.set_config(config);
        self.agent.signal(Signal::SIGHUP);
        eventually("the configuration is reloaded", LIMIT, async || {
            let log = self.agent.log();
            if reloads(log.clone()) > before { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// `status`, once it says so.
    async fn status_says(&self, part: &str) -> String {
        let mut said = String::new();
        eventually(&format!("status says {part:?}"), LIMIT, async || {
            let output = self.agent.cli(&["status"]).await;
            said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains(part) { Ok(()) } else { Err(said.clone()) }
        })
        .await;
        said
    }

    /// Fails unless the first release's two instances are all that there is.
    async fn assert_first_runs_alone(&self) {
        let containers = self.engine.objects(&self.agent.id()).await.containers;
        assert_eq!(containers.len(), 2, "{containers:#?}");
        assert!(containers.iter().all(|c| c.label("longshore.release") == "1"), "{containers:#?}");
    }

    /// The name comes back: nothing that was open goes on.
    async fn comes_back(&mut self, options: &Options, ended: &[Value]) {
        self.reconfigure(options).await;
        eventually("both instances are adopted, and ready", LIMIT, async || {
            let app = self.app().await;
            let all = app["instances"].as_array().unwrap();
            let are_ready = all.len() == 2 && all.iter().all(|instance| instance["health"] == "ready");
            if are_ready { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
        self.assert_live(1, &[("web", 2)]).await;
        for deployment in ended {
            let now = self.deployment(deployment["id"].as_u64().unwrap()).await;
            assert_eq!((&now["status"], &now["finished_at"]), (&deployment["status"], &deployment["finished_at"]));
        }
        assert!(!self.status_says("shop").await.contains("not configured any more"));
    }
}

fn ids(containers: &[Container]) -> Vec<&str> {
    containers.iter().map(|container| container.id.as_str()).collect()
}

#[tokio::test]
async fn a_canary_is_undone_and_what_waits_is_cancelled() {
    let Some(engine) = engine::or_skip("departing_canary").await else { return };
    let canary = Options::default().table("strategy = \"canary\"\nsteps = [25]\npause = \"80s\"");
    let canary = Options { tables: canary.tables, ..canary };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), canary.clone()).await;
    let before = shop.instances("web").await;
    let load = shop.load();
    let under_way = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.says(under_way, "step 1 of 2: 25 % of the requests").await;
    let waiting = shop.push_without_waiting(&Behaviour::version("v3")).await;

    shop.reload(&shop.without()).await;
    let at_once = shop.deployment(waiting).await;
    assert_ended(&at_once, "cancelled", &[TAKEN_OUT, "while it waited"]);
    let undone = shop.agent.deployment_ended(under_way, LIMIT).await;
    assert_ended(&undone, "cancelled", &[TAKEN_OUT]);
    shop.assert_first_runs_alone().await;
    assert_eq!(ids(&shop.instances("web").await), ids(&before), "the old ones were not touched");
    assert_eq!(shop.version().await, "v1");
    shop.status_says(LEFT).await;
    shop.told(2, &["was cancelled because the app was taken out", "v1 keeps serving"]).await;
    let again = shop.agent.cli(&["cancel", &under_way.to_string()]).await;
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && said.contains("was cancelled before"), "{again:?}");

    shop.comes_back(&canary, &[at_once, undone]).await;
    load.stop().await.assert_flawless(50);
    // And it is deployed to as before.
    let quick = Options::default().watch("0s");
    shop.reconfigure(&quick).await;
    assert_ended(&shop.push(&Behaviour::version("v4")).await, "succeeded", &[]);
    shop.finish().await;
}

#[tokio::test]
async fn one_that_was_cut_off_half_switched_is_undone_when_its_app_is_gone_at_the_next_start() {
    let Some(engine) = engine::or_skip("departed_while_no_agent_ran").await else { return };
    let options = Options::default();
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options.clone()).await;
    let load = shop.load();
    // The first is switched, the second is waited for.
    let under_way = shop.push_without_waiting(&Behaviour::version("v2").never_ready().only_on("-2")).await;
    shop.says(under_way, "web-2: starting").await;
    let waiting = shop.push_without_waiting(&Behaviour::version("v3")).await;
    shop.agent.kill().await;
    shop.agent.set_config(&shop.without());
    shop.agent.start().await;

    let undone = shop.agent.deployment_ended(under_way, LIMIT).await;
    assert_ended(&undone, "cancelled", &[TAKEN_OUT]);
    let waited = shop.deployment(waiting).await;
    assert_ended(&waited, "cancelled", &[TAKEN_OUT, "while it waited"]);
    shop.assert_first_runs_alone().await;
    assert_eq!(shop.version().await, "v1");
    shop.status_says(LEFT).await;
    let report = load.stop().await;
    report.assert_flawless(50);
    assert!(report.versions.contains_key("v2"), "{:?}", report.versions);
    shop.comes_back(&options, &[undone, waited]).await;
    shop.finish().await;
}

#[tokio::test]
async fn the_pusher_hears_the_end_of_a_release_command_that_is_stopped() {
    let Some(engine) = engine::or_skip("departing_while_releasing").await else { return };
    let options = Options::default().table("[apps.shop.release]\ncommand = [\"migrate\"]");
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options.clone()).await;
    let installed = shop.agent.cli(&["hook", "install", &shop.repo.url()]).await;
    assert!(installed.status.success(), "{installed:?}");
    shop.repo.write_site(&Behaviour::version("v2").migrate(0, MINUTE, "for ever"));
    shop.repo.commit("A command without end");
    let push = ["push", "origin", "HEAD:refs/heads/main"];
    let push = Spawned::start(Command::from(shop.repo.command(&shop.repo.work(), &push)));
    shop.reaches(2, "releasing").await;
    shop.says(2, "migrating for v2 for ever").await;
    shop.reload(&shop.without()).await;
    let cancelling = shop.agent.cli(&["cancel", "2"]).await;
    let said = String::from_utf8_lossy(&cancelling.stdout).into_owned();
    assert!(cancelling.status.success() && said.contains(TAKEN_OUT), "{cancelling:?}");

    let ended = push.ended(LIMIT).await;
    assert!(ended.text().contains(TAKEN_OUT), "{}", ended.text());
    shop.assert_first_runs_alone().await;
    let ended = shop.deployment(2).await;
    shop.comes_back(&options, &[ended]).await;
    shop.finish().await;
}

#[tokio::test]
async fn one_that_comes_back_before_it_is_gone_is_told_of_as_such() {
    let Some(engine) = engine::or_skip("departing_and_back").await else { return };
    let options = Options::web("instances = 2\nhealth = { path = \"/healthz\" }\nstop_grace = \"5s\"");
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options.clone()).await;
    // It takes its time to go.
    let id = shop.push_without_waiting(&Behaviour::version("v2").never_ready().ignore_sigterm()).await;
    shop.says(id, "web-1: starting").await;
    shop.reload(&shop.without()).await;
    shop.status_says(&format!("shop is not configured any more; #{id} of it is being undone before it is let go"))
        .await;
    shop.reload(&Shop::config(&shop.repo, &options)).await;
    shop.status_says(&format!("shop is configured again; #{id} of it is being undone before it begins anew")).await;
    let undone = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&undone, "cancelled", &[TAKEN_OUT]);
    shop.comes_back(&options, &[undone]).await;
    assert_ended(&shop.push(&Behaviour::version("v3")).await, "succeeded", &[]);
    shop.finish().await;
}

#[tokio::test]
async fn a_new_name_gets_the_requests_and_the_old_one_is_told_of_without() {
    let Some(engine) = engine::or_skip("renamed").await else { return };
    let options = Options::default();
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options.clone()).await;
    let load = shop.load();
    let open = shop.push_without_waiting(&Behaviour::version("v2").never_ready().only_on("-2")).await;
    shop.says(open, "web-2: starting").await;
    shop.reload(&shop.renamed(&options)).await;
    assert_ended(&shop.agent.deployment_ended(open, LIMIT).await, "cancelled", &[TAKEN_OUT]);
    shop.status_says(LEFT).await;

    shop.repo.write_site(&Behaviour::version("v3"));
    shop.repo.commit("Under another name");
    shop.repo.push("main");
    let deployed = shop.agent.cli(&["deploy", "store"]).await;
    assert!(deployed.status.success(), "{deployed:?}");
    let answer = shop.agent.visit(HOST, "/").await.unwrap().expect(200).text();
    assert_eq!(answer, "v3\n");
    // At this very moment: nothing is looked up for it.
    let said = String::from_utf8_lossy(&shop.agent.cli(&["status"]).await.stdout).into_owned();
    assert!(said.contains("shop is not configured any more; 2 instances run on without requests"), "{said}");
    load.stop().await.assert_flawless(50);
    shop.finish().await;
}
