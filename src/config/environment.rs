//! `env`: what an instance finds in its environment.

use std::collections::BTreeMap;

use super::EnvValue;
use super::field::{Field, env_name};

/// Words in a variable's name that promise a secret.
const SECRET_WORDS: [&str; 6] = ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "PRIVATE_KEY"];

pub(super) fn read(field: Option<Field<'_>>) -> BTreeMap<String, EnvValue> {
    let Some(section) = field.and_then(|field| field.section("write env = { NAME = \"text\" }")) else {
        return BTreeMap::new();
    };
    let values = section.entries().filter_map(|(name, field)| {
        let named = check_name(name, &field);
        let value = value(name, &field)?;
        named.then(|| (name.to_owned(), value))
    });
    values.collect()
}

/// Whether a key can name a variable; says so when it cannot.
pub(super) fn check_name(name: &str, field: &Field<'_>) -> bool {
    let fault = env_name(name).err();
    if let Some(fault) = &fault {
        let hint = fault.hint.clone().unwrap_or_default();
        field.reader.problem(&field.key_span, fault.what.trim_start_matches([':', ' ']), hint);
    }
    fault.is_none()
}

fn value(name: &str, field: &Field<'_>) -> Option<EnvValue> {
    if field.is_table() {
        return field.later_secret().map(EnvValue::Secret);
    }
    let forms = format!("write {name} = \"text\", {name} = {{ env = \"NAME\" }} or {name} = {{ file = \"PATH\" }}");
    let text = literal(field, &forms)?;
    if promises_secret(name, text) {
        field.warning(
            " looks like a secret and is written in the file itself",
            format!("write {name} = {{ env = \"{name}\" }} or {{ file = \"PATH\" }}"),
        );
    }
    Some(EnvValue::Literal(text.to_owned()))
}

/// Text that fits into an environment. What is written in its place is not shown: it may be anything.
pub(super) fn literal<'s>(field: &Field<'s>, forms: &str) -> Option<&'s str> {
    match field.as_text() {
        Some(text) if text.contains('\0') => {
            field.problem(" holds a NUL character", "remove it");
            None
        }
        Some(text) => Some(text),
        None => {
            field.problem(" must be text in quotes (what is written is not shown here)", forms);
            None
        }
    }
}

fn promises_secret(name: &str, text: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let url_with_password = text
        .split_once("://")
        .and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'));
    let named = SECRET_WORDS.iter().any(|word| name.ends_with(word));
    url_with_password || (named && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_the_file_are_noticed() {
        for (name, text) in [("DB_PASSWORD", "x"), ("api_token", "x"), ("URL", "postgres://a:b@host/db")] {
            assert!(promises_secret(name, text), "{name}");
        }
        for (name, text) in [("PASSWORD_FILE", "/x"), ("TOKEN", ""), ("URL", "postgres://a@host/b:c@d"), ("A", "b")] {
            assert!(!promises_secret(name, text), "{name}");
        }
    }
}
