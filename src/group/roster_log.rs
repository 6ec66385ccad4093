//! Versions of a group's roster: who joined, left, came online and went offline, in order.
//! Pure. The newest changes are kept, so that a client that knows a version can be told what
//! changed since; one that knows less asks for the roster itself.
//!
//! Who is online is not in the log of the shard, so a start of the server cannot know how far
//! the versions of the one before went. The upper half of a version is therefore the number
//! of the start: no version is given twice.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::limits::ROSTER_CHANGES_KEPT_MAX;
use crate::position::Epoch;
use crate::wire::Presence;

/// One change. Each has a version of its own, one above that of the change before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub what: Presence,
    /// To whom.
    pub member: Rc<[u8]>,
}

/// The version of a roster and its newest changes.
#[derive(Debug, Default)]
pub struct RosterLog {
    /// Changes in this start of the server.
    count: u64,
    changes: VecDeque<Change>,
    /// Of these, how many were announced, or happened when nobody wanted to know.
    announced: u64,
    /// The group is in the list of those with something to announce.
    pub queued: bool,
}

impl RosterLog {
    /// Version of the newest change in this `start` of the server.
    #[must_use]
    pub fn version(&self, start: Epoch) -> u64 {
        (u64::from(start.0) << 32) + self.count
    }

    /// Changes in this start of the server.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The versions up to this count were given to another group of the name.
    pub fn go_on_after(&mut self, count: u64) {
        (self.count, self.announced) = (count, count);
    }

    /// Notes a change.
    pub fn note(&mut self, what: Presence, member: &Rc<[u8]>) {
        if self.changes.len() >= ROSTER_CHANGES_KEPT_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { what, member: member.clone() });
        self.count += 1;
    }

    /// The changes after version `known`, or `None` if they are not known, or not any more.
    #[must_use]
    pub fn since(
        &self,
        start: Epoch,
        known: u64,
    ) -> Option<impl ExactSizeIterator<Item = &Change> + Clone> {
        let count = usize::try_from(self.version(start).checked_sub(known)?).ok()?;
        let skip = self.changes.len().checked_sub(count)?;
        Some(self.changes.range(skip..))
    }

    /// The `count` newest changes, or as many as are known.
    #[must_use]
    pub fn newest(
        &self,
        count: usize,
    ) -> impl ExactSizeIterator<Item = &Change> + DoubleEndedIterator + Clone {
        self.changes.range(self.changes.len().saturating_sub(count)..)
    }

    /// Changes that were not announced.
    #[must_use]
    pub fn unannounced(&self) -> u64 {
        self.count - self.announced
    }

    /// All changes were announced, or nobody wants to know of them.
    pub fn set_announced(&mut self) {
        self.announced = self.count;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const START: Epoch = Epoch(3);

    fn change(what: Presence, member: &[u8]) -> Change {
        Change { what, member: member.into() }
    }

    fn note(log: &mut RosterLog, what: Presence, member: &[u8]) -> u64 {
        log.note(what, &member.into());
        log.version(START)
    }

    #[test]
    fn changes_since_a_version_are_told_in_order() {
        let mut log = RosterLog::default();
        let before = log.version(START);
        assert_eq!(note(&mut log, Presence::Joined, b"ann"), before + 1);
        note(&mut log, Presence::Online, b"ann");
        note(&mut log, Presence::Left, b"bob");
        let since = |known| log.since(START, known).map(|c| c.cloned().collect::<Vec<_>>());
        let last = [change(Presence::Online, b"ann"), change(Presence::Left, b"bob")];
        assert_eq!(since(before + 1).unwrap(), last);
        assert_eq!(since(before).unwrap().len(), 3);
        assert_eq!(since(log.version(START)).unwrap(), []);
        assert!(log.newest(2).cloned().eq(last));
        assert_eq!(log.newest(9).len(), 3);
    }

    #[test]
    fn versions_that_were_never_given_or_are_forgotten_are_not_known() {
        let mut log = RosterLog::default();
        let first = log.version(START);
        assert!(log.since(START, first + 1).is_none(), "of the future");
        assert!(log.since(START, 7).is_none(), "of an earlier start");
        for _ in 0..=ROSTER_CHANGES_KEPT_MAX {
            note(&mut log, Presence::Online, b"ann");
        }
        assert!(log.since(START, first).is_none(), "forgotten");
        assert_eq!(log.since(START, first + 1).unwrap().len(), ROSTER_CHANGES_KEPT_MAX);
    }

    #[test]
    fn a_start_gives_no_version_that_an_earlier_one_may_have_given() {
        let mut log = RosterLog::default();
        let online = note(&mut log, Presence::Online, b"ann");
        assert!(RosterLog::default().version(Epoch(4)) > online);
    }

    #[test]
    fn what_was_announced_is_not_announced_again() {
        let mut log = RosterLog::default();
        note(&mut log, Presence::Joined, b"ann");
        log.set_announced();
        assert_eq!(log.unannounced(), 0);
        note(&mut log, Presence::Left, b"ann");
        assert_eq!(log.unannounced(), 1);
    }
}
