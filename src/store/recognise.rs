//! What a file is, by its kind and its first bytes: SQLite's own words for what is no journal at all are "damaged" ones.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// How every SQLite file begins (<https://www.sqlite.org/fileformat.html>, 1.3).
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Where the four bytes of `PRAGMA user_version` are, behind the rest of the header.
const VERSION: std::ops::Range<usize> = 60..64;

/// Why a file cannot be a journal; `None`: it may be one, whole or not.
pub(super) fn what_else(path: &Path) -> io::Result<Option<&'static str>> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Ok(Some("it is a directory"));
    }
    if !kind.is_file() {
        return Ok(Some("it is no regular file"));
    }
    let head = head(path, MAGIC.len())?;
    Ok(match head.as_slice() {
        [] => Some("it is empty"),
        // A beginning of the beginning is a journal that was cut off.
        head if MAGIC.starts_with(head) => None,
        _ => Some("it is no SQLite file"),
    })
}

/// The copies that were made before a migration, of those the newest that knows no more than `known`.
pub(super) fn copy_from_before(journal: &Path, known: i64) -> Option<PathBuf> {
    let start = format!("{}.before-v", journal.file_name()?.to_str()?);
    let copies = fs::read_dir(journal.parent()?).ok()?.flatten().filter_map(|entry| {
        let migrated_to: i64 = entry.file_name().to_str()?.strip_prefix(&start)?.parse().ok()?;
        let version = version(&entry.path())?;
        (1..=known).contains(&version).then(|| (migrated_to, entry.path()))
    });
    copies.max_by_key(|(migrated_to, _)| *migrated_to).map(|(_, path)| path)
}

fn version(path: &Path) -> Option<i64> {
    let head = head(path, VERSION.end).ok()?;
    let bytes = head.starts_with(MAGIC).then(|| head.get(VERSION))??;
    Some(i64::from(i32::from_be_bytes(bytes.try_into().ok()?)))
}

fn head(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(bytes as u64).read_to_end(&mut head)?;
    Ok(head)
}
