//! The few facts that matter in a provider's JSON, read in one pass without building the rest.
//!
//! Unlike a derived `Deserialize` this tells a field that is missing from one of the wrong type, never repeats a
//! value in an error, and takes the last of duplicate keys, as every other reader of JSON does.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Refusal;

/// A value that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fact<'a> {
    /// Not there, or null.
    #[default]
    Absent,
    /// A string.
    Text(Cow<'a, str>),
    /// `true` or `false`.
    Bool(bool),
    /// A number, a list or an object.
    Other,
}

impl<'a> Fact<'a> {
    /// The string; `None` for anything else.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The string of a field that must be one.
    pub fn required(&self, field: &'static str) -> Result<&str, Refusal> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Absent => Err(Refusal::invalid(field, format!("{field} is missing"))),
            _ => Err(Refusal::invalid(field, format!("{field} must be a string"))),
        }
    }

    /// The truth of a field that may be left out.
    pub fn flag(&self, field: &'static str) -> Result<bool, Refusal> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::Absent => Ok(false),
            _ => Err(Refusal::invalid(field, format!("{field} must be true or false"))),
        }
    }
}

/// What is read of a push or a ping.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts<'a> {
    /// `ref`
    pub git_ref: Fact<'a>,
    /// `before`
    pub before: Fact<'a>,
    /// `after`
    pub after: Fact<'a>,
    /// `deleted`
    pub deleted: Fact<'a>,
    /// `forced`
    pub forced: Fact<'a>,
    /// `repository.full_name`
    pub full_name: Fact<'a>,
    /// `head_commit.message`
    pub message: Fact<'a>,
    /// `head_commit.author.name`
    pub author: Fact<'a>,
    /// `pusher.name`
    pub pusher: Fact<'a>,
    /// `hook.config.content_type`
    pub content_type: Fact<'a>,
    /// `hook.config.insecure_ssl`, `"0"` or `"1"`
    pub insecure_ssl: Fact<'a>,
}

impl<'a> Facts<'a> {
    /// Reads a JSON object. The error names the byte where it stops being one.
    pub fn read(json: &'a [u8]) -> Result<Self, Refusal> {
        if json.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Refusal::Unreadable("the body is not a JSON object: it must begin with `{`".into()));
        }
        let mut facts = Self::default();
        let mut reader = serde_json::Deserializer::from_slice(json);
        Object { at: At::Top, facts: &mut facts }
            .deserialize(&mut reader)
            .and_then(|()| reader.end())
            .map_err(|err| not_json(json, &err))?;
        Ok(facts)
    }

    fn slot(&mut self, at: At, key: &str) -> Option<&mut Fact<'a>> {
        Some(match (at, key) {
            (At::Top, "ref") => &mut self.git_ref,
            (At::Top, "before") => &mut self.before,
            (At::Top, "after") => &mut self.after,
            (At::Top, "deleted") => &mut self.deleted,
            (At::Top, "forced") => &mut self.forced,
            (At::Repository, "full_name") => &mut self.full_name,
            (At::HeadCommit, "message") => &mut self.message,
            (At::Author, "name") => &mut self.author,
            (At::Pusher, "name") => &mut self.pusher,
            (At::HookConfig, "content_type") => &mut self.content_type,
            (At::HookConfig, "insecure_ssl") => &mut self.insecure_ssl,
            _ => return None,
        })
    }
}

/// Which object is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Top,
    Repository,
    HeadCommit,
    Author,
    Pusher,
    Hook,
    HookConfig,
}

impl At {
    fn inside(self, key: &str) -> Option<At> {
        Some(match (self, key) {
            (At::Top, "repository") => At::Repository,
            (At::Top, "head_commit") => At::HeadCommit,
            (At::HeadCommit, "author") => At::Author,
            (At::Top, "pusher") => At::Pusher,
            (At::Top, "hook") => At::Hook,
            (At::Hook, "config") => At::HookConfig,
            _ => return None,
        })
    }
}

