//! Deliveries as GitHub sends them: payloads with the fields of
//! <https://docs.github.com/webhooks/webhook-events-and-payloads#push>, signed as in
//! <https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries>.

use std::net::SocketAddr;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::http::{self, Response};
use super::repo::{Pushed, ZERO};

/// The value of `X-Hub-Signature-256` for these bytes.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// One POST from GitHub. The fields are open so that a test can spoil them.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// `X-GitHub-Event`
    pub event: String,
    /// `X-GitHub-Delivery`; a redelivery repeats it.
    pub id: String,
    /// `Content-Type`
    pub content_type: String,
    /// The bytes that are signed and sent.
    pub body: Vec<u8>,
}

impl Delivery {
    /// A JSON delivery with a new id.
    pub fn new(event: &str, payload: &Value) -> Self {
        let body = serde_json::to_vec(payload).expect("JSON");
        Self { event: event.to_owned(), id: random_id(), content_type: "application/json".to_owned(), body }
    }

    /// The same payload as `application/x-www-form-urlencoded`; GitHub then signs the encoded body.
    pub fn form_encoded(mut self) -> Self {
        self.body = [b"payload=".as_slice(), percent_encode(&self.body).as_bytes()].concat();
        self.content_type = "application/x-www-form-urlencoded".to_owned();
        self
    }

    /// All headers, with the body's signature.
    pub fn headers(&self, secret: &str) -> Vec<(&'static str, String)> {
        let mut headers = self.unsigned_headers();
        headers.push(("x-hub-signature-256", sign(secret, &self.body)));
        headers
    }

    /// What GitHub sends when the webhook has no secret.
    pub fn unsigned_headers(&self) -> Vec<(&'static str, String)> {
        vec![
            ("accept", "*/*".to_owned()),
            ("content-type", self.content_type.clone()),
            ("user-agent", "GitHub-Hookshot/5fb4f5c".to_owned()),
            ("x-github-event", self.event.clone()),
            ("x-github-delivery", self.id.clone()),
            ("x-github-hook-id", "476581234".to_owned()),
            ("x-github-hook-installation-target-id", "186853002".to_owned()),
            ("x-github-hook-installation-target-type", "repository".to_owned()),
        ]
    }

    /// Signs it and posts it to `/hooks/{app}`.
    pub async fn send(&self, agent: SocketAddr, app: &str, secret: &str) -> Response {
        self.send_with(agent, app, &self.headers(secret)).await
    }

