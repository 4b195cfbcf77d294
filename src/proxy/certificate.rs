//! One certificate with its key: read from files, or made here; and what it says of itself.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ProducesTickets, WantsServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ConfigBuilder, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::config::CertificateFiles;

/// What is agreed on inside the handshake, the better first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// What a certificate authority that validates a host offers, and nothing else (RFC 8737, section 6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Those that *ring* signs with.
pub const KEY_KINDS: &str = "ECDSA with P-256 or P-384, RSA with 2048 to 4096 bits, and Ed25519";

/// A certificate that can be served with. Its key is nowhere to be seen.
pub struct Certificate {
    /// What it says of itself.
    pub facts: Facts,
    /// How a handshake with it is done.
    pub tls: Arc<ServerConfig>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// Why there is no certificate in files.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has not what is looked for.
    #[error("{} holds no {what} in PEM form: {error}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// A certificate or a private key.
        what: &'static str,
        /// Why.
        error: pem::Error,
    },
    /// The certificate says nothing that can be used.
    #[error("the certificate in {} {why}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        why: Unusable,
    },
    /// Nobody here can sign with the key.
    #[error("the private key in {} is damaged, or of a kind that is not supported", path.display())]
    KeyKind {
        /// Where it is.
        path: PathBuf,
    },
    /// The two do not belong together.
    #[error("the certificate in {} cannot be served with the key in {}: {error}", files.cert.display(), files.key.display())]
    Mismatch {
        /// Both.
        files: CertificateFiles,
        /// Why.
        error: rustls::Error,
    },
}

/// Why a certificate is no use to a host; continues it in words.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// For no host.
    #[error("names no host (subjectAltName)")]
    Nameless,
    /// The same, and it may sign others.
    #[error("names no host (subjectAltName) and seems to be an authority's (basicConstraints CA)")]
    Authority,
    /// Not as certificates are.
    #[error("{0}")]
    Malformed(String),
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// In lower case; `*.` at the beginning stands for one label.
    pub names: Vec<String>,
    /// Before it clients refuse it.
    pub not_before: Timestamp,
    /// From then on clients refuse it.
    pub not_after: Timestamp,
}

impl Facts {
    /// Of the first certificate in a file.
    pub fn read(path: &Path) -> Result<Self, CertificateError> {
        Self::of(path, &text(path)?)
    }

    /// Of the first certificate in text that is, or is to be, in this file.
    pub fn of(path: &Path, pem: &[u8]) -> Result<Self, CertificateError> {
        let no_certificate = |error| CertificateError::Pem { path: path.to_owned(), what: "certificate", error };
        let first = CertificateDer::from_pem_slice(pem).map_err(no_certificate)?;
        facts(&first).map_err(|why| CertificateError::Unusable { path: path.to_owned(), why })
    }

    /// Whether clients take it, as far as the time goes.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    /// Whether a client that asks for this host, in lower case, is content with it (RFC 6125 §6.4.3: a wildcard stands
    /// for one label).
    pub fn cover(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| name == host || (parent.is_some() && name.strip_prefix("*.") == parent))
    }
}

impl Certificate {
    /// Reads both files.
    pub fn read(files: &CertificateFiles, tickets: &Arc<dyn ProducesTickets>) -> Result<Self, CertificateError> {
        let (chain, facts) = chain(&files.cert)?;
        let tls = belonging(files, chain, private_key(&files.key)?)?;
        Ok(Self { facts, tls: with_tickets(tls, tickets) })
    }

    /// One for this name that nobody has signed.
    pub fn self_signed(name: &str, tickets: &Arc<dyn ProducesTickets>) -> Result<Self, String> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
        let cert = made.cert.der().clone();
        let facts = facts(&cert).map_err(|why| why.to_string())?;
        let tls = server(vec![cert], key).map_err(|error| error.to_string())?;
        Ok(Self { facts, tls: with_tickets(tls, tickets) })
    }
}

/// Reads both files as [`Certificate::read`] does, for those who want to know: what the certificate says of itself, or
/// everything that is wrong with the two.
pub fn examine(files: &CertificateFiles) -> Result<Facts, Vec<CertificateError>> {
    match (chain(&files.cert), private_key(&files.key)) {
        (Ok((chain, said)), Ok(key)) => belonging(files, chain, key).map(|_| said).map_err(|error| vec![error]),
        (cert, key) => Err(cert.err().into_iter().chain(key.err()).collect()),
    }
}

