//! A member's cursor.

use std::rc::Rc;

use super::RosterKey;
use crate::fanout::{Ordinal, SegmentRef};
use crate::position::{Epoch, Nanos, Seq};
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
    /// It was sent as much again as it may be until it acknowledges some.
    Held,
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
    /// It wants announcements of the roster.
    pub wants_roster: bool,
    /// It is in its connection's list of memberships with something to send.
    pub dirty: bool,
    /// What a durable member has beside; nothing for a live one.
    pub durable: Option<Box<DurableMember>>,
}

/// What the shard of its connection keeps of a durable member.
#[derive(Clone, Copy, Debug)]
pub struct DurableMember {
    /// Its name on the roster.
    pub key: RosterKey,
    /// The last gap it was told of: who has what came before it needs nothing in it.
    pub gap: Option<(Seq, Seq)>,
    /// Where its newest acknowledgement waits to be told to the owner: batch and index.
    pub queued: (u64, u32),
    /// What was sent and is not acknowledged.
    pub again: Again,
}

/// How far the proof is that a member has read what was sent and does not acknowledge it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// It was not asked for.
    #[default]
    None,
    /// The kernel was asked whether everything was taken.
    Asked,
    /// The answer to PROBE with this token is the proof.
    Token(u64),
}

/// Redelivery to a durable member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Again {
    /// The timer wheel looks at it.
    pub watched: bool,
    /// Since when it has something to acknowledge and its cursor did not move.
    pub since: Nanos,
    /// Redeliveries since the cursor moved last.
    pub attempt: u32,
    /// When the next one is due.
    pub next_at: Nanos,
    /// What is known of the reader.
    pub proof: Proof,
    /// The next frames must be announced by REDELIVER.
    pub announce: bool,
    /// Nothing after this message is sent before the cursor moves.
    pub hold_at: Option<Seq>,
    /// The last message that was sent before messages came again, and its epoch.
    pub high: (Seq, Epoch),
}

impl DurableMember {
    /// A member that is online on this connection from now on.
    #[must_use]
    pub fn new(key: RosterKey) -> Box<Self> {
        Box::new(Self { key, gap: None, queued: (0, 0), again: Again::default() })
    }
}

impl Member {
    /// Takes an acknowledgement in; one of what was not sent, of another epoch, or behind the
    /// last one says nothing. Returns whether it moved the cursor.
    pub fn ack(&mut self, seq: Seq, epoch: Epoch) -> bool {
        // What was sent before messages came again counts too.
        let (high, high_epoch) =
            self.durable.as_ref().map(|durable| durable.again.high).unwrap_or_default();
        let was_sent =
            (epoch == self.epoch && seq <= self.sent) || (epoch == high_epoch && seq <= high);
        if !was_sent || seq <= self.acked {
            return false;
        }
        self.acked = seq;
        self.step_over_gap();
        true
    }

    /// The last message that it may be sent now.
    #[must_use]
    pub fn hold_at(&self) -> Option<Seq> {
        self.durable.as_ref().and_then(|durable| durable.again.hold_at)
    }

    /// The messages from `from` to `to` are gone, and the member is told so. Returns whether
    /// its cursor moved over them: nothing before them is missing.
    pub fn gap(&mut self, from: Seq, to: Seq) -> bool {
        self.sent = to;
        let before = self.acked;
        if let Some(durable) = &mut self.durable {
            durable.gap = Some((from, to));
            self.step_over_gap();
        }
        self.acked > before
    }

    fn step_over_gap(&mut self) {
        if let Some((from, to)) = self.durable.as_ref().and_then(|durable| durable.gap)
            && self.acked.next() >= from
            && self.acked < to
        {
            self.acked = to;
        }
    }
}
