//! After the end: what must be true, read from the journal, the engine, the files and what Discord was told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bollard::query_parameters::{ListContainersOptionsBuilder, ListImagesOptionsBuilder};
use rusqlite::{Connection, OpenFlags, Row};

use super::faults::{Fault, Strike};
use super::ledger::Entries;
use crate::shop::Shop;

/// From its start to its end, with the engine away in between.
const DEADLINE: Duration = Duration::from_secs(240);
/// A fault still has its effect this long after it.
const AFTERMATH: Duration = Duration::from_secs(15);

const TERMINAL: [&str; 5] = ["succeeded", "failed", "rolled_back", "superseded", "cancelled"];

/// A row of the journal.
#[derive(Debug, Clone)]
pub struct Deployment {
    pub id: u64,
    pub app: String,
    pub request: String,
    pub trigger: String,
    pub status: String,
    pub commit: Option<String>,
    pub release: Option<u64>,
    pub reason: Option<String>,
    pub superseded_by: Option<u64>,
    pub started: Option<Duration>,
    pub finished: Option<Duration>,
}

/// The journal, read once the agent has ended.
pub struct Record {
    pub deployments: Vec<Deployment>,
    /// By app: the live release, and its commit.
    pub live: BTreeMap<String, (u64, String)>,
    /// What the releases that were good, or are live, are made of.
    releases: Vec<String>,
    /// By deployment: what was to be told.
    notices: BTreeMap<u64, Vec<String>>,
    /// By deployment: the lines of its log.
    logs: BTreeMap<u64, Vec<String>>,
    integrity: String,
}

impl Record {
    pub fn read(data_dir: &Path) -> rusqlite::Result<Self> {
        let journal = Connection::open_with_flags(data_dir.join("journal.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let rows = |sql: &str| -> rusqlite::Result<Vec<(u64, String)>> {
            journal
                .prepare(sql)?
                .query_map([], |row| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?)))?
                .collect()
        };
        let mut logs = BTreeMap::<u64, Vec<String>>::new();
        for (deployment, line) in rows("SELECT deployment, line FROM log ORDER BY deployment, seq")? {
            logs.entry(deployment).or_default().push(line);
        }
        let mut notices = BTreeMap::<u64, Vec<String>>::new();
        for (deployment, kind) in rows("SELECT deployment, kind FROM notices WHERE deployment IS NOT NULL ORDER BY id")?
        {
            notices.entry(deployment).or_default().push(kind.trim_matches('"').to_owned());
        }
        let live =
            "SELECT app, live_release, commit_sha FROM apps JOIN releases USING (app) WHERE number = live_release";
        let live = journal
            .prepare(live)?
            .query_map([], |row| Ok((row.get(0)?, (row.get::<_, i64>(1)?.unsigned_abs(), row.get(2)?))))?
            .collect::<rusqlite::Result<_>>()?;
        let kept = "SELECT number, body FROM releases LEFT JOIN apps USING (app)
                    WHERE good_at IS NOT NULL OR number = live_release";
        Ok(Self {
            deployments: journal
                .prepare("SELECT * FROM deployments ORDER BY id")?
                .query_map([], deployment)?
                .collect::<rusqlite::Result<_>>()?,
            live,
            releases: rows(kept)?.into_iter().map(|(_, body)| body).collect(),
            notices,
            logs,
            integrity: journal.query_row("PRAGMA integrity_check", [], |row| row.get(0))?,
        })
    }

    /// What a deployment said.
    pub fn log(&self, id: u64) -> String {
        self.logs.get(&id).map(|lines| lines.join("\n")).unwrap_or_default()
    }

    fn deployment(&self, id: u64) -> Option<&Deployment> {
        self.deployments.iter().find(|deployment| deployment.id == id)
    }
}

