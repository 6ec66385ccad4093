//! WebSocket (RFC 6455) for clients that cannot open a bare socket, browsers first. Pure, like
//! [`crate::wire`]: it does no I/O and never panics on what a peer sent. PROTOCOL.md says what the
//! messages carry.
//!
//! A connection begins with [`upgrade`]; then [`Decoder`] cuts what comes into messages, and
//! [`encode`] puts headers before what goes out.

mod close;
mod decode;
pub mod deflate;
pub mod encode;
pub mod json;
mod origin;
pub mod upgrade;
mod utf8;

pub use close::{CloseCode, Violation};
pub use decode::{Decoder, Item};
pub use origin::Origins;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Bytes.
    Binary,
}

/// What a frame is, as it is numbered on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

impl From<Kind> for Opcode {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text,
            Kind::Binary => Self::Binary,
        }
    }
}

/// The last frame of a message.
const FIN: u8 = 0x80;
/// RSV1, on the first frame of a message that is compressed (RFC 7692, 6).
const COMPRESSED: u8 = 0x40;

/// Longest payload of a ping, pong or close.
pub const CONTROL_PAYLOAD_MAX: usize = 125;
