//! A member's cursor.

use std::rc::Rc;

use crate::fanout::{Ordinal, SegmentRef};
use crate::position::{Epoch, Seq};
use crate::wire::GapReason;

/// History for a member that is behind the tail, shared by all members at the same place.
#[derive(Debug)]
pub struct Chunk {
    /// Messages that are gone, before the segment.
    pub gap: Option<(Seq, Seq, GapReason)>,
    /// Epoch of the segment's messages.
    pub epoch: Epoch,
    /// The messages; `None` if nothing follows the gap yet.
    pub segment: Option<SegmentRef>,
}

/// Where a member reads.
#[derive(Clone, Debug)]
pub enum Lag {
    /// On the tail, at [`Member::next`].
    Live,
    /// Behind the tail; a chunk has to be asked for.
    Behind,
    /// A chunk was asked for.
    Waiting,
    /// A chunk is here.
    Ready(Rc<Chunk>),
}

/// A local member of a group. Its cursor: everything up to `sent` was handed to its socket.
#[derive(Debug)]
pub struct Member {
    /// Slot of its connection.
    pub conn: u32,
    /// Epoch it was told by EPOCH.
    pub epoch: Epoch,
    /// Ordinal of the next segment it needs, when it is live.
    pub next: Ordinal,
    /// Last message handed to its socket.
    pub sent: Seq,
    /// Last message it acknowledged.
    pub acked: Seq,
    /// Where it reads.
    pub lag: Lag,
    /// It is in its connection's list of memberships with something to send.
    pub dirty: bool,
}