fn deployment(row: &Row<'_>) -> rusqlite::Result<Deployment> {
    let number = |name| row.get::<_, Option<i64>>(name).map(|number| number.map(i64::unsigned_abs));
    let time = |name| number(name).map(|time| time.map(Duration::from_millis));
    Ok(Deployment {
        id: number("id")?.unwrap_or_default(),
        app: row.get("app")?,
        request: row.get("request")?,
        trigger: row.get("trigger")?,
        status: row.get("status")?,
        commit: row.get("commit_sha")?,
        release: number("release")?,
        reason: row.get("reason")?,
        superseded_by: number("superseded_by")?,
        started: time("started_at")?,
        finished: time("finished_at")?,
    })
}

/// What was found, by the invariant that it violates.
#[derive(Default)]
pub struct Findings {
    pub wrong: Vec<String>,
    /// Good versions that were undone while something was taken away from them, by deployment, and the reasons.
    pub undone: Vec<(u64, String)>,
}

impl Findings {
    pub fn add(&mut self, other: Self) {
        self.wrong.extend(other.wrong);
        self.undone.extend(other.undone);
    }

    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }
}

/// Checks the journal against what was accepted and what went wrong.
pub fn journal(record: &Record, ledger: &Entries, strikes: &[Strike]) -> Findings {
    let mut found = Findings::default();
    found.must(record.integrity == "ok", || format!("I10 the journal is damaged: {}", record.integrity));
    for deployment in &record.deployments {
        each(&mut found, deployment);
        notices(&mut found, record, deployment);
    }
    one_at_a_time(&mut found, record);
    pushes(&mut found, record, ledger, strikes);
    strangers(&mut found, record, ledger);
    live(&mut found, record);
    found
}

/// I2 and I11: each has ended, in time.
fn each(found: &mut Findings, deployment: &Deployment) {
    let Deployment { id, status, started, finished, .. } = deployment;
    let ended = TERMINAL.contains(&status.as_str()) && finished.is_some();
    found.must(ended, || format!("I2 deployment {id} has not ended: {status}"));
    let took = started.zip(*finished).map(|(started, finished)| finished.saturating_sub(started));
    found.must(took.is_none_or(|took| took <= DEADLINE), || format!("I11 deployment {id} took {took:?}"));
}

/// I12, the outbox: one end is told of each.
fn notices(found: &mut Findings, record: &Record, deployment: &Deployment) {
    let told = record.notices.get(&deployment.id).cloned().unwrap_or_default();
    let ends: Vec<_> = told.iter().filter(|kind| *kind != "started").collect();
    found.must(ends == [&deployment.status], || {
        format!("I12 deployment {} is {} and is to be told as {told:?}", deployment.id, deployment.status)
    });
}

/// I8: deployments of an app do not overlap.
fn one_at_a_time(found: &mut Findings, record: &Record) {
    let mut by_app = BTreeMap::<&str, Vec<(Duration, Duration, u64)>>::new();
    for deployment in &record.deployments {
        if let (Some(started), Some(finished)) = (deployment.started, deployment.finished) {
            by_app.entry(&deployment.app).or_default().push((started, finished, deployment.id));
        }
    }
    for (app, mut spans) in by_app {
        spans.sort_unstable();
        for pair in spans.windows(2) {
            let ((_, finished, first), (started, _, second)) = (pair[0], pair[1]);
            found.must(finished <= started, || format!("I8 deployments {first} and {second} of {app} ran at once"));
        }
    }
}

