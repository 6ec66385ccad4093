//! The native encoding: length-prefixed little-endian binary frames. PROTOCOL.md is the
//! specification; this module holds the pure codec. It does no I/O and never panics on what
//! a peer sent.

mod client;
mod error_code;
mod frame;
mod server;

pub use client::{
    Ack, Acks, Auth, ClientFrame, Expected, Fetch, Hello, Join, JoinEntry, Leave, Mode, Publish,
    RosterQuery, SetState, Start, SyncState,
};
pub use error_code::{ErrorCode, ErrorCounts};
pub use frame::{FRAME_HEADER, Frame, WireError, kind, split};
pub use server::{
    Authed, Conflict, DELIVER_FIXED, Deliver, Drain, EpochStart, ErrorFrame, FETCHED_FIXED,
    Fetched, Gap, GapReason, Joined, Left, Presence, Published, ROSTER_ENTRY_FIXED, ROSTER_FIXED,
    Receipt, Redeliver, Roster, RosterEntry, RosterForm, RosterHead, STATE_ENTRY_FIXED,
    STATE_FIXED, ServerFrame, State, StateEntry, StateForm, StateHead, StateSet, Welcome,
};

/// What a native client sends before its first frame.
pub const MAGIC: [u8; 4] = *b"FNFR";

/// The one protocol version this build speaks.
pub const VERSION: u16 = 1;
