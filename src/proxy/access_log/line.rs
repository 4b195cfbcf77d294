//! One line of the access log: what is told of a request, bounded and as JSON. The format is in `docs/ACCESS_LOG.md`.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::text::is_invisible;

/// Bytes of a target that are told; of other texts that a client sends, [`TEXT_LIMIT`].
pub const TARGET_LIMIT: usize = 2048;
/// Bytes of a header's value that are told.
pub const TEXT_LIMIT: usize = 512;
/// The names of methods are at the client's choice too.
pub const METHOD_LIMIT: usize = 32;

/// A request, from its head to the last of its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// When its head was there.
    #[serde(serialize_with = "in_milliseconds")]
    pub time: Timestamp,
    /// The same that an instance gets as `X-Request-Id`.
    pub id: String,
    /// The peer's address.
    pub client: String,
    /// `X-Forwarded-For` of a trusted proxy, all lines of it.
    pub forwarded_for: Option<String>,
    /// As routes spell it; what was sent, where that is no host.
    pub host: Option<String>,
    /// `GET`
    pub method: Option<String>,
    /// Path and query as they were sent.
    pub target: Option<String>,
    /// `HTTP/1.1`, `HTTP/2.0`
    pub version: Option<&'static str>,
    /// Whether the connection to the proxy is encrypted.
    pub tls: bool,
    /// Whose route it found.
    pub app: Option<String>,
    /// Of that app.
    pub service: Option<String>,
    /// The last one that was asked.
    pub instance: Option<String>,
    /// Who made the answer.
    pub by: Option<Maker>,
    /// Of the answer; `None`: the client went before it began.
    pub status: Option<u16>,
    /// Bytes of the request's body that came.
    pub received: u64,
    /// Bytes of the answer's body that were handed over.
    pub sent: u64,
    /// From the request's head to the answer's.
    pub first_byte_ms: Option<f64>,
    /// From the request's head to the answer's end.
    pub duration_ms: f64,
    /// Tries after the first.
    pub retries: u32,
    /// How it ended.
    pub end: End,
    /// `Referer`
    pub referer: Option<String>,
    /// `User-Agent`
    pub user_agent: Option<String>,
}

/// Who made an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Maker {
    /// An instance.
    App,
    /// The proxy: an error, a redirect, a page in place of the app.
    Proxy,
    /// The proxy, with a static file of the app or with there being none.
    Static,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The whole answer was handed over.
    Complete,
    /// The client went before that.
    ClientLeft,
    /// The instance broke its answer off.
    InstanceBroke,
    /// The instance left, and its time to finish was over.
    TimeOver,
    /// A tunnel broke, on whichever side; or a static file could not be read to its end.
    Broken,
}

impl Entry {
    /// Appends the line, with its end.
    pub fn write(&self, lines: &mut Vec<u8>) {
        let before = lines.len();
        // Writing into memory does not fail, and every key is a text.
        if serde_json::to_writer(&mut *lines, self).is_err() {
            lines.truncate(before);
            return;
        }
        lines.push(b'\n');
    }
}

/// Others' bytes as text of at most `limit` bytes, without what a terminal would obey or hide. What is cut ends in `…`.
pub fn bounded(bytes: &[u8], limit: usize) -> String {
    match bytes.get(..limit) {
        Some(start) if bytes.len() > limit => shown(start) + "…",
        _ => shown(bytes),
    }
}

/// The same of a list to which each party adds at the end, so that who begins it cannot push the rest out of sight: what is cut
/// begins with `…`.
pub fn bounded_end(bytes: &[u8], limit: usize) -> String {
    match bytes.len().checked_sub(limit).filter(|&over| over > 0) {
        Some(over) => format!("…{}", shown(bytes.get(over..).unwrap_or_default())),
        None => shown(bytes),
    }
}

fn shown(bytes: &[u8]) -> String {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~');
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().all(plain) => text.to_owned(),
        _ => {
            let shown = |c: char| if c.is_control() || is_invisible(c) { '\u{fffd}' } else { c };
            String::from_utf8_lossy(bytes).chars().map(shown).collect()
        }
    }
}

fn in_milliseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn entry() -> Entry {
        Entry {
            time: "2026-11-21T08:00:00.1239Z".parse().unwrap(),
            id: "5f-1".to_owned(),
            client: "192.0.2.7".to_owned(),
            forwarded_for: None,
            host: Some("shop.test".to_owned()),
            method: Some("GET".to_owned()),
            target: Some("/a?b=1".to_owned()),
            version: Some("HTTP/1.1"),
            tls: true,
            app: Some("shop".to_owned()),
            service: Some("web".to_owned()),
            instance: Some("d1-web-1".to_owned()),
            by: Some(Maker::App),
            status: Some(200),
            received: 0,
            sent: 12,
            first_byte_ms: Some(1.25),
            duration_ms: 1.5,
            retries: 0,
            end: End::Complete,
            referer: None,
            user_agent: Some("curl/8".to_owned()),
        }
    }

    #[test]
    fn a_line_has_every_key_in_one_order() {
        let mut lines = Vec::new();
        entry().write(&mut lines);
        let line = concat!(
            r#"{"time":"2026-11-21T08:00:00.123Z","id":"5f-1","client":"192.0.2.7","forwarded_for":null,"#,
            r#""host":"shop.test","method":"GET","target":"/a?b=1","version":"HTTP/1.1","tls":true,"app":"shop","#,
            r#""service":"web","instance":"d1-web-1","by":"app","status":200,"received":0,"sent":12,"#,
            r#""first_byte_ms":1.25,"duration_ms":1.5,"retries":0,"end":"complete","referer":null,"#,
            r#""user_agent":"curl/8"}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(lines).unwrap(), line);
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_steers_is_replaced() {
        assert_eq!(bounded(b"abc", 3), "abc");
        assert_eq!(bounded(b"abcd", 3), "abc…");
        assert_eq!((bounded_end(b"abc", 3), bounded_end(b"abcd", 3)), ("abc".to_owned(), "…bcd".to_owned()));
        assert_eq!(bounded("a\u{9b}2J\u{202e}é".as_bytes(), 99), "a\u{fffd}2J\u{fffd}é");
        assert_eq!(bounded("aé".as_bytes(), 2), "a\u{fffd}…");
    }

    proptest! {
        #[test]
        fn whatever_is_sent_stays_one_line_of_json(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let agent = bounded(&bytes, 40);
            let mut lines = Vec::new();
            Entry { user_agent: Some(agent.clone()), ..entry() }.write(&mut lines);
            prop_assert_eq!(lines.iter().filter(|&&byte| byte == b'\n').count(), 1);
            let line: serde_json::Value = serde_json::from_slice(&lines).unwrap();
            prop_assert_eq!(line["user_agent"].as_str(), Some(agent.as_str()));
            prop_assert!(agent.len() <= 40 * 3 + 3 && !agent.chars().any(char::is_control));
        }
    }
}
