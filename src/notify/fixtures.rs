//! Deployments to tell about.

use jiff::Timestamp;

use super::message::{Facts, News, Serving};
use crate::config::{Provider, RepoUrl};
use crate::model::{CommitSha, DeploymentId, ReleaseNumber, Status, Trigger};
use crate::queue::Request;
use crate::store::{Deployment, PhaseSpan, Requests, Served, ServiceServed};

pub(super) fn commit(digit: char) -> CommitSha {
    digit.to_string().repeat(40).parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

/// A push by Ada that went live after three minutes.
pub(super) fn record() -> Deployment {
    let spans = [
        (Status::Queued, 0, 0),
        (Status::Preparing, 0, 2),
        (Status::Building, 2, 74),
        (Status::RollingOut, 74, 114),
        (Status::Watching, 114, 174),
    ];
    Deployment {
        id: DeploymentId(12),
        app: "shop".parse().unwrap(),
        trigger: Trigger::Push,
        request: Request::Deploy { commit: Some(commit('a')), before: None, forced: false },
        status: Status::Succeeded,
        commit: Some(commit('a')),
        git_ref: Some("refs/heads/main".parse().unwrap()),
        pusher: Some("ada".into()),
        author: Some("Ada".into()),
        subject: Some("Fix cart".into()),
        release: Some(ReleaseNumber(7)),
        reason: None,
        superseded_by: None,
        cancel_asked: false,
        queued_at: at(0),
        started_at: Some(at(0)),
        finished_at: Some(at(174)),
        requests: Requests { served: Some(1204), server_errors: Some(0), failed: Some(0), ..Requests::default() },
        phases: spans
            .map(|(status, from, to)| PhaseSpan { status, started_at: at(from), finished_at: Some(at(to)) })
            .into(),
    }
}

/// A release of which every instance serves.
fn serving(release: u32) -> Serving {
    let web = ServiceServed { service: "web".parse().unwrap(), wanted: 5, serving: 5 };
    Serving::Release(ReleaseNumber(release), Some(Served { services: vec![web], ..Served::default() }))
}

/// What is known of [`record`] when it ends as `news` says.
pub(super) fn facts(news: News) -> Facts {
    let mut facts = Facts {
        news,
        deployment: record(),
        repo: Some(RepoUrl::Ssh {
            user: "git".into(),
            host: "github.com".into(),
            port: 22,
            path: "example/shop.git".into(),
        }),
        provider: Some(Provider::GitHub),
        link: Some("https://deploy.example.com".into()),
        instances: vec![("web".parse().unwrap(), 5), ("worker".parse().unwrap(), 2)],
        serving: serving(6),
        superseding_commit: None,
        superseded_before: 0,
        held: false,
        log: Vec::new(),
    };
    let record = &mut facts.deployment;
    match news {
        News::Started => {
            record.finished_at = None;
            record.release = None;
            record.phases.truncate(2);
            record.phases[1].finished_at = None;
        }
        News::Succeeded => facts.serving = serving(7),
        News::Failed => {
            record.reason = Some("the image could not be built: step 4 of 9 exited with code 1".into());
            record.release = None;
            record.phases.truncate(3);
            record.requests.served = Some(0);
            facts.log = vec!["\u{1b}[31merror\u{1b}[0m: no `cart`\r".into(), "```".into(), String::new()];
            facts.held = true;
        }
        News::RolledBack => {
            record.reason = Some("web-2 exited with code 1 after 3 s\npanic: no such table\n\n  at main.rs:3".into());
            record.requests.failed = Some(3);
            facts.held = true;
        }
        News::Superseded => {
            record.superseded_by = Some(DeploymentId(13));
            record.reason = Some("replaced by #13".into());
            record.release = None;
            record.started_at = None;
            record.finished_at = Some(at(20));
            record.phases.truncate(1);
            record.phases[0].finished_at = Some(at(20));
            facts.superseding_commit = Some(commit('b'));
        }
        News::Cancelled => {
            record.reason = Some("cancelled by Grace while it waited".into());
            facts.serving = Serving::Release(ReleaseNumber(6), None);
            record.release = None;
            record.started_at = None;
            record.finished_at = Some(at(20));
            record.phases.truncate(1);
            record.phases[0].finished_at = Some(at(20));
        }
    }
    facts
}
