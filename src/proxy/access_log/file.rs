//! The file of the access log: whole lines at its end, set aside when it is full, opened anew when somebody else did so.
//! Two processes may have it open at once, while one takes over from the other.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::log::{append_to, set_aside};

/// Where lines go, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file; those set aside are beside it.
    pub path: PathBuf,
    /// Bytes until it is set aside.
    pub max_size: u64,
    /// How many of those are kept.
    pub keep: u32,
}

/// Writes batches of whole lines.
#[derive(Debug)]
pub struct LineFile {
    settings: Settings,
    open: Option<File>,
    /// The last write ended inside a line.
    is_torn: bool,
    /// It could not be set aside, which was said.
    is_stuck: bool,
}

impl LineFile {
    /// Opened with the first line.
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: None, is_torn: false, is_stuck: false }
    }

    /// Appends whole lines. With an error some of them may be there.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let file = match self.open.take().filter(|file| is_at(file, &self.settings.path)) {
            Some(file) => file,
            None => reach(&self.settings.path)?,
        };
        let file = self.with_room(file, lines.len() as u64)?;
        let file = self.open.insert(file);
        if std::mem::take(&mut self.is_torn) {
            file.write_all(b"\n")?;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            let written = match file.write(rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                written => written,
            };
            match written {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let written = &lines[..lines.len() - rest.len()];
                    self.is_torn = written.last().is_some_and(|&byte| byte != b'\n');
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The file, or the next one if this one is full. Who holds its lock sets it aside; the other process finds the new
    /// one at its next batch.
    fn with_room(&mut self, file: File, more: u64) -> io::Result<File> {
        let Settings { path, max_size, keep } = &self.settings;
        let size = file.metadata()?.len();
        if size == 0 || size.saturating_add(more) <= *max_size {
            return Ok(file);
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // It may have been set aside between the look and the lock.
        if is_at(&file, path)
            && let Err(error) = set_aside(path, *keep)
        {
            // A log that cannot be set aside is still a log.
            if !std::mem::replace(&mut self.is_stuck, true) {
                tracing::warn!(path = %path.display(), %error, "the access log cannot be set aside");
            }
            file.unlock()?;
            return Ok(file);
        }
        self.is_stuck = false;
        reach(path)
    }
}

/// Whether that is the file at this path now.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Opens the file, in a directory that is made where it is missing.
fn reach(path: &Path) -> io::Result<File> {
    match append_to(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
            }
            append_to(path)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    #[test]
    fn two_processes_write_one_log_and_set_it_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { path: dir.path().join("logs/access.log"), max_size: 8, keep: 2 };
        let mut writers = [0, 1].map(|_| LineFile::new(settings.clone()));
        for (number, writer) in [0, 1, 0, 1].into_iter().enumerate() {
            writers[writer].append(format!("line{number}\n").as_bytes()).unwrap();
        }
        let kept = [("access.log", "line3\n"), ("access.log.1", "line2\n"), ("access.log.2", "line1\n")];
        assert_eq!(files(&dir.path().join("logs")), owned(&kept));
    }

    #[test]
    fn a_log_that_was_moved_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let mut log = LineFile::new(Settings { path: path.clone(), max_size: 1 << 20, keep: 1 });
        log.append(b"one\n").unwrap();
        fs::rename(&path, dir.path().join("rotated")).unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(files(dir.path()), owned(&[("access.log", "two\n"), ("rotated", "one\n")]));
    }

    #[test]
    fn a_log_that_cannot_be_set_aside_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        fs::create_dir(dir.path().join("access.log.1")).unwrap();
        let mut log = LineFile::new(Settings { path: path.clone(), max_size: 4, keep: 1 });
        log.append(b"one\n").unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_an_end() {
        let mut log = LineFile::new(Settings { path: "/dev/full".into(), max_size: 1 << 20, keep: 1 });
        for _ in 0..2 {
            assert_eq!(log.append(b"one\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
