//! The API as its clients meet it: the whole router over a real journal, without drivers behind it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode, header};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::table::Access;
use super::*;
use crate::config::*;
use crate::journal::DeployEvent;
use crate::model::{AppName, CommitSha, DeploymentId, ImageId, ServiceName, Status};
use crate::proxy::control::Report;
use crate::proxy::table::{Member, Route};
use crate::proxy::{ProxyClient, ProxyOptions, RouteLimits};
use crate::store::{Finish, ReleaseBody, ReleasedService, Scope, Store};

/// A router with an agent that has one app, `shop`, with the services `web` and `worker`.
struct Api {
    router: Router,
    agent: Arc<Agent>,
    dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    fn detail(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["request_id"], self.headers["x-request-id"].to_str().unwrap());
        problem["detail"].as_str().unwrap().to_owned()
    }
}

impl Api {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        let agent = Arc::new(Agent::detached("test".into(), store, std::path::PathBuf::new(), config(dir.path())));
        Self { router: routes(agent.clone()), agent, dir }
    }

    async fn token(&self, scope: Scope) -> String {
        let (_, secret) = self.agent.store.create_token(scope.as_str(), scope, None).await.unwrap();
        secret.expose_secret().to_owned()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        Answer { status, headers, text: String::from_utf8_lossy(&bytes).into_owned() }
    }

    /// A call over TCP with a token or none.
    async fn call(&self, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
        self.send(request(method, path, token, body)).await
    }

    /// A call over the agent's own socket.
    async fn local(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request = request(method, path, None, body);
        request.extensions_mut().insert(LocalPeer { uid: 0, pid: None });
        self.send(request).await
    }

    /// Deploys commit `n` and makes its release live, as the driver would.
    async fn go_live(&self, n: u64) -> DeploymentId {
        let store = &self.agent.store;
        let answer = self.local("POST", "/api/v1/apps/shop/deployments", Some(json!({ "commit": sha(n) }))).await;
        let id = DeploymentId(answer.json()["id"].as_i64().unwrap());
        let services = vec![ReleasedService {
            service: service("web", Some(8000), 2),
            image: ImageId(format!("sha256:{n:064x}")),
            artifact: format!("artifact {n}"),
            base: None,
        }];
        let rollout =
            RolloutPolicy { strategy: Strategy::Rolling, order: Order::StartFirst, watch: Duration::from_secs(60) };
        let body = ReleaseBody {
            services,
            release_command: None,
            rollout,
            author: "Ada".into(),
            subject: format!("Change {n}"),
        };
        let release = store.create_release(&shop(), id, &sha(n), body).await.unwrap();
        store.set_live(&shop(), release.number, true).await.unwrap();
        let end = Finish { status: Status::Succeeded, reason: None, superseded_by: None, hold: false };
        self.agent.journal.finish(&shop(), id, end).await.unwrap();
        id
    }
}

fn request(method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:9000");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let body = match body {
        Some(json) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(json.to_string())
        }
        None => Body::empty(),
    };
    let peer: SocketAddr = "192.0.2.7:50000".parse().unwrap();
    request.extension(ConnectInfo(peer)).body(body).unwrap()
}

fn shop() -> AppName {
    "shop".parse().unwrap()
}

fn sha(n: u64) -> CommitSha {
    format!("{n:040x}").parse().unwrap()
}

fn service(name: &str, port: Option<u16>, instances: u32) -> Service {
    Service {
        name: name.parse().unwrap(),
        build: Build {
            dockerfile: "Dockerfile".into(),
            context: ".".into(),
            target: None,
            args: Default::default(),
            secrets: Default::default(),
            builder: BuilderKind::Auto,
        },
        command: None,
        port,
        instances,
        health: HealthPolicy {
            check: HealthCheck::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            successes: 2,
            failures: 3,
            start_deadline: Duration::from_secs(60),
        },
        memory: None,
        cpu_millis: None,
        stop_grace: Duration::from_secs(10),
        drain: Drain { requests: Duration::from_secs(30), streams: Duration::from_secs(60) },
        volumes: Vec::new(),
        static_files: std::collections::BTreeMap::new(),
        env: Default::default(),
        route: None,
    }
}

