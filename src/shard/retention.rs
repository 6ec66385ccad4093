//! Retention: each group keeps what its class says, at the grain of its index; the log as a
//! whole keeps what the shard says. Segments that nobody needs any more are removed.

use tracing::info;

use super::{Io, Job, Shard};
use crate::group::Sequencer;
use crate::mesh::Message;
use crate::position::{Nanos, SegmentNumber, Seq, ShardId};
use crate::wal::Log;

/// How often groups and sealed segments are looked at.
const RETENTION_MS: u64 = 10_000;
/// The shard that removes segments of earlier generations.
const KEEPER: ShardId = ShardId(0);
/// Groups looked at in one turn.
const GROUPS_PER_TURN: usize = 1024;

/// A pass over all groups. Segments are removed at its end, so that no group's index ever
/// points into one that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Key of the next group.
    next: usize,
    /// Segments before this one go, whoever needs them.
    limit: SegmentNumber,
    /// This one and those after it stay until a snapshot covers them.
    uncovered: SegmentNumber,
    /// Oldest segment that a group seen so far needs.
    needed: SegmentNumber,
    /// Unix milliseconds at its start.
    wall_ms: u64,
}

/// Files that nobody needs any more.
#[derive(Debug, Default)]
pub struct Removal {
    /// They are to be removed, or are being removed.
    waiting: Vec<SegmentNumber>,
    /// A job does it.
    running: bool,
}

impl Shard {
    /// When retention wants a turn.
    pub(super) fn retention_deadline(&self) -> Option<Nanos> {
        let by_age = self.config.retention_age_ms > 0 || self.config.classes.trim();
        let wants = by_age || self.retention_pass.is_some();
        self.retention_at.filter(|_| wants && !self.removal.running)
    }

    /// Goes on with the pass, or begins one when it is time.
    pub(super) fn retain(&mut self, io: &mut impl Io) {
        let now = io.now();
        // What a pass takes from the log is removed at once.
        if self.retention_at.is_none_or(|at| at > now) || self.removal.running {
            return;
        }
        if self.retention_pass.is_none() && !self.removal.waiting.is_empty() {
            self.retention_at = Some(now.plus_ms(RETENTION_MS));
            return self.remove_files(&[], io);
        }
        let mut pass = self.retention_pass.take().unwrap_or_else(|| self.begin_pass(io));
        // Without a class that keeps less there is nothing to do unless a segment goes.
        let idle = pass.limit <= self.log.oldest() && !self.config.classes.trim();
        if !idle && !self.pass_over(&mut pass) {
            self.retention_pass = Some(pass);
            self.retention_at = Some(now);
            return;
        }
        self.retention_at = Some(now.plus_ms(RETENTION_MS));
        let before = if self.config.classes.trim() { pass.needed } else { pass.limit };
        let numbers = self.log.remove_before(before.max(pass.limit).min(pass.uncovered));
        self.remove_files(&numbers, io);
    }

    /// Has files removed, oldest first: after those that could not be removed before, and never
    /// beside a removal that is under way. Else a crash could leave an older file and not a newer
    /// one, which the next start would take for damage.
    fn remove_files(&mut self, numbers: &[SegmentNumber], io: &mut impl Io) {
        let removal = &mut self.removal;
        removal.waiting.extend_from_slice(numbers);
        if !removal.running && !removal.waiting.is_empty() {
            removal.running = true;
            io.start_job(Job::RemoveSegments { numbers: removal.waiting.clone() });
        }
    }

    /// A removal ended. The next pass comes at once if it went well; else what is left is tried
    /// again before it.
    pub(super) fn files_removed(&mut self, numbers: &[SegmentNumber], ok: bool, now: Nanos) {
        let removal = &mut self.removal;
        removal.running = false;
        if ok {
            removal.waiting.retain(|number| !numbers.contains(number));
            self.retention_at = Some(now);
            for number in numbers.iter().copied().filter(|number| number.log().is_some()) {
                self.log.sealed_is_gone(number);
                self.tell_of_removal(number, true);
            }
        }
    }

