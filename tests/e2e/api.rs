//! The HTTP API over TCP with tokens, as a script or a dashboard uses it.

use std::time::Duration;

use hyper::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use longshore::store::{Scope, Store};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::shop::{LIMIT, Options, Shop};
use crate::support::engine;
use crate::support::http::{self, Response};
use crate::support::site::Behaviour;

/// A request over TCP with a token.
async fn call(shop: &Shop, token: &str, method: &str, path: &str, body: Option<Value>) -> Response {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("authorization", bearer.as_str())];
    if body.is_some() {
        headers.push(("content-type", "application/json"));
    }
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let request = http::request(method, &shop.agent.listen.to_string(), path, &headers, body);
    http::send(shop.agent.listen, request).await.expect("an answer")
}

/// A request over TCP without a token.
async fn anonymous(shop: &Shop, path: &str) -> Response {
    http::get(shop.agent.listen, &shop.agent.listen.to_string(), path).await.expect("an answer")
}

/// Makes a token with the command line.
async fn token(shop: &Shop, name: &str, scope: &str) -> String {
    let made = shop.agent.cli(&["token", "create", name, "--scope", scope]).await;
    assert!(made.status.success(), "{made:?}");
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert!(token.starts_with("lsh_") && !token.contains(char::is_whitespace), "alone on its line: {token:?}");
    token
}

fn refused(answer: Response, status: u16, part: &str) {
    let answer = answer.expect(status);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    assert!(problem["title"].is_string() && problem["request_id"].is_string(), "{problem}");
    assert_eq!(problem["status"], status);
}

#[tokio::test]
async fn tokens_open_what_their_scope_says() {
    let Some(engine) = engine::or_skip("tokens_open").await else { return };
    let mut shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    // One that has expired, put into the journal while no agent holds it.
    shop.agent.stop().await;
    let store = Store::open(&shop.agent.data_dir().join("journal.db")).unwrap();
    let yesterday = Timestamp::now() - SignedDuration::from_hours(24);
    let (_, expired) = store.create_token("old", Scope::Admin, Some(yesterday)).await.unwrap();
    drop(store);
    shop.agent.start().await;

    let (read, deploy, admin) =
        (token(&shop, "page", "read").await, token(&shop, "ci", "deploy").await, token(&shop, "boss", "admin").await);
    let (apps, create, tokens) = ("/api/v1/apps", "/api/v1/apps/shop/deployments", "/api/v1/tokens");
    call(&shop, &read, "GET", apps, None).await.expect(200);
    refused(call(&shop, &read, "POST", create, Some(json!({}))).await, 403, "needs deploy scope; the token has read");
    refused(call(&shop, &deploy, "GET", tokens, None).await, 403, "needs admin scope; the token has deploy");
    let listed = call(&shop, &admin, "GET", tokens, None).await.expect(200);
    assert_eq!(listed.json().as_array().unwrap().len(), 4);
    assert!(!listed.text().contains("lsh_"), "{}", listed.text());

    refused(call(&shop, expired.expose_secret(), "GET", apps, None).await, 401, "expired on ");
    refused(call(&shop, "lsh_0000", "GET", apps, None).await, 401, "unknown or revoked");
    let none = anonymous(&shop, apps).await;
    assert!(none.header("www-authenticate").starts_with("Bearer"));
    refused(none, 401, "no token");
    refused(anonymous(&shop, &format!("{apps}?token={read}")).await, 400, "not accepted in URLs");
    refused(
        http::get(shop.agent.listen, "evil.example", "/livez").await.unwrap(),
        421,
        "does not answer under this name",
    );

    // The command line over the network, and the end of a token.
    let remote = async |arguments: &[&str]| {
        let mut command = shop.agent.command(arguments);
        command.env("LONGSHORE_URL", format!("http://{}", shop.agent.listen)).env("LONGSHORE_TOKEN", &deploy);
        command.output().await.unwrap()
    };
    let done = remote(&["deploy", "shop"]).await;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("succeeded v1 in "), "{done:?}");
    let id = listed.json().as_array().unwrap().iter().find(|t| t["name"] == "ci").unwrap()["id"].to_string();
    let list = shop.agent.cli(&["token", "list"]).await;
    assert!(String::from_utf8_lossy(&list.stdout).contains("ci "), "{list:?}");
    assert!(shop.agent.cli(&["token", "revoke", &id]).await.status.success());
    let done = remote(&["status", "shop"]).await;
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("unknown or revoked"), "{done:?}");
    let deployment = shop.deployment(1).await;
    assert_eq!((&deployment["trigger"], &deployment["pusher"]), (&"cli".into(), &"ci".into()), "{deployment:#}");
    for secret in [&read, &deploy, &admin] {
        assert!(!shop.agent.log().contains(secret.as_str()));
    }
    shop.finish().await;
}

