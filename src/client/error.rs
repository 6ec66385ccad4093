//! What an application may do wrong.

use super::event::Reason;

/// A command that was not taken, or a connection that could not be made at first.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A member id has 1 to 64 bytes.
    #[error("a member id of {0} bytes; it has 1 to 64")]
    MemberLength(usize),
    /// A token has 1 to 4096 bytes.
    #[error("a token of {0} bytes; it has 1 to 4096")]
    TokenLength(usize),
    /// A group name has 1 to 128 bytes.
    #[error("a group name of {0} bytes; it has 1 to 128")]
    GroupLength(usize),
    /// A key of a group's state has 1 to 128 bytes.
    #[error("a key of {0} bytes; it has 1 to 128")]
    KeyLength(usize),
    /// The payload is longer than the server takes.
    #[error("a payload of {len} bytes; the server takes {max}")]
    PayloadTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A share is 0 to 100 percent.
    #[error("a receipt at {0} percent; use 0 to 100")]
    Percent(u8),
    /// There is no room until answers come; see [`super::Options`].
    #[error("{what} without an answer are at their limit of {max}; take events, then try again")]
    Full {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The client was used for as many groups as [`super::Options::groups_max`] allows.
    #[error("the client has used {0} groups, which is its limit; raise Options::groups_max")]
    TooManyGroups(usize),
    /// The group was not joined.
    #[error("the group was not joined")]
    NotJoined,
    /// The client has ended; see the last [`super::Event::Disconnected`].
    #[error("the client has ended: {0}")]
    Over(Reason),
    /// The first connection could not be made.
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
}
