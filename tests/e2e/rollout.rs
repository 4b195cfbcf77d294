//! A push goes live, and nobody notices.

use crate::shop::{Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::site::Behaviour;

#[tokio::test]
async fn a_new_version_replaces_the_old_one_without_a_failed_request() {
    let Some(engine) = engine::or_skip("a_new_version_replaces_the_old_one").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    assert_eq!(shop.version().await, "v1");

    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2")).await;
    assert_ended(&deployment, "succeeded", &[]);
    assert_eq!(deployment["release"], 2);
    assert_eq!(shop.version().await, "v2");
    let report = load.stop().await;
    report.assert_flawless(100);
    assert_eq!(deployment["requests"]["failed"], 0, "{deployment:#}");
    assert!(deployment["requests"]["served"].as_u64().unwrap() > 50, "{deployment:#}");

    shop.assert_live(2, &[("web", 2)]).await;
    shop.told(1, &["v1 is live"]).await;
    shop.told(2, &["v2 is live"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn five_instances_and_a_worker_are_replaced_one_by_one() {
    let Some(engine) = engine::or_skip("five_instances_and_a_worker").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::web_and_worker(5, 2)).await;
    shop.assert_live(1, &[("web", 5), ("worker", 2)]).await;

    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2").ready_after_ms(100)).await;
    assert_ended(&deployment, "succeeded", &[]);
    let report = load.stop().await;
    report.assert_flawless(200);
    assert_eq!(report.versions.keys().collect::<Vec<_>>(), ["v1", "v2"]);
    shop.assert_live(2, &[("web", 5), ("worker", 2)]).await;
    // The next one starts only when the one before is ready.
    let log = shop.log(2).await;
    let place = |line: String| log.find(&line).unwrap_or_else(|| panic!("{line:?} is missing in\n{log}"));
    for number in 1..5 {
        assert!(place(format!("d2-web-{number}: ready")) < place(format!("d2-web-{}: starting", number + 1)), "{log}");
    }
    shop.told(2, &["v2 is live"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn an_old_version_that_ignores_sigterm_is_killed_after_its_grace() {
    let Some(engine) = engine::or_skip("an_old_version_that_ignores_sigterm").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1").ignore_sigterm(), Options::default()).await;
    let load = shop.load();
    let deployment = shop.push(&Behaviour::version("v2")).await;
    assert_ended(&deployment, "succeeded", &[]);
    load.stop().await.assert_flawless(100);
    shop.assert_live(2, &[("web", 2)]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_volume_forces_the_old_one_to_stop_first() {
    let Some(engine) = engine::or_skip("a_volume_forces_the_old_one_to_stop_first").await else { return };
    let options = |watch| Options {
        keys: "port = 8000\ninstances = 2\nhealth = { path = \"/healthz\", start_deadline = \"4s\" }\n\
               stop_grace = \"2s\"\nvolumes = [\"media:/media\"]\n"
            .to_owned(),
        watch: "0s\"\norder = \"stop_first",
        tables: watch,
    };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options(String::new())).await;
    // With two instances the other one serves meanwhile.
    let load = shop.load();
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    let log = shop.log(2).await;
    let place = |line: &str| log.find(line).unwrap_or_else(|| panic!("{line:?} is missing in\n{log}"));
    assert!(place("d1-web-1: stopped") < place("d2-web-1: starting"), "{log}");
    assert!(place("d1-web-2: stopped") < place("d2-web-2: starting"), "{log}");

    // The second place fails when its old instance is gone already: the first one goes back too.
    let bad = Behaviour::version("v3").never_ready().only_on("-2");
    assert_ended(&shop.push(&bad).await, "rolled_back", &["web-2", "not ready in time"]);
    load.stop().await.assert_flawless(100);
    shop.assert_live(2, &[("web", 2)]).await;
    let volumes = engine.objects(&shop.agent.id()).await.volumes;
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    shop.finish().await;
}

#[tokio::test]
async fn a_commit_that_changes_nothing_in_the_image_replaces_nothing() {
    let Some(engine) = engine::or_skip("a_commit_that_changes_nothing").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::default().watch("5s")).await;
    shop.repo.write(".dockerignore", "README.md\n.dockerignore\n");
    shop.repo.write("README.md", "A shop.\n");
    shop.repo.commit("Describe it");
    shop.repo.push("main");
    shop.deploy_first().await;
    let before = shop.instances("web").await;

    shop.repo.write("README.md", "A shop, described better.\n");
    shop.repo.commit("Describe it better");
    let id = shop.deliver(&shop.repo.push("main")).await;
    let deployment = shop.agent.deployment_ended(id, crate::shop::LIMIT).await;
    assert_ended(&deployment, "succeeded", &["unchanged"]);
    let took = crate::shop::seconds_in(&deployment, "rolling_out") + crate::shop::seconds_in(&deployment, "watching");
    assert!(took < 1.0, "nothing to roll out took {took} s: {deployment:#}");
    let log = shop.log(id).await;
    assert!(log.contains("nothing to build") && log.contains("nothing to replace"), "{log}");
    let after = shop.instances("web").await;
    let ids = |all: &[engine::Container]| all.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    assert_eq!(shop.app().await["live"]["commit"], deployment["commit"]);
    shop.told(2, &["is live"]).await;
    shop.finish().await;
}
