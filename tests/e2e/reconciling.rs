//! What no delivery told of is found out, and what was accepted is not forgotten.

use std::time::Duration;

use serde_json::{Value, json};

use crate::shop::{LIMIT, Options, Shop};
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;
use crate::support::{engine, http};

/// Waits until the newest deployment is number `id`, and for its end.
async fn appears(shop: &Shop, id: u64) -> Value {
    eventually(&format!("deployment {id} appears"), Duration::from_secs(20), async || {
        let all = shop.deployments().await;
        let newest = all.first().and_then(|newest| newest["id"].as_u64());
        if newest == Some(id) { Ok(()) } else { Err(format!("{newest:?}")) }
    })
    .await;
    shop.agent.deployment_ended(id, LIMIT).await
}

#[tokio::test]
async fn a_push_without_a_delivery_is_only_late() {
    let Some(engine) = engine::or_skip("a_push_without_a_delivery").await else { return };
    // A branch that does not exist yet is waited for, without a word of complaint.
    let shop = Shop::start_on(&engine, Repo::new(), Options::quick(), "1s").await;
    // Several looks at the branch, of which nothing is to be seen.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(shop.deployments().await.len(), 0);
    assert!(!shop.agent.log().contains("could not be compared"), "{}", shop.agent.log());
    let unknown = shop.app().await["tip_unknown"].take();
    assert_eq!((&unknown["why"], &unknown["awaited"]), (&"branch main is not there yet".into(), &true.into()));
    assert_eq!(shop.agent.get("/readyz").await["warnings"], json!([]));

    shop.repo.push_site(&Behaviour::version("v1"));
    let first = appears(&shop, 1).await;
    assert_eq!((&first["status"], &first["trigger"]), (&"succeeded".into(), &"reconcile".into()), "{first:#}");
    let tip = shop.repo.push_site(&Behaviour::version("v2"));
    let second = appears(&shop, 2).await;
    assert_eq!((&second["status"], &second["commit"]), (&"succeeded".into(), &tip.into()), "{second:#}");
    assert_eq!(shop.version().await, "v2");

    // Rolled back by hand: the tip is known and stays where it is.
    let back = shop.ask_and_wait("POST", "/api/v1/apps/shop/rollback", json!({})).await;
    assert_eq!((&back["status"], &back["release"]), (&"succeeded".into(), &json!(1)), "{back:#}");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(shop.deployments().await.len(), 3);
    assert_eq!(shop.version().await, "v1");
    let told = shop.app().await["tip"].take();
    let why = "#2 succeeded, and another release was made live after it";
    assert_eq!(told, json!({ "commit": second["commit"], "why": why }));

    // A version that fails is tried once, and the next commit again.
    shop.repo.push_site(&Behaviour::version("v3").exit_at_once(3));
    assert_eq!(appears(&shop, 4).await["status"], "rolled_back");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(shop.deployments().await.len(), 4);
    let told = shop.app().await["tip"]["why"].take();
    assert_eq!(told, "#4 was rolled back; it is held, and not tried again by itself");
    shop.repo.push_site(&Behaviour::version("v4"));
    assert_eq!(appears(&shop, 5).await["status"], "succeeded");
    assert_eq!(shop.app().await["tip"], Value::Null, "it is live");
    shop.finish().await;
}

/// Waits until `/readyz`, as the agent's machine sees it, warns of one thing, in which `part` is; the warning.
async fn warns(shop: &Shop, part: &str) -> String {
    eventually(&format!("a warning with {part:?}"), Duration::from_secs(20), async || {
        let ready = shop.agent.try_get("/readyz").await?;
        assert_eq!(ready["status"], "ready", "{ready:#}");
        match ready["warnings"].as_array().map(Vec::as_slice) {
            Some([Value::String(warning)]) if warning.contains(part) => Ok(warning.clone()),
            _ => Err(ready.to_string()),
        }
    })
    .await
}

/// Waits until the tip is known again, and nothing is warned of.
async fn compares(shop: &Shop) {
    eventually("the tip is compared again", Duration::from_secs(20), async || {
        let (app, ready) = (shop.app().await, shop.agent.try_get("/readyz").await?);
        let is_known = app["tip_unknown"].is_null() && ready["warnings"] == json!([]);
        if is_known { Ok(()) } else { Err(format!("{app} {ready}")) }
    })
    .await;
}

