//! Several services of an app behind its domains.

use crate::shop::{HOST, LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

fn options(path: &str) -> Options {
    let service = |name: &str, more: &str| {
        format!(
            "[apps.shop.services.{name}]\nport = 8000\ninstances = 2\nstop_grace = \"2s\"\n\
             health = {{ path = \"/healthz\", start_deadline = \"15s\" }}\n{more}\n"
        )
    };
    let route = format!("route = {{ domains = [\"{HOST}\", \"*.api.test\"], path = \"{path}\", strip = true }}");
    Options::services(&format!("{}{}", service("web", ""), service("api", &route)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_wildcards_lead_to_services_and_change_without_a_restart() {
    let Some(engine) = engine::or_skip("paths_and_wildcards_lead_to_services").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), options("/api")).await;
    let asked = async |shop: &Shop, host: &str, path: &str| {
        let answer = shop.agent.visit(host, path).await.unwrap();
        (answer.status.as_u16(), answer.text().trim().to_owned())
    };
    let of = |answer: &(u16, String), service: &str| answer.0 == 200 && answer.1.starts_with(&format!("d1-{service}-"));
    for (host, path, service) in
        [(HOST, "/id", "web"), (HOST, "/api/id", "api"), (HOST, "/id?/api", "web"), ("x.api.test", "/api/id", "api")]
    {
        let answer = asked(&shop, host, path).await;
        assert!(of(&answer, service), "{host}{path}: {answer:?}");
    }
    assert_eq!(asked(&shop, HOST, "/api").await, (200, "v1".to_owned()), "what is left of the path is /");
    let beside = asked(&shop, "x.api.test", "/id").await;
    assert!(beside.0 == 404 && beside.1.contains("nothing is configured at this path of x.api.test"), "{beside:?}");
    assert_eq!(asked(&shop, "api.test", "/api/id").await.0, 404);
    let app = shop.app().await;
    assert_eq!(app["domains"], serde_json::json!([HOST, "*.api.test"]));

    // Another path is a matter of the proxy alone.
    let load = shop.load();
    shop.reconfigure(&options("/v2")).await;
    eventually("the new path leads to the same instances", LIMIT, async || {
        let answer = asked(&shop, HOST, "/v2/id").await;
        if of(&answer, "api") { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(asked(&shop, HOST, "/api/id").await.0, 404, "the site has no such page");

    // So is a page in place of the app, for as long as it is wanted.
    let before = load.so_far();
    assert_eq!(before.failed, 0, "{before:#?}");
    drop(load);
    shop.repo.write("maintenance.html", "<h1>Back at noon</h1>");
    let page = shop.repo.work().join("maintenance.html");
    let closed = options("/v2").keys(&format!("maintenance = {{ page = {page:?} }}\n"));
    for (options, status, text) in [(&closed, 503, "<h1>Back at noon</h1>"), (&options("/v2"), 200, "v1")] {
        shop.reconfigure(options).await;
        eventually("the page is there, or gone", LIMIT, async || {
            let answer = asked(&shop, HOST, "/v2").await;
            if answer == (status, text.to_owned()) { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        let is_closed = status == 503;
        assert_eq!(shop.app().await["maintenance"], is_closed);
        // Who looks is told: by all that would look healthy otherwise.
        for command in [vec!["status"], vec!["status", "shop"], vec!["plan", "shop"], vec!["prove", "shop"]] {
            if command[0] == "prove" && !is_closed {
                continue;
            }
            let output = shop.agent.command(&command).output().await.expect("it can be run");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let told = said.contains("in maintenance: every request gets a page with 503");
            assert_eq!(told, is_closed, "{command:?}: {said}");
        }
    }
    let load = shop.load();

    // A new version takes the place of both services, one instance at a time.
    let deployment = shop.push(&Behaviour::version("v2")).await;
    assert_eq!(deployment["status"], "succeeded", "{deployment:#}");
    assert_eq!(asked(&shop, HOST, "/v2").await, (200, "v2".to_owned()));
    load.stop().await.assert_flawless(20);
    shop.finish().await;
}
