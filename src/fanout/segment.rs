//! A segment of a tail: whole DELIVER frames, encoded once, sent to every member as they are.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use crate::position::Seq;
use crate::ws::encode::Header;

/// Bytes of segments that left their tail but are still held by unfinished writes.
/// Local to a shard.
#[derive(Clone, Debug, Default)]
pub struct PinGauge(Rc<Cell<u64>>);

impl PinGauge {
    /// The bytes pinned now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.get()
    }
}

/// Immutable run of encoded frames of one group.
///
/// The bytes are shared between shards by one reference count per (segment, shard); within
/// a shard writes hold a [`SegmentRef`], whose count is not atomic.
#[derive(Debug)]
pub struct Segment {
    bytes: Bytes,
    first: Seq,
    last: Seq,
    evicted: Cell<bool>,
    gauge: PinGauge,
}

/// Shard-local reference to a segment; what a write in flight holds.
pub type SegmentRef = Rc<Segment>;

impl Segment {
    /// A segment of the frames `first` to `last`.
    #[must_use]
    pub fn new(bytes: Bytes, first: Seq, last: Seq, gauge: &PinGauge) -> SegmentRef {
        debug_assert!(first <= last);
        Rc::new(Self { bytes, first, last, evicted: Cell::new(false), gauge: gauge.clone() })
    }

    /// The encoded frames.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Sequence number of the first frame.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    /// Sequence number of the last frame.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Its first messages, up to `last`, as a segment that is in no tail. The whole if it ends
    /// there or before.
    #[must_use]
    pub fn up_to(self: &Rc<Self>, last: Seq) -> SegmentRef {
        if last >= self.last || last < self.first {
            return self.clone();
        }
        let mut end = 0;
        for _ in self.first.0..=last.0 {
            let Some(len) = self.bytes.get(end..).and_then(<[u8]>::first_chunk::<4>) else {
                return self.clone();
            };
            end += 4 + u32::from_le_bytes(*len) as usize;
        }
        let part =
            Self::new(self.bytes.slice(..end.min(self.bytes.len())), self.first, last, &self.gauge);
        part.mark_evicted();
        part
    }

    /// Counts this segment as pinned from now until its last reference goes.
    pub fn mark_evicted(&self) {
        if !self.evicted.replace(true) {
            self.gauge.0.set(self.gauge.0.get() + self.bytes.len() as u64);
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.evicted.get() {
            self.gauge.0.set(self.gauge.0.get() - self.bytes.len() as u64);
        }
    }
}

/// One part of a socket write. But for a header it is whole frames.
#[derive(Debug)]
pub enum Part {
    /// Frames of a tail or of catch-up, shared with other members.
    Frames(SegmentRef),
    /// Control frames of this connection alone. The driver takes the buffer back for reuse.
    Control(Vec<u8>),
    /// Begins a WebSocket message, which holds the parts that follow it.
    Header(Header),
}

impl Part {
    /// The bytes to write.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Frames(segment) => segment.bytes(),
            Self::Control(bytes) => bytes,
            Self::Header(header) => header.as_slice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_segment_holds_whole_frames_up_to_its_last() {
        let mut bytes = Vec::new();
        for len in [5_u32, 0, 300, 7] {
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend(std::iter::repeat_n(len as u8, len as usize));
        }
        let gauge = PinGauge::default();
        let whole = Segment::new(bytes.into(), Seq(10), Seq(13), &gauge);
        let part = whole.up_to(Seq(11));
        assert_eq!((part.first(), part.last(), part.bytes().len()), (Seq(10), Seq(11), 13));
        assert_eq!(whole.up_to(Seq(12)).bytes().len(), 13 + 304);
        for last in [9, 13, 20] {
            assert!(Rc::ptr_eq(&whole.up_to(Seq(last)), &whole), "{last}");
        }
        assert_eq!(gauge.bytes(), 13, "a part is in no tail");
        drop(part);
        assert_eq!(gauge.bytes(), 0);
        let broken = Segment::new(vec![255, 255, 255].into(), Seq(1), Seq(2), &gauge);
        assert!(Rc::ptr_eq(&broken.up_to(Seq(1)), &broken));
    }
}
