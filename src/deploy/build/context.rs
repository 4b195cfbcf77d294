//! The build context, read from a commit's tree.

use std::io::{self, Write};

use git2::{ObjectType, Oid, Repository, TreeWalkMode};
use sha2::{Digest, Sha256};

use crate::config::Build;
use crate::deploy::source::Source;

/// A commit's directory as the builders take it.
pub struct Context {
    repository: Repository,
    tree: Oid,
    digest: String,
    dockerfile: Vec<u8>,
}

impl Context {
    /// Reads the tree's outline. Blocks.
    pub fn open(source: &Source, build: &Build) -> Result<Self, String> {
        let failed = |error: git2::Error| error.message().to_owned();
        let repository = Repository::open_bare(&source.mirror).map_err(failed)?;
        let commit = Oid::from_str(source.commit.as_str()).map_err(failed)?;
        let root = repository.find_commit(commit).and_then(|commit| commit.tree()).map_err(failed)?;
        let tree = match build.context.as_str() {
            "." => root.id(),
            path => root.get_path(path.as_ref()).map_err(failed)?.id(),
        };
        let dockerfile = {
            let tree = repository.find_tree(tree).map_err(failed)?;
            let entry = tree.get_path(build.dockerfile.as_ref());
            let entry = entry.map_err(|_| format!("there is no {} in the build context", build.dockerfile))?;
            repository.find_blob(entry.id()).map_err(failed)?.content().to_vec()
        };
        drop(root);
        let digest = hex::encode(Sha256::digest(tree.as_bytes()));
        Ok(Self { repository, tree, digest, dockerfile })
    }

    /// Digest of all that is in it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The Dockerfile's content.
    pub fn dockerfile(&self) -> &[u8] {
        &self.dockerfile
    }

    /// Writes it as a tar; how many bytes.
    pub fn write_tar(self, out: impl Write) -> io::Result<u64> {
        let mut builder = tar::Builder::new(out);
        let tree = self.repository.find_tree(self.tree).map_err(io::Error::other)?;
        let mut files = Vec::new();
        tree.walk(TreeWalkMode::PreOrder, |directory, entry| {
            if entry.kind() == Some(ObjectType::Blob) {
                let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
                files.push((format!("{directory}{name}"), entry.id(), entry.filemode()));
            }
            git2::TreeWalkResult::Ok
        })
        .map_err(io::Error::other)?;
        let mut total = 0;
        for (path, id, mode) in files {
            let blob = self.repository.find_blob(id).map_err(io::Error::other)?;
            let mut header = tar::Header::new_gnu();
            header.set_size(blob.size() as u64);
            header.set_mode(if mode == 0o100_755 { 0o755 } else { 0o644 });
            total += blob.size() as u64;
            builder.append_data(&mut header, path, blob.content())?;
        }
        builder.into_inner()?.flush()?;
        Ok(total)
    }
}
