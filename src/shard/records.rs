//! Records that wait for a commit: joins and leaves of durable members, cursors, state. They
//! go with the next commit, or make one of their own.

use std::collections::VecDeque;

use slab::Slab;

use super::Shard;
use crate::group::Group;
use crate::limits::{COMMIT_RECORDS_MAX, GROUP_NAME_MAX, RECORD_BYTES_MAX};
use crate::position::Handle;
use crate::wal::{Record, Run};
use crate::wire::ErrorCode;

/// Bytes of records that may wait; more are refused. They wait longer than one commit only
/// when the disk is full.
const STAGED_MAX: usize = 8 * COMMIT_RECORDS_MAX;
/// A run is not made longer than this, so that a commit can be filled up with runs.
const RUN_BYTES_MAX: usize = 64 * 1024;
/// Bytes that a run takes in a commit beside its records, at most.
const RUN_OVERHEAD: usize = 64 + GROUP_NAME_MAX;

/// A place in the order in which a shard's records were staged. An answer that tells of a
/// record waits until [`Shard::records_synced`] has reached its ticket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Consecutive records of one group.
#[derive(Debug)]
struct Stretch {
    group: u32,
    handle: Handle,
    count: u32,
    len: usize,
}

/// All records that wait, in order.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    stretches: VecDeque<Stretch>,
    staged: Ticket,
    synced: Ticket,
}

/// What a commit takes of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    stretches: usize,
    bytes: usize,
    /// All records up to here are in the log with this commit.
    pub up_to: Ticket,
}

impl Records {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    fn stage(&mut self, group: u32, handle: Handle, record: &Record<'_>) -> Ticket {
        let len = record.encoded_len();
        debug_assert!(len <= RECORD_BYTES_MAX);
        record.encode(&mut self.bytes);
        self.staged.0 += 1;
        match self.stretches.back_mut() {
            Some(last)
                if last.group == group
                    && last.handle == handle
                    && last.len + len <= RUN_BYTES_MAX =>
            {
                last.count += 1;
                last.len += len;
            }
            _ => self.stretches.push_back(Stretch { group, handle, count: 1, len }),
        }
        self.staged
    }

    /// Appends runs of the oldest records to `runs`, as many as one commit takes.
    pub fn take<'a>(&'a self, groups: &'a Slab<Group>, runs: &mut Vec<Run<'a>>) -> Taken {
        let (mut taken, mut size) = (Taken { up_to: self.first(), ..Taken::default() }, 0);
        for stretch in &self.stretches {
            size += RUN_OVERHEAD + stretch.len;
            if size > COMMIT_RECORDS_MAX && taken.stretches > 0 {
                break;
            }
            let bytes = &self.bytes[taken.bytes..taken.bytes + stretch.len];
            taken.stretches += 1;
            taken.bytes += stretch.len;
            taken.up_to.0 += u64::from(stretch.count);
            // A group that was deleted meanwhile needs no records any more.
            if let Some(group) = groups.get(stretch.group as usize)
                && group.handle == stretch.handle
            {
                let (handle, epoch, count) = (group.handle, group.epoch, stretch.count);
                runs.push(Run::of_records(handle, epoch, &group.name, count, bytes));
            }
        }
        taken
    }

    /// The ticket of the last record that is not here any more.
    fn first(&self) -> Ticket {
        let waiting: u64 = self.stretches.iter().map(|stretch| u64::from(stretch.count)).sum();
        Ticket(self.staged.0 - waiting)
    }

    /// Forgets what a commit took.
    pub fn remove(&mut self, taken: Taken) {
        self.stretches.drain(..taken.stretches);
        self.bytes.drain(..taken.bytes);
    }

    /// A commit with records up to `up_to` is on disk.
    pub fn synced(&mut self, up_to: Ticket) {
        debug_assert!(up_to <= self.staged);
        self.synced = self.synced.max(up_to);
    }
}

