//! The typed reasons in an ERROR frame.

/// Code of an ERROR frame. Codes from 1 to 99 close the connection, the others leave it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The first four bytes are neither `FNFR` nor those of an HTTP request.
    BadMagic = 1,
    /// No protocol version in common; `limit` is the version the server speaks.
    VersionUnsupported = 2,
    /// The encoding asked for in HELLO is not served; `limit` is the one that is.
    EncodingUnsupported = 3,
    /// A frame came before HELLO, or HELLO came twice.
    OutOfState = 4,
    /// HELLO did not come in time; `limit` is the deadline in ms.
    HandshakeTimeout = 5,
    /// Nothing was heard for longer than agreed; `limit` is the time in ms.
    HeartbeatTimeout = 6,
    /// The length field is above the limit; `limit` is the longest frame in bytes.
    FrameTooLong = 7,
    /// The length field does not cover the frame header.
    FrameTooShort = 8,
    /// The server holds as many connections as it may; `limit` is that number.
    TooManyConnections = 9,
    /// The connection did not read for too long; `limit` is the time in ms.
    Stalled = 10,
    /// Memory for unfinished frames or for stalled writes ran out and this connection held
    /// the most; `limit` is the budget in bytes.
    MemoryBudget = 11,
    /// The server is stopping.
    ShuttingDown = 12,
    /// Another connection of this member took over.
    Replaced = 13,
    /// The server takes nobody without a token, and none came behind HELLO; `limit` is the
    /// deadline in ms if it passed.
    AuthRequired = 14,
    /// The token has expired; `limit` is when, in seconds of Unix time.
    TokenExpired = 15,
    /// The token is not accepted; `field` says what about it.
    TokenRefused = 16,
    /// The member has as many connections as it may; `limit` is that number.
    TooManyConnectionsOfMember = 17,
    /// The server takes nobody without TLS.
    TlsRequired = 18,
    /// An operator closed the connection.
    Disconnected = 20,

    /// The server does not know this kind of frame; `limit` is the kind.
    UnknownFrame = 100,
    /// A field is missing or out of range; `field` names it.
    Malformed = 101,
    /// The member is in as many groups as it may be; `limit` is that number.
    TooManyGroupsPerMember = 102,
    /// The server holds as many groups as it may; `limit` is that number.
    TooManyGroups = 103,
    /// The group has as many members as it may; `limit` is that number.
    TooManyMembers = 104,
    /// The payload is above the limit; `limit` is the longest payload in bytes.
    PayloadTooLong = 105,
    /// The member is not in the group.
    NotAMember = 106,
    /// The member is in the group already.
    AlreadyAMember = 107,
    /// There is no room on disk for the message; it was not accepted.
    StorageFull = 108,
    /// The shard's log failed before this publish was taken; it was not accepted.
    StorageFailed = 109,
    /// The shard's log failed while this publish was under way; whether it is kept is known
    /// after the server has been restarted.
    Indeterminate = 110,
    /// This build does not serve what was asked for; `field` names it.
    Unsupported = 111,
    /// The server is stopping and takes no more messages; this one was not accepted.
    Draining = 112,
    /// The group does not know this producer, and its first publish is not number 1;
    /// `limit` is 1.
    UnknownProducer = 113,
    /// A publish before this one is missing; `limit` is the number that is expected next.
    ProducerGap = 114,
    /// The publish is older than what the server still recognises; `limit` is the oldest
    /// number that it does.
    ProducerSeqTooOld = 115,
    /// The producer id belongs to another member.
    ProducerTaken = 116,
    /// The group holds as many producers as it may; `limit` is that number.
    TooManyProducers = 117,
    /// Receipts are not served for this group, with `limit` 0, or too many wait; then it is how
    /// many may.
    ReceiptsRefused = 118,
    /// Key, value or state of a group is too large; `field` says which, `limit` is the most.
    StateTooLarge = 119,
    /// Too many FETCH, SET_STATE, SYNC and ROSTER_QUERY wait on this connection; `limit` is how
    /// many may.
    TooManyRequests = 120,
    /// The group holds as many keys as it may; `limit` is that number.
    TooManyKeys = 121,
    /// Receipts of as many different shares wait in the group as may; `limit` is that number.
    TooManyShares = 122,
    /// The token does not allow it; `field` is the group, `limit` the right that is missing.
    Forbidden = 123,
    /// More in a second than is allowed; `limit` is when to try again, in ms, `field` is the
    /// group of a JOIN, and for a PUBLISH whose rate it is.
    RateLimited = 124,
}

