//! What the figures were measured on.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::rounds::{median, ms};
use crate::support::agent::TestAgent;
use crate::support::engine::Engine;

/// Processors, system and engine in one line.
pub async fn describe(engine: &Engine) -> String {
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let version = engine.docker.version().await.ok().and_then(|version| version.version).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{processors} processors, {}, Docker Engine {version}", system.trim_matches('"'))
}

/// The processes that run from an agent's directory: the agent itself and its proxy.
pub fn processes(agent: &TestAgent) -> Vec<u32> {
    let directory = agent.scratch().as_os_str().as_encoded_bytes().to_vec();
    let ours = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.windows(directory.len()).any(|window| window == directory)
    };
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
}

/// A line of `/proc/PID/status`, in MiB: `VmRSS` (now) or `VmHWM` (the most so far).
pub fn memory(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')).expect("a line of memory");
    let kib: f64 = found.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

/// What it takes up when pages that several processes share are counted once, in MiB.
pub fn proportional_memory(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a running process");
    let found = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a line of memory");
    found.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// Processor time that it has used so far, in microseconds.
pub fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The fields after the name in brackets: utime and stime are the 14th and 15th of all, in hundredths of a second.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() * 1e4
}

/// Keeps a running process, all of its threads, on one processor.
pub fn pin(pid: u32, processor: usize) {
    let mut command = std::process::Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", &processor.to_string(), &pid.to_string()]);
    let output = command.output().expect("taskset (util-linux)");
    assert!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
}

/// How long it takes to append `bytes` to a file and have them on disk, in milliseconds: the median of a hundred.
pub fn sync_time(directory: &Path, bytes: usize) -> f64 {
    let mut file = fs::File::create(directory.join("sync-time")).expect("a file");
    let block = vec![b'x'; bytes];
    let times: Vec<f64> = (0..100)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&block).expect("a write");
            file.sync_data().expect("a sync");
            ms(began.elapsed())
        })
        .collect();
    median(&times)
}

/// Makes `VmHWM` start again from what is used now (proc_pid_clear_refs(5)).
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process of our own");
}

/// In MiB.
pub fn file_size(path: &Path) -> f64 {
    fs::metadata(path).expect("a file").len() as f64 / f64::from(1 << 20)
}
