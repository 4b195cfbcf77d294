//! Certificates with their keys, read from files, and found by the name that a client asks for.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_rustls::rustls::server::ProducesTickets;

use super::certificate::{Certificate, is_open_to_all};
use crate::config::CertificateFiles;

/// A file's identity and age: another one is to be read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let place = (metadata.dev(), metadata.ino());
        Self { place, size: metadata.size(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// What is known of one pair of files.
#[derive(Debug, Clone)]
struct Known {
    stamps: [Option<Stamp>; 2],
    /// The last one that could be read.
    certificate: Option<Arc<Certificate>>,
}

/// All certificates at one moment.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    files: HashMap<CertificateFiles, Known>,
    /// Those with a name that stands for itself, in the order of the configuration.
    exact: HashMap<String, Vec<Arc<Certificate>>>,
    /// By what stands behind `*.`, in the same order.
    wild: HashMap<String, Vec<Arc<Certificate>>>,
}

impl Certificates {
    /// Reads what is new or has changed since `self`; `None`: nothing has. A pair that cannot be read leaves the one it
    /// gave before in use. What there is to say is said in the log. Blocks.
    pub fn renewed(&self, wanted: &[CertificateFiles], tickets: &Arc<dyn ProducesTickets>) -> Option<Self> {
        let mut files = HashMap::new();
        let mut changed = false;
        for pair in wanted {
            let stamps = [&pair.cert, &pair.key].map(|path| fs::metadata(path).ok().map(|file| Stamp::of(&file)));
            let known = match self.files.get(pair) {
                Some(known) if known.stamps == stamps => known.clone(),
                before => {
                    changed = true;
                    let before = before.and_then(|known| known.certificate.clone());
                    Known { stamps, certificate: read_or_keep(pair, before, tickets) }
                }
            };
            files.insert(pair.clone(), known);
        }
        if !changed && files.len() == self.files.len() {
            return None;
        }
        let mut all = Self { files, ..Self::default() };
        for certificate in wanted.iter().filter_map(|pair| all.files.get(pair)?.certificate.clone()) {
            for name in &certificate.facts.names {
                let (map, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut all.wild, parent),
                    None => (&mut all.exact, name.as_str()),
                };
                map.entry(key.to_owned()).or_default().push(Arc::clone(&certificate));
            }
        }
        Some(all)
    }

    /// Those for a host in lower case, the first choice first (RFC 6125 §6.4.3: a wildcard stands for one label).
    pub fn of(&self, host: &str) -> impl Iterator<Item = &Arc<Certificate>> + Clone {
        let wild = host.split_once('.').and_then(|(_, parent)| self.wild.get(parent));
        self.exact.get(host).into_iter().chain(wild).flatten()
    }
}

/// The first that clients take now. Where they would refuse all, still the first: it says for whom it was, and since when not.
pub fn best<'c>(
    mut certificates: impl Iterator<Item = &'c Arc<Certificate>> + Clone,
    now: Timestamp,
) -> Option<&'c Arc<Certificate>> {
    certificates.clone().find(|certificate| certificate.facts.is_valid(now)).or_else(|| certificates.next())
}

