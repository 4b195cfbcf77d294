//! What is kept in `acme` of the data directory: the account, the certificates, and what has failed. All of it is for this
//! user alone, and each file is replaced whole.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};

use super::plan::{Failures, Held};
use crate::data_dir::write_whole;
use crate::proxy::ISSUED;
use crate::proxy::certificate::Facts;

/// The first line of a certificate's file: text before the first block is an explanation (RFC 7468, section 2).
const FROM: &str = "Issued by ";

/// The directory.
#[derive(Debug, Clone)]
pub struct Shelf {
    account: PathBuf,
    failures: PathBuf,
    certificates: PathBuf,
}

/// An account with its key.
#[derive(Serialize, Deserialize)]
pub struct Account {
    /// Of which authority.
    pub directory: String,
    /// What it was told of whom to write to.
    pub email: String,
    /// Where it is and what proves that it is ours.
    pub credentials: AccountCredentials,
}

impl Shelf {
    /// In this data directory, where nothing of it may be yet.
    pub fn new(data_dir: &Path) -> Self {
        let own = data_dir.join("acme");
        Self {
            account: own.join("account.json"),
            failures: own.join("failures.json"),
            certificates: data_dir.join(ISSUED),
        }
    }

    /// The certificates by host. One that cannot be read is none, and its replacement is ordered.
    pub fn certificates(&self) -> BTreeMap<String, Held> {
        let Ok(entries) = fs::read_dir(&self.certificates) else { return BTreeMap::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        let read = |path: PathBuf| {
            let host = path.file_name()?.to_str()?.strip_suffix(".pem")?.to_owned();
            let pem = fs::read(&path).ok()?;
            match Facts::of(&path, &pem) {
                Ok(Facts { not_before, not_after, .. }) => {
                    Some((host, Held { directory: directory_of(&pem), not_before, not_after }))
                }
                Err(error) => {
                    tracing::error!("{error}; another one is ordered");
                    None
                }
            }
        };
        paths.filter_map(read).collect()
    }

    /// Takes in a certificate for this host, if it is one; until when it is good.
    pub fn put(&self, host: &str, directory: &str, chain: &str, key: &str) -> Result<Held, String> {
        let path = self.path_of(host);
        let facts = Facts::of(&path, chain.as_bytes()).map_err(|error| error.to_string())?;
        if !facts.cover(host) {
            return Err(format!("the certificate is for {:?}", facts.names));
        }
        let file = format!("{FROM}{directory}\n\n{}\n{key}", chain.trim_end());
        self.write(&path, file.as_bytes()).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Held { directory: directory.to_owned(), not_before: facts.not_before, not_after: facts.not_after })
    }

    /// Lets go of a host's certificate.
    pub fn remove(&self, host: &str) -> io::Result<()> {
        fs::remove_file(self.path_of(host))
    }

    /// What has failed with this authority.
    pub fn failures(&self, directory: &str) -> Failures {
        let kept = self.read::<Failures>(&self.failures).filter(|kept| kept.directory == directory);
        kept.unwrap_or_else(|| Failures { directory: directory.to_owned(), ..Failures::default() })
    }

    /// Keeps what has failed.
    pub fn keep_failures(&self, failures: &Failures) -> io::Result<()> {
        self.write(&self.failures, &serde_json::to_vec_pretty(failures)?)
    }

    /// The account with this authority.
    pub fn account(&self, directory: &str) -> Option<Account> {
        self.read::<Account>(&self.account).filter(|account| account.directory == directory)
    }

    /// Keeps an account in place of the one before.
    pub fn keep_account(&self, account: &Account) -> io::Result<()> {
        self.write(&self.account, &serde_json::to_vec_pretty(account)?)
    }

    fn path_of(&self, host: &str) -> PathBuf {
        self.certificates.join(format!("{host}.pem"))
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> Option<T> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!("cannot read {}: {error}", path.display());
                return None;
            }
        };
        // Not the error's own words: they may quote what is in the file.
        let Ok(value) = serde_json::from_slice(&text) else {
            tracing::error!("{} is damaged and is begun anew", path.display());
            return None;
        };
        Some(value)
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.certificates)?;
        write_whole(path, content)
    }
}

fn directory_of(pem: &[u8]) -> String {
    let first = pem.split(|&byte| byte == b'\n').next().and_then(|line| line.strip_prefix(FROM.as_bytes()));
    first.map(|directory| String::from_utf8_lossy(directory).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::Timestamp;

    use super::super::plan::Failure;
    use super::*;

    const CA: &str = "https://ca.example/dir";

    #[test]
    fn a_certificate_comes_back_with_its_authority_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        assert!(shelf.certificates().is_empty());
        let made = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let held = shelf.put("shop.test", CA, &chain, &key).unwrap();
        assert_eq!(shelf.certificates(), BTreeMap::from([("shop.test".to_owned(), held)]));
        let path = dir.path().join("acme/certificates/shop.test.pem");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let why = shelf.put("blog.test", CA, &chain, &key).unwrap_err();
        assert!(why.contains("shop.test"), "{why}");
        fs::write(&path, "no certificate").unwrap();
        assert!(shelf.certificates().is_empty());
        shelf.remove("shop.test").unwrap();
    }

    #[test]
    fn failures_come_back_for_the_same_authority_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let epoch = Timestamp::UNIX_EPOCH;
        let failure = Failure { why: "no".into(), times: 3, since: Some(epoch), at: epoch, again: epoch };
        let mut failures = shelf.failures(CA);
        failures.hosts.insert("shop.test".to_owned(), failure);
        shelf.keep_failures(&failures).unwrap();
        assert_eq!(shelf.failures(CA), failures);
        assert!(shelf.failures("https://other.example/dir").hosts.is_empty());
        // As an older version wrote them.
        let path = dir.path().join("acme/failures.json");
        let text = fs::read_to_string(&path).unwrap().replace("\"since\"", "\"unknown\"");
        fs::write(&path, text).unwrap();
        assert_eq!(shelf.failures(CA).hosts["shop.test"].since(), epoch);
        fs::write(&path, "{").unwrap();
        assert!(shelf.failures(CA).hosts.is_empty());
    }
}
