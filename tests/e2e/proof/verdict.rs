//! Whether every request got its one answer, from all sides: the clients', the app's, the proxy's records', the kernel's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::STREAMS_MS;
use super::sockets::Sockets;
use crate::clients::{Kind, Report};

/// How many pipes a thread of the proxy keeps (`proxy/http1/pipe`).
const PIPES_KEPT: usize = 4;

/// What is not as it must be.
#[derive(Default)]
pub struct Wrong {
    found: Vec<String>,
    told: Vec<String>,
}

impl Wrong {
    /// More failed requests than this tell nothing new.
    pub const ENOUGH: usize = 500;
    /// Of one kind so many are shown.
    const SHOWN: usize = 20;

    pub fn add(&mut self, what: String) {
        self.found.push(what);
    }

    /// Something that helps to understand.
    pub fn tell(&mut self, what: String) {
        self.told.push(what);
    }

    fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.add(what());
        }
    }

    /// Several of one kind: the first ones, and how many there are.
    fn all(&mut self, kind: &str, each: Vec<String>) {
        if each.len() > Self::SHOWN {
            self.add(format!("{kind}: {} in all", each.len()));
        }
        self.found.extend(each.into_iter().take(Self::SHOWN).map(|one| format!("{kind}: {one}")));
    }
}

/// All that was seen.
pub struct Proof {
    pub seed: u64,
    pub began: Instant,
    pub time: Duration,
    pub load: Report,
    /// The deployments as the agent has them.
    pub records: BTreeMap<u64, Value>,
    pub kills: usize,
    pub upgrades: usize,
    pub before: Sockets,
    pub after: Sockets,
    /// What the app wrote: a line for each POST that it saw, and one for each WebSocket that has ended.
    pub seen: [String; 2],
}

/// What the app saw.
struct SeenPosts {
    once: usize,
    wrong: Vec<String>,
}

/// The sums over the deployments' records.
#[derive(Default)]
struct Recorded {
    served: u64,
    retried: u64,
    cut_streams: u64,
    wrong: Vec<String>,
}

impl Proof {
    /// Prints the table; fails with everything that is not as promised.
    pub fn judge(&self, mut wrong: Wrong, agent_log: &str) {
        let (seen, recorded) = (self.seen(), self.recorded());
        self.print(&seen, &recorded);
        let failures = self.load.failures.iter().map(|failure| {
            let after = failure.began.saturating_duration_since(self.began);
            format!("after {:.2} s: {failure}", after.as_secs_f64())
        });
        wrong.all("a request failed", failures.collect());
        wrong.all("the app's own account", seen.wrong);
        wrong.all("the deployments' own account", recorded.wrong);
        self.sockets(&mut wrong);
        self.streams(&mut wrong, recorded.cut_streams);
        let answered = self.answered();
        wrong.unless(recorded.served > 0 && recorded.served <= answered, || {
            format!("the records have {} requests served, the clients {answered}", recorded.served)
        });
        if wrong.found.is_empty() {
            return;
        }
        println!("--- the agent's log ---\n{agent_log}");
        wrong.told.iter().for_each(|told| println!("{told}"));
        panic!("LONGSHORE_PROOF_SEED={}: {} findings\n{}", self.seed, wrong.found.len(), wrong.found.join("\n"));
    }

    fn answered(&self) -> u64 {
        self.load.answered.values().sum()
    }

    /// Each POST that was sent must have been seen once, with all of its body, and none besides.
    fn seen(&self) -> SeenPosts {
        let mut times = BTreeMap::<u64, Vec<&str>>::new();
        for line in self.seen[0].lines() {
            let id = line.split(' ').next().and_then(|id| id.parse().ok()).unwrap_or_default();
            times.entry(id).or_default().push(line);
        }
        let mut seen = SeenPosts { once: 0, wrong: Vec::new() };
        for id in &self.load.posts {
            match times.remove(id).unwrap_or_default().as_slice() {
                [_] => seen.once += 1,
                others => seen.wrong.push(format!("POST {id} was seen {} times: {others:?}", others.len())),
            }
        }
        seen.wrong.extend(times.into_values().map(|lines| format!("seen and never sent: {lines:?}")));
        seen
    }

    fn recorded(&self) -> Recorded {
        let mut sum = Recorded::default();
        for (id, record) in &self.records {
            let requests = &record["requests"];
            let number = |name: &str| requests[name].as_u64();
            // The first one of all replaced nothing.
            if record["status"] == "succeeded" && *id > 1 {
                for name in ["failed", "server_errors", "cut_requests"] {
                    if number(name) != Some(0) {
                        sum.wrong.push(format!("deployment {id}: {name} is {}, not 0", requests[name]));
                    }
                }
            }
            sum.served += number("served").unwrap_or_default();
            sum.retried += number("retried").unwrap_or_default();
            sum.cut_streams += number("cut_streams").unwrap_or_default();
        }
        sum
    }

