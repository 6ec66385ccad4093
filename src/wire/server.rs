//! Frames that the server sends.

use bytes::BufMut;

use super::frame::{FRAME_HEADER, Fields, Frame, WireError, kind, put_header};
use crate::limits::{GROUP_NAME_MAX, MEMBER_ID_MAX};
use crate::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};

/// Any frame the server may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// HELLO was accepted.
    Welcome(Welcome),
    /// The member is in a group.
    Joined(Joined<'a>),
    /// The member is out of a group.
    Left(Left),
    /// An epoch begins.
    Epoch(EpochStart),
    /// A message.
    Deliver(Deliver<'a>),
    /// A publish was accepted.
    Published(Published),
    /// Answer to PING.
    Pong {
        /// The token of the PING.
        token: u64,
    },
    /// A request failed, or the connection ends.
    Error(ErrorFrame<'a>),
    /// Messages that this member will not get.
    Gap(Gap),
    /// The server stops.
    Drain(Drain),
    /// A kind this build does not know; clients skip it.
    Unknown {
        /// The kind.
        kind: u8,
    },
}

/// WELCOME: the limits and times that hold on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Protocol version chosen.
    pub version: u16,
    /// The server's identity.
    pub node: NodeId,
    /// The shard that owns the connection.
    pub shard: ShardId,
    /// A client that has nothing to say sends PING this often, in ms; 0 means never.
    pub heartbeat_ms: u32,
    /// Longest payload of a PUBLISH in bytes.
    pub payload_max: u32,
    /// Longest frame in bytes after the length field.
    pub frame_max: u32,
    /// Most groups a member may be in.
    pub groups_per_member_max: u32,
    /// Acknowledge after this many messages ...
    pub ack_every: u32,
    /// ... or after this time in ms, whichever comes first.
    pub ack_interval_ms: u32,
}

/// JOINED: one per group of a JOIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    /// The request of the JOIN.
    pub request: u32,
    /// Epoch of the group.
    pub epoch: Epoch,
    /// Number by which DELIVER, ACK and GAP name the group.
    pub handle: Handle,
    /// Last message published before the join; live messages start at the next.
    pub head: Seq,
    /// Name of the group.
    pub group: &'a [u8],
}

/// LEFT: no DELIVER of this group follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The request of the LEAVE.
    pub request: u32,
    /// The group.
    pub handle: Handle,
}

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

/// ERROR: typed, with the limit or field concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// The request it answers, or 0.
    pub request: u32,
    /// Code as in [`super::ErrorCode`]; below 100 the connection ends.
    pub code: u16,
    /// The limit concerned, or 0.
    pub limit: u64,
    /// The field or group concerned, may be empty.
    pub field: &'a [u8],
    /// What happened and what to do, UTF-8.
    pub text: &'a [u8],
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

/// DRAIN: the server stops; reconnect later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The connection is closed after this time in ms.
    pub grace_ms: u32,
    /// When to reconnect, in ms from now; spread over clients by the server.
    pub reconnect_after_ms: u32,
}

/// Bytes of a DELIVER frame beside sender and payload, header included.
pub const DELIVER_FIXED: usize = FRAME_HEADER + 32;

/// Longest text in an ERROR, in bytes.
const ERROR_TEXT_MAX: usize = 512;

impl<'a> ServerFrame<'a> {
    /// Decodes the body of `frame`.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with the name of the first field that is not as specified.
    pub fn decode(frame: Frame<'a>) -> Result<Self, WireError> {
        let mut f = Fields::of(frame);
        Ok(match frame.kind {
            kind::WELCOME => Self::Welcome(Welcome::decode(f)?),
            kind::JOINED => Self::Joined(Joined::decode(f)?),
            kind::LEFT => {
                let request = f.u32("request")?;
                f.u32("reserved")?;
                Self::Left(Left { request, handle: Handle(f.u64("handle")?) })
            }
            kind::EPOCH => {
                let epoch = Epoch(f.u32("epoch")?);
                f.u32("reserved")?;
                let handle = Handle(f.u64("handle")?);
                Self::Epoch(EpochStart { epoch, handle, first: Seq(f.u64("first")?) })
            }
            kind::DELIVER => Self::Deliver(Deliver::decode(f)?),
            kind::PUBLISHED => Self::Published(Published::decode(f)?),
            kind::PONG => Self::Pong { token: f.u64("token")? },
            kind::ERROR => Self::Error(ErrorFrame::decode(f)?),
            kind::GAP => Self::Gap(Gap::decode(f)?),
            kind::DRAIN => {
                let grace_ms = f.u32("grace_ms")?;
                Self::Drain(Drain { grace_ms, reconnect_after_ms: f.u32("reconnect_after_ms")? })
            }
            kind => Self::Unknown { kind },
        })
    }

