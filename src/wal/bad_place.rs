//! Tells what an interrupted write leaves from damage.

use super::commit::CommitFault;
use crate::limits::{COMMIT_BYTES_MAX, LOG_BLOCK};
use crate::position::{CommitNumber, SegmentNumber};

const BLOCK: u64 = LOG_BLOCK as u64;

/// A place where a commit should start and none does.
pub(super) struct BadPlace {
    pub(super) segment: SegmentNumber,
    pub(super) offset: u64,
    pub(super) fault: CommitFault,
    /// End of the last block from there on that is not zero.
    pub(super) content_end: u64,
    /// Whether a commit header follows later, valid or not.
    header_follows: bool,
    /// Whether the segment has no valid commit at all.
    pub(super) whole_segment: bool,
}

impl BadPlace {
    pub(super) fn new(segment: SegmentNumber, offset: u64, fault: CommitFault) -> Self {
        let mut place = Self {
            segment,
            offset,
            fault,
            content_end: offset,
            header_follows: false,
            whole_segment: false,
        };
        place.see(offset, fault);
        place
    }

    pub(super) fn see(&mut self, offset: u64, fault: CommitFault) {
        if fault != CommitFault::End {
            self.content_end = offset + BLOCK;
        }
        let header = matches!(
            fault,
            CommitFault::Torn { .. }
                | CommitFault::Rotten { .. }
                | CommitFault::BadHeader { salted: true, .. }
        );
        self.header_follows |= header && offset > self.offset;
    }

    /// Number of the commit that starts here, if its header is valid.
    pub(super) fn number(&self) -> Option<CommitNumber> {
        match self.fault {
            CommitFault::Torn { number, .. } | CommitFault::Rotten { number, .. } => Some(number),
            _ => None,
        }
    }

    pub(super) fn has_content(&self) -> bool {
        self.content_end > self.offset
    }

    /// Whether one interrupted write explains it, given the last valid commit before it. At
    /// most one write is in flight, so whatever follows it was never written.
    pub(super) fn is_torn(&self, last: Option<CommitNumber>) -> bool {
        let written = self.content_end - self.offset;
        if self.header_follows {
            return false;
        }
        match self.fault {
            CommitFault::Torn { number, total_len } => {
                written <= total_len as u64 && last.is_none_or(|last| number.0 == last.0 + 1)
            }
            CommitFault::End | CommitFault::Headless => written <= COMMIT_BYTES_MAX as u64,
            _ => false,
        }
    }
}
