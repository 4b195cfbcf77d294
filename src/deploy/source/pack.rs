//! A pack on its way into a mirror. It is indexed in a directory of its own and moved into the object database
//! only when it is whole, so that a broken transfer leaves nothing behind that anyone reads.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use git2::{ErrorClass, Indexer, Repository};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::limits::{Limits, Trouble};
use super::mirror::is_left;

/// The largest pack that is taken: 2 GiB.
const LARGEST_PACK: u64 = 2 << 30;
/// Packets in flight between the network and the indexer.
const QUEUE: usize = 64;
/// Where packs are indexed, beside the mirror's own directories.
const INCOMING: &str = "longshore-incoming";

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Received {
    /// The pack's index in the mirror.
    pub index: PathBuf,
    pub objects: usize,
    pub bytes: u64,
}

/// The end of a pack's way that the network writes to.
pub(super) struct PackSink {
    packets: mpsc::Sender<Vec<u8>>,
    indexing: JoinHandle<Result<Received, Trouble>>,
    largest: u64,
    bytes: u64,
}

impl PackSink {
    /// A sink whose thread indexes into the mirror at `mirror`. Dropping it before [`PackSink::finish`] drops the pack.
    pub fn start(mirror: &Path, limits: &Limits) -> Self {
        let (packets, queue) = mpsc::channel(QUEUE);
        let (mirror, limits) = (mirror.to_owned(), limits.clone());
        let indexing = tokio::task::spawn_blocking(move || index(&mirror, queue, &limits));
        Self { packets, indexing, largest: LARGEST_PACK, bytes: 0 }
    }

    /// Takes a side-band packet of pack data: its first byte is the band.
    pub async fn write(&mut self, packet: Vec<u8>) -> Result<(), Trouble> {
        self.bytes += packet.len() as u64 - 1;
        if self.bytes > self.largest {
            return Err(too_large(self.largest));
        }
        if self.packets.send(packet).await.is_ok() {
            return Ok(());
        }
        // The indexer has given up, and says why.
        match (&mut self.indexing).await {
            Ok(Err(why)) => Err(why),
            _ => Err(Trouble::failed("indexing the pack ended early")),
        }
    }

    /// Ends the pack: checks it, resolves its deltas and puts it where the mirror reads it.
    pub async fn finish(self) -> Result<Received, Trouble> {
        let Self { packets, indexing, .. } = self;
        // The empty packet tells a pack that is complete from a sink that was dropped.
        let told = packets.send(Vec::new()).await;
        drop(packets);
        match (indexing.await, told) {
            (Ok(result), _) => result,
            (Err(error), _) => Err(Trouble::Failed(format!("indexing the pack did not end well: {error}"))),
        }
    }
}

fn too_large(largest: u64) -> Trouble {
    Trouble::Failed(format!("the pack is larger than {} MiB", largest >> 20))
}

fn index(mirror: &Path, mut queue: mpsc::Receiver<Vec<u8>>, limits: &Limits) -> Result<Received, Trouble> {
    let mut pack = IncomingPack::new(mirror)?;
    let repo = Repository::open_bare(mirror).map_err(|error| Trouble::Damaged(error.message().to_owned()))?;
    let odb = repo.odb().map_err(|error| Trouble::Damaged(error.message().to_owned()))?;
    let mut indexer = new_indexer(&odb, &pack, limits)?;
    while let Some(packet) = queue.blocking_recv() {
        limits.check()?;
        let Some((_band, data)) = packet.split_first() else {
            return pack.install(indexer, limits);
        };
        pack.bytes += data.len() as u64;
        indexer.write_all(data).map_err(|error| not_a_pack(&error.to_string()))?;
    }
    Err(Trouble::Cancelled)
}

