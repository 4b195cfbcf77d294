//! Sockets that a service manager has opened for this process (systemd's socket activation: `LISTEN_FDS`, `LISTEN_PID`
//! and `LISTEN_FDNAMES`).

use std::net::TcpListener;

use anyhow::{Context, Result};
use listenfd::ListenFd;

/// Those with this name (`FileDescriptorName=`), or all when no socket has a name of ours. To be called before there are
/// threads, as it takes the variables out of the environment.
pub fn inherited(name: &str) -> Result<Vec<TcpListener>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let mut listeners = Vec::new();
    for place in places(&names, sockets.len(), name) {
        let listener = sockets.take_tcp_listener(place);
        listeners.extend(listener.with_context(|| format!("socket {place} of LISTEN_FDS cannot be used"))?);
    }
    Ok(listeners)
}

/// The names that units give to our sockets.
const OURS: [&str; 2] = ["agent", "proxy"];

/// Which of `count` sockets are meant by `wanted`.
fn places(names: &str, count: usize, wanted: &str) -> Vec<usize> {
    let names: Vec<&str> = names.split(':').collect();
    let named = names.iter().take(count).any(|name| OURS.contains(name));
    (0..count).filter(|&place| !named || names.get(place) == Some(&wanted)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_their_names_or_are_all_meant() {
        assert_eq!(places("agent:proxy:proxy", 3, "proxy"), [1, 2]);
        assert_eq!(places("agent", 1, "proxy"), [] as [usize; 0]);
        assert_eq!(places("longshore.socket:longshore.socket", 2, "proxy"), [0, 1], "systemd's own names");
        assert_eq!(places("", 1, "agent"), [0]);
        assert_eq!(places("proxy", 0, "proxy"), [] as [usize; 0]);
    }
}
