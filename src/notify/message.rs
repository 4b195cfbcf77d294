//! What to say about a deployment, independent of where it is said. Pure.
//!
//! A [`Message`] holds plain text, some of it written by strangers (commit subjects, author and branch names, output
//! of programs): the channel escapes all of it.

use std::time::Duration;

use jiff::Timestamp;

use super::text::{duration, log_line};
use crate::config::{NoticeKind, Provider, RepoUrl};
use crate::model::{CommitSha, GitRef, ReleaseNumber, ServiceName, Status, Trigger, shorten};
use crate::queue::Request;
use crate::store::{Deployment, Drains, Latency, Requests, Served};
use crate::text::{briefly, one_line, shortfall, thousands};

/// Characters of a commit's subject shown in the headline.
const SUBJECT_IN_HEADLINE: usize = 100;
/// Characters of a reason shown in the headline.
const REASON_IN_HEADLINE: usize = 300;
/// Characters of a person's name shown anywhere.
const NAME: usize = 60;

/// What there is to tell of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It began.
    Started,
    /// It is live.
    Succeeded,
    /// It ended before anything was switched.
    Failed,
    /// It was undone.
    RolledBack,
    /// A newer one took its place.
    Superseded,
    /// A person ended it.
    Cancelled,
}

impl News {
    /// All there is.
    #[cfg(test)]
    pub const ALL: [Self; 6] =
        [Self::Started, Self::Succeeded, Self::Failed, Self::RolledBack, Self::Superseded, Self::Cancelled];

    /// What a notice about a deployment tells; `None` for kinds that are about something else.
    pub fn of(kind: NoticeKind) -> Option<Self> {
        Some(match kind {
            NoticeKind::Started => Self::Started,
            NoticeKind::Succeeded => Self::Succeeded,
            NoticeKind::Failed => Self::Failed,
            NoticeKind::RolledBack => Self::RolledBack,
            NoticeKind::Superseded => Self::Superseded,
            NoticeKind::Cancelled => Self::Cancelled,
            NoticeKind::EngineDown
            | NoticeKind::EngineUp
            | NoticeKind::CanaryDown
            | NoticeKind::CanaryUp
            | NoticeKind::CertificateFailed
            | NoticeKind::CertificateIssued => return None,
        })
    }
}

/// What is known about a deployment when it is told.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What the notice tells.
    pub news: News,
    /// Its record.
    pub deployment: Deployment,
    /// Where its source comes from; `None` when the app is no longer configured.
    pub repo: Option<RepoUrl>,
    /// Whose webhooks the app takes: tells how the repository's web pages are addressed.
    pub provider: Option<Provider>,
    /// A page about the deployment.
    pub link: Option<String>,
    /// How many instances of each service run when all is well.
    pub instances: Vec<(ServiceName, u32)>,
    /// What serves the app after a deployment that did not succeed.
    pub serving: Serving,
    /// The commit of the deployment that took this one's place, where known.
    pub superseding_commit: Option<CommitSha>,
    /// How many deployments before this one were superseded too and have not been told.
    pub superseded_before: u64,
    /// The commit is held: not deployed again by itself.
    pub held: bool,
    /// The last lines of the deployment's log, oldest first.
    pub log: Vec<String>,
}

/// What serves an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// This release is live, and so much of it served when the deployment ended, where that was looked at.
    Release(ReleaseNumber, Option<Served>),
    /// Nothing has gone live yet.
    Nothing,
    /// A later deployment has changed it since.
    Unknown,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// One line that says everything that matters by itself.
    pub headline: String,
    /// A few words above the details.
    pub title: String,
    /// A page with more; http or https.
    pub link: Option<String>,
    /// Why it ended as it did, in full; one line.
    pub reason: Option<String>,
    /// The last lines of output before it failed, oldest first.
    pub log: Vec<String>,
    /// The details.
    pub fields: Vec<Field>,
    /// Below the details.
    pub footer: String,
    /// The colour of the news.
    pub tone: Tone,
    /// When it happened.
    pub at: Timestamp,
}

