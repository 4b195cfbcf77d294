//! HMAC-SHA256 over the raw body, as GitHub signs it: `X-Hub-Signature-256: sha256=` and 64 hexadecimal digits.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// Why a signature is not accepted. The text tells nothing of what would have been right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature.
    #[error("is missing; set the app's webhook secret on the sending side")]
    Missing,
    /// There is one for SHA-1 only, which is no longer safe.
    #[error("is for SHA-1; a SHA-256 signature is required")]
    Sha1Only,
    /// There are several.
    #[error("is there more than once")]
    Several,
    /// It has another shape.
    #[error("must be `sha256=` and 64 hexadecimal digits")]
    Malformed,
    /// It is the signature of another body or with another secret.
    #[error("does not fit the body; compare the webhook secret on both sides")]
    Wrong,
    /// The secret is empty, so that anybody could sign.
    #[error("cannot be checked: the app's webhook secret is empty")]
    EmptySecret,
}

/// Checks the values of the signature header against `body`, in constant time.
pub fn verify<'h>(
    secret: &SecretString,
    mut values: impl Iterator<Item = &'h [u8]>,
    body: &[u8],
) -> Result<(), SignatureError> {
    let value = values.next().ok_or(SignatureError::Missing)?;
    if values.next().is_some() {
        return Err(SignatureError::Several);
    }
    if value.starts_with(b"sha1=") {
        return Err(SignatureError::Sha1Only);
    }
    let digits = value.strip_prefix(b"sha256=").ok_or(SignatureError::Malformed)?;
    let mut offered = [0; 32];
    hex::decode_to_slice(digits, &mut offered).map_err(|_| SignatureError::Malformed)?;

    let key = secret.expose_secret().as_bytes();
    if key.is_empty() {
        return Err(SignatureError::EmptySecret);
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| SignatureError::Wrong)?;
    mac.update(body);
    mac.verify_slice(&offered).map_err(|_| SignatureError::Wrong)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use SignatureError::*;
    use proptest::prelude::*;

    /// The header value that a sender with `secret` makes.
    pub fn sign(secret: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(body);
        format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
    }

    fn check(secret: &str, values: &[&str], body: &[u8]) -> Result<(), SignatureError> {
        verify(&SecretString::from(secret), values.iter().map(|v| v.as_bytes()), body)
    }

    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    /// From GitHub's "Validating webhook deliveries".
    const PUBLISHED: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn githubs_published_example_is_accepted() {
        assert_eq!(check(SECRET, &[PUBLISHED], BODY), Ok(()));
        assert_eq!(sign(SECRET, BODY), PUBLISHED);
    }

    #[test]
    fn everything_else_is_refused() {
        let with_newline = "sha256=8fde2e970f9163923fb1cb61bb945626ff2b4091d87e622ee3ad600160592325";
        assert_eq!(check(SECRET, &[with_newline], BODY), Err(Wrong));
        assert_eq!(check(SECRET, &[PUBLISHED], b"Hello, World!\n"), Err(Wrong));
        assert_eq!(check("it's a secret to everybody", &[PUBLISHED], BODY), Err(Wrong));
        assert_eq!(check(SECRET, &["sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59"], BODY), Err(Sha1Only));
        assert_eq!(check(SECRET, &[], BODY), Err(Missing));
        assert_eq!(check(SECRET, &[PUBLISHED, PUBLISHED], BODY), Err(Several));
        let nobody = "sha256=b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad";
        assert_eq!(check("", &[nobody], b""), Err(EmptySecret));
        let digits = &PUBLISHED["sha256=".len()..];
        for malformed in [
            "",
            "sha256=",
            digits,
            &format!("SHA256={digits}"),
            &format!("sha256={digits}0"),
            &format!("sha256={}", &digits[1..]),
            &format!("sha256=g{}", &digits[1..]),
            &format!("sha256= {}", &digits[1..]),
            &format!("{PUBLISHED},{PUBLISHED}"),
        ] {
            assert_eq!(check(SECRET, &[malformed], BODY), Err(Malformed), "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(
            secret in "[ -~]{1,100}", mut body in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>()
        ) {
            let signature = sign(&secret, &body);
            prop_assert_eq!(check(&secret, &[&signature], &body), Ok(()));
            let at = at.index(body.len());
            body[at] ^= 1;
            prop_assert_eq!(check(&secret, &[&signature], &body), Err(Wrong));
        }
    }
}
