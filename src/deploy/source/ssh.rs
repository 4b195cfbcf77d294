//! git over ssh: the system's OpenSSH, started by argv, spoken to over pipes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::task::JoinHandle;

use super::limits::{Limits, Trouble, one_line};
use super::pkt::{PktReader, Reply};
use crate::config::Credential;

/// What is kept of ssh's messages.
const STDERR_KEPT: usize = 16 << 10;
/// How long a dying ssh has to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where to connect to.
pub(super) struct SshAddress<'a> {
    pub user: &'a str,
    pub host: &'a str,
    pub port: u16,
    pub path: &'a str,
}

/// A running ssh. Dropping it kills it.
pub(super) struct SshWire {
    _child: Child,
    stdin: ChildStdin,
    stderr: Option<JoinHandle<Vec<u8>>>,
    limits: Limits,
    host: String,
    user: String,
    key: Option<String>,
    known_hosts: Option<String>,
}

impl SshWire {
    /// Starts ssh; the server's greeting comes through the reader.
    pub async fn connect(
        address: SshAddress<'_>,
        credential: &Credential,
        limits: &Limits,
    ) -> Result<(Self, PktReader), Trouble> {
        let (key, known_hosts) = match credential {
            Credential::SshKey { key, known_hosts } => (Some(key.as_path()), Some(known_hosts.as_path())),
            Credential::None => (None, None),
            Credential::Absent(absent) => return Err(Trouble::Failed(absent.to_string())),
            Credential::Token { .. } => {
                return Err(Trouble::Failed(format!(
                    "{} is reached by ssh, but `credential` is a token: set `credential = {{ ssh_key = …, known_hosts = … }}`",
                    address.host
                )));
            }
        };
        for (what, path) in [("ssh_key", key), ("known_hosts", known_hosts)] {
            if let Some(path) = path {
                readable(what, path)?;
            }
        }
        let mut child = command(&address, key, known_hosts, limits.timeouts.connect)?
            .spawn()
            .map_err(|error| Trouble::Failed(format!("cannot start ssh: {error}; install the OpenSSH client")))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Trouble::failed("cannot talk to ssh"));
        };
        let reply: Reply = Box::new(BufReader::with_capacity(64 << 10, stdout));
        let reader = PktReader::new(reply, limits.clone(), address.host.to_owned());
        let text = |path: Option<&Path>| path.map(|path| path.display().to_string());
        let wire = Self {
            _child: child,
            stdin,
            stderr: Some(tokio::spawn(keep_messages(stderr))),
            limits: limits.clone(),
            host: address.host.to_owned(),
            user: address.user.to_owned(),
            key: text(key),
            known_hosts: text(known_hosts),
        };
        Ok((wire, reader))
    }

    /// Sends one request of the conversation.
    pub async fn write(&mut self, request: &[u8]) -> Result<(), Trouble> {
        let written = self.limits.io(&self.host, async {
            self.stdin.write_all(request).await?;
            self.stdin.flush().await
        });
        match written.await? {
            Ok(()) => Ok(()),
            Err(error) => {
                let why = self.explain().await;
                Err(Trouble::Failed(why.unwrap_or_else(|| format!("the connection to {} broke: {error}", self.host))))
            }
        }
    }

    /// What ssh said before it ended, made clear.
    pub async fn explain(&mut self) -> Option<String> {
        let mut messages = self.stderr.take()?;
        let said = tokio::time::timeout(LAST_WORDS, &mut messages).await;
        messages.abort();
        explain(&said.ok()?.ok()?, &self.host, &self.user, self.key.as_deref(), self.known_hosts.as_deref())
    }
}

fn readable(what: &str, path: &Path) -> Result<(), Trouble> {
    std::fs::File::open(path)
        .map(drop)
        .map_err(|error| Trouble::Failed(format!("`credential`: cannot read {what} {}: {error}", path.display())))
}

async fn keep_messages(mut stderr: ChildStderr) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    // Read on past the limit: a full pipe would hold up ssh.
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        let room = STDERR_KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
    kept
}

