//! One agent per id on a machine: a copy of a journal in another data directory makes an agent that takes the first one's
//! containers for its own.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// That no other agent has the id, as long as this is kept. A name of the abstract namespace (unix(7)): the kernel frees it when the
/// process ends, however it ends. Each network namespace has names of its own.
#[derive(Debug)]
pub struct Identity {
    _name: Option<UnixListener>,
}

/// Why the id cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error(
        "an agent with the same id ({id}) runs already, with pid {pid}: this journal is a copy of that one's, and each would take \
         the other's containers for its own. Stop that one first; to try a backup while it runs, do it on another machine"
    )]
    Taken {
        /// The id of both.
        id: String,
        /// Of the other one.
        pid: i32,
    },
}

impl Identity {
    /// Takes the id, or says who has it. What a stranger's process holds is no agent of ours: that is said and passed over.
    pub fn take(id: &str) -> Result<Self, IdentityError> {
        match claim(id) {
            Ok(name) => Ok(Self { _name: Some(name) }),
            Err(error) => match holder(id) {
                Some(pid) => Err(IdentityError::Taken { id: id.to_owned(), pid }),
                None => {
                    tracing::warn!(%error, id, "whether another agent has the same id cannot be told");
                    Ok(Self { _name: None })
                }
            },
        }
    }
}

fn name(id: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("longshore/{id}"))
}

fn claim(id: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&name(id)?)
}

/// The process that has it, if that is one of the same user's.
fn holder(id: &str) -> Option<i32> {
    let other = UnixStream::connect_addr(&name(id).ok()?).ok()?;
    let whose = getsockopt(&other, PeerCredentials).ok()?;
    (whose.uid() == nix::unistd::geteuid().as_raw()).then(|| whose.pid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_had_by_one_process_until_it_ends() {
        let id = format!("test-{}", std::process::id());
        let first = Identity::take(&id).unwrap();
        let why = Identity::take(&id).unwrap_err().to_string();
        assert!(why.contains(&format!("({id}) runs already, with pid {}:", std::process::id())), "{why}");
        drop(first);
        Identity::take(&id).unwrap();
    }
}
