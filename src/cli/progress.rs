//! What a deployment looks like while it runs and when it has ended. Pure: facts and the time in, lines out.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::term::{Look, Paint};
use super::text::{clean, count, lines, took};
use crate::api::views::{AppView, DeploymentView, InstanceView, ProxyView, seconds_between};
use crate::model::{Duty, Health, ReleaseNumber, Status, shorten};
use crate::text::shortfall;

/// The newest log lines stay in view.
const LINES: usize = 5;

/// What is known of a deployment that is being watched.
#[derive(Debug)]
pub(super) struct Progress {
    pub deployment: DeploymentView,
    pub app: Option<AppView>,
    lines: VecDeque<String>,
}

impl Progress {
    pub fn new(deployment: DeploymentView) -> Self {
        Self { deployment, app: None, lines: VecDeque::new() }
    }

    /// A line of its log.
    pub fn line(&mut self, line: &str) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(shorten(&clean(line), 400));
    }

    /// The block that is drawn while it runs.
    pub fn block(&self, now: Timestamp, paint: Paint) -> Vec<String> {
        let mut lines = vec![title(&self.deployment, paint), phases(&self.deployment, now, paint)];
        if let Some(app) = &self.app {
            lines.extend(canary(app, now));
            lines.extend(services(app, paint));
        }
        lines.extend(self.lines.iter().map(|line| paint.paint(Look::Faint, &format!("  | {line}"))));
        lines
    }
}

/// `shop #12  deploy 1a2b3c4 Fix the cart (Ada)`
pub(super) fn title(deployment: &DeploymentView, paint: Paint) -> String {
    let id = format!("{} #{}", clean(&deployment.app), deployment.id);
    let mut rest = clean(&deployment.kind);
    if let Some(commit) = &deployment.commit {
        rest.push_str(&format!(" {}", commit.short()));
    }
    if let Some(subject) = &deployment.subject {
        rest.push_str(&format!(" {}", shorten(&clean(subject), 60)));
    }
    if let Some(author) = deployment.author.as_ref().or(deployment.pusher.as_ref()) {
        rest.push_str(&format!(" ({})", shorten(&clean(author), 30)));
    }
    format!("{}  {rest}", paint.paint(Look::Strong, &id))
}

fn phases(deployment: &DeploymentView, now: Timestamp, paint: Paint) -> String {
    let mut line = String::from(" ");
    for phase in &deployment.phases {
        let seconds = seconds_between(phase.started_at, phase.finished_at.unwrap_or(now));
        let text = format!("{} {}", words(phase.name), took(seconds));
        let (mark, look) = match phase.finished_at {
            Some(_) => ("✓", Look::Good),
            None => ("▸", Look::Busy),
        };
        line.push_str(&format!(" {} {text} ", paint.paint(look, mark)));
    }
    line.trim_end().to_owned()
}

/// `  canary  step 1 of 3: 10 % of the requests to v8 for 42 s, next step in 18 s`, and how it compares.
pub(super) fn canary(app: &AppView, now: Timestamp) -> Vec<String> {
    let Some(canary) = &app.canary else { return Vec::new() };
    let seconds = |from: Timestamp, to: Timestamp| took(seconds_between(from, to));
    let next = match (canary.next_at, canary.paused) {
        (_, true) => format!(", paused; go on with: longshore canary {} resume", clean(&app.name)),
        (Some(at), false) => format!(", next step in {}", seconds(now, at)),
        (None, false) => String::new(),
    };
    let share = match canary.share {
        0 => "no requests to the new instances yet".to_owned(),
        share => {
            let release = ReleaseNumber(canary.release);
            format!("{share} % of the requests to {release} for {}", seconds(canary.since, now))
        }
    };
    let mut lines = vec![format!("  canary  step {} of {}: {share}{next}", canary.step, canary.steps)];
    lines.extend(canary.comparison.iter().map(|words| format!("          {}", clean(words))));
    lines
}

fn words(status: Status) -> String {
    status.as_str().replace('_', " ")
}

/// The proxy, when it does not answer and the app gets its requests through it: then nobody knows what is served.
pub(super) fn silent_proxy(app: &AppView) -> Option<&ProxyView> {
    let is_served = app.services.iter().any(|service| service.port.is_some());
    app.proxy.as_ref().filter(|proxy| is_served && !proxy.answers)
}

/// One line per service: each instance as a box with its release, then those that are not simply serving in words.
pub(super) fn services(app: &AppView, paint: Paint) -> Vec<String> {
    let width = app.services.iter().map(|service| service.name.chars().count()).max().unwrap_or(0);
    let is_known = silent_proxy(app).is_none();
    let line = |name: &str, desired: u32, is_served: bool| {
        let mut own: Vec<&InstanceView> = app
            .instances
            .iter()
            .filter(|instance| instance.service == name && instance.duty != Duty::Retired)
            .collect();
        own.sort_by_key(|instance| (instance.slot, instance.release));
        let boxes: Vec<String> = own.iter().map(|instance| instance_box(instance, paint)).collect();
        let serving = serving(app, name);
        let serving = if is_known || !is_served { serving.to_string() } else { "?".to_owned() };
        let name = clean(name);
        format!("  {name:<width$}  {serving}/{desired}  {}", boxes.join(" ")).trim_end().to_owned()
    };
    let lines = app.services.iter();
    lines.map(|service| line(&service.name, service.instances.desired, service.port.is_some())).collect()
}

