//! A deployment that failed could not put everything back, and the agent starts again: what it left and serves goes on
//! serving until the live release does, and not a moment longer; what never served does not begin to.

use bollard::query_parameters::{
    ImportImageOptionsBuilder, KillContainerOptions, RemoveContainerOptions, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

impl Shop {
    /// Kills the agent, and has the journal say that its deployment was undone: as it is when nothing could take the places
    /// of what it had switched to.
    async fn die_undone(&mut self, id: u64) {
        self.agent.kill().await;
        let journal = rusqlite::Connection::open(self.agent.data_dir().join("journal.db")).expect("a journal");
        let sql = "UPDATE deployments SET status = 'rolled_back', reason = 'as far as possible', finished_at = started_at \
                   WHERE id = ?";
        assert_eq!(journal.execute(sql, [id as i64]).expect("written"), 1);
    }

    /// Waits until the engine has the instances of these deployments alone.
    async fn runs_alone(&self, expected: &[&str]) {
        eventually("only these run", LIMIT, async || {
            let mut running: Vec<String> =
                self.instances("web").await.iter().map(|c| c.label("longshore.instance").to_owned()).collect();
            running.sort();
            if running == expected { Ok(()) } else { Err(format!("{running:?}\n{}", self.agent.log())) }
        })
        .await;
    }

    /// Has the second version be all that serves: it was undone, and the first one, which is live, cannot be started.
    async fn leave_v2_alone(&mut self) {
        let id = self.push_without_waiting(&Behaviour::version("v2")).await;
        self.reaches(id, "watching").await;
        self.runs_alone(&["d2-web-1", "d2-web-2"]).await;
        self.die_undone(id).await;
        for container in self.instances("web").await {
            assert_eq!(container.label("longshore.release"), "2");
        }
        let images = self.engine.objects(&self.agent.id()).await.images;
        assert_eq!(images.len(), 2, "{images:?}");
        let used = self.instances("web").await.swap_remove(0).id;
        let used = self.engine.docker.inspect_container(&used, None).await.expect("a container").image;
        for image in images.iter().filter(|image| Some(&image.id) != used.as_ref()) {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            self.engine.docker.remove_image(&image.id, Some(options), None).await.expect("removed");
        }
        self.agent.start().await;
        self.is_told_of("d1-web-1", "is not on this machine").await;
        assert_eq!(self.version().await, "v2");
        self.shows("  0/2  ✗v1 not running ■v2 stands in ✗v1 not running ■v2 stands in").await;
    }

    /// The part of those that stand in is over with the next release that serves.
    async fn gives_way_to_v3(&mut self) {
        self.reconfigure(&Options::default()).await;
        let next = self.push(&Behaviour::version("v3")).await;
        assert_eq!(next["status"], "succeeded", "{next:#}");
        self.runs_alone(&["d3-web-1", "d3-web-2"]).await;
        assert_eq!(self.version().await, "v3");
    }

    /// Waits until `longshore status` has this of `web`.
    async fn shows(&self, part: &str) {
        eventually(&format!("status shows {part:?}"), LIMIT, async || {
            let shown = self.agent.cli(&["status", "shop"]).await;
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            if shown.lines().any(|line| line.trim_start().starts_with("web") && line.contains(part)) {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    }

    async fn is_told_of(&self, instance: &str, part: &str) {
        eventually(&format!("drift says {part:?} of {instance}"), LIMIT, async || {
            let drift = self.drift_of(instance).await;
            if drift.iter().any(|what| what.contains(part)) { Ok(()) } else { Err(format!("{drift:?}")) }
        })
        .await;
    }

    /// Waits until these alone run, and are ready.
    async fn serve_again(&self, expected: &[&str]) {
        self.runs_alone(expected).await;
        eventually("they are ready", LIMIT, async || {
            let app = self.app().await;
            let ready = |id: &&str| {
                let all = app["instances"].as_array().expect("instances");
                all.iter().any(|i| i["id"] == **id && i["health"] == "ready")
            };
            if expected.iter().all(ready) { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
    }

    async fn drift_of(&self, instance: &str) -> Vec<String> {
        let entries = self.agent.get("/api/v1/apps/shop/drift").await;
        let all = entries.as_array().expect("a list").iter();
        let about = all.filter(|entry| entry["instance"] == instance);
        about.filter_map(|entry| entry["what"].as_str()).map(str::to_owned).collect()
    }
}

fn release_of(instance: &Value) -> u64 {
    instance["release"].as_u64().expect("a number")
}

#[tokio::test]
async fn what_alone_serves_goes_when_the_live_release_serves_and_nobody_notices() {
    let Some(engine) = engine::or_skip("what_alone_serves_goes_when_the_live_release_serves").await else { return };
    let slow = Behaviour::version("v1").ready_after_ms(3000);
    let mut shop = Shop::live(&engine, &slow, Options::default().watch("300s")).await;
    let load = shop.load();
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.reaches(id, "watching").await;
    shop.runs_alone(&["d2-web-1", "d2-web-2"]).await;

    shop.die_undone(id).await;
    shop.agent.start().await;
    assert_eq!(shop.version().await, "v2", "nobody else can answer yet");
    let app = shop.app().await;
    assert_eq!(app["live"]["release"], 1, "{app:#}");
    // One more start in the middle changes nothing.
    shop.agent.restart().await;
    shop.runs_alone(&["d1-web-1", "d1-web-2"]).await;
    eventually("only the live release is known", LIMIT, async || {
        let app = shop.app().await;
        let all = app["instances"].as_array().expect("instances");
        if all.len() == 2 && all.iter().all(|i| release_of(i) == 1) { Ok(()) } else { Err(format!("{app:#}")) }
    })
    .await;
    assert_eq!(shop.version().await, "v1");
    shop.assert_live(1, &[("web", 2)]).await;
    load.stop().await.assert_flawless(500);
    assert!(shop.drift_of("d2-web-1").await.iter().any(|what| what.contains("is not needed any more")));
    shop.finish().await;
}

#[tokio::test]
async fn the_live_release_is_started_again_and_again_while_what_could_not_be_replaced_stands_in() {
    let Some(engine) = engine::or_skip("the_live_release_is_started_again").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("300s")).await;
    let v1 = shop.instances("web").await.swap_remove(0).id;
    let v1 = shop.engine.docker.inspect_container(&v1, None).await.expect("a container").image.expect("an image");
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.reaches(id, "watching").await;
    shop.runs_alone(&["d2-web-1", "d2-web-2"]).await;

    // Without its image the first version cannot be started.
    let name = shop.engine.docker.inspect_image(&v1).await.expect("an image").repo_tags.expect("names").swap_remove(0);
    let saved = shop.engine.docker.export_image(&name).try_collect::<Vec<Bytes>>().await.expect("saved").concat();
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    shop.engine.docker.remove_image(&v1, Some(options), None).await.expect("removed");
    let first = shop.instances("web").await.into_iter().find(|c| c.label("longshore.slot") == "1").expect("running");
    shop.engine.docker.kill_container(&first.id, None::<KillContainerOptions>).await.expect("killed");
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(
        &ended,
        "rolled_back",
        &["web-1 could not be restored after 3 attempts", "web-2 could not be restored"],
    );
    shop.is_told_of("d1-web-1", "is not on this machine").await;
    shop.serve_again(&["d2-web-1", "d2-web-2"]).await;
    shop.shows("  0/2  ✗v1 not running ■v2 stands in ✗v1 not running ■v2 stands in").await;
    let shown = shop.agent.cli(&["status", "shop"]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("v2 stands in, left behind by a deployment, until v1 does: d1-web-1 could not be"),
        "{shown}"
    );
    let app = shop.app().await;
    assert_eq!(app["services"][0]["instances"]["serving"], 0, "{app:#}");
    assert_eq!(app["services"][0]["instances"]["standing_in"], 2, "{app:#}");

    let load = shop.load();
    let body = bollard::body_full(saved.into());
    let options = ImportImageOptionsBuilder::new().build();
    shop.engine.docker.import_image(options, body, None).try_collect::<Vec<_>>().await.expect("loaded");
    shop.serve_again(&["d1-web-1", "d1-web-2"]).await;
    assert_eq!(shop.version().await, "v1");
    shop.assert_live(1, &[("web", 2)]).await;
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn one_that_stands_in_is_not_live_for_the_next_deployment() {
    let Some(engine) = engine::or_skip("one_that_stands_in_is_not_live").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("300s")).await;
    let load = shop.load();
    shop.leave_v2_alone().await;
    assert_eq!(shop.version().await, "v2");
    shop.gives_way_to_v3().await;
    load.stop().await.assert_flawless(500);
    shop.finish().await;
}

#[tokio::test]
async fn one_that_stands_in_and_ends_comes_back_as_long_as_nobody_else_serves() {
    let Some(engine) = engine::or_skip("one_that_stands_in_and_ends_comes_back").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("300s")).await;
    shop.leave_v2_alone().await;
    let both = ["d2-web-1", "d2-web-2"];
    for container in shop.instances("web").await {
        shop.engine.docker.kill_container(&container.id, None::<KillContainerOptions>).await.expect("killed");
    }
    shop.is_told_of("d2-web-1", "was ended by signal 9").await;
    shop.serve_again(&both).await;
    assert_eq!(shop.version().await, "v2");
    for container in shop.instances("web").await {
        let options = RemoveContainerOptions { force: true, ..Default::default() };
        shop.engine.docker.remove_container(&container.id, Some(options)).await.expect("removed");
    }
    shop.is_told_of("d2-web-2", "starting it (attempt 2); if that fails, again in 2s").await;
    shop.serve_again(&both).await;
    assert_eq!(shop.version().await, "v2");
    shop.gives_way_to_v3().await;
    shop.finish().await;
}

#[tokio::test]
async fn those_that_stand_in_and_end_while_no_agent_runs_come_back_with_it() {
    let Some(engine) = engine::or_skip("those_that_stand_in_and_end_while_no_agent_runs").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("300s")).await;
    shop.leave_v2_alone().await;
    let both = ["d2-web-1", "d2-web-2"];
    // First all that the proxy's table has, then what it has forgotten: it had ended when the agent did.
    for is_known_to_have_ended in [false, true] {
        if !is_known_to_have_ended {
            shop.agent.kill().await;
        }
        for container in shop.instances("web").await.iter().filter(|c| c.label("longshore.release") == "2") {
            shop.engine.docker.kill_container(&container.id, None::<KillContainerOptions>).await.expect("killed");
        }
        if is_known_to_have_ended {
            eventually("the agent knows of both ends", LIMIT, async || {
                let log = shop.agent.log();
                if log.matches("was ended by signal 9").count() >= 2 { Ok(()) } else { Err(log) }
            })
            .await;
            shop.agent.kill().await;
        }
        shop.agent.start().await;
        shop.serve_again(&both).await;
        assert_eq!(shop.version().await, "v2");
    }
    shop.finish().await;
}

#[tokio::test]
async fn what_never_passed_its_gate_does_not_stand_in() {
    let Some(engine) = engine::or_skip("what_never_passed_its_gate_does_not_stand_in").await else { return };
    let slow = Behaviour::version("v1").ready_after_ms(2000);
    let mut shop = Shop::live(&engine, &slow, Options::default()).await;
    let id = shop.push_without_waiting(&Behaviour::version("bad").never_ready()).await;
    shop.says(id, "web-1: starting").await;
    eventually("it runs", LIMIT, async || {
        let all = shop.instances("web").await;
        let runs = all.iter().any(|c| c.label("longshore.instance") == "d2-web-1" && c.state == "running");
        if runs { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    shop.die_undone(id).await;
    for container in shop.instances("web").await.iter().filter(|c| c.label("longshore.release") == "1") {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        shop.engine.docker.remove_container(&container.id, Some(options)).await.expect("removed");
    }
    let load = shop.load();
    shop.agent.start().await;
    shop.runs_alone(&["d1-web-1", "d1-web-2"]).await;
    shop.all_ready().await;
    let report = load.stop().await;
    assert!(!report.versions.contains_key("bad"), "{:?}", report.versions);
    assert_eq!(shop.version().await, "v1");
    shop.finish().await;
}
