//! A permanent canary: another branch's version answers a third of the requests, for as long as it is well.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::shop::{HOST, LIMIT, Options, Shop, assert_ended};
use crate::support::discord::Message;
use crate::support::engine;
use crate::support::http;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

const CANARY: &str = "/api/v1/apps/shop-next";
const DOWN: &str = "shop-next, the canary of shop, ";
const BACK: &str = "shop-next is back: it gets 1/3 of shop's requests again";

/// Two instances of production and one canary, which takes longer to start than nobody would notice.
async fn live(engine: &engine::Engine) -> Shop {
    let canary = "[apps.shop-next]\nrepo = REPO\nallow_local = true\nbranch = \"next\"\ncanary_of = \"shop\"\n\
                  webhook = { provider = \"github\", secret = { env = \"SHOP_SECRET\" } }\n\
                  port = 8000\nstop_grace = \"2s\"\nhealth = { path = \"/healthz\", start_deadline = \"30s\" }\n\
                  rollout = { watch = \"0s\" }\n";
    let mut shop = Shop::start(engine, &Behaviour::version("v1"), Options::default().watch("0s")).await;
    let canary = canary.replace("REPO", &format!("{:?}", shop.repo.url()));
    shop.reconfigure(&Options::default().watch("0s").table(&canary)).await;
    shop.deploy_first().await;
    deploy(&shop, Behaviour::version("next").ready_after_ms(6000)).await;
    shop
}

/// Brings a version of the canary live.
async fn deploy(shop: &Shop, behaviour: Behaviour) {
    shop.repo.write_site(&behaviour);
    shop.repo.commit("A new version of the canary");
    shop.repo.push("next");
    assert_ended(&shop.ask_and_wait("POST", &format!("{CANARY}/deployments"), json!({})).await, "succeeded", &[]);
}

/// Asks the canary's instance itself.
async fn post(shop: &Shop, path: &str) -> Result<http::Response, String> {
    let instance = shop.agent.get(CANARY).await["instances"][0].clone();
    let address: SocketAddr = instance["address"].as_str().unwrap().parse().unwrap();
    http::send(address, http::request("POST", HOST, path, &[], "")).await
}

/// Asks so many times, one after another; how often each version answered.
async fn asked(shop: &Shop, times: u32) -> BTreeMap<String, u32> {
    let mut versions = BTreeMap::new();
    for _ in 0..times {
        *versions.entry(shop.version().await).or_default() += 1;
    }
    versions
}

async fn assert_third(shop: &Shop, canary: &str) {
    let expected = BTreeMap::from([("v1".to_owned(), 200), (canary.to_owned(), 100)]);
    assert_eq!(asked(shop, 300).await, expected);
}

async fn assert_production_alone(shop: &Shop) {
    assert_eq!(asked(shop, 60).await, BTreeMap::from([("v1".to_owned(), 60)]));
}

async fn standing(shop: &Shop) -> Value {
    shop.agent.get(CANARY).await["canary_of"].clone()
}

async fn stands(shop: &Shop, wanted: &str) {
    eventually(&format!("the canary is {wanted}"), LIMIT, async || {
        let standing = standing(shop).await;
        if standing["standing"] == wanted { Ok(()) } else { Err(format!("{standing:#}")) }
    })
    .await;
}

/// Waits until so many messages say `part`, and fails when there are more.
async fn told(shop: &Shop, part: &str, times: usize) {
    let count = |all: &[Message]| all.iter().filter(|message| message.text().contains(part)).count();
    let all = shop.discord.wait_for(&format!("{times} × {part:?}"), LIMIT, |all| count(all) >= times).await;
    assert_eq!(count(&all), times, "{part}");
}

async fn status(shop: &Shop, app: &str) -> String {
    String::from_utf8_lossy(&shop.agent.cli(&["status", app]).await.stdout).into_owned()
}

#[tokio::test]
async fn one_that_goes_down_leaves_everything_to_production_until_it_is_back() {
    let Some(engine) = engine::or_skip("permanent_canary_down").await else { return };
    let mut shop = live(&engine).await;
    assert_third(&shop, "next").await;
    stands(&shop, "serving").await;
    let deployment = shop.agent.get(&format!("{CANARY}/deployments?limit=1")).await[0].clone();
    assert!(deployment["requests"]["served"].is_u64(), "production's requests are on its record: {deployment:#}");

    let load = shop.load();
    // It goes without an answer.
    let _ = post(&shop, "/exit?code=7").await;
    told(&shop, &format!("{DOWN}is down: all requests go to shop"), 1).await;
    let down = standing(&shop).await;
    assert_eq!((&down["app"], &down["share"], &down["standing"]), (&json!("shop"), &json!("1/3"), &json!("down")));
    assert!(down["why"].as_str().unwrap().starts_with("none of its instances is ready: d"), "{down:#}");
    assert!(status(&shop, "shop-next").await.contains("shares   1/3 of shop's requests: none, down for "));
    assert!(status(&shop, "shop").await.contains("shared   1/3 of the requests with shop-next: none, down for "));
    assert_eq!(shop.app().await["permanent_canary"]["app"], "shop-next");

    told(&shop, BACK, 1).await;
    stands(&shop, "serving").await;
    load.stop().await.assert_flawless(100);
    assert_third(&shop, "next").await;

    let load = shop.load();
    shop.agent.kill().await;
    shop.agent.start().await;
    stands(&shop, "serving").await;
    load.stop().await.assert_flawless(20);
    assert_third(&shop, "next").await;
    told(&shop, DOWN, 1).await;

    // It runs and answers, and is not ready: production is better.
    post(&shop, "/break").await.unwrap().expect(200);
    told(&shop, DOWN, 2).await;
    assert_production_alone(&shop).await;
    shop.finish().await;
}

#[tokio::test]
async fn one_that_fails_is_suspended_until_a_better_version_is_live() {
    let Some(engine) = engine::or_skip("permanent_canary_fails").await else { return };
    let mut shop = live(&engine).await;
    let load = shop.load();
    deploy(&shop, Behaviour::version("bad").fail_percent(10)).await;
    told(&shop, &format!("{DOWN}compares badly with production: all requests go to shop"), 1).await;
    let report = load.stop().await;
    let foreign: Vec<_> =
        report.failures.iter().filter(|failure| !failure.what.contains("bad fails as told")).collect();
    assert!(foreign.is_empty() && report.failed > 0, "{foreign:?}");
    let suspended = standing(&shop).await;
    assert_eq!(suspended["standing"], "suspended", "{suspended:#}");
    assert!(suspended["why"].as_str().unwrap().contains("to the canary were answered with an error"), "{suspended:#}");
    assert_production_alone(&shop).await;

    let load = shop.load();
    shop.agent.kill().await;
    shop.agent.start().await;
    stands(&shop, "suspended").await;
    assert_production_alone(&shop).await;
    // Production goes its own way meanwhile.
    assert_ended(&shop.ask_and_wait("POST", "/api/v1/apps/shop/restart", json!({})).await, "succeeded", &[]);
    assert_production_alone(&shop).await;

    deploy(&shop, Behaviour::version("good")).await;
    told(&shop, BACK, 1).await;
    load.stop().await.assert_flawless(50);
    assert_third(&shop, "good").await;
    told(&shop, DOWN, 1).await;
    shop.finish().await;
}
