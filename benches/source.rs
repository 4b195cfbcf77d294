//! The library's own source and context against git's.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use longshore::config::{App, RepoUrl};
use longshore::deploy::build::context::Context;
use longshore::deploy::source::{Mirrors, Source, Timeouts, Want};
use longshore::model::CommitSha;
use tokio_util::sync::CancellationToken;

use crate::figure::{Figure, Target};
use crate::git::{self, Repo};
use crate::git_server::{Behaviour, GitServer};
use crate::rounds::{in_turn, ms};

/// As many files as a middling application has.
const FILES: usize = 1_800;

/// One new commit of three changed files, over a path and over http.
pub async fn fetch() -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    let repo = Repo::init(&directory.path().join("work"));
    write_files(FILES, 4 << 10, |path, content| repo.write(path, content));
    repo.commit("First");
    let origin = directory.path().join("origin.git");
    git::git(directory.path(), &["clone", "-q", "--bare", "work", "origin.git"]);
    let server = GitServer::start(directory.path(), Behaviour::Honest, None);
    let url = server.url("origin.git");
    let http = RepoUrl::Http { url: url.clone(), authority: server.authority() };
    let sides = [("a path", RepoUrl::Local(origin.clone()), origin.display().to_string()), ("http", http, url)];
    let mut figures = Vec::new();
    for (way, ours, theirs) in sides {
        eprintln!("  over {way}");
        let (ours, theirs) = fetch_over(&repo, &origin, &directory.path().join(way), ours, &theirs).await;
        let what = format!("fetch of one commit, {FILES} files, over {way}");
        figures.push(Figure::new(what, ours, "ms").against("`git fetch`", theirs).target(Target::RatioAtMost(1.5)));
    }
    figures
}

async fn fetch_over(repo: &Repo, origin: &Path, place: &Path, url: RepoUrl, address: &str) -> (f64, f64) {
    std::fs::create_dir(place).expect("a directory");
    let origin = origin.to_str().expect("a UTF-8 path");
    let allow = ["-c", "protocol.allow=always"];
    let theirs = place.join("git.git");
    run_git(place, &[&allow[..], &["clone", "-q", "--bare", address, "git.git"]].concat());
    let app = git::app(url);
    let mirrors = Mirrors::new(place.join("mirrors"), Timeouts::default()).expect("a directory");
    fetch_commit(&mirrors, &app, &repo.head()).await;

    let next = |round: usize| {
        for file in 0..3 {
            repo.write(&path_of(round * 3 + file), format!("round {round} over {address}\n"));
        }
        let commit = repo.commit("A change");
        repo.git(&["push", "-q", origin, "HEAD:refs/heads/main"]);
        commit
    };
    // Both sides fetch the same commits; whoever comes first in a round has it made.
    let mut made: Option<(usize, CommitSha)> = None;
    let made = std::cell::RefCell::new(&mut made);
    let commit_of = |round: usize| {
        let mut made = made.borrow_mut();
        match made.as_ref() {
            Some((last, commit)) if *last == round => commit.clone(),
            _ => {
                let commit = next(round);
                **made = Some((round, commit.clone()));
                commit
            }
        }
    };
    // Collecting garbage is not what is compared.
    let quiet = ["-c", "maintenance.auto=false", "-c", "gc.auto=0"];
    let fetch = ["fetch", "-q", "--no-tags", address, "+refs/heads/main:refs/heads/main"];
    in_turn(
        async |round| {
            let commit = commit_of(round);
            let began = Instant::now();
            fetch_commit(&mirrors, &app, &commit).await;
            ms(began.elapsed())
        },
        async |round| {
            let commit = commit_of(round);
            let began = Instant::now();
            run_git(&theirs, &[&allow[..], &quiet, &fetch].concat());
            let took = ms(began.elapsed());
            assert_eq!(git::git(&theirs, &["rev-parse", "main"]), commit.as_str());
            took
        },
    )
    .await
}

/// A tree of 5,000 files and 50 MB as a tar that goes nowhere.
pub async fn context() -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    let repo = Repo::init(&directory.path().join("work"));
    write_large(|path, content| repo.write(path, content));
    repo.write("Dockerfile", "FROM scratch\nCOPY . /\n");
    let commit = repo.commit("First");
    let app = git::app(RepoUrl::Local(repo.path.clone()));
    let mirrors = Mirrors::new(directory.path().join("mirrors"), Timeouts::default()).expect("a directory");
    let source = fetch_commit(&mirrors, &app, &commit).await;
    let build = git::build();
    let (ours, theirs) = in_turn(
        async |_| {
            let (source, build) = (source.clone(), build.clone());
            let writing = tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                let bytes = Context::open(&source, &build).expect("a context").write_tar(io::sink()).expect("a tar");
                assert!(bytes > 50_000_000, "{bytes} bytes");
                ms(began.elapsed())
            });
            writing.await.expect("a tar")
        },
        async |_| {
            let began = Instant::now();
            run_git(&source.mirror, &["archive", "--format=tar", commit.as_str()]);
            ms(began.elapsed())
        },
    )
    .await;
    let what = "context of 5,000 files, 50 MB, as a tar";
    vec![Figure::new(what, ours, "ms").against("`git archive`", theirs).target(Target::RatioAtMost(1.0))]
}

async fn fetch_commit(mirrors: &Mirrors, app: &App, commit: &CommitSha) -> Source {
    let (log, _) = git::log();
    let want = Want::Commit(commit.clone());
    mirrors.fetch(app, &want, &log, &CancellationToken::new()).await.expect("a fetch")
}

/// git with its output thrown away, apart from the user's own settings.
fn run_git(directory: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    assert!(command.status().expect("git").success(), "git {arguments:?}");
}

/// 5,000 files of 10 KB.
pub fn write_large(write: impl FnMut(&str, Vec<u8>)) {
    write_files(5_000, 10 << 10, write);
}

/// Files of text that compresses about as source code does.
fn write_files(count: usize, size: usize, mut write: impl FnMut(&str, Vec<u8>)) {
    let mut random = 88_172_645_463_325_252_u64;
    for number in 0..count {
        let mut content = Vec::with_capacity(size + 32);
        while content.len() < size {
            // xorshift64: the same files in every run.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            content.extend_from_slice(format!("let value_{random:x} = compute();\n").as_bytes());
        }
        write(&path_of(number), content);
    }
}

/// Fifty files to a directory.
fn path_of(number: usize) -> String {
    format!("src/part{:02}/file{number}.txt", number / 50)
}
