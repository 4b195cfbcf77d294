//! The log file of a proxy that the agent started: nobody else is there to keep it from growing for ever.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{dup2_stderr, dup2_stdout};

/// A file that is full is set aside.
const FULL: u64 = 10 << 20;
/// How many that were set aside are kept: `proxy.log.1` is the newest.
const KEPT: u32 = 3;

/// Writes to a file, and begins a new one when it is full.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    full: u64,
    /// Standard output and error lead to the file as well.
    takes_streams: bool,
}

impl LogFile {
    /// Opens the log of this process. From now on standard output and error lead into it as well, so that what does
    /// not go through the log (a panic, an abort of the runtime) is found there, also after the next turn.
    pub fn of_process(path: &Path) -> io::Result<Self> {
        let mut log = Self::open(path, FULL)?;
        log.takes_streams = true;
        log.take_streams()?;
        Ok(log)
    }

    fn open(path: &Path, full: u64) -> io::Result<Self> {
        let file = append_to(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, full, takes_streams: false })
    }

    fn take_streams(&self) -> io::Result<()> {
        if self.takes_streams {
            dup2_stdout(&self.file)?;
            dup2_stderr(&self.file)?;
        }
        Ok(())
    }

    /// Sets the file aside and begins a new one.
    fn turn(&mut self) -> io::Result<()> {
        set_aside(&self.path, KEPT)?;
        self.file = append_to(&self.path)?;
        self.take_streams()
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size > 0 && self.size.saturating_add(line.len() as u64) > self.full {
            // A log that cannot be set aside is still a log; the next attempt is as much later.
            self.size = 0;
            if let Err(error) = self.turn() {
                let path = self.path.display();
                self.file.write_all(format!("the log {path} cannot be set aside: {error}\n").as_bytes())?;
            }
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Renames a log to `PATH.1`, after what has that name, and so on; `kept` of them stay.
pub(super) fn set_aside(path: &Path, kept: u32) -> io::Result<()> {
    let aside = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..kept).rev() {
        match fs::rename(aside(number), aside(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, aside(1))
}

/// Opens a log for writing at its end, made with mode 0600 when it is missing.
pub(super) fn append_to(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
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

    #[test]
    fn a_full_log_is_set_aside_and_three_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.log");
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n", "seven\n"] {
            // What an earlier process left counts.
            let mut log = LogFile::open(&path, 8).unwrap();
            log.write_all(line.as_bytes()).unwrap();
        }
        let expected =
            [("proxy.log", "seven\n"), ("proxy.log.1", "six\n"), ("proxy.log.2", "five\n"), ("proxy.log.3", "four\n")];
        assert_eq!(files(dir.path()), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn a_log_that_cannot_be_set_aside_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.log");
        fs::write(dir.path().join("proxy.log.2"), "").unwrap();
        fs::create_dir(dir.path().join("proxy.log.3")).unwrap();
        let mut log = LogFile::open(&path, 8).unwrap();
        log.write_all(b"one two\n").unwrap();
        log.write_all(b"three\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("one two\n") && text.ends_with("\nthree\n"), "{text}");
        assert!(text.contains("cannot be set aside"), "{text}");
    }
}
