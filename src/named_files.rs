//! What is wrong with the files that `[proxy]` names: certificates with their keys, roots, the access log. They are read by
//! the code that uses them later, and nothing is made or changed. Blocks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use nix::unistd::{AccessFlags, access};

use crate::acme;
use crate::config::{CertificateFiles, Config, Place, Problem};
use crate::proxy::certificate::{CertificateError, Facts, KEY_KINDS, Unusable, examine, is_open_to_all};
use crate::text::one_line;

/// A certificate that ends sooner deserves a word, unless its whole life is so short that a third of it is less.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Names that are shown of a certificate, and hosts that are shown without one.
const SHOWN: usize = 5;

/// Something wrong with a file, and the key that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Such as `proxy.certificates[0].cert`; empty where none does.
    pub key: String,
    /// The same with its place and how to mend it.
    pub problem: Problem,
}

/// Certificates that cannot be used as they are now, or not for long, in the order of the configuration. A proxy that has
/// read such a pair before it was so goes on with what it read.
pub fn unusable(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut found = Findings { config, all: Vec::new() };
    found.readable(now);
    found.all
}

/// Everything, in no particular order.
pub fn warnings(config: &Config, now: Timestamp) -> Vec<Problem> {
    let mut found = Findings { config, all: Vec::new() };
    let readable = found.readable(now);
    found.certificates(&readable);
    if let Some(path) = config.proxy.acme.as_ref().and_then(|acme| acme.ca_file.as_ref())
        && let Err(why) = acme::examine_roots(path)
    {
        let hint =
            "name a PEM file with the roots of the certificate authority; without ca_file the system's are believed";
        found.add("proxy.acme.ca_file", format!("{} cannot be used: {why}", path.display()), hint);
    }
    if let Some(path) = config.proxy.access_log.as_ref().and_then(|log| log.path.as_ref())
        && let Err(error) = appends_to(path)
    {
        let hint = hint_for(&error, path);
        found.add("proxy.access_log.path", format!("cannot write {}: {error}", path.display()), hint);
    }
    found.all.into_iter().map(|finding| finding.problem).collect()
}

struct Findings<'c> {
    config: &'c Config,
    all: Vec<Finding>,
}

