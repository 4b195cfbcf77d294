//! `volumes`: what is mounted into an instance, and what of the host never is.

use std::path::{Component, Path, PathBuf};

use super::field::Field;
use super::problem::Fault;
use super::{Mount, MountSource};
use crate::model::shorten;

const FORM: &str = "write \"NAME:/path\" for a volume or \"/host/path:/path:ro\" for a directory of the host";

/// Directories that give an instance its host, with whether everything inside them does too.
const HOST_DIRECTORIES: [(&str, bool); 9] = [
    ("/etc", false),
    ("/root", false),
    ("/run", false),
    ("/proc", true),
    ("/sys", true),
    ("/dev", true),
    ("/boot", true),
    ("/var/lib/docker", true),
    ("/var/lib/containerd", true),
];

/// Host paths that are never mounted: with them an instance is root on the host, or reads the agent's own state.
pub(super) struct Forbidden {
    paths: Vec<(PathBuf, bool)>,
}

impl Forbidden {
    pub(super) fn new(data_dir: &Path, docker_host: &str) -> Self {
        let socket = docker_host.strip_prefix("unix://").unwrap_or("/run/docker.sock");
        let mut paths: Vec<(PathBuf, bool)> =
            HOST_DIRECTORIES.iter().map(|(path, inside)| (PathBuf::from(path), *inside)).collect();
        paths.extend([(plain(Path::new(socket)), true), (plain(data_dir), true)]);
        Self { paths }
    }

    /// Why `path` is refused: what it is, contains or lies in.
    fn reason(&self, path: &Path) -> Option<String> {
        // What a link leads to counts as much as its name.
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        [path, &real].into_iter().find_map(|path| self.reason_of(&plain(path)))
    }

    fn reason_of(&self, path: &Path) -> Option<String> {
        if path.extension().is_some_and(|extension| extension == "sock")
            && ["docker", "containerd", "podman"].iter().any(|engine| path.ends_with(format!("{engine}.sock")))
        {
            return Some(format!("{} is the container engine's socket", path.display()));
        }
        self.paths.iter().find_map(|(forbidden, inside)| match () {
            () if path == forbidden => Some(format!("{} belongs to the host alone", path.display())),
            () if forbidden.starts_with(path) => Some(format!("{} contains {}", path.display(), forbidden.display())),
            () if *inside && path.starts_with(forbidden) => {
                Some(format!("{} lies in {}", path.display(), forbidden.display()))
            }
            () => None,
        })
    }
}

/// A path without `.` and repeated slashes, and with the usual link `/var/run` resolved.
fn plain(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    match plain.strip_prefix("/var/run") {
        Ok(rest) if rest.as_os_str().is_empty() => PathBuf::from("/run"),
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => plain,
    }
}

pub(super) fn read(field: &Field<'_>, forbidden: &Forbidden) -> Option<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for element in field.list("write volumes = [\"NAME:/path\"]")? {
        let Some(mount) = element.parsed(mount) else { continue };
        if let MountSource::Host(path) = &mount.source
            && let Some(reason) = forbidden.reason(path)
        {
            element.problem(
                format!(": {reason}; mounting it gives root on the host and is refused"),
                "mount a directory made for the app, such as /srv/APP, or a named volume",
            );
        }
        if mounts.iter().any(|other| other.target == mount.target) {
            element.problem(format!(": {} is mounted twice", mount.target), "give each volume a path of its own");
        }
        mounts.push(mount);
    }
    Some(mounts)
}

fn mount(text: &str) -> Result<Mount, Fault> {
    let bad = |why: &str, hint: &str| Err(Fault::new(format!(": {:?} {why}", shorten(text, 100)), hint));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        [_, _, _] => return bad("ends with an unknown option", "the options are :ro and :rw"),
        _ => return bad("is no volume", FORM),
    };
    if text.contains('\0') {
        return bad("holds a NUL character", FORM);
    }
    let Some(target) = absolute(target) else {
        return bad("must name an absolute path in the instance, without \"..\"", FORM);
    };
    if target == "/" {
        return bad("would cover the instance's whole file system", FORM);
    }
    let source = if source.starts_with('/') {
        match absolute(source) {
            Some(path) => MountSource::Host(PathBuf::from(path)),
            None => return bad("must name a host path without \"..\"", FORM),
        }
    } else if is_volume_name(source) {
        MountSource::Volume(source.to_owned())
    } else if source.starts_with(['.', '~']) || source.contains('/') {
        return bad("names a relative host path", "write the absolute path, or a volume's name without slashes");
    } else {
        return bad("names no volume", "letters, digits, _, . and - make a volume's name, at most 64");
    };
    Ok(Mount { source, target, read_only })
}

/// The path without `.`, repeated and trailing slashes; `None` when it is relative or climbs.
fn absolute(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (text.starts_with('/') && !parts.contains(&"..")).then(|| format!("/{}", parts.join("/")))
}

fn is_volume_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read() {
        let volume = |name: &str| MountSource::Volume(name.into());
        for (text, source, target, read_only) in [
            ("media:/app/media", volume("media"), "/app/media", false),
            ("media:/app//media/:rw", volume("media"), "/app/media", false),
            ("/srv/./media:/app/media:ro", MountSource::Host("/srv/media".into()), "/app/media", true),
        ] {
            assert_eq!(mount(text), Ok(Mount { source, target: target.into(), read_only }), "{text}");
        }
        for bad in ["media", "media:", ":/x", "a:/x:z", "a:x", "a:/x/../y", "./a:/x", "~/a:/x", "/a/../b:/x", "a b:/x"]
        {
            assert!(mount(bad).is_err(), "{bad}");
        }
        assert!(mount("a:/").is_err());
    }

    #[test]
    fn what_gives_the_host_away_is_refused() {
        let forbidden = Forbidden::new(Path::new("/var/lib/longshore"), "unix:///opt/engine/d.sock");
        for path in [
            "/",
            "/etc",
            "/var",
            "/var/lib",
            "/var/run",
            "/run",
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/elsewhere/docker.sock",
            "/opt/engine/d.sock",
            "/opt/engine",
            "/var/lib/docker",
            "/var/lib/docker/volumes/x",
            "/var/lib/longshore",
            "/var/lib/longshore/mirrors",
            "/proc/1/root",
        ] {
            assert!(forbidden.reason(Path::new(path)).is_some(), "{path}");
        }
        for path in ["/srv/media", "/var/lib/dockery", "/etc/ssl/certs", "/var/lib/longshore-media", "/home/x"] {
            assert_eq!(forbidden.reason(Path::new(path)), None, "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(forbidden.reason(&link).is_some());
    }
}