fn config(dir: &std::path::Path) -> Config {
    let services = [service("web", Some(8000), 2), service("worker", None, 1)];
    let app = App {
        name: shop(),
        repo: RepoUrl::Local(dir.join("shop.git")),
        branch: "main".into(),
        credential: Credential::None,
        submodules: false,
        webhook: None,
        canary_of: None,
        domains: vec!["shop.example.com".into()],
        maintenance: None,
        release: None,
        services: services.into_iter().map(|service| (service.name.clone(), service)).collect(),
        rollout: RolloutPolicy {
            strategy: Strategy::Rolling,
            order: Order::StartFirst,
            watch: Duration::from_secs(60),
        },
        build_timeout: Duration::from_secs(60),
        deadline: Duration::from_secs(60),
        keep_releases: 5,
    };
    Config {
        agent: AgentConfig {
            min_free: 0,
            listen: "127.0.0.1:9000".parse().unwrap(),
            data_dir: dir.into(),
            public_url: Some("https://deploy.example.com".into()),
            reconcile: None,
        },
        proxy: ProxyConfig::plain("127.0.0.1:0".parse().unwrap()),
        runtime: RuntimeConfig { docker_host: "unix:///var/run/docker.sock".into() },
        notify: Vec::new(),
        apps: [(shop(), app)].into(),
        files: std::collections::BTreeMap::new(),
        warnings: Vec::new(),
        absent: Default::default(),
    }
}

/// A path of the table with its parameters filled in; nothing of that name exists.
fn concrete(path: &str) -> String {
    path.replace("{app}", "nothing").replace("{service}", "web").replace("{id}", "d0-none-1")
}

#[tokio::test]
async fn every_route_asks_for_its_scope() {
    let api = Api::new();
    let (read, deploy, admin) =
        (api.token(Scope::Read).await, api.token(Scope::Deploy).await, api.token(Scope::Admin).await);
    for route in table::routes() {
        // The stream of events has no end of its own; its guard is the same as the others'.
        let path = match route.path {
            "/api/v1/events" => "/api/v1/events?app=nothing".to_owned(),
            path => concrete(path),
        };
        let roles = [
            (None, None),
            (Some(&read), Some(Scope::Read)),
            (Some(&deploy), Some(Scope::Deploy)),
            (Some(&admin), Some(Scope::Admin)),
        ];
        for (token, scope) in roles {
            let answer = api.call(route.method, &path, token.map(String::as_str), None).await;
            let expected = match (route.access, scope) {
                (Access::Open, _) => None,
                (Access::Needs(_), None) => Some(401),
                (Access::Needs(needed), Some(scope)) if scope < needed => Some(403),
                (Access::Needs(_), Some(_)) => None,
            };
            let refused = Some(answer.status.as_u16()).filter(|status| [401, 403].contains(status));
            assert_eq!(refused, expected, "{} {path} with {scope:?}", route.method);
        }
    }
}

