//! git over ssh, with a real sshd on loopback.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use longshore::config::{App, Credential, RepoUrl};
use longshore::deploy::source::SourceError;

use crate::git::{Repo, app};
use crate::sshd::{Sshd, key, start};
use crate::{Bench, assert_whole};

fn app_at(sshd: &Sshd, path: &Path, key: &str, known_hosts: &str) -> App {
    let path = path.display().to_string();
    let mut app = app(RepoUrl::Ssh { user: Sshd::user(), host: "127.0.0.1".to_owned(), port: sshd.port, path });
    app.credential = Credential::SshKey { key: sshd.dir.join(key), known_hosts: sshd.dir.join(known_hosts) };
    app
}

#[tokio::test]
async fn a_deploy_key_brings_the_commit() {
    for versions in [false, true] {
        let bench = Bench::new();
        let Some(sshd) = start(bench.path(), versions) else { return };
        let repo = Repo::init(&bench.path().join("it's a;$(id) shop!"));
        repo.write("a", "1");
        let first = repo.commit("One");
        let app = app_at(&sshd, &repo.path, "client key", "known hosts");
        assert_eq!(bench.mirrors.tip(&app).await.unwrap(), Some(first.clone()));
        assert_whole(&bench.fetch_commit(&app, &first).await.unwrap());
        repo.write("a", "2");
        let below = repo.commit("Two");
        repo.commit("Three");
        bench.take_log();
        assert_whole(&bench.fetch_commit(&app, &below).await.unwrap());
        let log = bench.take_log();
        let objects = if versions { "received 3 objects" } else { "received 4 objects" };
        assert!(log.contains(objects), "without version 2 it comes with the branch: {log}");
    }
}

#[tokio::test]
async fn strangers_and_refusals_are_told_apart() {
    let bench = Bench::new();
    let Some(sshd) = start(bench.path(), true) else { return };
    let repo = Repo::init(&bench.path().join("shop"));
    let commit = repo.commit("One");
    key(bench.path(), "other");
    std::fs::write(bench.path().join("nobody"), "").unwrap();
    sshd.trust("changed", &bench.path().join("other.pub"));
    let absent = bench.path().join("absent");
    for (path, key, known_hosts, wanted) in [
        (&repo.path, "client key", "nobody", "host key unknown"),
        (&repo.path, "client key", "changed", "host key changed"),
        (&repo.path, "other", "known hosts", "permission denied"),
        (&repo.path, "no such key", "known hosts", "cannot read ssh_key"),
        (&absent, "client key", "known hosts", "does not appear to be a git repository"),
    ] {
        let error = bench.fetch_commit(&app_at(&sshd, path, key, known_hosts), &commit).await.unwrap_err();
        println!("{error}");
        assert!(matches!(&error, SourceError::Failed(text) if text.contains(wanted)), "{wanted}: {error}");
    }
    let port = sshd.port;
    let app = app_at(&sshd, &repo.path, "client key", "known hosts");
    drop(sshd);
    let error = bench.fetch_commit(&app, &commit).await.unwrap_err().to_string();
    assert!(error.contains("Connection refused") && error.contains(&port.to_string()), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let bench = Bench::impatient();
    let Some(sshd) = start(bench.path(), true) else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut app = app_at(&sshd, Path::new("/srv/shop"), "client key", "known hosts");
    if let RepoUrl::Ssh { port, .. } = &mut app.repo {
        *port = silent.local_addr().unwrap().port();
    }
    let began = Instant::now();
    let error = bench.mirrors.tip(&app).await.unwrap_err().to_string();
    assert!(error.contains("has sent nothing for 400ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(4));
}
