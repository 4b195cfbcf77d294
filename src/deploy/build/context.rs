//! The build context as a tar, straight from the mirror's objects: no checkout, no file on disk.
//!
//! Which files it holds, and the digest of them all, is known from the commit's trees alone; file contents are read
//! one at a time while the tar is written.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use git2::{Oid, Repository};
use sha2::{Digest, Sha256};

use super::context_tree::{Kind, Node, Trees, normalize, unsafe_name};
use super::dockerignore::{Dockerignore, Verdict};
use crate::config::Build;
use crate::deploy::source::{Source, mark_damaged};

/// The largest Dockerfile or `.dockerignore`: 1 MiB.
const LARGEST_RECIPE: usize = 1 << 20;
/// The largest file of a context: 2 GiB. One file at a time is in memory.
const LARGEST_FILE: usize = 2 << 30;
/// Directories nested deeper than this are refused.
const DEEPEST: usize = 256;
/// Tar is written in pieces of this size.
const PIECE: usize = 128 << 10;

/// The files of one build, by their objects.
pub struct Context {
    repositories: Vec<(PathBuf, Repository)>,
    /// Sorted by path; a directory comes before what is in it.
    entries: Vec<Entry>,
    digest: String,
    dockerfile: Vec<u8>,
    mtime: Duration,
}

struct Entry {
    /// Relative to the context; any bytes that git allows.
    path: Vec<u8>,
    kind: Kind,
    /// Of the content; zero for directories.
    oid: Oid,
    /// Which repository has it.
    repository: usize,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("entries", &self.entries.len()).field("digest", &self.digest).finish()
    }
}

impl Context {
    /// Finds out what is in the context of `build` at the commit. Reads trees, the Dockerfile and `.dockerignore`,
    /// nothing else; blocks meanwhile. The error is a sentence for the person who pushed.
    ///
    /// `build.dockerfile` is looked for below the context first, then below the repository's root; either way the
    /// tar has it at that path, whatever `.dockerignore` says.
    pub fn open(source: &Source, build: &Build) -> Result<Self, String> {
        let trees = Trees::open(source)?;
        let context = normalize("build.context", &build.context)?;
        let recipe = normalize("build.dockerfile", &build.dockerfile)?;
        let root = trees.directory(&context)?;

        let beside = join(&context, &recipe);
        let found = match trees.file(&beside)? {
            Some(node) => Some((beside.clone(), node)),
            None => trees.file(&recipe)?.map(|node| (recipe.clone(), node)),
        };
        let Some((dockerfile_at, dockerfile_node)) = found else {
            return Err(trees.no_dockerfile(&beside));
        };
        let dockerfile = trees.read(&dockerfile_node, &dockerfile_at, LARGEST_RECIPE)?;

        // A file of its own for this Dockerfile takes the place of the context's.
        let own = format!("{dockerfile_at}.dockerignore");
        let shared = join(&context, ".dockerignore");
        let mut ignore = Dockerignore::default();
        let mut shared_is_used = false;
        if let Some(node) = trees.file(&own)? {
            ignore = parse(&own, &trees.read(&node, &own, LARGEST_RECIPE)?)?;
        } else if let Some(node) = trees.file(&shared)? {
            ignore = parse(&shared, &trees.read(&node, &shared, LARGEST_RECIPE)?)?;
            shared_is_used = true;
        }

        let mut walk = Walk {
            trees: &trees,
            ignore: &ignore,
            keep_ignore_file: shared_is_used,
            context: &context,
            entries: Vec::new(),
        };
        walk.below(&root, &[], &Verdict::default(), 0)?;
        let mut entries = walk.entries;
        // The Dockerfile goes in as a plain file under the name that the engine is told.
        entries.retain(|entry| entry.path != recipe.as_bytes());
        entries.push(Entry {
            path: recipe.into_bytes(),
            kind: Kind::File,
            oid: dockerfile_node.oid,
            repository: dockerfile_node.repository,
        });
        add_parents(&mut entries);
        entries.sort_by(|a, b| a.path.cmp(&b.path));

        // A moment that no earlier build has seen: tools that compare times (cargo, make) with what they left in
        // a cache mount would take older sources for unchanged. The engine's own cache does not look at times.
        let mtime = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let digest = digest(&entries);
        Ok(Self { repositories: trees.into_repositories(), entries, digest, dockerfile, mtime })
    }

    /// Digest of every path, mode and content in it, as hexadecimal SHA-256. Times are no part of it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The Dockerfile's content.
    pub fn dockerfile(&self) -> &[u8] {
        &self.dockerfile
    }

