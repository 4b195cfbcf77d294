//! One kept mirror: a bare repository of our own that only grows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags, Tree};
use sha2::{Digest, Sha256};

use super::limits::{Limits, Trouble, one_line};
use crate::config::RepoUrl;
use crate::queue::Ancestry;

/// What was fetched is kept under these refs, so that no clean-up takes it and the next fetch builds on it.
const PINS: &str = "refs/longshore/tips/";
/// A file in a mirror that could not be read whole: the next fetch clones anew.
const DAMAGED: &str = "longshore-damaged";
/// How far back the newest commits are looked at.
const WALKED: usize = 512;
/// The largest .gitattributes or .gitmodules that is read.
const LARGEST_SETTINGS: usize = 1 << 20;
/// Directories nested deeper than this are refused.
const DEEPEST: usize = 256;

/// A mirror, opened. git2's handles stay on the thread that opened them.
pub(super) struct Mirror {
    repo: Repository,
}

/// What a commit holds besides its files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Submodules: path and commit.
    pub gitlinks: Vec<(String, Oid)>,
    /// Some files are pointers to git LFS.
    pub uses_lfs: bool,
}

/// Who committed what, when.
#[derive(Debug)]
pub(super) struct Description {
    pub author: String,
    pub subject: String,
}

/// The name of a repository's mirror: readable, and its own for each address.
pub(super) fn directory_name(url: &RepoUrl) -> String {
    let text = match url {
        RepoUrl::Http { url, authority } => url.replacen(authority, &authority.to_ascii_lowercase(), 1),
        RepoUrl::Ssh { user, host, port, path } => {
            format!("ssh://{user}@{}:{port}/{}", host.to_ascii_lowercase(), path)
        }
        RepoUrl::Local(path) => path.display().to_string(),
    };
    let text = text.trim_end_matches('/');
    let last = text.rsplit(['/', ':']).next().unwrap_or_default().trim_end_matches(".git");
    let readable: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(32).collect();
    format!("{readable}-{}.git", &hex::encode(Sha256::digest(text.as_bytes()))[..16])
}

/// Marks a mirror whose objects turned out unreadable; the next fetch clones it anew.
pub(crate) fn mark_damaged(mirror: &Path) {
    if let Err(error) = fs::write(mirror.join(DAMAGED), b"") {
        tracing::warn!(mirror = %mirror.display(), %error, "cannot mark the mirror as damaged");
    }
}

/// Removes a mirror that is past use.
pub(super) fn remove(path: &Path) -> Result<(), Trouble> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Trouble::Failed(format!("cannot remove the damaged mirror {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Whether a killed agent left this, and not the one that `started` then: it is older, or of a clock that has been set back since.
pub(super) fn is_left(entry: &fs::DirEntry, started: SystemTime) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified < started || modified > SystemTime::now())
}

