//! How much room is left where the agent and the engine write.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// Bytes that this process may still write to the file system of `path`, which itself may not exist yet.
pub fn available(path: &Path) -> io::Result<u64> {
    let mut place = path;
    loop {
        match statvfs(place) {
            Ok(found) => {
                let (blocks, size) = (found.blocks_available(), found.fragment_size());
                // Their widths differ between platforms.
                #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
                return Ok((blocks as u64).saturating_mul(size as u64));
            }
            Err(nix::errno::Errno::ENOENT) => match place.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => place = parent,
                None => place = Path::new("."),
            },
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Too little room to begin a build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "too little space: {} free on the file system of {} ({what}), and at least {} is wanted ([agent] min_free)",
    Bytes(*free), path.display(), Bytes(*wanted)
)]
pub struct Shortage {
    /// Where.
    pub path: PathBuf,
    /// What is there.
    pub what: &'static str,
    /// Bytes.
    pub free: u64,
    /// Bytes.
    pub wanted: u64,
}

/// Whether there is too little room for a build: where the data directory is, or where the engine keeps its images, as
/// far as that can be seen from here. Of a place that cannot be asked nothing is said: the write itself will.
pub fn shortage_for_builds(data_dir: &Path, engine: Option<&Path>, wanted: u64) -> Option<Shortage> {
    let places = [(Some(data_dir), "the agent's data_dir"), (engine, "the Docker engine's storage")];
    places.into_iter().find_map(|(path, what)| {
        let path = path?;
        let free = available(path).ok()?;
        (free < wanted).then(|| Shortage { path: path.to_path_buf(), what, free, wanted })
    })
}

/// Whether an error's text says that a disk is full, whoever wrote it (`ENOSPC`).
pub fn says_full(text: &str) -> bool {
    text.to_ascii_lowercase().contains("no space left on device")
}

/// Bytes for people: `1 GiB`, `312.4 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, factor)| self.0 >= *factor) {
            Some((unit, factor)) if self.0.is_multiple_of(factor) => write!(f, "{} {unit}", self.0 / factor),
            Some((unit, factor)) => write!(f, "{:.1} {unit}", self.0 as f64 / factor as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_says_where_and_how_much() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("not/yet");
        assert!(available(&missing).unwrap() > 0);
        assert_eq!(shortage_for_builds(&missing, None, 1), None);
        let found = shortage_for_builds(&missing, None, u64::MAX).unwrap();
        assert_eq!((found.path.as_path(), found.wanted), (missing.as_path(), u64::MAX));
        // A device without any room stands for an engine's full disk.
        let engine = shortage_for_builds(dir.path(), Some(Path::new("/proc")), 1).unwrap();
        assert_eq!((engine.path.as_path(), engine.free), (Path::new("/proc"), 0));
        let said = Shortage { path: "/data".into(), what: "the agent's data_dir", free: 327_155_712, wanted: 1 << 30 }
            .to_string();
        assert_eq!(
            said,
            "too little space: 312 MiB free on the file system of /data (the agent's data_dir), and at least 1 GiB is \
             wanted ([agent] min_free)"
        );
        assert_eq!([Bytes(0), Bytes(1536)].map(|bytes| bytes.to_string()), ["0 bytes", "1.5 KiB"]);
    }
}