    fn begin_pass(&mut self, io: &mut impl Io) -> Pass {
        self.prepare_segment(io);
        self.retain_sealed(io);
        let (config, wall_ms) = (&self.config, io.wall_ms());
        let limit = self.log.expirable(config.retention_bytes, config.retention_age_ms, wall_ms);
        let mut uncovered = self.log.uncovered(self.snapshots.covered());
        if self.log.has_sealed() {
            // The oldest go first, whoever has them.
            uncovered = self.log.oldest();
        }
        let limit = limit.min(uncovered);
        // What is written from now on is in the active segment or after it.
        Pass { next: 0, limit, uncovered, needed: self.log.active(), wall_ms }
    }

    /// Has the oldest segment of earlier generations removed if this log with its share of them
    /// is beyond its bounds, or another shard's is. One shard removes those of all, one by one:
    /// else a crash could leave an older one and not a newer one of the same group.
    fn retain_sealed(&mut self, io: &mut impl Io) {
        let config = &self.config;
        let (bytes, age) = (config.retention_bytes, config.retention_age_ms);
        let exceeds = self.log.exceeds(self.shards, bytes, age, io.wall_ms());
        if !exceeds && !std::mem::take(&mut self.expire_sealed) {
            return;
        }
        if self.id != KEEPER {
            return self.tell(KEEPER, Message::ExpireSealed);
        }
        let Some(number) = self.log.oldest_sealed() else { return };
        info!(shard = self.id.0, path = %crate::wal::paths::segment_path("".as_ref(), number).display(), "retention removes a segment of a sealed generation");
        self.log.sealed_goes(number);
        self.tell_of_removal(number, false);
        self.remove_files(&[number], io);
        if exceeds {
            self.expire_sealed = true;
        }
    }

    /// Another shard's log is beyond its bounds.
    pub(super) fn expire_sealed_asked(&mut self) {
        self.expire_sealed = true;
        self.retention_at = Some(Nanos(0));
    }

    fn tell_of_removal(&mut self, number: SegmentNumber, done: bool) {
        for other in (0..self.shards).map(ShardId).filter(|id| *id != KEEPER) {
            self.tell(other, Message::SealedRemoved { number, done });
        }
    }

    /// Another shard removes a segment of an earlier generation, or has done so.
    pub(super) fn sealed_is_removed(&mut self, number: SegmentNumber, done: bool) {
        if done {
            self.log.sealed_is_gone(number);
        } else {
            self.log.sealed_goes(number);
        }
    }

    /// Looks at some groups; whether it has seen all.
    fn pass_over(&mut self, pass: &mut Pass) -> bool {
        // Groups with receipts of messages that went.
        let mut passed = Vec::new();
        let end = (pass.next + GROUPS_PER_TURN).min(self.groups.capacity());
        for key in pass.next..end {
            let Some(group) = self.groups.get_mut(key) else { continue };
            let class = self.config.classes.get(group.class);
            let Some(sequencer) = group.sequencer() else { continue };
            let index = &mut sequencer.index;
            if !self.log.has_sealed() {
                index.forget_before(pass.limit);
            }
            if class.retention_bytes.is_some() || class.retention_age_ms.is_some() {
                let oldest_ms = class.retention_age_ms.map(|age| pass.wall_ms.saturating_sub(age));
                index.trim(class.retention_bytes, oldest_ms);
            }
            pass.needed = pass.needed.min(index.oldest_segment().unwrap_or(pass.needed));
            forget_removed(&self.log, sequencer);
            let index = &mut sequencer.index;
            let first = index.first().unwrap_or(Seq(sequencer.synced.0 + 1));
            sequencer.first_kept = sequencer.first_kept.max(first);
            let oldest = sequencer.roster.as_ref().and_then(|roster| roster.receipts.oldest());
            if oldest.is_some_and(|oldest| oldest < sequencer.first_kept) {
                passed.push(key as u32);
            }
        }
        for key in passed {
            self.expire_receipts(key);
        }
        pass.next = end;
        end == self.groups.capacity()
    }
}

/// Forgets places in segments of earlier generations that another shard has removed.
pub(super) fn forget_removed(log: &Log, sequencer: &mut Sequencer) {
    let index = &mut sequencer.index;
    while let Some(segment) = index.oldest_segment()
        && segment.log().is_some()
        && log.readable(segment).is_none()
    {
        index.forget_before(SegmentNumber(segment.0 + 1));
        let first = index.first().unwrap_or(Seq(sequencer.synced.0 + 1));
        sequencer.first_kept = sequencer.first_kept.max(first);
    }
}
