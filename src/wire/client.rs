//! Frames that a client sends.

use bytes::BufMut;

use super::frame::{Fields, Frame, WireError, kind, put_header};
use crate::limits::{FRAME_ENTRIES_MAX, GROUP_NAME_MAX, MEMBER_ID_MAX};
use crate::position::{Epoch, Handle, Level, ProducerId, Seq};

/// Any frame a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFrame<'a> {
    /// Who the client is.
    Hello(Hello<'a>),
    /// Enter groups.
    Join(Join<'a>),
    /// Leave groups.
    Leave(Leave<'a>),
    /// A message for a group.
    Publish(Publish<'a>),
    /// What the member has, per group.
    Ack(Acks<'a>),
    /// Asks for a PONG with the same token.
    Ping {
        /// Any number; comes back in PONG.
        token: u64,
    },
    /// A kind this build does not know.
    Unknown {
        /// The kind.
        kind: u8,
    },
}

/// HELLO: the first frame of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Lowest protocol version the client speaks.
    pub version_min: u16,
    /// Highest protocol version the client speaks.
    pub version_max: u16,
    /// Encoding of frames; 0 is the native one.
    pub encoding: u8,
    /// Feature bits; unknown ones are ignored.
    pub flags: u16,
    /// Identity under which this client publishes.
    pub producer: ProducerId,
    /// Identity of the member.
    pub member: &'a [u8],
}

/// JOIN: several groups in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join<'a> {
    /// Comes back in each JOINED or ERROR.
    pub request: u32,
    count: u16,
    entries: &'a [u8],
}

/// Where a member starts to read a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first message after the join.
    Tail,
    /// At this sequence number, or the oldest one kept after it (a GAP tells).
    Seq(Seq),
}

/// One group of a JOIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinEntry<'a> {
    /// Name of the group.
    pub group: &'a [u8],
    /// Where to start.
    pub start: Start,
}

/// LEAVE: several groups in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave<'a> {
    /// Comes back in each LEFT or ERROR.
    pub request: u32,
    count: u16,
    entries: &'a [u8],
}

/// PUBLISH: one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Comes back in PUBLISHED or ERROR.
    pub request: u32,
    /// Level asked for; `None` leaves it to the server.
    pub level: Option<Level>,
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
const JOIN_ENTRY_FIXED: usize = 16;

impl Frame<'_> {
    /// The request number of a JOIN, LEAVE or PUBLISH whose body may be malformed after it;
    /// 0 for other kinds and bodies that are too short. For the ERROR that answers them.
    #[must_use]
    pub fn request(&self) -> u32 {
        match (self.kind, self.body.first_chunk()) {
            (kind::JOIN | kind::LEAVE | kind::PUBLISH, Some(request)) => {
                u32::from_le_bytes(*request)
            }
            _ => 0,
        }
    }
}

impl<'a> ClientFrame<'a> {
    /// Decodes the body of `frame`.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with the name of the first field that is not as specified.
    pub fn decode(frame: Frame<'a>) -> Result<Self, WireError> {
        let f = Fields::of(frame);
        match frame.kind {
            kind::HELLO => Hello::decode(f).map(Self::Hello),
            kind::JOIN => Join::decode(f).map(Self::Join),
            kind::LEAVE => Leave::decode(f).map(Self::Leave),
            kind::PUBLISH => Publish::decode(f).map(Self::Publish),
            kind::ACK => Acks::decode(f).map(Self::Ack),
            kind::PING => {
                let mut f = f;
                Ok(Self::Ping { token: f.u64("token")? })
            }
            kind => Ok(Self::Unknown { kind }),
        }
    }
}

impl<'a> Hello<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let version_min = f.u16("version_min")?;
        let version_max = f.u16("version_max")?;
        let encoding = f.u8("encoding")?;
        let member_len = f.u8("member_len")?;
        let flags = f.u16("flags")?;
        let producer = f.array("producer")?;
        let member = f.name(member_len, MEMBER_ID_MAX, "member")?;
        Ok(Self { version_min, version_max, encoding, flags, producer, member })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=MEMBER_ID_MAX).contains(&self.member.len()));
        put_header(out, kind::HELLO, 24 + self.member.len());
        out.put_u16_le(self.version_min);
        out.put_u16_le(self.version_max);
        out.put_u8(self.encoding);
        out.put_u8(self.member.len() as u8);
        out.put_u16_le(self.flags);
        out.put_slice(&self.producer);
        out.put_slice(self.member);
    }
}

fn entry_count(f: &mut Fields<'_>) -> Result<u16, WireError> {
    let count = f.u16("count")?;
    if count == 0 || usize::from(count) > FRAME_ENTRIES_MAX {
        return Err(f.bad("count"));
    }
    f.u16("reserved")?;
    Ok(count)
}

