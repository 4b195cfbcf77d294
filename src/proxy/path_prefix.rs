//! The part of a host's paths that a route answers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longer ones are a mistake.
const LONGEST: usize = 200;

/// A path that begins with `/` and does not end with one, or nothing for all paths. It is compared segment by segment
/// and as it is sent: `/api` is not the beginning of `/apix`, nor of `/%61pi`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPrefix(String);

/// What is wrong with a path, in words that follow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPath(pub &'static str);

impl PathPrefix {
    /// Reads `/api`; a slash at the end makes no difference.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let path = text.strip_suffix('/').unwrap_or(text);
        if path.is_empty() && !text.is_empty() {
            return Ok(Self::default());
        }
        let Some(rest) = path.strip_prefix('/') else { return Err(InvalidPath("does not begin with /")) };
        if path.len() > LONGEST {
            return Err(InvalidPath("is longer than 200 bytes"));
        }
        if rest.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(InvalidPath("has an empty segment, or one of dots"));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&b);
        if !path.bytes().all(allowed) {
            return Err(InvalidPath("holds something else than a path's characters (RFC 3986, section 3.3)"));
        }
        Ok(Self(path.to_owned()))
    }

    /// Whether it stands for all paths.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Without a slash at its end; empty for all paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a request's path lies in it.
    pub fn covers(&self, path: &str) -> bool {
        path.strip_prefix(&self.0).is_some_and(|rest| self.is_root() || rest.is_empty() || rest.starts_with('/'))
    }

    /// A request's target, path and query, without it.
    pub fn strip<'a>(&self, target: &'a str) -> std::borrow::Cow<'a, str> {
        match target.strip_prefix(&self.0) {
            // `*` asks about the server as a whole (RFC 9112, section 3.2.4).
            Some(rest) if rest.starts_with('/') || target == "*" => rest.into(),
            Some(rest) => format!("/{rest}").into(),
            None => target.into(),
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PathPrefix {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, InvalidPath> {
        if text.is_empty() { Ok(Self::default()) } else { Self::parse(&text) }
    }
}

impl From<PathPrefix> for String {
    fn from(path: PathPrefix) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathPrefix {
        PathPrefix::parse(text).unwrap()
    }

    #[test]
    fn a_prefix_ends_with_a_segment() {
        for (prefix, asked, covers) in [
            ("/", "/", true),
            ("/", "/api", true),
            ("/", "*", true),
            ("/api", "/api", true),
            ("/api/", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/users", true),
            ("/api", "/apix", false),
            ("/api", "/", false),
            ("/api", "/API", false),
            ("/api", "/%61pi", false),
            ("/a/b", "/a", false),
        ] {
            assert_eq!(path(prefix).covers(asked), covers, "{prefix} {asked}");
        }
    }

    #[test]
    fn what_is_left_is_a_target_again() {
        for (prefix, target, left) in [
            ("/api", "/api/users?page=2", "/users?page=2"),
            ("/api", "/api", "/"),
            ("/api", "/api?x=/api", "/?x=/api"),
            ("/api", "/api//evil.test", "//evil.test"),
            ("/", "/x", "/x"),
            ("/", "*", "*"),
            // Of `http://shop.test?page=2`.
            ("/", "?page=2", "/?page=2"),
        ] {
            assert_eq!(path(prefix).strip(target), left, "{prefix} {target}");
        }
    }

    #[test]
    fn what_no_request_could_ask_for_is_refused() {
        for text in [
            "",
            "api",
            "//",
            "/a//b",
            "/a/../b",
            "/a b",
            "/a?b",
            "/a#b",
            "/ä",
            "/a\\b",
            &format!("/{}", "a".repeat(200)),
        ] {
            assert!(PathPrefix::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(serde_json::from_str::<PathPrefix>("\"\"").unwrap(), PathPrefix::default());
        assert!(serde_json::from_str::<PathPrefix>("\"x\"").is_err());
    }
}
