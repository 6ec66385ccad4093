//! PUBLISH and ACK: messages of a member, and how far it is with those of others.

use bytes::BufMut;

use super::entry_count;
use crate::limits::{FRAME_ENTRIES_MAX, GROUP_NAME_MAX};
use crate::position::{Epoch, Handle, Level, Seq};
use crate::wire::frame::{Fields, Frame, WireError, kind, put_header};

/// PUBLISH: one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Comes back in PUBLISHED or ERROR.
    pub request: u32,
    /// Level asked for; `None` leaves it to the server.
    pub level: Option<Level>,
    /// Asks for a RECEIPT once this share of the durable members has the message, in
    /// percent; 0 asks for none.
    pub receipt: u8,
    /// The producer's own number of this message in this group.
    pub producer_seq: u64,
    /// Name of the group.
    pub group: &'a [u8],
    /// The message.
    pub payload: &'a [u8],
}

/// ACK: cumulative, several groups in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acks<'a> {
    entries: &'a [u8],
}

/// One group of an ACK: the member has everything up to `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The group.
    pub handle: Handle,
    /// The last message the member has.
    pub seq: Seq,
    /// Its epoch.
    pub epoch: Epoch,
}

const ACK_ENTRY: usize = 24;

impl<'a> Publish<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let level = match f.u8("level")? {
            0 => None,
            1 => Some(Level::Durable),
            2 => Some(Level::Memory),
            _ => return Err(f.bad("level")),
        };
        let name_len = f.u8("name_len")?;
        let receipt = f.u8("receipt")?;
        if receipt > 100 {
            return Err(f.bad("receipt"));
        }
        f.u8("reserved")?;
        let producer_seq = f.u64("producer_seq")?;
        if producer_seq == 0 {
            return Err(f.bad("producer_seq"));
        }
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        Ok(Self { request, level, receipt, producer_seq, group, payload: f.rest() })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::PUBLISH, 16 + self.group.len() + self.payload.len());
        out.put_u32_le(self.request);
        out.put_u8(self.level.map_or(0, |level| level as u8));
        out.put_u8(self.group.len() as u8);
        out.put_u8(self.receipt);
        out.put_u8(0);
        out.put_u64_le(self.producer_seq);
        out.put_slice(self.group);
        out.put_slice(self.payload);
    }
}

impl<'a> Acks<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let count = entry_count(&mut f)?;
        f.u32("reserved")?;
        let entries = f.take(usize::from(count) * ACK_ENTRY, "entries")?;
        Ok(Self { entries })
    }

    /// The groups of this frame, in order.
    pub fn entries(&self) -> impl Iterator<Item = Ack> + use<'a> {
        let mut f = Fields::of(Frame { kind: kind::ACK, flags: 0, body: self.entries });
        std::iter::from_fn(move || {
            let handle = Handle(f.u64("handle").ok()?);
            let seq = Seq(f.u64("seq").ok()?);
            let epoch = Epoch(f.u32("epoch").ok()?);
            f.u32("reserved").ok()?;
            Some(Ack { handle, seq, epoch })
        })
    }

    /// Appends an ACK of `acks` to `out`.
    pub fn encode(out: &mut impl BufMut, acks: &[Ack]) {
        debug_assert!((1..=FRAME_ENTRIES_MAX).contains(&acks.len()));
        put_header(out, kind::ACK, 8 + acks.len() * ACK_ENTRY);
        out.put_u16_le(acks.len() as u16);
        out.put_u16_le(0);
        out.put_u32_le(0);
        for ack in acks {
            out.put_u64_le(ack.handle.0);
            out.put_u64_le(ack.seq.0);
            out.put_u32_le(ack.epoch.0);
            out.put_u32_le(0);
        }
    }
}
