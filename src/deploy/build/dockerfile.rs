//! What has to be known of a Dockerfile before the engine sees it: which images it starts from, which frontend it
//! asks for, and whether only BuildKit can build it. Everything else is the engine's to judge, so reading never fails.

use std::collections::BTreeMap;

/// A Dockerfile's outline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Outline {
    /// The image named by a `# syntax=` line, or by the build argument that overrides it.
    pub(super) syntax: Option<String>,
    /// A `RUN --mount`, which the classic builder refuses.
    pub(super) mounts: bool,
    stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stage {
    name: Option<String>,
    base: Base,
    /// `COPY --from=IMAGE` and `RUN --mount=…,from=IMAGE`.
    borrows: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Base {
    Scratch,
    Stage(usize),
    Image(String),
}

impl Outline {
    /// Reads a Dockerfile with these build arguments, up to the stage `target` (or all of it).
    pub(super) fn read(dockerfile: &[u8], args: &BTreeMap<String, String>, target: Option<&str>) -> Self {
        let text = String::from_utf8_lossy(dockerfile);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let directives = directives(text);
        let escape = directives.get("escape").and_then(|value| value.chars().next()).unwrap_or('\\');
        let syntax = args.get("BUILDKIT_SYNTAX").or_else(|| directives.get("syntax")).cloned();
        let mut outline = Self { syntax: syntax.or_else(|| syntax_elsewhere(text)), ..Self::default() };
        let mut globals = BTreeMap::new();
        for line in instructions(text, escape) {
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
            match word.to_ascii_uppercase().as_str() {
                "ARG" if outline.stages.is_empty() => declare(rest, args, &mut globals),
                "FROM" => {
                    if outline.is_built(target) {
                        break;
                    }
                    outline.begin_stage(rest, &globals);
                }
                "COPY" | "ADD" | "RUN" => outline.note_flags(rest, &globals),
                _ => {}
            }
        }
        outline
    }

    /// The images it starts from or copies from, each once, in the order of the file.
    pub(super) fn images(&self) -> Vec<&str> {
        let mut images: Vec<&str> = Vec::new();
        for stage in &self.stages {
            let base = match &stage.base {
                Base::Image(image) => Some(image.as_str()),
                Base::Scratch | Base::Stage(_) => None,
            };
            for image in base.into_iter().chain(stage.borrows.iter().map(String::as_str)) {
                if !images.contains(&image) {
                    images.push(image);
                }
            }
        }
        images
    }

    /// What the resulting image itself is based on; `None` for `scratch`.
    pub(super) fn base(&self) -> Option<&str> {
        let mut stage = self.stages.last()?;
        loop {
            match &stage.base {
                Base::Scratch => return None,
                Base::Image(image) => return Some(image),
                // Always an earlier one, so this ends.
                Base::Stage(index) => stage = self.stages.get(*index)?,
            }
        }
    }

    fn is_built(&self, target: Option<&str>) -> bool {
        let (Some(target), Some(last)) = (target, self.stages.last()) else { return false };
        let by_number = target.parse() == Ok(self.stages.len() - 1);
        by_number || last.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(target))
    }

    fn begin_stage(&mut self, rest: &str, globals: &BTreeMap<String, String>) {
        let words: Vec<&str> = rest.split_whitespace().filter(|word| !word.starts_with("--")).collect();
        let Some(image) = words.first().map(|word| expand(word, globals)) else { return };
        let name = match words.get(1) {
            Some(word) if word.eq_ignore_ascii_case("as") => words.get(2).map(|name| (*name).to_owned()),
            _ => None,
        };
        let base = match self.stage_named(&image) {
            Some(index) => Base::Stage(index),
            None if image == "scratch" => Base::Scratch,
            None => Base::Image(image),
        };
        self.stages.push(Stage { name, base, borrows: Vec::new() });
    }

    fn note_flags(&mut self, rest: &str, globals: &BTreeMap<String, String>) {
        for flag in rest.split_whitespace().take_while(|word| word.starts_with("--")) {
            let from = match flag.strip_prefix("--mount=") {
                Some(options) => {
                    self.mounts = true;
                    options.split(',').find_map(|option| option.strip_prefix("from="))
                }
                None => flag.strip_prefix("--from="),
            };
            let Some(from) = from.map(|from| expand(from, globals)) else { continue };
            let is_stage = self.stage_named(&from).is_some() || from.parse::<usize>().is_ok();
            if let Some(stage) = self.stages.last_mut()
                && !is_stage
            {
                stage.borrows.push(from);
            }
        }
    }

    fn stage_named(&self, name: &str) -> Option<usize> {
        let is_it = |stage: &Stage| stage.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
        self.stages.iter().rposition(is_it)
    }
}

/// Whether a frontend may be run: Docker's own, under its own name.
pub(super) fn is_allowed_frontend(image: &str) -> bool {
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    let end = name.find(['@', ':']).unwrap_or(name.len());
    matches!(&name[..end], "docker/dockerfile" | "docker/dockerfile-upstream")
}

/// `# name=value` lines before anything else.
fn directives(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let comment = line.trim_start().strip_prefix('#').filter(|rest| !rest.starts_with('!'));
        let Some((name, value)) = comment.and_then(|comment| comment.split_once('=')) else {
            if line.starts_with("#!") {
                continue;
            }
            break;
        };
        let name = name.trim().to_ascii_lowercase();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            break;
        }
        found.entry(name).or_insert_with(|| value.trim().to_owned());
    }
    found
}