impl Findings<'_> {
    /// At the place where the key is written.
    fn add(&mut self, key: &str, what: impl std::fmt::Display, hint: impl Into<String>) {
        let Place { line, column } = self.config.files.get(key).copied().unwrap_or(Place { line: 0, column: 0 });
        let problem = Problem { line, column, what: format!("{key}: {what}"), hint: Some(hint.into()) };
        self.all.push(Finding { key: key.to_owned(), problem });
    }

    /// What each certificate says of itself, where it and its key can be used; why not, or for how long, is added.
    fn readable(&mut self, now: Timestamp) -> Vec<Option<Facts>> {
        let pairs = &self.config.proxy.certificates;
        let examined: Vec<_> = pairs.iter().map(examine).collect();
        let valid: Vec<Facts> = examined.iter().flatten().filter(|facts| facts.is_valid(now)).cloned().collect();
        let mut readable = Vec::new();
        for (index, (files, examined)) in pairs.iter().zip(examined).enumerate() {
            let [cert, key] = keys(index);
            match examined {
                Ok(facts) => {
                    self.time(&cert, files, &facts, &valid, now);
                    readable.push(Some(facts));
                }
                Err(errors) => {
                    readable.push(None);
                    let mut said = Vec::new();
                    for error in errors {
                        let what = error.to_string();
                        // Certificate and key may be in one file that is not there.
                        if !said.contains(&what) {
                            let place = if is_about_key(&error, files) { &key } else { &cert };
                            self.add(place, &what, remedy(&error));
                            said.push(what);
                        }
                    }
                }
            }
        }
        readable
    }

    /// Whether they are what the apps need, and their keys are kept.
    fn certificates(&mut self, readable: &[Option<Facts>]) {
        let proxy = &self.config.proxy;
        let hosts: Vec<&str> = self.config.apps.values().flat_map(|app| app.hosts()).collect();
        for (index, (files, facts)) in proxy.certificates.iter().zip(readable).enumerate() {
            let [cert, key] = keys(index);
            let unused = facts.as_ref().filter(|facts| !hosts.iter().any(|host| serves(facts, host)));
            if let Some(facts) = unused.filter(|_| !hosts.is_empty()) {
                let what = format!(
                    "the certificate in {} is for {}, and no app has such a domain: it is never used",
                    files.cert.display(),
                    list(facts.names.iter().map(String::as_str))
                );
                self.add(&cert, what, "name the one for the apps' domains, or remove it");
            }
            if is_open_to_all(&files.key) {
                let path = files.key.display();
                self.add(&key, format!("every user of this machine may read {path}"), format!("chmod o-rwx {path}"));
            }
        }
        // A file that cannot be read may be the one for the others.
        let known: Option<Vec<Facts>> = readable.iter().cloned().collect();
        if let Some(known) = known.filter(|_| proxy.https.is_some() && proxy.acme.is_none() && !proxy.self_signed) {
            self.uncovered(&hosts, &known);
        }
    }

    /// Whether it is valid now and for a while; where it is not, one of the `valid` ones may be shown in its place.
    fn time(&mut self, key: &str, files: &CertificateFiles, facts: &Facts, valid: &[Facts], now: Timestamp) {
        let path = files.cert.display();
        let Facts { not_before, not_after, .. } = *facts;
        let soon = SOON.min(not_after.duration_since(not_before) / 3);
        let renew =
            "renew it, and have the program that renews it looked at; the proxy reads the file again when it changes";
        if now < not_before {
            let what = format!("the certificate in {path} is not good before {}", clock(not_before));
            self.add(key, what, "wait, or see whether this machine's clock is right");
        } else if not_after <= now && facts.names.iter().all(|name| valid.iter().any(|other| other.cover(name))) {
            let what = format!("the certificate in {path} has expired, {}: another one is shown", clock(not_after));
            self.add(key, what, "remove it, or renew it");
        } else if not_after <= now {
            self.add(
                key,
                format!("the certificate in {path} has expired, {}: clients refuse it", clock(not_after)),
                renew,
            );
        } else if not_after.duration_since(now) < soon {
            self.add(key, format!("the certificate in {path} expires soon, {}", clock(not_after)), renew);
        }
    }

    fn uncovered(&mut self, hosts: &[&str], certificates: &[Facts]) {
        let mut without: Vec<&str> = Vec::new();
        for host in hosts.iter().filter(|host| !certificates.iter().any(|certificate| certificate.cover(host))) {
            if !without.contains(host) {
                without.push(host);
            }
        }
        if !without.is_empty() {
            let hint = "name a file for them in proxy.certificates, or have them ordered: acme = { email = \"ops@example.com\" } in \
                        [proxy]; what is for plain HTTP alone needs none";
            let what = format!("there is no certificate for {}: by https they are refused", list(without.into_iter()));
            let problem = Problem { line: 0, column: 0, what, hint: Some(hint.to_owned()) };
            self.all.push(Finding { key: String::new(), problem });
        }
    }
}

fn keys(index: usize) -> [String; 2] {
    ["cert", "key"].map(|part| format!("proxy.certificates[{index}].{part}"))
}

/// Whether a certificate is ever shown for a configured host, which may be a wildcard that it has one name of.
fn serves(certificate: &Facts, host: &str) -> bool {
    let wild = host.strip_prefix("*.");
    let is_below = |name: &String| wild.is_some() && name.split_once('.').map(|(_, parent)| parent) == wild;
    certificate.cover(host) || certificate.names.iter().any(is_below)
}

/// Whether it is the key's file that is wrong, or both.
fn is_about_key(error: &CertificateError, files: &CertificateFiles) -> bool {
    match error {
        CertificateError::File { path, .. } => *path != files.cert,
        CertificateError::Pem { what, .. } => *what == "private key",
        CertificateError::Unusable { .. } => false,
        CertificateError::KeyKind { .. } | CertificateError::Mismatch { .. } => true,
    }
}

