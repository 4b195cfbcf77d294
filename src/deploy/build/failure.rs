//! From the builders' error texts to one line for people. The full text is in the log.

use super::progress::Step;
use crate::runtime::docker::explain::refusal;

/// Why a build failed, in one line.
pub(super) fn explain(error: &str, step: Option<&Step>, dockerfile: &str) -> String {
    let own = step.and_then(|step| step.error.as_deref());
    let instruction = step.map(|step| shown(&step.instruction));
    let whole = error.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(at) = whole.find("dockerfile parse error") {
        return format!("{dockerfile}: {}", parse_error(&whole[at..]));
    }
    if whole.contains("the --mount option requires BuildKit") {
        return needs_buildkit(dockerfile, "RUN --mount");
    }
    if let Some(code) = exit_code(own.unwrap_or(&whole)).or_else(|| exit_code(&whole)) {
        let hint = if code == 137 { " (killed: out of memory, or by somebody)" } else { "" };
        let step = instruction.unwrap_or_else(|| "a RUN".to_owned());
        return format!("the Dockerfile's step `{step}` exited with {code}{hint}");
    }
    if is_pull_failure(&whole) && whole.contains("docker/dockerfile") {
        return format!(
            "the `# syntax=` line of {dockerfile} makes BuildKit pull a frontend image, and that failed: {}; remove \
             the line, or set builder = \"classic\"",
            cause(&whole)
        );
    }
    if let (true, Some(instruction)) = (is_missing_file(&whole), &instruction)
        && is_copy(instruction)
    {
        return format!(
            "the Dockerfile's step `{instruction}` names a file that is not in the build context: it is missing in \
             the repository, or .dockerignore excludes it"
        );
    }
    if is_pull_failure(&whole) {
        let which = match instruction.as_deref().and_then(from_image) {
            Some(image) => format!("base image {image}"),
            None => "an image that the Dockerfile names".to_owned(),
        };
        return format!("{which} cannot be pulled: {}", cause(&whole));
    }
    let text = own.map_or_else(|| innermost(&whole), refusal);
    match instruction {
        Some(instruction) if own.is_some() => format!("the Dockerfile's step `{instruction}` failed: {text}"),
        _ => text,
    }
}

/// Why the classic builder cannot build it.
pub(super) fn needs_buildkit(dockerfile: &str, what: &str) -> String {
    format!(
        "{dockerfile} uses {what}, which needs BuildKit: set builder = \"auto\" or \"buildkit\" on an engine that has it"
    )
}

/// An instruction short enough for one line.
fn shown(instruction: &str) -> String {
    crate::model::shorten(&crate::runtime::output::clean(instruction), 120)
}

/// `dockerfile parse error line 3: unknown instruction: FRM` → `line 3: unknown instruction: FRM`.
fn parse_error(text: &str) -> String {
    let rest = text.trim_start_matches("dockerfile parse error").trim_start_matches([' ', ':']);
    rest.strip_prefix("on ").unwrap_or(rest).to_owned()
}

fn exit_code(text: &str) -> Option<i64> {
    ["returned a non-zero code: ", "exit code: "].iter().find_map(|mark| {
        let (_, rest) = text.rsplit_once(mark)?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    })
}

fn is_missing_file(text: &str) -> bool {
    [
        "file not found",
        "no such file or directory",
        "file does not exist",
        ": not found",
        "no source files were specified",
    ]
    .iter()
    .any(|mark| text.contains(mark))
}

fn is_copy(instruction: &str) -> bool {
    let word = instruction.split_whitespace().next().unwrap_or_default();
    word.eq_ignore_ascii_case("COPY") || word.eq_ignore_ascii_case("ADD")
}

fn is_pull_failure(text: &str) -> bool {
    const MARKS: [&str; 10] = [
        "pull access denied",
        "manifest unknown",
        "manifest for ",
        "no such host",
        "failed to do request",
        "i/o timeout",
        "connection refused",
        "failed to resolve source metadata",
        "TLS handshake",
        "toomanyrequests",
    ];
    MARKS.iter().any(|mark| text.contains(mark)) || text.contains("dial tcp") || text.contains("failed to authorize")
}

/// What lies below the layers of a pull's error.
fn cause(text: &str) -> String {
    if text.contains("pull access denied") || text.contains("insufficient_scope") {
        return "there is no such image, or the engine is not logged in where it is (docker login)".to_owned();
    }
    if text.contains("manifest unknown") || text.contains("manifest for ") || text.ends_with(": not found") {
        return "the registry has no such tag".to_owned();
    }
    if let Some((_, rest)) = text.rsplit_once("dial tcp: ").or_else(|| text.rsplit_once("dial tcp ")) {
        return rest.to_owned();
    }
    innermost(text)
}

