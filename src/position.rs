//! Names for positions and identities. Nothing in the engine passes a bare `u64`.
//!
//! The order that always holds for a group on its owner shard:
//! `member_acked <= member_sent <= group_tail <= published <= sequenced`, and for a log:
//! `wal_synced <= wal_appended`.

use std::fmt;

use crate::limits::SHARDS_MAX;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

newtype!(
    /// Index of a shard, from 0 up to the manifest's shard count.
    ShardId(u16)
);
newtype!(
    /// The server's identity, from the manifest.
    NodeId(u16)
);
newtype!(
    /// Sequence number of a message in its group; the first is 1, 0 means "none yet".
    Seq(u64)
);
newtype!(
    /// Node-wide counter that separates incarnations of a group. A message is named by
    /// `(group, epoch, seq)`. Never 0.
    Epoch(u32)
);
newtype!(
    /// Number of a commit in a shard's log; contiguous from 1 over all segments.
    CommitNumber(u64)
);
newtype!(
    /// Number of a segment file in a shard's log, contiguous from 1.
    SegmentNumber(u64)
);
newtype!(
    /// Monotonic time in nanoseconds; only differences mean anything.
    Nanos(u64)
);

impl SegmentNumber {
    /// The same number in the log of a generation that was sealed when the number of shards
    /// changed. Such numbers are below those of later generations, and exist in memory alone.
    #[must_use]
    pub fn sealed(self, log: LogId) -> Self {
        let tag = 1 + u64::from(log.generation) * SHARDS_MAX as u64 + u64::from(log.shard.0);
        Self(self.0 | tag << Self::TAG_SHIFT)
    }

    /// The same number in the log that is written to, in this generation of logs.
    #[must_use]
    pub fn current(self, generation: u16) -> Self {
        match generation {
            0 => self,
            _ => self.sealed(LogId { generation, shard: ShardId(0) }),
        }
    }

    /// Its log, if it is not that of the first generation.
    #[must_use]
    pub fn log(self) -> Option<LogId> {
        let tag = (self.0 >> Self::TAG_SHIFT).checked_sub(1)?;
        let (generation, shard) = (tag / SHARDS_MAX as u64, tag % SHARDS_MAX as u64);
        Some(LogId { generation: generation as u16, shard: ShardId(shard as u16) })
    }

    /// The number as the files have it.
    #[must_use]
    pub fn on_disk(self) -> Self {
        Self(self.0 & ((1 << Self::TAG_SHIFT) - 1))
    }

    const TAG_SHIFT: u32 = 48;
}

/// One log of a data directory: a shard of a generation. A generation ends when the number of
/// shards changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The generation, from 0.
    pub generation: u16,
    /// The shard that wrote it.
    pub shard: ShardId,
}

impl Seq {
    /// The sequence number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Nanos {
    /// This time moved `ms` milliseconds ahead.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to this time, 0 if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Number of a group that is unique on its node and never used again: the owner shard
/// (12 bits), the start of the server that created it (20 bits) and a counter (32 bits).
/// It stays the same as long as any byte on disk or on a wire carries it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

impl Handle {
    /// Builds the handle of the `counter`-th group that `shard` created in server start `start`.
    #[must_use]
    pub fn new(shard: ShardId, start: Epoch, counter: u32) -> Self {
        Self(
            (u64::from(shard.0) << 52) | (u64::from(start.0 & 0xF_FFFF) << 32) | u64::from(counter),
        )
    }

    /// The shard that created the group.
    #[must_use]
    pub fn shard(self) -> ShardId {
        ShardId((self.0 >> 52) as u16)
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({self})")
    }
}

/// Hybrid logical clock: 48 bits of Unix milliseconds and a 16-bit counter (Kulkarni et al.,
/// "Logical Physical Clocks", 2014). Strictly increasing on a shard, also when the wall clock
/// jumps back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The stamp after `self` when the wall clock shows `wall_ms`.
    #[must_use]
    pub fn tick(self, wall_ms: u64) -> Self {
        Self((wall_ms << 16).max(self.0 + 1))
    }

    /// The Unix milliseconds in this stamp.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }
}

/// Identity that a member chose; 1 to [`crate::limits::MEMBER_ID_MAX`] bytes.
pub type MemberId = Box<[u8]>;

/// 128-bit identity of a publisher, chosen by the client.
pub type ProducerId = [u8; 16];

/// How far a message must have come before its publisher is answered and members see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    /// On disk, by a write with DSYNC, before anyone sees it.
    Durable = 1,
    /// Delivered once it has its place in the order; it is in the log with the next commit.
    Memory = 2,
}

impl Level {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Durable, Self::Memory];

    /// Its name in JSON and in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Memory => "memory",
        }
    }

    /// The level with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_increases_when_the_wall_clock_jumps_back() {
        let a = Stamp::default().tick(1_000);
        let b = a.tick(10);
        assert!(b > a);
        assert_eq!(b.millis(), 1_000);
        assert_eq!(b.tick(2_000).millis(), 2_000);
    }

    #[test]
    fn handles_of_shards_and_starts_differ() {
        let a = Handle::new(ShardId(1), Epoch(1), 7);
        assert_ne!(a, Handle::new(ShardId(2), Epoch(1), 7));
        assert_eq!(a.shard(), ShardId(1));
        assert_ne!(a, Handle::new(ShardId(1), Epoch(2), 7));
    }
}
