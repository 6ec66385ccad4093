//! Where recovery reads a log from: a directory, or a simulated disk.

use std::io;
use std::path::{Path, PathBuf};

use super::files::{Files, RealFiles};
use super::paths;
use crate::position::{CommitNumber, SegmentNumber};

/// The segment files of one shard's log.
pub trait LogSource {
    /// The numbers of all segment files, in any order.
    ///
    /// # Errors
    /// The listing failed.
    fn segments(&mut self) -> io::Result<Vec<SegmentNumber>>;

    /// Bytes of the file.
    ///
    /// # Errors
    /// The file cannot be looked at.
    fn len(&mut self, number: SegmentNumber) -> io::Result<u64>;

    /// Fills as much of `buf` as the file has from `offset` on and returns how much; less
    /// than `buf` only at the end of the file.
    ///
    /// # Errors
    /// The read failed.
    fn read(&mut self, number: SegmentNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Whether segments are removed only when a snapshot covers them.
    fn keeps_snapshots(&self) -> bool {
        false
    }

    /// The commits that are covered by snapshots, in any order.
    ///
    /// # Errors
    /// The listing failed.
    fn snapshots(&mut self) -> io::Result<Vec<CommitNumber>> {
        Ok(Vec::new())
    }

    /// The bytes of a snapshot.
    ///
    /// # Errors
    /// The read failed.
    fn snapshot(&mut self, covered: CommitNumber) -> io::Result<Vec<u8>> {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no snapshot of commit {covered}")))
    }

    /// The second copy of the snapshot of commit 0, if the log began with one.
    ///
    /// # Errors
    /// The read failed.
    fn base_copy(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Damage that was noted by a repair, as it is said.
    ///
    /// # Errors
    /// The read failed.
    fn known_damage(&mut self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// The bytes of a segment's index, if it has one.
    ///
    /// # Errors
    /// The read failed.
    fn index(&mut self, _number: SegmentNumber) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

const KNOWN_DAMAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The directory of a shard.
#[derive(Debug)]
pub struct DirSource<F = RealFiles> {
    dir: PathBuf,
    files: F,
}

impl DirSource {
    /// Reads the segments in `shard_dir`, through the page cache.
    #[must_use]
    pub fn new(shard_dir: &Path) -> Self {
        Self::on(RealFiles::default(), shard_dir)
    }
}

impl<F: Files> DirSource<F> {
    /// Reads the segments in `shard_dir` of `files`.
    pub fn on(files: F, shard_dir: &Path) -> Self {
        Self { dir: shard_dir.to_owned(), files }
    }

    fn read_if_there(&mut self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match self.files.read_all(path, u64::MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }
}

impl<F: Files> LogSource for DirSource<F> {
    fn segments(&mut self) -> io::Result<Vec<SegmentNumber>> {
        let names = self.files.list(&self.dir)?;
        Ok(names.iter().filter_map(|name| paths::segment_number(name)).collect())
    }

    fn len(&mut self, number: SegmentNumber) -> io::Result<u64> {
        self.files.len(&paths::segment_path(&self.dir, number))
    }

    fn read(&mut self, number: SegmentNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.files.read(&paths::segment_path(&self.dir, number), offset, buf)
    }

    fn keeps_snapshots(&self) -> bool {
        true
    }

    fn snapshots(&mut self) -> io::Result<Vec<CommitNumber>> {
        let names = self.files.list(&self.dir)?;
        Ok(names.iter().filter_map(|name| paths::snapshot_commit(name)).collect())
    }

    fn snapshot(&mut self, covered: CommitNumber) -> io::Result<Vec<u8>> {
        self.files.read_all(&paths::snapshot_path(&self.dir, covered), u64::MAX)
    }

    fn known_damage(&mut self) -> io::Result<Vec<String>> {
        match self.files.read_all(&self.dir.join(paths::KNOWN_DAMAGE), KNOWN_DAMAGE_BYTES_MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => Ok(String::from_utf8_lossy(&read?).lines().map(str::to_owned).collect()),
        }
    }

    fn base_copy(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.read_if_there(&self.dir.join(paths::BASE_COPY))
    }

    fn index(&mut self, number: SegmentNumber) -> io::Result<Option<Vec<u8>>> {
        self.read_if_there(&paths::index_path(&self.dir, number))
    }
}
