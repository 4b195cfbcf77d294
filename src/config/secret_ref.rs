//! Reading a secret from where its reference says it is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::SecretString;

use super::SecretRef;
use super::problem::Fault;

/// Looks up an environment variable: the process's own, or a stand-in.
pub type Environment<'e> = dyn Fn(&str) -> Option<OsString> + 'e;

/// A secret is a line, a key or a certificate, not a document.
const LARGEST_FILE: u64 = 64 * 1024;

impl SecretRef {
    /// Reads the secret now. The error names the reference, never the value.
    pub fn resolve(&self) -> Result<SecretString, String> {
        self.resolve_in(&|name: &str| std::env::var_os(name)).map_err(|fault| fault.what)
    }

    /// [`SecretRef::resolve`] with `environment` in place of the process's own. The fault says how to mend it, too.
    pub(super) fn resolve_in(&self, environment: &Environment<'_>) -> Result<SecretString, Fault> {
        match self {
            Self::Env(name) => {
                let what = match environment(name).map(OsString::into_string) {
                    None => "is not set",
                    Some(Ok(value)) if value.is_empty() => "is empty",
                    Some(Ok(value)) => return Ok(SecretString::from(value)),
                    Some(Err(_)) => "is not UTF-8 text",
                };
                let hint = format!("set {name} in the environment that longshore is started with");
                Err(Fault::new(format!("the environment variable {name} {what}"), hint))
            }
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
}

fn read_file(path: &Path) -> Result<SecretString, Fault> {
    let shown = path.display();
    let fault = |what: String, hint: &str| Fault::new(format!("the secret file {shown} {what}"), hint);
    let unfit = |what: &str| fault(what.to_owned(), "write the secret into it, as text and nothing else");
    let chmod = format!("chmod 600 {shown}");
    let cannot = |error: std::io::Error| {
        let hint = match error.kind() {
            ErrorKind::NotFound => "put the secret there, or name the file where it is".to_owned(),
            ErrorKind::PermissionDenied => {
                format!("the agent's user must own it, and be let into its directory: {chmod}")
            }
            ErrorKind::InvalidData => return unfit("is not UTF-8 text"),
            _ => "see that the agent's user can read it".to_owned(),
        };
        fault(format!("cannot be read: {error}"), &hint)
    };
    // Asked before opening: opening a named pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(fault("is not a regular file".to_owned(), "name a file"));
    }
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(fault(format!("has mode {mode:04o}: everybody on this machine can use it"), &chmod));
    }
    let mut content = String::new();
    let read = file.take(LARGEST_FILE + 1).read_to_string(&mut content).map_err(cannot)?;
    if read as u64 > LARGEST_FILE {
        return Err(unfit("is larger than 64 KiB"));
    }
    let line = content.strip_suffix('\n').unwrap_or(&content);
    let secret = line.strip_suffix('\r').unwrap_or(line);
    if content.is_empty() {
        return Err(unfit("is empty"));
    }
    if secret.trim_matches(['\r', '\n']).is_empty() {
        return Err(unfit("holds nothing but line ends"));
    }
    if secret.contains('\0') {
        return Err(unfit("holds a NUL character"));
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
        for content in [&b""[..], b"\n", b"\n\n\n", b"\r\n\n", b"a\0b", &[0xff, 0xfe], &[b'x'; 70_000]] {
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
        assert_eq!(resolve("EMPTY").unwrap_err().what, "the environment variable EMPTY is empty");
        assert_eq!(resolve("NONE").unwrap_err().what, "the environment variable NONE is not set");
    }

    #[test]
    fn another_mode_is_advised_only_where_it_helps() {
        let hint = |secret: &SecretRef| secret.resolve_in(&|_: &str| None).unwrap_err().hint.unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(!hint(&SecretRef::File(dir.path().join("none"))).contains("chmod"));
        for (content, mode, helps) in
            [(&b""[..], 0o600, false), (b"\n\n", 0o600, false), (b"a\0b", 0o600, false), (b"s3cret", 0o644, true)]
        {
            let (_dir, secret) = file(content, mode);
            assert_eq!(hint(&secret).contains("chmod"), helps, "{}", hint(&secret));
        }
    }
}