impl Shard {
    /// Whether the log takes records. A full disk does not hinder it as long as the segment
    /// that is written has room.
    pub(super) fn may_record(&self) -> Result<(), (ErrorCode, u64)> {
        if self.snapshots.stops() {
            // The index of the segment and the last snapshot are being made: what came into the
            // log now would be in neither, and the next start would pass it over.
            Err((ErrorCode::Draining, 0))
        } else if self.log.is_poisoned() {
            Err((ErrorCode::StorageFailed, 0))
        } else if self.filling.records.bytes.len() > STAGED_MAX {
            Err((ErrorCode::StorageFull, 0))
        } else {
            Ok(())
        }
    }

    /// Whether what makes records should go on. It waits for the log to catch up, but not for
    /// a log that takes nothing more: then it is refused.
    pub(super) fn can_record(&self) -> bool {
        self.filling.records.bytes.len() < COMMIT_RECORDS_MAX || self.may_publish().is_err()
    }

    /// Stages a record of an owned group for the next commit. [`Shard::may_record`] was asked.
    pub(super) fn stage_record(&mut self, group: u32, record: &Record<'_>) -> Ticket {
        let handle = self.groups[group as usize].handle;
        self.filling.records.stage(group, handle, record)
    }

    /// The ticket of the last record that was staged.
    pub(super) fn records_staged(&self) -> Ticket {
        self.filling.records.staged
    }

    /// All records up to this ticket are on disk.
    pub(super) fn records_synced(&self) -> Ticket {
        self.filling.records.synced
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::group::Role;
    use crate::position::{Epoch, Seq, ShardId};

    fn groups(count: u64) -> Slab<Group> {
        let mut groups = Slab::new();
        for handle in 0..count {
            let role = Role::Replica { owner: ShardId(0) };
            groups.insert(Group::new(b"name"[..].into(), Handle(handle), Epoch(1), role));
        }
        groups
    }

    fn cursor(acked: u64) -> Record<'static> {
        Record::Cursor { member: b"ann", acked: Seq(acked), epoch: Epoch(1) }
    }

    #[test]
    fn consecutive_records_of_a_group_are_one_run_and_order_is_kept() {
        let groups = groups(2);
        let mut records = Records::default();
        let tickets: Vec<_> = [(0, 1), (0, 2), (1, 3), (0, 4)]
            .map(|(group, acked)| records.stage(group, Handle(group.into()), &cursor(acked)))
            .into();
        assert!(tickets.is_sorted());
        let mut runs = Vec::new();
        let taken = records.take(&groups, &mut runs);
        let counts: Vec<_> = runs.iter().map(|run| (run.handle.0, run.count)).collect();
        assert_eq!(counts, [(0, 2), (1, 1), (0, 1)]);
        let all: Vec<_> = runs.iter().flat_map(Run::records).collect();
        assert_eq!(all, [1, 2, 3, 4].map(cursor));
        assert_eq!(taken.up_to, tickets[3]);
        records.remove(taken);
        assert!(records.is_empty() && records.bytes.is_empty());
        records.synced(taken.up_to);
        assert_eq!(records.synced, tickets[3]);
    }

    #[test]
    fn more_records_than_a_commit_takes_go_in_the_next_one_none_twice() {
        let groups = groups(1);
        let mut records = Records::default();
        let total = 3 * COMMIT_RECORDS_MAX / cursor(0).encoded_len();
        for n in 0..total as u64 {
            records.stage(0, Handle(0), &cursor(n));
        }
        let mut next = 0;
        while !records.is_empty() {
            let mut runs = Vec::new();
            let taken = records.take(&groups, &mut runs);
            let size: usize = runs.iter().map(|run| run.frames.len() + RUN_OVERHEAD).sum();
            assert!(size <= COMMIT_RECORDS_MAX);
            for record in runs.iter().flat_map(Run::records) {
                assert_eq!(record, cursor(next));
                next += 1;
            }
            assert_eq!(taken.up_to, Ticket(next));
            records.remove(taken);
        }
        assert_eq!(next, total as u64);
    }

    #[test]
    fn records_of_a_deleted_group_are_dropped_even_if_its_key_is_used_again() {
        let groups = groups(1);
        let mut records = Records::default();
        records.stage(0, Handle(77), &cursor(1));
        let last = records.stage(5, Handle(5), &cursor(1));
        let mut runs = Vec::new();
        let taken = records.take(&groups, &mut runs);
        assert!(runs.is_empty());
        assert_eq!(taken.up_to, last);
    }
}