    fn sockets(&self, wrong: &mut Wrong) {
        let Self { before, after, .. } = self;
        wrong.unless(after.open <= before.open, || format!("connections are open at the proxy's port: {after:?}"));
        wrong.unless(after.files <= before.files, || {
            format!("the proxy holds more: {before:?} before, {after:?} after")
        });
        // Each of its threads keeps a few for the next large answer.
        let kept = 2 * PIPES_KEPT * std::thread::available_parallelism().map_or(1, usize::from);
        wrong.unless(after.pipes <= before.pipes + kept, || {
            format!("the proxy holds more than {kept} ends of pipes: {before:?} before, {after:?} after")
        });
        wrong.unless(after.retired == 0, || format!("{} proxies that were replaced have not ended", after.retired));
    }

    /// WebSockets end by their budget alone, and every message that the app saw came back: what crosses the close reaches
    /// nobody.
    fn streams(&self, wrong: &mut Wrong, recorded: u64) {
        let sockets = &self.load.sockets;
        let ended = sockets.ended + sockets.ended_with_message;
        let earliest = Duration::from_millis(STREAMS_MS * 4 / 5);
        wrong.unless(sockets.youngest.is_none_or(|age| age >= earliest), || {
            format!("a WebSocket ended after {:?}, before its time for streams was over", sockets.youngest)
        });
        wrong.unless(sockets.reset == 0, || format!("{} WebSockets were reset", sockets.reset));
        wrong.unless(sockets.told == ended, || {
            format!("of {ended} WebSockets that ended {} were told to come back", sockets.told)
        });
        // A proxy that was replaced closes the rest of its own by itself.
        let most = recorded + (self.upgrades * 20) as u64;
        wrong.unless((recorded..=most).contains(&ended), || {
            format!("{ended} WebSockets ended, and the records have {recorded} of them")
        });
        let mut unlike = Vec::new();
        let mut told = 0;
        for line in self.seen[1].lines() {
            let mut words = line.split(' ').map_while(|word| word.parse::<u64>().ok());
            let (Some(id), Some(came)) = (words.next(), words.next()) else { continue };
            told += 1;
            let back = sockets.bytes.get(&id).copied().unwrap_or_default();
            if came != back && !sockets.unanswered.contains(&id) {
                unlike.push(format!("{came} bytes of WebSocket {id} came to the app, {back} came back"));
            }
        }
        wrong.all("the app's own account", unlike);
        let opened = self.load.answered.get(&Kind::WebSocket).copied().unwrap_or_default();
        wrong.unless(told == opened, || format!("{opened} WebSockets were opened, and the app saw {told} of them end"));
    }

    fn print(&self, seen: &SeenPosts, recorded: &Recorded) {
        println!("\n| proof, seed {} | {:.1} min |\n|---|---|", self.seed, self.time.as_secs_f64() / 60.0);
        let of_kind = |kind: &str| self.records.values().filter(|record| record["kind"] == kind).count();
        row("deployments / rollbacks", format!("{} / {}", of_kind("deploy"), of_kind("rollback")));
        let mut ends = BTreeMap::<&str, usize>::new();
        for record in self.records.values() {
            *ends.entry(record["status"].as_str().unwrap_or_default()).or_default() += 1;
        }
        let ends: Vec<_> = ends.iter().map(|(status, count)| format!("{count} {status}")).collect();
        row("how they ended", ends.join(", "));
        row("agent killed / upgraded, proxy handed over", format!("{} / {}", self.kills, self.upgrades));
        for (kind, answered) in &self.load.answered {
            row(kind.words(), answered);
        }
        let sockets = &self.load.sockets;
        row("WebSocket messages echoed", sockets.echoed);
        row(
            "WebSockets closed at the end of their budget between messages / as one was sent, unseen by the app",
            format!("{} / {}", sockets.ended, sockets.ended_with_message),
        );
        row(
            "those of them that were told to come back (close code 1012) / that were reset",
            format!("{} / {}", sockets.told, sockets.reset),
        );
        row("those that the app had left without an answer for more than 2 s", sockets.unanswered.len());
        if let Some(age) = sockets.youngest {
            row("the youngest of them", format!("{:.2} s", age.as_secs_f64()));
        }
        row("HTTP/2 requests given back as not looked at, sent on another connection", self.load.given_back);
        row("slowest answer", format!("{:.2} s", self.load.slowest.as_secs_f64()));
        row("POSTs sent / seen by the app exactly once", format!("{} / {}", self.load.posts.len(), seen.once));
        row(
            "by the deployments' own records: served / retried / streams cut",
            format!("{} / {} / {}", recorded.served, recorded.retried, recorded.cut_streams),
        );
        let told = |at: &Sockets| format!("{} / {} / {} / {}", at.open, at.files, at.pipes, at.waiting);
        row(
            "connections at the proxy's port / its descriptors / ends of its pipes / TIME_WAIT: before",
            told(&self.before),
        );
        row("the same: after", told(&self.after));
        row("**requests answered / failed**", format!("**{} / {}**\n", self.answered(), self.load.failures.len()));
    }
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("| {name} | {value} |");
}
