//! A deployment is cancelled: confirmed once it is undone, and all is as before.

use serde_json::json;

use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::site::{Behaviour, DOCKERFILE};

const MINUTE: u64 = 60_000;

impl Shop {
    /// Cancels; everything is undone when it is confirmed.
    async fn cancelled(&self, id: u64, message: usize) {
        self.cancel(id).await;
        let deployment = self.agent.deployment_ended(id, LIMIT).await;
        // At this very moment, not a little later.
        self.assert_live(1, &[("web", 2)]).await;
        let containers = self.engine.objects(&self.agent.id()).await.containers;
        assert_eq!(containers.len(), 2, "{containers:#?}");
        assert_ended(&deployment, "cancelled", &["cancelled by"]);
        assert_eq!(self.version().await, "v1");
        self.told(message, &["was cancelled by", "v1 keeps serving"]).await;
    }

    /// Asked for a second time: it is as it is.
    async fn cancelled_for_good(&self, id: u64) {
        let before = self.deployment(id).await;
        let path = format!("/api/v1/deployments/{id}/cancel");
        let again = self.agent.api("POST", &path, Some(json!({}))).await.expect(200).json();
        assert_eq!((&again["status"], &again["finished_at"]), (&"cancelled".into(), &before["finished_at"]));
    }
}

#[tokio::test]
async fn in_the_queue_and_in_the_build() {
    let Some(engine) = engine::or_skip("in_the_queue_and_in_the_build").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let load = shop.load();
    shop.repo.write_site(&Behaviour::version("v2").migrate(0, MINUTE, "for ever"));
    shop.repo.write("Dockerfile", format!("{DOCKERFILE}RUN [\"/site\", \"migrate\"]\n"));
    shop.repo.commit("Build without end");
    let building = shop.deliver(&shop.repo.push("main")).await;
    shop.says(building, "migrating for v2 for ever").await;

    let queued = shop.push_without_waiting(&Behaviour::version("v3")).await;
    shop.cancel(queued).await;
    let at_once = shop.agent.get(&format!("/api/v1/deployments/{queued}")).await;
    assert_ended(&at_once, "cancelled", &["cancelled by"]);

    shop.cancelled(building, 2).await;
    shop.cancelled_for_good(building).await;
    load.stop().await.assert_flawless(20);
    // The slot is free again.
    assert_ended(&shop.push(&Behaviour::version("v4")).await, "succeeded", &[]);
    shop.finish().await;
}

#[tokio::test]
async fn in_the_release_command() {
    let Some(engine) = engine::or_skip("in_the_release_command").await else { return };
    let options = Options::default().table("[apps.shop.release]\ncommand = [\"migrate\"]");
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    let id = shop.push_without_waiting(&Behaviour::version("v2").migrate(0, MINUTE, "for ever")).await;
    shop.says(id, "migrating for v2 for ever").await;
    shop.cancelled(id, 2).await;
    shop.finish().await;
}

#[tokio::test]
async fn while_rolling_out() {
    let Some(engine) = engine::or_skip("while_rolling_out").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let load = shop.load();
    // The first is switched, the second is waited for.
    let id = shop.push_without_waiting(&Behaviour::version("v2").never_ready().only_on("-2")).await;
    shop.says(id, "web-2: starting").await;
    shop.cancelled(id, 2).await;
    let report = load.stop().await;
    report.assert_flawless(50);
    assert!(report.versions.contains_key("v2"), "{:?}", report.versions);
    shop.finish().await;
}

#[tokio::test]
async fn in_the_watch() {
    let Some(engine) = engine::or_skip("in_the_watch").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("60s")).await;
    let load = shop.load();
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.reaches(id, "watching").await;
    shop.cancelled(id, 2).await;
    load.stop().await.assert_flawless(50);
    shop.finish().await;
}

#[tokio::test]
async fn of_the_first_deployment_ever() {
    let Some(engine) = engine::or_skip("of_the_first_deployment_ever").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1").never_ready(), Options::default()).await;
    let id = shop.ask("POST", "/api/v1/apps/shop/deployments", json!({})).await;
    shop.says(id, "web-1: starting").await;
    shop.cancel(id).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "cancelled", &["cancelled by"]);
    assert!(shop.instances("web").await.is_empty());
    shop.told(1, &["was cancelled by", "nothing is live yet"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn while_undoing() {
    let Some(engine) = engine::or_skip("cancel::while_undoing").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("20s")).await;
    // Takes its time to stop, so that the undoing can be met.
    let bad = Behaviour::version("v2").ignore_sigterm().crash_after_ready_ms(3000, 8).only_on("-1");
    let id = shop.push_without_waiting(&bad).await;
    shop.says(id, "undoing").await;
    shop.cancel(id).await;
    // What is being undone is undone; it says why, and not that somebody wanted it as well.
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "rolled_back", &["exited with code 8"]);
    shop.assert_live(1, &[("web", 2)]).await;
    shop.told(2, &["was rolled back", "v1 keeps serving"]).await;
    shop.finish().await;
}
