//! Webhooks as GitHub sends them, from the wire to the containers.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::shop::{LIMIT, Options, SECRET, Shop};
use crate::support::engine;
use crate::support::github::{self, Delivery, Push};
use crate::support::http::{self, Response};
use crate::support::repo::Pushed;
use crate::support::site::Behaviour;

async fn send(shop: &Shop, delivery: &Delivery) -> Response {
    delivery.send(shop.agent.listen, "shop", SECRET).await
}

/// Commits and pushes a version that answers `version`.
fn push(shop: &Shop, version: &str) -> Pushed {
    shop.repo.write_site(&Behaviour::version(version));
    shop.repo.commit(version);
    shop.repo.push("main")
}

/// The delivery becomes a deployment of exactly `commit`.
async fn deploys(shop: &Shop, delivery: Delivery, commit: &str) -> Value {
    let answer = send(shop, &delivery).await.expect(202).json();
    assert_eq!(answer["decision"], "queued", "{answer}");
    let ended = shop.agent.deployment_ended(answer["deployment"].as_u64().unwrap(), LIMIT).await;
    assert_eq!((&ended["status"], &ended["commit"]), (&"succeeded".into(), &commit.into()), "{ended:#}");
    assert_eq!(shop.running_commits().await, [commit]);
    ended
}

#[tokio::test]
async fn every_shape_of_a_push_deploys_its_commit() {
    let Some(engine) = engine::or_skip("every_shape_of_a_push").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let first = shop.repo.head();
    let ended = deploys(&shop, Push::creation("main", &first).author("Åsa „A“").delivery(), &first).await;
    assert_eq!((&ended["trigger"], &ended["author"]), (&"push".into(), &"Ada Example".into()), "git's word counts");
    assert_eq!(ended["pusher"], "ada");

    // The branch has moved on when the delivery is handled: what was pushed then is what is deployed.
    let second = push(&shop, "v2");
    let third = push(&shop, "v3");
    deploys(&shop, Push::of("main", &second).commits(&["One", "Two", "Three"]).delivery(), &second.after).await;
    assert_eq!(shop.version().await, "v2");

    deploys(&shop, Push::of("main", &third).delivery().form_encoded(), &third.after).await;
    assert_eq!(shop.version().await, "v3");

    let fourth = push(&shop, "v4");
    deploys(&shop, Push::of("main", &fourth).head_commit_null().delivery(), &fourth.after).await;
    assert_eq!(shop.version().await, "v4");

    // History is rewritten: a commit that no branch reaches any more is replaced by one beside it.
    shop.repo.reset(&second.after);
    shop.repo.write_site(&Behaviour::version("rewritten"));
    shop.repo.commit("Another history");
    let forced = shop.repo.force_push("main");
    deploys(&shop, Push::of("main", &forced).forced().delivery(), &forced.after).await;
    assert_eq!(shop.version().await, "rewritten");
    shop.finish().await;
}

#[tokio::test]
async fn a_branch_outside_ascii_is_deployed() {
    let Some(engine) = engine::or_skip("a_branch_outside_ascii").await else { return };
    let options = Options::quick().keys("branch = \"größe/☃\"\n");
    let shop = Shop::start(&engine, &Behaviour::version("v1"), options).await;
    let pushed = shop.repo.push("größe/☃");
    let ended = deploys(&shop, Push::of("größe/☃", &pushed).delivery(), &pushed.after).await;
    assert_eq!(ended["ref"], "refs/heads/größe/☃");
    shop.finish().await;
}