fn remedy(error: &CertificateError) -> String {
    match error {
        CertificateError::File { path, error } => hint_for(error, path),
        CertificateError::Pem { path, what: "private key", .. } => {
            let path = path.display();
            format!(
                "it must hold -----BEGIN PRIVATE KEY-----, without a passphrase: openssl pkey -in {path} -out NEW takes it off"
            )
        }
        CertificateError::Pem { path, .. } => {
            let path = path.display();
            format!(
                "it must hold -----BEGIN CERTIFICATE-----, the host's own first; one in DER is converted by\n\
                 openssl x509 -inform der -in {path} -out NEW"
            )
        }
        CertificateError::Unusable { path, why: Unusable::Authority } => {
            let path = path.display();
            format!(
                "the first certificate in {path} must be the host's own, with the hosts in its subjectAltName; those of \
                 authorities follow it"
            )
        }
        CertificateError::Unusable { why: Unusable::Nameless, .. } => {
            "have one made that names its hosts in subjectAltName: that is where clients look".to_owned()
        }
        CertificateError::Unusable { why: Unusable::Malformed(_), .. } => "have another one made".to_owned(),
        CertificateError::KeyKind { .. } => {
            format!("have a certificate made with a key of another kind: {KEY_KINDS} can be used")
        }
        CertificateError::Mismatch { files, .. } => format!(
            "name the key that the certificate was made with; these two print the same for it:\n\
             openssl x509 -noout -pubkey -in {}\n\
             openssl pkey -pubout -in {}",
            files.cert.display(),
            files.key.display()
        ),
    }
}

fn hint_for(error: &io::Error, path: &Path) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "name a file that is there; paths are relative to the directory of the configuration".to_owned()
        }
        io::ErrorKind::PermissionDenied => format!(
            "run check as the user that longshore runs as; where that is who runs it now, let it have the file: chown USER {}",
            path.display()
        ),
        _ => "name a regular file".to_owned(),
    }
}

/// Whether lines could be added to the file, or it could be made with the first line: its directory is made where it is missing.
fn appends_to(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // To open a pipe is to wait for its reader.
        Ok(found) if found.file_type().is_fifo() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => can_be_made(path),
        _ => File::options().append(true).open(path).map(drop),
    }
}

/// Whether whoever asks may make this path, by the nearest directory above it that is there.
fn can_be_made(path: &Path) -> io::Result<()> {
    // A link that leads nowhere is in the way too.
    let nearest = path.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    if !nearest.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no directory", nearest.display())));
    }
    access(nearest, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("nothing can be made in {}: {error}", nearest.display()))
    })
}

