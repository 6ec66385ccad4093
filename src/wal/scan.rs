//! Walks a segment block by block: over whole commits where they are valid, over single
//! blocks where they are not.

use std::io;

use super::commit::{Commit, CommitFault, commit_len_at, decode_commit};
use super::source::LogSource;
use crate::limits::{COMMIT_BYTES_MAX, LOG_BLOCK};
use crate::position::SegmentNumber;

const WINDOW: usize = 2 * COMMIT_BYTES_MAX;

/// Bytes of a segment file, a window at a time. Past the end of the file there are zeros, so
/// that a file cut short reads like one whose rest was never written.
pub(super) struct Window {
    buf: Vec<u8>,
    segment: SegmentNumber,
    start: u64,
    end: u64,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { buf: vec![0; WINDOW], segment: SegmentNumber(0), start: 0, end: 0 }
    }

    /// At least `need` bytes of `segment` from `offset` on; `need` is at most a window.
    pub(super) fn at(
        &mut self,
        source: &mut impl LogSource,
        segment: SegmentNumber,
        offset: u64,
        need: usize,
    ) -> io::Result<&[u8]> {
        let inside =
            segment == self.segment && offset >= self.start && offset + need as u64 <= self.end;
        if !inside {
            // A failed read leaves the window empty.
            self.end = self.start;
            let filled = source.read(segment, offset, &mut self.buf)?;
            let end = filled.next_multiple_of(LOG_BLOCK).max(need);
            self.buf[filled..end].fill(0);
            self.segment = segment;
            self.start = offset;
            self.end = offset + end as u64;
        }
        Ok(&self.buf[(offset - self.start) as usize..(self.end - self.start) as usize])
    }
}

/// What is at one place of a segment.
pub(super) struct Found<'a> {
    pub(super) offset: u64,
    pub(super) what: Result<Commit<'a>, CommitFault>,
}

/// The walk over one segment, from the block after its header.
pub(super) struct Scan<'w> {
    window: &'w mut Window,
    segment: SegmentNumber,
    salt: u64,
    offset: u64,
    end: u64,
}

impl<'w> Scan<'w> {
    pub(super) fn new(
        window: &'w mut Window,
        source: &mut impl LogSource,
        segment: SegmentNumber,
        salt: u64,
    ) -> io::Result<Self> {
        let end = source.len(segment)?.next_multiple_of(LOG_BLOCK as u64);
        Ok(Self { window, segment, salt, offset: LOG_BLOCK as u64, end })
    }

    pub(super) fn next(&mut self, source: &mut impl LogSource) -> io::Result<Option<Found<'_>>> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let offset = self.offset;
        let block = self.window.at(source, self.segment, offset, LOG_BLOCK)?;
        let need = commit_len_at(block, self.salt);
        let bytes = self.window.at(source, self.segment, offset, need)?;
        let what = decode_commit(bytes, self.salt);
        self.offset += what.as_ref().map_or(LOG_BLOCK, |commit| commit.total_len) as u64;
        Ok(Some(Found { offset, what }))
    }
}
