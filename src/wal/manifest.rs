//! The manifest of a data directory, and the lock that keeps it to one server.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::files::{Files, RealFiles, temporary_of};
use super::{FORMAT_VERSION, paths};
use crate::limits::{GENERATIONS_MAX, SHARDS_MAX};
use crate::position::{Epoch, LogId, NodeId, ShardId};

const MANIFEST_BYTES_MAX: u64 = 64 * 1024;

/// What holds for the whole data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Version of the format of everything in the directory.
    pub format_version: u16,
    /// The server's identity; random, not 0.
    pub node: NodeId,
    /// Number of shards.
    pub shards: u16,
    /// Seed of the hash that gives each group its shard; random.
    pub hash_seed: u64,
    /// Server starts so far, this one included: the node-wide epoch counter.
    pub starts: Epoch,
    /// Whether the server stopped in good order. In the value that [`Manifest::open`]
    /// returns this is about the last stop; on disk it is false while a server runs.
    pub clean: bool,
    /// No group has an epoch below this one; raised when a log was damaged. 0 at first.
    pub epoch_floor: Epoch,
    /// The same for groups that used level `memory`; raised after an unclean stop.
    pub memory_epoch_floor: Epoch,
    /// The generation of logs that is written to; each change of the number of shards begins
    /// a new one.
    pub generation: u16,
    /// Earlier generations of which something is left, oldest first, with their shard counts.
    pub sealed: Vec<(u16, u16)>,
}

/// An opened data directory. Its lock is held as long as this lives.
#[derive(Debug)]
pub struct DataDir<F = RealFiles> {
    path: PathBuf,
    manifest: Manifest,
    /// The number of shards that is asked for.
    asked: u16,
    files: F,
    /// A simulated one needs none.
    _lock: Option<File>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error(
        "the data directory {} is in use by {}; stop that server or choose another directory",
        path.display(), holder(*pid)
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, if the lock file names it.
        pid: Option<u32>,
    },
    /// The manifest is not what a server writes.
    #[error(
        "the manifest {} is damaged: {why}; restore it from a backup, nothing was changed",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There are logs but no manifest.
    #[error(
        "{} has no manifest.toml but has log segments in {}; restore the manifest from a \
         backup, nothing was changed",
        path.display(), shard_dir.display()
    )]
    Lost {
        /// The directory.
        path: PathBuf,
        /// A folder with segments.
        shard_dir: PathBuf,
    },
    /// Another version of the format.
    #[error(
        "the data directory {} has format version {found}, this build reads and writes version \
         {FORMAT_VERSION}; use the build that wrote it, or another directory",
        path.display()
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// The version there is.
        found: u64,
    },
    /// The shard count was changed too often.
    #[error(
        "the number of shards of {} was changed {GENERATIONS_MAX} times, which is the most; start \
         with the number it has",
        path.display()
    )]
    Generations {
        /// The directory.
        path: PathBuf,
    },
    /// A shard count that cannot be.
    #[error("{asked} shards are asked for; choose a number from 1 to {SHARDS_MAX}")]
    ShardsOutOfRange {
        /// The count asked for.
        asked: u16,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ManifestError {
    let path = path.to_owned();
    move |source| ManifestError::Io { action, path, source }
}

/// The manifest as it is in the file. Numbers that TOML cannot hold are strings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    format_version: u16,
    node_id: u16,
    shards: u16,
    hash_seed: String,
    starts: u32,
    clean: bool,
    epoch_floor: u32,
    memory_epoch_floor: u32,
    generation: u16,
    sealed: Vec<(u16, u16)>,
}

/// The one field that every version of the format has in the same place.
#[derive(Deserialize)]
struct VersionOnly {
    format_version: u64,
}