#[tokio::test]
async fn a_commit_a_branch_and_a_tag_can_be_deployed() {
    let Some(engine) = engine::or_skip("a_commit_a_branch_and_a_tag").await else { return };
    let command = "[apps.shop.release]\ncommand = [\"migrate\"]\n";
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick().table(command)).await;
    let commit = |version: &str| {
        shop.repo.write_site(&Behaviour::version(version));
        shop.repo.commit(version)
    };
    let first = shop.repo.head();
    let tagged = commit("tagged");
    shop.repo.push_annotated_tag("v1.4.0");
    let branched = commit("branched");
    shop.repo.push("next");
    let path = "/api/v1/apps/shop/deployments";

    let dry = shop.agent.api("POST", path, Some(json!({ "dry_run": true }))).await.expect(200).json();
    assert_eq!(dry["commit"], first.as_str(), "{dry:#}");
    assert_eq!(
        dry["services"],
        json!([{
            "name": "web", "image": "build", "instances": 1, "replaced": 1, "stopped": 0, "order": "start_first", "static": [],
        }])
    );
    assert_eq!((&dry["live"], &dry["release_command"]), (&Value::Null, &json!(["migrate"])), "{dry:#}");

    for (body, commit, version) in [
        (json!({}), &first, "v1"),
        (json!({ "ref": "refs/tags/v1.4.0" }), &tagged, "tagged"),
        (json!({ "ref": "next" }), &branched, "branched"),
        (json!({ "ref": "refs/heads/main" }), &first, "v1"),
        (json!({ "commit": tagged }), &tagged, "tagged"),
    ] {
        let ended = shop.ask_and_wait("POST", path, body.clone()).await;
        assert_eq!(
            (&ended["status"], &ended["commit"]),
            (&"succeeded".into(), &commit.as_str().into()),
            "{body}: {ended:#}"
        );
        assert_eq!(ended["trigger"], "api");
        assert_eq!(shop.version().await, version);
        assert_eq!(shop.running_commits().await, [commit.as_str()]);
    }
    let dry = shop.agent.api("POST", path, Some(json!({ "commit": tagged, "dry_run": true }))).await.expect(200).json();
    assert_eq!((&dry["live"], &dry["services"][0]["replaced"]), (&"v5".into(), &json!(0)), "{dry:#}");
    assert_eq!((&dry["services"][0]["image"], &dry["release_command"]), (&"reuse".into(), &Value::Null), "{dry:#}");
    // Not what is live, but built before: nothing to build, and the release command runs in the other image.
    let dry =
        shop.agent.api("POST", path, Some(json!({ "commit": branched, "dry_run": true }))).await.expect(200).json();
    assert_eq!(
        (&dry["services"][0]["image"], &dry["services"][0]["replaced"]),
        (&"reuse".into(), &json!(1)),
        "{dry:#}"
    );
    assert_eq!((&dry["release_command"], &dry["held"]), (&json!(["migrate"]), &Value::Null), "{dry:#}");
    assert_eq!(shop.deployments().await.len(), 5, "a dry run is no deployment");

    let unknown = "4".repeat(40);
    for (body, part) in [
        (json!({ "commit": unknown }), "444"),
        (json!({ "ref": "no-such-branch" }), "no-such-branch"),
        (json!({ "ref": "refs/tags/no-such-tag" }), "no-such-tag"),
    ] {
        let ended = shop.ask_and_wait("POST", path, body.clone()).await;
        assert_eq!(ended["status"], "failed", "{ended:#}");
        assert!(ended["reason"].as_str().unwrap().contains(part), "{body}: {ended:#}");
        let mut dry = body;
        dry["dry_run"] = json!(true);
        refused(shop.agent.api("POST", path, Some(dry)).await, 409, part);
    }
    for (body, field) in [
        (json!({ "commit": "abc" }), "commit"),
        (json!({ "commit": first, "ref": "main" }), "ref"),
        (json!({ "branch": "main" }), "branch"),
        (json!({ "ref": "a..b" }), "ref"),
    ] {
        let problem = shop.agent.api("POST", path, Some(body)).await.expect(422).json();
        assert_eq!(problem["field"], field, "{problem}");
    }
    let to = |release: u64| shop.agent.api("POST", "/api/v1/apps/shop/rollback", Some(json!({ "to": release })));
    refused(to(99).await, 404, "v5");
    refused(to(5).await, 409, "live");
    refused(shop.agent.api("GET", "/api/v1/apps/shpo", None).await, 404, "did you mean \"shop\"?");
    shop.finish().await;
}

/// An answer that goes on.
struct Feed {
    stream: TcpStream,
    /// What came with the head.
    ahead: Vec<u8>,
}

/// Reads a stream until `part` is there; all that came.
async fn read_until(Feed { stream, ahead }: &mut Feed, part: &str) -> String {
    let mut text = std::mem::take(ahead);
    let reading = async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&text).contains(part) {
            let n = stream.read(&mut buffer).await.expect("the stream goes on");
            assert!(n > 0, "the stream ended without {part:?}:\n{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..n]);
        }
    };
    tokio::time::timeout(LIMIT, reading).await.unwrap_or_else(|_| panic!("{part:?} did not come"));
    String::from_utf8_lossy(&text).into_owned()
}

