//! Static files: a path never leaves its root, what is there is found, and the part that is sent is that of the file.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use longshore::fuzzing::{FileAnswer, Line, file_answer};
use longshore::proxy::PathPrefix;
use longshore::proxy::table::{FileRoot, StaticFiles};
use percent_encoding::percent_decode_str;
use tokio::runtime::{Builder, Runtime};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    path: Vec<Piece<'a>>,
    is_head: bool,
    range: Option<Text<'a>>,
    none_match: Option<Text<'a>>,
    accept_encoding: Option<Text<'a>>,
    below: Option<bool>,
}

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Known(u8),
    Free(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Range(Option<u16>, Option<u16>),
    Known(u8),
    Free(&'a str),
}

const PIECES: [&str; 24] = [
    "/",
    "..",
    ".",
    "%2e",
    "%2E%2e",
    "%2f",
    "%5c",
    "\\",
    "%00",
    "%25",
    "out",
    "link",
    "secret",
    "sub",
    "near",
    "a.css",
    "a.css.gz",
    "b%20c",
    "index.html",
    ".well-known",
    ".hidden",
    "pipe",
    "/../",
    "%61",
];
const TEXTS: [&str; 10] = [
    "bytes=0-",
    "bytes=-5",
    "bytes=2-1",
    "bytes=0-0,2-3",
    "*",
    "W/\"x\"",
    "gzip",
    "br;q=0, *;q=0.5",
    "identity;q=0.5, gzip;q=0.1",
    "*;q=2",
];
const SECRET: &[u8] = b"nobody may see this";

/// A root with links out of it, and what may be found in it.
struct Site {
    root: PathBuf,
    files: BTreeMap<&'static str, Vec<u8>>,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(format!("site-{}", std::process::id() % 8));
    let _ = fs::remove_dir_all(&top);
    let (root, outside) = (top.join("root"), top.join("outside"));
    let files: BTreeMap<&str, Vec<u8>> = [
        ("a.css", b"body { color: red }".to_vec()),
        ("a.css.gz", b"a.css, made smaller".to_vec()),
        ("b c", b"with a space".to_vec()),
        ("a", b"one letter".to_vec()),
        ("index.html", b"<p>the index".to_vec()),
        ("sub/index.html", b"<p>the index below".to_vec()),
        ("sub/a.css", b"p { color: green }".to_vec()),
        (".well-known/a.css", b"well known".to_vec()),
        ("sub/sub/b c", b"deep".to_vec()),
    ]
    .into();
    for directory in [&root.join("sub/sub"), &root.join(".well-known"), &root.join(".hidden"), &outside.join("sub")] {
        fs::create_dir_all(directory).expect("a directory");
    }
    for (name, content) in &files {
        fs::write(root.join(name), content).expect("a file");
    }
    for hidden in
        [root.join(".hidden/a.css"), root.join(".hidden/secret"), outside.join("secret"), outside.join("a.css")]
    {
        fs::write(hidden, SECRET).expect("a file");
    }
    fs::write(top.join("secret"), SECRET).expect("a file");
    fs::write(outside.join("sub/a.css"), SECRET).expect("a file");
    for (target, link) in [
        ("../outside", "out"),
        ("../outside/secret", "link"),
        ("../../outside", "sub/out"),
        ("../../secret", "sub/link"),
        ("..", "sub/near"),
    ] {
        symlink(target, root.join(link)).expect("a link");
    }
    Site { root, files }
});

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime"));

impl Text<'_> {
    fn text(&self) -> String {
        match self {
            Self::Range(first, last) => {
                let number = |n: &Option<u16>| n.map(|n| (n % 40).to_string()).unwrap_or_default();
                format!("bytes={}-{}", number(first), number(last))
            }
            Self::Known(number) => TEXTS[usize::from(*number) % TEXTS.len()].to_owned(),
            Self::Free(text) => (*text).to_owned(),
        }
    }
}

