//! Answers about a group: its history, its state, its roster.

use bytes::BufMut;

use super::messages::{Deliver, GapReason};
use crate::limits::{MEMBER_ID_MAX, STATE_KEY_MAX};
use crate::position::{Epoch, Handle, Seq, Stamp};
use crate::wire::frame::{FRAME_HEADER, Fields, Frame, WireError, kind, put_header, split};

/// FETCHED: a page of history, all of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched<'a> {
    /// The request of the FETCH.
    pub request: u32,
    /// Epoch of the messages; of the group if there are none.
    pub epoch: Epoch,
    /// The group.
    pub handle: Handle,
    /// First message of the page; 0 if there is none.
    pub first: Seq,
    /// Last message of the page; 0 if there is none.
    pub last: Seq,
    /// Last message of the group that members may see.
    pub head: Seq,
    /// Messages before the page that are gone.
    pub gap: Option<(Seq, Seq, GapReason)>,
    /// Whether there is more of what was asked for.
    pub more: bool,
    /// DELIVER frames `first` to `last`, whole.
    pub frames: &'a [u8],
}

/// STATE_SET: a key was set or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSet {
    /// The request of the SET_STATE.
    pub request: u32,
    /// The group.
    pub handle: Handle,
    /// Version of the key, and of the group's state, from now on.
    pub version: u64,
    /// When it was set.
    pub stamp: Stamp,
}

/// CONFLICT: a key was not as expected and was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict<'a> {
    /// The request of the SET_STATE.
    pub request: u32,
    /// The group.
    pub handle: Handle,
    /// Version of the key; 0 if there never was one, or none is remembered.
    pub version: u64,
    /// When it was set or deleted.
    pub stamp: Stamp,
    /// Its value; `None` if there is no such key.
    pub data: Option<&'a [u8]>,
}

/// What the entries of a STATE are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StateForm {
    /// None: the client has everything.
    UpToDate = 0,
    /// What changed since the version that the client has.
    Deltas = 1,
    /// Everything; what the client has is void.
    Snapshot = 2,
}

/// The fixed part of a STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHead {
    /// The request of the SYNC.
    pub request: u32,
    /// What the entries are.
    pub form: StateForm,
    /// Whether more entries are to be asked for.
    pub more: bool,
    /// The group.
    pub handle: Handle,
    /// Version that the client has with these entries.
    pub version: u64,
}

/// One key in a STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateEntry<'a> {
    /// Version at which it was set or deleted.
    pub version: u64,
    /// When that was.
    pub stamp: Stamp,
    /// The key.
    pub key: &'a [u8],
    /// Its value; `None` if it was deleted.
    pub data: Option<&'a [u8]>,
}

/// STATE: the keys of a group, or what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State<'a> {
    /// The fixed part.
    pub head: StateHead,
    count: u16,
    entries: &'a [u8],
}

/// What the entries of a ROSTER are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RosterForm {
    /// None: the client has everything.
    UpToDate = 0,
    /// What changed since the version that the client has, in order.
    Changes = 1,
    /// A page of the roster as it is.
    Page = 2,
    /// Only the counts are told; an announcement has a sample of the newest changes.
    Counts = 3,
}

/// What a ROSTER says about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Presence {
    /// It joined.
    Joined = 1,
    /// It left.
    Left = 2,
    /// It is connected.
    Online = 3,
    /// It is not connected.
    Offline = 4,
}

/// The fixed part of a ROSTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterHead {
    /// The request of the ROSTER_QUERY; 0 for an announcement.
    pub request: u32,
    /// What the entries are.
    pub form: RosterForm,
    /// The group.
    pub handle: Handle,
    /// Version of the roster.
    pub version: u64,
    /// Durable members.
    pub members: u32,
    /// Those of them that are connected.
    pub online: u32,
    /// Where the next page begins; 0 if this is the last.
    pub next: u32,
}

