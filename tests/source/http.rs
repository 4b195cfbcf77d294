//! git over http: honest servers of both protocol versions, and servers that are not.

use std::time::{Duration, Instant};

use longshore::config::Credential;
use longshore::deploy::source::{SourceError, Want};
use longshore::model::CommitSha;
use tokio_util::sync::CancellationToken;

use crate::git::Repo;
use crate::git_server::{Behaviour, GitServer};
use crate::{Bench, assert_whole, over_http};

const BOTH: [Behaviour; 2] = [Behaviour::Honest, Behaviour::HonestV0];

/// `shop` below `bench`, with `commits` commits of a few files each.
fn shop(bench: &Bench, commits: usize) -> (Repo, Vec<CommitSha>) {
    let repo = Repo::init(&bench.path().join("site/shop"));
    let history = (0..commits).map(|n| {
        // Random content keeps the pack from shrinking to nothing.
        let mut noise = vec![0; 4096];
        getrandom::fill(&mut noise).unwrap();
        repo.write("noise", noise);
        repo.write(&format!("dir/{n}"), n.to_string());
        repo.commit(&format!("Commit {n}"))
    });
    let history = history.collect();
    (repo, history)
}

fn serve(bench: &Bench, behaviour: Behaviour) -> GitServer {
    GitServer::start(&bench.path().join("site"), behaviour, None)
}

fn token(text: &str) -> Credential {
    Credential::Token { username: "x-access-token".to_owned(), token: text.to_owned().into() }
}

#[tokio::test]
async fn a_new_commit_costs_one_small_pack() {
    for behaviour in BOTH {
        let bench = Bench::new();
        let (repo, history) = shop(&bench, 20);
        let server = serve(&bench, behaviour.clone());
        let app = over_http(&server, "shop/.git");
        assert_eq!(bench.mirrors.tip(&app).await.unwrap(), history.last().cloned());
        let source = bench.fetch_commit(&app, history.last().unwrap()).await.unwrap();
        assert_whole(&source);
        assert!(bench.take_log().contains("received "));

        repo.write("small", "x");
        let next = repo.commit("Small");
        let source = bench.fetch_commit(&app, &next).await.unwrap();
        assert_whole(&source);
        let log = bench.take_log();
        assert!(log.contains("received 3 objects, 0."), "{behaviour:?}: {log}");
    }
}

#[tokio::test]
async fn a_commit_below_the_tip_is_had_too() {
    for behaviour in BOTH {
        let bench = Bench::new();
        let (_repo, history) = shop(&bench, 3);
        let server = serve(&bench, behaviour.clone());
        let app = over_http(&server, "shop/.git");
        let source = bench.fetch_commit(&app, &history[1]).await.unwrap();
        assert_eq!(source.commit, history[1], "{behaviour:?}");
        assert_whole(&source);
    }
}

#[tokio::test]
async fn branches_tags_and_what_is_missing() {
    for behaviour in BOTH {
        let bench = Bench::new();
        let (repo, history) = shop(&bench, 2);
        repo.git(&["tag", "-a", "v1", "-m", "v1", history[0].as_str()]);
        Repo::init(&bench.path().join("site/empty"));
        let server = serve(&bench, behaviour.clone());
        let mut app = over_http(&server, "shop/.git");
        assert_eq!(bench.fetch(&app, Want::Tag("v1".to_owned())).await.unwrap().commit, history[0]);
        assert_eq!(bench.fetch(&app, Want::Branch("main".to_owned())).await.unwrap().commit, history[1]);

        app.branch = "mai".to_owned();
        assert_eq!(bench.mirrors.tip(&app).await.unwrap(), None, "no prefix of a branch is the branch");
        let error = bench.fetch(&app, Want::Branch("nope".to_owned())).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::NoSuchRef(text) if text.contains("no branch nope in http://")),
            "{error}"
        );
        let empty = over_http(&server, "empty/.git");
        assert_eq!(bench.mirrors.tip(&empty).await.unwrap(), None);
        let error = bench.fetch(&empty, Want::Branch("main".to_owned())).await.unwrap_err();
        assert!(matches!(error, SourceError::NoSuchRef(_)), "{error}");
    }
}

