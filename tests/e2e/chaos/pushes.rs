//! What people do meanwhile: push good and bad versions, push again at once, redeliver, roll back, scale, restart, cancel.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::excuses::Excuses;
use super::ledger::{Ledger, Pushed, Version};
use crate::chance::Chance;
use crate::shop::SECRET;
use crate::support::github::{Delivery, Push};
use crate::support::http::{self, Response};
use crate::support::repo::Repo;
use crate::support::site::{Behaviour, DOCKERFILE};

/// A request to the agent that is not answered within this is taken for lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Instances of the first app: never fewer than this are asked for.
pub const LEAST_INSTANCES: usize = 3;

/// The agent from outside, whether it runs or not.
#[derive(Clone)]
pub struct Door {
    pub listen: SocketAddr,
    pub socket: PathBuf,
}

impl Door {
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Result<Response, String> {
        let body = body.map(|body| body.to_string());
        let headers: &[_] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        let request = http::request(method, "localhost", path, headers, Bytes::from(body.unwrap_or_default()));
        let sending = http::send_unix(&self.socket, request);
        timeout(ANSWER_WITHIN, sending).await.map_err(|_| "no answer".to_owned())?
    }

    /// GET of something that must be there.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.api("GET", path, None).await?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{} {}", answer.status, answer.text())) }
    }

    /// Whether it is ready.
    pub async fn ready(&self) -> bool {
        let asking = http::get(self.listen, "localhost", "/readyz");
        matches!(timeout(Duration::from_secs(2), asking).await, Ok(Ok(answer)) if answer.status == 200)
    }
}

/// An app with its repository.
pub struct App {
    pub name: &'static str,
    pub host: &'static str,
    pub repo: Repo,
    pub pushed: usize,
}

/// A delivery that nobody has taken.
struct Undelivered {
    id: String,
    app: &'static str,
    delivery: Delivery,
}

/// One app's people.
pub struct Pusher {
    pub app: App,
    pub door: Door,
    pub ledger: Ledger,
    pub excuses: Excuses,
    chance: Chance,
    undelivered: VecDeque<Undelivered>,
    last: Option<(Delivery, u64)>,
}

#[derive(Clone, Copy)]
enum Step {
    Push,
    Burst,
    Duplicate,
    Rollback,
    Scale,
    Restart,
    Cancel,
}

impl Pusher {
    pub fn new(app: App, door: Door, ledger: Ledger, excuses: Excuses, chance: Chance) -> Self {
        Self { app, door, ledger, excuses, chance, undelivered: VecDeque::new(), last: None }
    }

    /// Goes on until `stop`, then delivers what is left.
    pub async fn run(mut self, stop: CancellationToken, slowest: u64) -> Self {
        while !stop.is_cancelled() {
            let pause = self.chance.millis(0, slowest);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
            self.step().await;
            self.deliver_all().await;
        }
        self
    }

    async fn step(&mut self) {
        let step = self.chance.pick(&[
            (56, Step::Push),
            (12, Step::Burst),
            (8, Step::Duplicate),
            (6, Step::Rollback),
            (6, Step::Scale),
            (6, Step::Restart),
            (6, Step::Cancel),
        ]);
        match step {
            Step::Push => self.push().await,
            Step::Burst => {
                for _ in 0..2 + self.chance.below(2) {
                    self.push().await;
                    tokio::time::sleep(self.chance.millis(0, 60)).await;
                }
            }
            Step::Duplicate => self.deliver_again().await,
            Step::Rollback => self.operate("POST", "rollback", json!({})).await,
            Step::Scale => {
                let instances = LEAST_INSTANCES + self.chance.below(2);
                self.operate("PUT", "services/web/scale", json!({ "instances": instances })).await;
            }
            Step::Restart => self.operate("POST", "restart", json!({})).await,
            Step::Cancel => self.cancel().await,
        }
    }

    async fn push(&mut self) {
        let version = self.chance.pick(&[
            (60, Version::Good),
            (8, Version::ExitsAtOnce),
            (5, Version::NeverReady),
            (7, Version::Answers500),
            (8, Version::Crashes),
            (6, Version::BuildFails),
            (6, Version::ReleaseFails),
        ]);
        self.push_version(version).await;
    }