fn join_entry<'a>(f: &mut Fields<'a>) -> Result<JoinEntry<'a>, WireError> {
    let mode = f.u8("mode")?;
    let start = f.u8("start")?;
    let name_len = f.u8("name_len")?;
    f.u8("reserved")?;
    f.u32("epoch")?;
    let from = f.u64("from")?;
    if mode != 0 {
        return Err(f.bad("mode"));
    }
    let start = match start {
        0 => Start::Tail,
        1 => Start::Seq(Seq(from.max(1))),
        _ => return Err(f.bad("start")),
    };
    let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
    Ok(JoinEntry { group, start })
}

impl<'a> Join<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let count = entry_count(&mut f)?;
        let entries = f.rest();
        let mut check = Fields::of(Frame { kind: kind::JOIN, flags: 0, body: entries });
        for _ in 0..count {
            join_entry(&mut check)?;
        }
        Ok(Self { request, count, entries })
    }

    /// The groups of this frame, in order.
    pub fn entries(&self) -> impl Iterator<Item = JoinEntry<'a>> + use<'a> {
        let mut f = Fields::of(Frame { kind: kind::JOIN, flags: 0, body: self.entries });
        (0..self.count).map_while(move |_| join_entry(&mut f).ok())
    }

    /// Appends a JOIN of `entries` to `out`.
    pub fn encode(out: &mut impl BufMut, request: u32, entries: &[JoinEntry<'_>]) {
        debug_assert!((1..=FRAME_ENTRIES_MAX).contains(&entries.len()));
        let body = 8 + entries.iter().map(|e| JOIN_ENTRY_FIXED + e.group.len()).sum::<usize>();
        put_header(out, kind::JOIN, body);
        out.put_u32_le(request);
        out.put_u16_le(entries.len() as u16);
        out.put_u16_le(0);
        for e in entries {
            debug_assert!((1..=GROUP_NAME_MAX).contains(&e.group.len()));
            let (start, from) = match e.start {
                Start::Tail => (0, 0),
                Start::Seq(seq) => (1, seq.0),
            };
            out.put_u8(0);
            out.put_u8(start);
            out.put_u8(e.group.len() as u8);
            out.put_u8(0);
            out.put_u32_le(0);
            out.put_u64_le(from);
            out.put_slice(e.group);
        }
    }
}

fn leave_entry<'a>(f: &mut Fields<'a>) -> Result<&'a [u8], WireError> {
    let len = f.u8("name_len")?;
    f.name(len, GROUP_NAME_MAX, "group")
}

impl<'a> Leave<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let count = entry_count(&mut f)?;
        let entries = f.rest();
        let mut check = Fields::of(Frame { kind: kind::LEAVE, flags: 0, body: entries });
        for _ in 0..count {
            leave_entry(&mut check)?;
        }
        Ok(Self { request, count, entries })
    }

    /// The names of the groups of this frame, in order.
    pub fn entries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut f = Fields::of(Frame { kind: kind::LEAVE, flags: 0, body: self.entries });
        (0..self.count).map_while(move |_| leave_entry(&mut f).ok())
    }

    /// Appends a LEAVE of `groups` to `out`.
    pub fn encode(out: &mut impl BufMut, request: u32, groups: &[&[u8]]) {
        debug_assert!((1..=FRAME_ENTRIES_MAX).contains(&groups.len()));
        put_header(out, kind::LEAVE, 8 + groups.iter().map(|g| 1 + g.len()).sum::<usize>());
        out.put_u32_le(request);
        out.put_u16_le(groups.len() as u16);
        out.put_u16_le(0);
        for group in groups {
            debug_assert!((1..=GROUP_NAME_MAX).contains(&group.len()));
            out.put_u8(group.len() as u8);
            out.put_slice(group);
        }
    }
}

impl<'a> Publish<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let level = match f.u8("level")? {
            0 => None,
            1 => Some(Level::Durable),
            2 => Some(Level::Memory),
            _ => return Err(f.bad("level")),
        };
        let name_len = f.u8("name_len")?;
        f.u16("reserved")?;
        let producer_seq = f.u64("producer_seq")?;
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        Ok(Self { request, level, producer_seq, group, payload: f.rest() })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::PUBLISH, 16 + self.group.len() + self.payload.len());
        out.put_u32_le(self.request);
        out.put_u8(self.level.map_or(0, |level| level as u8));
        out.put_u8(self.group.len() as u8);
        out.put_u16_le(0);
        out.put_u64_le(self.producer_seq);
        out.put_slice(self.group);
        out.put_slice(self.payload);
    }
}

impl<'a> Acks<'a> {
    fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
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

impl ClientFrame<'_> {
    /// Appends a PING to `out`.
    pub fn encode_ping(out: &mut impl BufMut, token: u64) {
        put_header(out, kind::PING, 8);
        out.put_u64_le(token);
    }
}