    /// How many files, links and directories there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing at all; never so, because of the Dockerfile.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the context as a tar; returns its size in bytes. Blocks. One file at a time is in memory.
    pub fn write_tar(self, writer: impl Write) -> io::Result<u64> {
        let odbs: Result<Vec<_>, _> = self.repositories.iter().map(|(_, repository)| repository.odb()).collect();
        let odbs = odbs.map_err(|error| io::Error::other(error.message().to_owned()))?;
        let mut tar = tar::Builder::new(Counted { inner: BufWriter::with_capacity(PIECE, writer), bytes: 0 });
        for entry in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(self.mtime.as_secs());
            header.set_uid(0);
            header.set_gid(0);
            header.set_mode(entry.kind.permissions());
            header.set_entry_type(entry.kind.tar_type());
            header.set_size(0);
            if entry.kind == Kind::Directory {
                tar.append_data(&mut header, path_of(&[&entry.path, &b"/"[..]].concat()), io::empty())?;
                continue;
            }
            let odb = &odbs[entry.repository];
            let read = odb.read_header(entry.oid).and_then(|(size, _)| match size {
                0..=LARGEST_FILE => odb.read(entry.oid).map(Some),
                _ => Ok(None),
            });
            let object = read.map_err(|error| self.unreadable(entry, &error))?.ok_or_else(|| {
                io::Error::other(format!("{:?} is larger than {} MiB", path_of(&entry.path), LARGEST_FILE >> 20))
            })?;
            if entry.kind == Kind::Link {
                append_link(&mut tar, &mut header, &entry.path, object.data())?;
            } else {
                header.set_size(object.len() as u64);
                tar.append_data(&mut header, path_of(&entry.path), object.data())?;
            }
        }
        let mut counted = tar.into_inner()?;
        counted.flush()?;
        Ok(counted.bytes)
    }

    fn unreadable(&self, entry: &Entry, error: &git2::Error) -> io::Error {
        mark_damaged(&self.repositories[entry.repository].0);
        io::Error::other(format!(
            "{:?} cannot be read from the mirror ({}); the next deployment clones it anew",
            path_of(&entry.path),
            error.message()
        ))
    }
}

/// Goes through the trees below the context and keeps what the patterns leave.
struct Walk<'a> {
    trees: &'a Trees,
    ignore: &'a Dockerignore,
    keep_ignore_file: bool,
    context: &'a str,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    fn below(&mut self, directory: &Node, prefix: &[u8], parent: &Verdict, depth: usize) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("directories are nested deeper than {DEEPEST}"));
        }
        for (name, node) in self.trees.entries(directory, &join(self.context, &String::from_utf8_lossy(prefix)))? {
            let path = if prefix.is_empty() { name.clone() } else { [prefix, &name].join(&b'/') };
            let verdict = self.ignore.verdict(parent, &String::from_utf8_lossy(&path));
            let directory = node.kind == Kind::Directory;
            let kept = !verdict.excluded() || (self.keep_ignore_file && path == b".dockerignore");
            let looked_into = directory && self.ignore.has_exceptions();
            if !kept && !looked_into {
                continue;
            }
            if let Some(why) = unsafe_name(&name) {
                return Err(format!("{:?} in the commit is refused: {why}", path_of(&path)));
            }
            if kept {
                let oid = if directory { Oid::ZERO_SHA1 } else { node.oid };
                self.entries.push(Entry { path: path.clone(), kind: node.kind, oid, repository: node.repository });
            }
            if directory && !node.oid.is_zero() {
                self.below(&node, &path, &verdict, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Every file's directories have entries of their own: their permissions are not left to whoever unpacks.
fn add_parents(entries: &mut Vec<Entry>) {
    let known: HashSet<&[u8]> = entries.iter().map(|entry| entry.path.as_slice()).collect();
    let parents = |entry: &Entry| {
        let ends: Vec<usize> = entry.path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).collect();
        ends.into_iter().map(|end| entry.path[..end].to_vec()).collect::<Vec<_>>()
    };
    let missing: HashSet<Vec<u8>> =
        entries.iter().flat_map(parents).filter(|parent| !known.contains(parent.as_slice())).collect();
    let directory = |path| Entry { path, kind: Kind::Directory, oid: Oid::ZERO_SHA1, repository: 0 };
    entries.extend(missing.into_iter().map(directory));
}

/// Each part has its length or a fixed size, so that no two lists of entries give the same bytes.
fn digest(entries: &[Entry]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"longshore context 1\0");
    for entry in entries {
        hash.update((entry.path.len() as u64).to_be_bytes());
        hash.update(&entry.path);
        hash.update([entry.kind as u8]);
        hash.update(entry.oid.as_bytes());
    }
    hex::encode(hash.finalize())
}

fn append_link<W: Write>(
    tar: &mut tar::Builder<W>,
    header: &mut tar::Header,
    path: &[u8],
    to: &[u8],
) -> io::Result<()> {
    let path = path_of(path);
    let refused = |why: &str| io::Error::other(format!("the symbolic link {path:?} is refused: {why}"));
    match to.len() {
        0 => Err(refused("it leads nowhere")),
        _ if to.contains(&0) => Err(refused("its target holds a zero byte")),
        // Word for word; longer ones need an entry of their own, which the tar crate writes.
        1..=100 => {
            header.set_link_name_literal(to)?;
            tar.append_data(header, path, io::empty())
        }
        101..=4095 => tar.append_link(header, path, path_of(to)),
        _ => Err(refused("its target is longer than 4095 bytes")),
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn parse(path: &str, text: &[u8]) -> Result<Dockerignore, String> {
    Dockerignore::parse(text).map_err(|why| format!("{path}, {why}"))
}

pub(super) fn join(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", name) => name.to_owned(),
        (directory, "") => directory.to_owned(),
        (directory, name) => format!("{directory}/{name}"),
    }
}

/// Counts what passes.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
