//! `build`: what a service's image is made of. A service's own keys go on top of the app's, one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::field::Field;
use super::problem::Fault;
use super::reader::Section;
use super::{Build, BuilderKind, SecretRef, environment};
use crate::model::shorten;

/// What is written in one `build` table.
#[derive(Debug, Clone, Default)]
pub(super) struct BuildKeys {
    dockerfile: Option<String>,
    context: Option<String>,
    target: Option<String>,
    args: BTreeMap<String, String>,
    secrets: BTreeMap<String, SecretRef>,
    builder: Option<BuilderKind>,
}

impl BuildKeys {
    /// `self` with the keys of `top` in place of its own; arguments and secrets by name.
    pub(super) fn overridden_by(mut self, top: Self) -> Self {
        self.args.extend(top.args);
        self.secrets.extend(top.secrets);
        Self {
            dockerfile: top.dockerfile.or(self.dockerfile),
            context: top.context.or(self.context),
            target: top.target.or(self.target),
            args: self.args,
            secrets: self.secrets,
            builder: top.builder.or(self.builder),
        }
    }

    /// Whether secrets would reach a builder that has none.
    pub(super) fn gives_secrets_to_classic(&self) -> bool {
        self.builder == Some(BuilderKind::Classic) && !self.secrets.is_empty()
    }

    pub(super) fn finish(self) -> Build {
        Build {
            dockerfile: self.dockerfile.unwrap_or_else(|| "Dockerfile".to_owned()),
            context: self.context.unwrap_or_else(|| ".".to_owned()),
            target: self.target,
            args: self.args,
            secrets: self.secrets,
            builder: self.builder.unwrap_or(BuilderKind::Auto),
        }
    }
}

const TABLE: &str = "write build = { dockerfile = \"Dockerfile\", context = \".\" }";

/// `[apps.NAME.build]`: the keys and how long a build may take.
pub(super) fn of_app(field: Option<Field<'_>>) -> (BuildKeys, Option<Duration>) {
    let Some(section) = field.and_then(|field| field.section(TABLE)) else { return Default::default() };
    let keys = keys(&section);
    let bounds = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    let timeout = section.take("timeout").and_then(|field| field.duration(bounds));
    section.finish();
    (keys, timeout)
}

/// `build` of one service.
pub(super) fn of_service(field: Option<Field<'_>>) -> BuildKeys {
    let Some(section) = field.and_then(|field| field.section(TABLE)) else { return BuildKeys::default() };
    let keys = keys(&section);
    if let Some(field) = section.take("timeout") {
        field.problem(" is set for all services of an app together", "move it to [apps.NAME.build]");
    }
    section.finish();
    keys
}

fn keys(section: &Section<'_>) -> BuildKeys {
    let builders =
        [("auto", BuilderKind::Auto), ("buildkit", BuilderKind::Buildkit), ("classic", BuilderKind::Classic)];
    BuildKeys {
        dockerfile: section.take("dockerfile").and_then(|field| dockerfile(&field)),
        context: section.take("context").and_then(|field| field.parsed(path_in_repository)),
        target: section.take("target").and_then(|field| field.parsed(|text| plain_name(text, "a stage"))),
        args: section.take("args").map(args).unwrap_or_default(),
        secrets: section.take("secrets").map(secrets).unwrap_or_default(),
        builder: section.take("builder").and_then(|field| field.word(&builders)),
    }
}

fn dockerfile(field: &Field<'_>) -> Option<String> {
    let path = field.parsed(path_in_repository)?;
    if path == "." {
        field.problem(" names a directory", "write the Dockerfile's path inside the repository");
        return None;
    }
    Some(path)
}

fn args(field: Field<'_>) -> BTreeMap<String, String> {
    let Some(section) = field.section("write args = { NAME = \"text\" }") else { return BTreeMap::new() };
    let args = section.entries().filter_map(|(name, field)| {
        let named = environment::check_name(name, &field);
        if field.is_table() {
            field.problem(
                " is a secret, and build arguments stay readable in the image",
                "write it under build.secrets and use RUN --mount=type=secret,id=NAME",
            );
            return None;
        }
        let text = environment::literal(&field, &format!("write {name} = \"text\""))?;
        named.then(|| (name.to_owned(), text.to_owned()))
    });
    args.collect()
}

fn secrets(field: Field<'_>) -> BTreeMap<String, SecretRef> {
    let Some(section) = field.section("write secrets = { ID = { env = \"NAME\" } }") else { return BTreeMap::new() };
    let secrets = section.entries().filter_map(|(id, field)| {
        if let Err(fault) = plain_name(id, "a secret's id") {
            field.reader.problem(&field.key_span, format!("{}{}", field.path, fault.what), fault.hint?);
        }
        Some((id.to_owned(), field.later_secret()?))
    });
    secrets.collect()
}

fn plain_name(text: &str, what: &str) -> Result<String, Fault> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if plain && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.len() <= 128 {
        return Ok(text.to_owned());
    }
    let hint = format!("letters, digits, _, . and - make {what}, with a letter or digit first");
    Err(Fault::new(format!(": {:?} cannot name {what}", shorten(text, 60)), hint))
}

/// A path inside the repository without `.` and repeated slashes; `.` is the repository itself.
fn path_in_repository(text: &str) -> Result<String, Fault> {
    const HINT: &str = "write a path relative to the repository's top, such as \"docker/Dockerfile\"";
    let bad = |why: &str| Err(Fault::new(format!(": {:?} {why}", shorten(text, 100)), HINT));
    if text.is_empty() {
        return bad("is empty");
    }
    if text.contains("://") {
        // What stands before an @ may be a password.
        return Err(Fault::new(" is an address, not a path inside the repository", HINT));
    }
    if text.chars().any(|c| c.is_control() || c == '\\') {
        return bad("holds a backslash or a control character");
    }
    if text.starts_with('/') {
        return bad("is absolute, and so outside the repository");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return bad("leads outside the repository with \"..\"");
    }
    Ok(if parts.is_empty() { ".".to_owned() } else { parts.join("/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_repository() {
        for (text, expected) in [(".", "."), ("./a//b/", "a/b"), ("Dockerfile", "Dockerfile"), ("a..b", "a..b")] {
            assert_eq!(path_in_repository(text), Ok(expected.to_owned()));
        }
        for bad in ["", "/Dockerfile", "../Dockerfile", "a/../../b", "https://host/x", "a\\b", "a\nb"] {
            assert!(path_in_repository(bad).is_err(), "{bad}");
        }
    }
}