/// The image of a FROM line, or of BuildKit's look at it.
fn from_image(instruction: &str) -> Option<String> {
    if let Some(image) = instruction.strip_prefix("load metadata for ") {
        return Some(image.trim_start_matches("docker.io/library/").to_owned());
    }
    let mut words = instruction.split_whitespace().filter(|word| !word.starts_with("--"));
    let is_from = words.next()?.eq_ignore_ascii_case("FROM");
    let image = words.next().filter(|_| is_from)?;
    Some(image.to_owned())
}

/// An error without the names of the layers it passed.
fn innermost(text: &str) -> String {
    const LAYERS: [&str; 5] = [
        "failed to create LLB definition: ",
        "failed to solve with frontend dockerfile.v0: ",
        "failed to solve: ",
        "rpc error: code = Unknown desc = ",
        "error from sender: ",
    ];
    let inner = LAYERS.iter().fold(text, |text, layer| text.rsplit_once(layer).map_or(text, |(_, rest)| rest));
    refusal(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: &str, step: Option<(&str, Option<&str>)>, expected: &str) {
        let step = step
            .map(|(instruction, error)| Step { instruction: instruction.to_owned(), error: error.map(str::to_owned) });
        assert_eq!(explain(error, step.as_ref(), "Dockerfile"), expected);
    }

    #[test]
    fn steps_that_fail_are_named_with_their_code() {
        check(
            "The command '/bin/sh -c false' returned a non-zero code: 1",
            Some(("RUN false", None)),
            "the Dockerfile's step `RUN false` exited with 1",
        );
        let own = "executor failed running [/bin/sh -c false]: exit code: 1";
        check(own, Some(("RUN false", Some(own))), "the Dockerfile's step `RUN false` exited with 1");
        let newer = "failed to solve: process \"/bin/sh -c x\" did not complete successfully: exit code: 137";
        check(
            newer,
            Some(("RUN x", Some(newer))),
            "the Dockerfile's step `RUN x` exited with 137 (killed: out of memory, or by somebody)",
        );
    }

    #[test]
    fn a_missing_file_is_explained() {
        let expected = "the Dockerfile's step `COPY nope /` names a file that is not in the build context: it is \
                        missing in the repository, or .dockerignore excludes it";
        let classic =
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist";
        check(classic, Some(("COPY nope /", None)), expected);
        let buildkit = "failed to compute cache key: \"/nope\" not found: not found";
        check(buildkit, Some(("COPY nope /", Some(buildkit))), expected);
    }

    #[test]
    fn a_missing_base_image_is_named_with_the_cause() {
        check(
            "pull access denied for longshore-none, repository does not exist or may require 'docker login': denied",
            Some(("FROM longshore-none", None)),
            "base image longshore-none cannot be pulled: there is no such image, or the engine is not logged in where it is (docker login)",
        );
        check(
            "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
            Some(("FROM --platform=linux/amd64 debian:13 AS a", None)),
            "base image debian:13 cannot be pulled: lookup registry-1.docker.io: no such host",
        );
        check(
            "failed to solve with frontend dockerfile.v0: failed to create LLB definition: failed to do request: Head \
             \"https://registry-1.docker.io/v2/library/x/manifests/1\": dial tcp: lookup registry-1.docker.io: no such host",
            Some(("load metadata for docker.io/library/x:1", None)),
            "base image x:1 cannot be pulled: lookup registry-1.docker.io: no such host",
        );
    }

    #[test]
    fn a_frontend_that_cannot_be_pulled_has_a_way_out() {
        let expected = "the `# syntax=` line of Dockerfile makes BuildKit pull a frontend image, and that failed: lookup \
                        registry-1.docker.io: no such host; remove the line, or set builder = \"classic\"";
        let cause = "https://registry-1.docker.io/v2/docker/dockerfile/manifests/1: dial tcp: lookup registry-1.docker.io: no such host";
        check(
            &format!("failed to solve with frontend dockerfile.v0: failed to do request: Head {cause}"),
            None,
            expected,
        );
        let metadata = "failed to solve: failed to resolve source metadata for docker.io/docker/dockerfile:1";
        check(
            &format!("{metadata}: {cause}"),
            Some(("docker-image://docker.io/docker/dockerfile:1", Some("x"))),
            expected,
        );
    }

    #[test]
    fn parse_errors_have_a_line() {
        let expected = "Dockerfile: line 1: unknown instruction: FRM";
        check("dockerfile parse error line 1: unknown instruction: FRM", None, expected);
        check(
            "failed to solve with frontend dockerfile.v0: failed to create LLB definition: dockerfile parse error line 1: unknown instruction: FRM",
            None,
            expected,
        );
        check("dockerfile parse error on line 1: unknown instruction: FRM", None, expected);
    }
}
