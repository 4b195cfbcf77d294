//! The engine's own rolling update: `docker service update`, one at a time, new before old.
//!
//! Its times are those that the engine itself records, so that neither the command line nor polling is counted.

use std::process::Command;

use jiff::Timestamp;
use serde_json::Value;

/// A swarm of one node with one service; what this made is gone when it is dropped.
pub struct Swarm {
    service: String,
    /// There was none before.
    made: bool,
    had_bridge: bool,
}

/// When an update was done, in milliseconds from its beginning.
pub struct Update {
    /// The last new task runs.
    pub running: f64,
    /// The engine calls it completed: the last task has been monitored.
    pub completed: f64,
}

impl Swarm {
    /// Five replicas of `image`, with one second of monitoring.
    pub fn start(name: &str, image: &str) -> Self {
        let bridge = ["network", "ls", "--quiet", "--filter", "name=^docker_gwbridge$"];
        let had_bridge = !docker(&bridge).is_empty();
        let made = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]) == "inactive";
        if made {
            docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
        }
        let swarm = Self { service: name.to_owned(), made, had_bridge };
        let settings = ["--replicas=5", "--update-parallelism=1", "--update-order=start-first", "--update-monitor=1s"];
        let create = ["service", "create", "--quiet", "--no-resolve-image", "--name", name];
        docker(&[&create[..], &settings, &["--init", image]].concat());
        swarm
    }

    /// Updates the service to `image`.
    pub fn update(&self, image: &str) -> Update {
        docker(&["service", "update", "--quiet", "--no-resolve-image", "--image", image, &self.service]);
        let status = json(&["service", "inspect", "--format", "{{json .UpdateStatus}}", &self.service]);
        assert_eq!(status["State"], "completed", "{status}");
        let began = at(&status["StartedAt"]);
        let tasks = docker(&["service", "ps", "--quiet", "--filter", "desired-state=running", &self.service]);
        let since = tasks.lines().map(|task| {
            let task = json(&["inspect", "--type", "task", "--format", "{{json .Status}}", task]);
            assert_eq!(task["State"], "running", "{task}");
            at(&task["Timestamp"])
        });
        let since: Vec<f64> = since.collect();
        assert_eq!(since.len(), 5, "{tasks}");
        let last = since.into_iter().fold(began, f64::max);
        Update { running: last - began, completed: at(&status["CompletedAt"]) - began }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        docker(&["service", "rm", &self.service]);
        // Whatever others have put into the swarm meanwhile stays.
        if self.made && docker(&["service", "ls", "--quiet"]).is_empty() {
            docker(&["swarm", "leave", "--force"]);
            if !self.had_bridge {
                docker(&["network", "rm", "docker_gwbridge"]);
            }
        }
    }
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("the docker command");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || std::thread::panicking(), "docker {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&docker(arguments)).expect("JSON")
}

fn at(value: &Value) -> f64 {
    let time: Timestamp = value.as_str().expect("a time").parse().expect("a time");
    time.as_nanosecond() as f64 / 1e6
}
