//! Following a deployment to its end. It belongs to the agent: whoever watches may leave, and the agent may be
//! replaced meanwhile.

use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use super::client::{AskError, Client};
use super::error::CliError;
use super::progress::{Progress, summary, title};
use super::sse::Event;
use super::term::Term;
use super::text::{clean, json};
use crate::api::sse::SHUTDOWN;
use crate::api::views::{AppView, DeploymentView};
use crate::model::Status;

/// How long a lost agent is waited for: a restart or an upgrade.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// How often the block is drawn: its clock and the newest log lines.
const TICK: Duration = Duration::from_millis(200);
/// By convention 128 + SIGINT.
pub(super) const INTERRUPTED: u8 = 130;

/// What is shown while a deployment runs and at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Progress and a summary.
    Progress,
    /// The same where somebody looks at it; elsewhere only how it began and how it ended.
    Ends,
    /// Only the final record.
    Json,
}

/// Follows `deployment` until it ends, Ctrl-C, or the agent is lost for good. The exit code says how it ended.
pub(super) async fn follow(
    client: &Client,
    term: &mut Term,
    deployment: DeploymentView,
    show: Show,
) -> Result<ExitCode, CliError> {
    let Some((ended, app)) = follow_to_end(client, term, deployment, show, ("", "goes on")).await? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let told = match show {
        Show::Json => json(&ended),
        Show::Progress | Show::Ends => summary(&ended, app.as_ref(), term.paint()),
    };
    term.print(&told)?;
    Ok(match ended.status {
        Status::Succeeded => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The same with first words (none in JSON) and without the last ones; its record when it has ended, and its app. `None`
/// after Ctrl-C, when it was said that the deployment `goes_on`.
pub(super) async fn follow_to_end(
    client: &Client,
    term: &mut Term,
    deployment: DeploymentView,
    show: Show,
    (first, goes_on): (&str, &str),
) -> Result<Option<(DeploymentView, Option<AppView>)>, CliError> {
    let (id, app) = (deployment.id, deployment.app.clone());
    let mut watcher = Watcher { client, term, show, last_line: 0, shown: None, progress: Progress::new(deployment) };
    let ended = tokio::select! {
        // Before the first word is said, so that whoever reads it may press it.
        biased;
        pressed = tokio::signal::ctrl_c() => {
            // The deployment is not touched. From here on there is nothing left that a second Ctrl-C could break.
            pressed?;
            watcher.leave(&format!("deployment #{id} {goes_on}; watch it with: longshore status {app} --watch"))?;
            return Ok(None);
        }
        ended = watcher.run(first) => ended?,
    };
    watcher.conclude(&ended).await?;
    Ok(Some((ended, watcher.progress.app)))
}

struct Watcher<'a> {
    client: &'a Client,
    term: &'a mut Term,
    show: Show,
    /// Of the log; reading goes on after it.
    last_line: u64,
    /// The state that was printed last, where nothing is drawn.
    shown: Option<Status>,
    progress: Progress,
}

/// Why a connection's streams are no longer read.
enum Left {
    Ended(Box<DeploymentView>),
    Lost(String),
}

struct Streams {
    log: BoxStream<'static, Result<Event, String>>,
    events: BoxStream<'static, Result<Event, String>>,
}

impl Watcher<'_> {
    async fn run(&mut self, first: &str) -> Result<DeploymentView, CliError> {
        if self.show != Show::Json && !first.is_empty() {
            self.term.print(first)?;
        }
        if self.show == Show::Progress && !self.term.is_live() {
            self.term.print(&title(&self.progress.deployment, self.term.paint()))?;
        }
        let mut lost_since: Option<Instant> = None;
        loop {
            let why = match self.connect().await {
                Ok(streams) => {
                    lost_since = None;
                    match self.read(streams).await? {
                        Left::Ended(record) => return Ok(*record),
                        Left::Lost(why) => why,
                    }
                }
                Err(err) => err.lost()?,
            };
            let since = *lost_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= PATIENCE {
                let (id, app) = (self.progress.deployment.id, &self.progress.deployment.app);
                return Err(CliError::Failed(format!(
                    "{why}\nthe agent takes deployment #{id} up again when it is back; see: longshore status {app}"
                )));
            }
            sleep(RETRY).await;
        }
    }

    /// Subscribes first and reads the state after it, so that nothing falls between the two.
    async fn connect(&mut self) -> Result<Streams, AskError> {
        let (id, app) = (self.progress.deployment.id, &self.progress.deployment.app);
        let events = match self.client.events(&format!("/api/v1/events?app={app}"), None).await {
            // It is not configured any more. The log goes on to the deployment's end all the same.
            Err(AskError::Refused(_)) => futures_util::stream::pending().boxed(),
            events => events?,
        };
        let log = self.client.events(&format!("/api/v1/deployments/{id}/log?follow=1"), Some(self.last_line)).await?;
        self.refresh().await?;
        Ok(Streams { log, events })
    }

    async fn refresh(&mut self) -> Result<(), AskError> {
        let (id, app) = (self.progress.deployment.id, self.progress.deployment.app.clone());
        self.progress.deployment = self.client.get(&format!("/api/v1/deployments/{id}")).await?;
        self.progress.app = match self.client.get::<AppView>(&format!("/api/v1/apps/{app}")).await {
            Ok(app) => Some(app),
            Err(AskError::Refused(_)) => None,
            Err(lost) => return Err(lost),
        };
        Ok(())
    }

    async fn read(&mut self, mut streams: Streams) -> Result<Left, CliError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stale, mut news) = (false, true);
        loop {
            // A build may write a thousand lines a second: nobody reads so many blocks.
            if std::mem::take(&mut news) {
                self.show_state()?;
            }
            tokio::select! {
                // The log first: it ends with the deployment, after everything that it has to tell.
                biased;
                line = streams.log.next() => match line {
                    Some(Ok(event)) if event.name == "end" => {
                        let record = serde_json::from_str(&event.data)
                            .map_err(|err| CliError::Failed(format!("the agent's record cannot be read: {err}")))?;
                        return Ok(Left::Ended(Box::new(record)));
                    }
                    Some(Ok(event)) if matches!(event.name.as_str(), "error" | SHUTDOWN) => {
                        return Ok(Left::Lost(event.data));
                    }
                    Some(Ok(event)) => self.log_line(&event)?,
                    Some(Err(why)) => return Ok(Left::Lost(why)),
                    None => return Ok(Left::Lost("the agent closed the connection".into())),
                },
                event = streams.events.next() => match event {
                    Some(Ok(event)) if event.name == SHUTDOWN => return Ok(Left::Lost(event.data)),
                    Some(Ok(event)) => stale |= event.name != "log",
                    Some(Err(why)) => return Ok(Left::Lost(why)),
                    None => return Ok(Left::Lost("the agent closed the connection".into())),
                },
                _ = tick.tick(), if self.term.is_live() => news = true,
            }
            // Several events at once need one look only.
            if stale && drained(&mut streams.events).await {
                stale = false;
                if let Err(err) = self.refresh().await {
                    return Ok(Left::Lost(err.lost()?));
                }
                news = true;
            }
        }
    }

    fn log_line(&mut self, event: &Event) -> Result<(), CliError> {
        if let Some(seq) = event.id.as_ref().and_then(|id| id.parse().ok()) {
            self.last_line = seq;
        }
        self.progress.line(&event.data);
        if self.show == Show::Progress && !self.term.is_live() {
            self.term.print(&format!("  {}", clean(&event.data)))?;
        }
        Ok(())
    }

    fn show_state(&mut self) -> Result<(), CliError> {
        if self.show == Show::Json {
            return Ok(());
        }
        if self.term.is_live() {
            let block = self.progress.block(Timestamp::now(), self.term.paint());
            return Ok(self.term.draw(&block)?);
        }
        let status = self.progress.deployment.status;
        if self.show == Show::Progress && !status.is_terminal() && self.shown.replace(status) != Some(status) {
            self.term.print(&status.as_str().replace('_', " "))?;
        }
        Ok(())
    }

    /// What is left to be drawn or looked up.
    async fn conclude(&mut self, ended: &DeploymentView) -> Result<(), CliError> {
        if self.show == Show::Json {
            return Ok(());
        }
        // The summary is worth having without it.
        let _ = self.refresh().await;
        self.progress.deployment = ended.clone();
        if self.term.is_live() {
            let block = self.progress.block(Timestamp::now(), self.term.paint());
            self.term.print(&block.join("\n"))?;
        }
        Ok(())
    }

    fn leave(&mut self, words: &str) -> Result<(), CliError> {
        if self.show == Show::Json {
            // The output stays JSON or empty.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{words}\n"));
            return Ok(());
        }
        if self.term.is_live() {
            let block = self.progress.block(Timestamp::now(), self.term.paint());
            self.term.print(&block.join("\n"))?;
        }
        Ok(self.term.print(words)?)
    }
}

/// Takes what waits in the stream; false when one of its ends is to be seen by the next look.
async fn drained(events: &mut BoxStream<'static, Result<Event, String>>) -> bool {
    // A moment for what comes together.
    let until = Instant::now() + Duration::from_millis(50);
    loop {
        match timeout_at(until, events.next()).await {
            Err(_) => return true,
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_)) | None) => return false,
        }
    }
}
