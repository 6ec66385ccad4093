//! Fan-out: the tail of a group as immutable segments, and the cursors of members in it.

mod segment;
mod tail;

pub use segment::{Form, Part, PinGauge, Segment, SegmentRef};
pub use tail::{Ordinal, Tail};
