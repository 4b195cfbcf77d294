//! The table on disk: what the proxy serves from after a restart, before any agent has spoken.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::table::Table;

/// `routes.json` in the data directory.
#[derive(Debug, Clone)]
pub struct Saved {
    path: PathBuf,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is there and cannot be read.
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, io::Error),
    /// It is no table.
    #[error("{0} holds no valid table: {1}")]
    Corrupt(PathBuf, String),
}

impl Saved {
    /// In this directory.
    pub fn in_dir(data_dir: &Path) -> Self {
        Self { path: data_dir.join("routes.json") }
    }

    /// The saved table; `None` before the first.
    pub fn load(&self) -> Result<Option<Table>, Unreadable> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unreadable::Io(self.path.clone(), error)),
        };
        let corrupt = |why: String| Unreadable::Corrupt(self.path.clone(), why);
        let table: Table = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        table.validate().map_err(|error| corrupt(error.to_string()))?;
        Ok(Some(table))
    }

    /// Writes a table so that after a crash either the old or the new one is there, whole. Blocks.
    pub fn save(&self, table: &Table) -> io::Result<()> {
        self.try_save(table).map_err(|error| {
            let helps = self.what_helps(&error);
            io::Error::new(error.kind(), format!("{}: {error}{helps}", self.path.display()))
        })
    }

    /// The system says of what is immutable that it is not permitted, and no more.
    fn what_helps(&self, error: &io::Error) -> String {
        if error.raw_os_error() != Some(Errno::EPERM as i32) {
            return String::new();
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let is_immutable = |place: &&Path| access(*place, AccessFlags::W_OK) == Err(Errno::EPERM);
        let place = [directory, self.path.as_path()].into_iter().find(is_immutable);
        place.map_or_else(String::new, |place| {
            let place = place.display();
            format!("; {place} is marked as immutable; allow it to be changed with: chattr -i {place}")
        })
    }

    fn try_save(&self, table: &Table) -> io::Result<()> {
        let temporary = self.path.with_extension("json.new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(&serde_json::to_vec(table)?).and_then(|()| file.sync_all());
        if written.is_err() {
            // What there is of it would only take room, on a disk that may have none.
            let _ = fs::remove_file(&temporary);
        }
        written?;
        fs::rename(&temporary, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::in_dir(dir.path());
        assert!(saved.load().unwrap().is_none());
        let table = Table { generation: 7, routes: Vec::new() };
        saved.save(&table).unwrap();
        assert_eq!(saved.load().unwrap(), Some(table));
        fs::write(dir.path().join("routes.json"), r#"{"generation": 8, "rou"#).unwrap();
        let why = saved.load().unwrap_err().to_string();
        assert!(why.contains("routes.json") && why.contains("line 1"), "{why}");
    }

    #[test]
    fn an_immutable_directory_is_told_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let chattr = |change: &str| {
            let done = std::process::Command::new("chattr").arg(change).arg(dir.path()).output();
            done.is_ok_and(|done| done.status.success())
        };
        if !chattr("+i") {
            return eprintln!("skipped: chattr +i cannot be used here");
        }
        let saved = Saved::in_dir(dir.path()).save(&Table { generation: 7, routes: Vec::new() });
        chattr("-i");
        let (why, helps) = (saved.unwrap_err().to_string(), format!("chattr -i {}", dir.path().display()));
        assert!(why.contains("is marked as immutable") && why.ends_with(&helps), "{why}");
    }
}