#[tokio::test]
async fn what_deploys_nothing_is_answered_with_the_reason() {
    let Some(engine) = engine::or_skip("what_deploys_nothing").await else { return };
    let elsewhere = "[apps.elsewhere]\nrepo = \"https://github.com/example/elsewhere.git\"\nport = 8000\n\
                     webhook = { secret = { env = \"SHOP_SECRET\" } }\n";
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick().table(elsewhere)).await;
    let commit = shop.repo.head();
    let tag = shop.repo.push_annotated_tag("v1");

    let ignored = [
        (github::ping(), "ping: the hook works"),
        (github::other_event("issues"), "event \"issues\": only push leads to a deployment"),
        (Push::tag("v0", &commit).delivery(), "tag v0: only branch main is deployed"),
        (Push::annotated_tag("v1", &tag.after).delivery(), "tag v1: only branch main is deployed"),
        (Push::creation("next", &commit).delivery(), "branch next: only branch main is deployed"),
        (
            Push::deletion("main", &commit).delivery(),
            "branch main was deleted: nothing is deployed, and what runs stays as it is",
        ),
    ];
    for (delivery, reason) in &ignored {
        let answer = send(&shop, delivery).await.expect(200).json();
        assert_eq!(answer, json!({ "decision": "ignored", "reason": reason }));
    }

    let push = || Push::branch("main", &"a".repeat(40), &commit);
    let with = |field: &str, value: Value| {
        let mut payload = push().payload();
        payload[field] = value;
        Delivery::new("push", &payload)
    };
    let refused = [
        (Delivery { body: b"{".to_vec(), ..push().delivery() }, 400, Value::Null),
        (Delivery { body: b"a=b".to_vec(), ..push().delivery().form_encoded() }, 400, Value::Null),
        (with("after", json!("b".repeat(39))), 422, json!("after")),
        (with("ref", json!("refs/heads/a..b")), 422, json!("ref")),
        (Delivery { content_type: "text/plain".into(), ..push().delivery() }, 415, json!("Content-Type")),
    ];
    for (delivery, status, field) in &refused {
        let answer = send(&shop, delivery).await.expect(*status);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem = answer.json();
        assert!(problem["detail"].is_string() && problem["request_id"].is_string(), "{problem}");
        assert_eq!(&problem["field"], field, "{problem}");
    }
    let other = push().delivery().send(shop.agent.listen, "elsewhere", SECRET).await.expect(422).json();
    let detail = other["detail"].as_str().unwrap();
    assert!(detail.contains("belongs to example/elsewhere") && detail.contains("from example/shop"), "{other}");

    let mut packed = push().delivery().headers(SECRET);
    packed.push(("content-encoding", "gzip".to_owned()));
    push().delivery().send_with(shop.agent.listen, "shop", &packed).await.expect(415);
    let huge = Delivery { body: vec![b' '; (25 << 20) + 1], ..push().delivery() };
    let said = send(&shop, &huge).await.expect(413).json();
    assert!(said["detail"].as_str().unwrap().contains("25 MiB"), "{said}");

    assert_eq!(shop.deployments().await.len(), 0);
    shop.finish().await;
}

/// Everything of an answer that its receiver can see, except for the time and the random number of the request.
fn bytes(answer: &Response) -> (u16, BTreeMap<String, String>, Bytes) {
    let headers = answer.headers.iter().filter(|(name, _)| *name != "date" && *name != "x-request-id");
    let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    (answer.status.as_u16(), headers, answer.body.clone())
}

#[tokio::test]
async fn strangers_learn_nothing() {
    let Some(engine) = engine::or_skip("strangers_learn_nothing").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let delivery = Push::branch("main", &"a".repeat(40), &shop.repo.head()).delivery();
    let wrong = delivery.send(shop.agent.listen, "shop", "not the secret").await.expect(401);
    for app in ["unknown", "Not_A_Name", "shop%00"] {
        let unknown = delivery.send(shop.agent.listen, app, SECRET).await;
        assert_eq!(bytes(&wrong), bytes(&unknown), "{app}");
    }
    let unsigned = delivery.unsigned_headers();
    let known = delivery.send_with(shop.agent.listen, "shop", &unsigned).await.expect(401);
    let unknown = delivery.send_with(shop.agent.listen, "unknown", &unsigned).await;
    assert_eq!(bytes(&known), bytes(&unknown));
    assert!(known.text().contains("X-Hub-Signature-256"), "{}", known.text());

    let mut sha1 = delivery.unsigned_headers();
    sha1.push(("x-hub-signature", format!("sha1={}", "0".repeat(40))));
    let old = delivery.send_with(shop.agent.listen, "shop", &sha1).await.expect(401);
    assert!(old.text().contains("SHA-256") || old.text().contains("SHA-1"), "{}", old.text());

    for path in ["/hooks/shop", "/hooks/unknown", "/hooks/shop/post-receive"] {
        let got = http::get(shop.agent.listen, "localhost", path).await.unwrap().expect(405);
        assert_eq!(got.header("allow"), "POST", "{path}");
    }
    assert!(!shop.agent.log().contains(SECRET));
    assert_eq!(shop.deployments().await.len(), 0);
    shop.finish().await;
}

#[tokio::test]
async fn a_delivery_counts_once_however_often_it_comes() {
    let Some(engine) = engine::or_skip("a_delivery_counts_once").await else { return };
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let delivery = Push::creation("main", &shop.repo.head()).delivery();
    let answers = join_all((0..100).map(|_| send(&shop, &delivery))).await;
    let decisions: Vec<Value> = answers.iter().map(Response::json).collect();
    let count = |decision: &str| decisions.iter().filter(|answer| answer["decision"] == decision).count();
    assert_eq!((count("queued"), count("duplicate")), (1, 99), "{decisions:?}");
    assert!(decisions.iter().all(|answer| answer["deployment"] == 1), "{decisions:?}");
    assert!(answers.iter().all(|answer| [200, 202].contains(&answer.status.as_u16())));
    assert_eq!(shop.agent.deployment_ended(1, LIMIT).await["status"], "succeeded");

    // Also by the next agent, and as GitHub's "Redeliver" does it.
    shop.agent.restart().await;
    let again = send(&shop, &delivery).await.expect(200).json();
    assert_eq!(again, json!({ "decision": "duplicate", "deployment": 1 }));
    assert_eq!(shop.deployments().await.len(), 1);
    shop.finish().await;
}