    /// Posts it with these headers.
    pub async fn send_with(&self, agent: SocketAddr, app: &str, headers: &[(&'static str, String)]) -> Response {
        self.try_send(agent, app, headers).await.unwrap_or_else(|why| panic!("POST /hooks/{app}: {why}"))
    }

    /// The same, when it may be that nobody answers.
    pub async fn try_send(
        &self,
        agent: SocketAddr,
        app: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Response, String> {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let request = http::request("POST", &agent.to_string(), &format!("/hooks/{app}"), &headers, self.body.clone());
        http::send(agent, request).await
    }
}

/// A push event in the making.
#[derive(Debug, Clone)]
pub struct Push {
    git_ref: String,
    before: String,
    after: String,
    forced: bool,
    base_ref: Option<String>,
    messages: Vec<String>,
    head_commit: bool,
    author: String,
}

impl Push {
    /// An existing branch moved from `before` to `after` by one commit.
    pub fn branch(branch: &str, before: &str, after: &str) -> Self {
        Self {
            git_ref: format!("refs/heads/{branch}"),
            before: before.to_owned(),
            after: after.to_owned(),
            forced: false,
            base_ref: None,
            messages: vec!["Change how the site behaves".to_owned()],
            head_commit: true,
            author: "Ada Example".to_owned(),
        }
    }

    /// What [`super::repo::Repo`] just pushed to a branch, be it an update, a creation or a deletion.
    pub fn of(branch: &str, pushed: &Pushed) -> Self {
        match pushed.after.as_str() {
            ZERO => Self::deletion(branch, &pushed.before),
            after => Self::branch(branch, &pushed.before, after),
        }
    }

    /// A branch that did not exist before.
    pub fn creation(branch: &str, after: &str) -> Self {
        Self { base_ref: Some("refs/heads/main".to_owned()), ..Self::branch(branch, ZERO, after) }
    }

    /// A deleted branch: no commits, `head_commit` null.
    pub fn deletion(branch: &str, before: &str) -> Self {
        Self { messages: Vec::new(), head_commit: false, ..Self::branch(branch, before, ZERO) }
    }

    /// A new lightweight tag on `commit`.
    pub fn tag(tag: &str, commit: &str) -> Self {
        Self {
            git_ref: format!("refs/tags/{tag}"),
            messages: Vec::new(),
            base_ref: Some("refs/heads/main".to_owned()),
            ..Self::branch("main", ZERO, commit)
        }
    }

    /// A new annotated tag: `after` is the tag object's id, `head_commit` the tagged commit.
    pub fn annotated_tag(tag: &str, tag_object: &str) -> Self {
        Self::tag(tag, tag_object)
    }

    /// History was rewritten.
    pub fn forced(mut self) -> Self {
        self.forced = true;
        self
    }

    /// One commit per message, the last one being `after`.
    pub fn commits(mut self, messages: &[&str]) -> Self {
        self.messages = messages.iter().map(|&message| message.to_owned()).collect();
        self
    }

    /// Who wrote the commits.
    pub fn author(mut self, name: &str) -> Self {
        self.author = name.to_owned();
        self
    }

    /// `head_commit` is null and `commits` empty although the branch exists, as in a push of nothing new.
    pub fn head_commit_null(mut self) -> Self {
        self.head_commit = false;
        self.messages.clear();
        self
    }

    /// The payload.
    pub fn payload(&self) -> Value {
        let last = self.messages.len().saturating_sub(1);
        let commit = |(index, message): (usize, &String)| match index == last {
            true => self.commit(&self.after, message),
            false => self.commit(&format!("{index:040x}"), message),
        };
        let commits: Vec<_> = self.messages.iter().enumerate().map(commit).collect();
        let head = self.head_commit.then(|| {
            commits.last().cloned().unwrap_or_else(|| self.commit(&self.after, "Change how the site behaves"))
        });
        json!({
            "ref": self.git_ref,
            "before": self.before,
            "after": self.after,
            "created": self.before == ZERO,
            "deleted": self.after == ZERO,
            "forced": self.forced,
            "base_ref": self.base_ref,
            "compare": format!("https://github.com/example/shop/compare/{:.12}...{:.12}", self.before, self.after),
            "commits": commits,
            "head_commit": head,
            "repository": repository(),
            "pusher": { "name": "ada", "email": "ada@example.com" },
            "sender": sender(),
        })
    }

    /// Ready to send.
    pub fn delivery(&self) -> Delivery {
        Delivery::new("push", &self.payload())
    }

    fn commit(&self, id: &str, message: &str) -> Value {
        let person = json!({ "name": self.author, "email": "ada@example.com", "username": "ada" });
        json!({
            "id": id,
            "tree_id": "f9d2a07e9488b91af2641b26b9407fe22a451433",
            "distinct": true,
            "message": message,
            "timestamp": "2026-05-04T09:12:31+02:00",
            "url": format!("https://github.com/example/shop/commit/{id}"),
            "author": person,
            "committer": person,
            "added": [],
            "removed": [],
            "modified": ["behaviour"],
        })
    }
}

/// What GitHub sends first to a new webhook.
pub fn ping() -> Delivery {
    Delivery::new(
        "ping",
        &json!({
            "zen": "Keep it logically awesome.",
            "hook_id": 476_581_234,
            "hook": {
                "type": "Repository",
                "id": 476_581_234,
                "name": "web",
                "active": true,
                "events": ["push"],
                "config": { "content_type": "json", "insecure_ssl": "0", "url": "https://deploy.example.com/hooks/shop" },
            },
            "repository": repository(),
            "sender": sender(),
        }),
    )
}

/// An event that deploys nothing, such as `issues` or `workflow_run`.
pub fn other_event(event: &str) -> Delivery {
    Delivery::new(event, &json!({ "action": "opened", "repository": repository(), "sender": sender() }))
}

fn repository() -> Value {
    json!({
        "id": 186_853_002,
        "node_id": "MDEwOlJlcG9zaXRvcnkxODY4NTMwMDI=",
        "name": "shop",
        "full_name": "example/shop",
        "private": true,
        "owner": { "name": "example", "login": "example", "id": 21_031_067, "type": "Organization" },
        "html_url": "https://github.com/example/shop",
        "url": "https://github.com/example/shop",
        "clone_url": "https://github.com/example/shop.git",
        "ssh_url": "git@github.com:example/shop.git",
        "default_branch": "main",
        "master_branch": "main",
        // Seconds here, text in GitHub's other events.
        "created_at": 1_777_878_000,
        "pushed_at": 1_777_879_000,
    })
}

fn sender() -> Value {
    json!({ "login": "ada", "id": 21_031_067, "type": "User", "site_admin": false })
}

/// A GUID as GitHub writes them.
fn random_id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    let text = hex::encode(bytes);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

fn percent_encode(bytes: &[u8]) -> String {
    let encode = |&byte: &u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        b' ' => "+".to_owned(),
        _ => format!("%{byte:02X}"),
    };
    bytes.iter().map(encode).collect()
}
