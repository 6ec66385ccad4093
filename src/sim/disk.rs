//! The simulated disk of one shard: segment files in memory. What a completed write left is
//! durable; a write that a crash or an error interrupts leaves any of its sectors.

use std::collections::BTreeMap;
use std::io;

use super::rng::Rng;
use crate::limits::{LOG_BLOCK, LOG_SECTOR};
use crate::position::{Handle, NodeId, SegmentNumber, Seq, ShardId};
use crate::ring::LogBuf;
use crate::wal::{LogSource, SegmentHeader, decode_commit};

/// A segment file. Only what was written is kept; zeros follow up to `bytes`.
#[derive(Debug)]
struct File {
    bytes: u64,
    data: Vec<u8>,
}

/// A write that has not completed.
#[derive(Debug)]
struct Write {
    segment: SegmentNumber,
    offset: u64,
    buf: LogBuf,
}

/// The segment files of one shard.
#[derive(Debug)]
pub(super) struct Disk {
    node: NodeId,
    shard: ShardId,
    files: BTreeMap<SegmentNumber, File>,
    writing: Option<Write>,
}

impl Disk {
    pub fn new(node: NodeId, shard: ShardId) -> Self {
        Self { node, shard, files: BTreeMap::new(), writing: None }
    }

    pub fn create(&mut self, number: SegmentNumber, salt: u64, bytes: u64, created_ms: u64) {
        let header =
            SegmentHeader { node: self.node, shard: self.shard, number, salt, bytes, created_ms };
        let old = self.files.insert(number, File { bytes, data: header.encode().to_vec() });
        assert!(old.is_none(), "segment {number} was created twice");
    }

    pub fn begin_write(&mut self, segment: SegmentNumber, offset: u64, buf: LogBuf) {
        assert!(self.writing.is_none(), "two log writes in flight");
        let file = self.files.get(&segment);
        let fits = file.is_some_and(|file| offset + buf.len() as u64 <= file.bytes);
        assert!(fits, "write of {} bytes at {offset} of segment {segment}", buf.len());
        assert!(offset.is_multiple_of(LOG_BLOCK as u64) && buf.len().is_multiple_of(LOG_BLOCK));
        let written = file.map_or(0, |file| file.data.len() as u64);
        assert!(offset >= written, "an acknowledged block of segment {segment} is written again");
        self.writing = Some(Write { segment, offset, buf });
    }

    /// The write is on disk as a whole.
    pub fn finish_write(&mut self) -> Option<LogBuf> {
        let write = self.writing.take()?;
        self.put(write.segment, write.offset, write.buf.as_slice());
        Some(write.buf)
    }

    /// The write failed or the machine died: each sector is there or not. Returns how many
    /// of how many sectors are there.
    pub fn tear_write(&mut self, rng: &mut Rng) -> Option<(LogBuf, usize, usize)> {
        let write = self.writing.take()?;
        let sectors = write.buf.len() / LOG_SECTOR;
        // All, none, the first, the last, and any subset are all worth having.
        let shape = rng.below(8);
        let cut = rng.index(sectors + 1);
        let mut there = 0;
        for (index, sector) in write.buf.as_slice().chunks_exact(LOG_SECTOR).enumerate() {
            let keep = match shape {
                0 => true,
                1 => false,
                2 | 3 => index < cut,
                4 => index >= cut,
                _ => rng.flip(),
            };
            if keep {
                there += 1;
                self.put(write.segment, write.offset + (index * LOG_SECTOR) as u64, sector);
            }
        }
        Some((write.buf, there, sectors))
    }

    fn put(&mut self, segment: SegmentNumber, offset: u64, bytes: &[u8]) {
        let Some(file) = self.files.get_mut(&segment) else { return };
        let end = offset as usize + bytes.len();
        if file.data.len() < end {
            file.data.resize(end.next_multiple_of(LOG_BLOCK), 0);
        }
        file.data[offset as usize..end].copy_from_slice(bytes);
    }

    /// What a log read returns; `None` if the file is not there. Of a write in flight it may
    /// see nothing, all, or any sectors.
    pub fn read_log(
        &self,
        segment: SegmentNumber,
        offset: u64,
        len: usize,
        rng: &mut Rng,
    ) -> Option<LogBuf> {
        let file = self.files.get(&segment)?;
        let len = len.min(file.bytes.saturating_sub(offset) as usize);
        let mut buf = LogBuf::with_capacity(len);
        buf.set_len(len);
        file.copy(offset, buf.as_mut_slice());
        if let Some(write) = self.writing.as_ref().filter(|write| write.segment == segment) {
            let share = [0, 500_000, 1_000_000][rng.index(3)];
            for (index, sector) in write.buf.as_slice().chunks_exact(LOG_SECTOR).enumerate() {
                let at = write.offset + (index * LOG_SECTOR) as u64;
                if at >= offset && at < offset + len as u64 && rng.chance(share) {
                    let at = (at - offset) as usize;
                    buf.as_mut_slice()[at..at + LOG_SECTOR].copy_from_slice(sector);
                }
            }
        }
        Some(buf)
    }

    /// Says up to which message of each group a segment goes.
    pub fn last_messages(&self, number: SegmentNumber, mut tell: impl FnMut(Handle, Seq)) {
        let Some(file) = self.files.get(&number) else { return };
        let Ok(header) = SegmentHeader::decode(&file.data) else { return };
        let mut at = LOG_BLOCK;
        while let Some(rest) = file.data.get(at..)
            && let Ok(commit) = decode_commit(rest, header.salt)
        {
            commit
                .runs()
                .filter(|run| run.has_messages())
                .for_each(|run| tell(run.handle, run.last()));
            at += commit.total_len;
        }
    }

    pub fn remove(&mut self, number: SegmentNumber) {
        self.files.remove(&number);
    }
}

impl File {
    fn copy(&self, offset: u64, out: &mut [u8]) {
        let offset = (offset as usize).min(self.data.len());
        let there = (self.data.len() - offset).min(out.len());
        out[..there].copy_from_slice(&self.data[offset..offset + there]);
        out[there..].fill(0);
    }
}

impl LogSource for Disk {
    fn segments(&mut self) -> io::Result<Vec<SegmentNumber>> {
        Ok(self.files.keys().copied().collect())
    }

    fn len(&mut self, number: SegmentNumber) -> io::Result<u64> {
        self.files.get(&number).map(|file| file.bytes).ok_or(io::ErrorKind::NotFound.into())
    }

    fn read(&mut self, number: SegmentNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.files.get(&number).ok_or(io::ErrorKind::NotFound)?;
        let len = buf.len().min(file.bytes.saturating_sub(offset) as usize);
        file.copy(offset, &mut buf[..len]);
        Ok(len)
    }
}
