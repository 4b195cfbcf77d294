//! `static`: files of an app that the proxy answers with itself.

use std::collections::BTreeMap;

use super::field::Field;
use super::problem::Fault;
use super::suggest::did_you_mean;
use super::{FilesSource, Mount, MountSource, route};
use crate::model::shorten;
use crate::proxy::PathPrefix;

const FORM: &str = "write static = { \"/static\" = \"staticfiles\", \"/media\" = { volume = \"media\" } }";
const DIRECTORY: &str = "write a directory of the image, such as \"staticfiles\" or \"/app/staticfiles\"";

/// Directories by the prefixes under which they are served: within the paths that lead to the service, whose volumes these are.
pub(super) fn read(field: &Field<'_>, within: &PathPrefix, volumes: &[Mount]) -> BTreeMap<PathPrefix, FilesSource> {
    let mut files = BTreeMap::new();
    let Some(section) = field.section(FORM) else { return files };
    let mut entries: Vec<(&str, Field<'_>)> = section.entries().collect();
    // Of two that are the same the second is the one to mend.
    entries.sort_by_key(|(_, entry)| entry.key_span.start);
    for (prefix, entry) in entries {
        let (prefix, source) = (self::prefix(prefix, &entry, within), source(&entry, volumes));
        let (Some(prefix), Some(source)) = (prefix, source) else { continue };
        if files.contains_key(&prefix) {
            entry.reader.problem(
                &entry.key_span,
                format!("{}: {prefix} is there twice", field.path),
                "a slash at the end makes no difference; remove one",
            );
        }
        files.insert(prefix, source);
    }
    files
}

fn prefix(text: &str, entry: &Field<'_>, within: &PathPrefix) -> Option<PathPrefix> {
    let bad = |what: String, hint: String| {
        entry.reader.problem(&entry.key_span, format!("{}: {what}", entry.path), hint);
        None
    };
    let prefix = match route::path(text) {
        Ok(prefix) => prefix,
        Err(Fault { what, hint }) => return bad(what.trim_start_matches(": ").to_owned(), hint.unwrap_or_default()),
    };
    if prefix.is_root() {
        return bad(
            "nothing would be left for the service: what is not among the files is not found".to_owned(),
            "write a prefix, such as \"/static\"".to_owned(),
        );
    }
    if !within.covers(prefix.as_str()) {
        return bad(
            format!("{prefix} does not lie in {within}, the path that leads to this service"),
            format!("write \"{within}{prefix}\", or move it to the service that answers {prefix}"),
        );
    }
    Some(prefix)
}

fn source(field: &Field<'_>, volumes: &[Mount]) -> Option<FilesSource> {
    if field.as_text().is_some() {
        return field.parsed(directory).map(FilesSource::Image);
    }
    let section = field.section("write a directory of the image in quotes, or { volume = \"NAME\" }")?;
    let name = section.require("volume", "write volume = \"NAME\"").and_then(|field| volume(&field, volumes));
    let path = section.take("path").map(|field| field.parsed(below));
    section.finish();
    Some(FilesSource::Volume { name: name?, path: path.unwrap_or(Some(String::new()))? })
}

fn volume(field: &Field<'_>, volumes: &[Mount]) -> Option<String> {
    let text = field.text()?;
    let named = || {
        volumes.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume(name) => Some(name.as_str()),
            MountSource::Host(_) => None,
        })
    };
    if named().any(|name| name == text) {
        return Some(text.to_owned());
    }
    if text.starts_with('/') {
        let what =
            format!(": {:?} is a directory of the host, and only named volumes can be served", shorten(text, 60));
        field.problem(what, "mount a volume, \"NAME:/path\" in its volumes, and write volume = \"NAME\"");
        return None;
    }
    let hint = match did_you_mean(text, named()) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("add \"{}:/path\" to its volumes", shorten(text, 60)),
    };
    field.problem(format!(": the service mounts no volume {:?}", shorten(text, 60)), hint);
    None
}

/// A directory of an image, without what makes no difference.
fn directory(text: &str) -> Result<String, Fault> {
    let plain =
        plain(text).ok_or_else(|| Fault::new(format!(": {:?} is no directory", shorten(text, 100)), DIRECTORY))?;
    if plain.is_empty() {
        let what =
            format!(": {:?} would be everything that the image or its working directory has", shorten(text, 100));
        return Err(Fault::new(what, DIRECTORY));
    }
    Ok(if text.starts_with('/') { format!("/{plain}") } else { plain })
}

/// A directory of a volume, without what makes no difference.
fn below(text: &str) -> Result<String, Fault> {
    let hint = "write a directory of the volume, such as \"public\"";
    plain(text).ok_or_else(|| Fault::new(format!(": {:?} is no directory", shorten(text, 100)), hint))
}

/// Its names, joined; `None` when it climbs, or holds what no name does.
fn plain(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.contains(&"..") && !text.contains('\0') && text.len() <= 1000).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_or_refused() {
        for (text, expected) in
            [("staticfiles", Some("staticfiles")), ("./a//b/", Some("a/b")), ("/app/static/", Some("/app/static"))]
        {
            assert_eq!(directory(text).ok().as_deref(), expected, "{text}");
        }
        for bad in ["", ".", "/", "../x", "a/../../b", "/app/..", "a\0b"] {
            assert!(directory(bad).is_err(), "{bad}");
        }
        assert_eq!((below("/public/"), below("")), (Ok("public".to_owned()), Ok(String::new())));
    }
}