impl Manifest {
    /// Opens the data directory `path`, creating it if it is not there, takes its lock, and
    /// counts one more start, durably. `shards` is the number asked for; `None` takes the
    /// number the directory has, or one per core for a new one.
    ///
    /// # Errors
    /// A [`ManifestError`] that says what is in the way and what to do.
    pub fn open(path: &Path, shards: Option<u16>) -> Result<(DataDir, Self), ManifestError> {
        check_shards(shards)?;
        let mut files = RealFiles::default();
        create_dir(&mut files, path)?;
        let lock = take_lock(path)?;
        let random = random().map_err(io_error("read", Path::new(RANDOM)))?;
        Self::open_on(files, path, shards, random, Some(lock))
    }

    /// As [`Manifest::open`], in any file system, with `random` for a new directory.
    ///
    /// # Errors
    /// As [`Manifest::open`].
    pub fn open_on<F: Files>(
        mut files: F,
        path: &Path,
        shards: Option<u16>,
        random: [u64; 2],
        lock: Option<File>,
    ) -> Result<(DataDir<F>, Self), ManifestError> {
        check_shards(shards)?;
        create_dir(&mut files, path)?;
        let manifest = match Self::read_on(&mut files, path)? {
            Some(manifest) => manifest,
            None => Self::fresh(&mut files, path, shards, random)?,
        };
        let asked = shards.unwrap_or(manifest.shards);
        if asked != manifest.shards && manifest.generation >= GENERATIONS_MAX {
            return Err(ManifestError::Generations { path: path.to_owned() });
        }
        for log in manifest.logs() {
            create_dir(&mut files, &paths::log_dir(path, log))?;
        }
        let started = Self { starts: Epoch(manifest.starts.0 + 1), ..manifest };
        let mut data =
            DataDir { path: path.to_owned(), manifest: started.clone(), asked, files, _lock: lock };
        data.manifest.clean = false;
        data.store()?;
        Ok((data, started))
    }

    /// Reads the manifest of `path` without a lock; `None` if there is none.
    ///
    /// # Errors
    /// As [`Manifest::open`].
    pub fn read(path: &Path) -> Result<Option<Self>, ManifestError> {
        Self::read_on(&mut RealFiles::default(), path)
    }