#[tokio::test]
async fn a_commit_that_was_forced_away_and_collected_is_not_found() {
    for behaviour in BOTH {
        let bench = Bench::new();
        let (repo, _) = shop(&bench, 2);
        let lost = repo.commit("Lost");
        repo.git(&["reset", "-q", "--hard", "HEAD~1"]);
        repo.git(&["reflog", "expire", "--expire=now", "--all"]);
        repo.git(&["gc", "-q", "--prune=now"]);
        let server = serve(&bench, behaviour.clone());
        let error = bench.fetch_commit(&over_http(&server, "shop/.git"), &lost).await.unwrap_err();
        assert!(matches!(error, SourceError::NoSuchCommit(_)), "{behaviour:?}: {error}");
        assert!(error.to_string().starts_with(&format!("commit {} is not on the server", lost.short())), "{error}");
    }
}

#[tokio::test]
async fn a_forced_push_needs_only_what_is_new() {
    for behaviour in BOTH {
        let bench = Bench::new();
        let (repo, history) = shop(&bench, 20);
        let server = serve(&bench, behaviour.clone());
        let app = over_http(&server, "shop/.git");
        bench.fetch_commit(&app, &history[19]).await.unwrap();
        repo.git(&["reset", "-q", "--hard", history[15].as_str()]);
        repo.git(&["reflog", "expire", "--expire=now", "--all"]);
        repo.git(&["gc", "-q", "--prune=now"]);
        repo.write("small", "x");
        let forced = repo.commit("Forced");
        bench.take_log();
        let source = bench.fetch_commit(&app, &forced).await.unwrap();
        assert_whole(&source);
        let log = bench.take_log();
        assert!(log.contains("received 3 objects"), "{behaviour:?}: {log}");
        bench.fetch_commit(&app, &history[19]).await.expect("what was deployed once stays");
    }
}

#[tokio::test]
async fn a_token_is_sent_where_it_belongs() {
    let bench = Bench::new();
    let (_repo, history) = shop(&bench, 1);
    let server = GitServer::start(&bench.path().join("site"), Behaviour::Honest, Some("x-access-token:s3cr3t"));
    let mut app = over_http(&server, "shop/.git");
    let error = bench.fetch_commit(&app, &history[0]).await.unwrap_err().to_string();
    assert!(error.contains("asks for credentials (401): set `credential`"), "{error}");
    app.credential = token("wr0ng");
    let error = bench.fetch_commit(&app, &history[0]).await.unwrap_err().to_string();
    assert!(error.contains("refuses the token") && !error.contains("wr0ng"), "{error}");
    app.credential = token("s3cr3t");
    bench.fetch_commit(&app, &history[0]).await.unwrap();
}

#[tokio::test]
async fn a_redirect_to_another_server_gets_nothing() {
    let bench = Bench::new();
    let (_repo, history) = shop(&bench, 1);
    let other = serve(&bench, Behaviour::Honest);
    let server = serve(&bench, Behaviour::RedirectTo(format!("http://{}", other.authority())));
    let mut app = over_http(&server, "shop/.git");
    app.credential = token("s3cr3t");
    let error = bench.fetch_commit(&app, &history[0]).await.unwrap_err().to_string();
    assert!(error.contains(&format!("redirects to {}, which is another server", other.authority())), "{error}");
    assert!(other.arrived().is_empty(), "{:?}", other.arrived());
    assert!(server.arrived().iter().any(|request| request.authorization.is_some()));
}

#[tokio::test]
async fn a_redirect_within_the_server_is_followed() {
    let bench = Bench::new();
    let (_repo, history) = shop(&bench, 1);
    let server = serve(&bench, Behaviour::RedirectWithin);
    let source = bench.fetch_commit(&over_http(&server, "old/shop/.git"), &history[0]).await.unwrap();
    assert_whole(&source);
    assert!(server.arrived().iter().any(|request| request.line == "POST /shop/.git/git-upload-pack"));
}

