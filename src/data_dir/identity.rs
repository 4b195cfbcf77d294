//! One agent per id on a machine: a copy of a journal in another data directory makes an agent that takes the first one's
//! containers for its own.

use std::io;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Whoever has the id takes connections at once, unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// That no other agent has the id, as long as this is kept. A name of the abstract namespace (unix(7)): the kernel frees it when the
/// process ends, however it ends. Each network namespace has names of its own.
#[derive(Debug)]
pub struct Identity {
    _listening: Option<AbortOnDropHandle<()>>,
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
    pub async fn take(id: &str) -> Result<Self, IdentityError> {
        match UnixListener::bind(name(id)) {
            Ok(listener) => {
                let listening = tokio::spawn(async move {
                    // Left alone, those who look who has it would be in the way of the next ones.
                    while listener.accept().await.is_ok() {}
                });
                Ok(Self { _listening: Some(AbortOnDropHandle::new(listening)) })
            }
            Err(error) => match timeout(PATIENCE, holder(id)).await {
                Ok(Ok(Some(pid))) => Err(IdentityError::Taken { id: id.to_owned(), pid }),
                _ => {
                    tracing::warn!(%error, id, "whether another agent has the same id cannot be told");
                    Ok(Self { _listening: None })
                }
            },
        }
    }
}

fn name(id: &str) -> String {
    format!("\0longshore/{id}")
}

/// The process that has it, if that is one of the same user's.
async fn holder(id: &str) -> io::Result<Option<i32>> {
    let whose = UnixStream::connect(name(id)).await?.peer_cred()?;
    Ok(whose.pid().filter(|_| whose.uid() == nix::unistd::geteuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_id_is_had_by_one_process_until_it_ends() {
        let id = format!("test-{}", std::process::id());
        let first = Identity::take(&id).await.unwrap();
        // As often as a service manager tries: more than a socket lets wait.
        for _ in 0..2_000 {
            let why = Identity::take(&id).await.unwrap_err().to_string();
            assert!(why.contains(&format!("({id}) runs already, with pid {}:", std::process::id())), "{why}");
        }
        drop(first);
        while Identity::take(&id).await.is_err() {
            // Its task ends behind it.
            tokio::task::yield_now().await;
        }
    }
}
