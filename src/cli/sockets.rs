//! Sockets that a service manager has opened for this process (systemd's socket activation: `LISTEN_FDS`, `LISTEN_PID`
//! and `LISTEN_FDNAMES`).

use std::net::TcpListener;

use anyhow::{Context, Result};
use listenfd::ListenFd;

/// Those with each of these names (`FileDescriptorName=`); where no socket has a name of ours, all are meant by the first
/// one. To be called once and before there are threads, as it takes the variables out of the environment.
pub fn inherited<const N: usize>(wanted: [&str; N]) -> Result<[Vec<TcpListener>; N]> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let mut listeners = [const { Vec::new() }; N];
    for (turn, name) in wanted.iter().enumerate() {
        for place in places(&names, sockets.len(), name, turn == 0) {
            let listener = sockets.take_tcp_listener(place);
            listeners[turn].extend(listener.with_context(|| format!("socket {place} of LISTEN_FDS cannot be used"))?);
        }
    }
    Ok(listeners)
}

/// The names that units give to our sockets.
const OURS: [&str; 3] = ["agent", "proxy", "proxy-https"];

/// Which of `count` sockets are meant by `wanted`, which takes those without a name of ours if it `takes_unnamed`.
fn places(names: &str, count: usize, wanted: &str, takes_unnamed: bool) -> Vec<usize> {
    let names: Vec<&str> = names.split(':').collect();
    let named = names.iter().take(count).any(|name| OURS.contains(name));
    (0..count).filter(|&place| if named { names.get(place) == Some(&wanted) } else { takes_unnamed }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_their_names_or_are_all_meant() {
        assert_eq!(places("agent:proxy:proxy", 3, "proxy", true), [1, 2]);
        assert_eq!(places("proxy:proxy-https", 2, "proxy-https", false), [1]);
        assert_eq!(places("s.socket", 1, "proxy-https", false), [] as [usize; 0]);
        assert_eq!(places("agent", 1, "proxy", true), [] as [usize; 0]);
        assert_eq!(places("longshore.socket:longshore.socket", 2, "proxy", true), [0, 1], "systemd's own names");
        assert_eq!(places("", 1, "agent", true), [0]);
        assert_eq!(places("proxy", 0, "proxy", true), [] as [usize; 0]);
    }
}