    /// Appends a PONG to `out`.
    pub fn encode_pong(out: &mut impl BufMut, token: u64) {
        put_header(out, kind::PONG, 8);
        out.put_u64_le(token);
    }
}

impl Welcome {
    fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let version = f.u16("version")?;
        let node = NodeId(f.u16("node")?);
        let shard = ShardId(f.u16("shard")?);
        f.u16("reserved")?;
        Ok(Self {
            version,
            node,
            shard,
            heartbeat_ms: f.u32("heartbeat_ms")?,
            payload_max: f.u32("payload_max")?,
            frame_max: f.u32("frame_max")?,
            groups_per_member_max: f.u32("groups_per_member_max")?,
            ack_every: f.u32("ack_every")?,
            ack_interval_ms: f.u32("ack_interval_ms")?,
        })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::WELCOME, 32);
        out.put_u16_le(self.version);
        out.put_u16_le(self.node.0);
        out.put_u16_le(self.shard.0);
        out.put_u16_le(0);
        out.put_u32_le(self.heartbeat_ms);
        out.put_u32_le(self.payload_max);
        out.put_u32_le(self.frame_max);
        out.put_u32_le(self.groups_per_member_max);
        out.put_u32_le(self.ack_every);
        out.put_u32_le(self.ack_interval_ms);
    }
}

impl<'a> Joined<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let epoch = Epoch(f.u32("epoch")?);
        let handle = Handle(f.u64("handle")?);
        let head = Seq(f.u64("head")?);
        let name_len = f.u8("name_len")?;
        f.array::<7>("reserved")?;
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        Ok(Self { request, epoch, handle, head, group })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::JOINED, 32 + self.group.len());
        out.put_u32_le(self.request);
        out.put_u32_le(self.epoch.0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.head.0);
        out.put_u8(self.group.len() as u8);
        out.put_slice(&[0; 7]);
        out.put_slice(self.group);
    }
}

impl Left {
    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::LEFT, 16);
        out.put_u32_le(self.request);
        out.put_u32_le(0);
        out.put_u64_le(self.handle.0);
    }
}

impl EpochStart {
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
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
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
    fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
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

impl<'a> ErrorFrame<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let code = f.u16("code")?;
        let text_len = f.u16("text_len")?;
        let limit = f.u64("limit")?;
        let field_len = f.u8("field_len")?;
        f.array::<7>("reserved")?;
        let field = f.take(usize::from(field_len), "field")?;
        let text = f.take(usize::from(text_len), "text")?;
        Ok(Self { request, code, limit, field, text })
    }

    /// Appends this frame to `out`. The field is cut to what its length field holds, the text
    /// to 512 bytes at a character boundary.
    pub fn encode(&self, out: &mut impl BufMut) {
        let field = &self.field[..self.field.len().min(usize::from(u8::MAX))];
        let mut end = self.text.len().min(ERROR_TEXT_MAX);
        while self.text.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) && end > 0 {
            end -= 1;
        }
        let text = &self.text[..end];
        put_header(out, kind::ERROR, 24 + field.len() + text.len());
        out.put_u32_le(self.request);
        out.put_u16_le(self.code);
        out.put_u16_le(text.len() as u16);
        out.put_u64_le(self.limit);
        out.put_u8(field.len() as u8);
        out.put_slice(&[0; 7]);
        out.put_slice(field);
        out.put_slice(text);
    }
}

impl Gap {
    fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            handle: Handle(f.u64("handle")?),
            from: Seq(f.u64("from")?),
            to: Seq(f.u64("to")?),
            epoch: Epoch(f.u32("epoch")?),
            reason: match f.u32("reason")? {
                2 => GapReason::Damaged,
                _ => GapReason::Retention,
            },
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

impl Drain {
    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::DRAIN, 8);
        out.put_u32_le(self.grace_ms);
        out.put_u32_le(self.reconnect_after_ms);
    }
}
