//! What the proxy holds open, as `ss` and `lsof` would tell it.

use std::fs;

/// States of /proc/net/tcp (include/net/tcp_states.h of Linux).
const TIME_WAIT: &str = "06";
const LISTEN: &str = "0A";

/// At one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sockets {
    /// Connections of clients at the proxy's port, however far they are closed.
    pub open: usize,
    /// Ends of connections that the kernel remembers for a minute after their end: they belong to no process.
    pub waiting: usize,
    /// Descriptors of the proxy's process, but for its pipes.
    pub files: usize,
    /// Ends of pipes that it holds.
    pub pipes: usize,
    /// Proxies that were replaced and have not ended.
    pub retired: usize,
}

impl Sockets {
    pub fn of(port: u16, pid: i32, retired: usize) -> Self {
        let states = states_at(port);
        let waiting = states.iter().filter(|state| *state == TIME_WAIT).count();
        let open = states.iter().filter(|state| *state != TIME_WAIT && *state != LISTEN).count();
        let held = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let held = held.filter_map(|entry| fs::read_link(entry.path()).ok());
        let (pipes, files): (Vec<_>, Vec<_>) = held.partition(|file| file.to_string_lossy().starts_with("pipe:"));
        Self { open, waiting, files: files.len(), pipes: pipes.len(), retired }
    }
}

/// The states of all sockets with this local port (proc_net_tcp.rst: the second field is the local address with its
/// port in hexadecimal, the fourth the state).
fn states_at(port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let mut states = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        states.extend(text.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next()?, fields.nth(1)?);
            local.ends_with(&suffix).then(|| state.to_owned())
        }));
    }
    states
}

/// Whether a process runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