    fn read_on(files: &mut impl Files, path: &Path) -> Result<Option<Self>, ManifestError> {
        let file_path = path.join(paths::MANIFEST);
        let bytes = match files.read_all(&file_path, MANIFEST_BYTES_MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io_error("read", &file_path))?,
        };
        let damaged = |why: String| ManifestError::Damaged { path: file_path.clone(), why };
        let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
        let version: VersionOnly = toml::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if version.format_version != u64::from(FORMAT_VERSION) {
            let found = version.format_version;
            return Err(ManifestError::Version { path: path.to_owned(), found });
        }
        let file: ManifestFile = toml::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let hash_seed = u64::from_str_radix(&file.hash_seed, 16)
            .map_err(|e| damaged(format!("hash_seed: {e}")))?;
        if file.node_id == 0 || !(1..=SHARDS_MAX).contains(&usize::from(file.shards)) {
            return Err(damaged("node_id or shards is out of range".to_owned()));
        }
        let generations = file.sealed.iter().map(|(generation, _)| *generation);
        let ordered = generations.chain([file.generation]).is_sorted_by(|a, b| a < b);
        let counts = file.sealed.iter().all(|(_, n)| (1..=SHARDS_MAX).contains(&usize::from(*n)));
        if !ordered || !counts || file.generation > GENERATIONS_MAX {
            return Err(damaged("generation or sealed is out of range".to_owned()));
        }
        if file.starts == u32::MAX {
            return Err(damaged("the counter of starts is used up".to_owned()));
        }
        Ok(Some(Self {
            format_version: file.format_version,
            node: NodeId(file.node_id),
            shards: file.shards,
            hash_seed,
            starts: Epoch(file.starts),
            clean: file.clean,
            epoch_floor: Epoch(file.epoch_floor),
            memory_epoch_floor: Epoch(file.memory_epoch_floor),
            generation: file.generation,
            sealed: file.sealed,
        }))
    }

    fn fresh(
        files: &mut impl Files,
        path: &Path,
        shards: Option<u16>,
        random: [u64; 2],
    ) -> Result<Self, ManifestError> {
        for shard in 0..SHARDS_MAX as u16 {
            let shard_dir = paths::shard_dir(path, ShardId(shard));
            if has_segments(files, &shard_dir).map_err(io_error("list", &shard_dir))? {
                return Err(ManifestError::Lost { path: path.to_owned(), shard_dir });
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            format_version: FORMAT_VERSION,
            node: NodeId((random[0] as u16).max(1)),
            shards: shards.unwrap_or(cores.min(SHARDS_MAX) as u16),
            hash_seed: random[1],
            starts: Epoch(0),
            clean: true,
            epoch_floor: Epoch(0),
            memory_epoch_floor: Epoch(0),
            generation: 0,
            sealed: Vec::new(),
        })
    }

    fn to_toml(&self) -> String {
        let sealed =
            self.sealed.iter().map(|(generation, shards)| format!("[{generation}, {shards}]"));
        let sealed: Vec<_> = sealed.collect();
        format!(
            "# Written by the server. See WAL_FORMAT.md.\n\
             format_version = {}\nnode_id = {}\nshards = {}\nhash_seed = \"{:016x}\"\n\
             starts = {}\nclean = {}\nepoch_floor = {}\nmemory_epoch_floor = {}\n\
             generation = {}\nsealed = [{}]\n",
            self.format_version,
            self.node,
            self.shards,
            self.hash_seed,
            self.starts,
            self.clean,
            self.epoch_floor,
            self.memory_epoch_floor,
            self.generation,
            sealed.join(", "),
        )
    }

    /// The log of a shard in the generation that is written to.
    #[must_use]
    pub fn log(&self, shard: ShardId) -> LogId {
        LogId { generation: self.generation, shard }
    }

    /// The logs of earlier generations, oldest first.
    pub fn sealed_logs(&self) -> impl Iterator<Item = LogId> {
        self.sealed.iter().flat_map(|&(generation, shards)| {
            (0..shards).map(move |shard| LogId { generation, shard: ShardId(shard) })
        })
    }

    /// All logs, those that are written to last.
    pub fn logs(&self) -> impl Iterator<Item = LogId> {
        self.sealed_logs().chain((0..self.shards).map(|shard| self.log(ShardId(shard))))
    }
}

impl DataDir {
    /// Takes the lock of a data directory without counting a start, for whoever repairs it.
    ///
    /// # Errors
    /// A [`ManifestError`]: a server runs on it, or it has no manifest.
    pub fn lock(path: &Path) -> Result<Self, ManifestError> {
        let lock = take_lock(path)?;
        let manifest = Manifest::read(path)?.ok_or_else(|| ManifestError::Damaged {
            path: path.join(paths::MANIFEST),
            why: "it is missing".to_owned(),
        })?;
        let (asked, files) = (manifest.shards, RealFiles::default());
        Ok(Self { path: path.to_owned(), manifest, asked, files, _lock: Some(lock) })
    }
}

impl<F: Files> DataDir<F> {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a shard's log; it exists.
    #[must_use]
    pub fn shard_dir(&self, shard: ShardId) -> PathBuf {
        paths::log_dir(&self.path, self.manifest.log(shard))
    }

    /// Creates a folder and makes its name durable.
    ///
    /// # Errors
    /// [`ManifestError::Io`].
    pub fn create_dir(&mut self, dir: &Path) -> Result<(), ManifestError> {
        create_dir(&mut self.files, dir)
    }

    /// The number of shards that is asked for.
    #[must_use]
    pub fn asked(&self) -> u16 {
        self.asked
    }

    /// Seals the logs that were written to so far: from now on there are `shards` shards, with
    /// logs of a new generation, whose folders hold all they start from.
    ///
    /// # Errors
    /// [`ManifestError::Io`]; then everything is as before.
    pub fn begin_generation(&mut self, shards: u16) -> Result<(), ManifestError> {
        let before = self.manifest.clone();
        self.manifest.sealed.push((before.generation, before.shards));
        self.manifest.generation += 1;
        self.manifest.shards = shards;
        self.store().inspect_err(|_| self.manifest = before)
    }