fn command(
    address: &SshAddress<'_>,
    key: Option<&Path>,
    known_hosts: Option<&Path>,
    connect: Duration,
) -> Result<Command, Trouble> {
    let mut ssh = Command::new("ssh");
    ssh.args(["-T", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oUpdateHostKeys=no"]);
    ssh.args(["-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-oControlMaster=no", "-oControlPath=none"]);
    ssh.args(["-oServerAliveInterval=15", "-oSendEnv=GIT_PROTOCOL"]);
    ssh.arg(format!("-oConnectTimeout={}", connect.as_secs().max(1)));
    if let Some(key) = key {
        ssh.args(["-oIdentitiesOnly=yes", "-oIdentityAgent=none"]);
        ssh.arg(format!("-oIdentityFile={}", option_path(key)?));
    }
    if let Some(known_hosts) = known_hosts {
        ssh.arg(format!("-oUserKnownHostsFile={}", option_path(known_hosts)?));
        ssh.arg("-oGlobalKnownHostsFile=/dev/null");
    }
    ssh.arg(format!("-p{}", address.port)).arg("-l").arg(address.user).arg("--").arg(address.host);
    ssh.arg(format!("git-upload-pack {}", quote(address.path)));
    // The agent's environment holds secrets that ssh's own configuration could send on.
    ssh.env_clear().env("GIT_PROTOCOL", "version=2").env("LC_ALL", "C");
    for name in ["HOME", "PATH", "USER", "LOGNAME", "SSH_AUTH_SOCK"] {
        if let Some(value) = std::env::var_os(name) {
            ssh.env(name, value);
        }
    }
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
    Ok(ssh)
}

/// A path as the value of an ssh option: quoted against spaces, its per cent signs taken literally.
fn option_path(path: &Path) -> Result<String, Trouble> {
    let usable = path.to_str().filter(|text| !text.contains(['"', '\\', '\n', '$']) && text.starts_with('/'));
    let text = usable.ok_or_else(|| {
        Trouble::Failed(format!(
            "`credential`: ssh cannot take the path {:?}: it must be absolute, without quotes, backslashes and dollars",
            path.display().to_string()
        ))
    })?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// A word for the shell at the other end, which git servers run the command with; git's own way of quoting.
fn quote(path: &str) -> String {
    let escaped: String = path
        .chars()
        .map(|c| match c {
            '\'' => r"'\''".to_owned(),
            '!' => r"'\!'".to_owned(),
            other => other.to_string(),
        })
        .collect();
    format!("'{escaped}'")
}

fn explain(said: &[u8], host: &str, user: &str, key: Option<&str>, known_hosts: Option<&str>) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let known_hosts = known_hosts.unwrap_or("~/.ssh/known_hosts");
    let has = |needle: &str| text.contains(needle);
    if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("host key has changed") {
        return Some(format!(
            "{host}: host key changed: the server is not the one in {known_hosts}. If that is meant to be, replace \
             its line there; if not, someone is in between"
        ));
    }
    if has("Host key verification failed") || has("host key is known for") {
        return Some(format!(
            "{host}: host key unknown: it is not in {known_hosts}. Compare it with what the server's operator \
             publishes, then add it"
        ));
    }
    if has("UNPROTECTED PRIVATE KEY FILE") || has("bad permissions") {
        return Some(format!("{}: the key is readable by others; run chmod 600 on it", key.unwrap_or("the ssh key")));
    }
    if has("Permission denied") {
        return Some(format!(
            "{host}: permission denied: user {user:?} may not log in with {}; add its public half as a deploy key",
            key.unwrap_or("any key of the agent")
        ));
    }
    let spoken = |line: &&str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("Warning:") && !line.starts_with("@@")
    };
    // The cause comes first; what follows is ssh's and git's general advice.
    let first = text.lines().find(spoken)?;
    let first = one_line(first.as_bytes());
    Some(format!("{host}: {}", first.strip_prefix("ssh: ").unwrap_or(&first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_argv_with_pinned_keys() {
        let address = SshAddress { user: "git", host: "-oProxyCommand=x", port: 2222, path: "it's/a!b.git" };
        let command = command(
            &address,
            Some(Path::new("/keys/100% mine")),
            Some(Path::new("/keys/known")),
            Duration::from_secs(10),
        )
        .unwrap();
        let arguments: Vec<_> = command.as_std().get_args().map(|a| a.to_str().unwrap()).collect();
        for wanted in [
            "-oBatchMode=yes",
            "-oStrictHostKeyChecking=yes",
            "-oIdentitiesOnly=yes",
            "-oIdentityFile=\"/keys/100%% mine\"",
            "-oUserKnownHostsFile=\"/keys/known\"",
            "-oConnectTimeout=10",
            "-p2222",
        ] {
            assert!(arguments.contains(&wanted), "{wanted} in {arguments:?}");
        }
        let end = arguments.iter().position(|a| *a == "--").unwrap();
        assert_eq!(&arguments[end + 1..], ["-oProxyCommand=x", r"git-upload-pack 'it'\''s/a'\!'b.git'"]);
    }

    #[test]
    fn what_ssh_says_becomes_what_to_do() {
        let told = |said: &str| explain(said.as_bytes(), "h", "git", Some("/k"), Some("/kh")).unwrap();
        assert!(told("@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n").contains("host key changed"));
        assert!(
            told("No ED25519 host key is known for h\nHost key verification failed.\n").contains("host key unknown")
        );
        assert!(told("git@h: Permission denied (publickey).\n").contains("permission denied"));
        assert_eq!(
            told("ssh: connect to host h port 22: Connection refused\n"),
            "h: connect to host h port 22: Connection refused"
        );
        assert_eq!(
            told("ERROR: Repository not found.\nfatal: Could not read from remote repository.\n"),
            "h: ERROR: Repository not found."
        );
        assert_eq!(explain(b"", "h", "git", None, None), None);
    }
}
