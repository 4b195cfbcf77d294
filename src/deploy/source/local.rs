//! A repository on this machine, read directly.

use std::path::{Path, PathBuf};

use git2::{ErrorCode, Oid, Repository, RepositoryOpenFlags};

use super::limits::{Limits, Trouble};
use super::pack::{Received, index_local};

/// The repository at a path of this machine.
#[derive(Debug, Clone)]
pub(super) struct LocalOrigin {
    path: PathBuf,
}

impl LocalOrigin {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The object that a full ref name stands for.
    pub fn resolve(&self, name: &str) -> Result<Option<Oid>, Trouble> {
        let repo = self.open()?;
        let found = match repo.find_reference(name) {
            Ok(reference) => reference.resolve().map(|direct| direct.target()),
            Err(error) => Err(error),
        };
        match found {
            Ok(oid) => Ok(oid),
            Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Copies `want` and all it is made of that is not below `haves` into `mirror`.
    pub fn fetch(&self, want: Oid, haves: &[Oid], mirror: &Path, limits: &Limits) -> Result<Received, Trouble> {
        let repo = self.open()?;
        let object = repo.find_object(want, None).map_err(|_| Trouble::NotGiven)?;
        let mut builder = repo.packbuilder().map_err(|error| self.failed(&error))?;
        let stop = limits.clone();
        let _ = builder.set_progress_callback(move |_, _, _| stop.check().is_ok());
        let mut wrapped = object;
        while let Some(tag) = wrapped.as_tag() {
            builder.insert_object(tag.id(), None).map_err(|error| self.failed(&error))?;
            wrapped = tag.target().map_err(|error| self.failed(&error))?;
        }
        if wrapped.as_commit().is_some() {
            let mut walk = repo.revwalk().map_err(|error| self.failed(&error))?;
            walk.push(wrapped.id()).map_err(|error| self.failed(&error))?;
            for have in haves {
                if repo.find_commit(*have).is_ok() {
                    walk.hide(*have).map_err(|error| self.failed(&error))?;
                }
            }
            limits.check()?;
            builder.insert_walk(&mut walk).map_err(|error| self.stopped_or(limits, &error))?;
        } else {
            builder.insert_recursive(wrapped.id(), None).map_err(|error| self.stopped_or(limits, &error))?;
        }
        index_local(mirror, limits, |take| {
            builder.foreach(|data| take(data)).map_err(|error| self.stopped_or(limits, &error))
        })
    }

    fn open(&self) -> Result<Repository, Trouble> {
        Repository::open_ext(&self.path, RepositoryOpenFlags::NO_SEARCH, &[] as &[&Path]).map_err(|error| {
            let path = self.path.display();
            match error.code() {
                // git's own guard against running in a stranger's repository; it is never switched off.
                ErrorCode::Owner => Trouble::Failed(format!(
                    "{path} belongs to {}, not to the user of the agent: change its owner, or trust it with \
                     `git config --global --add safe.directory {path}`",
                    owner(&self.path)
                )),
                ErrorCode::NotFound => Trouble::Failed(format!("there is no git repository at {path}")),
                _ => self.failed(&error),
            }
        })
    }

    fn stopped_or(&self, limits: &Limits, error: &git2::Error) -> Trouble {
        limits.check().err().unwrap_or_else(|| self.failed(error))
    }

    fn failed(&self, error: &git2::Error) -> Trouble {
        Trouble::Failed(format!("{}: {}", self.path.display(), error.message()))
    }
}

fn owner(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(metadata) => format!("uid {}", metadata.uid()),
        Err(_) => "another user".to_owned(),
    }
}