#[tokio::test]
async fn a_branch_or_a_repository_that_is_gone_is_told_until_it_is_there_again() {
    let Some(engine) = engine::or_skip("a_branch_or_a_repository_gone").await else { return };
    let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
    let shop = Shop::start_on(&engine, repo, Options::quick(), "1s").await;
    assert_eq!(appears(&shop, 1).await["status"], "succeeded");
    compares(&shop).await;

    shop.repo.set_origin_config("receive.denyDeleteCurrent", "ignore");
    shop.repo.delete_branch("main");
    let gone = "branch main is not in the repository any more; push it again, or name the one to follow";
    let warning = warns(&shop, gone).await;
    assert!(warning.starts_with("shop: since ") && warning.contains("a push whose delivery is lost"), "{warning}");
    let status = String::from_utf8(shop.agent.cli(&["status", "shop"]).await.stdout).unwrap();
    assert!(status.contains("  tip      not known, first missed ") && status.contains(gone), "{status}");
    let log = shop.agent.log();
    assert_eq!(log.matches(gone).count(), 1, "once, not at each comparison: {log}");
    shop.repo.push("main");
    compares(&shop).await;

    // The whole repository: what the agent's machine is told of the path, strangers are not.
    let (there, away) = (shop.repo.origin(), shop.repo.origin().with_extension("away"));
    std::fs::rename(&there, &away).unwrap();
    let warning = warns(&shop, "origin.git").await;
    let stranger = http::get(shop.agent.listen, "localhost", "/readyz").await.unwrap().json();
    let told = stranger["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with(told) && !told.contains("origin.git"), "{told}");
    let app = shop.app().await;
    assert_eq!(app["tip_unknown"]["awaited"], false, "{app:#}");
    std::fs::rename(&away, &there).unwrap();
    compares(&shop).await;
    assert_eq!(shop.deployments().await.len(), 1);
    shop.finish().await;
}

#[tokio::test]
async fn an_app_without_a_release_is_deployed_at_the_first_start() {
    let Some(engine) = engine::or_skip("an_app_without_a_release").await else { return };
    let (repo, tip) = Repo::with_site(&Behaviour::version("v1"));
    let mut shop = Shop::start_on(&engine, repo, Options::quick(), "1h").await;
    let first = appears(&shop, 1).await;
    assert_eq!((&first["status"], &first["commit"]), (&"succeeded".into(), &tip.into()), "{first:#}");

    // At the second start it is there, unless something was pushed meanwhile.
    shop.agent.restart().await;
    assert_eq!(shop.deployments().await.len(), 1);
    shop.agent.stop().await;
    shop.repo.push_site(&Behaviour::version("v2"));
    shop.agent.start().await;
    assert_eq!(appears(&shop, 2).await["status"], "succeeded");
    assert_eq!(shop.version().await, "v2");
    shop.finish().await;
}

#[tokio::test]
async fn pushes_accepted_right_before_a_crash_are_deployed_after_it() {
    let Some(engine) = engine::or_skip("pushes_accepted_before_a_crash").await else { return };
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    shop.deploy_first().await;
    // One kill while a deployment runs, one while nothing does.
    for (round, busy) in [(1, true), (2, false)] {
        let mut accepted = Vec::new();
        if busy {
            let slow = Behaviour::version("slow").ready_after_ms(3000);
            accepted.push(shop.push_without_waiting(&slow).await);
            shop.reaches(accepted[0], "rolling_out").await;
        }
        for n in 1..=4 {
            let version = Behaviour::version(&format!("round {round} push {n}"));
            accepted.push(shop.push_without_waiting(&version).await);
        }
        shop.agent.kill().await;
        shop.agent.start().await;
        let mut ends = Vec::new();
        for id in &accepted {
            let ended = shop.agent.deployment_ended(*id, LIMIT).await;
            ends.push(ended["status"].as_str().unwrap().to_owned());
        }
        assert_eq!(ends.last().unwrap(), "succeeded", "{ends:?}");
        assert!(ends.iter().all(|end| end == "succeeded" || end == "superseded"), "{ends:?}");
        assert_eq!(shop.version().await, format!("round {round} push 4"));
    }
    shop.finish().await;
}