/// serde_json's reason and the byte it stopped at, without line and column.
fn not_json(json: &[u8], err: &serde_json::Error) -> Refusal {
    let line_start = match err.line() {
        0 | 1 => 0,
        line => json.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
    };
    let text = err.to_string();
    let reason = text.split(" at line ").next().unwrap_or("it cannot be read");
    Refusal::Unreadable(format!("the body is not JSON: {reason} at byte {}", line_start + err.column()))
}

/// Reads one of the objects into the facts; a value of another type where an object belongs leaves them absent.
struct Object<'f, 'a> {
    at: At,
    facts: &'f mut Facts<'a>,
}

impl<'de> DeserializeSeed<'de> for Object<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Scalar)? {
            let key = key.text().unwrap_or_default();
            if let Some(slot) = self.facts.slot(self.at, key) {
                *slot = map.next_value_seed(Scalar)?;
            } else if let Some(at) = self.at.inside(key) {
                map.next_value_seed(Object { at, facts: self.facts })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads any value, keeping it when it is a string or a truth value.
struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Fact<'de>;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Fact<'de>, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Fact<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Fact<'de>, E> {
        Ok(Fact::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Fact<'de>, E> {
        Ok(Fact::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Fact<'de>, E> {
        Ok(Fact::Bool(value))
    }

    fn visit_unit<E>(self) -> Result<Fact<'de>, E> {
        Ok(Fact::Absent)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Fact<'de>, E> {
        Ok(Fact::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Fact<'de>, E> {
        Ok(Fact::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Fact<'de>, E> {
        Ok(Fact::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Fact<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Fact::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fact<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Fact::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(json: impl AsRef<[u8]>) -> String {
        Facts::read(json.as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_it_wants_wherever_and_however_it_is_written() {
        let facts = Facts::read(
            br#" {"new_field":[{"ref":"x"},1e2,null],"ref":"old","\u0072ef":"refs\/heads\/ma\u0069n","deleted":false,
                "head_commit":null,"repository":{"owner":{"full_name":"no"},"full_name":"example/shop"},"before":7} "#,
        )
        .unwrap();
        assert_eq!(facts.git_ref.text(), Some("refs/heads/main"));
        assert_eq!(facts.full_name.text(), Some("example/shop"));
        assert_eq!((facts.deleted, facts.before, facts.message), (Fact::Bool(false), Fact::Other, Fact::Absent));
    }

    #[test]
    fn says_where_a_body_stops_being_json() {
        assert_eq!(refused("{\n\"ref\": \"x\",\n nope}"), "the body is not JSON: key must be a string at byte 16");
        assert_eq!(refused("{\"ref\":\"ab"), "the body is not JSON: EOF while parsing a string at byte 10");
        assert!(refused("{\"ref\":\"a\0b\"}").contains("control character"), "NUL");
        assert!(refused("{} x").contains("trailing characters at byte 4"));
        assert!(refused(b"{\"ref\":\"\xff\"}").contains("at byte"), "not UTF-8");
        let utf16: Vec<u8> = "{\"ref\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(refused(utf16).contains("at byte 2"));
        for not_object in ["", "[]", "7", "\u{feff}{}", &"[".repeat(100_000)] {
            assert!(refused(not_object).contains("must begin with `{`"), "{}", &not_object[..not_object.len().min(9)]);
        }
        assert!(refused(format!("{{\"ref\":{}", "[".repeat(100_000))).contains("EOF"));
    }

    #[test]
    fn errors_do_not_repeat_what_was_sent() {
        let facts = Facts::read(br#"{"ref":["hunter2"],"deleted":"hunter2"}"#).unwrap();
        let errors = [
            facts.git_ref.required("ref").unwrap_err().to_string(),
            facts.deleted.flag("deleted").unwrap_err().to_string(),
            refused("{\"secret\":\"hunter2\",\"ref\":\"hunter2\" \"hunter2\"}"),
        ];
        assert_eq!(errors[0], "ref must be a string");
        assert!(errors.iter().all(|error| !error.contains("hunter2")), "{errors:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..400) {
            let _ = Facts::read(&body);
            let real = br#"{"ref":"refs/heads/main","repository":{"full_name":"a/b"},"head_commit":{"author":{"name":"x"}}}"#;
            if cut < real.len() {
                prop_assert!(Facts::read(&real[..cut]).is_err());
            }
        }
    }
}
