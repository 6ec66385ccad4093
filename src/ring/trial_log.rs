//! Ways to bring a block of a log to the disk, side by side, with nothing else around them.
//! `benches/commit.rs` measures with it; the engine has one of the ways.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::ReadWriteFlags;

use super::LogBuf;
use super::uring::{Block, Uring};

/// A way to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialCommit {
    /// One write with RWF_DSYNC: the engine's way.
    Dsync,
    /// The same from a registered buffer.
    DsyncFixed,
    /// A write, and a FSYNC (data only) linked to it.
    LinkedSync,
    /// The write alone, which is not durable: what the rest is for the flush.
    NotDurable,
    /// `pwritev2` with RWF_DSYNC, without io_uring.
    Blocking,
}

/// How to wait for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialWait {
    /// Asleep, as the engine does when it has nothing else to do.
    Sleep,
    /// Looking again and again.
    Spin,
}

/// A file to write to.
pub struct TrialLog {
    // Dropped first: afterwards the kernel touches nothing of the rest.
    uring: Uring,
    file: File,
    buf: LogBuf,
}

impl TrialLog {
    /// Commits of `block` bytes to a file that was opened with O_DIRECT.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(file: File, block: usize) -> io::Result<Self> {
        let uring = Uring::new(8, 16)?;
        let mut buf = LogBuf::with_capacity(block);
        buf.set_len(block);
        let bytes = buf.as_mut_slice();
        let registered = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: the buffer does not move and is dropped after the ring.
        unsafe { uring.submitter().register_buffers(&[registered])? };
        Ok(Self { uring, file, buf })
    }

    /// Writes one block and waits until it is where it is to be.
    ///
    /// # Errors
    /// What the kernel says; `WriteZero` for a short write.
    pub fn commit(&mut self, how: TrialCommit, offset: u64, wait: TrialWait) -> io::Result<()> {
        self.buf.as_mut_slice()[0] ^= 1;
        if how == TrialCommit::Blocking {
            let bytes = [io::IoSlice::new(self.buf.as_slice())];
            let flags = ReadWriteFlags::DSYNC;
            let written = rustix::io::pwritev2(self.file.as_fd(), &bytes, offset, flags)?;
            return self.whole(written as i32);
        }
        let (fd, bytes) = (Fd(self.file.as_raw_fd()), self.buf.as_slice());
        let write = opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32).offset(offset);
        let (entry, mut open) = match how {
            TrialCommit::DsyncFixed => {
                let write = opcode::WriteFixed::new(fd, bytes.as_ptr(), bytes.len() as u32, 0);
                (write.offset(offset).rw_flags(libc::RWF_DSYNC).build(), 1)
            }
            TrialCommit::LinkedSync => (write.build().flags(squeue::Flags::IO_LINK), 2),
            TrialCommit::NotDurable => (write.build(), 1),
            TrialCommit::Dsync | TrialCommit::Blocking => {
                (write.rw_flags(libc::RWF_DSYNC).build(), 1)
            }
        };
        // SAFETY: the buffer lives as long as the ring and is not touched before the write ends.
        unsafe { self.uring.push(&entry.user_data(0)) };
        if how == TrialCommit::LinkedSync {
            let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build().user_data(1);
            // SAFETY: the entry points to no memory.
            unsafe { self.uring.push(&sync) };
        }
        let mut result = Ok(());
        while open > 0 {
            self.uring.enter(if wait == TrialWait::Sleep { Block::Forever } else { Block::No });
            let done = self.uring.take_done();
            for cqe in &done {
                open -= 1;
                let ended = match cqe.user_data {
                    0 => self.whole(cqe.result),
                    _ if cqe.result < 0 => Err(io::Error::from_raw_os_error(-cqe.result)),
                    _ => Ok(()),
                };
                result = result.and(ended);
            }
            self.uring.put_back(done);
        }
        result
    }

    /// A write on a ring that polls the disk (IORING_SETUP_IOPOLL).
    ///
    /// # Errors
    /// What the kernel says, `EOPNOTSUPP` if the disk's driver has no queue to poll.
    pub fn commit_polled(&mut self, offset: u64) -> io::Result<()> {
        let mut ring: IoUring = IoUring::builder().setup_iopoll().build(8)?;
        let (fd, bytes) = (Fd(self.file.as_raw_fd()), self.buf.as_slice());
        let write = opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32).offset(offset);
        // SAFETY: the buffer outlives the wait for the end of the write.
        unsafe { ring.submission().push(&write.rw_flags(libc::RWF_DSYNC).build()) }
            .map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let done = ring.completion().next();
        done.map_or(Err(io::ErrorKind::UnexpectedEof.into()), |cqe| self.whole(cqe.result()))
    }

    fn whole(&self, written: i32) -> io::Result<()> {
        match written {
            errno if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
            bytes if bytes as usize == self.buf.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

impl Drop for TrialLog {
    fn drop(&mut self) {
        self.uring.cancel_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_way_writes_the_block() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = TrialLog::new(file.reopen().unwrap(), 4096).unwrap();
        let ways = [
            TrialCommit::Dsync,
            TrialCommit::DsyncFixed,
            TrialCommit::LinkedSync,
            TrialCommit::NotDurable,
            TrialCommit::Blocking,
        ];
        for (nth, how) in ways.into_iter().enumerate() {
            let wait = if nth % 2 == 0 { TrialWait::Sleep } else { TrialWait::Spin };
            log.commit(how, nth as u64 * 4096, wait).unwrap();
            let written = std::fs::read(file.path()).unwrap();
            assert_eq!(written.len(), (nth + 1) * 4096, "{how:?}");
            assert_eq!(written[nth * 4096..], *log.buf.as_slice(), "{how:?}");
        }
    }
}
