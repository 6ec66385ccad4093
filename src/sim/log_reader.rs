//! What a simulated log holds, for an oracle that must know what may be missing.

use std::path::Path;

use super::files::SimFiles;
use crate::limits::LOG_BLOCK;
use crate::position::{Handle, Seq};
use crate::wal::{SegmentHeader, decode_commit};

impl SimFiles {
    /// Tells of each run of a segment: the place of its commit, its group, its first and its
    /// last message.
    pub fn runs(&self, path: &Path, mut tell: impl FnMut(u64, Handle, Seq, Seq)) {
        let inner = self.inner();
        let Ok(file) = inner.file(path) else { return };
        let Ok(header) = SegmentHeader::decode(&file.data) else { return };
        let mut at = LOG_BLOCK;
        while let Some(rest) = file.data.get(at..).filter(|rest| !rest.is_empty()) {
            // What comes after a commit that rotted is read all the same.
            let Ok(commit) = decode_commit(rest, header.salt) else {
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
        let commit = file.data.get(start as usize..).map(|rest| decode_commit(rest, header.salt));
        commit.and_then(Result::ok).map_or(start, |commit| start + commit.total_len as u64)
    }
}
