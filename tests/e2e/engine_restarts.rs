//! The engine stops, dies and hangs under live apps: what can serve goes on serving, and all of it is back by itself.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::shop::{HOST, LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::private_engine::PrivateEngine;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

const INSTANCES: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_is_routed_again_after_the_engine_was_restarted_or_killed() {
    let Some(_) = engine::or_skip("every_instance_is_routed_again").await else { return };
    let Some(mut private) = PrivateEngine::start_or_skip("every_instance_is_routed_again").await else { return };
    let keys = format!(
        "instances = {INSTANCES}\nhealth = {{ path = \"/healthz\", interval = \"200ms\" }}\nstop_grace = \"1s\""
    );
    let options = Options::web(&keys).table(&format!("[runtime]\ndocker_host = \"{}\"", private.address()));
    let shop = Shop::live(&private.engine(), &Behaviour::version("v1"), options).await;

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        private.down(signal).await;
        private.up().await;
        let answered = Instant::now();
        eventually(&format!("every instance serves again after {signal}"), LIMIT, async || {
            let app = shop.app().await;
            let serve =
                |i: &&serde_json::Value| i["health"] == "ready" && i["duty"] == "serving" && !i["address"].is_null();
            let all = app["instances"].as_array().expect("instances");
            if all.iter().filter(serve).count() == INSTANCES { Ok(()) } else { Err(format!("{app:#}")) }
        })
        .await;
        println!("{signal}: {INSTANCES} instances routed {:?} after the engine answered", answered.elapsed());
        assert!(answered.elapsed() < Duration::from_secs(10), "{:?}", answered.elapsed());
        for _ in 0..20 {
            assert_eq!(shop.version().await, "v1");
        }
    }

    // Frozen: what runs goes on serving, and the next push waits for it.
    private.signal(Signal::SIGSTOP);
    let load = shop.load();
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    eventually("/readyz says that the engine does not answer", LIMIT, async || {
        let answer = crate::support::http::get(shop.agent.listen, "localhost", "/readyz").await?;
        if answer.status == 503 { Ok(()) } else { Err(answer.text().to_owned()) }
    })
    .await;
    assert_eq!(shop.agent.visit(HOST, "/").await.expect("an answer").status, 200);
    private.signal(Signal::SIGCONT);
    let ended = shop.agent.deployment_ended(id, LIMIT).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    load.stop().await.assert_flawless(50);
    assert_eq!(shop.deployments().await.len(), 2, "drift is no deployment");
    shop.finish().await;
}
