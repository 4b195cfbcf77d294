//! What the tests around the hooks share: an app, its configuration, and the routes on a real socket and journal.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio_util::sync::CancellationToken;

use super::http::{HookState, Submit, router};
pub use super::signature::tests::sign;
use crate::config::{
    AgentConfig, App, Config, Credential, Order, Provider, ProxyConfig, RepoUrl, RolloutPolicy, RuntimeConfig,
    Strategy, Webhook,
};
use crate::journal::Journal;
use crate::model::AppName;
use crate::store::Store;

/// The webhook secret of [`app`].
pub const SECRET: &str = "a webhook secret of the shop";

/// An app that deploys `main` of `repo`.
pub fn app(name: &str, repo: RepoUrl) -> App {
    App {
        name: name.parse().unwrap(),
        repo,
        branch: "main".into(),
        credential: Credential::None,
        submodules: false,
        webhook: Some(Webhook { provider: Provider::GitHub, secret: Ok(SECRET.into()) }),
        canary_of: None,
        domains: Vec::new(),
        maintenance: None,
        release: None,
        services: BTreeMap::new(),
        rollout: RolloutPolicy { strategy: Strategy::Rolling, order: Order::StartFirst, watch: Duration::ZERO },
        build_timeout: Duration::from_secs(60),
        deadline: Duration::from_secs(60),
        keep_releases: 5,
    }
}

/// The app `shop` of github.com/example/shop.
pub fn shop() -> App {
    let url = "https://github.com/example/shop.git".into();
    app("shop", RepoUrl::Http { url, authority: "github.com".into() })
}

/// A configuration with these apps.
pub fn config(apps: impl IntoIterator<Item = App>) -> Config {
    Config {
        agent: AgentConfig {
            min_free: 0,
            listen: "0.0.0.0:9000".parse().unwrap(),
            data_dir: "/nonexistent".into(),
            public_url: None,
            reconcile: None,
        },
        proxy: ProxyConfig::plain("127.0.0.1:0".parse().unwrap()),
        runtime: RuntimeConfig { docker_host: "unix:///nonexistent".into() },
        notify: Vec::new(),
        apps: apps.into_iter().map(|app| (app.name.clone(), app)).collect(),
        files: BTreeMap::new(),
        warnings: Vec::new(),
        absent: Default::default(),
    }
}

/// The hook routes on a port of their own, with a journal in a temporary directory.
pub struct Server {
    pub addr: SocketAddr,
    pub store: Store,
    pub journal: Journal,
    /// Cancelled, the agent ends.
    pub ending: CancellationToken,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Body>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Accepts deliveries for `apps` and records them.
    pub async fn start(apps: impl IntoIterator<Item = App>) -> Self {
        Self::with_submit(apps, |store| {
            Box::new(move |new| {
                let store = store.clone();
                Box::pin(async move { store.admit(new).await })
            })
        })
        .await
    }

    /// The same with another way of recording.
    pub async fn with_submit(apps: impl IntoIterator<Item = App>, submit: impl FnOnce(Store) -> Submit) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        let journal = Journal::new(store.clone());
        let config = Arc::new(config(apps));
        let (config, ending) = (Box::new(move || config.clone()), CancellationToken::new());
        let state = HookState::new(config, submit(store.clone()), store.clone(), journal.clone(), ending.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router(state)).await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { addr, store, journal, ending, client, task, _dir: dir }
    }

    /// Sends a request; the answer's body is still to be read.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Response<hyper::body::Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(body.into()).unwrap()).await.unwrap()
    }

    /// Posts and reads the whole answer.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Bytes> {
        let (parts, body) = self.open(Method::POST, path, headers, body).await.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    /// Sends a correctly signed GitHub push or another event.
    pub async fn deliver(&self, event: &str, delivery: &str, body: &str) -> Response<Bytes> {
        let signature = sign(SECRET, body.as_bytes());
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", delivery),
            ("x-hub-signature-256", signature.as_str()),
        ];
        self.post("/hooks/shop", &headers, body.to_owned()).await
    }

    /// How many deployments the shop has.
    pub async fn deployments(&self) -> usize {
        let shop: AppName = "shop".parse().unwrap();
        self.store.deployments(&shop, 1000).await.unwrap().len()
    }
}

/// A push of the shop's `main` from one commit to another, both named by a digit.
pub fn push_body(before: char, after: char) -> String {
    let sha = |digit: char| digit.to_string().repeat(40);
    serde_json::json!({
        "ref": "refs/heads/main", "before": sha(before), "after": sha(after),
        "created": false, "deleted": false, "forced": false,
        "repository": {"full_name": "example/shop"}, "pusher": {"name": "ada"},
        "head_commit": {"id": sha(after), "message": "Sell tea", "author": {"name": "Ada Lovelace"}},
    })
    .to_string()
}
