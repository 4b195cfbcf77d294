//! What no delivery told of is found out, and what was accepted is not forgotten.

use std::time::Duration;

use serde_json::{Value, json};

use crate::shop::{LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

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
