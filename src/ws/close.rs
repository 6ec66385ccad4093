//! Why a WebSocket connection ends.

/// Code of a Close frame (RFC 6455, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The server goes away.
    pub const GOING_AWAY: Self = Self(1001);
    /// The peer broke a rule of RFC 6455.
    pub const PROTOCOL: Self = Self(1002);
    /// A message of a kind that this subprotocol does not carry.
    pub const UNSUPPORTED: Self = Self(1003);
    /// The content of a message is not what its kind promises.
    pub const INVALID: Self = Self(1007);
    /// A message is longer than the server takes.
    pub const TOO_BIG: Self = Self(1009);

    /// The code that stands for a native ERROR which ends the connection: 4000 and its code.
    #[must_use]
    pub fn of_error(code: u16) -> Self {
        Self(4000 + code)
    }

    /// Whether a peer may send it: 1004 to 1006 and 1015 never stand in a frame, and what is
    /// below 3000 is for those that are registered.
    #[must_use]
    pub fn is_sendable(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// What a peer did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// RSV1 to RSV3 are for extensions, and none was agreed on.
    #[error("a reserved bit is set, and no extension was agreed on")]
    ReservedBits,
    /// Not one of the opcodes of RFC 6455.
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    /// Clients mask every frame.
    #[error("a frame of a client must be masked")]
    Unmasked,
    /// A length in more bytes than it needs, or with its highest bit set.
    #[error("the length of a frame is not in its shortest form")]
    LengthForm,
    /// A ping, pong or close of more than 125 bytes.
    #[error("a control frame of {0} bytes is longer than 125")]
    ControlTooLong(u64),
    /// A ping, pong or close without FIN.
    #[error("a control frame must not be fragmented")]
    ControlFragmented,
    /// A continuation, and no message has begun.
    #[error("there is no message to continue")]
    NothingToContinue,
    /// A message began before the one before it ended.
    #[error("a message began inside another one")]
    MessageInMessage,
    /// A Close with half a code, or with one that must not be sent.
    #[error("the code of a close must not be sent")]
    CloseCode,
    /// This subprotocol has no messages of this kind.
    #[error("this subprotocol has no messages of this kind")]
    Kind,
    /// Text, or the reason of a Close, is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A message that says so is not compressed as was agreed on.
    #[error("a compressed message cannot be read")]
    NotDeflate,
    /// A message ends inside one of the frames that it carries.
    #[error("the message ends inside a frame")]
    CutOff,
    /// A message is longer than the server takes.
    #[error("a message is longer than {max} bytes")]
    TooBig {
        /// The longest message taken.
        max: u64,
    },
}

impl Violation {
    /// The code of the Close that answers it.
    #[must_use]
    pub fn code(self) -> CloseCode {
        match self {
            Self::Kind => CloseCode::UNSUPPORTED,
            Self::NotUtf8 | Self::NotDeflate | Self::CutOff => CloseCode::INVALID,
            Self::TooBig { .. } => CloseCode::TOO_BIG,
            _ => CloseCode::PROTOCOL,
        }
    }
}
