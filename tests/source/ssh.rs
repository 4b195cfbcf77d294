//! git over ssh, with a real sshd on loopback.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore::config::{App, Credential, RepoUrl};
use longshore::deploy::source::SourceError;

use crate::git::{Repo, app};
use crate::{Bench, assert_whole};

/// A running sshd; ended with the test.
struct Sshd {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let status = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    assert!(status.unwrap().success());
    path
}

/// An sshd, where there is one; with `versions` git's protocol version 2 gets through it.
fn start(dir: &Path, versions: bool) -> Option<Sshd> {
    let sshd = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
    let Some(sshd) = sshd else {
        println!("skipped: there is no sshd (Debian: openssh-server)");
        return None;
    };
    if nix::unistd::geteuid().is_root() {
        // Where sshd puts its unprivileged half; the package's service makes it at boot.
        let _ = std::fs::create_dir_all("/run/sshd");
    }
    let host_key = key(dir, "host");
    let client_key = key(dir, "client key");
    std::fs::copy(client_key.with_extension("pub"), dir.join("authorized")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n{}",
        host_key.display(),
        dir.join("authorized").display(),
        if versions { "AcceptEnv GIT_PROTOCOL\n" } else { "" },
    );
    std::fs::write(dir.join("sshd_config"), config).unwrap();
    let log = std::fs::File::create(dir.join("sshd.log")).unwrap();
    let mut command = Command::new(sshd);
    command.arg("-D").arg("-e").arg("-f").arg(dir.join("sshd_config"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let server = Sshd { child, port, dir: dir.to_owned() };
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "sshd does not listen");
        std::thread::yield_now();
    }
    server.trust("known hosts", &dir.join("host.pub"));
    Some(server)
}

impl Sshd {
    fn trust(&self, file: &str, public_key: &Path) {
        let key = std::fs::read_to_string(public_key).unwrap();
        let mut file = std::fs::File::create(self.dir.join(file)).unwrap();
        writeln!(file, "[127.0.0.1]:{} {key}", self.port).unwrap();
    }

    fn app(&self, path: &Path, key: &str, known_hosts: &str) -> App {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
        let path = path.display().to_string();
        let mut app = app(RepoUrl::Ssh { user, host: "127.0.0.1".to_owned(), port: self.port, path });
        app.credential = Credential::SshKey { key: self.dir.join(key), known_hosts: self.dir.join(known_hosts) };
        app
    }
}

#[tokio::test]
async fn a_deploy_key_brings_the_commit() {
    for versions in [false, true] {
        let bench = Bench::new();
        let Some(sshd) = start(bench.path(), versions) else { return };
        let repo = Repo::init(&bench.path().join("it's a;$(id) shop!"));
        repo.write("a", "1");
        let first = repo.commit("One");
        let app = sshd.app(&repo.path, "client key", "known hosts");
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
        let error = bench.fetch_commit(&sshd.app(path, key, known_hosts), &commit).await.unwrap_err();
        println!("{error}");
        assert!(matches!(&error, SourceError::Failed(text) if text.contains(wanted)), "{wanted}: {error}");
    }
    let port = sshd.port;
    let app = sshd.app(&repo.path, "client key", "known hosts");
    drop(sshd);
    let error = bench.fetch_commit(&app, &commit).await.unwrap_err().to_string();
    assert!(error.contains("Connection refused") && error.contains(&port.to_string()), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let bench = Bench::impatient();
    let Some(sshd) = start(bench.path(), true) else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut app = sshd.app(Path::new("/srv/shop"), "client key", "known hosts");
    if let RepoUrl::Ssh { port, .. } = &mut app.repo {
        *port = silent.local_addr().unwrap().port();
    }
    let began = Instant::now();
    let error = bench.mirrors.tip(&app).await.unwrap_err().to_string();
    assert!(error.contains("has sent nothing for 400ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(4));
}
