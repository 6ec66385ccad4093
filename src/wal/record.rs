//! Records: changes of a group that are not messages. Pure encode and decode.

use bytes::BufMut;

use super::bytes_at::{u16_at, u32_at, u64_at};
use crate::position::{Epoch, Seq, Stamp};

/// Bytes of a record before its name and data.
pub const RECORD_FIXED: usize = 24;

const MEMBER_JOINED: u8 = 1;
const MEMBER_LEFT: u8 = 2;
const CURSOR: u8 = 3;
const STATE: u8 = 4;
const RECEIPTS_READ: u8 = 5;
const FLAG_DELETED: u16 = 2;

/// One record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A durable member joined.
    MemberJoined {
        /// Its id.
        member: &'a [u8],
        /// The group's published head then.
        joined_at: Seq,
        /// Version of the roster with it.
        roster: u64,
    },
    /// A durable member left.
    MemberLeft {
        /// Its id.
        member: &'a [u8],
        /// Version of the roster without it.
        roster: u64,
    },
    /// A durable member has acknowledged everything up to `acked`.
    Cursor {
        /// Its id.
        member: &'a [u8],
        /// The last message it acknowledged.
        acked: Seq,
        /// Epoch of that message.
        epoch: Epoch,
    },
    /// A key of the group's state was set or deleted.
    State {
        /// The key.
        key: &'a [u8],
        /// Version of the key, and of the group's state, with this change.
        version: u64,
        /// When.
        stamp: Stamp,
        /// The key was deleted; there is no data then.
        deleted: bool,
        /// Its value.
        data: &'a [u8],
    },
    /// Receipts of messages up to this one were read by their publishers.
    ReceiptsRead {
        /// The message.
        seq: Seq,
    },
    /// A record of a type that this build does not know.
    Unknown {
        /// The type.
        kind: u8,
    },
}

impl Record<'_> {
    /// Bytes that [`Record::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_FIXED
            + match self {
                Self::MemberJoined { member, .. }
                | Self::MemberLeft { member, .. }
                | Self::Cursor { member, .. } => member.len(),
                Self::State { key, data, .. } => key.len() + data.len(),
                Self::ReceiptsRead { .. } | Self::Unknown { .. } => 0,
            }
    }

    /// Appends the record to `out`. Names are at most 255 bytes long.
    pub fn encode(&self, out: &mut impl BufMut) {
        match *self {
            Self::MemberJoined { member, joined_at, roster } => {
                put(out, MEMBER_JOINED, 0, joined_at.0, roster, member, &[]);
            }
            Self::MemberLeft { member, roster } => {
                put(out, MEMBER_LEFT, 0, 0, roster, member, &[]);
            }
            Self::Cursor { member, acked, epoch } => {
                put(out, CURSOR, 0, acked.0, u64::from(epoch.0), member, &[]);
            }
            Self::State { key, version, stamp, deleted, data } => {
                let flags = if deleted { FLAG_DELETED } else { 0 };
                put(out, STATE, flags, version, stamp.0, key, data);
            }
            Self::ReceiptsRead { seq } => put(out, RECEIPTS_READ, 0, seq.0, 0, &[], &[]),
            Self::Unknown { kind } => put(out, kind, 0, 0, 0, &[], &[]),
        }
    }
}

/// Encodes what every record consists of.
pub(super) fn put(
    out: &mut impl BufMut,
    kind: u8,
    flags: u16,
    a: u64,
    b: u64,
    name: &[u8],
    data: &[u8],
) {
    debug_assert!(name.len() <= usize::from(u8::MAX));
    out.put_u8(kind);
    out.put_u8(name.len() as u8);
    out.put_u16_le(flags);
    out.put_u32_le(data.len() as u32);
    out.put_u64_le(a);
    out.put_u64_le(b);
    out.put_slice(name);
    out.put_slice(data);
}

/// What every record consists of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub kind: u8,
    pub flags: u16,
    pub a: u64,
    pub b: u64,
    pub name: &'a [u8],
    pub data: &'a [u8],
}

