//! The static files of releases: copied out of their images before anything is switched, and kept as long as these.
//!
//! A directory is named after the image's content and the directory in it, so what is there is right, and releases with the
//! same image share it. Volumes are not copied: a link leads to where the engine keeps them.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use nix::unistd::syncfs;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::prepare::Target;
use super::{Halt, Story, failed};
use crate::config::FilesSource;
use crate::disk;
use crate::model::{AppName, ImageId};
use crate::proxy::table::{FileRoot, StaticFiles};
use crate::runtime::RuntimeError;
use crate::store::{Release, ReleasedService};

mod unpack;

use unpack::{Limits, Unpacked, unpack};

/// What one directory of an image may have.
const LIMITS: Limits = Limits { bytes: 2 << 30, entries: 100_000 };
/// Pieces of an archive that may wait to be unpacked.
const PIECES: usize = 16;
/// What is not complete.
const UNFINISHED: &str = ".unfinished-";

/// Where all apps' static files are.
#[derive(Debug, Clone)]
pub struct StaticStore {
    root: PathBuf,
}

impl StaticStore {
    /// In the agent's data directory. Nothing is made there before it is needed.
    pub fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("static") }
    }

    /// What the proxy is to serve for a service of a release.
    pub fn files(&self, app: &AppName, released: &ReleasedService) -> Vec<StaticFiles> {
        let of_prefix = |(prefix, source): (_, &FilesSource)| {
            let dir = self.directory(app, &released.image, source);
            let below = match source {
                FilesSource::Image(_) => String::new(),
                FilesSource::Volume { path, .. } => path.clone(),
            };
            StaticFiles { prefix, roots: vec![FileRoot { dir, below }] }
        };
        let files = &released.service.static_files;
        files.iter().map(|(prefix, source)| of_prefix((prefix.clone(), source))).collect()
    }

    /// Where a directory of an image is, once it is copied out, or the link to a volume.
    pub fn directory(&self, app: &AppName, image: &ImageId, source: &FilesSource) -> PathBuf {
        self.root.join(app.as_str()).join(name(image, source))
    }

    /// Removes an app's files that are of none of these releases, and what was not finished. How many directories went.
    /// Blocks. Only between deployments.
    pub fn prune<'a>(&self, app: &AppName, kept: impl Iterator<Item = &'a Release>) -> io::Result<usize> {
        let names: BTreeSet<String> = kept
            .flat_map(|release| &release.body.services)
            .flat_map(|released| released.service.static_files.values().map(|source| name(&released.image, source)))
            .collect();
        let entries = match fs::read_dir(self.root.join(app.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            if names.contains(&*entry.file_name().to_string_lossy()) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// The directory with this name, made beforehand under another one. Blocks.
    fn place(&self, app: &AppName, name: &str) -> io::Result<Place> {
        let parent = self.root.join(app.as_str());
        DirBuilder::new().recursive(true).mode(0o700).create(&parent)?;
        let unfinished = parent.join(format!("{UNFINISHED}{name}"));
        let finished = parent.join(name);
        Ok(Place { parent, unfinished, finished })
    }
}

/// Stands for a directory of an image, or a volume.
fn name(image: &ImageId, source: &FilesSource) -> String {
    match source {
        FilesSource::Image(directory) => {
            let digest = Sha256::new().chain_update(&image.0).chain_update([0]).chain_update(directory).finalize();
            hex::encode(digest.get(..16).unwrap_or(&digest))
        }
        // No digest has a dot.
        FilesSource::Volume { name, .. } => format!("volume.{name}"),
    }
}

struct Place {
    parent: PathBuf,
    unfinished: PathBuf,
    finished: PathBuf,
}

impl Place {
    fn fill(&self, archive: impl Read) -> Result<Unpacked, unpack::UnpackError> {
        // Of an earlier life of the agent.
        self.clear()?;
        DirBuilder::new().mode(0o700).create(&self.unfinished)?;
        unpack(archive, &self.unfinished, LIMITS)
    }

    fn finish(&self) -> io::Result<()> {
        // All at once: there may be thousands of them.
        syncfs(File::open(&self.unfinished)?)?;
        fs::rename(&self.unfinished, &self.finished)?;
        File::open(&self.parent)?.sync_all()
    }

    fn link_to(&self, target: &Path) -> io::Result<()> {
        // It is served by another process of the same user.
        fs::read_dir(target)?;
        self.clear()?;
        symlink(target, &self.unfinished)?;
        fs::rename(&self.unfinished, &self.finished)?;
        File::open(&self.parent)?.sync_all()
    }

    fn clear(&self) -> io::Result<()> {
        let cleared = match fs::symlink_metadata(&self.unfinished) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&self.unfinished),
            Ok(_) => fs::remove_file(&self.unfinished),
            Err(error) => Err(error),
        };
        match cleared {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cleared => cleared,
        }
    }
}

