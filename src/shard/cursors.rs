//! Acknowledgements: from the connection of a member to the owner of its group, and from there
//! to the log. None of it costs a sync of its own: cursors go with the next commit, or alone
//! after `cursor_flush_ms`.

use std::collections::VecDeque;

use super::{ConnId, Shard};
use crate::group::{Acked, Group, Role};
use crate::limits::COMMIT_RECORDS_MAX;
use crate::mesh::{CursorMove, Message};
use crate::position::{Epoch, Handle, Nanos, ShardId};
use crate::wal::Record;
use crate::wire::Acks;

/// Bytes of cursors that go with a commit on its way anyway.
const RIDE_ALONG_BYTES: usize = 64 * 1024;

/// Cursors of owned groups that are newer than the log.
#[derive(Debug, Default)]
pub struct Cursors {
    /// Groups that have some.
    groups: VecDeque<(u32, Handle)>,
    /// When they are written although nothing else is.
    flush_at: Option<Nanos>,
}

impl Cursors {
    /// Whether the log has all of them.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// When a commit is due for them alone.
    pub fn flush_at(&self) -> Option<Nanos> {
        self.flush_at
    }
}

/// Acknowledgements of local members that go to the owner of their group with this turn.
#[derive(Debug, Default)]
pub struct AcksOut {
    moves: Vec<CursorMove>,
    batch: u64,
}

impl Shard {
    /// Moves acknowledged cursors. An acknowledgement of what was not sent, or of another
    /// epoch, says nothing and is ignored.
    pub(super) fn ack(&mut self, id: ConnId, acks: &Acks<'_>) {
        for ack in acks.entries() {
            let Some(&key) = self.by_handle.get(&ack.handle) else { continue };
            let Some(membership) = self.membership(id, key) else { continue };
            let group = &mut self.groups[key as usize];
            let member = &mut group.members[membership.member];
            if member.ack(ack.seq, ack.epoch) && member.durable.is_some() {
                self.tell_cursor(key, membership.member, ack.epoch);
                self.progressed(membership);
            }
        }
    }

    /// Tells the owner where the cursor of a durable member stands. Epoch 0: it stepped over a
    /// gap.
    pub(super) fn tell_cursor(&mut self, key: u32, member: u32, epoch: Epoch) {
        let group = &mut self.groups[key as usize];
        let handle = group.handle;
        let member = &mut group.members[member];
        let seq = member.acked;
        let Some(durable) = &mut member.durable else { return };
        let moved = CursorMove { handle, key: durable.key, seq, epoch };
        let Role::Replica { owner } = group.role else { return self.cursor_moved(&moved) };
        let index = usize::from(owner.0);
        if self.acks_out.len() <= index {
            self.acks_out.resize_with(index + 1, AcksOut::default);
        }
        let out = &mut self.acks_out[index];
        let (batch, at) = durable.queued;
        match out.moves.get_mut(at as usize) {
            // Many acknowledgements of one member in one turn are one.
            Some(earlier)
                if batch == out.batch && (earlier.handle, earlier.key) == (handle, moved.key) =>
            {
                *earlier = moved;
            }
            _ => {
                durable.queued = (out.batch, out.moves.len() as u32);
                out.moves.push(moved);
            }
        }
    }

    /// Puts the acknowledgements of this turn on their way to another shard.
    pub(super) fn tell_acks(&mut self, shard: ShardId) {
        let Some(out) = self.acks_out.get_mut(usize::from(shard.0)) else { return };
        if out.moves.is_empty() {
            return;
        }
        out.batch += 1;
        // The next batch will be about as large.
        let next = Vec::with_capacity(out.moves.len());
        let moves = std::mem::replace(&mut out.moves, next);
        self.tell(shard, Message::Acks(moves));
    }

    /// Whether no acknowledgement waits to be told.
    pub(super) fn acks_are_told(&self) -> bool {
        self.acks_out.iter().all(|out| out.moves.is_empty())
    }

    /// The cursor of a durable member of an owned group moved.
    pub(super) fn cursor_moved(&mut self, moved: &CursorMove) {
        let CursorMove { handle, key: durable, seq, epoch } = *moved;
        let Some(&key) = self.by_handle.get(&handle) else { return };
        let group = &mut self.groups[key as usize];
        let seq = seq.min(group.published);
        let Role::Owner(sequencer) = &mut group.role else { return };
        let Some(roster) = &mut sequencer.roster else { return };
        let acked = roster.ack(durable, seq, epoch);
        if acked == Acked::FirstDirty {
            self.cursors.groups.push_back((key, handle));
        }
        if acked != Acked::Nothing {
            self.settle_receipts(key, false);
        }
    }

    /// Has it written how far the receipts of a group were read, with the next cursors.
    pub(super) fn note_receipts_of(&mut self, key: u32, handle: Handle) {
        self.cursors.groups.push_back((key, handle));
    }

    /// Stages cursors for the commit that is about to start: a part of them if it starts
    /// anyway, all that fit if they are due.
    pub(super) fn stage_cursors(&mut self, now: Nanos) {
        if self.cursors.groups.is_empty() || self.log.is_poisoned() {
            self.cursors.flush_at = None;
            return;
        }
        let wait_ms = u64::from(self.config.cursor_flush_ms);
        let flush_at = *self.cursors.flush_at.get_or_insert(now.plus_ms(wait_ms));
        let due = flush_at <= now || self.drain.is_some();
        if self.filling.is_empty() && !due {
            return;
        }
        if self.may_record().is_err() {
            self.cursors.flush_at = Some(now.plus_ms(wait_ms));
            return;
        }
        let mut room = if due { COMMIT_RECORDS_MAX } else { RIDE_ALONG_BYTES };
        for _ in 0..self.cursors.groups.len() {
            let Some((key, handle)) = self.cursors.groups.pop_front() else { break };
            if self.groups.get(key as usize).is_some_and(|group| group.handle == handle) {
                self.settle_receipts(key, true);
                self.stage_receipts_of(key);
            }
            let left = self.stage_cursors_of(key, handle, &mut room);
            if left {
                self.cursors.groups.push_back((key, handle));
            }
            if room == 0 {
                break;
            }
        }
        // What is left waits for as long again; after a full commit it goes with the next.
        let more = due && room == 0;
        let next = if more { now } else { now.plus_ms(wait_ms) };
        self.cursors.flush_at = (!self.cursors.groups.is_empty()).then_some(next);
    }

    /// Stages cursors of one group. Returns whether it has more.
    fn stage_cursors_of(&mut self, key: u32, handle: Handle, room: &mut usize) -> bool {
        while *room > 0 {
            let Some(group) = self.groups.get_mut(key as usize).filter(|g| g.handle == handle)
            else {
                return false;
            };
            let Some(sequencer) = group.sequencer() else { return false };
            let synced = sequencer.synced;
            let Some((id, acked, epoch)) = sequencer.roster().take_dirty(synced) else { break };
            let record = Record::Cursor { member: &id, acked, epoch };
            *room = room.saturating_sub(record.encoded_len());
            self.stage_record(key, &record);
            self.figures.cursors_written += 1;
        }
        let group = self.groups.get_mut(key as usize).and_then(Group::sequencer);
        group.is_some_and(|sequencer| sequencer.roster().dirty() > 0)
    }
}
