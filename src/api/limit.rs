//! How many unknown tokens one peer may present.
//!
//! Valid tokens are never refused: they cannot be guessed (256 random bits), and behind a reverse proxy everybody
//! shares one peer address, so that one broken script must not lock the others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures per peer and window.
const ALLOWED: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Peers remembered; the oldest window makes room for a new one.
const PEERS: usize = 4096;

/// Counts failed authentications by socket peer.
#[derive(Default)]
pub(super) struct FailureLimit {
    peers: Mutex<HashMap<IpAddr, Window>>,
}

struct Window {
    began: Instant,
    failures: u32,
}

impl FailureLimit {
    /// Counts a failure; `Err` with the time to wait when it was one too many.
    pub fn count(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = network(peer);
        if !peers.contains_key(&peer) && peers.len() >= PEERS {
            peers.retain(|_, window| now.duration_since(window.began) < WINDOW);
            if peers.len() >= PEERS
                && let Some(oldest) = peers.iter().min_by_key(|(_, window)| window.began).map(|(peer, _)| *peer)
            {
                peers.remove(&oldest);
            }
        }
        let window = peers.entry(peer).or_insert(Window { began: now, failures: 0 });
        if now.duration_since(window.began) >= WINDOW {
            *window = Window { began: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        if window.failures > ALLOWED {
            return Err(WINDOW.saturating_sub(now.duration_since(window.began)));
        }
        Ok(())
    }
}

/// One IPv6 customer has a /64 at least: its addresses count as one.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_failure_of_a_minute_has_to_wait() {
        let limit = FailureLimit::default();
        let (peer, start) = ("192.0.2.1".parse().unwrap(), Instant::now());
        for _ in 0..10 {
            assert_eq!(limit.count(peer, start), Ok(()));
        }
        assert_eq!(limit.count(peer, start + Duration::from_secs(20)), Err(Duration::from_secs(40)));
        assert_eq!(limit.count("192.0.2.2".parse().unwrap(), start), Ok(()), "another peer has its own count");
        assert_eq!(limit.count(peer, start + WINDOW), Ok(()), "a new minute starts from zero");
    }

    #[test]
    fn addresses_of_one_network_count_as_one_and_memory_is_bounded() {
        let limit = FailureLimit::default();
        let now = Instant::now();
        let refused = (0..11u16)
            .filter(|n| limit.count(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, *n).into(), now).is_err())
            .count();
        assert_eq!(refused, 1);
        for n in 0..2 * PEERS as u32 {
            let _ = limit.count(IpAddr::V4(n.into()), now);
        }
        assert!(limit.peers.lock().unwrap().len() <= PEERS);
    }
}