/// One member in a ROSTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterEntry<'a> {
    /// What is said about it.
    pub what: Presence,
    /// Its id.
    pub member: &'a [u8],
}

/// ROSTER: who is on a roster, or what changed in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roster<'a> {
    /// The fixed part.
    pub head: RosterHead,
    count: u16,
    entries: &'a [u8],
}

/// Bytes of a FETCHED frame beside its DELIVER frames, header included.
pub const FETCHED_FIXED: usize = FRAME_HEADER + 64;
/// Bytes of a STATE frame beside its entries, header included.
pub const STATE_FIXED: usize = FRAME_HEADER + 24;
/// Bytes of an entry of a STATE beside key and data.
pub const STATE_ENTRY_FIXED: usize = 24;
/// Bytes of a ROSTER frame beside its entries, header included.
pub const ROSTER_FIXED: usize = FRAME_HEADER + 40;
/// Bytes of an entry of a ROSTER beside the member id.
pub const ROSTER_ENTRY_FIXED: usize = 4;

/// Bit of the `flags` of CONFLICT and of an entry of STATE: there is no such key.
const FLAG_DELETED: u16 = 2;

impl<'a> Fetched<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let epoch = Epoch(f.u32("epoch")?);
        let handle = Handle(f.u64("handle")?);
        let first = Seq(f.u64("first")?);
        let last = Seq(f.u64("last")?);
        let head = Seq(f.u64("head")?);
        let (gap_from, gap_to) = (Seq(f.u64("gap_from")?), Seq(f.u64("gap_to")?));
        let reason = GapReason::from_number(f.u32("gap_reason")?);
        let more = f.u8("more")? != 0;
        f.array::<3>("reserved")?;
        if last < first || (first.0 == 0) != (last.0 == 0) {
            return Err(f.bad("last"));
        }
        if gap_to < gap_from {
            return Err(f.bad("gap_to"));
        }
        let gap = (gap_from.0 > 0).then_some((gap_from, gap_to, reason));
        let bytes = f.rest();
        let mut used = 0;
        if first.0 > 0 {
            for seq in first.0..=last.0 {
                let rest = &bytes[used..];
                let Ok(Some((frame, len))) = split(rest, rest.len()) else {
                    return Err(f.bad("frames"));
                };
                let right = frame.kind == kind::DELIVER
                    && Deliver::decode(Fields::of(frame))
                        .is_ok_and(|d| d.seq.0 == seq && d.handle == handle);
                if !right {
                    return Err(f.bad("frames"));
                }
                used += len;
            }
        }
        let frames = &bytes[..used];
        Ok(Self { request, epoch, handle, first, last, head, gap, more, frames })
    }

    /// The messages of the page, in order.
    pub fn messages(&self) -> impl Iterator<Item = Deliver<'a>> + use<'a> {
        let mut rest = self.frames;
        std::iter::from_fn(move || {
            let (frame, len) = split(rest, rest.len()).ok()??;
            rest = &rest[len..];
            Deliver::decode(Fields::of(frame)).ok()
        })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        self.encode_head(out, self.frames.len());
        out.put_slice(self.frames);
    }

    /// Appends everything but the DELIVER frames, which have `frames_len` bytes together and
    /// follow by other means.
    pub fn encode_head(&self, out: &mut impl BufMut, frames_len: usize) {
        let (gap_from, gap_to, reason) =
            self.gap.map_or((0, 0, 0), |(from, to, reason)| (from.0, to.0, reason as u32));
        put_header(out, kind::FETCHED, FETCHED_FIXED - FRAME_HEADER + frames_len);
        out.put_u32_le(self.request);
        out.put_u32_le(self.epoch.0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.first.0);
        out.put_u64_le(self.last.0);
        out.put_u64_le(self.head.0);
        out.put_u64_le(gap_from);
        out.put_u64_le(gap_to);
        out.put_u32_le(reason);
        out.put_u8(u8::from(self.more));
        out.put_slice(&[0; 3]);
    }
}

