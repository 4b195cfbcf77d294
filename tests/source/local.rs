//! A repository on the same machine; and what holds for every kind of repository.

use std::os::unix::fs::chown;

use longshore::deploy::source::{SourceError, Want};
use longshore::model::CommitSha;
use longshore::queue::Ancestry;

use crate::git::{Repo, git};
use crate::{Bench, assert_whole, local};

#[tokio::test]
async fn brings_exactly_the_pushed_commit_with_its_history() {
    let bench = Bench::new();
    let repo = Repo::init(&bench.path().join("origin"));
    repo.write("a", "1");
    let first = repo.commit("First\x1b[31m line\n\nbody");
    repo.write("a", "2");
    let second = repo.commit("Second");
    let app = local(&repo.path);

    let source = bench.fetch_commit(&app, &first).await.unwrap();
    assert_eq!((source.commit.clone(), source.author.as_str()), (first.clone(), "Ada Lovelace"));
    assert_eq!(source.subject, "First line");
    assert_whole(&source);
    assert_eq!(bench.mirrors.ancestry(&app, &first, &second).await, Ancestry::Unrelated, "second is not here yet");

    let source = bench.fetch_commit(&app, &second).await.unwrap();
    assert_whole(&source);
    bench.take_log();
    bench.fetch_commit(&app, &second).await.unwrap();
    assert_eq!(bench.take_log(), format!("commit {} is in the mirror already", second.short()));
    assert_eq!(bench.mirrors.ancestry(&app, &first, &second).await, Ancestry::Ancestor);
    assert_eq!(bench.mirrors.ancestry(&app, &second, &first).await, Ancestry::Descendant);
    assert_eq!(bench.mirrors.ancestry(&app, &second, &second).await, Ancestry::Same);
}

#[tokio::test]
async fn branches_and_tags_lead_to_their_commits() {
    let bench = Bench::new();
    let repo = Repo::init(&bench.path().join("origin"));
    let app = local(&repo.path);
    assert_eq!(bench.mirrors.tip(&app).await.unwrap(), None, "an empty repository has no branch yet");
    let error = bench.fetch(&app, Want::Branch("main".to_owned())).await.unwrap_err();
    assert!(matches!(&error, SourceError::NoSuchRef(text) if text.contains("branch main")), "{error}");

    let commit = repo.commit("One");
    repo.git(&["tag", "-a", "v1", "-m", "annotated"]);
    repo.git(&["tag", "-a", "v1-again", "v1", "-m", "a tag of a tag"]);
    repo.git(&["tag", "tree", "HEAD^{tree}"]);
    repo.git(&["branch", "a;$(id)&|<script>@everyone"]);
    assert_eq!(bench.mirrors.tip(&app).await.unwrap(), Some(commit.clone()));
    for want in [
        Want::Branch("main".to_owned()),
        Want::Branch("a;$(id)&|<script>@everyone".to_owned()),
        Want::Tag("v1".to_owned()),
        Want::Tag("v1-again".to_owned()),
    ] {
        assert_eq!(bench.fetch(&app, want.clone()).await.unwrap().commit, commit, "{want:?}");
    }
    let tag: CommitSha = repo.git(&["rev-parse", "v1"]).parse().unwrap();
    assert_ne!(tag, commit);
    assert_eq!(bench.fetch_commit(&app, &tag).await.unwrap().commit, commit, "a hook may name the tag object");
    let error = bench.fetch(&app, Want::Tag("tree".to_owned())).await.unwrap_err().to_string();
    assert!(error.contains("is a tree that leads to no commit"), "{error}");
}

#[tokio::test]
async fn a_commit_that_was_forced_away_is_named() {
    let bench = Bench::new();
    let repo = Repo::init(&bench.path().join("origin"));
    repo.commit("One");
    let absent: CommitSha = "abc1234".repeat(6)[..40].parse().unwrap();
    let error = bench.fetch_commit(&local(&repo.path), &absent).await.unwrap_err();
    assert!(matches!(error, SourceError::NoSuchCommit(_)));
    assert_eq!(error.to_string(), "commit abc1234 is not on the server (force-pushed away?)");

    let missing = local(&bench.path().join("nowhere"));
    let error = bench.fetch_commit(&missing, &absent).await.unwrap_err().to_string();
    assert!(error.contains("there is no git repository at"), "{error}");
}

#[tokio::test]
async fn a_damaged_mirror_is_cloned_anew() {
    let bench = Bench::new();
    let repo = Repo::init(&bench.path().join("origin"));
    repo.write("a", "1");
    let commit = repo.commit("One");
    let app = local(&repo.path);
    let mirror = bench.fetch_commit(&app, &commit).await.unwrap().mirror;
    let pack = || {
        let entries = std::fs::read_dir(mirror.join("objects/pack")).unwrap();
        entries.map(|entry| entry.unwrap().path()).find(|path| path.extension().unwrap() == "pack").unwrap()
    };
    let damage = |what: &str| match what {
        "the pack is gone" => std::fs::remove_file(pack()).unwrap(),
        "the pack is cut" => {
            let path = pack();
            let start = std::fs::read(&path).unwrap()[..20].to_vec();
            // A new file: the old one may be mapped into memory.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, start).unwrap();
        }
        "HEAD is gone" => std::fs::remove_file(mirror.join("HEAD")).unwrap(),
        _ => std::fs::remove_dir_all(mirror.join("objects")).unwrap(),
    };
    for what in ["the pack is gone", "the pack is cut", "HEAD is gone", "the objects are gone"] {
        damage(what);
        bench.take_log();
        let source = bench.fetch_commit(&app, &commit).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(bench.take_log().contains("cloning it anew"), "{what}");
        assert_whole(&source);
    }
}

#[tokio::test]
async fn a_strangers_repository_is_refused() {
    let bench = Bench::new();
    let repo = Repo::init(&bench.path().join("origin"));
    let commit = repo.commit("One");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can give a repository to a stranger");
        return;
    }
    for path in [repo.path.clone(), repo.path.join(".git")] {
        chown(path, Some(4321), None).unwrap();
    }
    let error = bench.fetch_commit(&local(&repo.path), &commit).await.unwrap_err().to_string();
    assert!(error.contains("belongs to uid 4321") && error.contains("safe.directory"), "{error}");
}

#[tokio::test]
async fn submodules_and_lfs_are_pointed_out() {
    let bench = Bench::new();
    let library = Repo::init(&bench.path().join("library"));
    library.write("lib.txt", "one");
    let pinned = library.commit("Library");
    library.write("lib.txt", "two");
    library.commit("Library, newer");
    let repo = Repo::init(&bench.path().join("origin"));
    repo.write("Dockerfile", "FROM scratch\n");
    repo.write("assets/.gitattributes", "*.png filter=lfs diff=lfs\n");
    repo.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../library", "vendor/x"]);
    git(&repo.path.join("vendor/x"), &["checkout", "-q", pinned.as_str()]);
    let commit = repo.commit("With a submodule");
    let mut app = local(&repo.path);

    let source = bench.fetch_commit(&app, &commit).await.unwrap();
    assert_eq!(source.submodules, []);
    let log = bench.take_log();
    assert!(log.contains("has 1 submodule (vendor/x); it stays empty: set submodules = true"), "{log}");
    assert!(log.contains("git LFS"), "{log}");

    app.submodules = true;
    let source = bench.fetch_commit(&app, &commit).await.unwrap();
    let (path, mirror, at) = source.submodules[0].clone();
    assert_eq!((path.as_str(), &at), ("vendor/x", &pinned));
    assert_eq!(git(&mirror, &["show", &format!("{pinned}:lib.txt")]), "one");
}
