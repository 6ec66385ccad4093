//! Where in the log a group's messages are: sparse, so that it costs little per group.

use crate::position::{SegmentNumber, Seq};

/// Distance between two entries of one segment, at first.
pub const INDEX_STRIDE: u64 = 64 * 1024;
/// With more entries than this the distance doubles and entries in between go.
pub const INDEX_ENTRIES_MAX: usize = 1024;

/// A place in a shard's log: where a commit starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos {
    /// The segment.
    pub segment: SegmentNumber,
    /// Byte offset in its file.
    pub offset: u64,
}

/// The commits from which reading a group can start.
///
/// The first commit that a group has in a segment always has an entry, so that forgetting
/// old segments never loses the way to what is kept.
#[derive(Clone, Debug)]
pub struct GroupIndex {
    entries: Vec<(Seq, LogPos)>,
    stride: u64,
}

impl Default for GroupIndex {
    fn default() -> Self {
        Self { entries: Vec::new(), stride: INDEX_STRIDE }
    }
}

impl GroupIndex {
    /// Says that the commit at `pos` holds messages of the group from `first` on. Called
    /// with growing positions.
    pub fn note(&mut self, first: Seq, pos: LogPos) {
        if let Some((last_seq, last)) = self.entries.last() {
            debug_assert!(*last <= pos && *last_seq <= first, "the log only grows");
            if !apart(*last, pos, self.stride) {
                return;
            }
        }
        self.entries.push((first, pos));
        if self.entries.len() > INDEX_ENTRIES_MAX {
            self.thin();
        }
    }

    fn thin(&mut self) {
        self.stride *= 2;
        let stride = self.stride;
        self.entries.dedup_by(|later, kept| !apart(kept.1, later.1, stride));
    }

    /// Where to start reading for `seq`: the last known commit that starts at or before it,
    /// else the oldest one known.
    #[must_use]
    pub fn find(&self, seq: Seq) -> Option<LogPos> {
        let after = self.entries.partition_point(|(first, _)| *first <= seq);
        self.entries.get(after.saturating_sub(1)).map(|(_, pos)| *pos)
    }

    /// Forgets everything in segments before `segment`.
    pub fn forget_before(&mut self, segment: SegmentNumber) {
        let keep_from = self.entries.partition_point(|(_, pos)| pos.segment < segment);
        self.entries.drain(..keep_from);
    }

    /// Whether no message of the group is known to be in the log.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The oldest message known to be in the log.
    #[must_use]
    pub fn first(&self) -> Option<Seq> {
        self.entries.first().map(|(seq, _)| *seq)
    }
}

fn apart(a: LogPos, b: LogPos, stride: u64) -> bool {
    a.segment != b.segment || b.offset >= a.offset + stride
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn pos(segment: u64, offset: u64) -> LogPos {
        LogPos { segment: SegmentNumber(segment), offset }
    }

    #[test]
    fn find_returns_the_last_entry_at_or_before_the_seq_else_the_oldest() {
        let mut index = GroupIndex::default();
        assert_eq!(index.find(Seq(1)), None);
        index.note(Seq(10), pos(2, 4096));
        index.note(Seq(20), pos(2, 8192));
        index.note(Seq(30), pos(2, 4096 + INDEX_STRIDE));
        index.note(Seq(40), pos(3, 4096));
        assert_eq!(index.find(Seq(1)), Some(pos(2, 4096)));
        assert_eq!(index.find(Seq(25)), Some(pos(2, 4096)), "an entry too close is not kept");
        assert_eq!(index.find(Seq(30)), Some(pos(2, 4096 + INDEX_STRIDE)));
        assert_eq!(index.find(Seq(1000)), Some(pos(3, 4096)));
        index.forget_before(SegmentNumber(3));
        assert_eq!(index.first(), Some(Seq(40)));
        index.forget_before(SegmentNumber(4));
        assert!(index.is_empty());
    }

    #[test]
    fn entries_stay_bounded_and_each_segment_keeps_its_first() {
        let mut index = GroupIndex::default();
        let mut seq = 1;
        for segment in 1..=4 {
            for step in 0..4_000 {
                index.note(Seq(seq), pos(segment, 4096 + step * INDEX_STRIDE));
                seq += 1;
                assert!(index.entries.len() <= INDEX_ENTRIES_MAX);
            }
        }
        for segment in 1..=4 {
            index.forget_before(SegmentNumber(segment));
            assert_eq!(index.first(), Some(Seq((segment - 1) * 4_000 + 1)));
        }
    }
}