/// A detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What it is.
    pub name: &'static str,
    /// Never empty; one line.
    pub text: String,
    /// Where the text leads; http or https.
    pub link: Option<String>,
    /// Short enough to stand beside others.
    pub short: bool,
}

/// How the news is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Under way.
    Busy,
    /// Good.
    Good,
    /// Bad: somebody should look.
    Bad,
    /// Undone: what ran before still runs.
    Undone,
    /// Neither.
    Neutral,
}

/// Puts the facts into words.
pub fn compose(facts: &Facts) -> Message {
    let record = &facts.deployment;
    let reason = reason_lines(record);
    let failed = matches!(facts.news, News::Failed | News::RolledBack);
    Message {
        headline: headline(facts, reason.first().map(String::as_str)),
        title: format!("{}: {}", record.app, outcome(facts)),
        link: facts.link.clone(),
        log: match (failed, reason.len()) {
            (false, _) => Vec::new(),
            (true, 0 | 1) => facts.log.iter().map(|line| log_line(line)).filter(|line| !line.is_empty()).collect(),
            // The reason brings the lines that explain it.
            (true, _) => reason[1..].iter().map(|line| log_line(line)).collect(),
        },
        reason: reason.first().map(|line| one_line(line)).filter(|_| failed),
        fields: fields(facts),
        footer: format!("deployment {}", record.id.0),
        tone: match facts.news {
            News::Started => Tone::Busy,
            News::Succeeded => Tone::Good,
            News::Failed => Tone::Bad,
            News::RolledBack => Tone::Undone,
            News::Superseded | News::Cancelled => Tone::Neutral,
        },
        at: match facts.news {
            News::Started => record.started_at.unwrap_or(record.queued_at),
            _ => record.finished_at.unwrap_or(record.queued_at),
        },
    }
}

/// The reason's lines that say something: the first is the cause, what follows is the output that goes with it.
fn reason_lines(record: &Deployment) -> Vec<String> {
    let reason = record.reason.as_deref().unwrap_or_default();
    reason.lines().filter(|line| !one_line(line).is_empty()).map(str::to_owned).collect()
}

/// `shop: abc1234 by Ada was rolled back: web-2 exited with code 1; v6 keeps serving`
fn headline(facts: &Facts, reason: Option<&str>) -> String {
    let record = &facts.deployment;
    let app = &record.app;
    let what = subject_of_sentence(record);
    let because = reason
        .map(|line| shorten(&one_line(line), REASON_IN_HEADLINE))
        .map(|line| format!(": {line}"))
        .unwrap_or_default();
    let serving = match &facts.serving {
        Serving::Release(number, served) => format!("; {}", standing(*number, served.as_ref())),
        Serving::Nothing => "; nothing is live yet".to_owned(),
        Serving::Unknown => String::new(),
    };
    match facts.news {
        News::Started => format!("{app}: {}", begun(record)),
        News::Succeeded => format!("{app}: {}", done(record)),
        News::Failed => format!("{app}: {what} failed{because}{serving}"),
        News::RolledBack => format!("{app}: {what} was rolled back{because}{serving}"),
        News::Superseded => {
            let by = superseded_by(facts).map(|by| format!(" by {by}")).unwrap_or(because);
            let before = match facts.superseded_before {
                0 => String::new(),
                n => format!(", and {} before it", thousands(n)),
            };
            format!("{app}: {what} was superseded{by}{before}")
        }
        News::Cancelled => match reason.map(one_line).as_deref().and_then(|line| line.strip_prefix("cancelled ")) {
            Some(how) => format!("{app}: {what} was cancelled {}{serving}", shorten(how, REASON_IN_HEADLINE)),
            None => format!("{app}: {what} was cancelled{because}{serving}"),
        },
    }
}

