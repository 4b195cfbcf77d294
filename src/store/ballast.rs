//! Room set aside beside the journal, so that what is under way can write its end when the disk is full.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::posix_fallocate;

use super::open::sibling;
use crate::disk;

/// Enough for the ends of thousands of deployments.
pub(super) const SIZE: u64 = 8 << 20;
/// It is set aside only where as much again stays free: otherwise it would be what fills the disk.
const ROOM: u64 = 2 * SIZE;

/// `journal.ballast`
pub(super) struct Ballast {
    path: PathBuf,
    there: bool,
    /// The disk was found full and has not had room since.
    scarce: Arc<AtomicBool>,
}

impl Ballast {
    /// Beside this journal, as an earlier life of the agent left it.
    pub fn beside(journal: &Path) -> Self {
        let path = sibling(&journal.with_extension(""), ".ballast");
        let there = fs::metadata(&path).is_ok_and(|file| file.len() == SIZE);
        Self { path, there, scarce: Arc::default() }
    }

    /// Whether the disk was found full and has not had room since.
    pub fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Acquire)
    }

    /// The same for those outside of the journal's thread.
    pub fn watch_scarcity(&self) -> Arc<AtomicBool> {
        self.scarce.clone()
    }

    /// Gives the room to the journal. False when there is none to give.
    pub fn release(&mut self) -> bool {
        self.scarce.store(true, Ordering::Release);
        std::mem::take(&mut self.there) && fs::remove_file(&self.path).is_ok()
    }

    /// Sets the room aside (again) as soon as there is enough. Without any on this file system the journal works as
    /// well, and what meets a full disk is taken up again later.
    pub fn renew(&mut self) {
        if self.there || disk::available(&self.path).is_ok_and(|free| free < ROOM) {
            return;
        }
        if self.scarce.swap(false, Ordering::AcqRel) {
            tracing::info!("the journal's disk has room again");
        }
        self.there = self.make().is_ok();
        if !self.there {
            // Best effort: a part of it would be in the way.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn make(&self) -> std::io::Result<()> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        posix_fallocate(file.as_fd(), 0, SIZE.cast_signed())?;
        file.sync_all()
    }
}
