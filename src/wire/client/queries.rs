//! Questions about a group that need no membership: its history, its state, its roster.

use bytes::BufMut;

use crate::limits::{GROUP_NAME_MAX, STATE_KEY_MAX};
use crate::position::Seq;
use crate::wire::frame::{Fields, WireError, kind, put_header};

/// FETCH: a page of the messages that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch<'a> {
    /// Comes back in FETCHED or ERROR.
    pub request: u32,
    /// First message wanted.
    pub from: Seq,
    /// Last message wanted; `None` is the head.
    pub to: Option<Seq>,
    /// Most messages in the answer; 0 for no bound.
    pub count_max: u32,
    /// Most bytes of DELIVER frames in the answer; 0 for what fits into a frame.
    pub bytes_max: u32,
    /// Name of the group.
    pub group: &'a [u8],
}

/// What a key must be for a SET_STATE to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is.
    Any,
    /// There is no such key.
    Absent,
    /// Of this version.
    Version(u64),
}

/// SET_STATE: compare-and-set of one key of a group's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState<'a> {
    /// Comes back in STATE_SET, CONFLICT or ERROR.
    pub request: u32,
    /// What the key must be.
    pub expected: Expected,
    /// Name of the group.
    pub group: &'a [u8],
    /// The key.
    pub key: &'a [u8],
    /// The new value; `None` deletes the key.
    pub data: Option<&'a [u8]>,
}

/// SYNC: what changed in a group's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncState<'a> {
    /// Comes back in STATE or ERROR.
    pub request: u32,
    /// Version of the group's state that the client has; 0 for none.
    pub known: u64,
    /// Name of the group.
    pub group: &'a [u8],
}

/// ROSTER_QUERY: who is on a group's roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterQuery<'a> {
    /// Comes back in ROSTER or ERROR.
    pub request: u32,
    /// Version of the roster that the client has; 0 for none.
    pub known: u64,
    /// Where the page begins: `next` of the page before, or 0 for the first.
    pub after: u32,
    /// Most members in the answer; 0 asks for the counts alone.
    pub limit: u32,
    /// Name of the group.
    pub group: &'a [u8],
}

/// Flag bits of SET_STATE.
const FLAG_EXPECTED: u16 = 1;
const FLAG_DELETE: u16 = 2;

impl<'a> Fetch<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let name_len = f.u8("name_len")?;
        f.array::<3>("reserved")?;
        let from = Seq(f.u64("from")?.max(1));
        let to = Some(Seq(f.u64("to")?)).filter(|to| to.0 > 0);
        let count_max = f.u32("count_max")?;
        let bytes_max = f.u32("bytes_max")?;
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        if to.is_some_and(|to| to < from) {
            return Err(f.bad("to"));
        }
        Ok(Self { request, from, to, count_max, bytes_max, group })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::FETCH, 32 + self.group.len());
        out.put_u32_le(self.request);
        out.put_u8(self.group.len() as u8);
        out.put_slice(&[0; 3]);
        out.put_u64_le(self.from.0);
        out.put_u64_le(self.to.map_or(0, |to| to.0));
        out.put_u32_le(self.count_max);
        out.put_u32_le(self.bytes_max);
        out.put_slice(self.group);
    }
}

impl<'a> SetState<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let name_len = f.u8("name_len")?;
        let key_len = f.u8("key_len")?;
        let flags = f.u16("flags")?;
        let expected = match (flags & FLAG_EXPECTED, f.u64("expected")?) {
            (0, _) => Expected::Any,
            (_, 0) => Expected::Absent,
            (_, version) => Expected::Version(version),
        };
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        let key = f.name(key_len, STATE_KEY_MAX, "key")?;
        let data = (flags & FLAG_DELETE == 0).then(|| f.rest());
        Ok(Self { request, expected, group, key, data })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        debug_assert!((1..=STATE_KEY_MAX).contains(&self.key.len()));
        let data = self.data.unwrap_or_default();
        let (counts, expected) = match self.expected {
            Expected::Any => (0, 0),
            Expected::Absent => (FLAG_EXPECTED, 0),
            Expected::Version(version) => (FLAG_EXPECTED, version),
        };
        let delete = if self.data.is_none() { FLAG_DELETE } else { 0 };
        put_header(out, kind::SET_STATE, 16 + self.group.len() + self.key.len() + data.len());
        out.put_u32_le(self.request);
        out.put_u8(self.group.len() as u8);
        out.put_u8(self.key.len() as u8);
        out.put_u16_le(counts | delete);
        out.put_u64_le(expected);
        out.put_slice(self.group);
        out.put_slice(self.key);
        out.put_slice(data);
    }
}

impl<'a> SyncState<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let name_len = f.u8("name_len")?;
        f.array::<3>("reserved")?;
        let known = f.u64("known")?;
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        Ok(Self { request, known, group })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::SYNC, 16 + self.group.len());
        out.put_u32_le(self.request);
        out.put_u8(self.group.len() as u8);
        out.put_slice(&[0; 3]);
        out.put_u64_le(self.known);
        out.put_slice(self.group);
    }
}

impl<'a> RosterQuery<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let name_len = f.u8("name_len")?;
        f.array::<3>("reserved")?;
        let known = f.u64("known")?;
        let after = f.u32("after")?;
        let limit = f.u32("limit")?;
        let group = f.name(name_len, GROUP_NAME_MAX, "group")?;
        Ok(Self { request, known, after, limit, group })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=GROUP_NAME_MAX).contains(&self.group.len()));
        put_header(out, kind::ROSTER_QUERY, 24 + self.group.len());
        out.put_u32_le(self.request);
        out.put_u8(self.group.len() as u8);
        out.put_slice(&[0; 3]);
        out.put_u64_le(self.known);
        out.put_u32_le(self.after);
        out.put_u32_le(self.limit);
        out.put_slice(self.group);
    }
}
