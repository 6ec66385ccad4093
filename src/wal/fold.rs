//! Folds what the log says of groups, run by run, onto what a snapshot says of them.

use std::collections::HashMap;

use super::commit::Commit;
use super::group_state::GroupState;
use super::index::{GroupIndex, LogPos};
use super::recovered::RecoveredGroup;
use super::run::{Run, RunKind};
use super::segment_index::IndexedGroup;
use super::snapshot::{Snapshot, SnapshotGroup};
use crate::position::{CommitNumber, Epoch, Handle, Seq};
use crate::wire::{self, ServerFrame};

/// The groups of a log that is being read.
#[derive(Debug, Default)]
pub(super) struct Fold {
    groups: HashMap<Handle, RecoveredGroup>,
    /// What a snapshot knows up to: of commits up to here only the places of messages are new.
    covered: CommitNumber,
    /// Only places of messages are wanted, of all groups.
    places_only: bool,
    /// Messages whose producer seq came before.
    pub repeated: u64,
}

impl Fold {
    /// Begins with what a snapshot holds.
    pub fn begin(snapshot: Snapshot) -> Self {
        let covered = snapshot.header.covered;
        let groups = snapshot.groups.into_iter().map(|(group, state)| {
            let SnapshotGroup { name, handle, epoch, head, first_kept, used_memory } = group;
            let group = RecoveredGroup {
                handle,
                name,
                epoch,
                first: first_kept,
                head,
                first_kept,
                used_memory,
                index: GroupIndex::default(),
                state,
                head_known: true,
                log_last: Seq(0),
                last_commit: covered,
            };
            (handle, group)
        });
        Self { groups: groups.collect(), covered, ..Self::default() }
    }

    /// Finds the places of all messages, and nothing else.
    pub fn places() -> Self {
        Self { covered: CommitNumber(u64::MAX), places_only: true, ..Self::default() }
    }

    /// The commit up to which a snapshot covers the log; 0 without one.
    pub fn covered(&self) -> CommitNumber {
        if self.places_only { CommitNumber(0) } else { self.covered }
    }

    /// Whether of this commit only the places of messages are wanted.
    pub fn covers(&self, commit: CommitNumber) -> bool {
        commit <= self.covered
    }

    /// Takes a run in. False if it contradicts what came before it. Where damage is known a
    /// hole is what it left; without it, it is news.
    pub fn run(&mut self, pos: LogPos, commit: &Commit<'_>, run: &Run<'_>, damaged: bool) -> bool {
        match run.kind {
            RunKind::Messages => self.messages(pos, commit, run, damaged),
            RunKind::Records => self.records(commit.number, run),
            RunKind::Other(_) => true,
        }
    }

    /// The group of a run; `None` if a snapshot left it out because nothing of it is kept.
    fn group(&mut self, number: CommitNumber, run: &Run<'_>) -> Option<&mut RecoveredGroup> {
        if number <= self.covered && !self.places_only {
            return self.groups.get_mut(&run.handle);
        }
        let new = || empty(run.handle, run.group, run.epoch);
        let group = self.groups.entry(run.handle).or_insert_with(new);
        group.last_commit = number;
        Some(group)
    }

    fn messages(&mut self, pos: LogPos, commit: &Commit<'_>, run: &Run<'_>, damaged: bool) -> bool {
        let covered = commit.number <= self.covered;
        let Some(group) = self.group(commit.number, run) else { return true };
        let before = Seq(run.first.0 - 1);
        if group.log_last == Seq(0) {
            // The oldest one of the group that is kept, unless the one after its head is known.
            group.log_last = before.min(if group.head_known { group.head } else { before });
        }
        if !group.head_known {
            group.head_known = true;
            group.head = before;
        }
        let overlaps = run.first <= group.log_last;
        let jumps = run.first > group.log_last.next() && !damaged;
        // An index knows no names.
        let named = group.name.is_empty() || *group.name == *run.group;
        let holds = !overlaps && !jumps && named;
        if !overlaps {
            let bytes = (run.metas.len() + run.frames.len()) as u64;
            group.index.note(run.first, pos, bytes, commit.max_stamp.millis());
        }
        group.log_last = group.log_last.max(run.last());
        if covered {
            return holds;
        }
        if run.epoch > group.epoch {
            // What members knew of the epoch before may be more than what was left of it.
            group.state.cut_after(before);
        }
        group.head = group.head.max(run.last());
        group.epoch = group.epoch.max(run.epoch);
        group.used_memory |= run.has_memory;
        let (mut rest, mut seq, mut repeated) = (run.frames, run.first, 0);
        for meta in run.metas() {
            let Ok(Some((frame, len))) = wire::split(rest, rest.len()) else { break };
            let Ok(ServerFrame::Deliver(message)) = ServerFrame::decode(frame) else { break };
            let first = group.state.apply_message(&meta, seq, run.epoch, message.sender);
            repeated += u64::from(!first);
            rest = &rest[len..];
            seq = seq.next();
        }
        self.repeated += repeated;
        holds
    }

    fn records(&mut self, number: CommitNumber, run: &Run<'_>) -> bool {
        if number <= self.covered {
            return true;
        }
        let Some(group) = self.group(number, run) else { return true };
        group.epoch = group.epoch.max(run.epoch);
        let mut count = 0;
        for record in run.records() {
            group.state.apply_record(&record);
            count += 1;
        }
        count == run.count && *group.name == *run.group
    }

    /// Takes the index of a segment in that a snapshot covers. False, and nothing is taken, if
    /// it contradicts what came before it.
    pub fn index(&mut self, indexed: &[IndexedGroup]) -> bool {
        for one in indexed {
            let (Some(group), Some(entry)) = (self.groups.get(&one.handle), one.entries.first())
            else {
                continue;
            };
            let begins = group.log_last == Seq(0);
            if !begins && entry.first != group.log_last.next() {
                return false;
            }
        }
        for one in indexed {
            if self.places_only {
                self.groups.entry(one.handle).or_insert_with(|| empty(one.handle, &[], Epoch(0)));
            }
            let Some(group) = self.groups.get_mut(&one.handle) else { continue };
            one.entries.iter().for_each(|entry| group.index.add(*entry));
            group.log_last = one.last;
        }
        true
    }

    /// Groups of which a snapshot knows a later message than the log has, though the log has
    /// some of theirs: what was acknowledged is gone.
    pub fn behind(&self) -> impl Iterator<Item = Handle> {
        let behind =
            |g: &&RecoveredGroup| g.log_last > Seq(0) && g.log_last < g.head && g.head_known;
        self.groups.values().filter(behind).map(|group| group.handle)
    }

    /// All groups, in the order of the last commit with something of them.
    pub fn finish(self) -> Vec<RecoveredGroup> {
        let mut groups: Vec<_> = self.groups.into_values().collect();
        for group in &mut groups {
            if self.places_only {
                group.head = group.log_last;
            } else if !group.head_known {
                group.head = group.state.last_known();
            }
            group.settle_first();
            group.state.cut_after(group.head);
        }
        groups.sort_by_key(|group| (group.last_commit, group.handle));
        groups
    }
}

/// A group of which nothing is known yet.
fn empty(handle: Handle, name: &[u8], epoch: Epoch) -> RecoveredGroup {
    RecoveredGroup {
        handle,
        name: name.into(),
        epoch,
        first: Seq(0),
        head: Seq(0),
        first_kept: Seq(0),
        used_memory: false,
        index: GroupIndex::default(),
        state: GroupState::default(),
        head_known: false,
        log_last: Seq(0),
        last_commit: CommitNumber(0),
    }
}