impl StateSet {
    pub(super) fn decode(mut f: Fields<'_>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        f.u32("reserved")?;
        let handle = Handle(f.u64("handle")?);
        let version = f.u64("version")?;
        Ok(Self { request, handle, version, stamp: Stamp(f.u64("stamp")?) })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(out, kind::STATE_SET, 32);
        out.put_u32_le(self.request);
        out.put_u32_le(0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.version);
        out.put_u64_le(self.stamp.0);
    }
}

impl<'a> Conflict<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let flags = f.u16("flags")?;
        f.u16("reserved")?;
        let handle = Handle(f.u64("handle")?);
        let version = f.u64("version")?;
        let stamp = Stamp(f.u64("stamp")?);
        let data = (flags & FLAG_DELETED == 0).then(|| f.rest());
        Ok(Self { request, handle, version, stamp, data })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        let data = self.data.unwrap_or_default();
        put_header(out, kind::CONFLICT, 32 + data.len());
        out.put_u32_le(self.request);
        out.put_u16_le(if self.data.is_none() { FLAG_DELETED } else { 0 });
        out.put_u16_le(0);
        out.put_u64_le(self.handle.0);
        out.put_u64_le(self.version);
        out.put_u64_le(self.stamp.0);
        out.put_slice(data);
    }
}

/// Reads `count` entries; returns the bytes that they take.
fn entries<'a, T>(
    f: &mut Fields<'a>,
    kind: u8,
    count: u16,
    entry: fn(&mut Fields<'a>) -> Result<T, WireError>,
) -> Result<&'a [u8], WireError> {
    let bytes = f.rest();
    let mut walk = Fields::of(Frame { kind, flags: 0, body: bytes });
    for _ in 0..count {
        entry(&mut walk)?;
    }
    Ok(&bytes[..bytes.len() - walk.rest().len()])
}

fn state_entry<'a>(f: &mut Fields<'a>) -> Result<StateEntry<'a>, WireError> {
    let version = f.u64("entry.version")?;
    let stamp = Stamp(f.u64("entry.stamp")?);
    let flags = f.u16("entry.flags")?;
    let key_len = f.u8("key_len")?;
    f.u8("reserved")?;
    let data_len = f.u32("data_len")?;
    let key = f.name(key_len, STATE_KEY_MAX, "key")?;
    let data = f.take(data_len as usize, "data")?;
    let data = (flags & FLAG_DELETED == 0).then_some(data);
    Ok(StateEntry { version, stamp, key, data })
}

impl<'a> State<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let form = match f.u8("form")? {
            0 => StateForm::UpToDate,
            1 => StateForm::Deltas,
            2 => StateForm::Snapshot,
            _ => return Err(f.bad("form")),
        };
        let more = f.u8("more")? != 0;
        let count = f.u16("count")?;
        let handle = Handle(f.u64("handle")?);
        let version = f.u64("version")?;
        let entries = entries(&mut f, kind::STATE, count, state_entry)?;
        Ok(Self { head: StateHead { request, form, more, handle, version }, count, entries })
    }

    /// The keys, in order.
    pub fn entries(&self) -> impl Iterator<Item = StateEntry<'a>> + use<'a> {
        let mut f = Fields::of(Frame { kind: kind::STATE, flags: 0, body: self.entries });
        (0..self.count).map_while(move |_| state_entry(&mut f).ok())
    }

    /// Appends a STATE of `entries`, at most 65,535, to `out`. They are walked twice.
    pub fn encode<'e>(
        out: &mut impl BufMut,
        head: &StateHead,
        entries: impl Iterator<Item = StateEntry<'e>> + Clone,
    ) {
        let (count, len) =
            entries.clone().fold((0, 0), |(count, len), e| (count + 1, len + e.encoded_len()));
        debug_assert!(count <= usize::from(u16::MAX));
        put_header(out, kind::STATE, STATE_FIXED - FRAME_HEADER + len);
        out.put_u32_le(head.request);
        out.put_u8(head.form as u8);
        out.put_u8(u8::from(head.more));
        out.put_u16_le(count as u16);
        out.put_u64_le(head.handle.0);
        out.put_u64_le(head.version);
        for e in entries {
            debug_assert!((1..=STATE_KEY_MAX).contains(&e.key.len()));
            let data = e.data.unwrap_or_default();
            out.put_u64_le(e.version);
            out.put_u64_le(e.stamp.0);
            out.put_u16_le(if e.data.is_none() { FLAG_DELETED } else { 0 });
            out.put_u8(e.key.len() as u8);
            out.put_u8(0);
            out.put_u32_le(data.len() as u32);
            out.put_slice(e.key);
            out.put_slice(data);
        }
    }
}

