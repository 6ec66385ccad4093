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

/// What is known of the log from one commit of a group up to the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// First message of the group in that commit.
    pub first: Seq,
    /// Where the commit starts.
    pub pos: LogPos,
    /// Bytes that the group's messages take in the log from here up to the next entry.
    pub bytes: u64,
    /// Unix milliseconds of the newest of them.
    pub newest_ms: u64,
}

/// The commits from which reading a group can start, with what retention must know.
///
/// The first commit that a group has in a segment always has an entry, so that forgetting
/// old segments never loses the way to what is kept.
#[derive(Clone, Debug)]
pub struct GroupIndex {
    entries: Vec<IndexEntry>,
    stride: u64,
    /// Sum over all entries.
    bytes: u64,
}

impl Default for GroupIndex {
    fn default() -> Self {
        Self { entries: Vec::new(), stride: INDEX_STRIDE, bytes: 0 }
    }
}

impl GroupIndex {
    /// Says that the commit at `pos` holds `bytes` of the group's messages, from `first` on,
    /// the newest of them from `newest_ms`. Called with growing positions.
    pub fn note(&mut self, first: Seq, pos: LogPos, bytes: u64, newest_ms: u64) {
        self.add(IndexEntry { first, pos, bytes, newest_ms });
    }

    /// Appends what is known of a later part of the log, as [`GroupIndex::entries`] of another
    /// index gave it.
    pub fn add(&mut self, entry: IndexEntry) {
        self.bytes += entry.bytes;
        if let Some(last) = self.entries.last_mut() {
            debug_assert!(last.pos <= entry.pos && last.first <= entry.first, "the log only grows");
            if !apart(last.pos, entry.pos, self.stride) {
                last.bytes += entry.bytes;
                last.newest_ms = last.newest_ms.max(entry.newest_ms);
                return;
            }
        }
        self.entries.push(entry);
        if self.entries.len() > INDEX_ENTRIES_MAX {
            self.thin();
        }
    }

    fn thin(&mut self) {
        self.stride *= 2;
        let stride = self.stride;
        self.entries.dedup_by(|later, kept| {
            let near = !apart(kept.pos, later.pos, stride);
            if near {
                kept.bytes += later.bytes;
                kept.newest_ms = kept.newest_ms.max(later.newest_ms);
            }
            near
        });
    }

    /// Where to start reading for `seq`: the last known commit that starts at or before it,
    /// else the oldest one known.
    #[must_use]
    pub fn find(&self, seq: Seq) -> Option<LogPos> {
        let after = self.entries.partition_point(|entry| entry.first <= seq);
        self.entries.get(after.saturating_sub(1)).map(|entry| entry.pos)
    }

    /// Everything that is known, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The first known commit of the group that does not start before `place`.
    #[must_use]
    pub fn from_place(&self, place: LogPos) -> Option<LogPos> {
        let next = self.entries.partition_point(|entry| entry.pos < place);
        self.entries.get(next).map(|entry| entry.pos)
    }

    /// What is known of one segment, and the group's last message in it when its last one of
    /// all is `head`.
    #[must_use]
    pub fn in_segment(&self, segment: SegmentNumber, head: Seq) -> (&[IndexEntry], Seq) {
        let from = self.entries.partition_point(|entry| entry.pos.segment < segment);
        let to = self.entries.partition_point(|entry| entry.pos.segment <= segment);
        let last = self.entries.get(to).map_or(head, |next| Seq(next.first.0.saturating_sub(1)));
        (&self.entries[from..to], last)
    }

    /// Bytes of the group's messages in the log, as far as they are known.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets everything in segments before `segment`.
    pub fn forget_before(&mut self, segment: SegmentNumber) {
        let gone = self.entries.partition_point(|entry| entry.pos.segment < segment);
        self.forget(gone);
    }

    /// Forgets the oldest entries that retention does not keep: those beyond `bytes_max`, and
    /// those with nothing newer than `oldest_ms`. The newest entry is still written to, so
    /// `bytes_max` never takes it. Whether any went.
    pub fn trim(&mut self, bytes_max: Option<u64>, oldest_ms: Option<u64>) -> bool {
        let (mut gone, mut bytes) = (0, self.bytes);
        for (at, entry) in self.entries.iter().enumerate() {
            let old = oldest_ms.is_some_and(|oldest| entry.newest_ms < oldest);
            let over = bytes_max.is_some_and(|max| bytes > max) && at + 1 < self.entries.len();
            if !old && !over {
                break;
            }
            bytes -= entry.bytes;
            gone = at + 1;
        }
        self.forget(gone);
        gone > 0
    }

    fn forget(&mut self, count: usize) {
        for entry in self.entries.drain(..count) {
            self.bytes -= entry.bytes;
        }
    }

    /// The oldest segment that holds a message of the group.
    #[must_use]
    pub fn oldest_segment(&self) -> Option<SegmentNumber> {
        self.entries.first().map(|entry| entry.pos.segment)
    }

    /// Whether no message of the group is known to be in the log.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The oldest message known to be in the log.
    #[must_use]
    pub fn first(&self) -> Option<Seq> {
        self.entries.first().map(|entry| entry.first)
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
        index.note(Seq(10), pos(2, 4096), 10, 0);
        index.note(Seq(20), pos(2, 8192), 10, 0);
        index.note(Seq(30), pos(2, 4096 + INDEX_STRIDE), 10, 0);
        index.note(Seq(40), pos(3, 4096), 10, 0);
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
                index.note(Seq(seq), pos(segment, 4096 + step * INDEX_STRIDE), 10, 0);
                seq += 1;
                assert!(index.entries.len() <= INDEX_ENTRIES_MAX);
            }
        }
        for segment in 1..=4 {
            index.forget_before(SegmentNumber(segment));
            assert_eq!(index.first(), Some(Seq((segment - 1) * 4_000 + 1)));
        }
    }

    #[test]
    fn retention_takes_the_oldest_entries_by_bytes_and_by_age() {
        let mut index = GroupIndex::default();
        for step in 0..10u64 {
            // Two commits an entry.
            index.note(Seq(2 * step + 1), pos(1, 4096 + step * INDEX_STRIDE), 60, 100 * step);
            index.note(Seq(2 * step + 2), pos(1, 8192 + step * INDEX_STRIDE), 40, 100 * step + 50);
        }
        assert_eq!((index.entries().len(), index.bytes()), (10, 1_000));
        assert!(!index.trim(Some(1_000), Some(50)), "nothing is over");
        assert!(index.trim(Some(750), None));
        assert_eq!((index.first(), index.bytes()), (Some(Seq(7)), 700));
        assert!(index.trim(None, Some(450)));
        assert_eq!(index.first(), Some(Seq(9)), "an entry goes with its newest message");
        assert!(index.trim(Some(1), None));
        assert_eq!((index.first(), index.bytes()), (Some(Seq(19)), 100), "the newest stays");
        assert!(index.trim(None, Some(1_000)), "unless it is too old");
        assert!(index.is_empty() && index.bytes() == 0);
    }

    #[test]
    fn thinning_keeps_the_bytes() {
        let mut index = GroupIndex::default();
        for n in 0..5_000u64 {
            index.note(Seq(n + 1), pos(1, 4096 + n * INDEX_STRIDE), 3, n);
        }
        assert_eq!(index.bytes(), 15_000);
        assert_eq!(index.entries().iter().map(|e| e.bytes).sum::<u64>(), 15_000);
        assert!(index.entries().windows(2).all(|pair| pair[0].newest_ms < pair[1].first.0));
    }
}
