//! What shards tell each other. One [`Batch`] per ordered pair and turn carries all of it.

use std::ops::Range;

use bytes::Bytes;

use crate::config::Priority;
use crate::group::RosterKey;
use crate::position::{Epoch, Handle, Level, MemberId, ProducerId, SegmentNumber, Seq};
use crate::shard::{Accepted, Answer, Asked, ConnId, Wanted};
use crate::wire::{ErrorCode, GapReason, Published, Receipt};

/// Everything one shard tells another in one turn, in order.
#[derive(Debug)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<Message>,
    /// Bytes that forwarded publishes point into.
    pub arena: Bytes,
}

/// A publish on its way to the owner of its group. Ranges are in [`Batch::arena`].
#[derive(Debug)]
pub struct Forward {
    /// The publisher's connection on the sending shard.
    pub conn: ConnId,
    /// The request of the PUBLISH.
    pub request: u32,
    /// Priority of the group, whose share of the inbox it counts against.
    pub priority: Priority,
    /// Level asked for, if any.
    pub level: Option<Level>,
    /// Identity of the publisher.
    pub producer: ProducerId,
    /// The publisher's own number.
    pub producer_seq: u64,
    /// Share of the members for which a receipt is wanted; 0 for none.
    pub receipt: u8,
    /// It came after DRAIN was sent: answered if it has its place, and not taken.
    pub late: bool,
    /// Name of the group.
    pub group: Range<u32>,
    /// Member id of the publisher.
    pub sender: Range<u32>,
    /// The message.
    pub payload: Range<u32>,
}

/// How far a durable member has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorMove {
    /// The group.
    pub handle: Handle,
    /// The member.
    pub key: RosterKey,
    /// The last message it acknowledged.
    pub seq: Seq,
    /// Epoch of that message; 0 if it was no message but the end of a gap.
    pub epoch: Epoch,
}

/// A published segment: the very bytes that the owner encoded.
#[derive(Clone, Debug)]
pub struct Announced {
    /// Encoded frames.
    pub bytes: Bytes,
    /// First message.
    pub first: Seq,
    /// Last message.
    pub last: Seq,
}

/// A chunk of history.
#[derive(Debug)]
pub struct History {
    /// The group.
    pub handle: Handle,
    /// The first message that was asked for.
    pub from: Seq,
    /// Messages that are gone, at its start.
    pub gap: Option<(Seq, Seq, GapReason)>,
    /// Epoch of the messages.
    pub epoch: Epoch,
    /// The messages, if any are there.
    pub segment: Option<Announced>,
}

/// One thing to tell.
#[derive(Debug)]
pub enum Message {
    /// The sender's log is beyond its bounds: segments of earlier generations are to go.
    ExpireSealed,
    /// The sender is about to remove this segment of an earlier generation, or has `done` so.
    SealedRemoved {
        /// The segment.
        number: SegmentNumber,
        /// It is gone for good.
        done: bool,
    },
    /// To the owner: a member on this shard wants to join.
    Join {
        /// Its connection.
        conn: ConnId,
        /// The request of the JOIN.
        request: u32,
        /// Name of the group.
        group: Box<[u8]>,
        /// Its id.
        member: MemberId,
        /// How it wants to be a member.
        wanted: Wanted,
    },
    /// From the owner: the member is in. Everything up to the head was announced before.
    Joined {
        /// Its connection.
        conn: ConnId,
        /// Name of the group.
        group: Box<[u8]>,
        /// Number of the group.
        handle: Handle,
        /// Its epoch.
        epoch: Epoch,
        /// Where it stands.
        accepted: Accepted,
    },
    /// From the owner: the member may not join.
    JoinRefused {
        /// Its connection.
        conn: ConnId,
        /// The request of the JOIN.
        request: u32,
        /// Name of the group.
        group: Box<[u8]>,
        /// Why.
        code: ErrorCode,
        /// The limit concerned.
        limit: u64,
    },
    /// To the owner: members on this shard want to hear of the roster, or none does any more.
    Watch {
        /// The group.
        handle: Handle,
        /// Whether they do.
        wants: bool,
    },
    /// From the owner: a ROSTER frame for the members who want it.
    Roster {
        /// The group.
        handle: Handle,
        /// The frame.
        frame: Bytes,
    },
    /// To the owner: a question about a group.
    Ask(Box<Asked>),
    /// From the owner: the answer, or a part of it.
    Answer(Answer),
    /// To the owner: a connection is no longer in a group.
    Leave {
        /// The connection.
        conn: ConnId,
        /// The group.
        handle: Handle,
        /// The durable member that is offline there now.
        durable: Option<RosterKey>,
    },
    /// To the owner, after [`Message::Leave`]: a durable member is no longer one.
    LeaveForGood {
        /// Its connection.
        conn: ConnId,
        /// The request of the LEAVE.
        request: u32,
        /// The group.
        handle: Handle,
        /// Its name on the roster.
        durable: RosterKey,
    },
    /// From the owner: that is on disk.
    Left {
        /// Its connection.
        conn: ConnId,
        /// The request of the LEAVE.
        request: u32,
        /// The group.
        handle: Handle,
    },
    /// From the owner: it stays a durable member.
    LeaveRefused {
        /// Its connection.
        conn: ConnId,
        /// The request of the LEAVE.
        request: u32,
        /// Name of the group.
        group: Box<[u8]>,
        /// Why.
        code: ErrorCode,
    },
    /// To the owner: what durable members of a shard acknowledged in one turn.
    Acks(Vec<CursorMove>),
    /// From the owner: a receipt for a publisher.
    Receipt {
        /// Its connection.
        conn: ConnId,
        /// The receipt.
        receipt: Receipt,
    },
    /// To the owner: what became of a receipt.
    ReceiptEnded {
        /// The connection that it was for.
        conn: ConnId,
        /// The group.
        handle: Handle,
        /// The message.
        seq: Seq,
        /// The publisher has read it; else the connection is gone.
        read: bool,
    },
    /// From the owner: a newer connection of the same member took over from this one.
    Replaced {
        /// The older connection.
        conn: ConnId,
    },
    /// From the owner: the member left the group for good on another connection.
    Dismissed {
        /// The connection that is still in the group.
        conn: ConnId,
        /// The group.
        handle: Handle,
    },
    /// To the owner: a publish.
    Forward(Forward),
    /// From the owner: forwarded bytes were taken out of its inbox.
    Credit {
        /// Priority of their groups.
        priority: Priority,
        /// How many.
        bytes: u64,
    },
    /// From the owner: a publish was accepted.
    Published {
        /// The publisher's connection.
        conn: ConnId,
        /// The answer.
        published: Published,
    },
    /// From the owner: a publish was refused.
    PublishRefused {
        /// The publisher's connection.
        conn: ConnId,
        /// The request of the PUBLISH.
        request: u32,
        /// Why.
        code: ErrorCode,
        /// The limit concerned.
        limit: u64,
    },
    /// From the owner: the tail moved. Carries every segment since the last announcement.
    Announce {
        /// The group.
        handle: Handle,
        /// The segments, in order; the oldest may have left the owner's tail already.
        segments: Vec<Announced>,
        /// Last message that members may see.
        published: Seq,
    },
    /// To the owner: a member needs history.
    Read {
        /// The group.
        handle: Handle,
        /// First message needed.
        from: Seq,
    },
    /// From the owner: history.
    History(History),
}
