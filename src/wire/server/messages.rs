//! Frames about messages: what is delivered, and what became of what was published.

use bytes::BufMut;

use crate::limits::MEMBER_ID_MAX;
use crate::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use crate::wire::frame::{FRAME_HEADER, Fields, WireError, kind, put_header};

/// EPOCH: comes before the first DELIVER of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch that begins.
    pub epoch: Epoch,
    /// The group.
    pub handle: Handle,
    /// First sequence number in it.
    pub first: Seq,
}

/// DELIVER: one message; the same bytes for every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    /// The group.
    pub handle: Handle,
    /// Place in the group's order.
    pub seq: Seq,
    /// When it got that place.
    pub stamp: Stamp,
    /// Node that sequenced it.
    pub node: NodeId,
    /// Shard that sequenced it.
    pub shard: ShardId,
    /// Member id of the publisher.
    pub sender: &'a [u8],
    /// The message.
    pub payload: &'a [u8],
}

/// PUBLISHED: the message has its place and reached its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The request of the PUBLISH.
    pub request: u32,
    /// Epoch of the message.
    pub epoch: Epoch,
    /// The group.
    pub handle: Handle,
    /// The producer's own number.
    pub producer_seq: u64,
    /// Place in the group's order.
    pub seq: Seq,
    /// Level that was reached before this answer.
    pub level: Level,
}

/// Why messages are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GapReason {
    /// Retention removed them.
    Retention = 1,
    /// They are damaged on disk.
    Damaged = 2,
}

impl GapReason {
    /// The reason with this number; numbers of later versions are taken as the first.
    pub(super) fn from_number(number: u32) -> Self {
        match number {
            2 => Self::Damaged,
            _ => Self::Retention,
        }
    }

    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Damaged => "damaged",
        }
    }
}

/// GAP: messages `from` to `to` will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The group.
    pub handle: Handle,
    /// First missing message.
    pub from: Seq,
    /// Last missing message.
    pub to: Seq,
    /// Epoch of the group.
    pub epoch: Epoch,
    /// Why.
    pub reason: GapReason,
}

/// RECEIPT: enough of the durable members have a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The group.
    pub handle: Handle,
    /// The message.
    pub seq: Seq,
    /// The publisher's own number of it.
    pub producer_seq: u64,
    /// Its epoch.
    pub epoch: Epoch,
    /// Members that acknowledged it, of those below.
    pub acked: u32,
    /// Durable members that joined before it and have not left.
    pub members: u32,
    /// Share that was asked for, 1 to 100.
    pub percent: u8,
}

/// REDELIVER: what was not acknowledged comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redeliver {
    /// The group.
    pub handle: Handle,
    /// Sequence number of the next DELIVER.
    pub from: Seq,
    /// Its epoch.
    pub epoch: Epoch,
    /// How often it was sent again without progress, from 1.
    pub attempt: u32,
}

/// Bytes of a DELIVER frame beside sender and payload, header included.
pub const DELIVER_FIXED: usize = FRAME_HEADER + 32;

impl EpochStart {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let epoch = Epoch(f.u32("epoch")?);
        f.u32("reserved")?;
        let handle = Handle(f.u64("handle")?);
        Ok(Self { epoch, handle, first: Seq(f.u64("first")?) })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::EPOCH, 24);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.first.0);
    }
}

impl<'a> Deliver<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let handle = Handle(f.u64("handle")?);
        let seq = Seq(f.u64("seq")?);
        let stamp = Stamp(f.u64("stamp")?);
        let node = NodeId(f.u16("node")?);
        let shard = ShardId(f.u16("shard")?);
        let sender_len = f.u8("sender_len")?;
        f.array::<3>("reserved")?;
        let sender = f.name(sender_len, MEMBER_ID_MAX, "sender")?;
        Ok(Self { handle, seq, stamp, node, shard, sender, payload: f.rest() })
    }

    /// Bytes that [`Deliver::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        DELIVER_FIXED + self.sender.len() + self.payload.len()
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=MEMBER_ID_MAX).contains(&self.sender.len()));
        put_header(out, kind::DELIVER, self.encoded_len() - FRAME_HEADER);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.seq.0);
        out.put_u64_le(self.stamp.0);
        out.put_u16_le(self.node.0);
        out.put_u16_le(self.shard.0);
        out.put_u8(self.sender.len() as u8);
        out.put_slice(&[0; 3]);
        out.put_slice(self.sender);
        out.put_slice(self.payload);
    }
}

impl Published {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let published = Self {
            request: f.u32("request")?,
            epoch: Epoch(f.u32("epoch")?),
            handle: Handle(f.u64("handle")?),
            producer_seq: f.u64("producer_seq")?,
            seq: Seq(f.u64("seq")?),
            level: match f.u8("level")? {
                1 => Level::Durable,
                2 => Level::Memory,
                _ => return Err(f.bad("level")),
            },
        };
        f.array::<7>("reserved")?;
        Ok(published)
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::PUBLISHED, 40);
        out.put_u32_le(self.request);
        out.put_u32_le(self.epoch.0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.producer_seq);
        out.put_u64_le(self.seq.0);
        out.put_u8(self.level as u8);
        out.put_slice(&[0; 7]);
    }
}

impl Gap {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            handle: Handle(f.u64("handle")?),
            from: Seq(f.u64("from")?),
            to: Seq(f.u64("to")?),
            epoch: Epoch(f.u32("epoch")?),
            reason: GapReason::from_number(f.u32("reason")?),
        })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::GAP, 32);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.from.0);
        out.put_u64_le(self.to.0);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(self.reason as u32);
    }
}

impl Receipt {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let receipt = Self {
            handle: Handle(f.u64("handle")?),
            seq: Seq(f.u64("seq")?),
            producer_seq: f.u64("producer_seq")?,
            epoch: Epoch(f.u32("epoch")?),
            acked: f.u32("acked")?,
            members: f.u32("members")?,
            percent: f.u8("percent")?,
        };
        f.array::<3>("reserved")?;
        Ok(receipt)
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::RECEIPT, 40);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.seq.0);
        out.put_u64_le(self.producer_seq);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(self.acked);
        out.put_u32_le(self.members);
        out.put_u8(self.percent);
        out.put_slice(&[0; 3]);
    }
}

impl Redeliver {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            handle: Handle(f.u64("handle")?),
            from: Seq(f.u64("from")?),
            epoch: Epoch(f.u32("epoch")?),
            attempt: f.u32("attempt")?,
        })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::REDELIVER, 24);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.from.0);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(self.attempt);
    }
}