    /// Commits and pushes a version; delivers it once.
    pub async fn push_version(&mut self, version: Version) {
        self.app.pushed += 1;
        let name = format!("{}-{}", self.app.name, self.app.pushed);
        let behaviour = Behaviour::version(&name);
        let behaviour = match version {
            Version::Good | Version::BuildFails => behaviour,
            Version::ExitsAtOnce => behaviour.exit_at_once(3),
            Version::NeverReady => behaviour.never_ready(),
            Version::Answers500 => behaviour.answer_500_but_healthy().only_on("-1"),
            Version::Crashes => behaviour.crash_after_ready_ms(1000, 8).only_on("-2"),
            Version::ReleaseFails => behaviour.migrate(6, 0, "cannot"),
        };
        if version == Version::Answers500 {
            self.excuses.bad_version(&name);
        }
        let repo = &self.app.repo;
        let pushed = block_in_place(|| {
            repo.write_site(&behaviour);
            if version == Version::BuildFails {
                repo.write("Dockerfile", format!("{DOCKERFILE}COPY not-there /\n"));
            }
            repo.commit(&name);
            repo.push("main")
        });
        let delivery = Push::of("main", &pushed).delivery();
        let (app, id) = (self.app.name, delivery.id.clone());
        let entry = Pushed { app, name, version, commit: pushed.after, delivery: id.clone(), deployment: None };
        self.ledger.entries().pushes.push(entry);
        self.deliver(Undelivered { id, app, delivery }).await;
    }

    async fn deliver(&mut self, pending: Undelivered) {
        let headers = pending.delivery.headers(SECRET);
        let sending = pending.delivery.try_send(self.door.listen, pending.app, &headers);
        let answer = timeout(ANSWER_WITHIN, sending).await.unwrap_or_else(|_| Err("no answer".to_owned()));
        match answer {
            Ok(answer) if matches!(answer.status.as_u16(), 200 | 202) => match answer.json()["deployment"].as_u64() {
                Some(deployment) => {
                    self.ledger.accepted(&pending.id, deployment);
                    self.last = Some((pending.delivery, deployment));
                }
                None => self.wrong(format!("a push of {} was answered with {}", pending.app, answer.text())),
            },
            Ok(answer) if answer.status != 503 => {
                self.wrong(format!("a push of {} was answered with {} {}", pending.app, answer.status, answer.text()));
            }
            // Nobody there, or nobody who can take it now.
            _ => {
                self.ledger.entries().redelivered += 1;
                self.undelivered.push_back(pending);
            }
        }
    }

    /// Each that is left once more, in any order.
    async fn deliver_all(&mut self) {
        for _ in 0..self.undelivered.len() {
            let which = self.chance.below(self.undelivered.len());
            let Some(pending) = self.undelivered.remove(which) else { return };
            self.deliver(pending).await;
        }
    }

    /// After the end of the chaos: until all were taken.
    pub async fn deliver_rest(&mut self) -> bool {
        self.deliver_all().await;
        self.undelivered.is_empty()
    }

    async fn deliver_again(&mut self) {
        if let Some((delivery, _)) = self.last.clone() {
            self.ledger.entries().duplicates += 1;
            self.deliver(Undelivered { id: delivery.id.clone(), app: self.app.name, delivery }).await;
        }
    }

    async fn operate(&mut self, method: &str, what: &str, body: Value) {
        let path = format!("/api/v1/apps/{}/{what}", self.app.name);
        match self.door.api(method, &path, Some(body)).await {
            Ok(answer) if answer.status == 202 => {
                let id = answer.json()["id"].as_u64().expect("a deployment's number");
                self.ledger.entries().operations.push((self.app.name, id));
            }
            // Nothing to go back to, nothing live yet.
            Ok(answer) if matches!(answer.status.as_u16(), 404 | 409 | 410 | 503) => {}
            Ok(answer) => self.wrong(format!("{method} {path}: {} {}", answer.status, answer.text())),
            Err(_) => self.ledger.entries().unanswered += 1,
        }
    }

    async fn cancel(&mut self) {
        let Some((_, deployment)) = self.last else { return };
        // Whatever is answered: it may have been taken.
        self.ledger.entries().cancelled.insert(deployment);
        let path = format!("/api/v1/deployments/{deployment}/cancel");
        if self.door.api("POST", &path, Some(json!({}))).await.is_err() {
            self.ledger.entries().unanswered += 1;
        }
    }

    fn wrong(&self, what: String) {
        self.ledger.entries().wrong.push(what);
    }
}
