//! Files of an app that the proxy answers with itself, so that no instance is asked for them.
//!
//! `name` makes a name of a path, `open` finds it, `conditions` says which part of it is wanted, and `body` sends that.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use hyper::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LAST_MODIFIED, RANGE, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response, StatusCode};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::answer::Own;
use super::relay::Answer;
use super::table::{FileRoot, StaticFiles};

mod body;
mod conditions;
mod name;
mod open;

pub use body::FileBody;
use conditions::{Asked, Part, Version};

/// What fits is read at once, and sent like any short answer.
const SMALL: u64 = 64 << 10;
/// For names that change with the content.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// For all others: kept, but asked about each time.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// Answers a request for a path below the prefix of these files.
pub async fn answer(
    files: &StaticFiles,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response<Answer>, Own> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Own::FilesAreRead);
    }
    let rest = path.strip_prefix(files.prefix.as_str()).unwrap_or_default();
    let parts = name::parts(rest).ok_or(Own::UnknownFile)?;
    let wanted = Wanted::new(parts, method, headers);
    let roots = files.roots.clone();
    match tokio::task::spawn_blocking(move || wanted.answer(&roots)).await {
        Ok(Ok(Some(response))) => Ok(response),
        Ok(Ok(None)) => Err(Own::UnknownFile),
        Ok(Err(error)) => {
            tracing::warn!(path, %error, "a static file cannot be read");
            Err(Own::UnreadableFile)
        }
        Err(_) => Err(Own::UnreadableFile),
    }
}

/// A file that is asked for.
struct Wanted {
    parts: Vec<String>,
    head_only: bool,
    codings: Vec<(&'static str, &'static str)>,
    asked: Asked,
}

/// One that is there.
struct Found {
    file: File,
    coding: Option<&'static str>,
    version: Version,
}

impl Wanted {
    fn new(parts: Vec<String>, method: &Method, headers: &HeaderMap) -> Self {
        let joined = |name: HeaderName| {
            let lines: Vec<&str> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
            (!lines.is_empty()).then(|| lines.join(","))
        };
        Self {
            parts,
            head_only: method == Method::HEAD,
            codings: joined(ACCEPT_ENCODING).map(|header| conditions::accepted(&header)).unwrap_or_default(),
            asked: Asked {
                if_match: joined(IF_MATCH),
                unmodified_since: joined(IF_UNMODIFIED_SINCE),
                none_match: joined(IF_NONE_MATCH),
                modified_since: joined(IF_MODIFIED_SINCE),
                if_range: joined(IF_RANGE),
                // Of other methods it means nothing (RFC 9110 §14.2).
                range: joined(RANGE).filter(|_| method == Method::GET),
            },
        }
    }

    /// From the first root that has it. Blocks.
    fn answer(&self, roots: &[FileRoot]) -> io::Result<Option<Response<Answer>>> {
        for root in roots {
            if let Some(found) = self.find(root)? {
                return self.send(found).map(Some);
            }
        }
        Ok(None)
    }

    /// The file, or what lies beside it in a coding that the client takes.
    fn find(&self, root: &FileRoot) -> io::Result<Option<Found>> {
        let Some(plain) = open::find(root, &self.parts)? else { return Ok(None) };
        let mut beside = self.parts.clone();
        for (coding, ending) in &self.codings {
            if let (Some(name), Some(plain)) = (beside.last_mut(), self.parts.last()) {
                *name = format!("{plain}.{ending}");
            }
            if let Some(file) = open::find(root, &beside)? {
                return Found::new(root, file, Some(coding)).map(Some);
            }
        }
        Found::new(root, plain, None).map(Some)
    }

    fn send(&self, found: Found) -> io::Result<Response<Answer>> {
        let Found { mut file, coding, version } = found;
        let name = self.parts.last().map_or("", String::as_str);
        let part = self.asked.part_of(&version, Timestamp::now());
        let (status, bytes) = match &part {
            Part::Whole => (StatusCode::OK, 0..version.size),
            Part::Bytes(bytes) => (StatusCode::PARTIAL_CONTENT, bytes.clone()),
            Part::Unchanged => (StatusCode::NOT_MODIFIED, 0..0),
            Part::OutOfRange => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
            Part::Another => (StatusCode::PRECONDITION_FAILED, 0..0),
        };
        let length = bytes.end - bytes.start;
        let body = match () {
            () if self.head_only || length == 0 => Answer::Own(None),
            () if length <= SMALL => Answer::Own(Some(read(&mut file, &bytes)?)),
            () => Answer::File(FileBody::new(file, &bytes)?),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let mut say = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        say(ETAG, &version.etag);
        say(LAST_MODIFIED, &version.last_modified());
        say(VARY, "accept-encoding");
        say(X_CONTENT_TYPE_OPTIONS, "nosniff");
        if matches!(part, Part::OutOfRange) {
            say(CONTENT_RANGE, &format!("bytes */{}", version.size));
        }
        if let Part::Bytes(bytes) = &part {
            say(CONTENT_RANGE, &format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, version.size));
        }
        if matches!(part, Part::Whole | Part::Bytes(_)) {
            say(ACCEPT_RANGES, "bytes");
            say(CONTENT_TYPE, &content_type(name));
            say(CONTENT_LENGTH, &length.to_string());
            if let Some(coding) = coding {
                say(CONTENT_ENCODING, coding);
            }
        }
        if !matches!(part, Part::OutOfRange | Part::Another) {
            headers.insert(CACHE_CONTROL, if name::has_digest(name) { FOR_EVER } else { ASK_AGAIN });
        }
        Ok(response)
    }
}

impl Found {
    fn new(root: &FileRoot, file: File, coding: Option<&'static str>) -> io::Result<Self> {
        let about = file.metadata()?;
        let modified = Timestamp::new(about.mtime(), 0).unwrap_or_default();
        // The directory of a release has a name of its own: equal times and sizes in two of them are two versions.
        let mut digest = Sha256::new();
        digest.update(root.dir.as_os_str().as_encoded_bytes());
        for number in [about.ino(), about.size(), about.mtime().cast_unsigned(), about.mtime_nsec().cast_unsigned()] {
            digest.update(number.to_be_bytes());
        }
        let digest = hex::encode(digest.finalize());
        let version =
            Version { etag: format!("\"{}\"", digest.get(..24).unwrap_or(&digest)), modified, size: about.size() };
        Ok(Self { file, coding, version })
    }
}

fn read(file: &mut File, bytes: &Range<u64>) -> io::Result<Bytes> {
    let length = bytes.end - bytes.start;
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.seek(SeekFrom::Start(bytes.start))?;
    file.take(length).read_to_end(&mut content)?;
    // It became shorter since it was looked at.
    if content.len() as u64 == length { Ok(content.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// By the name's ending. Text is UTF-8, as the web has it.
fn content_type(name: &str) -> String {
    let guess = mime_guess::from_path(name).first_or_octet_stream();
    let is_text = guess.type_() == "text" || matches!(guess.subtype().as_str(), "javascript" | "json");
    if is_text { format!("{guess}; charset=utf-8") } else { guess.to_string() }
}