fn header<'a>(answer: &'a FileAnswer, name: &str) -> Option<&'a str> {
    let (_, value) = answer.lines.iter().find(|(key, _)| key == name)?;
    std::str::from_utf8(value).ok()
}

fn check(answer: &FileAnswer, content: &[u8], is_head: bool) {
    let whole = 0..content.len();
    let sent = match answer.status {
        200 => whole,
        206 => {
            let range = header(answer, "content-range").expect("a part says which");
            let (first, rest) = range.strip_prefix("bytes ").and_then(|text| text.split_once('-')).expect("first-");
            let (last, size) = rest.split_once('/').expect("last/size");
            assert_eq!(size, content.len().to_string());
            let number = |text: &str| text.parse::<usize>().expect("a number");
            number(first)..number(last) + 1
        }
        304 => 0..0,
        416 => {
            assert_eq!(header(answer, "content-range"), Some(format!("bytes */{}", content.len()).as_str()));
            0..0
        }
        status => panic!("status {status}"),
    };
    let part = content.get(sent).expect("a part of the file");
    assert!(!part.is_empty() || answer.status > 300, "no file is empty, and no range may be");
    assert_eq!(answer.body, if is_head { b"" } else { part });
    if answer.status < 300 {
        assert_eq!(header(answer, "content-length"), Some(part.len().to_string().as_str()));
    }
}

fuzz_target!(|input: Input| {
    let piece = |piece: &Piece| match piece {
        Piece::Known(number) => PIECES[usize::from(*number) % PIECES.len()].to_owned(),
        Piece::Free(text) => (*text).to_owned(),
    };
    let rest: String = input.path.iter().map(piece).collect();
    let (below, below_slash) = match input.below {
        None => ("", ""),
        // A directory in the root, and a link that leads out of it.
        Some(true) => ("sub", "sub/"),
        Some(false) => ("sub/out", "sub/out/"),
    };
    let root = FileRoot { dir: SITE.root.clone(), below: below.to_owned() };
    let files = StaticFiles { prefix: PathPrefix::parse("/static").expect("a prefix"), roots: vec![root] };
    let texts =
        [("range", &input.range), ("if-none-match", &input.none_match), ("accept-encoding", &input.accept_encoding)];
    let lines: Vec<Line> = texts
        .into_iter()
        .filter_map(|(name, text)| Some((name.to_owned(), text.as_ref()?.text().into_bytes())))
        .collect();
    let answer = RUNTIME.block_on(file_answer(&files, input.is_head, &format!("/static{rest}"), &lines));

    let decoded = percent_decode_str(&rest).decode_utf8_lossy();
    let name = decoded.strip_prefix('/').map(|name| {
        let index = if name.is_empty() || name.ends_with('/') { "index.html" } else { "" };
        format!("{below_slash}{name}{index}")
    });
    let named = name.as_deref().and_then(|name| Some((name, SITE.files.get(name)?)));
    let Some(answer) = answer else {
        // What has no escapes is looked for as it is.
        assert!(named.is_none() || rest.contains('%'), "{rest:?} is there and was not found");
        return;
    };
    assert!(!answer.body.windows(SECRET.len()).any(|part| part == SECRET), "{rest:?} leaves its root");
    let (name, plain) = named.unwrap_or_else(|| panic!("{rest:?} is not there and was found"));
    let content = match header(&answer, "content-encoding") {
        None => {
            // A coding's bytes are never taken for the file's own, nor another's 304 or 416.
            let gz = SITE.files.get(format!("{name}.gz").as_str());
            if answer.status == 416 && header(&answer, "content-range") != Some(&format!("bytes */{}", plain.len())) {
                gz.unwrap_or(plain)
            } else {
                plain
            }
        }
        Some("gzip") => &SITE.files[format!("{name}.gz").as_str()],
        Some(other) => panic!("nothing lies there as {other}"),
    };
    check(&answer, content, input.is_head);
});
