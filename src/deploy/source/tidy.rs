//! Keeps a mirror quick over years: every fetch adds a pack, and looking for an object asks each pack in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use git2::{Oid, Repository};

use super::limits::{Limits, Trouble};
use super::pack::index_local;

/// Packs below this size are worth merging: 16 MiB.
const SMALL: u64 = 16 << 20;
/// As many small packs may gather.
const MOST_SMALL: usize = 50;
/// Names of packs whose objects are in a newer one.
const MERGED: &str = "longshore-merged-packs";
/// How long merged packs stay: a build may be reading them.
const GRACE: Duration = Duration::from_secs(3600);

/// Merges the small packs of the mirror into one when there are many, and removes those that were merged an
/// hour ago or more. Whatever goes wrong here leaves the mirror as it was, only slower.
pub(super) fn tidy(mirror: &Path, limits: &Limits) {
    if let Err(trouble) = try_tidy(mirror, limits, MOST_SMALL, SystemTime::now()) {
        tracing::warn!(mirror = %mirror.display(), ?trouble, "the mirror's packs could not be merged");
    }
}

fn try_tidy(mirror: &Path, limits: &Limits, most: usize, now: SystemTime) -> Result<(), Trouble> {
    let list = mirror.join(MERGED);
    if let Ok(written) = fs::metadata(&list).and_then(|metadata| metadata.modified()) {
        if now.duration_since(written).is_ok_and(|age| age >= GRACE) {
            remove_merged(mirror, &list).map_err(|error| failed(&error))?;
        }
        return Ok(());
    }
    let small = small_packs(mirror).map_err(|error| failed(&error))?;
    if small.len() <= most {
        return Ok(());
    }
    let broken = |error: git2::Error| Trouble::failed(error.message());
    let repo = Repository::open_bare(mirror).map_err(broken)?;
    let mut builder = repo.packbuilder().map_err(broken)?;
    for index in &small {
        limits.check()?;
        for oid in objects(index).map_err(|error| failed(&error))? {
            builder.insert_object(oid, None).map_err(broken)?;
        }
    }
    let merged = index_local(mirror, limits, |take| builder.foreach(|data| take(data)).map_err(broken))?;
    let old = small.iter().filter(|index| **index != merged.index);
    let names: Vec<_> = old.filter_map(|path| path.file_name()?.to_str()).collect();
    fs::write(&list, names.join("\n")).map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> Trouble {
    Trouble::failed(error.to_string())
}

/// The index files of small packs.
fn small_packs(mirror: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(mirror.join("objects/pack"))? {
        let path = entry?.path();
        let size = || fs::metadata(path.with_extension("pack")).map(|metadata| metadata.len());
        if path.extension().is_some_and(|extension| extension == "idx") && size().is_ok_and(|size| size < SMALL) {
            found.push(path);
        }
    }
    Ok(found)
}

fn remove_merged(mirror: &Path, list: &Path) -> std::io::Result<()> {
    for name in fs::read_to_string(list)?.lines().filter(|name| !name.contains('/')) {
        let index = mirror.join("objects/pack").join(name);
        // Without its index a pack is not there: the index goes first.
        for path in [index.clone(), index.with_extension("pack")] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    fs::remove_file(list)
}

/// The ids in a version 2 pack index (gitformat-pack(5)): an eight-byte head, a table of 256 counts, then the ids.
fn objects(index: &Path) -> std::io::Result<Vec<Oid>> {
    let bytes = fs::read(index)?;
    let unknown = || std::io::Error::other(format!("{} is no index of version 2", index.display()));
    let rest = bytes.strip_prefix(&[0xff, b't', b'O', b'c', 0, 0, 0, 2]).ok_or_else(unknown)?;
    let (counts, ids) = rest.split_at_checked(1024).ok_or_else(unknown)?;
    let last: [u8; 4] = counts.last_chunk().copied().ok_or_else(unknown)?;
    let count = usize::try_from(u32::from_be_bytes(last)).map_err(|_| unknown())?;
    let ids = count.checked_mul(20).and_then(|length| ids.get(..length)).ok_or_else(unknown)?;
    ids.chunks_exact(20).map(|id| Oid::from_bytes(id).map_err(|_| unknown())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio_util::sync::CancellationToken;

    use super::super::Timeouts;
    use super::*;

    /// A bare repository with a pack per commit.
    fn mirror_of(commits: usize) -> (tempfile::TempDir, Vec<Oid>) {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::init_bare(dir.path()).unwrap();
        let who = git2::Signature::new("A", "a@example.com", &git2::Time::new(0, 0)).unwrap();
        let limits = Limits::start(Timeouts::default(), &CancellationToken::new());
        let mut all = Vec::new();
        for n in 0..commits {
            let blob = repo.blob(format!("content {n}").as_bytes()).unwrap();
            let mut tree = repo.treebuilder(None).unwrap();
            tree.insert("file", blob, 0o100_644).unwrap();
            let tree = repo.find_tree(tree.write().unwrap()).unwrap();
            let commit = repo.commit(None, &who, &who, "message", &tree, &[]).unwrap();
            let mut builder = repo.packbuilder().unwrap();
            builder.insert_commit(commit).unwrap();
            index_local(dir.path(), &limits, |take| {
                builder.foreach(|data| take(data)).map_err(|error| Trouble::failed(error.message()))
            })
            .unwrap();
            all.extend([blob, tree.id(), commit]);
        }
        for entry in fs::read_dir(dir.path().join("objects")).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().len() == 2 {
                fs::remove_dir_all(path).unwrap();
            }
        }
        (dir, all)
    }

    #[test]
    fn many_small_packs_become_one_and_nothing_is_lost() {
        let (dir, all) = mirror_of(6);
        let limits = Limits::start(Timeouts::default(), &CancellationToken::new());
        let packs = || small_packs(dir.path()).unwrap().into_iter().collect::<BTreeSet<_>>();
        let before = packs();
        let now = SystemTime::now();
        try_tidy(dir.path(), &limits, 6, now).unwrap();
        assert_eq!(packs(), before, "six are not too many");

        try_tidy(dir.path(), &limits, 5, now).unwrap();
        assert!(packs().is_superset(&before) && packs().len() == 7, "the old ones may still be read");
        try_tidy(dir.path(), &limits, 5, now).unwrap();
        assert_eq!(packs().len(), 7, "merged once");

        try_tidy(dir.path(), &limits, 5, now + GRACE + Duration::from_secs(60)).unwrap();
        assert_eq!(packs().len(), 1);
        let repo = Repository::open_bare(dir.path()).unwrap();
        let odb = repo.odb().unwrap();
        for oid in all {
            odb.read(oid).unwrap();
        }
    }
}
