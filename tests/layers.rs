//! Who may know what: the boundaries between the parts, read from the source text itself.

// A file of the source that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A library that only some of the code may mention.
struct Boundary {
    library: &'static str,
    /// Paths below `src/` by their beginning.
    only_in: &'static [&'static str],
    invariant: &'static str,
}

const BOUNDARIES: &[Boundary] = &[
    Boundary {
        library: "bollard",
        only_in: &["runtime/", "deploy/build/"],
        invariant: "the Docker engine is behind the trait Runtime and the Builder, so that another runtime touches \
                    neither rollout nor health",
    },
    Boundary {
        library: "git2",
        only_in: &["deploy/source", "deploy/build/context"],
        invariant: "git objects end at the source and the build context; all others see a CommitSha",
    },
    Boundary {
        library: "rusqlite",
        only_in: &["store/"],
        invariant: "one thread owns the database, and SQL is written in one folder",
    },
    Boundary {
        library: "axum",
        only_in: &["trigger/", "api/", "serve.rs", "cli/demo/site.rs", "notify/stand_in.rs"],
        invariant: "HTTP handlers translate between the wire and the domain; no domain type knows the web framework",
    },
    Boundary {
        library: "tokio_rustls",
        only_in: &["proxy/"],
        invariant: "clients' TLS ends in the proxy; behind it there are requests",
    },
    Boundary {
        library: "instant_acme",
        only_in: &["acme/"],
        invariant: "the agent orders certificates; all others see files and answers",
    },
    Boundary {
        library: "rcgen",
        only_in: &["proxy/certificate.rs"],
        invariant: "what a certificate is made of is known in one file",
    },
    Boundary {
        library: "x509_parser",
        only_in: &["proxy/certificate.rs"],
        invariant: "certificates are read in one file; all others see names and an end",
    },
];

/// Files that decide and do nothing else: the same input gives the same answer, and a test is a literal.
const PURE: &[&str] = &[
    "acme/names.rs",
    "acme/news.rs",
    "acme/plan.rs",
    "histogram.rs",
    "rollout/judge.rs",
    "rollout/judge/evidence.rs",
    "rollout/machine.rs",
    "rollout/canary.rs",
    "rollout/permanent.rs",
    "rollout/permanent/comparison.rs",
    "rollout/plan.rs",
    "rollout/routes/parts.rs",
    "rollout/shares.rs",
    "rollout/stand_ins.rs",
    "rollout/strangers.rs",
    "rollout/tally.rs",
    "notify/canary.rs",
    "notify/certificate.rs",
    "notify/outage.rs",
    "rollout/upkeep.rs",
    "rollout/watch.rs",
    "health/gate.rs",
    "proxy/access_log/line.rs",
    "proxy/files/conditions.rs",
    "proxy/files/name.rs",
    "proxy/lookup.rs",
    "proxy/path_prefix.rs",
    "proxy/pick.rs",
    "proxy/stagger.rs",
    "queue.rs",
    "trigger/github.rs",
    "trigger/post_receive.rs",
    "trigger/signature.rs",
];

/// Libraries that reach outside the process.
const OUTSIDE: &[&str] = &["tokio", "bollard", "git2", "hyper", "axum", "reqwest", "rusqlite"];
/// `now` is an argument.
const CLOCK: &[&str] = &["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now"];
const NETWORK: &[&str] = &["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener"];
/// Files, processes, environment.
const MACHINE: &[&str] = &["std::fs", "fs::", "File::open", "File::create", "std::process", "std::env", "env::"];
const CHANCE: &[&str] = &["getrandom", "rand", "RandomState"];

/// What a pure file never mentions.
const EFFECTS: &[&[&str]] = &[OUTSIDE, CLOCK, NETWORK, MACHINE, CHANCE];
/// What reading a configuration never mentions. It may look at the files that the configuration names.
const EFFECTS_ON_CONFIG: &[&[&str]] = &[OUTSIDE, CLOCK, NETWORK, &["std::process"], CHANCE];