/// I5: none is lost, none is deployed twice; and each ended as its version must.
fn pushes(found: &mut Findings, record: &Record, ledger: &Entries, strikes: &[Strike]) {
    let places: BTreeMap<&str, usize> =
        ledger.pushes.iter().enumerate().map(|(place, pushed)| (pushed.commit.as_str(), place)).collect();
    for pushed in &ledger.pushes {
        let name = &pushed.name;
        let Some(deployment) = pushed.deployment.and_then(|id| record.deployment(id)) else {
            found.wrong.push(format!("I5 the push of {name} is lost: {pushed:?}"));
            continue;
        };
        let id = deployment.id;
        let right = deployment.app == pushed.app && deployment.commit.as_deref() == Some(&pushed.commit);
        found.must(right, || format!("I5 deployment {id} is not about {name}: {deployment:?}"));
        let same = |other: &&Deployment| other.trigger == "push" && other.commit.as_deref() == Some(&pushed.commit);
        let count = record.deployments.iter().filter(same).count();
        found.must(count == 1, || format!("I5 {name} was deployed {count} times"));
        match (deployment.status.as_str(), pushed.version.is_good()) {
            ("superseded", _) => {
                let by = deployment.superseded_by.map(|by| record.deployment(by));
                let newer = |by: &Deployment| {
                    let commit = by.commit.as_deref().and_then(|commit| places.get(commit));
                    by.app == pushed.app
                        && (!by.request.contains("deploy") || commit > places.get(pushed.commit.as_str()))
                };
                let fine = match by {
                    Some(by) => by.is_some_and(newer),
                    // Its commit was live already, within a newer one.
                    None => deployment.reason.is_some(),
                };
                found.must(fine, || format!("I5 {name} was superseded by nothing newer: {deployment:?}, {by:?}"));
            }
            ("cancelled", _) => {
                found.must(ledger.cancelled.contains(&id), || format!("I2 nobody cancelled deployment {id}"));
            }
            ("succeeded", true) | ("failed" | "rolled_back", false) => {}
            ("failed" | "rolled_back", true) => {
                let reason = deployment.reason.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
                let line = format!("{name}, deployment {id}, {}: {reason}", deployment.status);
                match struck(deployment, strikes) {
                    true => found.undone.push((id, line)),
                    false => found
                        .wrong
                        .push(format!("I2 a good version did not go live, and nothing was in its way: {line}")),
                }
            }
            (status, _) => found.wrong.push(format!("I2 {name} ({:?}) is {status}: {deployment:?}", pushed.version)),
        }
    }
}

/// Whether something that a deployment needs was taken away during it: the engine, one of its instances or the proxy.
/// The agent's own ends are no excuse.
fn struck(deployment: &Deployment, strikes: &[Strike]) -> bool {
    let (Some(started), Some(finished)) = (deployment.started, deployment.finished) else { return false };
    strikes.iter().any(|strike| {
        let at = strike.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let needed = !matches!(strike.fault, Fault::AgentKilled | Fault::AgentTerminated | Fault::AgentUpgraded);
        needed && at <= finished && at + AFTERMATH >= started
    })
}

/// I5, the other way: no deployment that nobody asked for.
fn strangers(found: &mut Findings, record: &Record, ledger: &Entries) {
    let pushes = ledger.pushes.iter().filter_map(|pushed| pushed.deployment);
    let known: BTreeSet<u64> = pushes.chain(ledger.operations.iter().map(|(_, id)| *id)).collect();
    let strangers: Vec<_> = record.deployments.iter().filter(|deployment| !known.contains(&deployment.id)).collect();
    // The answer to some may have been lost with the agent.
    let fine = strangers.len() as u64 <= ledger.unanswered && strangers.iter().all(|one| one.trigger != "push");
    found.must(fine, || format!("I5 nobody asked for {strangers:#?}"));
    for wrong in &ledger.wrong {
        found.wrong.push(format!("I5 {wrong}"));
    }
}

/// I4 and I6: what is live is what last succeeded.
fn live(found: &mut Findings, record: &Record) {
    for (app, (release, _)) in &record.live {
        let succeeded = record.deployments.iter().filter(|one| one.app == *app && one.status == "succeeded");
        let last = succeeded.max_by_key(|deployment| (deployment.finished, deployment.id));
        found.must(last.and_then(|last| last.release) == Some(*release), || {
            format!("I6 v{release} of {app} is live, and the last that succeeded is {last:?}")
        });
    }
}