/// A pack from a repository on this machine, handed over object by object.
pub(super) fn index_local(
    mirror: &Path,
    limits: &Limits,
    produce: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<(), Trouble>,
) -> Result<Received, Trouble> {
    let mut pack = IncomingPack::new(mirror)?;
    let repo = Repository::open_bare(mirror).map_err(|error| Trouble::Damaged(error.message().to_owned()))?;
    let odb = repo.odb().map_err(|error| Trouble::Damaged(error.message().to_owned()))?;
    let mut indexer = new_indexer(&odb, &pack, limits)?;
    let mut failure = None;
    let bytes = &mut pack.bytes;
    let produced = produce(&mut |data| {
        *bytes += data.len() as u64;
        let written = match indexer.write_all(data) {
            _ if *bytes > LARGEST_PACK => Err(too_large(LARGEST_PACK)),
            Err(error) => Err(not_a_pack(&error.to_string())),
            Ok(()) => limits.check(),
        };
        failure = written.err();
        failure.is_none()
    });
    match failure {
        Some(why) => return Err(why),
        None => produced?,
    }
    pack.install(indexer, limits)
}

fn new_indexer<'odb>(odb: &git2::Odb<'odb>, pack: &IncomingPack, limits: &Limits) -> Result<Indexer<'odb>, Trouble> {
    let mut indexer = Indexer::new(Some(odb), &pack.dir, 0, false).map_err(|error| Trouble::failed(error.message()))?;
    let (limits, mut checked) = (limits.clone(), Instant::now());
    indexer.progress(move |_| {
        if checked.elapsed().as_millis() < 50 {
            return true;
        }
        checked = Instant::now();
        limits.check().is_ok()
    });
    Ok(indexer)
}

fn not_a_pack(why: &str) -> Trouble {
    Trouble::Failed(format!("the server sent a pack that cannot be read: {why}"))
}

/// A directory of its own for one pack, removed with all that is in it.
struct IncomingPack {
    mirror: PathBuf,
    dir: PathBuf,
    bytes: u64,
}

impl IncomingPack {
    fn new(mirror: &Path) -> Result<Self, Trouble> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = mirror.join(INCOMING).join(name);
        fs::create_dir_all(&dir).map_err(|error| disk(&dir, &error))?;
        Ok(Self { mirror: mirror.to_owned(), dir, bytes: 0 })
    }

    fn install(&self, indexer: Indexer<'_>, limits: &Limits) -> Result<Received, Trouble> {
        let committed = indexer.commit();
        limits.check()?;
        let name = committed.map_err(|error| match error.class() {
            // A thin pack builds on objects that the server believes we have, because we said so.
            ErrorClass::Odb => Trouble::Damaged(error.message().to_owned()),
            ErrorClass::Os => Trouble::Failed(format!("writing the pack: {}", error.message())),
            _ => not_a_pack(error.message()),
        })?;
        let target = self.mirror.join("objects/pack");
        fs::create_dir_all(&target).map_err(|error| disk(&target, &error))?;
        // A pack counts from the moment its index is there: the index goes last.
        for extension in ["pack", "idx"] {
            let file = format!("pack-{name}.{extension}");
            let from = self.dir.join(&file);
            fs::File::open(&from).and_then(|file| file.sync_all()).map_err(|error| disk(&from, &error))?;
            fs::rename(&from, target.join(&file)).map_err(|error| disk(&from, &error))?;
        }
        let index = target.join(format!("pack-{name}.idx"));
        Ok(Received { objects: objects_in(&index).unwrap_or(0), bytes: self.bytes, index })
    }
}

impl Drop for IncomingPack {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next sweep.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The number of objects in a pack, from the last entry of its index's fan-out table (gitformat-pack(5)).
fn objects_in(index: &Path) -> Option<usize> {
    use std::os::unix::fs::FileExt;
    let mut last = [0; 4];
    fs::File::open(index).ok()?.read_exact_at(&mut last, 8 + 255 * 4).ok()?;
    usize::try_from(u32::from_be_bytes(last)).ok()
}

fn disk(path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::Failed(format!("{}: {error}", path.display()))
}

/// Removes what a killed agent left half received.
pub(super) fn sweep(mirror: &Path, started: SystemTime) {
    let Ok(entries) = fs::read_dir(mirror.join(INCOMING)) else { return };
    for entry in entries.flatten() {
        if is_left(&entry, started) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