impl ErrorCode {
    /// Whether the connection is closed after this error.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        (self as u16) < 100
    }

    /// The code with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        use ErrorCode as E;
        Some(match number {
            1 => E::BadMagic,
            2 => E::VersionUnsupported,
            3 => E::EncodingUnsupported,
            4 => E::OutOfState,
            5 => E::HandshakeTimeout,
            6 => E::HeartbeatTimeout,
            7 => E::FrameTooLong,
            8 => E::FrameTooShort,
            9 => E::TooManyConnections,
            10 => E::Stalled,
            11 => E::MemoryBudget,
            12 => E::ShuttingDown,
            13 => E::Replaced,
            14 => E::AuthRequired,
            15 => E::TokenExpired,
            16 => E::TokenRefused,
            17 => E::TooManyConnectionsOfMember,
            18 => E::TlsRequired,
            20 => E::Disconnected,
            100 => E::UnknownFrame,
            101 => E::Malformed,
            102 => E::TooManyGroupsPerMember,
            103 => E::TooManyGroups,
            104 => E::TooManyMembers,
            105 => E::PayloadTooLong,
            106 => E::NotAMember,
            107 => E::AlreadyAMember,
            108 => E::StorageFull,
            109 => E::StorageFailed,
            110 => E::Indeterminate,
            111 => E::Unsupported,
            112 => E::Draining,
            113 => E::UnknownProducer,
            114 => E::ProducerGap,
            115 => E::ProducerSeqTooOld,
            116 => E::ProducerTaken,
            117 => E::TooManyProducers,
            118 => E::ReceiptsRefused,
            119 => E::StateTooLarge,
            120 => E::TooManyRequests,
            121 => E::TooManyKeys,
            122 => E::TooManyShares,
            123 => E::Forbidden,
            124 => E::RateLimited,
            _ => return None,
        })
    }
}

/// Numbers that are kept apart for the codes below 100, and for the others.
const COUNTED: usize = 32;

/// How many ERROR frames of each code there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCounts([u64; 2 * COUNTED]);

impl Default for ErrorCounts {
    fn default() -> Self {
        Self([0; 2 * COUNTED])
    }
}

impl ErrorCounts {
    /// Counts one.
    pub fn add(&mut self, code: ErrorCode) {
        let number = code as usize;
        let place = if number < 100 { number } else { number - 100 + COUNTED };
        if let Some(count) = self.0.get_mut(place) {
            *count += 1;
        }
    }

    /// The codes that came up, with their counts.
    pub fn counted(&self) -> impl Iterator<Item = (ErrorCode, u64)> + '_ {
        self.0.iter().enumerate().filter(|(_, count)| **count > 0).filter_map(|(place, count)| {
            let number = if place < COUNTED { place } else { place - COUNTED + 100 };
            Some((ErrorCode::from_number(number as u16)?, *count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_counted_apart() {
        let codes: Vec<_> = (0..200).filter_map(ErrorCode::from_number).collect();
        let mut counts = ErrorCounts::default();
        for (n, code) in codes.iter().enumerate() {
            (0..=n).for_each(|_| counts.add(*code));
        }
        let counted: Vec<_> = counts.counted().collect();
        assert_eq!(counted, codes.into_iter().zip(1..).collect::<Vec<_>>());
    }
}