/// I12: what Discord was told; an agent that was killed while it told may tell once more.
pub fn discord(found: &mut Findings, record: &Record, shop: &Shop, agent_kills: u64) {
    let messages = shop.discord.messages();
    let mut extra = 0;
    for deployment in &record.deployments {
        let footer = format!("deployment {}", deployment.id);
        let about: Vec<_> =
            messages.iter().filter(|message| message.text().lines().any(|line| line == footer)).collect();
        let word = match deployment.status.as_str() {
            "succeeded" => "live",
            "rolled_back" => "rolled back",
            status => status,
        };
        let told = about.iter().any(|message| message.text().contains(word));
        // Several that were superseded are told as one.
        found.must(told || deployment.status == "superseded", || {
            format!("I12 the end of deployment {} ({word}) was not told: {about:?}", deployment.id)
        });
        extra += about.len().saturating_sub(1) as u64;
    }
    found.must(extra <= agent_kills, || {
        format!("I12 {extra} messages too many, and the agent was killed {agent_kills} times")
    });
}

/// I3: everything on the engine has an owner.
pub async fn engine(found: &mut Findings, record: &Record, shop: &Shop) {
    let agent = shop.agent.id();
    let objects = shop.engine.objects(&agent).await;
    found.wrong.extend(objects.leftovers().into_iter().map(|line| format!("I3 {line}")));
    let docker = &shop.engine.docker;
    let all = ListContainersOptionsBuilder::new().all(true).build();
    let containers = docker.list_containers(Some(all)).await.expect("the engine lists containers");
    found.must(containers.len() == objects.containers.len(), || {
        format!("I3 containers without an owner: {containers:#?}")
    });
    let images =
        docker.list_images(Some(ListImagesOptionsBuilder::new().build())).await.expect("the engine lists images");
    for image in images {
        let owned = record.releases.iter().any(|body| body.contains(&image.id));
        found.must(owned, || format!("I3 no good release needs image {} ({:?})", image.id, image.repo_tags));
    }
    found.must(objects.networks.len() == record.live.len(), || format!("I3 networks: {:?}", objects.networks));
    for container in &objects.containers {
        let (app, release) = (container.label("longshore.app"), container.label("longshore.release"));
        let live = record.live.get(app).map(|(release, _)| release.to_string());
        found.must(live.as_deref() == Some(release), || {
            format!("I6 {} runs v{release} of {app}, and {live:?} is live", container.name)
        });
    }
}

/// I3 and I9: the files beside the journal hold nothing half-made, and none holds a secret.
pub fn files(found: &mut Findings, shop: &Shop, secrets: &[&str]) {
    for path in below(&shop.agent.data_dir()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.parent().is_some_and(|parent| parent.ends_with("objects/pack")) {
            let whole =
                ["pack", "idx"].iter().all(|kind| path.with_extension(kind).exists()) && !name.ends_with(".new");
            found.must(whole, || format!("I3 {} is half of a pack", path.display()));
        }
        found.must(!name.ends_with(".lock") || matches!(name.as_str(), "agent.lock" | "proxy.lock"), || {
            format!("I3 {} was left behind", path.display())
        });
        let content = std::fs::read(&path).unwrap_or_default();
        reveals(found, &path.display().to_string(), &content, secrets);
    }
    reveals(found, "the agent's output", shop.agent.log().as_bytes(), secrets);
    for message in shop.discord.messages() {
        reveals(found, "a message to Discord", message.text().as_bytes(), secrets);
    }
    let panicked = ["panicked at"].iter().any(|words| shop.agent.log().contains(words));
    found.must(!panicked, || "I2 the agent panicked".to_owned());
}

fn reveals(found: &mut Findings, place: &str, content: &[u8], secrets: &[&str]) {
    for secret in secrets {
        let there = content.windows(secret.len()).any(|part| part == secret.as_bytes());
        found.must(!there, || format!("I9 {place} holds the secret {:.6}…", secret));
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let (directories, files): (Vec<PathBuf>, _) = entries.map(|entry| entry.path()).partition(|path| path.is_dir());
    let inner = directories.iter().flat_map(|directory| below(directory));
    files.into_iter().filter(|path| path.is_file()).chain(inner).collect()
}
