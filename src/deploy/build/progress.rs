//! What the engine's builders say, line by line, and what is to be remembered of it. Pure: bytes in, log lines out.
//!
//! Both answer with JSON lines. The classic builder's carry text in `stream`; BuildKit's carry protobuf
//! (`moby.buildkit.v1.StatusResponse` of github.com/moby/buildkit `api/services/control/control.proto`) as base64 in
//! `aux`, under the id `moby.buildkit.trace`.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use prost::Message;
use serde::Deserialize;

use crate::runtime::output::{Lines, clean};

/// A line longer than this is not kept to be decoded.
pub(super) const LONGEST_LINE: usize = 8 * 1024 * 1024;

/// Follows one build.
#[derive(Debug, Default)]
pub(super) struct Progress {
    classic: Classic,
    buildkit: BuildKit,
    /// The error that ended it, as the engine put it.
    pub(super) error: Option<String>,
}

/// What the classic builder has at the end of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StageImage {
    /// Short id.
    pub(super) image: String,
    /// It was there before this build, and somebody else's build may have made it.
    pub(super) cached: bool,
}

/// A step that failed or is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The instruction, such as `RUN make`.
    pub(super) instruction: String,
    /// BuildKit's own text about what went wrong there.
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    stream: Option<String>,
    status: Option<String>,
    error: Option<String>,
    #[serde(rename = "errorDetail")]
    error_detail: Option<ErrorDetail>,
    aux: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: Option<String>,
}

impl Progress {
    /// Takes one JSON line and returns what the log should say. A line that cannot be read is said to be one: whether
    /// the image exists is asked afterwards in any case.
    pub(super) fn line(&mut self, bytes: &[u8]) -> Vec<String> {
        if bytes.trim_ascii().is_empty() {
            return Vec::new();
        }
        let Ok(line) = serde_json::from_slice::<Line>(bytes) else {
            return vec!["warning: the engine sent a line that could not be read".to_owned()];
        };
        if let Some(message) = line.error_detail.and_then(|detail| detail.message).or(line.error) {
            let mut said = self.classic.output.finish().into_iter().collect::<Vec<_>>();
            said.extend(message.lines().map(clean).map(|text| format!("error: {text}")));
            self.error = Some(message);
            return said;
        }
        if let Some(text) = line.stream {
            return self.classic.stream(&text);
        }
        if let (Some("moby.buildkit.trace"), Some(aux)) = (line.id.as_deref(), &line.aux) {
            let trace = aux.as_str().and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
            return match trace.map(|bytes| StatusResponse::decode(bytes.as_slice())) {
                Some(Ok(status)) => self.buildkit.status(status),
                _ => vec!["warning: the engine sent progress that could not be read".to_owned()],
            };
        }
        // A pull by the classic builder: its many progress lines are left out.
        match (line.status, line.id) {
            (Some(status), None) => vec![clean(&status)],
            _ => Vec::new(),
        }
    }

    /// The step that was running when it ended: the one that failed, if any did.
    pub(super) fn step(&self) -> Option<Step> {
        self.buildkit.failed.clone().or_else(|| {
            let instruction = self.classic.instruction.clone()?;
            Some(Step { instruction, error: None })
        })
    }

    /// What the classic builder has at the end of each stage, if it is more than the base image. No name leads to it,
    /// except that the last one of a finished build is the result.
    pub(super) fn stage_images(&self) -> Vec<StageImage> {
        let made = |stage: &StageImages| {
            let image = stage.last.clone().filter(|last| Some(last) != stage.base.as_ref())?;
            Some(StageImage { image, cached: stage.cached })
        };
        self.classic.stages.iter().filter_map(made).collect()
    }
}

/// The classic builder: `Step 2/3 : RUN make`, output, ` ---> 0123456789ab`.
#[derive(Debug, Default)]
struct Classic {
    output: Lines,
    instruction: Option<String>,
    stages: Vec<StageImages>,
}

#[derive(Debug, Default)]
struct StageImages {
    /// The image that FROM names.
    base: Option<String>,
    last: Option<String>,
    /// `last` came from the cache.
    cached: bool,
    /// The step under way does.
    hit: bool,
}

impl Classic {
    fn stream(&mut self, text: &str) -> Vec<String> {
        let mut lines = self.output.push(text.as_bytes());
        lines.retain(|line| !line.is_empty());
        for line in &lines {
            self.note(line);
        }
        lines
    }

    fn note(&mut self, line: &str) {
        if let Some(instruction) = step_instruction(line) {
            if instruction.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("from ")) {
                self.stages.push(StageImages::default());
            }
            self.instruction = Some(instruction.to_owned());
            self.stages.iter_mut().for_each(|stage| stage.hit = false);
            return;
        }
        if let (" ---> Using cache", Some(stage)) = (line, self.stages.last_mut()) {
            stage.hit = true;
            return;
        }
        let id = line.strip_prefix(" ---> ").filter(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        if let (Some(id), Some(stage)) = (id, self.stages.last_mut()) {
            stage.base.get_or_insert_with(|| id.to_owned());
            stage.last = Some(id.to_owned());
            stage.cached = stage.hit;
        }
    }
}

