//! The far end of a fetch: a server or a repository on this machine, behind one face.

use std::path::Path;
use std::time::Instant;

use git2::Oid;

use super::limits::{Limits, Trouble, blocking};
use super::local::LocalOrigin;
use super::mirror::Mirror;
use super::pack::{PackSink, Received};
use super::session::Session;
use super::{SourceError, Unfetched, Want, oid};
use crate::config::{App, Credential, RepoUrl};
use crate::journal::DeployLog;
use crate::model::GitRef;

/// Where a repository is, how it is read, and which branch stands for it.
pub(super) struct Origin {
    pub url: RepoUrl,
    pub credential: Credential,
    /// Full name; fetched when a server does not give out a commit by its id.
    pub branch: String,
}

/// An open way to the objects of an origin.
pub(super) enum Remote {
    Server(Box<Session>),
    Local(LocalOrigin),
}

impl Origin {
    pub fn of(app: &App) -> Result<Self, SourceError> {
        let branch = GitRef::of_branch(&app.branch).map_err(|error| SourceError::Failed(error.to_string()))?;
        Ok(Self { url: app.repo.clone(), credential: app.credential.clone(), branch: branch.as_str().to_owned() })
    }
}

impl Remote {
    pub async fn resolve(&mut self, name: &str) -> Result<Option<Oid>, Trouble> {
        match self {
            Self::Server(session) => session.resolve(name).await,
            Self::Local(local) => {
                let (local, name) = (local.clone(), name.to_owned());
                blocking(move || local.resolve(&name)).await
            }
        }
    }

    /// The object that a branch or a tag stands for.
    pub async fn resolve_wanted(&mut self, want: &Want, origin: &Origin) -> Result<Oid, Unfetched> {
        let name = match want {
            Want::Branch(branch) => format!("refs/heads/{branch}"),
            Want::Tag(tag) => format!("refs/tags/{tag}"),
            Want::Commit(commit) => return Ok(oid(commit)?),
        };
        let valid: GitRef = name.parse().map_err(|error| Trouble::Failed(format!("{error}")))?;
        match self.resolve(valid.as_str()).await? {
            Some(oid) => Ok(oid),
            None => Err(Unfetched::NoSuchRef(format!("there is no {want} in {} (yet)", origin.url))),
        }
    }

    pub fn gives_out(&self, oid: Oid) -> bool {
        match self {
            Self::Server(session) => session.gives_out(oid),
            Self::Local(_) => true,
        }
    }

    /// Fetches into the mirror at `path` what is not there yet. A server's session ends with it.
    pub async fn fetch(self, wanted: Oid, path: &Path, log: &DeployLog, limits: &Limits) -> Result<(), Trouble> {
        let mirror = path.to_owned();
        let (there, haves) = blocking(move || {
            let mirror = Mirror::open(&mirror)?;
            Ok((mirror.holds(wanted), mirror.haves()?))
        })
        .await?;
        if there {
            return Ok(());
        }
        let began = Instant::now();
        let received = match self {
            Self::Server(session) => {
                let mut sink = PackSink::start(path, limits);
                session.fetch(wanted, &haves, &mut sink).await?;
                sink.finish().await?
            }
            Self::Local(local) => {
                let (path, limits) = (path.to_owned(), limits.clone());
                blocking(move || local.fetch(wanted, &haves, &path, &limits)).await?
            }
        };
        log.line(told(&received, began));
        Ok(())
    }
}

fn told(received: &Received, began: Instant) -> String {
    let (amount, unit) = match received.bytes {
        bytes if bytes < 1 << 20 => (bytes as f64 / 1024.0, "KiB"),
        bytes => (bytes as f64 / f64::from(1 << 20), "MiB"),
    };
    format!("received {} objects, {amount:.1} {unit} in {:.1} s", received.objects, began.elapsed().as_secs_f64())
}
