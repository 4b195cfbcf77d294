//! A small file system of its own, in a file: full, read-only or wrong only for those who are on it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// ext4 on a loop device, unmounted when it is dropped.
pub struct SmallDisk {
    _dir: TempDir,
    mount: PathBuf,
}

impl SmallDisk {
    /// None, with a line on stderr, where this process may not mount.
    pub fn or_skip(test: &str, mebibytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped {test}: only root can mount a small file system");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("longshore-disk-").tempdir().expect("a temporary directory");
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        File::create(&image).and_then(|file| file.set_len(mebibytes << 20)).expect("an image");
        fs::create_dir(&mount).expect("a place to mount it");
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Some(Self { _dir: dir, mount })
    }

    /// A directory on it.
    pub fn directory(&self) -> PathBuf {
        let directory = self.mount.join("data");
        fs::create_dir_all(&directory).expect("a directory on the small disk");
        directory
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        self.fill_but(0);
    }

    /// Takes the room that is left but for so many bytes.
    pub fn fill_but(&self, rest: u64) {
        let file = File::options().create(true).append(true).open(self.filler()).expect("a file on the small disk");
        let mut size: i64 = 1 << 24;
        while size >= 1024 {
            if self.free() < rest + size.cast_unsigned() {
                size /= 2;
                continue;
            }
            let end = file.metadata().expect("the filler").len();
            let taken = fallocate(file.as_fd(), FallocateFlags::empty(), end.cast_signed(), size);
            if taken.is_err() {
                size /= 2;
            }
        }
        assert!(self.free() < rest + (64 << 10), "{} bytes are left", self.free());
    }

    /// Gives it back.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("the filler can be removed");
    }

    /// Bytes left.
    pub fn free(&self) -> u64 {
        let found = statvfs(&self.mount).expect("the small disk can be asked");
        found.blocks_available() * found.fragment_size()
    }

    /// Nothing can be written from now on; fails while somebody has a file open for writing.
    pub fn read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        run(Command::new("mount").args(["-o", option]).arg(&self.mount));
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.mount, &[]);
        // Somebody is still on it: it goes when they do.
        unmount(&self.mount, &["--lazy"]);
    }
}

fn unmount(mount: &Path, options: &[&str]) {
    let _ = Command::new("umount").args(options).arg(mount).stderr(std::process::Stdio::null()).status();
}

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
