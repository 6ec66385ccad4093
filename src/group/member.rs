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
    /// The last gap that it was sent.
    pub gap: Option<ToldGap>,
    /// Where its newest acknowledgement waits to be told to the owner: batch and index.
    pub queued: (u64, u32),
    /// What was sent and is not acknowledged.
    pub again: Again,
}

/// Messages that are gone, as a member was told. That it was sent is no proof that the member
/// learned of it: its cursor passes the gap when it acknowledges that, or what follows, or has
/// proved to have read it. Until then a connection that ends is told again on the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldGap {
    /// First message that is gone.
    pub from: Seq,
    /// Last one.
    pub to: Seq,
    /// Epoch that the member was told with it.
    pub epoch: Epoch,
    /// The proof that is asked for covers it.
    pub asked: bool,
}

/// How far the proof is that a member has read what was sent and does not acknowledge it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// It was not asked for.
    #[default]
    None,
    /// What was handed to the socket up to this byte must have left it.
    Leaving(u64),
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
        let gap = self.durable.as_ref().and_then(|durable| durable.gap);
        let was_sent = (epoch == self.epoch && seq <= self.sent)
            || (epoch == high_epoch && seq <= high)
            || gap.is_some_and(|gap| (gap.epoch, gap.to) == (epoch, seq) && seq <= self.sent);
        if !was_sent || seq <= self.acked {
            return false;
        }
        self.acked = seq;
        true
    }

    /// The last message that it may be sent now.
    #[must_use]
    pub fn hold_at(&self) -> Option<Seq> {
        self.durable.as_ref().and_then(|durable| durable.again.hold_at)
    }

    /// The messages from `from` to `to` are gone, and the member is told so.
    pub fn gap(&mut self, from: Seq, to: Seq, epoch: Epoch) {
        self.sent = to;
        if let Some(durable) = &mut self.durable {
            // One that goes on where the last one ended is one gap with it.
            let from = match durable.gap {
                Some(before) if before.to.next() == from => before.from,
                _ => from,
            };
            durable.gap = Some(ToldGap { from, to, epoch, asked: false });
        }
    }

    /// The member has proved to have read the gap that it was asked about: its cursor passes it
    /// if nothing before it is missing. Returns whether it did.
    pub fn has_read_gap(&mut self) -> bool {
        let gap = self.durable.as_ref().and_then(|durable| durable.gap);
        let Some(gap) = gap.filter(|gap| gap.asked && gap.to <= self.sent) else { return false };
        let passes = self.acked.next() >= gap.from && self.acked < gap.to;
        if passes {
            self.acked = gap.to;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn durable(acked: u64, sent: u64) -> Member {
        let key = RosterKey { index: 0, generation: 0 };
        Member {
            conn: 0,
            epoch: Epoch(1),
            next: 0,
            sent: Seq(sent),
            acked: Seq(acked),
            lag: Lag::Live,
            wants_roster: false,
            dirty: false,
            durable: Some(DurableMember::new(key)),
        }
    }

    fn asked(member: &mut Member) {
        member.durable.as_mut().unwrap().gap.as_mut().unwrap().asked = true;
    }

    #[test]
    fn a_cursor_passes_a_gap_only_when_the_member_has_proved_to_know_of_it() {
        let mut member = durable(4, 4);
        member.gap(Seq(5), Seq(9), Epoch(2));
        assert_eq!((member.acked, member.sent), (Seq(4), Seq(9)), "sent is not read");
        assert!(!member.has_read_gap(), "a proof of what came before it");
        asked(&mut member);
        assert!(member.has_read_gap() && member.acked == Seq(9));
        assert!(!member.has_read_gap());

        // One gap after another is one; messages before it are still missing.
        let mut member = durable(2, 4);
        member.gap(Seq(5), Seq(9), Epoch(2));
        asked(&mut member);
        member.gap(Seq(10), Seq(11), Epoch(2));
        assert!(!member.has_read_gap(), "the second was not asked about");
        asked(&mut member);
        assert!(!member.has_read_gap(), "3 and 4 are not acknowledged");
        assert!(member.ack(Seq(4), Epoch(1)) && member.acked == Seq(4));
        assert!(member.has_read_gap() && member.acked == Seq(11));
    }

    #[test]
    fn the_end_of_a_gap_is_acknowledged_with_its_epoch() {
        let mut member = durable(4, 4);
        member.gap(Seq(5), Seq(9), Epoch(2));
        assert!(!member.ack(Seq(8), Epoch(2)) && !member.ack(Seq(9), Epoch(3)));
        assert!(member.ack(Seq(9), Epoch(2)) && member.acked == Seq(9));
    }
}
