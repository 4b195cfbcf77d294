//! Who is connected, and how often: no client may take the places of all others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::instance::lock;

/// How often refusals are spoken of.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Connections of clients, counted by where they come from.
#[derive(Debug, Default)]
pub struct Clients {
    connections: Mutex<HashMap<IpAddr, usize>>,
    told: Mutex<Option<Instant>>,
}

/// The client has as many connections as it may.
#[derive(Debug)]
pub struct Refused {
    /// That this happens was not said for a while.
    pub is_news: bool,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub struct Place {
    from: IpAddr,
    clients: Arc<Clients>,
}

impl Clients {
    /// Counts one in, unless the client has `most` already.
    pub fn admit(self: &Arc<Self>, peer: IpAddr, most: usize) -> Result<Place, Refused> {
        let from = network_of(peer);
        let mut connections = lock(&self.connections);
        let count = connections.entry(from).or_default();
        if *count < most {
            *count += 1;
            return Ok(Place { from, clients: Arc::clone(self) });
        }
        drop(connections);
        let mut told = lock(&self.told);
        let is_news = told.is_none_or(|told| told.elapsed() >= TOLD_EVERY);
        if is_news {
            *told = Some(Instant::now());
        }
        Err(Refused { is_news })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = lock(&self.clients.connections);
        if let Some(count) = connections.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.from);
            }
        }
    }
}

/// An IPv6 client has a whole /64 to itself (RFC 6177).
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_as_many_places_as_it_may_and_gets_them_back() {
        let clients = Arc::<Clients>::default();
        let admit = |peer: &str| clients.admit(peer.parse().unwrap(), 2);
        let first = admit("203.0.113.7").unwrap();
        let _mapped = admit("::ffff:203.0.113.7").unwrap();
        assert!(admit("203.0.113.7").unwrap_err().is_news);
        assert!(!admit("203.0.113.7").unwrap_err().is_news, "once in a while is enough");
        drop(first);
        let _second = admit("203.0.113.7").unwrap();
        let (_one, _two) = (admit("2001:db8::1").unwrap(), admit("2001:db8::ffff:2").unwrap());
        assert!(admit("2001:db8::3").is_err(), "the same network");
        assert!(admit("2001:db8:0:1::1").is_ok(), "another one");
        assert_eq!(lock(&clients.connections).len(), 2, "who has left is forgotten");
    }
}
