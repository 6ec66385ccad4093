//! What a simulated log holds, for an oracle that must know what may be missing.

use std::borrow::Cow;
use std::path::Path;

use super::files::{Inode, SimFiles};
use crate::limits::LOG_BLOCK;
use crate::position::{Handle, Seq};
use crate::wal::{CommitFault, SegmentHeader, decode_commit};

impl SimFiles {
    /// Tells of each run of a segment: the place of its commit, its group, its first and its
    /// last message.
    pub fn runs(&self, path: &Path, mut tell: impl FnMut(u64, Handle, Seq, Seq)) {
        let inner = self.inner();
        let Ok(file) = inner.file(path) else { return };
        let Ok(header) = SegmentHeader::decode(&file.data) else { return };
        let mut at = LOG_BLOCK;
        while at < file.data.len() {
            let bytes = file.commit_bytes(at, header.salt);
            // What comes after a commit that rotted is read all the same.
            let Ok(commit) = decode_commit(&bytes, header.salt) else {
                at += LOG_BLOCK;
                continue;
            };
            let runs = commit.runs().filter(|run| run.has_messages());
            runs.for_each(|run| tell(at as u64, run.handle, run.first, run.last()));
            at += commit.total_len;
        }
    }

    /// Where the commit at `start` ends.
    pub fn commit_end(&self, path: &Path, start: u64) -> u64 {
        let inner = self.inner();
        let Ok(file) = inner.file(path) else { return start };
        let Ok(header) = SegmentHeader::decode(&file.data) else { return start };
        let bytes = file.commit_bytes(start as usize, header.salt);
        let commit = decode_commit(&bytes, header.salt);
        commit.map_or(start, |commit| start + commit.total_len as u64)
    }
}

impl Inode {
    /// The bytes from `at` on that a commit there needs. Up to the length of the file, what was
    /// never written reads as zeros: a torn commit whose missing sectors are zeros is whole.
    fn commit_bytes(&self, at: usize, salt: u64) -> Cow<'_, [u8]> {
        let mut bytes = Cow::Borrowed(self.data.get(at..).unwrap_or_default());
        while let Err(CommitFault::Incomplete { need }) = decode_commit(&bytes, salt)
            && (at + need) as u64 <= self.len
        {
            bytes.to_mut().resize(need, 0);
        }
        bytes
    }
}
