//! Finds a file below a directory, without ever leaving it: one name at a time, and no link is followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::proxy::table::FileRoot;

/// The regular file with this path below a root; `None`: there is none.
pub fn find(root: &FileRoot, parts: &[String]) -> io::Result<Option<File>> {
    match descend(root, parts) {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        // Whatever is in the way is no such file: not there, not a directory, a link, a name that is too long, or a device or
        // a socket that cannot be opened.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK | Errno::ENAMETOOLONG | Errno::ENXIO) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn descend(root: &FileRoot, parts: &[String]) -> nix::Result<File> {
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // A pipe is not waited for.
    let file = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let (name, directories) = parts.split_last().ok_or(Errno::ENOENT)?;
    let mut at: OwnedFd = open(&root.dir, directory, Mode::empty())?;
    let below = root.below.split('/').filter(|part| !part.is_empty());
    for part in below.chain(directories.iter().map(String::as_str)) {
        at = openat(&at, part, directory | OFlag::O_NOFOLLOW, Mode::empty())?;
    }
    openat(&at, name.as_str(), file, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, inside) = (dir.path().join("outside"), dir.path().join("inside"));
        std::fs::create_dir_all(inside.join("media/sub")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        std::fs::write(inside.join("media/sub/a"), "a").unwrap();
        symlink(&outside, inside.join("media/out")).unwrap();
        symlink(outside.join("secret"), inside.join("media/link")).unwrap();
        symlink("a", inside.join("media/sub/near")).unwrap();
        symlink(inside.join("media"), dir.path().join("root")).unwrap();
        nix::unistd::mkfifo(&inside.join("media/pipe"), Mode::S_IRWXU).unwrap();
        let found = |dir: &std::path::Path, below: &str, parts: &[&str]| {
            let root = FileRoot { dir: dir.to_owned(), below: below.to_owned() };
            let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            let mut text = String::new();
            find(&root, &parts).unwrap().map(|mut file| file.read_to_string(&mut text).map(|_| text).unwrap())
        };
        assert_eq!(found(&inside, "media/sub", &["a"]).as_deref(), Some("a"));
        // The root itself is ours, and may be a link.
        assert_eq!(found(&dir.path().join("root"), "", &["sub", "a"]).as_deref(), Some("a"));
        for (below, parts) in [
            ("media", &["out", "secret"][..]),
            ("media/out", &["secret"]),
            ("media", &["link"]),
            ("media/sub", &["near"]),
            ("media", &["sub"]),
            ("media", &["pipe"]),
            ("media", &["sub", "a", "b"]),
            ("media", &["none"]),
            ("none", &["a"]),
            ("media", &[]),
        ] {
            assert_eq!(found(&inside, below, parts), None, "{below} {parts:?}");
        }
    }
}
