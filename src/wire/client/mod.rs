//! Frames that a client sends.

mod auth;
mod groups;
mod messages;
mod queries;

use bytes::BufMut;

use super::frame::{Fields, Frame, WireError, kind, put_header, put_header_with};
use crate::limits::{FRAME_ENTRIES_MAX, MEMBER_ID_MAX};
use crate::position::ProducerId;

pub use auth::Auth;
pub use groups::{Join, JoinEntry, Leave, Mode, Start};
pub use messages::{Ack, Acks, Publish};
pub use queries::{Expected, Fetch, RosterQuery, SetState, SyncState};

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
    /// Says that the client is there, and wants no answer.
    QuietPing {
        /// Any number.
        token: u64,
    },
    /// Messages of a group that are kept, once, without being a member.
    Fetch(Fetch<'a>),
    /// Compare-and-set of one key of a group's state.
    SetState(SetState<'a>),
    /// What changed in a group's state.
    Sync(SyncState<'a>),
    /// Who is on a group's roster.
    RosterQuery(RosterQuery<'a>),
    /// Answer to PROBE: everything before it was read.
    Probed {
        /// The token of the PROBE.
        token: u64,
    },
    /// Proves who the client is and what it may do.
    Auth(Auth<'a>),
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

/// Flag of PING: no PONG is wanted.
const FLAG_QUIET: u8 = 1;

impl Frame<'_> {
    /// The request number of a frame that carries one and whose body may be malformed after
    /// it; 0 for other kinds and bodies that are too short. For the ERROR that answers them.
    #[must_use]
    pub fn request(&self) -> u32 {
        let carries_one = matches!(
            self.kind,
            kind::JOIN
                | kind::LEAVE
                | kind::PUBLISH
                | kind::FETCH
                | kind::SET_STATE
                | kind::SYNC
                | kind::ROSTER_QUERY
                | kind::AUTH
        );
        match self.body.first_chunk() {
            Some(request) if carries_one => u32::from_le_bytes(*request),
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
                let token = f.u64("token")?;
                let quiet = frame.flags & FLAG_QUIET != 0;
                Ok(if quiet { Self::QuietPing { token } } else { Self::Ping { token } })
            }
            kind::FETCH => Fetch::decode(f).map(Self::Fetch),
            kind::SET_STATE => SetState::decode(f).map(Self::SetState),
            kind::SYNC => SyncState::decode(f).map(Self::Sync),
            kind::ROSTER_QUERY => RosterQuery::decode(f).map(Self::RosterQuery),
            kind::PROBED => {
                let mut f = f;
                Ok(Self::Probed { token: f.u64("token")? })
            }
            kind::AUTH => Auth::decode(f).map(Self::Auth),
            kind => Ok(Self::Unknown { kind }),
        }
    }
}

impl<'a> Hello<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
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

pub(super) fn entry_count(f: &mut Fields<'_>) -> Result<u16, WireError> {
    let count = f.u16("count")?;
    if count == 0 || usize::from(count) > FRAME_ENTRIES_MAX {
        return Err(f.bad("count"));
    }
    f.u16("reserved")?;
    Ok(count)
}

impl ClientFrame<'_> {
    /// Appends a PING to `out`.
    pub fn encode_ping(out: &mut impl BufMut, token: u64) {
        put_header(out, kind::PING, 8);
        out.put_u64_le(token);
    }

    /// Appends a PING that wants no answer to `out`.
    pub fn encode_quiet_ping(out: &mut impl BufMut, token: u64) {
        put_header_with(out, kind::PING, FLAG_QUIET, 8);
        out.put_u64_le(token);
    }

    /// Appends a PROBED to `out`.
    pub fn encode_probed(out: &mut impl BufMut, token: u64) {
        put_header(out, kind::PROBED, 8);
        out.put_u64_le(token);
    }
}