#[tokio::test]
async fn refusals_say_why() {
    let api = Api::new();
    let none = api.call("GET", "/api/v1/apps", None, None).await;
    assert_eq!(none.status, 401);
    assert!(none.headers[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer"));
    assert!(none.detail().contains("Authorization: Bearer"));

    let unknown = api.call("GET", "/api/v1/apps", Some("lsh_0000"), None).await;
    assert_eq!((unknown.status.as_u16(), unknown.detail().as_str()), (401, "this token is unknown or revoked"));

    let past = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let (_, old) = api.agent.store.create_token("old", Scope::Admin, Some(past)).await.unwrap();
    let expired = api.call("GET", "/api/v1/apps", Some(old.expose_secret()), None).await;
    assert_eq!(
        (expired.status.as_u16(), expired.detail().as_str()),
        (401, "this token expired on 2023-11-14T22:13:20Z")
    );

    let read = api.token(Scope::Read).await;
    let scope = api.call("POST", "/api/v1/apps/shop/restart", Some(&read), None).await;
    assert_eq!((scope.status.as_u16(), scope.detail().as_str()), (403, "this needs deploy scope; the token has read"));

    for path in [format!("/api/v1/apps?token={read}"), format!("/livez?x={read}"), "/api/v1/apps?access_token=x".into()]
    {
        let in_url = api.call("GET", &path, Some(&read), None).await;
        assert_eq!(in_url.status, 400, "{path}");
        assert!(in_url.detail().starts_with("tokens are not accepted in URLs"));
    }
}

#[tokio::test]
async fn guessing_is_slowed_down_whatever_the_headers_say() {
    let api = Api::new();
    let valid = api.token(Scope::Read).await;
    let mut statuses = Vec::new();
    for n in 0..30 {
        let mut guess = request("GET", "/api/v1/apps", Some(&format!("lsh_{n:064x}")), None);
        guess.headers_mut().insert("x-forwarded-for", format!("198.51.100.{n}").parse().unwrap());
        let answer = api.send(guess).await;
        if answer.status == 429 {
            let wait: u64 = answer.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait));
        }
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [vec![401; 10], vec![429; 20]].concat());
    assert_eq!(api.call("GET", "/api/v1/apps", Some(&valid), None).await.status, 200);
}