#[test]
fn only_the_parts_that_wrap_a_library_mention_it() {
    let mut violations = Vec::new();
    for (path, code) in sources() {
        for boundary in BOUNDARIES.iter().filter(|boundary| !boundary.only_in.iter().any(|part| path.starts_with(part)))
        {
            for line in mentions(&code, boundary.library) {
                let Boundary { library, only_in, invariant } = boundary;
                violations
                    .push(format!("src/{path}:{line} mentions {library}, which belongs to {only_in:?}: {invariant}"));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn what_decides_has_no_effects() {
    let sources = sources();
    let mut violations = Vec::new();
    for pure in PURE {
        let Some((_, code)) = sources.iter().find(|(path, _)| path == pure) else {
            violations.push(format!("src/{pure} is not there: when it was renamed, rename it in this list"));
            continue;
        };
        for effect in EFFECTS.concat() {
            for line in mentions(code, effect) {
                violations.push(format!(
                    "src/{pure}:{line} mentions {effect}: this file decides, and all it decides from is an argument; \
                     move the effect to its caller"
                ));
            }
        }
    }
    for (path, code) in sources.iter().filter(|(path, _)| path.starts_with("config/")) {
        for effect in EFFECTS_ON_CONFIG.concat() {
            for line in mentions(code, effect) {
                violations.push(format!(
                    "src/{path}:{line} mentions {effect}: reading a configuration changes nothing and waits for nobody"
                ));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn the_reader_sees_code_and_nothing_else() {
    let source = "\
//! tokio in a doc comment
use tokio::sync::mpsc; // here
let tokio_like = my_tokio; /* tokio */
/* tokio
   tokio */
let at = Instant::now(); let text = \"see https://docs.rs/tokio\";
#[cfg(test)]
mod tests { use tokio::test; }
";
    let code = code_of(source);
    assert_eq!(mentions(&code, "tokio"), [2]);
    assert_eq!(mentions(&code, "Instant::now"), [6]);
    assert_eq!(mentions(&code_of("let a = r#\"a \" tokio\"#;\nlet b = br\"\\\"; tokio::spawn(b)"), "tokio"), [2]);
    assert_eq!(mentions(&code_of("use std::{\n    fs,\n    net::TcpStream,\n};\n"), "std::fs"), [2]);
    assert_eq!(mentions(&code_of("use std::{io, fs::File};\n"), "std::fs"), [1]);
}

/// Every file below `src/` by its path there, reduced to code.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(files.len() > 10, "src/ was not found in {}", root.display());
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (path, code_of(&fs::read_to_string(file).unwrap()))
    };
    files.iter().map(read).filter(|(path, _)| !is_test_file(path)).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `tests.rs` and `tests/…` beside the code they test.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The source with comments, texts and the tests at its end blanked out, so that line numbers stay.
fn code_of(source: &str) -> String {
    let end = source.find("\n#[cfg(test)]\nmod ").unwrap_or(source.len());
    let mut code = String::new();
    let mut rest = &source[..end];
    while let Some(next) = rest.chars().next() {
        let skipped = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '"' => end_of_text(rest),
            'r' if !code.trim_end_matches('b').ends_with(part_of_name) && raw_text_hashes(rest).is_some() => {
                let closing = format!("\"{}", "#".repeat(raw_text_hashes(rest).unwrap()));
                let opening = closing.len() + 1;
                rest[opening..].find(&closing).map_or(rest.len(), |at| opening + at + closing.len())
            }
            // A quote as a character, not the beginning of a text.
            '\'' if rest.starts_with("'\"'") => 3,
            '\'' if rest.starts_with("'\\\"'") => 4,
            other => {
                code.push(other);
                rest = &rest[other.len_utf8()..];
                continue;
            }
        };
        code.extend(rest[..skipped].chars().filter(|&character| character == '\n'));
        rest = &rest[skipped..];
    }
    code
}

/// How many `#` a raw text begins with; `None` when `rest` does not begin with one.
fn raw_text_hashes(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Past the closing quote of the text that `rest` begins with.
fn end_of_text(rest: &str) -> usize {
    let mut escaped = false;
    for (index, character) in rest.char_indices().skip(1) {
        match character {
            '"' if !escaped => return index + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

/// The lines that mention a path as a whole word, also inside `use std::{…}`.
fn mentions(code: &str, path: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut group: Option<String> = None;
    for (number, line) in (1..).zip(code.lines()) {
        if let Some((root, _)) = line.trim_start().strip_prefix("use ").and_then(|rest| rest.split_once("::{")) {
            group = Some(root.to_owned());
        }
        let grouped = |root: &String| {
            let (first, last) = path.split_once("::").unwrap_or((path, ""));
            root == first && !last.is_empty() && has_word(line, last)
        };
        if has_word(line, path) || group.as_ref().is_some_and(grouped) {
            lines.push(number);
        }
        if line.contains("};") {
            group = None;
        }
    }
    lines
}

fn part_of_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let ends_open = word.ends_with("::") || !after.is_some_and(part_of_name);
        !before.is_some_and(part_of_name) && ends_open
    })
}
