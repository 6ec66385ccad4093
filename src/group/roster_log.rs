//! Versions of a group's roster: who joined, left, came online and went offline, in order.
//! Pure. The newest changes are kept, so that a client that knows a version can be told what
//! changed since; one that knows less asks for the roster itself.

use std::collections::VecDeque;

use crate::limits::ROSTER_CHANGES_KEPT_MAX;
use crate::position::{Epoch, MemberId};

/// What happened to a durable member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum What {
    /// It belongs to the group from now on.
    Joined = 1,
    /// It does not belong to it any more.
    Left = 2,
    /// It has a connection.
    Online = 3,
    /// It has none.
    Offline = 4,
}

/// One change. Each has a version of its own, one above that of the change before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub what: What,
    /// To whom.
    pub member: MemberId,
}

/// The version of a roster and its newest changes.
#[derive(Clone, Debug, Default)]
pub struct RosterLog {
    version: u64,
    changes: VecDeque<Change>,
}

impl RosterLog {
    /// A log that goes on after `recorded`, the highest version in the shard's log.
    ///
    /// Who is online is not recorded, so versions above `recorded` were given that nobody
    /// knows any more. The upper half of a version is therefore at least the number of the
    /// server's start: no version is given twice.
    #[must_use]
    pub fn new(start: Epoch, recorded: u64) -> Self {
        Self { version: recorded.max(u64::from(start.0) << 32), changes: VecDeque::new() }
    }

    /// Version of the newest change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Notes a change; returns its version.
    pub fn note(&mut self, what: What, member: &[u8]) -> u64 {
        if self.changes.len() >= ROSTER_CHANGES_KEPT_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { what, member: member.into() });
        self.version += 1;
        self.version
    }

    /// The changes after version `known`, or `None` if they are not known, or not any more.
    #[must_use]
    pub fn since(&self, known: u64) -> Option<impl ExactSizeIterator<Item = &Change>> {
        let count = usize::try_from(self.version.checked_sub(known)?).ok()?;
        let skip = self.changes.len().checked_sub(count)?;
        Some(self.changes.range(skip..))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn log() -> RosterLog {
        RosterLog::new(Epoch(3), 7)
    }

    #[test]
    fn changes_since_a_version_are_told_in_order() {
        let mut log = log();
        let before = log.version();
        assert_eq!(log.note(What::Joined, b"ann"), before + 1);
        log.note(What::Online, b"ann");
        log.note(What::Left, b"bob");
        let since = |known| log.since(known).map(|changes| changes.cloned().collect::<Vec<_>>());
        let change = |what, member: &[u8]| Change { what, member: member.into() };
        assert_eq!(
            since(before + 1).unwrap(),
            [change(What::Online, b"ann"), change(What::Left, b"bob")]
        );
        assert_eq!(since(before).unwrap().len(), 3);
        assert_eq!(since(log.version()).unwrap(), []);
    }

    #[test]
    fn versions_that_were_never_given_or_are_forgotten_are_not_known() {
        let mut log = log();
        let start = log.version();
        assert!(log.since(start + 1).is_none(), "of the future");
        assert!(log.since(7).is_none(), "of an earlier start");
        for _ in 0..=ROSTER_CHANGES_KEPT_MAX {
            log.note(What::Online, b"ann");
        }
        assert!(log.since(start).is_none(), "forgotten");
        assert_eq!(log.since(start + 1).unwrap().len(), ROSTER_CHANGES_KEPT_MAX);
    }

    #[test]
    fn a_start_gives_no_version_that_an_earlier_one_may_have_given() {
        let mut log = log();
        let joined = log.note(What::Joined, b"ann");
        let online = log.note(What::Online, b"ann");
        assert!(RosterLog::new(Epoch(4), joined).version() > online);
        assert_eq!(RosterLog::new(Epoch(4), 9 << 32).version(), 9 << 32);
    }
}
