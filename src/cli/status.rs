//! `longshore status [APP]`

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep};

use super::client::{AskError, Client, Readiness};
use super::error::CliError;
use super::progress::{Progress, canary, headline, rest_of_reason, services, silent_proxy, title};
use super::sse::Event;
use super::term::{Look, Paint, Term};
use super::text::{ago, clean, span, table};
use super::watch::{PATIENCE, RETRY};
use super::{Json, static_files, text, traffic};
use crate::api::sse::SHUTDOWN;
use crate::api::views::{AppView, DeploymentView, InstanceView, ProxyView, SharesView, WaitsView};
use crate::model::{AppName, Duty, Health, ReleaseNumber, shorten};
use crate::rollout::permanent::Standing;

pub(super) const EXAMPLES: &str = "Examples:
  longshore status
  longshore status shop
  longshore status shop --watch

Of one app it tells its requests since the proxy began, those that are under way and those that wait for an instance with
room, and how long answers took to begin (half of them, 99 of 100).

--watch shows every change until Ctrl-C.";

/// How old drift may be to be shown.
const DRIFT_SHOWN: SignedDuration = SignedDuration::from_hours(1);
/// For the times that are shown ("3 min ago").
const TICK: Duration = Duration::from_secs(1);
/// For the requests, of which no event tells.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The app. Default: all of them.
    app: Option<AppName>,
    /// Go on showing what changes.
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    #[command(flatten)]
    json: Json,
}

/// What is shown.
enum Seen {
    All(Vec<AppView>),
    One { app: Box<AppView>, last: Option<Box<DeploymentView>> },
}

pub(super) async fn run(client: &Client, term: &mut Term, args: StatusArgs) -> Result<ExitCode, CliError> {
    if args.watch {
        return tokio::select! {
            ended = watch(client, term, args.app.as_ref()) => ended,
            pressed = tokio::signal::ctrl_c() => Ok(pressed.map(|()| ExitCode::SUCCESS)?),
        };
    }
    let seen = look(client, args.app.as_ref()).await?;
    let shown = match (&seen, args.json.json) {
        (Seen::All(apps), true) => text::json(apps),
        (Seen::One { app, .. }, true) => text::json(app),
        (seen, false) => {
            let mut lines = seen.lines(Timestamp::now(), term.paint());
            let said = |problem: &&String| seen.apps().iter().any(|app| tells(app, problem));
            let Readiness { problems, warnings } = client.readiness().await;
            let unsaid = problems.iter().filter(|problem| !said(problem));
            lines.extend(unsaid.map(|problem| format!("not ready: {}", clean(problem))));
            lines.extend(warnings.iter().map(|warning| format!("warning: {}", clean(warning))));
            lines.join("\n")
        }
    };
    term.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

async fn look(client: &Client, app: Option<&AppName>) -> Result<Seen, AskError> {
    let Some(app) = app else { return Ok(Seen::All(client.get("/api/v1/apps").await?)) };
    let view = client.get(&format!("/api/v1/apps/{app}")).await?;
    let newest: Vec<DeploymentView> = client.get(&format!("/api/v1/apps/{app}/deployments?limit=20")).await?;
    let last = newest.into_iter().find(|deployment| deployment.status.is_terminal());
    Ok(Seen::One { app: Box::new(view), last: last.map(Box::new) })
}

/// Shows what changes, also across a restart of the agent; ends with an error only.
async fn watch(client: &Client, term: &mut Term, app: Option<&AppName>) -> Result<ExitCode, CliError> {
    let mut printed = String::new();
    let mut lost_since: Option<Instant> = None;
    loop {
        let why = match connect(client, app).await {
            Ok((seen, events)) => {
                lost_since = None;
                show_changes(client, term, app, seen, events, &mut printed).await?
            }
            Err(err) => err.lost()?,
        };
        if lost_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
            return Err(CliError::Failed(why));
        }
        sleep(RETRY).await;
    }
}

type Events = BoxStream<'static, Result<Event, String>>;

/// Subscribes first and reads the state after it, so that nothing falls between the two.
async fn connect(client: &Client, app: Option<&AppName>) -> Result<(Seen, Events), AskError> {
    let path = app.map_or_else(|| "/api/v1/events".to_owned(), |app| format!("/api/v1/events?app={app}"));
    let events = client.events(&path, None).await?;
    Ok((look(client, app).await?, events))
}