/// `Step 2/3 : RUN make` → `RUN make`.
fn step_instruction(line: &str) -> Option<&str> {
    let (count, instruction) = line.strip_prefix("Step ")?.split_once(" : ")?;
    let (done, all) = count.split_once('/')?;
    let number = |text: &str| text.parse::<u32>().is_ok();
    (number(done) && number(all)).then_some(instruction)
}

/// BuildKit: a graph of vertexes that run side by side, so each line says whose it is.
#[derive(Debug, Default)]
struct BuildKit {
    numbers: HashMap<String, Vertexes>,
    seen_statuses: HashSet<String>,
    failed: Option<Step>,
}

#[derive(Debug, Default)]
struct Vertexes {
    number: usize,
    announced: bool,
    finished: bool,
    output: Lines,
}

impl BuildKit {
    fn status(&mut self, status: StatusResponse) -> Vec<String> {
        let mut said = Vec::new();
        for vertex in &status.vertexes {
            self.begin(vertex, &mut said);
        }
        for transfer in status.statuses {
            let what = if transfer.id.is_empty() { transfer.name } else { transfer.id };
            let key = format!("{} {what}", transfer.vertex);
            if self.seen_statuses.insert(key)
                && let Some(vertex) = self.numbers.get(&transfer.vertex)
            {
                said.push(format!("#{} {}", vertex.number, clean(&what)));
            }
        }
        for log in status.logs {
            let Some(vertex) = self.numbers.get_mut(&log.vertex) else { continue };
            let number = vertex.number;
            said.extend(vertex.output.push(&log.msg).into_iter().map(|line| format!("#{number} {line}")));
        }
        for warning in status.warnings {
            said.push(format!("warning: {}", clean(&String::from_utf8_lossy(&warning.short))));
        }
        for vertex in status.vertexes {
            self.end(vertex, &mut said);
        }
        said
    }

    fn begin(&mut self, vertex: &Vertex, said: &mut Vec<String>) {
        let next = self.numbers.len() + 1;
        let known = self
            .numbers
            .entry(vertex.digest.clone())
            .or_insert_with(|| Vertexes { number: next, ..Default::default() });
        if !known.announced && (vertex.started.is_some() || vertex.cached) {
            known.announced = true;
            said.push(format!("#{} {}", known.number, clean(&vertex.name)));
        }
    }

    fn end(&mut self, vertex: Vertex, said: &mut Vec<String>) {
        let Some(known) = self.numbers.get_mut(&vertex.digest) else { return };
        let number = known.number;
        if known.finished || (vertex.completed.is_none() && vertex.error.is_empty() && !vertex.cached) {
            return;
        }
        known.finished = true;
        said.extend(known.output.finish().map(|line| format!("#{number} {line}")));
        if !vertex.error.is_empty() {
            said.push(format!("#{number} ERROR {}", clean(&vertex.error)));
            // The steps that were running beside the failed one end as cancelled.
            let cancelled = vertex.error.contains("context canceled");
            if !cancelled && self.failed.is_none() {
                let instruction = vertex_instruction(&vertex.name).to_owned();
                self.failed = Some(Step { instruction, error: Some(vertex.error) });
            }
        } else if vertex.cached {
            said.push(format!("#{number} CACHED"));
        } else {
            let seconds = took(vertex.started, vertex.completed);
            said.push(format!("#{number} DONE {seconds:.1}s"));
        }
    }
}

/// `[build 2/3] RUN make` → `RUN make`.
fn vertex_instruction(name: &str) -> &str {
    match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, instruction)) => instruction,
        None => name,
    }
}

fn took(started: Option<Time>, completed: Option<Time>) -> f64 {
    let seconds = |time: Time| time.seconds as f64 + f64::from(time.nanos) / 1e9;
    match (started, completed) {
        (Some(started), Some(completed)) => (seconds(completed) - seconds(started)).max(0.0),
        _ => 0.0,
    }
}

/// The parts of BuildKit's messages that are read here; numbers as in its `control.proto`.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, repeated, tag = "1")]
    vertexes: Vec<Vertex>,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<VertexStatus>,
    #[prost(message, repeated, tag = "3")]
    logs: Vec<VertexLog>,
    #[prost(message, repeated, tag = "4")]
    warnings: Vec<VertexWarning>,
}