/// Takes the parts of the first record off `bytes`; `None` if there is no whole one.
pub(super) fn take_parts<'a>(bytes: &mut &'a [u8]) -> Option<Parts<'a>> {
    let (fixed, rest) = bytes.split_at_checked(RECORD_FIXED)?;
    let (name, rest) = rest.split_at_checked(usize::from(fixed[1]))?;
    let (data, rest) = rest.split_at_checked(u32_at(fixed, 4) as usize)?;
    *bytes = rest;
    let (kind, flags) = (fixed[0], u16_at(fixed, 2));
    Some(Parts { kind, flags, a: u64_at(fixed, 8), b: u64_at(fixed, 16), name, data })
}

/// Takes the first record off `bytes`; `None` if there is no whole one.
pub fn take_record<'a>(bytes: &mut &'a [u8]) -> Option<Record<'a>> {
    let mut rest = *bytes;
    let Parts { kind, flags, a, b, name, data } = take_parts(&mut rest)?;
    let record = match kind {
        MEMBER_JOINED => Record::MemberJoined { member: name, joined_at: Seq(a), roster: b },
        MEMBER_LEFT => Record::MemberLeft { member: name, roster: b },
        CURSOR => {
            let epoch = Epoch(u32::try_from(b).ok()?);
            Record::Cursor { member: name, acked: Seq(a), epoch }
        }
        RECEIPTS_READ => Record::ReceiptsRead { seq: Seq(a) },
        STATE => Record::State {
            key: name,
            version: a,
            stamp: Stamp(b),
            deleted: flags & FLAG_DELETED != 0,
            data,
        },
        // A type of 0 is what zeros would be.
        0 => return None,
        kind => Record::Unknown { kind },
    };
    *bytes = rest;
    Some(record)
}

/// The records in `bytes`, up to the first that is not whole.
pub fn records<'a>(mut bytes: &'a [u8]) -> impl Iterator<Item = Record<'a>> + use<'a> {
    std::iter::from_fn(move || take_record(&mut bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all() -> [Record<'static>; 6] {
        [
            Record::MemberJoined { member: b"ann", joined_at: Seq(7), roster: 3 },
            Record::MemberLeft { member: b"bob", roster: 4 },
            Record::Cursor { member: b"ann", acked: Seq(1 << 40), epoch: Epoch(9) },
            Record::State {
                key: b"topic",
                version: 5,
                stamp: Stamp(77),
                deleted: false,
                data: b"cats",
            },
            Record::State { key: b"topic", version: 6, stamp: Stamp(78), deleted: true, data: b"" },
            Record::ReceiptsRead { seq: Seq(9) },
        ]
    }

    #[test]
    fn records_decode_to_what_was_encoded() {
        let mut bytes = Vec::new();
        for record in all() {
            let before = bytes.len();
            record.encode(&mut bytes);
            assert_eq!(bytes.len() - before, record.encoded_len());
        }
        assert_eq!(records(&bytes).collect::<Vec<_>>(), all());
    }

    #[test]
    fn a_record_of_an_unknown_type_is_stepped_over_whole() {
        let mut bytes = Vec::new();
        put(&mut bytes, 200, 0xFFFF, 1, 2, b"name", b"data");
        all()[0].encode(&mut bytes);
        assert_eq!(records(&bytes).collect::<Vec<_>>(), [Record::Unknown { kind: 200 }, all()[0]]);
    }

    #[test]
    fn records_cut_off_at_any_byte_and_zeros_end_the_walk() {
        let mut bytes = Vec::new();
        all()[3].encode(&mut bytes);
        for len in 0..bytes.len() {
            assert_eq!(records(&bytes[..len]).count(), 0, "{len}");
        }
        assert_eq!(records(&[0; 4096]).count(), 0);
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        bolero::check!().with_iterations(20_000).with_type::<(Vec<(u8, u8)>, Vec<u8>)>().for_each(
            |(edits, noise)| {
                let mut bytes = Vec::new();
                all().iter().for_each(|record| record.encode(&mut bytes));
                for (at, byte) in edits {
                    let at = usize::from(*at) % bytes.len();
                    bytes[at] = *byte;
                }
                assert!(records(&bytes).count() <= bytes.len() / RECORD_FIXED);
                assert!(records(noise).count() <= noise.len() / RECORD_FIXED);
            },
        );
    }
}
