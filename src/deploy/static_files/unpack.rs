//! From an image's tar archive to a directory of plain files. An image is whatever its author made it: nothing of it leaves
//! the directory, and it may be as large as it says and no larger.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

/// What is too much.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of all files.
    pub bytes: u64,
    /// Files and directories.
    pub entries: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files.
    pub files: u64,
    /// Of all of them.
    pub bytes: u64,
    /// Links, devices, and names that no file may have: how many were left out, and the first.
    pub skipped: (u64, Option<String>),
}

/// Why there is no directory.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// More than a limit.
    #[error("it has more than {0}")]
    TooMuch(String),
    /// What was asked for is a file or a link.
    #[error("it is no directory, but a file or a link")]
    NoDirectory,
    /// The archive cannot be read, or the files cannot be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Writes what the archive has below its one top directory into `into`, which is there and empty.
pub fn unpack(archive: impl Read, into: &Path, limits: Limits) -> Result<Unpacked, UnpackError> {
    let (mut unpacked, mut entries) = (Unpacked::default(), 0);
    let mut archive = Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        entries += 1;
        if entries == 1 {
            // The directory itself.
            if kind != EntryType::Directory {
                return Err(UnpackError::NoDirectory);
            }
            continue;
        }
        if entries > limits.entries {
            return Err(UnpackError::TooMuch(format!("{} files and directories", limits.entries)));
        }
        match (inside(&path), kind) {
            (Some(name), EntryType::Directory) => fs::create_dir_all(into.join(name))?,
            (Some(name), EntryType::Regular | EntryType::Continuous) => {
                unpacked.bytes += write(&mut entry, &into.join(name), limits.bytes - unpacked.bytes)
                    .and_then(|written| written.ok_or_else(|| too_large(limits)))?;
                unpacked.files += 1;
            }
            _ => {
                unpacked.skipped.0 += 1;
                unpacked.skipped.1.get_or_insert_with(|| path.display().to_string());
            }
        }
    }
    if entries == 0 { Err(UnpackError::NoDirectory) } else { Ok(unpacked) }
}

fn too_large(limits: Limits) -> UnpackError {
    UnpackError::TooMuch(crate::disk::Bytes(limits.bytes).to_string())
}

/// The name below the top directory; `None` when it is none.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    parts.next().filter(|top| matches!(top, Component::Normal(_)))?;
    let rest: Option<PathBuf> = parts
        .map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    rest.filter(|rest| !rest.as_os_str().is_empty())
}

/// How much was written; `None`: more than there is room for. A file that is in the archive twice is the second one.
fn write(entry: &mut impl Read, path: &Path, room: u64) -> Result<Option<u64>, UnpackError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    let written = io::copy(&mut entry.take(room.saturating_add(1)), &mut file)?;
    Ok((written <= room).then_some(written))
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    const LIMITS: Limits = Limits { bytes: 100, entries: 20 };

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for &(name, kind, content) in entries {
            let mut header = Header::new_gnu();
            // As it is: the library itself refuses to write such names.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o4777);
            let is_file = kind == EntryType::Regular;
            header.set_size(if is_file { content.len() as u64 } else { 0 });
            if !is_file && !content.is_empty() {
                header.set_link_name(content).unwrap();
            }
            header.set_cksum();
            builder.append(&header, if is_file { content.as_bytes() } else { b"" }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.file_name().into_string().unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => names.extend(self::names(&entry.path()).into_iter().map(|below| format!("{name}/{below}"))),
                false => names.push(name),
            }
        }
        names.sort();
        names
    }

    #[test]
    fn files_are_written_and_nothing_leaves_the_directory() {
        let outer = tempfile::tempdir().unwrap();
        let into = outer.path().join("into");
        fs::create_dir(&into).unwrap();
        let hostile = [
            ("static/", EntryType::Directory, ""),
            ("static/app.css", EntryType::Regular, "css"),
            ("static/deep/er/a.js", EntryType::Regular, "js"),
            ("static/../../escape", EntryType::Regular, "x"),
            ("/etc/escape", EntryType::Regular, "x"),
            ("static/link", EntryType::Symlink, "/etc"),
            ("static/link/escape", EntryType::Regular, "a directory of its own"),
            ("static/hard", EntryType::Link, "/etc/passwd"),
            ("static/pipe", EntryType::Fifo, ""),
            ("static/null", EntryType::Char, ""),
        ];
        let unpacked = unpack(archive(&hostile).as_slice(), &into, LIMITS).unwrap();
        assert_eq!(names(outer.path()), ["into/app.css", "into/deep/er/a.js", "into/link/escape"]);
        assert!(fs::symlink_metadata(into.join("link")).unwrap().is_dir());
        assert_eq!((unpacked.files, unpacked.skipped.0), (3, 6));
        assert_eq!(unpacked.skipped.1.as_deref(), Some("static/../../escape"));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(into.join("app.css")).unwrap().permissions().mode() & 0o7111, 0, "nothing of its mode");
    }

    #[test]
    fn what_is_too_much_or_no_directory_is_refused() {
        let top = ("s/", EntryType::Directory, "");
        let large = "x".repeat(60);
        let refused = |entries: &[(&str, EntryType, &str)]| {
            let into = tempfile::tempdir().unwrap();
            unpack(archive(entries).as_slice(), into.path(), LIMITS).unwrap_err().to_string()
        };
        let two = [top, ("s/a", EntryType::Regular, &large), ("s/b", EntryType::Regular, &large)];
        assert_eq!(refused(&two), "it has more than 100 bytes");
        assert_eq!(refused(&[top; 21]), "it has more than 20 files and directories");
        assert_eq!(refused(&[("s", EntryType::Regular, "x")]), "it is no directory, but a file or a link");
        assert_eq!(refused(&[("s", EntryType::Symlink, "/etc")]), "it is no directory, but a file or a link");
        assert_eq!(refused(&[]), "it is no directory, but a file or a link");
    }
}