    /// Forgets sealed generations of which nothing is left.
    ///
    /// # Errors
    /// [`ManifestError::Io`].
    pub fn forget_generations(&mut self, gone: &[u16]) -> Result<(), ManifestError> {
        if gone.is_empty() {
            return Ok(());
        }
        self.manifest.sealed.retain(|(generation, _)| !gone.contains(generation));
        self.store()
    }

    /// Says durably that all logs ended in good order.
    ///
    /// # Errors
    /// [`ManifestError::Io`].
    pub fn mark_clean(&mut self) -> Result<(), ManifestError> {
        self.manifest.clean = true;
        self.store()
    }

    /// Raises both floors durably, to `all` for every group and to `memory` for those that
    /// used that level. Done before a shard serves, so that no later start falls back to an
    /// epoch that ended.
    ///
    /// # Errors
    /// [`ManifestError::Io`].
    pub fn raise_epoch_floors(&mut self, all: Epoch, memory: Epoch) -> Result<(), ManifestError> {
        self.manifest.epoch_floor = self.manifest.epoch_floor.max(all);
        self.manifest.memory_epoch_floor = self.manifest.memory_epoch_floor.max(memory);
        self.store()
    }

    /// Replaces the manifest in one step: whoever reads it finds the old or the new one whole.
    fn store(&mut self) -> Result<(), ManifestError> {
        let path = self.path.join(paths::MANIFEST);
        let temporary = temporary_of(&path);
        let text = self.manifest.to_toml();
        let files = &mut self.files;
        files
            .create(&temporary, text.as_bytes(), text.len() as u64)
            .and_then(|()| files.sync(&temporary))
            .map_err(io_error("write", &temporary))?;
        files
            .rename(&temporary, &path)
            .and_then(|()| files.sync_dir(&self.path))
            .map_err(io_error("replace", &path))
    }
}

fn check_shards(shards: Option<u16>) -> Result<(), ManifestError> {
    match shards.filter(|n| !(1..=SHARDS_MAX).contains(&usize::from(*n))) {
        Some(asked) => Err(ManifestError::ShardsOutOfRange { asked }),
        None => Ok(()),
    }
}

/// Creates a directory, with those above it that are not there, and makes its name durable. The
/// name of one that is there is synced too: the start that made it may have ended before that.
fn create_dir(files: &mut impl Files, path: &Path) -> Result<(), ManifestError> {
    let made: Vec<_> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !files.is_dir(dir))
        .map(Path::to_owned)
        .collect();
    files.create_dir(path).map_err(io_error("create the directory", path))?;
    for dir in made.iter().map(PathBuf::as_path).chain([path]) {
        let above = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match files.sync_dir(above) {
            // Whoever set this up does not let the server look there.
            Err(e) if made.is_empty() && e.kind() == io::ErrorKind::PermissionDenied => {}
            other => other.map_err(io_error("sync the directory", above))?,
        }
    }
    Ok(())
}

fn take_lock(dir: &Path) -> Result<File, ManifestError> {
    let path = dir.join(paths::LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open the lock file", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = (&mut file).take(32).read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(ManifestError::InUse { path: dir.to_owned(), pid });
        }
        Err(e) => return Err(io_error("lock", &path)(e.into())),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error("write", &path))?;
    Ok(file)
}

fn has_segments(files: &mut impl Files, shard_dir: &Path) -> io::Result<bool> {
    let names = match files.list(shard_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        names => names?,
    };
    Ok(names.iter().any(|name| paths::segment_number(name).is_some()))
}

const RANDOM: &str = "/dev/urandom";

fn random() -> io::Result<[u64; 2]> {
    let mut bytes = [[0; 8]; 2];
    let mut file = File::open(RANDOM)?;
    file.read_exact(bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_le_bytes))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
