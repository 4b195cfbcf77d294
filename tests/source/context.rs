//! The build context: what is in it, what is not, and what is refused.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use longshore::config::Build;
use longshore::deploy::build::context::Context;
use longshore::deploy::source::Source;
use longshore::model::CommitSha;

use crate::git::{Repo, build};
use crate::{Bench, local};

/// Path to (type, permissions, content or target).
type Files = BTreeMap<Vec<u8>, (tar::EntryType, u32, Vec<u8>)>;

fn unpack(tar: &[u8]) -> Files {
    let mut archive = tar::Archive::new(tar);
    // git notes the commit in a header of the whole archive.
    let entries =
        archive.entries().unwrap().map(Result::unwrap).filter(|e| !e.header().entry_type().is_pax_global_extensions());
    let entries = entries.map(|mut entry| {
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some(target) = entry.link_name_bytes() {
            content = target.into_owned();
        }
        let path = entry.path_bytes().strip_suffix(b"/").unwrap_or(&entry.path_bytes()).to_vec();
        (path, (entry.header().entry_type(), entry.header().mode().unwrap() & 0o777, content))
    });
    entries.collect()
}

fn files(source: &Source, build: &Build) -> Files {
    let mut tar = Vec::new();
    let size = Context::open(source, build).unwrap().write_tar(&mut tar).unwrap();
    assert_eq!(size, tar.len() as u64);
    unpack(&tar)
}

fn names(source: &Source, build: &Build) -> String {
    let files = files(source, build);
    let plain = files.iter().filter(|(_, (kind, ..))| !kind.is_dir());
    plain.map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>().join(" ")
}

fn refusal(source: &Source, build: &Build) -> String {
    Context::open(source, build).unwrap_err()
}

async fn fetch(bench: &Bench, repo: &Repo) -> Source {
    let commit = repo.commit("Next");
    bench.fetch_commit(&local(&repo.path), &commit).await.unwrap()
}

fn origin(bench: &Bench) -> Repo {
    let repo = Repo::init(&bench.path().join("origin"));
    repo.write("Dockerfile", "FROM scratch\n");
    repo
}

