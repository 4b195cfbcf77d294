//! `acme` of `[proxy]`: who issues the certificates that no file holds.

use super::field::Field;
use super::problem::Fault;
use super::{AcmeConfig, Challenge};
use crate::model::shorten;

const FORM: &str = "write acme = { email = \"ops@example.com\" }";

/// Let's Encrypt's directory for certificates that browsers trust.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

const CHALLENGES: [(&str, Challenge); 2] =
    [(Challenge::Http01.as_str(), Challenge::Http01), (Challenge::TlsAlpn01.as_str(), Challenge::TlsAlpn01)];

pub(super) fn read(field: &Field<'_>) -> Option<AcmeConfig> {
    let section = field.section(FORM)?;
    let email = section.require("email", FORM).map(|field| field.parsed(email));
    let directory_url = section.take("directory_url").map(|field| field.parsed(directory_url));
    let challenge = section.take("challenge").map(|field| field.word(&CHALLENGES));
    let ca_file = section.take("ca_file").map(|field| field.file_path());
    section.finish();
    Some(AcmeConfig {
        email: email??,
        directory_url: directory_url.unwrap_or_else(|| Some(LETS_ENCRYPT.to_owned()))?,
        challenge: challenge.unwrap_or_else(|| Some(Challenge::default()))?,
        ca_file: match ca_file {
            Some(path) => Some(path?),
            None => None,
        },
    })
}

/// As far as it matters here: it becomes a `mailto:` URL with one address (RFC 8555, section 7.3).
fn email(text: &str) -> Result<String, Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_+@".contains(c);
    match text.split_once('@') {
        Some((name, host))
            if !name.is_empty() && host.contains('.') && !host.contains('@') && text.chars().all(plain) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(Fault::new(
            format!(" must be an e-mail address, got {:?}", shorten(text, 80)),
            "write the address that the certificate authority may write to, such as \"ops@example.com\"",
        )),
    }
}

/// Always over TLS (RFC 8555, section 6.1).
fn directory_url(text: &str) -> Result<String, Fault> {
    let hint = "write https://HOST/PATH as the certificate authority says it, or leave it out for Let's Encrypt";
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~/:[]%?=&".contains(c);
    match text.strip_prefix("https://") {
        // The value is not shown: what stands before the @ may be a password.
        _ if text.contains('@') => Err(Fault::new(" holds credentials", hint)),
        Some(rest) if !rest.is_empty() && !rest.starts_with(['/', ':']) && rest.chars().all(allowed) => {
            Ok(text.to_owned())
        }
        _ => Err(Fault::new(format!(" must be an https address, got {:?}", shorten(text, 80)), hint)),
    }
}
