//! The native encoding: length-prefixed little-endian binary frames. PROTOCOL.md is the
//! specification; this module holds the pure codec. It does no I/O and never panics on what
//! a peer sent.

mod client;
mod error_code;
mod frame;
mod server;

pub use client::{Ack, Acks, ClientFrame, Hello, Join, JoinEntry, Leave, Publish, Start};
pub use error_code::ErrorCode;
pub use frame::{FRAME_HEADER, Frame, WireError, kind, split};
pub use server::{
    DELIVER_FIXED, Deliver, Drain, EpochStart, ErrorFrame, Gap, GapReason, Joined, Left, Published,
    ServerFrame, Welcome,
};

/// What a native client sends before its first frame.
pub const MAGIC: [u8; 4] = *b"FNFR";

/// The one protocol version this build speaks.
pub const VERSION: u16 = 1;