impl Story<'_> {
    /// Has the static files of the release where the proxy finds them; nothing is switched before.
    pub(super) async fn static_files(&self, target: &Target) -> Result<(), Halt> {
        for released in &target.release.body.services {
            for (prefix, source) in &released.service.static_files {
                let what = format!("the static files of {} for {prefix}", released.service.name);
                let ready = self.ready(released, source, &what);
                tokio::select! {
                    biased;
                    () = self.running.stop.cancelled() => return Err(self.running.halt()),
                    ready = self.unless_agent_ends(ready) => ready??,
                }
            }
        }
        Ok(())
    }

    async fn ready(&self, released: &ReleasedService, source: &FilesSource, what: &str) -> Result<(), Halt> {
        let store = &self.deployer.static_files;
        let bad =
            |why: &dyn std::fmt::Display, hold: bool| failed(format!("{what}: {why}; nothing was switched"), hold);
        let place = store.place(&self.app.name, &name(&released.image, source)).map_err(|why| bad(&why, false))?;
        match source {
            FilesSource::Volume { name, .. } => {
                let found = self.deployer.runtime.volume_directory(&self.app.name, name).await;
                let directory = found.map_err(|error| engine_failed(error, what))?;
                place.link_to(&directory).map_err(|why| {
                    bad(&format!("the volume is at {} and cannot be read here: {why}", directory.display()), false)
                })
            }
            FilesSource::Image(_) if place.finished.is_dir() => Ok(()),
            FilesSource::Image(directory) => {
                let unpacked = self.copy_out(released, directory, place, what).await?;
                let Unpacked { files, bytes, skipped: (skipped, first) } = unpacked;
                self.log.line(format!("{what}: {files} files with {} from {directory}", disk::Bytes(bytes)));
                if let Some(first) = first {
                    self.log.line(format!("  {skipped} links or special files are left out, such as {first}"));
                }
                Ok(())
            }
        }
    }

    async fn copy_out(
        &self,
        released: &ReleasedService,
        directory: &str,
        place: Place,
        what: &str,
    ) -> Result<Unpacked, Halt> {
        let (pieces, archive) = mpsc::channel(PIECES);
        let copying = self.deployer.runtime.copy_out(&self.app.name, &released.image, directory, pieces);
        let unpacking = tokio::task::spawn_blocking(move || {
            let unpacked = place.fill(Pieces { archive, current: Bytes::new() });
            (place, unpacked)
        });
        let (copied, unpacked) = tokio::join!(copying, unpacking);
        // Without the engine's end of it the archive may only look complete.
        copied.map_err(|error| engine_failed(error, what))?;
        let (place, unpacked) = unpacked.map_err(|why| failed(format!("{what}: {why}"), false))?;
        let finished = unpacked.and_then(|unpacked| {
            place.finish()?;
            Ok(unpacked)
        });
        finished.map_err(|why| {
            let of_machine = matches!(why, unpack::UnpackError::Io(_));
            failed(format!("{what}: {directory} of the image: {why}; nothing was switched"), !of_machine)
        })
    }
}

fn engine_failed(error: RuntimeError, what: &str) -> Halt {
    match error {
        RuntimeError::Unavailable(why) => Halt::EngineAway(why),
        RuntimeError::Refused(why) => failed(format!("{what}: {why}; nothing was switched"), true),
        gone @ RuntimeError::ImageGone(_) => failed(format!("{what}: {gone}; nothing was switched"), false),
    }
}

/// An archive that comes in pieces, read by a thread.
struct Pieces {
    archive: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.archive.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(into.len());
        self.current.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}