fn read_or_keep(
    pair: &CertificateFiles,
    before: Option<Arc<Certificate>>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Option<Arc<Certificate>> {
    match Certificate::read(pair, tickets) {
        Ok(certificate) => {
            let (names, not_after) = (&certificate.facts.names, certificate.facts.not_after);
            tracing::info!(?names, %not_after, file = %pair.cert.display(), "certificate in use");
            if not_after < Timestamp::now() {
                tracing::warn!(?names, %not_after, "this certificate has expired: clients refuse it");
            }
            if is_open_to_all(&pair.key) {
                let key = pair.key.display();
                tracing::warn!(%key, "every user of this machine may read this private key: chmod o-rwx {key}");
            }
            Some(Arc::new(certificate))
        }
        Err(error) => {
            let kept = before.is_some();
            tracing::error!(kept, "{error}{}", if kept { "; the one that was read before stays in use" } else { "" });
            before
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tokio_rustls::rustls::crypto::ring;

    use super::*;

    fn tickets() -> Arc<dyn ProducesTickets> {
        ring::Ticketer::new().unwrap()
    }

    fn write(dir: &Path, name: &str, hosts: &[&str]) -> CertificateFiles {
        let made =
            rcgen::generate_simple_self_signed(hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>()).unwrap();
        write_pair(dir, name, &made.cert.pem(), &made.signing_key.serialize_pem())
    }

    fn write_pair(dir: &Path, name: &str, cert: &str, key: &str) -> CertificateFiles {
        let files = CertificateFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        // Replaced as by a rename, so that the change is seen within one tick of the clock.
        for (path, text) in [(&files.cert, cert), (&files.key, key)] {
            crate::data_dir::write_whole(path, text.as_bytes()).unwrap();
        }
        files
    }

    #[test]
    fn a_name_finds_its_certificate_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let one = write(dir.path(), "one", &["Shop.test", "www.shop.test"]);
        let wild = write(dir.path(), "wild", &["*.shop.test", "shop.test"]);
        let all = Certificates::default().renewed(&[one, wild], &tickets()).unwrap();
        let names = |host: &str| all.of(host).next().map(|found| found.facts.names[0].as_str());
        for (host, expected) in [
            ("shop.test", Some("shop.test")),
            ("www.shop.test", Some("shop.test")),
            ("api.shop.test", Some("*.shop.test")),
            ("a.api.shop.test", None),
            ("test", None),
            ("else.test", None),
        ] {
            assert_eq!(names(host), expected, "{host}");
        }
    }

    #[test]
    fn of_several_for_a_host_the_first_that_is_valid_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let until = |name: &str, host: &str, year: i32| {
            let (params, key) = (CertificateParams::new([host.to_owned()]), KeyPair::generate().unwrap());
            let mut params = params.unwrap();
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
            write_pair(dir.path(), name, &params.self_signed(&key).unwrap().pem(), &key.serialize_pem())
        };
        let files = [
            until("over", "a.test", 2026),
            until("long", "a.test", 2028),
            until("longer", "a.test", 2030),
            until("wild", "*.test", 2032),
        ];
        let all = Certificates::default().renewed(&files, &tickets()).unwrap();
        let shown = |host: &str, now: &str| best(all.of(host), now.parse().unwrap()).map(|found| found.facts.not_after);
        let year =
            |year: i16| Some(jiff::civil::date(year, 1, 1).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp());
        for (host, now, expected) in [
            ("a.test", "2025-06-01T00:00:00Z", year(2026)),
            ("a.test", "2026-01-01T00:00:00Z", year(2028)),
            ("a.test", "2029-06-01T00:00:00Z", year(2030)),
            ("a.test", "2031-06-01T00:00:00Z", year(2032)),
            ("a.test", "2033-06-01T00:00:00Z", year(2026)),
            ("a.test", "2019-06-01T00:00:00Z", year(2026)),
            ("b.test", "2033-06-01T00:00:00Z", year(2032)),
            ("b.a.test", "2025-06-01T00:00:00Z", None),
        ] {
            assert_eq!(shown(host, now), expected, "{host} {now}");
        }
    }

    #[test]
    fn a_changed_file_is_read_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (tickets, files) = (tickets(), [write(dir.path(), "one", &["a.test"])]);
        let first = Certificates::default().renewed(&files, &tickets).unwrap();
        assert!(first.renewed(&files, &tickets).is_none(), "nothing has changed");
        let twice = [files[0].clone(), files[0].clone()];
        assert!(first.renewed(&twice, &tickets).is_none(), "named twice it is the same");
        fs::write(&files[0].key, "no key").unwrap();
        let kept = first.renewed(&files, &tickets).unwrap();
        assert!(kept.of("a.test").next().is_some());
        assert!(kept.renewed(&files, &tickets).is_none(), "it is said once");
        write(dir.path(), "one", &["b.test"]);
        let second = kept.renewed(&files, &tickets).unwrap();
        assert!(second.of("b.test").next().is_some() && second.of("a.test").next().is_none());
        assert!(second.renewed(&[], &tickets).unwrap().of("b.test").next().is_none());
    }

    #[test]
    fn what_is_wrong_is_said_and_a_key_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (write(dir.path(), "one", &["a.test"]), write(dir.path(), "two", &["b.test"]));
        let error = |cert: &Path, key: &Path| {
            let files = CertificateFiles { cert: cert.to_owned(), key: key.to_owned() };
            Certificate::read(&files, &tickets()).unwrap_err().to_string()
        };
        assert!(error(&dir.path().join("none"), &one.key).contains("cannot read"));
        assert!(error(&one.key, &one.key).contains("holds no certificate"));
        assert!(error(&one.cert, &one.cert).contains("holds no private key"));
        assert!(error(&one.cert, &two.key).contains("cannot be served with the key"));
        let shown = format!("{:?}", Certificates::default().renewed(std::slice::from_ref(&one), &tickets()));
        let key = fs::read_to_string(&one.key).unwrap();
        assert!(shown.contains("a.test") && !shown.contains(key.lines().nth(1).unwrap()));
    }
}
