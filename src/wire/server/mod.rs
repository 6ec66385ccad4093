//! Frames that the server sends.

mod messages;
mod queries;
mod session;

use bytes::BufMut;

use super::frame::{Fields, Frame, WireError, kind, put_header};

pub use messages::{
    DELIVER_FIXED, Deliver, EpochStart, Gap, GapReason, Published, Receipt, Redeliver,
};
pub use queries::{
    Conflict, FETCHED_FIXED, Fetched, Presence, ROSTER_ENTRY_FIXED, ROSTER_FIXED, Roster,
    RosterEntry, RosterForm, RosterHead, STATE_ENTRY_FIXED, STATE_FIXED, State, StateEntry,
    StateForm, StateHead, StateSet,
};
pub use session::{Authed, Drain, ErrorFrame, Joined, Left, Welcome};

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
    /// Enough members have a message.
    Receipt(Receipt),
    /// A page of history.
    Fetched(Fetched<'a>),
    /// What changed in a group's state.
    State(State<'a>),
    /// A key was not as expected.
    Conflict(Conflict<'a>),
    /// Who is on a roster, or what changed in it.
    Roster(Roster<'a>),
    /// What was not acknowledged comes again.
    Redeliver(Redeliver),
    /// A key was set.
    StateSet(StateSet),
    /// Asks for a PROBED with the same token.
    Probe {
        /// Any number; comes back in PROBED.
        token: u64,
    },
    /// A token was accepted.
    Authed(Authed),
    /// A kind this build does not know; clients skip it.
    Unknown {
        /// The kind.
        kind: u8,
    },
}

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
            kind::LEFT => Self::Left(Left::decode(f)?),
            kind::EPOCH => Self::Epoch(EpochStart::decode(f)?),
            kind::DELIVER => Self::Deliver(Deliver::decode(f)?),
            kind::PUBLISHED => Self::Published(Published::decode(f)?),
            kind::PONG => Self::Pong { token: f.u64("token")? },
            kind::ERROR => Self::Error(ErrorFrame::decode(f)?),
            kind::GAP => Self::Gap(Gap::decode(f)?),
            kind::DRAIN => Self::Drain(Drain::decode(f)?),
            kind::RECEIPT => Self::Receipt(Receipt::decode(f)?),
            kind::FETCHED => Self::Fetched(Fetched::decode(f)?),
            kind::STATE => Self::State(State::decode(f)?),
            kind::CONFLICT => Self::Conflict(Conflict::decode(f)?),
            kind::ROSTER => Self::Roster(Roster::decode(f)?),
            kind::REDELIVER => Self::Redeliver(Redeliver::decode(f)?),
            kind::STATE_SET => Self::StateSet(StateSet::decode(f)?),
            kind::PROBE => Self::Probe { token: f.u64("token")? },
            kind::AUTHED => Self::Authed(Authed::decode(f)?),
            kind => Self::Unknown { kind },
        })
    }

    /// Appends a PONG to `out`.
    pub fn encode_pong(out: &mut impl BufMut, token: u64) {
        put_header(out, kind::PONG, 8);
        out.put_u64_le(token);
    }

    /// Appends a PROBE to `out`.
    pub fn encode_probe(out: &mut impl BufMut, token: u64) {
        put_header(out, kind::PROBE, 8);
        out.put_u64_le(token);
    }
}