/// Until the connection ends; says why it did.
async fn show_changes(
    client: &Client,
    term: &mut Term,
    app: Option<&AppName>,
    mut seen: Seen,
    mut events: Events,
    printed: &mut String,
) -> Result<String, CliError> {
    let (mut tick, mut again) = (interval(TICK), interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let lines = seen.lines(Timestamp::now(), term.paint());
        if term.is_live() {
            term.draw(&lines)?;
        } else {
            let now = lines.join("\n");
            if now != *printed {
                term.print(&now)?;
                *printed = now;
            }
        }
        let changed = loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) if event.name == "log" => {}
                    Some(Ok(event)) if event.name == SHUTDOWN => return Ok(event.data),
                    Some(Ok(_)) => break true,
                    Some(Err(why)) => return Ok(why),
                    None => return Ok("the agent closed the connection".into()),
                },
                // Times and requests alone are news only to those who look.
                _ = again.tick(), if term.is_live() => break true,
                _ = tick.tick(), if term.is_live() => break false,
            }
        };
        if changed {
            match look(client, app).await {
                Ok(now) => seen = now,
                Err(err) => return err.lost(),
            }
        }
    }
}

impl Seen {
    fn apps(&self) -> &[AppView] {
        match self {
            Self::All(apps) => apps,
            Self::One { app, .. } => std::slice::from_ref(app),
        }
    }

    fn lines(&self, now: Timestamp, paint: Paint) -> Vec<String> {
        match self {
            Self::All(apps) if apps.is_empty() => vec!["no apps are configured".into()],
            Self::All(apps) => {
                let mut lines: Vec<String> = overview(apps, now).lines().map(str::to_owned).collect();
                let closed = apps.iter().filter(|app| app.maintenance);
                lines.extend(closed.map(|app| format!("{} is {}", clean(&app.name), text::IN_MAINTENANCE)));
                lines.extend(all_that_wait(apps, now));
                let silent = apps.iter().find_map(silent_proxy);
                lines.extend(silent.map(|proxy| format!("the proxy {}", silence(proxy, now))));
                lines
            }
            Self::One { app, last } => detail(app, last.as_deref(), now, paint),
        }
    }
}

pub(super) fn overview(apps: &[AppView], now: Timestamp) -> String {
    let row = |app: &AppView| {
        let live = app.live.as_ref();
        let serving: usize = app.services.iter().map(|service| service.instances.serving).sum();
        let standing_in: usize = app.services.iter().map(|service| service.instances.standing_in).sum();
        let desired: u32 = app.services.iter().map(|service| service.instances.desired).sum();
        let going_on = match (&app.deployment, app.queued, &app.held) {
            (Some(running), _, _) if app.canary.is_some() => {
                let share = app.canary.as_ref().map_or(0, |canary| canary.share);
                format!("#{} canary {share} %", running.id)
            }
            (Some(running), _, _) => format!("#{} {}", running.id, running.status.as_str().replace('_', " ")),
            (None, 0, None) => "-".into(),
            (None, 0, Some(held)) => format!("{} is held", held.commit.short()),
            (None, queued, _) => format!("{queued} queued"),
        };
        vec![
            app.name.clone(),
            live.map_or("-".into(), |live| ReleaseNumber(live.release).to_string()),
            live.map_or("-".into(), |live| live.commit.short().to_owned()),
            live.and_then(|live| live.since).map_or("-".into(), |since| ago(since, now)),
            match (app.waits.is_some() && app.instances.is_empty()) || silent_proxy(app).is_some() {
                true => format!("?/{desired}"),
                false if standing_in > 0 => format!("{serving}/{desired}, {standing_in} stand in"),
                false => format!("{serving}/{desired}"),
            },
            going_on,
            app.domains.join(" "),
        ]
    };
    let rows: Vec<Vec<String>> = apps.iter().map(row).collect();
    table(&["APP", "LIVE", "COMMIT", "SINCE", "SERVING", "NOW", "DOMAINS"], &rows)
}