#[tokio::test]
async fn failures_say_what_and_leave_nothing() {
    let bench = Bench::impatient();
    let (_repo, history) = shop(&bench, 5);
    let refused = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    for (behaviour, wanted) in [
        (Behaviour::Status(404), "there is no repository at"),
        (Behaviour::Status(500), "answered 500"),
        (Behaviour::Page, "is not a git repository: the server answered text/html"),
        (Behaviour::Hang, "has sent nothing for 400ms"),
        (Behaviour::HangAfter(8000), "has sent nothing for 400ms"),
        (Behaviour::CloseAfter(8000), "broke"),
        (Behaviour::ResetAfter(8000), "broke"),
        (Behaviour::GarbageAfter(400), ""),
        (Behaviour::GarbageAfter(8000), ""),
        (Behaviour::Slow, "took longer than 2s"),
    ] {
        let server = serve(&bench, behaviour.clone());
        let began = Instant::now();
        let error = bench.fetch_commit(&over_http(&server, "shop/.git"), &history[4]).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SourceError::Failed(_)) && text.contains(wanted), "{behaviour:?}: {text}");
        assert!(!text.contains('\n') && began.elapsed() < Duration::from_secs(4), "{behaviour:?}: {text}");
    }
    let app = crate::git::app(longshore::config::RepoUrl::Http {
        url: format!("http://{refused}/shop"),
        authority: refused.clone(),
    });
    let error = bench.fetch_commit(&app, &history[4]).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot reach {refused}: Connection refused")), "{error}");

    for mirror in std::fs::read_dir(bench.path().join("mirrors")).unwrap() {
        let mirror = mirror.unwrap().path();
        for place in ["objects/pack", "longshore-incoming"] {
            let left: Vec<_> = std::fs::read_dir(mirror.join(place)).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

#[tokio::test]
async fn a_broken_transfer_is_made_good_by_the_next() {
    let bench = Bench::new();
    let (_repo, history) = shop(&bench, 5);
    // The same address, first cut off, then whole: the mirror is the same.
    let broken = serve(&bench, Behaviour::CloseAfter(8000));
    let app = over_http(&broken, "shop/.git");
    bench.fetch_commit(&app, &history[4]).await.unwrap_err();
    let honest = serve(&bench, Behaviour::Honest);
    let source = bench.fetch_commit(&over_http(&honest, "shop/.git"), &history[4]).await.unwrap();
    assert_whole(&source);
}

#[tokio::test]
async fn cancelling_ends_a_fetch_at_once() {
    let bench = Bench::new();
    let (_repo, history) = shop(&bench, 1);
    for behaviour in [Behaviour::Hang, Behaviour::HangAfter(1000), Behaviour::Slow] {
        let server = serve(&bench, behaviour.clone());
        let app = over_http(&server, "shop/.git");
        let cancel = CancellationToken::new();
        let want = Want::Commit(history[0].clone());
        let fetching = bench.mirrors.fetch(&app, &want, &bench.log, &cancel);
        let cancelling = async {
            while server.arrived().is_empty() {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
            Instant::now()
        };
        let (result, cancelled) = tokio::join!(fetching, cancelling);
        assert!(matches!(result, Err(SourceError::Cancelled)), "{behaviour:?}: {result:?}");
        assert!(cancelled.elapsed() < Duration::from_millis(500), "{behaviour:?}");
    }
}

#[tokio::test]
async fn two_fetches_at_once_take_turns() {
    let bench = Bench::new();
    let (_repo, history) = shop(&bench, 10);
    let server = serve(&bench, Behaviour::Honest);
    let app = over_http(&server, "shop/.git");
    let fetches = history.iter().map(|commit| bench.fetch_commit(&app, commit));
    for (source, commit) in futures_util::future::join_all(fetches).await.into_iter().zip(&history) {
        assert_eq!(source.unwrap().commit, *commit);
    }
}
