//! What a request's path says of a file: its name below a directory, and whether that name changes with the content. Pure.

use percent_encoding::percent_decode_str;

/// Served for a path that ends in a slash.
const INDEX: &str = "index.html";

/// The parts of a file's path below its root, from what follows the prefix in a request's path. `None`: no file has such a
/// name. It is decoded once, and only names are left of it: no `.`, no `..`, nothing empty, nothing with a slash or NUL in it,
/// nothing hidden but `.well-known` (RFC 8615).
pub fn parts(rest: &str) -> Option<Vec<String>> {
    let rest = rest.strip_prefix('/')?;
    let mut parts: Vec<String> = Vec::new();
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_none() {
            parts.push(INDEX.to_owned());
            break;
        }
        let name = percent_decode_str(segment).decode_utf8().ok()?;
        let is_hidden = name.starts_with('.') && name != ".well-known";
        if name.is_empty() || is_hidden || name.contains(['/', '\0']) {
            return None;
        }
        parts.push(name.into_owned());
    }
    Some(parts)
}

/// Whether a name holds a digest of the content, so that another content has another name: as Django's
/// `ManifestStaticFilesStorage` (`base.0123456789ab.css`), webpack (`main.8f3c…e1.js`) and Vite (`index-B3kd9Lwq.js`) write
/// them. When in doubt it does not: a name taken for one is kept by browsers for a year.
pub fn has_digest(name: &str) -> bool {
    let mut parts = name.split('.');
    let Some(stem) = parts.next() else { return false };
    let mut middle: Vec<&str> = parts.collect();
    if middle.pop().is_none() {
        return false;
    }
    let of_vite = middle.is_empty() && stem.len() > 9 && {
        let (before, digest) = stem.split_at(stem.len().saturating_sub(8));
        before.ends_with('-') && is_base64_digest(digest)
    };
    of_vite || middle.iter().any(|part| is_hex_digest(part))
}

/// Letters alone are a word, digits alone a date.
fn is_hex_digest(text: &str) -> bool {
    (8..=64).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// Eight characters of base64url. A word may begin with a capital and end with a digit (`Version2`); a digest that looks like
/// one is not taken for one.
fn is_base64_digest(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = bytes.get(1..7).unwrap_or_default();
    bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && bytes.iter().any(u8::is_ascii_lowercase)
        && bytes.iter().any(u8::is_ascii_uppercase)
        && inner.iter().any(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_decoded_once_into_names() {
        let some = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        for (rest, expected) in [
            ("/a.css", some(&["a.css"])),
            ("/css/a%20b.css", some(&["css", "a b.css"])),
            ("/%2561", some(&["%61"])),
            ("/docs/", some(&["docs", "index.html"])),
            ("/", some(&["index.html"])),
            ("/.well-known/x", some(&[".well-known", "x"])),
            ("", None),
            ("/../a", None),
            ("/%2e%2E/a", None),
            ("/..%2fa", None),
            ("/a%2fb", None),
            ("/a%00", None),
            ("//etc/passwd", None),
            ("/a//b", None),
            ("/./a", None),
            ("/.env", None),
            ("/.git/config", None),
            ("/%ff", None),
        ] {
            assert_eq!(parts(rest), expected, "{rest}");
        }
    }

    #[test]
    fn only_what_looks_like_a_digest_is_one() {
        for name in [
            "base.0123456789ab.css",
            "app.js.0123456789ab.map",
            "main.8f3c2e1a.js",
            "x.8f3c2e1a9b.chunk.js",
            "index-B3kd9Lwq.js",
        ] {
            assert!(has_digest(name), "{name}");
        }
        for name in [
            "base.css",
            "backup.20260101.sql",
            "app.deadbeef.js",
            "app-settings.js",
            "x-Version2.js",
            "x-userInfo.js",
            "jquery-3.7.1.min.js",
            "0123456789ab",
            "0123456789ab.css",
            "v1.2.3.tar.gz",
            "index-B3kd9Lwq",
        ] {
            assert!(!has_digest(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_path_climbs(rest in "(/|%2[fF]|%2[eE]|\\.|%00|%25|a|\\\\){0,12}") {
            for part in parts(&rest).unwrap_or_default() {
                prop_assert!(!part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0']), "{rest}: {part}");
            }
        }
    }
}
