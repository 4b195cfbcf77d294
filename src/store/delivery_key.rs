//! How a delivery id is kept: ids that come after each other lie beside each other.

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};

/// GitHub's ids are UUIDs of version 1, which begin with the part of the time that changes most: kept as they are
/// written, each lands on another page of the journal. The bytes of such an id are kept in the order of version 6,
/// highest part of the time first (RFC 9562, section 5.6); every other id is kept as its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DeliveryKey<'a> {
    ByTime([u8; 16]),
    Text(&'a str),
}

impl<'a> DeliveryKey<'a> {
    pub(super) fn of(id: &'a str) -> Self {
        by_time(id).map_or(Self::Text(id), Self::ByTime)
    }
}

impl ToSql for DeliveryKey<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::ByTime(bytes) => ValueRef::Blob(bytes),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

/// Only of the one spelling that each UUID has: two ids never become the same key.
fn by_time(id: &str) -> Option<[u8; 16]> {
    let [low, middle, high, clock, node] = *id.split('-').collect::<Vec<_>>().as_slice() else { return None };
    let lower = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths = [low, middle, high, clock, node].map(str::len);
    if lengths != [8, 4, 4, 4, 12] || !high.starts_with('1') || ![low, middle, high, clock, node].into_iter().all(lower)
    {
        return None;
    }
    let mut bytes = [0; 16];
    hex::decode_to_slice([high, middle, low, clock, node].concat(), &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one of GitHub's documentation.
    const GITHUB: &str = "72d3162e-cc78-11e3-81ab-4c9367dc0958";

    #[test]
    fn ids_of_github_are_kept_in_the_order_of_their_time() {
        let DeliveryKey::ByTime(key) = DeliveryKey::of(GITHUB) else { panic!("kept as text") };
        assert_eq!(hex::encode(key), "11e3cc7872d3162e81ab4c9367dc0958");
        let later = DeliveryKey::of("00000000-cc79-11e3-81ab-4c9367dc0958");
        assert!(matches!(later, DeliveryKey::ByTime(later) if later > key));
    }

    #[test]
    fn any_other_id_is_kept_as_it_is() {
        let upper = GITHUB.to_uppercase();
        let random = GITHUB.replace("-11e3-", "-41e3-");
        let long = format!("{GITHUB}0");
        let signed = GITHUB.replace("72d3162e", "+2d3162e");
        for id in [
            "",
            "push-17",
            "----",
            &upper,
            &random,
            &long,
            &signed,
            &GITHUB[1..],
            "7é2d316-cc78-11e3-81ab-4c9367dc0958",
        ] {
            assert_eq!(DeliveryKey::of(id), DeliveryKey::Text(id));
        }
    }
}
