//! A segment of a tail: whole DELIVER frames, encoded once, sent to every member as they are.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use crate::position::Seq;

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

/// One part of a socket write; always whole frames.
#[derive(Debug)]
pub enum Part {
    /// Frames of a tail or of catch-up, shared with other members.
    Frames(SegmentRef),
    /// Control frames of this connection alone. The driver takes the buffer back for reuse.
    Control(Vec<u8>),
}

impl Part {
    /// The bytes to write.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Frames(segment) => segment.bytes(),
            Self::Control(bytes) => bytes,
        }
    }
}
