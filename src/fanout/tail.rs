//! The tail of a group on one shard: the newest published segments, in order.

use std::collections::VecDeque;

use super::SegmentRef;
use crate::position::Seq;

/// Names a place in a [`Tail`]: the count of segments that were ever pushed before it.
/// A member's cursor is the ordinal of the next segment it needs.
pub type Ordinal = u64;

/// Deque of immutable segments. Each one starts where its predecessor ended.
#[derive(Debug, Default)]
pub struct Tail {
    segments: VecDeque<SegmentRef>,
    base: Ordinal,
    bytes: u64,
}

impl Tail {
    /// Ordinal of the oldest segment still here.
    #[must_use]
    pub fn base(&self) -> Ordinal {
        self.base
    }

    /// Ordinal that the next segment will get.
    #[must_use]
    pub fn end(&self) -> Ordinal {
        self.base + self.segments.len() as u64
    }

    /// Bytes of all segments here.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The segment at `ordinal`, if it is here.
    #[must_use]
    pub fn get(&self, ordinal: Ordinal) -> Option<&SegmentRef> {
        self.segments.get(usize::try_from(ordinal.checked_sub(self.base)?).ok()?)
    }

    /// The segments from `ordinal` on; none if that one is not here.
    pub fn from(&self, ordinal: Ordinal) -> impl Iterator<Item = &SegmentRef> {
        let skipped = ordinal.checked_sub(self.base).unwrap_or(u64::MAX);
        self.segments.range((skipped as usize).min(self.segments.len())..)
    }

    /// The oldest segment.
    #[must_use]
    pub fn front(&self) -> Option<&SegmentRef> {
        self.segments.front()
    }

    /// Appends the next segment.
    pub fn push(&mut self, segment: SegmentRef) {
        if let Some(back) = self.segments.back() {
            debug_assert_eq!(back.last().next(), segment.first());
        }
        self.bytes += segment.bytes().len() as u64;
        self.segments.push_back(segment);
    }

    /// Drops the oldest segment; members whose cursor was on it are behind from now on.
    /// Returns its bytes.
    pub fn evict(&mut self) -> Option<u64> {
        let segment = self.segments.pop_front()?;
        let bytes = segment.bytes().len() as u64;
        self.base += 1;
        self.bytes -= bytes;
        segment.mark_evicted();
        Some(bytes)
    }

    /// Makes every cursor on this tail be behind: what comes next does not start where the
    /// last segment ended. Returns the bytes dropped.
    pub fn break_off(&mut self) -> u64 {
        let mut dropped = 0;
        while let Some(bytes) = self.evict() {
            dropped += bytes;
        }
        self.base += 1;
        dropped
    }

    /// Ordinal of the segment that holds `seq`.
    #[must_use]
    pub fn ordinal_with(&self, seq: Seq) -> Option<Ordinal> {
        let index = self.segments.partition_point(|segment| segment.last() < seq);
        let segment = self.segments.get(index)?;
        (segment.first() <= seq).then_some(self.base + index as u64)
    }

    /// Ordinal of the segment whose first message is `seq`.
    #[must_use]
    pub fn ordinal_of(&self, seq: Seq) -> Option<Ordinal> {
        let index = self.segments.binary_search_by_key(&seq, |segment| segment.first()).ok()?;
        Some(self.base + index as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fanout::{PinGauge, Segment};
    use bytes::Bytes;

    fn segment(gauge: &PinGauge, first: u64, last: u64) -> SegmentRef {
        Segment::new(Bytes::from(vec![0; 10]), Seq(first), Seq(last), gauge)
    }

    #[test]
    fn a_cursor_on_an_evicted_segment_is_below_base() {
        let gauge = PinGauge::default();
        let mut tail = Tail::default();
        tail.push(segment(&gauge, 1, 3));
        tail.push(segment(&gauge, 4, 4));
        assert_eq!(tail.ordinal_of(Seq(4)), Some(1));
        assert_eq!(tail.ordinal_of(Seq(2)), None);
        assert_eq!(
            [0, 1, 3, 4, 5].map(|seq| tail.ordinal_with(Seq(seq))),
            [None, Some(0), Some(0), Some(1), None]
        );
        assert_eq!(tail.evict(), Some(10));
        assert_eq!((tail.base(), tail.end(), tail.bytes()), (1, 2, 10));
        assert!(tail.get(0).is_none());
    }

    #[test]
    fn a_break_puts_a_cursor_at_the_end_behind() {
        let gauge = PinGauge::default();
        let mut tail = Tail::default();
        tail.push(segment(&gauge, 1, 3));
        let at_end = tail.end();
        tail.break_off();
        tail.push(segment(&gauge, 9, 9));
        assert!(at_end < tail.base());
    }

    #[test]
    fn pinned_bytes_count_only_segments_that_left_their_tail_and_are_held() {
        let gauge = PinGauge::default();
        let mut tail = Tail::default();
        tail.push(segment(&gauge, 1, 1));
        let held = tail.get(0).unwrap().clone();
        assert_eq!(gauge.bytes(), 0);
        tail.evict();
        assert_eq!(gauge.bytes(), 10);
        drop(held);
        assert_eq!(gauge.bytes(), 0);
    }
}