/// `v6 keeps serving`, `v6 is live, but no instance of web serves, and d7-web-1 stands in: …`
fn standing(live: ReleaseNumber, served: Option<&Served>) -> String {
    // One that was cancelled while it waited has ended without a look at what serves.
    let Some(served) = served else { return format!("{live} is live") };
    let missing = served.services.iter().filter_map(|s| shortfall(s.service.as_str(), s.serving, s.wanted));
    let missing = missing.collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        return format!("{live} keeps serving");
    }
    let stand_ins = served.stand_ins.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ");
    let stand_ins = match served.stand_ins.len() {
        0 => String::new(),
        1 => format!(", and {stand_ins} stands in"),
        _ => format!(", and {stand_ins} stand in"),
    };
    let why = served.why.as_deref().map(|why| format!(": {}", shorten(&one_line(why), REASON_IN_HEADLINE)));
    format!("{live} is live, but {missing}{stand_ins}{}", why.unwrap_or_default())
}

/// What was deployed, as a sentence begins with it.
fn subject_of_sentence(record: &Deployment) -> String {
    match &record.request {
        Request::Deploy { .. } => commit_by_author(record),
        Request::Rollback { .. } => format!("the rollback to {}", rollback_goal(record)),
        Request::Scale { service, instances } => format!("scaling {service} to {instances}"),
        Request::Restart => "the restart".to_owned(),
    }
}

fn begun(record: &Deployment) -> String {
    match &record.request {
        Request::Deploy { .. } => format!("deploying {}{}", commit_by_author(record), subject_suffix(record)),
        Request::Rollback { .. } => format!("rolling back to {}{}", rollback_goal(record), who_suffix(record)),
        Request::Scale { service, instances } => format!("scaling {service} to {instances}{}", who_suffix(record)),
        Request::Restart => format!("restarting every instance{}", who_suffix(record)),
    }
}

fn done(record: &Deployment) -> String {
    let release = record.release.map(|number| number.to_string()).unwrap_or_else(|| "the new release".to_owned());
    match &record.request {
        Request::Deploy { .. } => format!("{release} is live, {}{}", commit_by_author(record), subject_suffix(record)),
        Request::Rollback { .. } => format!("rolled back, {release} is live again{}", who_suffix(record)),
        Request::Scale { service, instances } => format!("{service} runs {instances} times now{}", who_suffix(record)),
        Request::Restart => format!("every instance was restarted{}", who_suffix(record)),
    }
}

/// `abc1234 by Ada`, or the branch while the commit is not known yet.
fn commit_by_author(record: &Deployment) -> String {
    let commit = match (&record.commit, &record.git_ref) {
        (Some(commit), _) => commit.short().to_owned(),
        (None, Some(git_ref)) => branch_name(git_ref),
        (None, None) => "the branch's tip".to_owned(),
    };
    match author(record) {
        Some(author) => format!("{commit} by {author}"),
        None => commit,
    }
}

fn subject_suffix(record: &Deployment) -> String {
    subject(record).map(|subject| format!(": {}", shorten(&subject, SUBJECT_IN_HEADLINE))).unwrap_or_default()
}

fn who_suffix(record: &Deployment) -> String {
    pusher(record).map(|who| format!(", by {who}")).unwrap_or_default()
}

fn rollback_goal(record: &Deployment) -> String {
    let asked = match &record.request {
        Request::Rollback { to } => *to,
        _ => None,
    };
    asked.or(record.release).map(|number| number.to_string()).unwrap_or_else(|| "the last good release".to_owned())
}

fn branch_name(git_ref: &GitRef) -> String {
    shorten(&one_line(git_ref.branch().unwrap_or(git_ref.as_str())), NAME)
}

fn author(record: &Deployment) -> Option<String> {
    shown(&record.author).map(|name| shorten(&name, NAME))
}