/// In how many places of a service an instance of what is live serves.
fn serving(app: &AppView, service: &str) -> usize {
    let of_service = app.instances.iter().filter(|instance| instance.service == service);
    of_service.filter(|instance| instance.serves() && !instance.stands_in).count()
}

/// `v4 is live`, and what of it does not serve.
fn standing(release: u32, app: &AppView) -> String {
    let live = ReleaseNumber(release);
    let missing = app.services.iter().filter_map(|service| {
        let serving = u32::try_from(serving(app, &service.name)).unwrap_or(u32::MAX);
        shortfall(&clean(&service.name), serving, service.instances.desired)
    });
    match missing.collect::<Vec<_>>().join(", ") {
        missing if missing.is_empty() => format!("{live} is live"),
        missing => format!("{live} is live, but {missing}"),
    }
}

fn instance_box(instance: &InstanceView, paint: Paint) -> String {
    let release = ReleaseNumber(instance.release);
    let (mark, look, word) = match (instance.duty, instance.health) {
        (Duty::Serving, _) if !instance.running => ("✗", Look::Bad, " not running"),
        (Duty::Serving, Health::Ready) if instance.stands_in => ("■", Look::Busy, " stands in"),
        (Duty::Serving, Health::Ready) => ("■", Look::Good, ""),
        (Duty::Serving, Health::Starting) => ("■", Look::Busy, " unproven"),
        (Duty::Serving, Health::Unready) => ("■", Look::Bad, " unready"),
        (Duty::Draining, _) => ("◇", Look::Faint, " draining"),
        (_, Health::Unready) => ("✗", Look::Bad, " unready"),
        (_, Health::Starting) => ("□", Look::Busy, " starting"),
        (_, Health::Ready) => ("▣", Look::Busy, " ready"),
    };
    format!("{}{release}{word}", paint.paint(look, mark))
}

/// `succeeded v7 in 12.3 s (5 instances, 1,234 requests, 0 failed)`, or why it did not: a reason of several lines
/// (what an instance said last) goes on below.
pub(super) fn summary(deployment: &DeploymentView, app: Option<&AppView>, paint: Paint) -> String {
    let mut lines = vec![headline(deployment, app, paint)];
    lines.extend(rest_of_reason(deployment).iter().map(|line| format!("    {line}")));
    lines.join("\n")
}

/// What of the reason stands below the headline.
pub(super) fn rest_of_reason(deployment: &DeploymentView) -> Vec<String> {
    match (deployment.status, &deployment.reason) {
        (Status::Failed | Status::RolledBack | Status::Cancelled, Some(reason)) => lines(reason).split_off(1),
        _ => Vec::new(),
    }
}

/// How it ended, in one line.
pub(super) fn headline(deployment: &DeploymentView, app: Option<&AppView>, paint: Paint) -> String {
    let seconds = deployment
        .finished_at
        .map(|finished| seconds_between(deployment.started_at.unwrap_or(deployment.queued_at), finished));
    let time = seconds.map(|seconds| format!(" in {}", took(seconds))).unwrap_or_default();
    let status = words(deployment.status);
    let reason = || lines(deployment.reason.as_deref().unwrap_or("no reason was recorded")).swap_remove(0);
    match deployment.status {
        Status::Succeeded => {
            let release = deployment.release.map(|number| format!(" {}", ReleaseNumber(number))).unwrap_or_default();
            let instances = app.map(|app| {
                let live = app.instances.iter().filter(|instance| instance.duty != Duty::Retired).count();
                format!("{}, ", count(live as u64, "instance"))
            });
            let requests = &deployment.requests;
            let requests = match (requests.served, requests.failed) {
                (Some(served), Some(failed)) => {
                    let some = |count: Option<u64>, what| {
                        let told = |count| format!(", {} {what}", super::text::thousands(count));
                        count.filter(|&count| count > 0).map(told).unwrap_or_default()
                    };
                    let errors = some(requests.server_errors, "answered with 5xx");
                    let cut = some(requests.cut_requests, "cut");
                    let streams = requests.cut_streams.filter(|&streams| streams > 0);
                    let streams =
                        streams.map(|streams| format!(", {} cut", count(streams, "stream"))).unwrap_or_default();
                    let all = count(served + failed, "request");
                    format!("{all}{errors}, {} failed{cut}{streams}", super::text::thousands(failed))
                }
                _ => "requests not counted".to_owned(),
            };
            format!("{}{release}{time} ({}{requests})", paint.paint(Look::Good, &status), instances.unwrap_or_default(),)
        }
        Status::Superseded => match deployment.superseded_by {
            Some(by) => format!("superseded by #{by}"),
            None => format!("superseded: {}", reason()),
        },
        Status::Failed | Status::RolledBack | Status::Cancelled => {
            let kept = app.and_then(|app| Some(format!("; {}", standing(app.live.as_ref()?.release, app))));
            let kept = kept.unwrap_or_default();
            format!("{}{time}: {}{kept}", paint.paint(Look::Bad, &status), reason())
        }
        _ => status,
    }
}
