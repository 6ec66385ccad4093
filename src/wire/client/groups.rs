//! JOIN and LEAVE: in which groups a member is.

use bytes::BufMut;

use super::entry_count;
use crate::limits::{FRAME_ENTRIES_MAX, GROUP_NAME_MAX};
use crate::position::Seq;
use crate::wire::frame::{Fields, Frame, WireError, kind, put_header};

/// JOIN: several groups in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join<'a> {
    /// Comes back in each JOINED or ERROR.
    pub request: u32,
    count: u16,
    entries: &'a [u8],
}

/// How long a member belongs to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For as long as its connection lives.
    Live,
    /// Until it leaves; the server keeps its cursor on disk.
    Durable,
}

/// Where a member starts to read a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first message after the join.
    Tail,
    /// At this sequence number, or the oldest one kept after it (a GAP tells).
    Seq(Seq),
    /// After the last message that this durable member acknowledged; one without a cursor
    /// starts at the tail.
    Cursor,
}

/// One group of a JOIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinEntry<'a> {
    /// Name of the group.
    pub group: &'a [u8],
    /// How long to belong to it.
    pub mode: Mode,
    /// Where to start.
    pub start: Start,
    /// Whether ROSTER announcements of the group are wanted.
    pub roster: bool,
}

impl<'a> JoinEntry<'a> {
    /// A member for as long as the connection lives.
    #[must_use]
    pub fn live(group: &'a [u8], start: Start) -> Self {
        Self { group, mode: Mode::Live, start, roster: false }
    }

    /// A durable member that goes on where it is.
    #[must_use]
    pub fn durable(group: &'a [u8]) -> Self {
        Self { group, mode: Mode::Durable, start: Start::Cursor, roster: false }
    }
}

/// LEAVE: several groups in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave<'a> {
    /// Comes back in each LEFT or ERROR.
    pub request: u32,
    count: u16,
    entries: &'a [u8],
}

const JOIN_ENTRY_FIXED: usize = 16;
/// Bit of a JOIN entry's `options`: ROSTER announcements are wanted.
const OPTION_ROSTER: u8 = 1;

fn join_entry<'a>(f: &mut Fields<'a>) -> Result<JoinEntry<'a>, WireError> {
    let mode = match f.u8("mode")? {
        0 => Mode::Live,
        1 => Mode::Durable,
        _ => return Err(f.bad("mode")),
    };
    let start = f.u8("start")?;
    let name_len = f.u8("name_len")?;
    let options = f.u8("options")?;
    f.u32("epoch")?;
    let from = f.u64("from")?;
    let start = match (start, mode) {
        (0, _) => Start::Tail,
        (1, _) => Start::Seq(Seq(from.max(1))),
        (2, Mode::Durable) => Start::Cursor,
        _ => return Err(f.bad("start")),
    };
    let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
    Ok(JoinEntry { group, mode, start, roster: options & OPTION_ROSTER != 0 })
}

impl<'a> Join<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
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
                Start::Cursor => (2, 0),
            };
            out.put_u8(e.mode as u8);
            out.put_u8(start);
            out.put_u8(e.group.len() as u8);
            out.put_u8(if e.roster { OPTION_ROSTER } else { 0 });
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
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
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