/// Removes the locks that a killed agent left: nobody else writes to a mirror, and a commit whose ref is locked could never be
/// kept.
pub(super) fn sweep_locks(mirror: &Path, started: SystemTime) {
    let is_lock = |path: &Path| path.extension().is_some_and(|extension| extension == "lock");
    // Beside the refs themselves: packed-refs, HEAD and config.
    let (mut directories, refs) = (vec![mirror.to_owned()], mirror.join("refs"));
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.starts_with(&refs) && path.is_dir() {
                directories.push(path);
            } else if is_lock(&path) && is_left(&entry, started) {
                tracing::info!(lock = %path.display(), "removing a lock that an earlier life of the agent left");
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Mirror {
    /// Opens the mirror, or makes an empty one.
    pub fn open_or_create(path: &Path) -> Result<Self, Trouble> {
        if path.join(DAMAGED).exists() {
            return Err(Trouble::failed_mirror("an object in it cannot be read"));
        }
        if path.exists() {
            return Self::open(path);
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).no_reinit(true);
        let repo = Repository::init_opts(path, &options).map_err(|error| {
            Trouble::Failed(format!("cannot create the mirror {}: {}", path.display(), error.message()))
        })?;
        Ok(Self { repo })
    }

    /// Opens a mirror that is there.
    pub fn open(path: &Path) -> Result<Self, Trouble> {
        let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE;
        match Repository::open_ext(path, flags, &[] as &[&Path]) {
            Ok(repo) => Ok(Self { repo }),
            Err(error) if error.code() == ErrorCode::Owner => Err(Trouble::Failed(format!(
                "the mirror {} belongs to another user than the agent's: change its owner",
                path.display()
            ))),
            Err(error) => Err(damaged(&error)),
        }
    }

    /// Whether the object is there.
    pub fn holds(&self, oid: Oid) -> bool {
        self.repo.odb().is_ok_and(|odb| odb.exists(oid))
    }

    /// The commit that `oid` is, or that the tag `oid` leads to.
    pub fn peel(&self, oid: Oid) -> Result<Oid, Trouble> {
        let object = self.repo.find_object(oid, None).map_err(|error| damaged(&error))?;
        let kind = object.kind().map_or("object", |kind| kind.str());
        match object.peel_to_commit() {
            Ok(commit) => Ok(commit.id()),
            Err(error) if error.code() == ErrorCode::NotFound => Err(damaged(&error)),
            Err(_) => Err(Trouble::Failed(format!("{oid} is a {kind} that leads to no commit"))),
        }
    }

    /// Commits to name to the server as ours: every kept tip, and a sample of what is below them for the case
    /// that the server knows none of the tips any more.
    pub fn haves(&self) -> Result<Vec<Oid>, Trouble> {
        let tips = self.pins()?;
        let mut walk = self.repo.revwalk().map_err(|error| damaged(&error))?;
        for tip in &tips {
            walk.push(*tip).map_err(|error| damaged(&error))?;
        }
        let mut haves = tips;
        haves.truncate(256);
        for (depth, commit) in walk.take(WALKED).enumerate() {
            let commit = commit.map_err(|error| damaged(&error))?;
            if (depth < 32 || depth % 16 == 0) && !haves.contains(&commit) {
                haves.push(commit);
            }
        }
        Ok(haves)
    }

    /// Checks that nothing is missing of the commit: its history down to what is kept already, and every
    /// directory and file of it. Names what it holds besides files.
    pub fn check_whole(&self, commit: Oid, limits: &Limits) -> Result<Survey, Trouble> {
        let pins = self.pins()?;
        if !pins.contains(&commit) {
            let mut walk = self.repo.revwalk().map_err(|error| damaged(&error))?;
            walk.push(commit).map_err(|error| damaged(&error))?;
            for pin in pins {
                walk.hide(pin).map_err(|error| damaged(&error))?;
            }
            for reached in walk {
                limits.check()?;
                reached.map_err(|error| damaged(&error))?;
            }
        }
        let tree = self.repo.find_commit(commit).and_then(|commit| commit.tree()).map_err(|error| damaged(&error))?;
        let odb = self.repo.odb().map_err(|error| damaged(&error))?;
        let mut survey = Survey::default();
        let mut directories: Vec<(String, Tree<'_>, usize)> = vec![(String::new(), tree, 0)];
        while let Some((prefix, tree, depth)) = directories.pop() {
            limits.check()?;
            if depth > DEEPEST {
                return Err(Trouble::Failed(format!("directories are nested deeper than {DEEPEST}")));
            }
            for entry in tree.iter() {
                let path = || format!("{prefix}{}", String::from_utf8_lossy(entry.name_bytes()));
                match entry.kind() {
                    Some(ObjectType::Tree) => {
                        let below = self.repo.find_tree(entry.id()).map_err(|error| damaged(&error))?;
                        directories.push((path() + "/", below, depth + 1));
                    }
                    Some(ObjectType::Commit) => survey.gitlinks.push((path(), entry.id())),
                    _ if !odb.exists(entry.id()) => {
                        return Err(Trouble::Damaged(format!("object {} is missing", entry.id())));
                    }
                    _ if entry.name_bytes() == b".gitattributes" && !survey.uses_lfs => {
                        survey.uses_lfs = self.settings(entry.id())?.is_some_and(|text| text.contains("filter=lfs"));
                    }
                    _ => {}
                }
            }
        }
        survey.gitlinks.sort();
        Ok(survey)
    }

    /// The text of `.gitmodules` in the commit.
    pub fn gitmodules(&self, commit: Oid) -> Result<Option<String>, Trouble> {
        let tree = self.repo.find_commit(commit).and_then(|commit| commit.tree()).map_err(|error| damaged(&error))?;
        match tree.get_name(".gitmodules") {
            // A link could lead anywhere; git does not follow it either.
            Some(entry) if entry.filemode() != 0o120_000 => self.settings(entry.id()),
            _ => Ok(None),
        }
    }

    /// A small text file; `None` for a large one.
    fn settings(&self, oid: Oid) -> Result<Option<String>, Trouble> {
        let odb = self.repo.odb().map_err(|error| damaged(&error))?;
        let (size, kind) = odb.read_header(oid).map_err(|error| damaged(&error))?;
        if size > LARGEST_SETTINGS || kind != ObjectType::Blob {
            return Ok(None);
        }
        let object = odb.read(oid).map_err(|error| damaged(&error))?;
        Ok(Some(String::from_utf8_lossy(object.data()).into_owned()))
    }

    /// Keeps the commit; kept tips that it builds on need no pin of their own any more.
    pub fn pin(&self, commit: Oid) -> Result<(), Trouble> {
        let cannot = |error: git2::Error| Trouble::Failed(format!("cannot keep the commit: {}", error.message()));
        let pins = self.pins()?;
        if pins.contains(&commit) {
            return Ok(());
        }
        self.repo.reference(&pin_name(commit), commit, true, "").map_err(cannot)?;
        let mut walk = self.repo.revwalk().map_err(|error| damaged(&error))?;
        walk.push(commit).map_err(|error| damaged(&error))?;
        for older in walk.skip(1).take(WALKED) {
            let older = older.map_err(|error| damaged(&error))?;
            if pins.contains(&older)
                && let Ok(mut pin) = self.repo.find_reference(&pin_name(older))
            {
                pin.delete().map_err(cannot)?;
            }
        }
        Ok(())
    }

    fn pins(&self) -> Result<Vec<Oid>, Trouble> {
        let refs = self.repo.references_glob(&format!("{PINS}*")).map_err(|error| damaged(&error))?;
        refs.map(|pin| {
            let oid = pin.map_err(|error| damaged(&error))?.target();
            let oid = oid.ok_or_else(|| Trouble::failed_mirror("a kept tip points nowhere"))?;
            match self.holds(oid) {
                true => Ok(oid),
                false => Err(Trouble::Damaged(format!("the kept commit {oid} is missing"))),
            }
        })
        .collect()
    }

    /// Author, subject and time of a commit.
    pub fn describe(&self, commit: Oid) -> Result<Description, Trouble> {
        let commit = self.repo.find_commit(commit).map_err(|error| damaged(&error))?;
        let message = commit.message_bytes();
        let first_line = message.split(|&b| b == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
        Ok(Description { author: one_line(commit.author().name_bytes()), subject: one_line(first_line) })
    }

    /// How `first` relates to `second`; unrelated when either is not here.
    pub fn ancestry(&self, first: Oid, second: Oid) -> Ancestry {
        if first == second {
            return Ancestry::Same;
        }
        // The best common ancestor of two related commits is the older of them.
        match self.repo.merge_base(first, second) {
            Ok(base) if base == first => Ancestry::Ancestor,
            Ok(base) if base == second => Ancestry::Descendant,
            _ => Ancestry::Unrelated,
        }
    }
}

impl Trouble {
    fn failed_mirror(why: &str) -> Self {
        Self::Damaged(why.to_owned())
    }
}

fn pin_name(commit: Oid) -> String {
    format!("{PINS}{commit}")
}

fn damaged(error: &git2::Error) -> Trouble {
    Trouble::Damaged(one_line(error.message().as_bytes()))
}

/// The mirror's path below `root`.
pub(super) fn path_of(root: &Path, url: &RepoUrl) -> PathBuf {
    root.join(directory_name(url))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_mirror_is_named_by_its_address() {
        let http = |authority: &str, path: &str| RepoUrl::Http {
            url: format!("https://{authority}/{path}"),
            authority: authority.to_owned(),
        };
        let name = directory_name(&http("GitHub.com", "example/Shop;$(id).git/"));
        assert!(name.starts_with("shop---id--") && name.ends_with(".git"), "{name}");
        assert_eq!(name, directory_name(&http("github.com", "example/Shop;$(id).git")));
        assert_ne!(name, directory_name(&http("github.com", "evil/Shop;$(id).git")));
        let dots = directory_name(&RepoUrl::Local("/srv/..".into()));
        assert!(!dots.contains("..") && !dots.contains('/'), "{dots}");
    }

    #[test]
    fn a_lock_that_a_killed_agent_left_keeps_no_commit_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mirror.git");
        let mirror = Mirror::open_or_create(&path).unwrap();
        let tree = mirror.repo.treebuilder(None).unwrap().write().unwrap();
        let tree = mirror.repo.find_tree(tree).unwrap();
        let ada = git2::Signature::now("Ada", "ada@example.com").unwrap();
        let commit = mirror.repo.commit(None, &ada, &ada, "First", &tree, &[]).unwrap();
        fs::create_dir_all(path.join(PINS)).unwrap();
        fs::write(path.join(format!("{PINS}{commit}.lock")), b"").unwrap();
        assert!(mirror.pin(commit).is_err());

        sweep_locks(&path, SystemTime::UNIX_EPOCH);
        assert!(mirror.pin(commit).is_err(), "one of this life stays");
        sweep_locks(&path, SystemTime::now());
        mirror.pin(commit).unwrap();
        assert_eq!(mirror.pins().unwrap(), [commit]);

        let later = path.join("HEAD.lock");
        let file = fs::File::create(&later).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        sweep_locks(&path, SystemTime::UNIX_EPOCH);
        assert!(!later.exists(), "it is of before the clock was set back");
    }
}
