//! Reads and writes of log segments on the ring: O_DIRECT, and durable when they complete.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use slab::Slab;

use super::LogBuf;
use crate::position::SegmentNumber;
use crate::wal::paths::segment_path;

/// Segments kept open: the one that is written and those members catch up from.
const OPEN_MAX: usize = 16;

/// A read or a write with the kernel. Holds the file open and the memory in place.
pub(super) struct LogOp {
    /// Token of a read.
    pub token: u64,
    pub buf: LogBuf,
    _file: Rc<File>,
}

/// The log files of a shard.
pub(super) struct LogIo {
    dir: PathBuf,
    /// Most recently used last.
    open: Vec<(SegmentNumber, Rc<File>)>,
    ops: Slab<LogOp>,
}

impl LogIo {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, open: Vec::with_capacity(OPEN_MAX), ops: Slab::new() }
    }

    /// The entry of a write; its slot goes into the user data.
    ///
    /// # Errors
    /// The errno of the open, with the buffer.
    pub fn write(
        &mut self,
        segment: SegmentNumber,
        offset: u64,
        buf: LogBuf,
    ) -> Result<(squeue::Entry, u32), (i32, LogBuf)> {
        let file = match self.file(segment) {
            Ok(file) => file,
            Err(e) => return Err((errno(&e), buf)),
        };
        let bytes = buf.as_slice();
        let entry = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        let slot = self.ops.insert(LogOp { token: 0, buf, _file: file });
        Ok((entry, slot as u32))
    }

    /// The entry of a read; its slot goes into the user data.
    ///
    /// # Errors
    /// The errno of the open.
    pub fn read(
        &mut self,
        token: u64,
        segment: SegmentNumber,
        offset: u64,
        len: usize,
    ) -> Result<(squeue::Entry, u32), i32> {
        let file = self.file(segment).map_err(|e| errno(&e))?;
        let mut buf = LogBuf::with_capacity(len);
        buf.set_len(len);
        let bytes = buf.as_mut_slice();
        let entry = opcode::Read::new(Fd(file.as_raw_fd()), bytes.as_mut_ptr(), len as u32)
            .offset(offset)
            .build();
        let slot = self.ops.insert(LogOp { token, buf, _file: file });
        Ok((entry, slot as u32))
    }

    /// Takes a finished read or write.
    pub fn finish(&mut self, slot: u32) -> Option<LogOp> {
        self.ops.try_remove(slot as usize)
    }

    /// Reads and writes that are not finished.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Closes these segments, so that removing them gives their space back.
    pub fn forget(&mut self, segments: &[SegmentNumber]) {
        self.open.retain(|(number, _)| !segments.contains(number));
    }

    fn file(&mut self, number: SegmentNumber) -> io::Result<Rc<File>> {
        if let Some(at) = self.open.iter().rposition(|(n, _)| *n == number) {
            let entry = self.open.remove(at);
            let file = entry.1.clone();
            self.open.push(entry);
            return Ok(file);
        }
        let file = Rc::new(open_direct(&segment_path(&self.dir, number))?);
        if self.open.len() == OPEN_MAX {
            self.open.remove(0);
        }
        self.open.push((number, file.clone()));
        Ok(file)
    }
}

/// Opens for O_DIRECT, or through the page cache where the file system cannot do that;
/// RWF_DSYNC makes a write durable either way.
fn open_direct(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => options.open(path),
        other => other,
    }
}

/// The errno of an error, EIO if it has none.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
