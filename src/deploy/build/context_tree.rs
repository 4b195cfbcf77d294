//! A commit's trees as one directory: submodules continue in their own mirrors, and links are followed inside only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryOpenFlags};

use super::context::join;
use crate::deploy::source::{Source, mark_damaged};

/// Links in a row that are followed.
const MOST_LINKS: usize = 16;
/// Names that are listed in an error.
const NAMED: usize = 5;

/// What a tree entry is, as far as an image can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Executable,
    Link,
}

impl Kind {
    /// What a checkout by git has with the usual umask.
    pub fn permissions(self) -> u32 {
        match self {
            Self::File => 0o644,
            Self::Directory | Self::Executable => 0o755,
            Self::Link => 0o777,
        }
    }

    pub fn tar_type(self) -> tar::EntryType {
        match self {
            Self::Directory => tar::EntryType::Directory,
            Self::Link => tar::EntryType::Symlink,
            Self::File | Self::Executable => tar::EntryType::Regular,
        }
    }
}

/// An object and the repository that has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub kind: Kind,
    /// Zero for the directory of a submodule that was not fetched.
    pub oid: Oid,
    pub repository: usize,
}

/// The commit's mirror and its submodules'.
pub(super) struct Trees {
    repositories: Vec<(PathBuf, Repository)>,
    /// The root tree of each fetched submodule by its path.
    submodules: HashMap<String, Node>,
    root: Node,
    commit: String,
}

impl Trees {
    pub fn open(source: &Source) -> Result<Self, String> {
        let mut trees = Self {
            repositories: Vec::new(),
            submodules: HashMap::new(),
            root: Node { kind: Kind::Directory, oid: Oid::ZERO_SHA1, repository: 0 },
            commit: source.commit.short().to_owned(),
        };
        trees.root = trees.add(&source.mirror, source.commit.as_str())?;
        for (path, mirror, commit) in &source.submodules {
            let node = trees.add(mirror, commit.as_str())?;
            trees.submodules.insert(path.clone(), node);
        }
        Ok(trees)
    }

    fn add(&mut self, mirror: &Path, commit: &str) -> Result<Node, String> {
        let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE;
        let repository = Repository::open_ext(mirror, flags, &[] as &[&Path])
            .map_err(|error| format!("cannot open the mirror {}: {}", mirror.display(), error.message()))?;
        let tree =
            Oid::from_str(commit).and_then(|commit| repository.find_commit(commit)?.tree().map(|tree| tree.id()));
        let oid = tree.map_err(|error| {
            mark_damaged(mirror);
            format!("commit {commit} cannot be read from the mirror ({})", error.message())
        })?;
        self.repositories.push((mirror.to_owned(), repository));
        Ok(Node { kind: Kind::Directory, oid, repository: self.repositories.len() - 1 })
    }

    pub fn into_repositories(self) -> Vec<(PathBuf, Repository)> {
        self.repositories
    }