/// Whether every user of this machine may read a private key.
pub fn is_open_to_all(key: &Path) -> bool {
    fs::metadata(key).is_ok_and(|key| key.mode() & 0o007 != 0)
}

/// How the handshake is done by which a certificate authority finds out whether it speaks with this host's server: with a
/// certificate that holds the digest of what only the one who ordered can know (RFC 8737, section 3).
pub fn validation(host: &str, key_authorization: &str) -> Result<ServerConfig, String> {
    let made = || {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([host.to_owned()])?;
        let digest = Sha256::digest(key_authorization.as_bytes());
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
        Ok((params.self_signed(&key)?.der().clone(), key.serialize_der()))
    };
    let (cert, key) = made().map_err(|error: rcgen::Error| error.to_string())?;
    let key = PrivateKeyDer::try_from(key)?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    // Not as others are served: that the two belong together is only ever checked of what a client would take, and no
    // client takes a critical extension that it does not know.
    let certified = SingleCertAndKey::from(CertifiedKey::new(vec![cert], key));
    let builder = server_builder().map_err(|error| error.to_string())?;
    let mut config = builder.with_cert_resolver(Arc::new(certified));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(config)
}

fn text(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|error| CertificateError::File { path: path.to_owned(), error })
}

/// The certificates in a file, and what the first one says of itself.
fn chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Facts), CertificateError> {
    let no_certificate = |error| CertificateError::Pem { path: path.to_owned(), what: "certificate", error };
    let text = text(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(no_certificate)?;
    let first = chain.first().ok_or(pem::Error::NoItemsFound).map_err(no_certificate)?;
    let said = facts(first).map_err(|why| CertificateError::Unusable { path: path.to_owned(), why })?;
    Ok((chain, said))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let key = PrivateKeyDer::from_pem_slice(&text(path)?).map_err(|error| CertificateError::Pem {
        path: path.to_owned(),
        what: "private key",
        error,
    })?;
    // Asked apart, as otherwise certificate and key would seem not to belong together.
    match ring::sign::any_supported_type(&key) {
        Ok(_) => Ok(key),
        Err(_) => Err(CertificateError::KeyKind { path: path.to_owned() }),
    }
}

/// Refuses what does not belong together.
fn belonging(
    files: &CertificateFiles,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, CertificateError> {
    server(chain, key).map_err(|error| CertificateError::Mismatch { files: files.clone(), error })
}

fn with_tickets(mut config: ServerConfig, tickets: &Arc<dyn ProducesTickets>) -> Arc<ServerConfig> {
    config.ticketer = Arc::clone(tickets);
    Arc::new(config)
}

fn server(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerConfig, rustls::Error> {
    let mut config = server_builder()?.with_single_cert(chain, key)?;
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn server_builder() -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_no_client_auth())
}

fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, Unusable> {
    let (_, parsed) = parse_x509_certificate(certificate)
        .map_err(|error| Unusable::Malformed(format!("cannot be understood: {error}")))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| Unusable::Malformed(format!("has malformed names: {error}")))?;
    let names: Vec<String> = names.iter().flat_map(|names| &names.value.general_names).filter_map(dns_name).collect();
    if names.is_empty() {
        return Err(if parsed.is_ca() { Unusable::Authority } else { Unusable::Nameless });
    }
    let validity = parsed.validity();
    let [not_before, not_after] = [validity.not_before, validity.not_after].map(|time| {
        Timestamp::from_second(time.timestamp())
            .map_err(|error| Unusable::Malformed(format!("has an impossible beginning or end: {error}")))
    });
    Ok(Facts { names, not_before: not_before?, not_after: not_after? })
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validation_has_a_certificate_for_one_host_and_one_protocol() {
        let config = validation("new.test", "c.thumb").unwrap();
        assert_eq!(config.alpn_protocols, [ACME_TLS]);
    }

    #[test]
    fn a_certificate_covers_its_names_and_one_label_before_a_wildcard() {
        let names = ["shop.test", "*.wild.test"].map(str::to_owned).to_vec();
        let facts = Facts { names, not_before: Timestamp::MIN, not_after: Timestamp::MAX };
        let covered = |host: &str| facts.cover(host);
        assert!(["shop.test", "a.wild.test", "*.wild.test"].into_iter().all(covered));
        assert!(!["www.shop.test", "wild.test", "a.b.wild.test", "test", ""].into_iter().any(covered));
    }
}
