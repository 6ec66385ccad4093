//! Frames about the connection and its memberships.

use bytes::BufMut;

use crate::limits::GROUP_NAME_MAX;
use crate::position::{Epoch, Handle, NodeId, Seq, ShardId};
use crate::wire::frame::{Fields, WireError, kind, put_header};

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
    /// What was sent to a durable member and is not acknowledged after this time, in ms, may
    /// be sent again.
    pub ack_timeout_ms: u32,
    /// Newest publishes of a producer in a group that the server is sure to recognise when
    /// they are sent again.
    pub publish_window: u32,
    /// The first PING is due this long after WELCOME, in ms, the others every
    /// `heartbeat_ms` after it.
    pub heartbeat_slot_ms: u32,
    /// A producer is not forgotten within this time of its last publish to a group, in ms;
    /// 0: the server does not say.
    pub producer_ttl_ms: u32,
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
    /// First message that will come on this connection, unless a GAP says otherwise.
    pub first: Seq,
    /// Last message that a durable member acknowledged; 0 for none, and for others.
    pub cursor: Seq,
}

/// LEFT: no DELIVER of this group follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The request of the LEAVE.
    pub request: u32,
    /// The group.
    pub handle: Handle,
}

/// ERROR: typed, with the limit or field concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// The request it answers, or 0.
    pub request: u32,
    /// Code as in [`crate::wire::ErrorCode`]; below 100 the connection ends.
    pub code: u16,
    /// The limit concerned, or 0.
    pub limit: u64,
    /// The field or group concerned, may be empty.
    pub field: &'a [u8],
    /// What happened and what to do, UTF-8.
    pub text: &'a [u8],
}

/// DRAIN: the server stops; reconnect later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The connection is closed after this time in ms.
    pub grace_ms: u32,
    /// When to reconnect, in ms from now; spread over clients by the server.
    pub reconnect_after_ms: u32,
}

/// AUTHED: a token was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authed {
    /// The request of the AUTH.
    pub request: u32,
    /// The connection is closed after this time in ms unless another token came; 0: it is not.
    pub valid_ms: u32,
    /// When to send the next token, in ms from now; 0 with a `valid_ms` of 0.
    pub renew_after_ms: u32,
}

/// Longest text in an ERROR, in bytes.
const ERROR_TEXT_MAX: usize = 512;

impl Welcome {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
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
            ack_timeout_ms: f.u32("ack_timeout_ms")?,
            publish_window: f.u32("publish_window")?,
            heartbeat_slot_ms: f.u32("heartbeat_slot_ms")?,
            producer_ttl_ms: f.u32("producer_ttl_ms")?,
        })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::WELCOME, 48);
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
        out.put_u32_le(self.ack_timeout_ms);
        out.put_u32_le(self.publish_window);
        out.put_u32_le(self.heartbeat_slot_ms);
        out.put_u32_le(self.producer_ttl_ms);
    }
}

impl<'a> Joined<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let epoch = Epoch(f.u32("epoch")?);
        let handle = Handle(f.u64("handle")?);
        let head = Seq(f.u64("head")?);
        let name_len = f.u8("name_len")?;
        f.array::<7>("reserved")?;
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        let first = Seq(f.u64("first")?);
        let cursor = Seq(f.u64("cursor")?);
        Ok(Self { request, epoch, handle, head, group, first, cursor })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::JOINED, 48 + self.group.len());
        out.put_u32_le(self.request);
        out.put_u32_le(self.epoch.0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.head.0);
        out.put_u8(self.group.len() as u8);
        out.put_slice(&[0; 7]);
        out.put_slice(self.group);
        out.put_u64_le(self.first.0);
        out.put_u64_le(self.cursor.0);
    }
}

impl Left {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        f.u32("reserved")?;
        Ok(Self { request, handle: Handle(f.u64("handle")?) })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::LEFT, 16);
        out.put_u32_le(self.request);
        out.put_u32_le(0);
        out.put_u64_le(self.handle.0);
    }
}

impl<'a> ErrorFrame<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
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

impl Drain {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let grace_ms = f.u32("grace_ms")?;
        Ok(Self { grace_ms, reconnect_after_ms: f.u32("reconnect_after_ms")? })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::DRAIN, 8);
        out.put_u32_le(self.grace_ms);
        out.put_u32_le(self.reconnect_after_ms);
    }
}

impl Authed {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let valid_ms = f.u32("valid_ms")?;
        let renew_after_ms = f.u32("renew_after_ms")?;
        f.u32("reserved")?;
        Ok(Self { request, valid_ms, renew_after_ms })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::AUTHED, 16);
        out.put_u32_le(self.request);
        out.put_u32_le(self.valid_ms);
        out.put_u32_le(self.renew_after_ms);
        out.put_u32_le(0);
    }
}
