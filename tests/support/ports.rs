//! Free TCP ports for programs that must be told one before they start.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Below the range from which Linux takes the local ports of outgoing connections (32768 and up): otherwise a
/// connection of the load generator could occupy the port between a stop and the next start.
const RANGE: std::ops::Range<u16> = 20_000..30_000;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nothing listens on, not given out before in this process.
pub fn free_port() -> u16 {
    let mut taken = TAKEN.lock().unwrap();
    let taken = taken.get_or_insert_default();
    for _ in 0..1000 {
        let mut random = [0; 2];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        let port = RANGE.start + u16::from_ne_bytes(random) % (RANGE.end - RANGE.start);
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() && taken.insert(port) {
            return port;
        }
    }
    panic!("no free port among {RANGE:?} in 1000 attempts");
}