/// Each reason to wait once: an engine that is away keeps all apps waiting.
fn all_that_wait(apps: &[AppView], now: Timestamp) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for waits in apps.iter().filter_map(|app| app.waits.as_ref()) {
        let line = format!("deployments wait: {}", waiting(waits, now));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

fn waiting(waits: &WaitsView, now: Timestamp) -> String {
    let since = waits.since.map(|since| format!(" (since {})", ago(since, now))).unwrap_or_default();
    format!("{}{since}", clean(&waits.why))
}

/// `does not answer (since 12 s ago): …`
fn silence(proxy: &ProxyView, now: Timestamp) -> String {
    let since = proxy.since.map(|since| format!(" (since {})", ago(since, now))).unwrap_or_default();
    match proxy.pid {
        Some(pid) => format!(
            "does not answer{since}: whether anybody is served is not known; if its process is stopped: kill -CONT {pid}"
        ),
        None => format!("does not run{since}: nobody is served until the agent has started it"),
    }
}

/// Whether what an app waits for, or what is said of the proxy, says a problem already.
fn tells(app: &AppView, problem: &str) -> bool {
    if silent_proxy(app).is_some() && problem.starts_with("the proxy does not answer") {
        return true;
    }
    let what = |text: &str| text.split_once(": ").map_or(text, |(what, _)| what).to_owned();
    app.waits.as_ref().is_some_and(|waits| what(&waits.why) == what(problem))
}

pub(super) fn detail(app: &AppView, last: Option<&DeploymentView>, now: Timestamp, paint: Paint) -> Vec<String> {
    let mut lines = vec![format!(
        "{}  {} of {}",
        paint.paint(Look::Strong, &clean(&app.name)),
        clean(&app.branch),
        clean(&app.repo)
    )];
    let mut fact = |name: &str, text: String| lines.push(format!("  {name:<8} {text}"));
    match &app.live {
        Some(live) => {
            let since = live.since.map(|since| format!(", {}", ago(since, now))).unwrap_or_default();
            let (subject, author) = (shorten(&clean(&live.subject), 60), shorten(&clean(&live.author), 30));
            let release = ReleaseNumber(live.release);
            fact("live", format!("{release} {} {subject} ({author}){since}", live.commit.short()));
        }
        None => fact("live", format!("nothing yet; start with: longshore deploy {}", clean(&app.name))),
    }
    if let Some(tip) = &app.tip {
        fact("tip", clean(&format!("{} is not live: {}", tip.commit.short(), tip.why)));
    }
    match &app.tip_unknown {
        Some(unknown) if unknown.awaited => fact("tip", clean(&unknown.why)),
        Some(unknown) => {
            fact("tip", clean(&format!("not known, first missed {}: {}", ago(unknown.since, now), unknown.why)))
        }
        None => {}
    }
    if app.maintenance {
        fact("closed", text::IN_MAINTENANCE.to_owned());
    }
    if let Some(line) = stand_ins(app) {
        fact("serves", line);
    }
    if let Some(waits) = &app.waits {
        fact("waits", waiting(waits, now));
        if app.instances.is_empty() {
            fact("", "what runs is not known until then; it goes on being served".into());
        }
    }
    if let Some(proxy) = silent_proxy(app) {
        fact("proxy", silence(proxy, now));
    }
    if let Some(held) = &app.held {
        let mut reason = text::lines(&held.reason);
        let first = reason.remove(0);
        fact("held", format!("{} failed and is not tried again by itself: {first}", held.commit.short()));
        // The last deployment tells the rest, when it is the one that failed.
        if last.is_none_or(|last| last.reason.as_ref() != Some(&held.reason)) {
            reason.iter().for_each(|line| fact("", format!("  {line}")));
        }
    }
    if let Some(last) = last {
        let when = last.finished_at.map(|at| format!(", {}", ago(at, now))).unwrap_or_default();
        fact("last", format!("#{} {}{when}", last.id, headline(last, None, paint)));
        rest_of_reason(last).iter().for_each(|line| fact("", format!("  {line}")));
    }
    // What is older is history; the API has it.
    for (index, drift) in app.drift.iter().filter(|drift| now.duration_since(drift.at) < DRIFT_SHOWN).enumerate() {
        let about = drift.instance.as_deref().unwrap_or("the app");
        fact(if index == 0 { "drift" } else { "" }, clean(&format!("{}: {about} {}", ago(drift.at, now), drift.what)));
    }
    if app.queued > 0 {
        fact("queued", app.queued.to_string());
    }
    if let Some(of) = &app.canary_of {
        fact("shares", format!("{} of {}'s requests{}", of.share, clean(&of.app), stands(of, now)));
    }
    if let Some(canary) = &app.permanent_canary {
        let name = clean(&canary.app);
        fact("shared", format!("{} of the requests with {name}{}", canary.share, stands(canary, now)));
    }
    if !app.domains.is_empty() {
        fact("domains", clean(&app.domains.join(" ")));
    }
    if let Some(prefixes) = static_files::prefixes(app) {
        fact("static", prefixes);
    }
    if let Some(traffic) = traffic::traffic(app) {
        fact("traffic", traffic);
    }
    if let Some(running) = &app.deployment {
        let progress = Progress::new(running.clone());
        fact("now", title(running, paint));
        lines.extend(progress.block(now, paint).into_iter().skip(1));
    }
    lines.extend(canary(app, now));
    lines.extend(services(app, paint));
    let shown: Vec<&InstanceView> = app.instances.iter().filter(|instance| instance.duty != Duty::Retired).collect();
    if !shown.is_empty() {
        lines.push(String::new());
        lines.extend(instances(&shown, now).lines().map(str::to_owned));
        lines.extend(shown.iter().filter_map(|instance| last_end(instance, now)));
    }
    lines
}

/// `v4 stands in, left behind by a deployment, until v2 does: d1-web-1 could not be started: …`
fn stand_ins(app: &AppView) -> Option<String> {
    let serving = || app.instances.iter().filter(|instance| instance.duty == Duty::Serving);
    let mut releases: Vec<u32> = serving().filter(|i| i.stands_in).map(|i| i.release).collect();
    releases.sort_unstable();
    releases.dedup();
    let releases: Vec<String> = releases.into_iter().map(|release| ReleaseNumber(release).to_string()).collect();
    let live = ReleaseNumber(app.live.as_ref().filter(|_| !releases.is_empty())?.release);
    let failing = serving().find(|i| !i.stands_in && (!i.running || i.health != Health::Ready));
    let why = failing.map_or_else(String::new, |i| {
        let last = i.last_check.as_deref().unwrap_or("no check has answered");
        format!(": {} {}", clean(&i.id), shorten(&clean(last), 80))
    });
    Some(format!("{} stands in, left behind by a deployment, until {live} does{why}", releases.join(", ")))
}

/// `: none, down for 3 min; none of its instances is ready`
fn stands(canary: &SharesView, now: Timestamp) -> String {
    let why = canary.why.as_ref().map(|why| format!("; {}", clean(why))).unwrap_or_default();
    let lasting =
        canary.since.map(|since| format!(" for {}", span(now.as_second() - since.as_second()))).unwrap_or_default();
    match canary.standing {
        Standing::Serving => why,
        Standing::Down => format!(": none, down{lasting}{why}"),
        Standing::Suspended => format!(": none, suspended{lasting}{why}"),
    }
}

/// `d1-web-2: restarted 3 times; 2 min ago it ran out of its memory limit of 256 MiB after 40 s and was killed`
fn last_end(instance: &InstanceView, now: Timestamp) -> Option<String> {
    let end = instance.last_end.as_ref()?;
    let times = match instance.restarts {
        0 => String::new(),
        1 => "restarted once; ".to_owned(),
        times => format!("restarted {times} times; "),
    };
    let why = shorten(&clean(&end.why), 120);
    Some(format!("{}: {times}{} it {why}", clean(&instance.id), ago(end.at, now)))
}

fn instances(instances: &[&InstanceView], now: Timestamp) -> String {
    // Nothing is known of workers, and of nobody when the proxy does not answer.
    let counted = instances.iter().any(|instance| instance.traffic.in_flight.is_some());
    let row = |instance: &&InstanceView| {
        let in_flight = instance.traffic.in_flight.map_or("-".into(), text::thousands);
        let is_down = instance.duty == Duty::Serving && !instance.running;
        let up_since = instance.started_at.filter(|_| instance.running);
        let mut cells = vec![
            instance.id.clone(),
            ReleaseNumber(instance.release).to_string(),
            if is_down { "not running".to_owned() } else { instance.health.to_string() },
            match instance.duty {
                Duty::Serving if instance.stands_in => "stands in".to_owned(),
                duty => duty.to_string(),
            },
        ];
        cells.extend(counted.then_some(in_flight));
        cells.extend([
            up_since.map_or("-".into(), |at| span(now.as_second() - at.as_second())),
            instance.restarts.to_string(),
            instance.address.clone().unwrap_or_else(|| "-".into()),
            shorten(instance.last_check.as_deref().unwrap_or("-"), 60),
        ]);
        cells
    };
    let mut head = vec!["INSTANCE", "RELEASE", "HEALTH", "DUTY"];
    head.extend(counted.then_some("IN FLIGHT"));
    head.extend(["UP", "RESTARTS", "ADDRESS", "LAST CHECK"]);
    let rows: Vec<Vec<String>> = instances.iter().map(row).collect();
    table(&head, &rows)
}
