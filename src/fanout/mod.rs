//! Fan-out: the tail of a group as immutable segments, and the cursors of members in it.

mod segment;

pub use segment::{Part, PinGauge, Segment, SegmentRef};