#[derive(Clone, PartialEq, Message)]
struct Vertex {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(bool, tag = "4")]
    cached: bool,
    #[prost(message, optional, tag = "5")]
    started: Option<Time>,
    #[prost(message, optional, tag = "6")]
    completed: Option<Time>,
    #[prost(string, tag = "7")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct VertexStatus {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    vertex: String,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct VertexLog {
    #[prost(string, tag = "1")]
    vertex: String,
    #[prost(bytes = "vec", tag = "4")]
    msg: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct VertexWarning {
    #[prost(bytes = "vec", tag = "3")]
    short: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(progress: &mut Progress, text: &str) -> Vec<String> {
        progress.line(serde_json::json!({ "stream": text }).to_string().as_bytes())
    }

    fn trace(progress: &mut Progress, status: StatusResponse) -> Vec<String> {
        let aux = base64::engine::general_purpose::STANDARD.encode(status.encode_to_vec());
        progress.line(serde_json::json!({ "id": "moby.buildkit.trace", "aux": aux }).to_string().as_bytes())
    }

    #[test]
    fn classic_output_is_readable_and_its_stages_are_remembered() {
        let mut progress = Progress::default();
        let mut said = Vec::new();
        for text in [
            "Step 1/5 : FROM debian as build\n",
            " ---> aaaaaaaaaaaa\n",
            "Step 2/5 : RUN make\n",
            " ---> Running in 111111111111\n",
            "\u{1b}[91mcc: war",
            "ning\n\u{1b}[0m",
            " ---> bbbbbbbbbbbb\n",
            "Step 3/5 : FROM scratch\n",
            " ---> \n",
            "Step 4/5 : COPY --from=build /a /a\n",
            " ---> cccccccccccc\n",
            "Step 5/5 : LABEL a=b\n",
            " ---> Using cache\n",
            " ---> dddddddddddd\n",
        ] {
            said.extend(stream(&mut progress, text));
        }
        assert!(said.contains(&"cc: warning".to_owned()), "{said:?}");
        let made = |image: &str, cached| StageImage { image: image.to_owned(), cached };
        assert_eq!(progress.stage_images(), [made("bbbbbbbbbbbb", false), made("dddddddddddd", true)]);
        progress.line(br#"{"errorDetail":{"code":7,"message":"The command '/bin/sh -c x' returned a non-zero code: 7"},"error":"x"}"#);
        assert_eq!(progress.step().unwrap().instruction, "LABEL a=b");
        assert!(progress.error.unwrap().ends_with("code: 7"));
    }

    #[test]
    fn a_base_image_is_not_ours() {
        let mut progress = Progress::default();
        for text in
            ["Step 1/2 : FROM debian AS base\n", " ---> aaaaaaaaaaaa\n", "Step 2/2 : from scratch\n", " ---> \n"]
        {
            stream(&mut progress, text);
        }
        assert_eq!(progress.stage_images(), []);
    }

    #[test]
    fn buildkit_vertexes_are_told_apart() {
        let at = |seconds| Some(Time { seconds, nanos: 500_000_000 });
        let vertex = |digest: &str, name: &str| Vertex {
            digest: digest.to_owned(),
            name: name.to_owned(),
            started: at(1),
            ..Default::default()
        };
        let mut progress = Progress::default();
        let begin = trace(
            &mut progress,
            StatusResponse {
                vertexes: vec![vertex("a", "[1/2] FROM x"), vertex("b", "[2/2] RUN false")],
                logs: vec![VertexLog { vertex: "b".to_owned(), msg: b"half a ".to_vec() }],
                ..Default::default()
            },
        );
        assert_eq!(begin, ["#1 [1/2] FROM x", "#2 [2/2] RUN false"]);
        let end = trace(
            &mut progress,
            StatusResponse {
                vertexes: vec![
                    Vertex { cached: true, completed: at(1), ..vertex("a", "[1/2] FROM x") },
                    Vertex { completed: at(3), error: "exit code: 1".to_owned(), ..vertex("b", "[2/2] RUN false") },
                ],
                logs: vec![VertexLog { vertex: "b".to_owned(), msg: b"line".to_vec() }],
                ..Default::default()
            },
        );
        assert_eq!(end, ["#1 CACHED", "#2 half a line", "#2 ERROR exit code: 1"]);
        let step = progress.step().unwrap();
        assert_eq!((step.instruction.as_str(), step.error.as_deref()), ("RUN false", Some("exit code: 1")));
        let done = trace(
            &mut progress,
            StatusResponse {
                vertexes: vec![Vertex { completed: at(3), ..vertex("c", "exporting") }],
                ..Default::default()
            },
        );
        assert_eq!(done, ["#3 exporting", "#3 DONE 2.0s"]);
    }

    #[test]
    fn an_unreadable_line_is_a_warning() {
        let mut progress = Progress::default();
        for line in [
            &b"{\"stream\": \xff"[..],
            b"not json",
            br#"{"id":"moby.buildkit.trace","aux":"%%%"}"#,
            br#"{"id":"moby.buildkit.trace","aux":"/////w=="}"#,
        ] {
            let said = progress.line(line);
            assert!(said.len() == 1 && said[0].starts_with("warning"), "{said:?}");
        }
        assert!(progress.line(b"\r").is_empty() && progress.error.is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in "(Step |1/2| : |FROM |---> |[a-f0-9]{12}|\n| ){0,20}") {
            let mut progress = Progress::default();
            progress.line(&bytes);
            stream(&mut progress, &text);
            let aux = base64::engine::general_purpose::STANDARD.encode(&bytes);
            progress.line(serde_json::json!({ "id": "moby.buildkit.trace", "aux": aux }).to_string().as_bytes());
            prop_assert!(progress.stage_images().len() <= 20);
        }
    }
}
