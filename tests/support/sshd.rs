//! A real sshd on loopback, with keys of its own.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running sshd; ended with the test.
pub struct Sshd {
    child: Child,
    /// Where it listens.
    pub port: u16,
    /// Its directory, with the keys and the lists of known hosts.
    pub dir: PathBuf,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new key pair without a passphrase; the private key's file.
pub fn key(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let status = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    assert!(status.unwrap().success());
    path
}

/// An sshd in `dir`, where there is one, that takes the key `client key` and is in the list `known hosts`; with `versions` git's protocol version 2 gets through it.
pub fn start(dir: &Path, versions: bool) -> Option<Sshd> {
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
    /// Writes a list of known hosts that has this key for the server.
    pub fn trust(&self, file: &str, public_key: &Path) {
        let key = std::fs::read_to_string(public_key).unwrap();
        let mut file = std::fs::File::create(self.dir.join(file)).unwrap();
        writeln!(file, "[127.0.0.1]:{} {key}", self.port).unwrap();
    }

    /// Whom it lets in: the user that runs the tests.
    pub fn user() -> String {
        nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
    }
}
