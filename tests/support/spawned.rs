//! A program whose output is read as it comes, each line with its time.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::wait::eventually;

/// A line of standard output or standard error.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// Without its end and trailing blanks.
    pub text: String,
}

/// A running program; killed when dropped.
pub struct Spawned {
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
    readers: JoinSet<()>,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// When.
    pub at: Instant,
    /// All that it printed.
    pub lines: Vec<Line>,
}

impl Spawned {
    /// Starts a program without input.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the program can be run");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut readers = JoinSet::new();
        readers.spawn(read(child.stdout.take().expect("a pipe"), Arc::clone(&lines)));
        readers.spawn(read(child.stderr.take().expect("a pipe"), Arc::clone(&lines)));
        Self { child, lines, readers }
    }

    /// What it has printed so far.
    pub fn text(&self) -> String {
        texts(&self.lines.lock().unwrap()).join("\n")
    }

    /// Waits until a line holds `part`.
    pub async fn prints(&self, part: &str, limit: Duration) {
        eventually(&format!("{part:?} is printed"), limit, async || match self.text() {
            text if text.contains(part) => Ok(()),
            text => Err(text),
        })
        .await;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("it can be signalled");
    }

    /// Waits for its end.
    pub async fn ended(mut self, limit: Duration) -> Ended {
        let Ok(status) = tokio::time::timeout(limit, self.child.wait()).await else {
            panic!("not ended within {limit:?}; it printed:\n{}", self.text());
        };
        let at = Instant::now();
        while self.readers.join_next().await.is_some() {}
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        Ended { status: status.expect("a child of this process"), at, lines }
    }
}

impl Ended {
    /// All that it printed.
    pub fn text(&self) -> String {
        texts(&self.lines).join("\n")
    }

    /// The first line that holds `part`.
    #[track_caller]
    pub fn line(&self, part: &str) -> &Line {
        let found = self.lines.iter().find(|line| line.text.contains(part));
        found.unwrap_or_else(|| panic!("no line holds {part:?}:\n{}", self.text()))
    }
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

async fn read(pipe: impl AsyncRead + Unpin, lines: Arc<Mutex<Vec<Line>>>) {
    let mut pipe = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(bytes)) = pipe.next_segment().await {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        lines.lock().unwrap().push(Line { at: Instant::now(), text });
    }
}
