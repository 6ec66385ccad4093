//! Where recovery reads a log from: a directory, or a simulated disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::paths;
use crate::position::SegmentNumber;

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
}

/// The real directory of a shard, read through the page cache.
#[derive(Debug)]
pub struct DirSource {
    dir: PathBuf,
    open: Option<(SegmentNumber, File)>,
}

impl DirSource {
    /// Reads the segments in `shard_dir`.
    #[must_use]
    pub fn new(shard_dir: &Path) -> Self {
        Self { dir: shard_dir.to_owned(), open: None }
    }

    fn file(&mut self, number: SegmentNumber) -> io::Result<&File> {
        let file = match self.open.take() {
            Some((open, file)) if open == number => file,
            _ => File::open(paths::segment_path(&self.dir, number))?,
        };
        Ok(&self.open.insert((number, file)).1)
    }
}

impl LogSource for DirSource {
    fn segments(&mut self) -> io::Result<Vec<SegmentNumber>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(paths::segment_number));
        }
        Ok(numbers)
    }

    fn len(&mut self, number: SegmentNumber) -> io::Result<u64> {
        Ok(self.file(number)?.metadata()?.len())
    }

    fn read(&mut self, number: SegmentNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.file(number)?;
        let mut filled = 0;
        while filled < buf.len() {
            match file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}
