//! Which hosts are to have a certificate by ACME, and which cannot. Pure.

use std::fmt;
use std::net::IpAddr;

use crate::proxy::certificate::Facts;

/// The hosts of all apps, told apart. Those that a configured certificate covers are in neither.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// For each of these a certificate is ordered.
    pub wanted: Vec<String>,
    /// For these none can be.
    pub skipped: Vec<(String, Skipped)>,
}

/// Why no certificate is ordered for a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// HTTP-01 proves a whole name alone (RFC 8555, section 8.3), and so does TLS-ALPN-01 (RFC 8737, section 3).
    Wildcard,
    /// `dns` identifiers are no addresses.
    Address,
    /// No authority knows it.
    NoDot,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wildcard => {
                "a wildcard takes the challenge dns-01, which longshore does not know; name its files in \
                 proxy.certificates, or write every host by its whole name"
            }
            Self::Address => "it is an address and not a name",
            Self::NoDot => "a name without a dot is known on this network alone",
        })
    }
}

/// Tells the hosts apart. `configured`: the certificates that a person has put there.
pub fn tell_apart<'a>(hosts: impl Iterator<Item = &'a str>, configured: &[Facts]) -> Names {
    let mut names = Names::default();
    for host in hosts.filter(|host| !configured.iter().any(|certificate| certificate.cover(host))) {
        let why = match host {
            _ if host.starts_with("*.") => Skipped::Wildcard,
            _ if host.parse::<IpAddr>().is_ok() => Skipped::Address,
            _ if !host.contains('.') => Skipped::NoDot,
            _ if names.wanted.iter().any(|wanted| wanted == host) => continue,
            _ => {
                names.wanted.push(host.to_owned());
                continue;
            }
        };
        if !names.skipped.iter().any(|(skipped, _)| skipped == host) {
            names.skipped.push((host.to_owned(), why));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_no_file_covers_is_ordered_as_far_as_it_can_be() {
        let names = ["own.example", "*.wild.example"].map(str::to_owned).to_vec();
        let configured = [Facts { names, not_before: Timestamp::MIN, not_after: Timestamp::MAX }];
        let hosts = [
            "own.example",
            "www.own.example",
            "a.wild.example",
            "a.b.wild.example",
            "*.wild.example",
            "*.other.example",
            "*.other.example",
            "www.own.example",
            "127.0.0.1",
            "localhost",
        ];
        let names = tell_apart(hosts.into_iter(), &configured);
        assert_eq!(names.wanted, ["www.own.example", "a.b.wild.example"]);
        let skipped: Vec<_> = names.skipped.iter().map(|(host, why)| (host.as_str(), *why)).collect();
        assert_eq!(
            skipped,
            [("*.other.example", Skipped::Wildcard), ("127.0.0.1", Skipped::Address), ("localhost", Skipped::NoDot)]
        );
    }
}