fn pusher(record: &Deployment) -> Option<String> {
    shown(&record.pusher).map(|name| shorten(&name, NAME))
}

fn subject(record: &Deployment) -> Option<String> {
    shown(&record.subject)
}

/// What can be seen of a text, if anything.
fn shown(text: &Option<String>) -> Option<String> {
    text.as_deref().map(one_line).filter(|text| !text.is_empty())
}

/// `#13, def5678`
fn superseded_by(facts: &Facts) -> Option<String> {
    let by = facts.deployment.superseded_by?;
    Some(match &facts.superseding_commit {
        Some(commit) => format!("{by}, {}", commit.short()),
        None => by.to_string(),
    })
}

/// The result in two or three words.
fn outcome(facts: &Facts) -> String {
    let word = match facts.news {
        News::Started => "deployment started",
        News::Succeeded => {
            return facts.deployment.release.map_or_else(|| "live".to_owned(), |number| format!("{number} is live"));
        }
        News::Failed => "failed",
        News::RolledBack => "rolled back",
        News::Superseded => "superseded",
        News::Cancelled => "cancelled",
    };
    word.to_owned()
}

fn fields(facts: &Facts) -> Vec<Field> {
    let record = &facts.deployment;
    let mut fields = Vec::new();
    let mut add = |name, text: Option<String>, link: Option<String>, short| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            fields.push(Field { name, text, link, short });
        }
    };
    let commit = record.commit.as_ref();
    add(
        "Commit",
        commit.map(|commit| commit.short().to_owned()),
        commit.and_then(|commit| commit_url(facts.repo.as_ref()?, facts.provider, commit)),
        true,
    );
    add("Author", author(record), None, true);
    add("Branch", record.git_ref.as_ref().map(branch_name), None, true);
    add("Subject", subject(record), None, false);
    add("Release", release(facts), None, true);
    add("Trigger", Some(trigger(record)), None, true);
    add("Superseded by", superseded_by(facts).filter(|_| facts.news == News::Superseded), None, true);
    if facts.news != News::Superseded {
        add("Instances", instances(&facts.instances), None, true);
    }
    if facts.news != News::Started {
        add("Requests during the rollout", requests(record), None, true);
        add("Took", phases(record), None, false);
    }
    add("Held", held(facts), None, false);
    fields
}

fn release(facts: &Facts) -> Option<String> {
    let made = facts.deployment.release;
    match facts.news {
        News::Started | News::Succeeded => return made.map(|number| number.to_string()),
        // What serves is about to be replaced by the other one.
        News::Superseded => return None,
        News::Failed | News::RolledBack | News::Cancelled => {}
    }
    let is_live = |number: &ReleaseNumber| matches!(&facts.serving, Serving::Release(live, _) if live == number);
    let made = made.filter(|number| !is_live(number)).map(|number| format!("{number} is not live"));
    match &facts.serving {
        Serving::Release(live, served) => {
            let made = made.map(|made| format!("{made}, ")).unwrap_or_default();
            Some(format!("{made}{}", standing(*live, served.as_ref())))
        }
        Serving::Nothing | Serving::Unknown => made,
    }
}

/// `push by ada`
fn trigger(record: &Deployment) -> String {
    let how = match record.trigger {
        Trigger::Push | Trigger::PostReceive => "push",
        Trigger::Api => "API",
        Trigger::Cli => "command line",
        Trigger::Rollback => "rollback",
        Trigger::Reconcile => "reconcile",
    };
    match pusher(record) {
        Some(who) => format!("{how} by {who}"),
        None => how.to_owned(),
    }
}

fn instances(counts: &[(ServiceName, u32)]) -> Option<String> {
    let each: Vec<String> = counts.iter().map(|(service, count)| format!("{service} {count}")).collect();
    Some(each.join(" · "))
}