#[tokio::test]
async fn foreign_names_and_pages_are_refused_but_not_over_the_socket() {
    let api = Api::new();
    let token = api.token(Scope::Admin).await;
    let mut rebound = request("GET", "/api/v1/apps", Some(&token), None);
    rebound.headers_mut().insert(header::HOST, "evil.test".parse().unwrap());
    assert_eq!(api.send(rebound).await.status, 421);
    let mut page = request("POST", "/api/v1/apps/shop/deployments", Some(&token), Some(json!({})));
    page.headers_mut().insert(header::ORIGIN, "https://evil.test".parse().unwrap());
    assert_eq!(api.send(page).await.status, 403);
    assert_eq!(api.local("GET", "/api/v1/apps/shop/deployments", None).await.json(), json!([]));
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_document() {
    let api = Api::new();
    let nowhere = api.call("GET", "/nowhere", None, None).await;
    assert_eq!(nowhere.status, 404);
    assert!(nowhere.detail().contains("/nowhere"));
    let method = api.call("PATCH", "/api/v1/apps/shop/deployments", None, None).await;
    assert_eq!(method.status, 405);
    method.detail();
    let mut allowed: Vec<&str> = method.headers[header::ALLOW].to_str().unwrap().split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    let app = api.local("GET", "/api/v1/apps/shpo", None).await;
    assert_eq!(app.status, 404);
    assert_eq!(app.detail(), r#"there is no app "shpo"; did you mean "shop"? apps: shop"#);
    assert_eq!(api.local("GET", "/api/v1/deployments/99", None).await.status, 404);
    assert_eq!(api.local("GET", "/api/v1/deployments/%2e%2e%2f1;rm", None).await.status, 404);
    assert_eq!(api.local("GET", "/api/v1/deployments/%ff", None).await.status, 400);
    let huge = api.local("POST", "/api/v1/apps/shop/deployments", Some(json!("x".repeat(70_000)))).await;
    assert_eq!(huge.status, 413);
    huge.detail();
}

#[tokio::test]
async fn a_deployment_is_accepted_listed_and_cancelled() {
    let api = Api::new();
    let token = api.token(Scope::Deploy).await;
    let answer =
        api.call("POST", "/api/v1/apps/shop/deployments", Some(&token), Some(json!({ "commit": sha(7) }))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.headers[header::LOCATION].to_str().unwrap()),
        (202, "/api/v1/deployments/1")
    );
    let mut body = answer.json();
    assert!(body["queued_at"].take().is_string());
    assert!(body["phases"][0]["started_at"].take().is_string());
    assert!(body["phases"][0]["seconds"].take().is_number());
    assert_eq!(
        body,
        json!({
            "id": 1, "app": "shop", "kind": "deploy", "status": "queued", "trigger": "api",
            "commit": sha(7), "ref": null, "release": null, "reason": null,
            "author": null, "subject": null, "pusher": "deploy",
            "queued_at": null, "started_at": null, "finished_at": null,
            "phases": [{ "name": "queued", "started_at": null, "finished_at": null, "seconds": null }],
            "requests": {
                "served": null, "server_errors": null, "failed": null, "retried": null, "cut_requests": null,
                "cut_streams": null, "longest_drain_seconds": null, "latency": { "before": null, "during": null },
            },
            "superseded_by": null, "cancel_asked": false,
            "url": "https://deploy.example.com/api/v1/deployments/1",
        })
    );

    let newer = api.local("POST", "/api/v1/apps/shop/deployments", Some(json!({ "ref": "main" }))).await.json();
    assert_eq!((newer["id"].as_i64(), newer["ref"].as_str()), (Some(2), Some("refs/heads/main")));
    let first = api.local("GET", "/api/v1/deployments/1", None).await.json();
    assert_eq!((first["status"].as_str(), first["superseded_by"].as_i64()), (Some("superseded"), Some(2)));

    let cancelled = api.local("POST", "/api/v1/deployments/2/cancel", None).await;
    assert_eq!((cancelled.status.as_u16(), cancelled.json()["status"].as_str().unwrap()), (202, "cancelled"));
    let again = api.local("POST", "/api/v1/deployments/2/cancel", None).await;
    assert_eq!((again.status.as_u16(), again.json()), (200, cancelled.json()), "it is what was asked for");
    let late = api.local("POST", "/api/v1/deployments/1/cancel", None).await;
    let detail = "deployment #1 cannot be cancelled, it has ended: superseded";
    assert_eq!((late.status.as_u16(), late.detail().as_str()), (409, detail));
    let first = api.local("GET", "/api/v1/deployments/1", None).await.json();
    assert_eq!((first["status"].as_str(), first["cancel_asked"].as_bool()), (Some("superseded"), Some(false)));
    let list = api.local("GET", "/api/v1/apps/shop/deployments?limit=1", None).await.json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["id"], 2);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_the_field() {
    let api = Api::new();
    let path = "/api/v1/apps/shop/deployments";
    let bodies = [
        (json!({ "commit": "abc1234" }), "commit"),
        (json!({ "commit": "--upload-pack=x" }), "commit"),
        (json!({ "ref": ":/(((((" }), "ref"),
        (json!({ "ref": "main", "commit": sha(1) }), "ref"),
        (json!({ "comit": sha(1) }), "comit"),
        (json!({ "dry_run": "yes" }), "dry_run"),
    ];
    for (body, field) in bodies {
        let answer = api.local("POST", path, Some(body.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.json()["field"].as_str()), (422, Some(field)), "{body}");
    }
    for (path, field, words) in [
        ("apps/shop/deployments?limt=3", "limt", "did you mean \"limit\"?"),
        ("apps/shop/deployments?limit=0", "limit", "from 1 to 200, not \"0\""),
        ("apps/shop/deployments?limit=-1", "limit", "from 1 to 200, not \"-1\""),
        ("deployments/1/log?after=x", "after", "0 or more, not \"x\""),
        ("deployments/1/log?follow=maybe", "follow", "must be 1 or 0"),
        ("instances/d12-web-1/logs?tail=10001", "tail", "from 0 to 10000"),
        ("events?apps=shop", "apps", "did you mean \"app\"?"),
        ("events?app=shop&app=blog", "app", "more than once"),
    ] {
        let answer = api.local("GET", &format!("/api/v1/{path}"), None).await;
        assert_eq!((answer.status.as_u16(), answer.json()["field"].as_str()), (422, Some(field)), "{path}");
        assert!(answer.detail().contains(words), "{path}: {}", answer.detail());
    }
    assert!(api.agent.store.deployments(&shop(), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn rollback_names_what_there_is() {
    let api = Api::new();
    let path = "/api/v1/apps/shop/rollback";
    let none = api.local("POST", path, None).await;
    assert_eq!(
        (none.status.as_u16(), none.detail().as_str()),
        (404, "shop has no earlier good release; it has no release to go back to")
    );
    api.go_live(1).await;
    api.go_live(2).await;
    let unknown = api.local("POST", path, Some(json!({ "to": 9 }))).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.detail().as_str()),
        (404, "shop has no release v9; available: v2 (live), v1")
    );
    for to in [json!(2), json!("2"), json!("v2")] {
        let live = api.local("POST", path, Some(json!({ "to": to }))).await;
        assert_eq!((live.status.as_u16(), live.detail().as_str()), (409, "v2 is live already"));
    }
    let nonsense = api.local("POST", path, Some(json!({ "to": ";rm -rf" }))).await;
    assert_eq!((nonsense.status.as_u16(), nonsense.json()["field"].as_str()), (422, Some("to")));
    let releases = api.local("GET", "/api/v1/apps/shop/releases", None).await.json();
    assert_eq!(
        (&releases[0]["release"], &releases[0]["live"], &releases[1]["live"]),
        (&json!(2), &json!(true), &json!(false))
    );
}

#[tokio::test]
async fn scale_and_restart_need_something_live() {
    let api = Api::new();
    let path = "/api/v1/apps/shop/services/web/scale";
    assert_eq!(api.local("PUT", path, Some(json!({ "instances": 3 }))).await.status, 409);
    assert_eq!(api.local("POST", "/api/v1/apps/shop/restart", None).await.status, 409);
    api.go_live(1).await;
    for bad in [json!(65), json!(-1), json!("3"), json!(1.5), Value::Null] {
        let answer = api.local("PUT", path, Some(json!({ "instances": bad }))).await;
        assert_eq!((answer.status.as_u16(), answer.json()["field"].as_str()), (422, Some("instances")), "{bad}");
    }
    let wrong = api.local("PUT", "/api/v1/apps/shop/services/wbe/scale", Some(json!({ "instances": 3 }))).await;
    assert_eq!(
        (wrong.status.as_u16(), wrong.detail().as_str()),
        (404, r#"shop has no service "wbe"; services: web, worker"#)
    );
    let scaled = api.local("PUT", path, Some(json!({ "instances": 0 }))).await;
    assert_eq!((scaled.status.as_u16(), scaled.json()["kind"].as_str().unwrap()), (202, "scale"));
    let restarted = api.local("POST", "/api/v1/apps/shop/restart", Some(json!({}))).await;
    assert_eq!((restarted.status.as_u16(), restarted.json()["kind"].as_str().unwrap()), (202, "restart"));
}

#[tokio::test]
async fn an_app_shows_what_is_live_and_what_runs() {
    let api = Api::new();
    api.go_live(1).await;
    let id = api.local("POST", "/api/v1/apps/shop/deployments", None).await.json()["id"].as_i64().unwrap();
    api.agent.journal.advance(&shop(), DeploymentId(id), Status::Preparing).await.unwrap();
    api.agent.store.set_scale(&shop(), &"worker".parse::<ServiceName>().unwrap(), 1, 4).await.unwrap();
    let app = api.local("GET", "/api/v1/apps/shop", None).await.json();
    let all = api.local("GET", "/api/v1/apps", None).await.json();
    assert_eq!((&all[0]["name"], &all[0]["live"]), (&json!("shop"), &app["live"]));
    assert_eq!((&app["live"]["release"], &app["live"]["commit"]), (&json!(1), &json!(sha(1))));
    assert_eq!((&app["deployment"]["id"], &app["queued"]), (&json!(id), &json!(0)));
    assert_eq!(app["services"][1]["instances"], json!({ "desired": 4, "ready": 0, "serving": 0, "standing_in": 0 }));
    assert_eq!(app["services"][0]["image"], json!(format!("sha256:{:064x}", 1)));
}

#[tokio::test]
async fn an_app_shows_what_the_proxy_counts() {
    let api = Api::new();
    let app = || async { api.local("GET", "/api/v1/apps/shop", None).await.json() };
    let unknown = app().await;
    let (traffic, web) = (&unknown["traffic"], &unknown["services"][0]);
    assert_eq!((traffic, &web["in_flight"], &web["waiting"]), (&Value::Null, &Value::Null, &Value::Null), "no proxy");
    assert_eq!(unknown["proxy"], Value::Null, "nobody to ask yet");

    // A request that waits for the service's first instance until one is there, which then answers it.
    let (ready, address) = tokio::sync::oneshot::channel();
    let free = ([127, 0, 0, 1], 0).into();
    let options = ProxyOptions { ready: Some(ready), ..ProxyOptions::new(free, api.dir.path().to_owned()) };
    let proxy_ends = tokio_util::sync::CancellationToken::new();
    tokio::spawn(crate::proxy::run(options, proxy_ends.clone()));
    let address = address.await.unwrap();
    let proxy = ProxyClient::start(api.dir.path());
    assert!(proxy.connected(Duration::from_secs(5)).await);
    api.agent.connect_proxy(proxy.clone());
    let limits = RouteLimits { queue: 9, queue_wait: Duration::from_secs(60), ..RouteLimits::default() };
    let route = |members| {
        let route = Route::new(shop(), "web".parse().unwrap(), vec!["shop.example.com".into()], members);
        vec![Route { limits, ..route }]
    };
    proxy.apply(route(Vec::new())).await.unwrap();
    let mut visitor = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = b"GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut visitor, head).await.unwrap();
    let waiting = async {
        while app().await["services"][0]["waiting"] != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap();

    let backend = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = crate::model::InstanceId::parse("d1-web-1").unwrap();
    let member = Member { instance, address: backend.local_addr().unwrap(), weight: 1, group: 0 };
    proxy.apply(route(vec![member])).await.unwrap();
    let (mut asked, _) = backend.accept().await.unwrap();
    read_until(&mut asked, "\r\n\r\n").await;
    let answer = b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    tokio::io::AsyncWriteExt::write_all(&mut asked, answer).await.unwrap();
    read_until(&mut visitor, "\r\n\r\nno").await;
    let served = async {
        while app().await["traffic"]["served"] != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), served).await.unwrap();
    let mut known = api.local("GET", "/api/v1/apps", None).await.json()[0].take();
    let latency = known["traffic"]["latency"].take();
    assert!(latency["p50_ms"].as_f64().unwrap() > 0.0 && latency["p99_ms"].is_number(), "{latency}");
    assert_eq!(
        known["traffic"],
        json!({
            "served": 1, "failed": 0, "server_errors": 1, "retried": 0, "client_aborted": 0, "files": 0, "latency": null,
        })
    );
    let pid = std::process::id();
    assert_eq!(known["proxy"], json!({ "answers": true, "pid": pid, "since": null }));
    let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
    for (schema, shown) in [("App", &known), ("Service", &known["services"][0]), ("Traffic", &known["traffic"])] {
        let documented = &document["components"]["schemas"][schema]["properties"];
        let names =
            |object: &Value| object.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names(documented), names(shown), "{schema}");
    }
    let of = |service: &Value| (service["in_flight"].clone(), service["waiting"].clone());
    assert_eq!(of(&known["services"][0]), (Value::Null, json!(0)), "which instances there are is not known yet");
    assert_eq!(of(&known["services"][1]), (Value::Null, Value::Null), "nothing is asked of a worker");

    proxy_ends.cancel();
    proxy.watch_status().wait_for(|status| !status.connected && status.absent).await.unwrap();
    let ended = app().await;
    assert_eq!(ended["traffic"], Value::Null, "it has ended");
    assert_eq!((&ended["proxy"]["answers"], &ended["proxy"]["pid"]), (&json!(false), &Value::Null));
    assert!(ended["proxy"]["since"].is_string());
}

#[tokio::test]
async fn a_proxy_that_hangs_does_not_hold_up_the_api() {
    let api = Api::new();
    let listener = tokio::net::UnixListener::bind(api.dir.path().join(crate::proxy::control::SOCKET_NAME)).unwrap();
    let proxy = ProxyClient::start(api.dir.path());
    let (mut hanging, _) = listener.accept().await.unwrap();
    let hello = Report::Hello {
        version: "1".into(),
        pid: 1,
        boot: "boot".into(),
        generation: 0,
        listeners: Vec::new(),
        activated: false,
        answers: false,
    };
    crate::proxy::control::write_message(&mut hanging, &hello).await.unwrap();
    assert!(proxy.connected(Duration::from_secs(5)).await);
    api.agent.connect_proxy(proxy);
    let before = jiff::Timestamp::now();
    let asked = tokio::time::timeout(Duration::from_secs(3), api.local("GET", "/api/v1/apps", None)).await;
    let apps = asked.expect("an answer in time").json();
    assert_eq!((&apps[0]["name"], &apps[0]["traffic"]), (&json!("shop"), &Value::Null));
    let proxy = &apps[0]["proxy"];
    assert_eq!((&proxy["answers"], &proxy["pid"]), (&json!(false), &json!(1)));
    let since: jiff::Timestamp = proxy["since"].as_str().unwrap().parse().unwrap();
    assert!(since <= before, "since it said hello: {since} {before}");
}

#[tokio::test]
async fn a_log_is_read_whole_or_followed_from_a_line_on() {
    let api = Api::new();
    let id =
        DeploymentId(api.local("POST", "/api/v1/apps/shop/deployments", None).await.json()["id"].as_i64().unwrap());
    let log = api.agent.journal.log(&shop(), id).await.unwrap();
    for line in ["one", "", "two\rthree"] {
        log.line(line);
    }
    let end = Finish { status: Status::Failed, reason: Some("no".into()), superseded_by: None, hold: false };
    api.agent.journal.finish(&shop(), id, end).await.unwrap();
    let path = format!("/api/v1/deployments/{}/log", id.0);
    assert_eq!(api.local("GET", &path, None).await.text, "one\n\ntwo\rthree\n");
    assert_eq!(api.local("GET", &format!("{path}?after=2"), None).await.text, "two\rthree\n");

    let mut follow = request("GET", &format!("{path}?follow=1"), None, None);
    follow.headers_mut().insert("last-event-id", "1".parse().unwrap());
    follow.extensions_mut().insert(LocalPeer { uid: 0, pid: None });
    let events = api.send(follow).await;
    assert_eq!(events.headers[header::CONTENT_TYPE], "text/event-stream");
    let (lines, end) = events.text.split_once("event: end\ndata: ").unwrap();
    assert_eq!(lines, "data:  \nid: 2\n\ndata: two\rdata: three\nid: 3\n\n");
    let record: Value = serde_json::from_str(end.trim()).unwrap();
    assert_eq!((&record["status"], &record["reason"]), (&json!("failed"), &json!("no")));
}

#[tokio::test]
async fn a_token_is_shown_once_and_ends_when_revoked() {
    let api = Api::new();
    let made = api
        .local("POST", "/api/v1/tokens", Some(json!({ "name": "ci", "scope": "deploy", "expires_in_days": 30 })))
        .await;
    assert_eq!(made.status, 201);
    let token = made.json()["token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("lsh_") && made.json()["expires_at"].is_string());
    assert_eq!(api.call("GET", "/api/v1/apps", Some(&token), None).await.status, 200);
    let list = api.local("GET", "/api/v1/tokens", None).await;
    assert!(!list.text.contains(&token));
    let id = list.json()[0]["id"].as_i64().unwrap();
    assert_eq!(api.local("DELETE", &format!("/api/v1/tokens/{id}"), None).await.status, 204);
    assert_eq!(api.call("GET", "/api/v1/apps", Some(&token), None).await.status, 401);
    assert_eq!(api.local("DELETE", &format!("/api/v1/tokens/{id}"), None).await.status, 404);
    for (body, field) in [
        (json!({ "scope": "read" }), "name"),
        (json!({ "name": "x" }), "scope"),
        (json!({ "name": "x", "scope": "root" }), "scope"),
        (json!({ "name": "x", "scope": "read", "expires_in_days": 0 }), "expires_in_days"),
    ] {
        let answer = api.local("POST", "/api/v1/tokens", Some(body)).await;
        assert_eq!((answer.status.as_u16(), answer.json()["field"].as_str()), (422, Some(field)));
    }
}

#[tokio::test]
async fn probes_answer_without_a_token() {
    let api = Api::new();
    assert_eq!(api.call("GET", "/livez", None, None).await.status, 200);
    let answer = api.call("GET", "/readyz", None, None).await;
    assert_eq!(answer.status, 503, "an agent without an engine is not ready");
    let ready = answer.json();
    assert_eq!(ready["status"], "unready");
    assert!(ready["problems"][0].as_str().unwrap().contains("still starting"), "{ready}");
    assert_eq!(ready["agent"], api.call("GET", "/readyz", None, None).await.json()["agent"]);
}

#[test]
fn the_openapi_document_names_every_route_and_no_other() {
    let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut written = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let open = operation["security"] == json!([]);
            written.push((method.to_uppercase(), path.clone(), open));
        }
    }
    let mut served: Vec<_> = table::routes()
        .into_iter()
        .map(|route| (route.method.to_owned(), route.path.to_owned(), route.access == Access::Open))
        .collect();
    written.sort();
    served.sort();
    assert_eq!(written, served);
}

#[tokio::test]
async fn events_reach_a_listener_and_end_with_the_agent() {
    let api = Api::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let server = tokio::spawn(serve_tcp(listener, api.router.clone(), shutdown.clone()));
    let token = api.token(Scope::Read).await;

    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head =
        format!("GET /api/v1/events?app=shop HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
    let mut seen = read_until(&mut socket, "text/event-stream").await;
    // Lines go out once the handler has subscribed, which it has before its head is on the way.
    let event = DeployEvent::Log { seq: 1, line: "hello".into() };
    api.agent.journal.publish(&shop(), Some(DeploymentId(1)), event);
    if !seen.contains("hello") {
        seen = read_until(&mut socket, "hello").await;
    }
    assert!(seen.contains("event: log\ndata: {\"app\":\"shop\",\"deployment\":1,"), "{seen}");

    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), server).await;
    assert!(ended.is_ok(), "the open stream held up the shutdown");
}

