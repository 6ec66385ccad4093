//! The frame: `len u32 | kind u8 | flags u8 | reserved u16 | body`, and reading fields from
//! a body without trusting it.

use bytes::BufMut;

/// Bytes before the body: the length field and the four bytes it already counts.
pub const FRAME_HEADER: usize = 8;

/// Frame kinds. Numbers below 0x80 go to the server, the others to clients.
pub mod kind {
    #![allow(missing_docs, reason = "the names are those of PROTOCOL.md, which explains each")]
    pub const HELLO: u8 = 0x01;
    pub const JOIN: u8 = 0x02;
    pub const LEAVE: u8 = 0x03;
    pub const PUBLISH: u8 = 0x04;
    pub const ACK: u8 = 0x05;
    pub const PING: u8 = 0x06;
    pub const FETCH: u8 = 0x07;
    pub const SET_STATE: u8 = 0x08;
    pub const SYNC: u8 = 0x09;
    pub const ROSTER_QUERY: u8 = 0x0B;
    pub const PROBED: u8 = 0x0C;
    pub const AUTH: u8 = 0x0D;

    pub const WELCOME: u8 = 0x81;
    pub const JOINED: u8 = 0x82;
    pub const LEFT: u8 = 0x83;
    pub const EPOCH: u8 = 0x84;
    pub const DELIVER: u8 = 0x85;
    pub const PUBLISHED: u8 = 0x86;
    pub const PONG: u8 = 0x87;
    pub const ERROR: u8 = 0x88;
    pub const GAP: u8 = 0x89;
    pub const DRAIN: u8 = 0x8A;
    pub const RECEIPT: u8 = 0x8B;
    pub const FETCHED: u8 = 0x8C;
    pub const STATE: u8 = 0x8D;
    pub const CONFLICT: u8 = 0x8E;
    pub const ROSTER: u8 = 0x8F;
    pub const REDELIVER: u8 = 0x90;
    pub const STATE_SET: u8 = 0x91;
    pub const PROBE: u8 = 0x92;
    pub const AUTHED: u8 = 0x93;
}

/// Why bytes from a peer are not a frame. After `TooLong` and `TooShort` the frame boundary
/// is lost, so the connection cannot go on; after `Malformed` it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length field is above the limit.
    #[error("frame of {len} bytes is longer than the limit of {max}")]
    TooLong {
        /// What the length field says.
        len: u64,
        /// The limit in force.
        max: u64,
    },
    /// The length field does not even cover the header.
    #[error("frame length {len} does not cover the 4 bytes of kind, flags and reserved")]
    TooShort {
        /// What the length field says.
        len: u64,
    },
    /// A field of the body is missing, cut off or out of its range.
    #[error("frame of kind {kind:#04x}: field `{field}` is missing or out of range")]
    Malformed {
        /// Kind of the frame.
        kind: u8,
        /// Name of the field as in PROTOCOL.md.
        field: &'static str,
    },
}

/// One whole frame, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Kind, see [`kind`].
    pub kind: u8,
    /// Flags; unknown bits are ignored.
    pub flags: u8,
    /// The body, without the header.
    pub body: &'a [u8],
}

/// Takes the first frame off `bytes`.
///
/// Returns the frame and the number of bytes it took, or `None` if more bytes are needed.
/// `max` bounds the value of the length field.
///
/// # Errors
/// [`WireError::TooLong`] or [`WireError::TooShort`]: the boundary of the next frame is lost.
pub fn split(bytes: &[u8], max: usize) -> Result<Option<(Frame<'_>, usize)>, WireError> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*head) as usize;
    if len > max {
        return Err(WireError::TooLong { len: len as u64, max: max as u64 });
    }
    if len < FRAME_HEADER - 4 {
        return Err(WireError::TooShort { len: len as u64 });
    }
    let Some(frame) = rest.get(..len) else {
        return Ok(None);
    };
    let [kind, flags, _, _, body @ ..] = frame else {
        return Err(WireError::TooShort { len: len as u64 });
    };
    Ok(Some((Frame { kind: *kind, flags: *flags, body }, 4 + len)))
}

/// Writes the header of a frame whose body has `body_len` bytes.
pub(super) fn put_header(out: &mut impl BufMut, kind: u8, body_len: usize) {
    put_header_with(out, kind, 0, body_len);
}

/// The same with flags.
pub(super) fn put_header_with(out: &mut impl BufMut, kind: u8, flags: u8, body_len: usize) {
    out.put_u32_le((body_len + FRAME_HEADER - 4) as u32);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u16_le(0);
}

/// Reads fields off a body, in order. Bytes left over at the end are for later versions and
/// are ignored by whoever does not ask for them.
pub(super) struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(frame: Frame<'a>) -> Self {
        Self { kind: frame.kind, rest: frame.body }
    }

    pub(super) fn bad(&self, field: &'static str) -> WireError {
        WireError::Malformed { kind: self.kind, field }
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], WireError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.bad(field));
        };
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(super) fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.bad(field));
        };
        self.rest = rest;
        Ok(head)
    }

    /// A name or id of 1 to `max` bytes.
    pub(super) fn name(
        &mut self,
        len: u8,
        max: usize,
        field: &'static str,
    ) -> Result<&'a [u8], WireError> {
        if len == 0 || usize::from(len) > max {
            return Err(self.bad(field));
        }
        self.take(usize::from(len), field)
    }

    /// What is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