async fn open_stream(shop: &Shop, token: &str, path: &str) -> Feed {
    let mut stream = TcpStream::connect(shop.agent.listen).await.unwrap();
    let host = shop.agent.listen;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut feed = Feed { stream, ahead: Vec::new() };
    let came = read_until(&mut feed, "\r\n\r\n").await;
    let (_, ahead) = came.split_once("\r\n\r\n").expect("a head");
    feed.ahead = ahead.into();
    feed
}

#[tokio::test]
async fn logs_and_events_are_followed_live_and_taken_up_again() {
    let Some(engine) = engine::or_skip("logs_and_events").await else { return };
    let mut shop = Shop::start(&engine, &Behaviour::version("v1").ready_after_ms(1000), Options::quick()).await;
    let token = token(&shop, "page", "read").await;
    let mut events = open_stream(&shop, &token, "/api/v1/events?app=shop").await;
    let id = shop.ask("POST", "/api/v1/apps/shop/deployments", json!({})).await;
    let mut follow = open_stream(&shop, &token, &format!("/api/v1/deployments/{id}/log?follow=1")).await;
    let live = read_until(&mut follow, "rolling out v1").await;
    assert!(!live.contains("event: end"), "{live}");
    read_until(&mut follow, "event: end").await;
    let seen = read_until(&mut events, "\"succeeded\"").await;
    for status in ["queued", "preparing", "building", "rolling_out"] {
        assert!(seen.contains(&format!("\"status\":\"{status}\"")), "{status} is missing:\n{seen}");
    }
    assert!(seen.contains("event: instance") && seen.contains("\"health\":\"ready\""), "{seen}");

    // The whole log as text is the stream's; from a line on, it goes on with the next.
    let path = format!("/api/v1/deployments/{id}/log");
    let text = call(&shop, &token, "GET", &path, None).await.expect(200);
    assert_eq!(text.header("content-type"), "text/plain; charset=utf-8");
    let lines: Vec<String> = text.text().lines().map(str::to_owned).collect();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("last-event-id", "2")];
    let host = shop.agent.listen.to_string();
    let request = http::request("GET", &host, &format!("{path}?follow=1"), &headers, Bytes::new());
    let rest = http::send(shop.agent.listen, request).await.unwrap().expect(200);
    assert_eq!(rest.header("content-type"), "text/event-stream");
    let rest = rest.text();
    assert!(rest.starts_with(&format!("data: {}\nid: 3\n\n", lines[2])), "{rest}");
    assert!(rest.contains("event: end\ndata: {"), "{rest}");

    let instance = shop.app().await["instances"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/instances/{instance}/logs");
    let output = call(&shop, &token, "GET", &path, None).await.expect(200).text();
    assert!(output.contains("site: v1 starts as"), "{output}");
    let mut follow = open_stream(&shop, &token, &format!("{path}?follow=1&tail=1")).await;
    read_until(&mut follow, "data: site: v1 starts as").await;
    refused(call(&shop, &token, "GET", "/api/v1/instances/d9-web-1/logs", None).await, 404, "no instance");
    refused(call(&shop, &token, "GET", "/api/v1/deployments/99/log", None).await, 404, "no deployment");

    // Open streams do not hold up the agent's end.
    let began = std::time::Instant::now();
    shop.agent.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    shop.agent.start().await;
    shop.finish().await;
}

#[tokio::test]
async fn what_is_open_to_all_tells_no_secrets() {
    let Some(engine) = engine::or_skip("what_is_open_to_all").await else { return };
    let shop = Shop::start(&engine, &Behaviour::version("v1"), Options::quick()).await;
    let get = async |path: &str| anonymous(&shop, path).await;
    get("/livez").await.expect(200);
    let ready = get("/readyz").await.expect(200).json();
    assert_eq!((&ready["status"], &ready["problems"]), (&"ready".into(), &json!([])), "{ready}");
    assert_eq!(ready["agent"], shop.agent.id());
    let document = get("/api/v1/openapi.json").await.expect(200).json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));

    // What the document says of a plan is what a plan has.
    let plan = shop.agent.api("POST", "/api/v1/apps/shop/deployments", Some(json!({ "dry_run": true }))).await;
    let plan = plan.expect(200).json();
    let schema = &document["components"]["schemas"]["Plan"];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&plan), keys(&schema["properties"]));
    assert_eq!(keys(&plan["services"][0]), keys(&schema["properties"]["services"]["items"]["properties"]));

    refused(get("/api/v1/nothing").await, 404, "");
    refused(get("/api/v1/apps").await, 401, "no token");
    // The agent's API is not reached through an app's domain.
    let through = shop.agent.visit(crate::shop::HOST, "/api/v1/openapi.json").await.unwrap();
    assert_ne!(through.status, 200, "{}", through.text());
    shop.finish().await;
}