async fn read_until(socket: &mut tokio::net::TcpStream, needle: &str) -> String {
    let mut text = String::new();
    let mut chunk = [0u8; 4096];
    while !text.contains(needle) {
        let read = tokio::time::timeout(Duration::from_secs(5), tokio::io::AsyncReadExt::read(socket, &mut chunk));
        let n = read.await.expect("no answer").unwrap();
        assert!(n > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    text
}

#[tokio::test]
async fn a_slow_listener_is_told_to_read_the_records_again() {
    let api = Api::new();
    let mut ask = request("GET", "/api/v1/events", None, None);
    ask.extensions_mut().insert(LocalPeer { uid: 0, pid: None });
    let answer = api.router.clone().oneshot(ask).await.unwrap();
    for seq in 0..10_000 {
        api.agent.journal.publish(&shop(), None, DeployEvent::Log { seq, line: "x".into() });
    }
    let mut body = answer.into_body().into_data_stream();
    let first = futures_util::StreamExt::next(&mut body).await.unwrap().unwrap();
    assert!(first.starts_with(b"event: resync\ndata: {\"missed\":"), "{first:?}");
}

#[tokio::test]
async fn our_own_user_needs_no_token_on_the_socket() {
    let api = Api::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("longshore.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let server = tokio::spawn(serve_unix(listener, api.router.clone(), shutdown.clone()));
    let mut socket = tokio::net::UnixStream::connect(&path).await.unwrap();
    let head = "GET /api/v1/tokens HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("[]"), "{answer}");
    assert!(answer.contains(concat!("server: longshore/", env!("CARGO_PKG_VERSION"))), "{answer}");
    shutdown.cancel();
    server.await.unwrap();
}
