//! `longshore prove`: a rollout watched from outside, and what its record says of the requests.

use std::process::Output;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::shop::{LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

fn report(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("no report ({err}): {said}"))
}

async fn prove(shop: &Shop, arguments: &[&str]) -> Output {
    let mut command = shop.agent.command(&[&["prove", "shop"], arguments].concat());
    tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await.expect("it ends").expect("it can be run")
}

#[tokio::test]
async fn proving_replaces_every_instance_and_accounts_for_every_request() {
    let Some(engine) = engine::or_skip("proving").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("200ms")).await;
    let ids = async || shop.instances("web").await.into_iter().map(|container| container.id).collect::<Vec<_>>();
    let before = ids().await;

    let proven = prove(&shop, &["--json"]).await;
    let found = report(&proven);
    assert_eq!(proven.status.code(), Some(0), "{found:#}");
    assert_eq!((&found["proven"], &found["failed"]), (&true.into(), &0.into()), "{found:#}");
    for when in ["before", "during"] {
        assert!(found[when]["answered"].as_u64().unwrap() > 50, "{found:#}");
        assert!(found[when]["p99_ms"].as_f64().unwrap() > 0.0, "{found:#}");
    }
    assert_eq!(found["deployment"]["kind"], "restart");
    let after = ids().await;
    assert!(after.len() == 2 && after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");

    // What the agent has on record agrees with what was seen from outside.
    let requests = &found["deployment"]["requests"];
    let number = |name: &str| requests[name].as_u64().unwrap_or_else(|| panic!("{name} is not known: {found:#}"));
    assert!(number("served") > 50, "{found:#}");
    assert_eq!((number("failed"), number("cut_requests"), number("cut_streams")), (0, 0, 0), "{found:#}");
    assert!(requests["longest_drain_seconds"].is_f64(), "{found:#}");
    for when in ["before", "during"] {
        assert!(requests["latency"][when]["p99_ms"].is_f64(), "{found:#}");
    }
    shop.finish().await;
}

#[tokio::test]
async fn proving_tells_what_was_cut() {
    let Some(engine) = engine::or_skip("proving_cuts").await else { return };
    let impatient = "instances = 2\nhealth = { path = \"/healthz\", start_deadline = \"15s\" }\nstop_grace = \"2s\"\n\
                     drain = { requests = \"50ms\" }";
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::web(impatient).watch("200ms")).await;
    let cut = prove(&shop, &["--json", "--path", "/slow?ms=800"]).await;
    let found = report(&cut);
    assert_eq!((cut.status.code(), &found["proven"]), (Some(1), &false.into()), "{found:#}");
    let failed = found["failed"].as_u64().unwrap();
    assert!(failed > 0 && found["failures"][0]["why"].as_str().unwrap().contains("504"), "{found:#}");
    let requests = &found["deployment"]["requests"];
    assert_eq!(
        (requests["failed"].as_u64(), requests["cut_requests"].as_u64()),
        (Some(failed), Some(failed)),
        "{found:#}"
    );
    shop.finish().await;
}

#[tokio::test]
async fn proving_tells_of_a_proxy_that_died_and_the_record_claims_nothing() {
    let Some(engine) = engine::or_skip("proving_proxy").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default().watch("2s")).await;
    let dies = async {
        eventually("the rollout is under way", LIMIT, async || {
            let deployments = shop.agent.get("/api/v1/apps/shop/deployments?limit=1").await;
            let newest = deployments[0].clone();
            let rolls = newest["kind"] == "restart" && newest["status"] == "rolling_out";
            if rolls { Ok(()) } else { Err(newest.to_string()) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        kill(Pid::from_raw(shop.agent.proxy_pid()), Signal::SIGKILL).expect("the proxy runs");
    };
    let (output, ()) = tokio::join!(prove(&shop, &["--json"]), dies);
    let found = report(&output);
    assert_eq!((output.status.code(), &found["proven"]), (Some(1), &false.into()), "{found:#}");
    assert!(found["failed"].as_u64().unwrap() > 0, "{found:#}");
    let requests = &found["deployment"]["requests"];
    assert!(requests["served"].is_null() && requests["failed"].is_null(), "{found:#}");
    shop.finish().await;
}