/// Only of a deployment that came to its rollout, and has ended.
fn requests(record: &Deployment) -> Option<String> {
    let rolled_out = record.phases.iter().any(|span| span.status == Status::RollingOut);
    if !rolled_out || record.finished_at.is_none() {
        return None;
    }
    let Requests { served, server_errors, failed, retried, latency_before, latency_during, drains } = record.requests;
    let (Some(served), Some(failed)) = (served, failed) else { return Some("not known".to_owned()) };
    let some = |count: Option<u64>, what: &str| {
        count.filter(|&count| count > 0).map(|count| format!(", {} {what}", thousands(count))).unwrap_or_default()
    };
    let cut = |which: fn(&Drains) -> Option<u64>| drains.as_ref().and_then(which);
    let mut said = format!(
        "{} served{}{}, {} failed{}{}",
        thousands(served),
        some(server_errors, "of them 5xx of the app's own"),
        some(retried, "tried a second time"),
        thousands(failed),
        some(cut(|drains| drains.cut_requests), "cut"),
        some(cut(|drains| drains.cut_streams), "streams cut"),
    );
    let told = |latency: Latency| format!("{} / {}", briefly(latency.p50()), briefly(latency.p99()));
    if let (Some(before), Some(during)) = (latency_before, latency_during) {
        said += &format!("; median / 99 %: {}, before {}", told(during), told(before));
    }
    Some(said)
}

/// `build 1 m 12 s · rollout 40 s · watch 1 m 0 s · total 3 m 1 s`
fn phases(record: &Deployment) -> Option<String> {
    let between = |from: Timestamp, to: Timestamp| Duration::try_from(to.duration_since(from)).unwrap_or_default();
    let mut each: Vec<String> = record
        .phases
        .iter()
        .filter_map(|span| {
            let length = between(span.started_at, span.finished_at?);
            let name = match span.status {
                // A queue that was empty is not worth a word.
                Status::Queued if length < Duration::from_secs(1) => return None,
                Status::Queued => "queue",
                Status::Preparing => "source",
                Status::Building => "build",
                Status::Releasing => "release command",
                Status::RollingOut => "rollout",
                Status::Watching => "watch",
                _ => return None,
            };
            Some(format!("{name} {}", duration(length)))
        })
        .collect();
    let finished = record.finished_at?;
    each.push(format!("total {}", duration(between(record.queued_at, finished))));
    Some(each.join(" · "))
}

fn held(facts: &Facts) -> Option<String> {
    let commit = facts.deployment.commit.as_ref().filter(|_| facts.held)?;
    Some(format!("{} is not deployed again by itself: push a newer commit, or deploy it explicitly", commit.short()))
}

/// The page of a commit, where the host is known to have one: GitHub, or a server that sends GitHub's webhooks.
fn commit_url(repo: &RepoUrl, provider: Option<Provider>, commit: &CommitSha) -> Option<String> {
    let (scheme, host, path) = match repo {
        RepoUrl::Http { url, .. } => {
            let (scheme, rest) = url.split_once("://")?;
            let (host, path) = rest.split_once('/')?;
            (scheme, host, path)
        }
        // GitHub's ssh over the https port.
        RepoUrl::Ssh { host, path, .. } if host == "ssh.github.com" => ("https", "github.com", path.as_str()),
        RepoUrl::Ssh { host, .. } if host.contains(':') => return None,
        RepoUrl::Ssh { host, path, .. } => ("https", host.as_str(), path.as_str()),
        RepoUrl::Local(_) => return None,
    };
    let has_commit_pages = host.eq_ignore_ascii_case("github.com") || provider == Some(Provider::GitHub);
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]".contains(&b));
    let owner_and_name = path.split('/').count() == 2 && path.split('/').all(|part| !part.is_empty() && plain(part));
    let web = matches!(scheme, "https" | "http") && !host.is_empty() && plain(host);
    (has_commit_pages && owner_and_name && web).then(|| format!("{scheme}://{host}/{path}/commit/{commit}"))
}

#[cfg(test)]
mod tests;