    /// What is in a directory whose path from the repository's root is `at`.
    pub fn entries(&self, directory: &Node, at: &str) -> Result<Vec<(Vec<u8>, Node)>, String> {
        if directory.oid.is_zero() {
            return Ok(Vec::new());
        }
        let (_, repository) = &self.repositories[directory.repository];
        let tree = repository.find_tree(directory.oid).map_err(|error| self.damaged(directory, at, &error))?;
        let node = |entry: git2::TreeEntry<'_>| {
            let name = entry.name_bytes().to_vec();
            let kind = match (entry.kind(), entry.filemode_raw()) {
                (Some(ObjectType::Tree | ObjectType::Commit), _) => Kind::Directory,
                (_, 0o120_000) => Kind::Link,
                (_, mode) if mode & 0o100 != 0 => Kind::Executable,
                _ => Kind::File,
            };
            let here = Node { kind, oid: entry.id(), repository: directory.repository };
            if entry.kind() != Some(ObjectType::Commit) {
                return (name, here);
            }
            let path = join(at, &String::from_utf8_lossy(&name));
            let missing = Node { oid: Oid::ZERO_SHA1, ..here };
            (name, self.submodules.get(&path).copied().unwrap_or(missing))
        };
        Ok(tree.iter().map(node).collect())
    }

    /// The directory at `path`, which is normalized.
    pub fn directory(&self, path: &str) -> Result<Node, String> {
        match self.find(path)? {
            Some(node) if node.kind == Kind::Directory => Ok(node),
            Some(_) => Err(format!("build.context = {path:?} is not a directory in commit {}", self.commit)),
            None => Err(format!(
                "there is no directory {path:?} (build.context) in commit {}{}",
                self.commit,
                self.suggestions(path, |node| node.kind == Kind::Directory),
            )),
        }
    }

    /// The file at `path`, which is normalized; `None` where there is none.
    pub fn file(&self, path: &str) -> Result<Option<Node>, String> {
        Ok(self.find(path)?.filter(|node| matches!(node.kind, Kind::File | Kind::Executable)))
    }

    /// What is at `path`, links resolved within the repository.
    fn find(&self, path: &str) -> Result<Option<Node>, String> {
        // Parts still to go, the next one last; directories come so far with their nodes.
        let mut ahead: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let mut trail: Vec<(String, Node)> = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." if trail.pop().is_none() => return Err(leads_out(path)),
                ".." => continue,
                _ => {}
            }
            let directory = trail.last().map_or(self.root, |(_, node)| *node);
            if directory.kind != Kind::Directory {
                return Ok(None);
            }
            let at = trail.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("/");
            let entries = self.entries(&directory, &at)?;
            let Some((_, node)) = entries.into_iter().find(|(name, _)| name == part.as_bytes()) else {
                return Ok(None);
            };
            if node.kind != Kind::Link {
                trail.push((part, node));
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(format!("{path:?} is a symbolic link that leads round in a circle"));
            }
            let target = self.read(&node, path, 4096)?;
            let target = String::from_utf8_lossy(&target);
            if target.starts_with('/') {
                return Err(leads_out(path));
            }
            ahead.extend(target.rsplit('/').map(str::to_owned));
        }
        Ok(Some(trail.last().map_or(self.root, |(_, node)| *node)))
    }

    /// A whole file of at most `largest` bytes.
    pub fn read(&self, node: &Node, path: &str, largest: usize) -> Result<Vec<u8>, String> {
        let (_, repository) = &self.repositories[node.repository];
        let failed = |error: git2::Error| self.damaged(node, path, &error);
        let odb = repository.odb().map_err(failed)?;
        let (size, _) = odb.read_header(node.oid).map_err(failed)?;
        if size > largest {
            return Err(format!("{path} is larger than {} KiB", largest >> 10));
        }
        Ok(odb.read(node.oid).map_err(failed)?.data().to_vec())
    }

    /// The sentence for a Dockerfile that is not there.
    pub fn no_dockerfile(&self, path: &str) -> String {
        let is_recipe = |node: &Node| matches!(node.kind, Kind::File | Kind::Executable);
        let mut found = Vec::new();
        self.collect(&self.root, "", 0, &mut |path, node| {
            let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
            if is_recipe(node) && name.contains("dockerfile") && !name.ends_with(".dockerignore") {
                found.push(path.to_owned());
            }
        });
        let hint = match found.as_slice() {
            [] => self.suggestions(path, is_recipe),
            found => format!("; found: {}", found.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ")),
        };
        format!("there is no Dockerfile at {path:?} in commit {}{hint}", self.commit)
    }

    /// `; did you mean …?` with the paths that are spelled most alike, or nothing.
    fn suggestions(&self, path: &str, fits: impl Fn(&Node) -> bool) -> String {
        let mut near = Vec::new();
        self.collect(&self.root, "", 0, &mut |known, node| {
            let likeness = strsim::jaro_winkler(path, known);
            if fits(node) && likeness > 0.8 {
                near.push((likeness, known.to_owned()));
            }
        });
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let names: Vec<String> = near.into_iter().take(NAMED).map(|(_, name)| name).collect();
        if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(", ")) }
    }

    /// Visits what is in the upper directories, for suggestions.
    fn collect(&self, directory: &Node, at: &str, depth: usize, visit: &mut impl FnMut(&str, &Node)) {
        if depth > 4 {
            return;
        }
        for (name, node) in self.entries(directory, at).unwrap_or_default() {
            let path = join(at, &String::from_utf8_lossy(&name));
            visit(&path, &node);
            if node.kind == Kind::Directory {
                self.collect(&node, &path, depth + 1, visit);
            }
        }
    }

    fn damaged(&self, node: &Node, path: &str, error: &git2::Error) -> String {
        if error.code() != ErrorCode::Owner {
            mark_damaged(&self.repositories[node.repository].0);
        }
        format!("{path:?} cannot be read from the mirror ({}); the next deployment clones it anew", error.message())
    }
}

fn leads_out(path: &str) -> String {
    format!("{path:?} is a symbolic link that leads out of the repository")
}

/// A path of the configuration as the trees have it: no `.`, no empty parts, nothing that leads out.
pub(super) fn normalize(key: &str, path: &str) -> Result<String, String> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(format!("{key} = {path:?} leads out of the repository: give a path inside it"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

/// Why a file of this name must not be unpacked anywhere: it could stand for `.git` on some file system, or for
/// another directory.
pub(super) fn unsafe_name(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Some("its name leads to another directory");
    }
    if name.iter().any(|b| matches!(b, 0 | b'\r')) {
        return Some("its name holds a zero byte or a carriage return");
    }
    // Windows takes a backslash for a slash.
    if name.split(|&b| b == b'\\').any(stands_for_git) {
        return Some("its name stands for .git on some file system");
    }
    None
}

fn stands_for_git(name: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(name) else { return false };
    // HFS+ ignores these; the list is git's own (utf8.c).
    let ignored =
        |c: char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let visible: String = text.chars().filter(|c| !ignored(*c)).collect::<String>().to_lowercase();
    // NTFS drops dots and spaces at the end, and takes what follows a colon for the name of a stream.
    let base = visible.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    base == ".git" || base == "git~1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_stand_for_git_are_refused() {
        for bad in [
            ".git",
            ".GIT",
            ".gIt",
            "git~1",
            "GIT~1",
            ".git.",
            ".git ",
            ".git . .",
            ".git::$INDEX_ALLOCATION",
            ".g\u{200c}it",
            "\u{feff}.Git",
            "a\\.git",
            ".git\\hooks",
            "x\r",
            "..",
            ".",
            "",
        ] {
            assert!(unsafe_name(bad.as_bytes()).is_some(), "{bad:?}");
        }
        for good in [".gitignore", ".github", "git", "git~2", ".git-x", "a.git", "...", "größe", "a\\x2db", "new\nline"]
        {
            assert_eq!(unsafe_name(good.as_bytes()), None, "{good:?}");
        }
        assert_eq!(unsafe_name(b"\xff\xfe"), None);
    }

    #[test]
    fn configured_paths_stay_inside() {
        for (given, wanted) in [(".", ""), ("./a//b/", "a/b"), ("a", "a"), ("", "")] {
            assert_eq!(normalize("k", given).unwrap(), wanted);
        }
        for bad in ["/etc", "..", "a/../../b", "a\0"] {
            assert!(normalize("k", bad).is_err(), "{bad:?}");
        }
    }
}