/// `a.test, b.test and 3 more`
fn list<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<String> = names.take(SHOWN).map(one_line).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;
    use crate::config::parse_in;

    /// A certificate good until that day, with its key.
    fn made(dir: &Path, name: &str, host: &str, (year, month, day): (i32, u8, u8)) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(year, month, day));
        let files = CertificateFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        write(&files.cert, &params.self_signed(&key).unwrap().pem(), 0o644);
        write(&files.key, &key.serialize_pem(), 0o600);
        files
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// What is said on 2026-06-15 of certificates by these names, and of more lines in `[proxy]`.
    fn said(dir: &Path, pairs: &[(&str, &str)], more: &str, domains: &str) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pairs: Vec<String> =
            pairs.iter().map(|(cert, key)| format!("  {{ cert = \"{cert}\", key = \"{key}\" }},\n")).collect();
        let text = format!(
            "[proxy]\nhttps = \"0.0.0.0:443\"\ncertificates = [\n{}]\n{more}\n\
             [apps.shop]\nrepo = \"https://h/x\"\nport = 8000\ndomains = [{domains}]\n",
            pairs.concat()
        );
        let config = parse_in(&text, "deploy.toml", dir, &|_: &str| None).unwrap();
        let now = "2026-06-15T00:00:00Z".parse().unwrap();
        let mut found = warnings(&config, now);
        found.sort_by_key(|warning| (warning.line == 0, warning.line, warning.column));
        let lines: Vec<String> = found.iter().map(|warning| warning.render("deploy.toml", "warning: ")).collect();
        lines.join("\n").replace(&dir.display().to_string(), "DIR")
    }

    #[test]
    fn files_that_are_as_they_should_be_are_worth_no_word() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), "shop", "shop.test", (2026, 6, 30));
        made(dir.path(), "wild", "*.wild.test", (2027, 1, 1));
        fs::write(dir.path().join("access.log"), "").unwrap();
        let pairs = [("shop.pem", "shop.key"), ("wild.pem", "wild.key")];
        let more = "access_log = { path = \"access.log\" }";
        assert_eq!(said(dir.path(), &pairs, more, r#""shop.test", "*.wild.test", "a.wild.test""#), "");
        // What is ordered, or made here, is not missing.
        let acme = "acme = { email = \"ops@example.com\", ca_file = \"shop.pem\" }";
        assert_eq!(said(dir.path(), &[], acme, r#""else.test""#), "");
        assert_eq!(said(dir.path(), &[], "self_signed = true", r#""else.test""#), "");
    }

    #[test]
    fn each_thing_that_is_wrong_is_said_at_its_place_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), "soon", "shop.test", (2026, 6, 28));
        made(dir.path(), "over", "shop.test", (2026, 6, 1));
        made(dir.path(), "other", "other.test", (2027, 1, 1));
        fs::set_permissions(dir.path().join("soon.key"), fs::Permissions::from_mode(0o644)).unwrap();
        write(&dir.path().join("text"), "no certificate", 0o600);
        fs::create_dir(dir.path().join("dir")).unwrap();
        let pairs = [
            ("soon.pem", "soon.key"),
            ("over.pem", "over.key"),
            ("other.pem", "other.key"),
            ("none.pem", "none.pem"),
            ("text", "text"),
            ("soon.pem", "over.key"),
            ("dir", "over.key"),
        ];
        let more = "access_log = { path = \"dir\" }\nacme = { email = \"ops@example.com\", ca_file = \"text\" }";
        insta::assert_snapshot!(said(dir.path(), &pairs, more, r#""shop.test""#), @r#"
        deploy.toml:4:12: warning: proxy.certificates[0].cert: the certificate in DIR/soon.pem expires soon, 2026-06-28 00:00:00 UTC
            renew it, and have the program that renews it looked at; the proxy reads the file again when it changes
        deploy.toml:4:30: warning: proxy.certificates[0].key: every user of this machine may read DIR/soon.key
            chmod o-rwx DIR/soon.key
        deploy.toml:5:12: warning: proxy.certificates[1].cert: the certificate in DIR/over.pem has expired, 2026-06-01 00:00:00 UTC: another one is shown
            remove it, or renew it
        deploy.toml:6:12: warning: proxy.certificates[2].cert: the certificate in DIR/other.pem is for other.test, and no app has such a domain: it is never used
            name the one for the apps' domains, or remove it
        deploy.toml:7:12: warning: proxy.certificates[3].cert: cannot read DIR/none.pem: No such file or directory (os error 2)
            name a file that is there; paths are relative to the directory of the configuration
        deploy.toml:8:12: warning: proxy.certificates[4].cert: DIR/text holds no certificate in PEM form: no items found
            it must hold -----BEGIN CERTIFICATE-----, the host's own first; one in DER is converted by
            openssl x509 -inform der -in DIR/text -out NEW
        deploy.toml:8:26: warning: proxy.certificates[4].key: DIR/text holds no private key in PEM form: no items found
            it must hold -----BEGIN PRIVATE KEY-----, without a passphrase: openssl pkey -in DIR/text -out NEW takes it off
        deploy.toml:9:30: warning: proxy.certificates[5].key: the certificate in DIR/soon.pem cannot be served with the key in DIR/over.key: keys may not be consistent: KeyMismatch
            name the key that the certificate was made with; these two print the same for it:
            openssl x509 -noout -pubkey -in DIR/soon.pem
            openssl pkey -pubout -in DIR/over.key
        deploy.toml:10:12: warning: proxy.certificates[6].cert: cannot read DIR/dir: Is a directory (os error 21)
            name a regular file
        deploy.toml:12:23: warning: proxy.access_log.path: cannot write DIR/dir: Is a directory (os error 21)
            name a regular file
        deploy.toml:13:47: warning: proxy.acme.ca_file: DIR/text cannot be used: it holds no certificate in PEM form
            name a PEM file with the roots of the certificate authority; without ca_file the system's are believed
        "#);
    }

    /// Of a kind that nothing here signs with.
    const P521: &str = "\
-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIA46N6XtW45bUpNRIw
n0h6SCqGXG+BuNkRVLV+4n00QVPfWxDnDvbjIhkpSt7MQ0pjmekY3AYHrVQL/ZpN
OiP4f8WhgYkDgYYABADbycU6kyQBhqQgrZ0OZf9QTcAXxE7GudKYTGbLIBzGaj5H
qM7nunYQ/mWWTGIVDW+USto4s0+FHTyLyCVOgGAKOgFd3UKYSDB5N6ZcSzeoF6YE
3PhQLYBG5NVeoUxEvpZgNS+pF/To9fA652fYdNeD33GU56qA5l8zOaf/zCcUsSFC
kw==
-----END PRIVATE KEY-----
";

    #[test]
    fn a_key_of_another_kind_and_a_chain_in_the_wrong_order_are_told_as_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), "shop", "shop.test", (2027, 1, 1));
        write(&dir.path().join("p521.key"), P521, 0o600);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let own = fs::read_to_string(dir.path().join("shop.pem")).unwrap();
        write(&dir.path().join("reversed.pem"), &(authority.clone() + &own), 0o644);
        write(&dir.path().join("chain.pem"), &(own + &authority), 0o644);
        let pairs = [("shop.pem", "p521.key"), ("reversed.pem", "shop.key"), ("chain.pem", "shop.key")];
        insta::assert_snapshot!(said(dir.path(), &pairs, "", r#""shop.test""#), @r"
        deploy.toml:4:30: warning: proxy.certificates[0].key: the private key in DIR/p521.key is damaged, or of a kind that is not supported
            have a certificate made with a key of another kind: ECDSA with P-256 or P-384, RSA with 2048 to 4096 bits, and Ed25519 can be used
        deploy.toml:5:12: warning: proxy.certificates[1].cert: the certificate in DIR/reversed.pem names no host (subjectAltName) and seems to be an authority's (basicConstraints CA)
            the first certificate in DIR/reversed.pem must be the host's own, with the hosts in its subjectAltName; those of authorities follow it
        ");
    }

    #[test]
    fn an_access_log_that_cannot_be_made_is_told_and_one_in_a_new_directory_is_not() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let log = |path: &str| {
            let more = format!("access_log = {{ path = \"{path}\" }}\nself_signed = true");
            said(dir.path(), &[], &more, r#""shop.test""#)
        };
        assert_eq!(log("new/below/access.log"), "");
        let said = log("link/access.log");
        assert!(said.contains("cannot write DIR/link/access.log: DIR/link is no directory"), "{said}");
        // Root may write everywhere.
        if !nix::unistd::geteuid().is_root() {
            let said = log("/etc/new/access.log");
            assert!(said.contains("cannot write /etc/new/access.log: nothing can be made in /etc: "), "{said}");
        }
    }

    #[test]
    fn hosts_that_nothing_covers_are_named_unless_a_file_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), "shop", "shop.test", (2027, 1, 1));
        let hosts = r#""shop.test", "a.test", "b.test", "c.test", "d.test", "*.shop.test", "e.test""#;
        insta::assert_snapshot!(said(dir.path(), &[("shop.pem", "shop.key")], "", hosts), @r#"
        deploy.toml: warning: there is no certificate for a.test, b.test, c.test, d.test, *.shop.test and 1 more: by https they are refused
            name a file for them in proxy.certificates, or have them ordered: acme = { email = "ops@example.com" } in [proxy]; what is for plain HTTP alone needs none
        "#);
        assert!(!said(dir.path(), &[("none.pem", "none.pem")], "", hosts).contains("refused"));
    }

    #[test]
    fn a_certificate_of_a_few_days_is_not_always_about_to_end() {
        let facts = |from: &str, to: &str| Facts {
            names: vec!["shop.test".to_owned()],
            not_before: from.parse().unwrap(),
            not_after: to.parse().unwrap(),
        };
        let short = facts("2026-06-10T00:00:00Z", "2026-06-16T00:00:00Z");
        let config = parse_in("[agent]", "deploy.toml", Path::new("/"), &|_: &str| None).unwrap();
        let files = CertificateFiles { cert: "c".into(), key: "k".into() };
        let said = |now: &str| {
            let mut found = Findings { config: &config, all: Vec::new() };
            found.time("key", &files, &short, &[], now.parse().unwrap());
            found.all.pop().map(|finding| finding.problem.what)
        };
        assert_eq!(said("2026-06-13T23:00:00Z"), None);
        assert!(said("2026-06-14T01:00:00Z").unwrap().contains("expires soon, 2026-06-16 00:00:00 UTC"));
        assert!(
            said("2026-06-16T00:00:00Z").unwrap().contains("has expired, 2026-06-16 00:00:00 UTC: clients refuse it")
        );
        assert!(said("2026-06-09T00:00:00Z").unwrap().contains("is not good before 2026-06-10"));
    }
}
