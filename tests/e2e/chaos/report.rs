//! The table at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checker::Record;
use super::excuses::{Excuse, Excuses, Outage};
use super::faults::Harm;
use super::ledger::Entries;
use super::watching::Fewest;
use crate::clients::{Failure, Report};

/// Failed requests: those that count, and the others by excuse.
pub struct Judged {
    pub failed: Vec<Failure>,
    pub excused: BTreeMap<Excuse, u64>,
}

impl Judged {
    pub fn of(failures: &[Failure], excuses: &Excuses) -> Self {
        let mut judged = Self { failed: Vec::new(), excused: BTreeMap::new() };
        for failure in failures {
            match excuses.for_failure(failure) {
                Some(excuse) => *judged.excused.entry(excuse).or_default() += 1,
                None => judged.failed.push(failure.clone()),
            }
        }
        judged
    }
}

/// All that is told.
pub struct Told<'a> {
    pub seed: u64,
    pub time: Duration,
    pub record: &'a Record,
    pub ledger: &'a Entries,
    pub harm: &'a Harm,
    pub load: &'a Report,
    pub judged: &'a Judged,
    pub excuses: &'a Excuses,
    pub fewest: &'a Fewest,
    pub undone: &'a [(u64, String)],
}

impl Told<'_> {
    pub fn print(&self) {
        println!("\n| chaos, seed {} | {:.1} min |\n|---|---|", self.seed, self.time.as_secs_f64() / 60.0);
        self.deployments();
        self.faults();
        self.requests();
        println!();
        for (_, undone) in self.undone {
            println!("undone with its ground: {undone}");
        }
    }

    fn deployments(&self) {
        let mut ends = BTreeMap::<&str, usize>::new();
        for deployment in &self.record.deployments {
            *ends.entry(&deployment.status).or_default() += 1;
        }
        let ends: Vec<_> = ends.iter().map(|(status, count)| format!("{count} {status}")).collect();
        row("deployments", format!("{}: {}", self.record.deployments.len(), ends.join(", ")));
        let status =
            |id: Option<u64>| self.record.deployments.iter().find(|one| Some(one.id) == id).map(|one| &one.status);
        let mut versions = BTreeMap::<_, BTreeMap<&str, usize>>::new();
        for pushed in &self.ledger.pushes {
            let ended = status(pushed.deployment).map_or("lost", String::as_str);
            let kind = if pushed.version.is_good() { "good" } else { "bad" };
            *versions.entry(kind).or_default().entry(ended).or_default() += 1;
        }
        for (kind, ends) in versions {
            let all: usize = ends.values().sum();
            let ends: Vec<_> = ends.iter().map(|(status, count)| format!("{count} {status}")).collect();
            row(&format!("pushes of {kind} versions"), format!("{all}: {}", ends.join(", ")));
        }
        row("good versions undone with something taken from them", self.undone.len());
        row(
            "sent again because nobody took it / twice on purpose",
            format!("{} / {}", self.ledger.redelivered, self.ledger.duplicates),
        );
        row(
            "rollbacks, scales, restarts / cancellations asked for",
            format!("{} / {}", self.ledger.operations.len(), self.ledger.cancelled.len()),
        );
    }

    fn faults(&self) {
        for (fault, count) in self.harm.counts() {
            row(fault.words(), count);
        }
        row("containers that an engine had forgotten, ended by hand", self.harm.forgotten);
        for (what, times) in &self.harm.recoveries {
            row(&format!("{what}: median, worst"), spread(times.clone()));
        }
        row("proxy killed -> takes connections: median, worst", spread(self.excuses.lengths(Outage::Proxy)));
        row("agent told to end -> ended: worst", seconds(self.harm.slowest_end));
        let fewest: Vec<_> = self.fewest.by_host.iter().map(|(host, fewest)| format!("{host} {fewest}")).collect();
        row("fewest instances routed at any time", fewest.join(", "));
    }

    fn requests(&self) {
        let mut all = 0;
        for (kind, answered) in &self.load.answered {
            row(kind.words(), answered);
            all += answered;
        }
        let sockets = &self.load.sockets;
        row("WebSocket messages echoed", sockets.echoed);
        row(
            "WebSockets ended between messages / with one under way",
            format!("{} / {}", sockets.ended, sockets.ended_with_message),
        );
        row("slowest answer", seconds(self.load.slowest));
        for (excuse, count) in &self.judged.excused {
            row(&format!("excused: {}", excuse.words()), count);
        }
        row("**requests answered / failed**", format!("**{all} / {}**", self.judged.failed.len()));
    }
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("| {name} | {value} |");
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(worst)) => format!("{}, {} ({} times)", seconds(*median), seconds(*worst), times.len()),
        _ => "none measured".to_owned(),
    }
}
