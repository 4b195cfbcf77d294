//! Every way to tell that an instance is ready.

use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::site::{Behaviour, DOCKERFILE};

fn health(health: &str) -> Options {
    Options::web(&format!("instances = 2\nstop_grace = \"2s\"\n{health}"))
}

/// With this check a good version replaces a good one under load, and `bad` is undone for `reason`.
async fn gate(name: &str, options: Options, bad: Behaviour, reason: &[&str]) {
    let Some(engine) = engine::or_skip(name).await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), options).await;
    let load = shop.load();
    assert_ended(&shop.push(&Behaviour::version("v2").listen_after_ms(300)).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 2)]).await;
    assert_ended(&shop.push(&bad).await, "rolled_back", reason);
    load.stop().await.assert_flawless(50);
    shop.assert_live(2, &[("web", 2)]).await;
    shop.told(3, &["was rolled back", "v2 keeps serving"]).await;
    shop.finish().await;
}

#[tokio::test]
async fn a_command_inside_the_instance() {
    let options = health("health = { command = [\"/site\", \"healthcheck\"], start_deadline = \"4s\" }");
    let reason = ["not ready in time", "\"/site healthcheck\" exited with 1"];
    gate("a_command_inside_the_instance", options, Behaviour::version("v3").never_ready(), &reason).await;
}

#[tokio::test]
async fn a_connection_to_the_port() {
    let options = health("health = { tcp = true, start_deadline = \"4s\" }");
    let reason = ["not ready in time", "no connection to port 8000"];
    gate("a_connection_to_the_port", options, Behaviour::version("v3").port(8001), &reason).await;
}

#[tokio::test]
async fn nothing_configured_but_the_port_and_time() {
    let options = health("health = { stable_for = \"800ms\", start_deadline = \"20s\" }");
    // It accepts connections for a moment: without a check only time tells.
    let bad = Behaviour::version("v3").crash_after_ready_ms(400, 6);
    gate("nothing_configured", options, bad, &["exited with code 6"]).await;
}

#[tokio::test]
async fn without_a_check_the_operator_is_warned() {
    let Some(engine) = engine::or_skip("without_a_check_the_operator_is_warned").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), health("")).await;
    let output = shop.agent.cli(&["check"]).await;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("port 8000 has no health check"), "{said}");
    shop.finish().await;
}

#[tokio::test]
async fn the_image_s_own_healthcheck() {
    let Some(engine) = engine::or_skip("the_image_s_own_healthcheck").await else { return };
    let options = health("health = { start_deadline = \"6s\" }");
    let mut shop = Shop::start(&engine, &Behaviour::version("v0"), options).await;
    let push = async |shop: &Shop, behaviour: &Behaviour| {
        shop.repo.write_site(behaviour);
        let check = "HEALTHCHECK --interval=300ms --timeout=2s --retries=2 CMD [\"/site\", \"healthcheck\"]\n";
        shop.repo.write("Dockerfile", format!("{DOCKERFILE}{check}"));
        shop.repo.commit("A version that checks itself");
        let id = shop.deliver(&shop.repo.push("main")).await;
        shop.agent.deployment_ended(id, LIMIT).await
    };
    assert_ended(&push(&shop, &Behaviour::version("v1")).await, "succeeded", &[]);
    let load = shop.load();
    assert_ended(&push(&shop, &Behaviour::version("v2").ready_after_ms(500)).await, "succeeded", &[]);
    shop.assert_live(2, &[("web", 2)]).await;
    let bad = push(&shop, &Behaviour::version("v3").never_ready()).await;
    assert_ended(&bad, "rolled_back", &["not ready in time", "the image's HEALTHCHECK failed"]);
    // The engine tells of changes alone: what it found before, an agent that is restarted has to ask for.
    let before: Vec<_> = shop.instances("web").await.into_iter().map(|container| container.id).collect();
    shop.agent.restart().await;
    shop.all_ready().await;
    load.stop().await.assert_flawless(50);
    shop.assert_live(2, &[("web", 2)]).await;
    let after: Vec<_> = shop.instances("web").await.into_iter().map(|container| container.id).collect();
    assert_eq!(after, before, "nothing is replaced");
    shop.finish().await;
}