impl StateEntry<'_> {
    /// Bytes that this entry takes in a STATE.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        STATE_ENTRY_FIXED + self.key.len() + self.data.map_or(0, <[u8]>::len)
    }
}

fn roster_entry<'a>(f: &mut Fields<'a>) -> Result<RosterEntry<'a>, WireError> {
    let what = match f.u8("what")? {
        1 => Presence::Joined,
        2 => Presence::Left,
        3 => Presence::Online,
        4 => Presence::Offline,
        _ => return Err(f.bad("what")),
    };
    let member_len = f.u8("member_len")?;
    f.u16("reserved")?;
    Ok(RosterEntry { what, member: f.name(member_len, MEMBER_ID_MAX, "member")? })
}

impl<'a> Roster<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let form = match f.u8("form")? {
            0 => RosterForm::UpToDate,
            1 => RosterForm::Changes,
            2 => RosterForm::Page,
            3 => RosterForm::Counts,
            _ => return Err(f.bad("form")),
        };
        f.u8("reserved")?;
        let count = f.u16("count")?;
        let handle = Handle(f.u64("handle")?);
        let version = f.u64("version")?;
        let (members, online) = (f.u32("members")?, f.u32("online")?);
        let next = f.u32("next")?;
        f.u32("reserved")?;
        let head = RosterHead { request, form, handle, version, members, online, next };
        let entries = entries(&mut f, kind::ROSTER, count, roster_entry)?;
        Ok(Self { head, count, entries })
    }

    /// The members, in order.
    pub fn entries(&self) -> impl Iterator<Item = RosterEntry<'a>> + use<'a> {
        let mut f = Fields::of(Frame { kind: kind::ROSTER, flags: 0, body: self.entries });
        (0..self.count).map_while(move |_| roster_entry(&mut f).ok())
    }

    /// Appends a ROSTER of `entries`, at most 65,535, to `out`. They are walked twice.
    pub fn encode<'e>(
        out: &mut impl BufMut,
        head: &RosterHead,
        entries: impl Iterator<Item = RosterEntry<'e>> + Clone,
    ) {
        let (count, len) = entries
            .clone()
            .fold((0, 0), |(count, len), e| (count + 1, len + ROSTER_ENTRY_FIXED + e.member.len()));
        debug_assert!(count <= usize::from(u16::MAX));
        put_header(out, kind::ROSTER, ROSTER_FIXED - FRAME_HEADER + len);
        out.put_u32_le(head.request);
        out.put_u8(head.form as u8);
        out.put_u8(0);
        out.put_u16_le(count as u16);
        out.put_u64_le(head.handle.0);
        out.put_u64_le(head.version);
        out.put_u32_le(head.members);
        out.put_u32_le(head.online);
        out.put_u32_le(head.next);
        out.put_u32_le(0);
        for e in entries {
            debug_assert!((1..=MEMBER_ID_MAX).contains(&e.member.len()));
            out.put_u8(e.what as u8);
            out.put_u8(e.member.len() as u8);
            out.put_u16_le(0);
            out.put_slice(e.member);
        }
    }
}