#[tokio::test]
async fn is_what_git_archive_writes() {
    let bench = Bench::new();
    let repo = origin(&bench);
    repo.write("empty", "");
    repo.write("deep/er/file", vec![7; 300_000]);
    repo.write(&format!("{}/{}", "d".repeat(120), "f".repeat(120)), "long path");
    repo.write("größe;$(id)\nx", "odd name");
    std::fs::write(repo.path.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8")), "bytes").unwrap();
    repo.write("run.sh", "#!/bin/sh\n");
    std::fs::set_permissions(repo.path.join("run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (target, link) in [("./deep/../empty", "link"), ("/etc/passwd", "absolute"), (&*"t/".repeat(90), "long-link")] {
        std::os::unix::fs::symlink(target, repo.path.join(link)).unwrap();
    }
    let source = fetch(&bench, &repo).await;

    let archive = Command::new("git")
        .args(["-c", "tar.umask=0022", "archive", "--format=tar", "HEAD"])
        .current_dir(&repo.path)
        .output()
        .unwrap();
    let (ours, theirs) = (files(&source, &build()), unpack(&archive.stdout));
    assert_eq!(ours.len(), theirs.len());
    for (path, file) in &theirs {
        assert_eq!(ours.get(path), Some(file), "{}", String::from_utf8_lossy(path));
    }
}

#[tokio::test]
async fn leaves_out_what_dockerignore_names_but_not_what_the_engine_needs() {
    let bench = Bench::new();
    let repo = origin(&bench);
    repo.write(".dockerignore", "*\n!src\nsrc/secret.env\n");
    for path in ["src/main.py", "src/secret.env", "README", "docs/x"] {
        repo.write(path, path);
    }
    repo.write("docker/prod", "FROM scratch\n");
    repo.write("docker/prod.dockerignore", "docs\n.dockerignore\ndocker\n");
    let source = fetch(&bench, &repo).await;
    assert_eq!(names(&source, &build()), ".dockerignore Dockerfile src/main.py");
    let prod = Build { dockerfile: "docker/prod".to_owned(), ..build() };
    assert_eq!(names(&source, &prod), "Dockerfile README docker/prod src/main.py src/secret.env");

    repo.write(".dockerignore", "ok\n[a\n");
    let source = fetch(&bench, &repo).await;
    assert!(refusal(&source, &build()).starts_with(".dockerignore, line 2: pattern \"[a\""));
}

#[tokio::test]
async fn has_the_same_digest_for_the_same_content_alone() {
    let bench = Bench::new();
    let repo = origin(&bench);
    repo.write(".dockerignore", "docs\n");
    repo.write("app", "1");
    repo.write("docs/x", "1");
    let digest = async || Context::open(&fetch(&bench, &repo).await, &build()).unwrap().digest().to_owned();
    let first = digest().await;
    repo.write("docs/x", "2");
    assert_eq!(digest().await, first, "an ignored file does not count, nor does the commit");
    repo.git(&["update-index", "--chmod=+x", "app"]);
    repo.git(&["commit", "-q", "-m", "mode"]);
    let source = bench.fetch_commit(&local(&repo.path), &repo.head()).await.unwrap();
    assert_ne!(Context::open(&source, &build()).unwrap().digest(), first, "the executable bit counts");
    repo.write("app", "2");
    assert_ne!(digest().await, first);
}

#[tokio::test]
async fn starts_at_the_context_directory() {
    let bench = Bench::new();
    let repo = origin(&bench);
    repo.write("services/api/Dockerfile", "FROM api\n");
    repo.write("services/api/main", "x");
    let source = fetch(&bench, &repo).await;
    let api = Build { context: "services/api".to_owned(), ..build() };
    assert_eq!(names(&source, &api), "Dockerfile main");
    assert_eq!(Context::open(&source, &api).unwrap().dockerfile(), b"FROM api\n");

    let from_root = Build { dockerfile: "services/api/Dockerfile".to_owned(), ..api.clone() };
    assert_eq!(Context::open(&source, &from_root).unwrap().dockerfile(), b"FROM api\n");
    assert_eq!(names(&source, &from_root), "Dockerfile main services/api/Dockerfile");

    let wrong = Build { context: "service/api".to_owned(), ..build() };
    assert!(refusal(&source, &wrong).contains("did you mean services/api"), "{}", refusal(&source, &wrong));
    let wrong = Build { dockerfile: "Dockerfile.prod".to_owned(), ..build() };
    let error = refusal(&source, &wrong);
    assert!(error.contains("no Dockerfile at \"Dockerfile.prod\""), "{error}");
    assert!(error.contains("found: Dockerfile, services/api/Dockerfile"), "{error}");
    for (dockerfile, context) in [("../x", "."), ("/etc/passwd", "."), ("Dockerfile", ".."), ("services", ".")] {
        let build = Build { dockerfile: dockerfile.to_owned(), context: context.to_owned(), ..build() };
        refusal(&source, &build);
    }
}

#[tokio::test]
async fn follows_a_linked_dockerfile_inside_the_repository_only() {
    let bench = Bench::new();
    let repo = origin(&bench);
    repo.write("docker/prod", "FROM prod\n");
    for (target, link) in [
        ("docker/prod", "in"),
        ("/etc/passwd", "out"),
        ("../../etc/passwd", "up"),
        ("round", "round"),
        ("docker", "dir"),
    ] {
        std::os::unix::fs::symlink(target, repo.path.join(link)).unwrap();
    }
    let source = fetch(&bench, &repo).await;
    let with = |dockerfile: &str| Build { dockerfile: dockerfile.to_owned(), ..build() };
    for link in ["in", "dir/prod"] {
        assert_eq!(Context::open(&source, &with(link)).unwrap().dockerfile(), b"FROM prod\n");
    }
    assert_eq!(files(&source, &with("in"))[&b"in"[..]].2, b"FROM prod\n", "the engine gets a plain file");
    for (link, why) in [("out", "leads out"), ("up", "leads out"), ("round", "circle"), ("dir", "no Dockerfile")] {
        let error = refusal(&source, &with(link));
        assert!(error.contains(why) && !error.contains("root:"), "{link}: {error}");
    }
}

/// A commit whose tree git itself would not make.
fn commit_of(repo: &Repo, tree: &str) -> CommitSha {
    let mut child = Command::new("git")
        .args(["mktree", "-z"])
        .current_dir(&repo.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), tree.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git mktree");
    let tree = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let commit = repo.git(&["commit-tree", "-m", "hostile", &tree]);
    repo.git(&["update-ref", "refs/heads/hostile", &commit]);
    commit.parse().unwrap()
}

#[tokio::test]
async fn refuses_names_that_stand_for_something_else() {
    let bench = Bench::new();
    let repo = origin(&bench);
    repo.commit("First");
    let blob = repo.git(&["rev-parse", "HEAD:Dockerfile"]);
    let inner = repo.git(&["rev-parse", "HEAD^{tree}"]);
    for name in [".git", ".GIT", "git~1", ".git ", ".g\u{200c}it", "..", "x\r"] {
        for (kind, object) in [("100644 blob", &blob), ("040000 tree", &inner)] {
            let tree = format!("100644 blob {blob}\tDockerfile\0{kind} {object}\t{name}\0");
            let commit = commit_of(&repo, &tree);
            let source = bench.fetch_commit(&local(&repo.path), &commit).await.unwrap();
            let error = refusal(&source, &build());
            assert!(error.contains("is refused: its name") && !error.contains('\r'), "{name:?}: {error}");
        }
    }
}

#[tokio::test]
async fn holds_the_files_of_fetched_submodules() {
    let bench = Bench::new();
    let library = Repo::init(&bench.path().join("library"));
    library.write("lib.txt", "one");
    let lib = fetch(&bench, &library).await;
    let repo = origin(&bench);
    repo.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../library", "vendor/x"]);
    let mut source = fetch(&bench, &repo).await;
    let empty = files(&source, &build());
    assert!(empty[&b"vendor/x"[..]].0.is_dir() && !empty.contains_key(&b"vendor/x/lib.txt"[..]));

    source.submodules = vec![("vendor/x".to_owned(), lib.mirror.clone(), lib.commit.clone())];
    assert_eq!(files(&source, &build())[&b"vendor/x/lib.txt"[..]].2, b"one");
    let inside = Build { context: "vendor".to_owned(), dockerfile: "Dockerfile".to_owned(), ..build() };
    assert_eq!(names(&source, &inside), "Dockerfile x/lib.txt");
}

#[tokio::test]
async fn an_unreadable_file_fails_the_build_and_mends_the_mirror() {
    let bench = Bench::new();
    let repo = origin(&bench);
    let noise: Vec<u8> = (0..60_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    repo.write("large", noise);
    let source = fetch(&bench, &repo).await;
    for pack in std::fs::read_dir(source.mirror.join("objects/pack")).unwrap() {
        let path = pack.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0xff);
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let error = Context::open(&source, &build()).unwrap().write_tar(std::io::sink()).unwrap_err().to_string();
    assert!(error.contains("\"large\" cannot be read from the mirror"), "{error}");
    bench.take_log();
    let source = bench.fetch_commit(&local(&repo.path), &source.commit).await.unwrap();
    assert!(bench.take_log().contains("cloning it anew"));
    Context::open(&source, &build()).unwrap().write_tar(std::io::sink()).unwrap();
}
