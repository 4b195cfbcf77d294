//! Reading a secret from where its reference says it is.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::SecretString;

use super::SecretRef;

/// Looks up an environment variable: the process's own, or a stand-in.
pub type Environment<'e> = dyn Fn(&str) -> Option<OsString> + 'e;

/// A secret is a line, a key or a certificate, not a document.
const LARGEST_FILE: u64 = 64 * 1024;

impl SecretRef {
    /// Reads the secret now. The error names the reference, never the value.
    pub fn resolve(&self) -> Result<SecretString, String> {
        self.resolve_in(&|name: &str| std::env::var_os(name))
    }

    /// [`SecretRef::resolve`] with `environment` in place of the process's own.
    pub(super) fn resolve_in(&self, environment: &Environment<'_>) -> Result<SecretString, String> {
        match self {
            Self::Env(name) => match environment(name).map(OsString::into_string) {
                None => Err(format!("the environment variable {name} is not set")),
                Some(Ok(value)) if value.is_empty() => Err(format!("the environment variable {name} is empty")),
                Some(Ok(value)) => Ok(SecretString::from(value)),
                Some(Err(_)) => Err(format!("the environment variable {name} is not UTF-8 text")),
            },
            Self::File(path) => read_file(path),
        }
    }

    /// The reference in words, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Env(name) => format!("the environment variable {name}"),
            Self::File(path) => format!("the secret file {}", path.display()),
        }
    }

    /// What to do when it cannot be read.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Env(name) => format!("set {name} in the environment that longshore is started with"),
            Self::File(path) => format!("the agent's user must be able to read it: chmod 600 {}", path.display()),
        }
    }
}

fn read_file(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let cannot = |error: std::io::Error| format!("the secret file {shown} cannot be read: {error}");
    // Asked before opening: opening a named pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(format!("the secret file {shown} is not a regular file"));
    }
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(format!("the secret file {shown} has mode {mode:04o}: everybody on this machine can use it"));
    }
    let mut content = String::new();
    let read = file.take(LARGEST_FILE + 1).read_to_string(&mut content).map_err(cannot)?;
    if read as u64 > LARGEST_FILE {
        return Err(format!("the secret file {shown} is larger than 64 KiB"));
    }
    let line = content.strip_suffix('\n').unwrap_or(&content);
    let secret = line.strip_suffix('\r').unwrap_or(line);
    if secret.is_empty() {
        return Err(format!("the secret file {shown} is empty"));
    }
    if secret.contains('\0') {
        return Err(format!("the secret file {shown} holds a NUL character"));
    }
    Ok(SecretString::from(secret))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, SecretRef) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, SecretRef::File(path))
    }

    #[test]
    fn a_file_loses_only_its_last_line_end() {
        for (content, expected) in
            [("s3cret", "s3cret"), ("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), ("a\nb\n\n", "a\nb\n")]
        {
            let (_dir, secret) = file(content.as_bytes(), 0o600);
            assert_eq!(secret.resolve().unwrap().expose_secret(), expected);
        }
    }

    #[test]
    fn files_that_others_can_use_are_refused() {
        for mode in [0o644, 0o604, 0o602, 0o777] {
            let (_dir, secret) = file(b"s3cret", mode);
            let error = secret.resolve().unwrap_err();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
        }
        for mode in [0o600, 0o400, 0o640] {
            let (_dir, secret) = file(b"s3cret", mode);
            assert!(secret.resolve().is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn what_holds_no_secret_is_refused() {
        for content in [&b""[..], b"\n", b"a\0b", &[0xff, 0xfe], &[b'x'; 70_000]] {
            let (_dir, secret) = file(content, 0o600);
            assert!(secret.resolve().is_err());
        }
        let dir = tempfile::tempdir().unwrap();
        let error = SecretRef::File(dir.path().to_owned()).resolve().unwrap_err();
        assert!(error.ends_with("is not a regular file"), "{error}");
        let error = SecretRef::File(dir.path().join("none")).resolve().unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn the_environment_is_asked_by_name() {
        let set = |name: &str| match name {
            "GOOD" => Some(OsString::from("s3cret")),
            "EMPTY" => Some(OsString::new()),
            _ => None,
        };
        let resolve = |name: &str| SecretRef::Env(name.into()).resolve_in(&set);
        assert_eq!(resolve("GOOD").unwrap().expose_secret(), "s3cret");
        assert_eq!(resolve("EMPTY").unwrap_err(), "the environment variable EMPTY is empty");
        assert_eq!(resolve("NONE").unwrap_err(), "the environment variable NONE is not set");
    }
}
