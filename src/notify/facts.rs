//! What the journal and the configuration know about a deployment at the moment it is told.

use crate::config::{Config, NoticeKind};
use crate::model::{ServiceName, Status};
use crate::store::{Deployment, Release, Served, Store, StoreError};

use super::message::{Facts, News, Serving};

/// Lines at the end of a failed deployment's log that go with the notice.
const LOG_TAIL: u32 = 15;

/// Reads what a message of `news` about `record` needs. `superseded_before` is how many like it were passed over.
pub(super) async fn gather(
    store: &Store,
    config: &Config,
    news: News,
    record: Deployment,
    superseded_before: u64,
) -> Result<Facts, StoreError> {
    let app = config.apps.get(&record.app);
    let live = store.live_release(&record.app).await?;
    let failed = matches!(news, News::Failed | News::RolledBack);
    Ok(Facts {
        repo: app.map(|app| app.repo.clone()),
        provider: app.and_then(|app| app.webhook.as_ref()).map(|webhook| webhook.provider),
        link: config.agent.public_url.clone(),
        instances: instances(store, config, news, &record, live.as_ref()).await?,
        serving: serving(&record, live.as_ref(), store.served(record.id).await?),
        superseding_commit: match record.superseded_by {
            Some(by) => store.deployment(by).await?.and_then(|by| by.commit),
            None => None,
        },
        superseded_before,
        held: failed && store.held_commit(&record.app).await?.map(|(commit, _)| commit) == record.commit,
        log: if failed { log_tail(store, &record).await? } else { Vec::new() },
        news,
        deployment: record,
    })
}

/// What serves the app, told of `record` and by what was so as it ended: a release that went live only after it says nothing about it.
fn serving(record: &Deployment, live: Option<&Release>, served: Option<Served>) -> Serving {
    match live {
        None => Serving::Nothing,
        Some(live) if live.deployment > record.id => Serving::Unknown,
        Some(live) if live.live_at > record.finished_at => Serving::Unknown,
        Some(live) => Serving::Release(live.number, served),
    }
}

/// How many instances run of each service: of the release that is live after the deployment, and while there is none,
/// of the configuration.
async fn instances(
    store: &Store,
    config: &Config,
    news: News,
    record: &Deployment,
    live: Option<&Release>,
) -> Result<Vec<(ServiceName, u32)>, StoreError> {
    let of_release = |release: &Release| {
        let services = &release.body.services;
        services.iter().map(|released| (released.service.name.clone(), released.service.instances)).collect()
    };
    let configured: Vec<(ServiceName, u32)> = match news {
        News::Started => config
            .apps
            .get(&record.app)
            .map(|app| app.services.values().map(|service| (service.name.clone(), service.instances)).collect())
            .unwrap_or_default(),
        News::Succeeded => match record.release {
            Some(number) => store.release(&record.app, number).await?.as_ref().map(of_release).unwrap_or_default(),
            None => Vec::new(),
        },
        _ => live.map(of_release).unwrap_or_default(),
    };
    let mut running = Vec::with_capacity(configured.len());
    for (service, count) in configured {
        // A person may have asked for another number than the configuration.
        let count = store.scale(&record.app, &service, count).await?;
        running.push((service, count));
    }
    Ok(running)
}

async fn log_tail(store: &Store, record: &Deployment) -> Result<Vec<String>, StoreError> {
    let last = store.last_log_seq(record.id).await?;
    let lines = store.log_lines(record.id, last.saturating_sub(LOG_TAIL.into()), LOG_TAIL).await?;
    Ok(lines.into_iter().map(|line| line.line).collect())
}

/// Whether a notice is overtaken: the deployment's end is already in the outbox, behind it, and will be told to a
/// receiver of `events`.
pub(super) fn is_overtaken(kind: NoticeKind, status: Status, events: &[NoticeKind]) -> bool {
    kind == NoticeKind::Started && end_of(status).is_some_and(|end| events.contains(&end))
}

/// Whether `record` never ran, and the one that took its place gave way itself: then the notice of that one, which
/// comes later, can speak for both.
pub(super) async fn is_link_of_a_chain(store: &Store, record: &Deployment) -> Result<bool, StoreError> {
    let (Status::Superseded, None, Some(by)) = (record.status, record.started_at, record.superseded_by) else {
        return Ok(false);
    };
    let by = store.deployment(by).await?;
    Ok(by.is_some_and(|by| by.status == Status::Superseded && by.started_at.is_none()))
}

/// The notice of a terminal state.
fn end_of(status: Status) -> Option<NoticeKind> {
    match status {
        Status::Succeeded => Some(NoticeKind::Succeeded),
        Status::Failed => Some(NoticeKind::Failed),
        Status::RolledBack => Some(NoticeKind::RolledBack),
        Status::Superseded => Some(NoticeKind::Superseded),
        Status::Cancelled => Some(NoticeKind::Cancelled),
        _ => None,
    }
}