/// BuildKit also takes the frontend from `// syntax=` comments and from a JSON document.
fn syntax_elsewhere(text: &str) -> Option<String> {
    let start = text.trim_start();
    if start.starts_with('{') {
        let document: serde_json::Value = serde_json::Deserializer::from_str(start).into_iter().next()?.ok()?;
        return document.get("syntax")?.as_str().map(str::to_owned);
    }
    let commented = start.lines().map_while(|line| line.trim_start().strip_prefix("//"));
    let mut pairs = commented.filter_map(|comment| comment.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("syntax"))?;
    Some(value.trim().to_owned())
}

/// Logical lines: continued ones joined, comments and empty ones left out.
fn instructions(text: &str, escape: char) -> Vec<String> {
    let mut done = Vec::new();
    let mut open = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with('#') || line.trim().is_empty() {
            continue;
        }
        match line.trim_end().strip_suffix(escape) {
            Some(part) => open.push_str(part),
            None => {
                open.push_str(line);
                done.push(std::mem::take(&mut open).trim().to_owned());
            }
        }
    }
    if !open.trim().is_empty() {
        done.push(open.trim().to_owned());
    }
    done
}

/// `ARG NAME[=default]` before the first FROM.
fn declare(rest: &str, args: &BTreeMap<String, String>, globals: &mut BTreeMap<String, String>) {
    for word in rest.split_whitespace() {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(expand(default.trim_matches(['"', '\'']), globals))),
            None => (word, None),
        };
        if let Some(value) = args.get(name).cloned().or(default) {
            globals.insert(name.to_owned(), value);
        }
    }
}

/// `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}`.
fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some((inner, tail)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            result.push_str(&expand_braced(inner, values));
            rest = tail;
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            result.push_str(values.get(&after[..end]).map_or("", String::as_str));
            rest = &after[end..];
        }
    }
    result + rest
}

fn expand_braced(inner: &str, values: &BTreeMap<String, String>) -> String {
    let value = |name: &str| values.get(name).filter(|value| !value.is_empty()).cloned();
    if let Some((name, default)) = inner.split_once(":-") {
        return value(name).unwrap_or_else(|| default.to_owned());
    }
    if let Some((name, other)) = inner.split_once(":+") {
        return value(name).map(|_| other.to_owned()).unwrap_or_default();
    }
    value(inner).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outline(text: &str) -> Outline {
        Outline::read(text.as_bytes(), &BTreeMap::new(), None)
    }

    #[test]
    fn stages_lead_to_the_images_outside() {
        let text = "# escape=\\\nARG TAG=3.12\nARG BASE\nFROM --platform=linux/amd64 python:${TAG}-slim AS deps\n\
                    RUN pip install \\\n  # a comment inside\n  -r x\n\
                    from node:${NODE:-20} as Assets\nCOPY --from=deps /a /a\nCOPY --chown=1 --from=nginx:1 /b /b\n\
                    FROM deps\nCOPY --from=assets /c /c\nRUN --mount=type=bind,from=busybox,target=/x true\n";
        let whole = outline(text);
        assert_eq!(whole.images(), ["python:3.12-slim", "node:20", "nginx:1", "busybox"]);
        assert_eq!(whole.base(), Some("python:3.12-slim"));
        assert!(whole.mounts);

        let args = BTreeMap::from([("TAG".to_owned(), "3.13".to_owned())]);
        let deps = Outline::read(text.as_bytes(), &args, Some("DEPS"));
        assert_eq!((deps.images(), deps.mounts), (vec!["python:3.13-slim"], false));
        assert_eq!(Outline::read(text.as_bytes(), &args, Some("1")).base(), Some("node:20"));
    }

    #[test]
    fn scratch_is_no_image() {
        let nothing = outline("FROM scratch\nCOPY app /app\n");
        assert_eq!((nothing.images(), nothing.base()), (vec![], None));
        assert_eq!(outline("").base(), None);
    }

    #[test]
    fn the_frontend_is_found_wherever_buildkit_looks() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(outline(text).syntax.as_deref(), expected, "{text}");
        check("# syntax=docker/dockerfile:1\nFROM a", Some("docker/dockerfile:1"));
        check("#!/usr/bin/env x\n#  SYNTAX = evil/x \nFROM a", Some("evil/x"));
        check("\u{feff}# escape=`\n# syntax=evil/x\n", Some("evil/x"));
        check("// syntax=evil/x\nFROM a", Some("evil/x"));
        check("{\"syntax\": \"evil/x\"}", Some("evil/x"));
        check("# a comment\n# syntax=evil/x\nFROM a", None);
        check("FROM a\n# syntax=evil/x", None);
        let args = BTreeMap::from([("BUILDKIT_SYNTAX".to_owned(), "evil/x".to_owned())]);
        assert_eq!(Outline::read(b"FROM a", &args, None).syntax.as_deref(), Some("evil/x"));
    }

    #[test]
    fn only_dockers_own_frontends_run() {
        for good in ["docker/dockerfile", "docker/dockerfile:1.7-labs", "docker.io/docker/dockerfile@sha256:ab"] {
            assert!(is_allowed_frontend(good), "{good}");
        }
        for bad in ["evil/x", "docker/dockerfile-evil", "evil.io/docker/dockerfile", "docker/dockerfile/x:1", ""] {
            assert!(!is_allowed_frontend(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "(FROM|ARG|COPY|RUN|#|\\$|\\{|\\}|=|--from=|--mount=| |\n|a|as){0,60}") {
            let _ = Outline::read(&bytes, &BTreeMap::new(), Some("a")).base();
            let read = Outline::read(text.as_bytes(), &BTreeMap::new(), None);
            let _ = (read.base(), read.images());
        }
    }
}
