//! The live log of a shard: where the next commit goes, rotation, and what retention removes.
//! It decides; the driver writes.

use std::collections::{BTreeMap, BTreeSet};

use super::LogPos;
use super::recovered::SealedSegment;
use crate::limits::{COMMIT_BYTES_MAX, LOG_BLOCK};
use crate::position::{CommitNumber, SegmentNumber};
use crate::ring::LogBuf;

/// What is known of a segment file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Salt that its commits carry.
    pub salt: u64,
    /// Bytes that hold commits, header block included.
    pub used: u64,
    /// Unix milliseconds of its newest message.
    pub newest_ms: u64,
    /// Its first commit; 0 if it has none.
    pub first_commit: CommitNumber,
    /// Its last commit; 0 if it has none.
    pub last_commit: CommitNumber,
}

impl SegmentInfo {
    fn fresh(salt: u64) -> Self {
        Self { salt, used: LOG_BLOCK as u64, ..Self::default() }
    }
}

/// Share of a segment that messages leave to records as long as there is no next segment.
const RECORDS_SHARE: u64 = 8;

/// Whether a commit can be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It can, there.
    At(LogPos),
    /// Not before the write in flight has ended or the next segment is there.
    Wait,
}

/// The live log. `synced <= appended` always holds.
#[derive(Debug)]
pub struct Log {
    segment_bytes: u64,
    active: SegmentNumber,
    offset: u64,
    /// End of what is on disk in the active segment.
    synced_end: u64,
    segments: BTreeMap<SegmentNumber, SegmentInfo>,
    /// Segments of earlier generations of logs, whoever removes them.
    sealed: BTreeMap<SegmentNumber, SealedSegment>,
    /// Those that are being removed. Until they are gone, nothing newer may go.
    going: BTreeSet<SegmentNumber>,
    next_segment: SegmentNumber,
    spare: Option<(SegmentNumber, u64)>,
    creating: bool,
    full: bool,
    poisoned: bool,
    writing: bool,
    appended: CommitNumber,
    synced: CommitNumber,
    buf: Option<LogBuf>,
}

impl Log {
    /// A log that goes on after `last_commit` in the fresh segment `active`.
    #[must_use]
    pub fn new(
        mut segments: BTreeMap<SegmentNumber, SegmentInfo>,
        active: SegmentNumber,
        salt: u64,
        last_commit: CommitNumber,
        segment_bytes: u64,
    ) -> Self {
        let header = LOG_BLOCK as u64;
        segments.insert(active, SegmentInfo::fresh(salt));
        Self {
            segment_bytes,
            active,
            offset: header,
            synced_end: header,
            segments,
            sealed: BTreeMap::new(),
            going: BTreeSet::new(),
            next_segment: SegmentNumber(active.0 + 1),
            spare: None,
            creating: false,
            full: false,
            poisoned: false,
            writing: false,
            appended: last_commit,
            synced: last_commit,
            buf: Some(LogBuf::with_capacity(COMMIT_BYTES_MAX)),
        }
    }

    /// The segment that is written now.
    #[must_use]
    pub fn active(&self) -> SegmentNumber {
        self.active
    }

    /// Number of the last commit handed to the disk.
    #[must_use]
    pub fn appended(&self) -> CommitNumber {
        self.appended
    }

    /// Number of the last commit that is on disk.
    #[must_use]
    pub fn synced(&self) -> CommitNumber {
        self.synced
    }

    /// Salt of a segment, and the end of what is on disk in it; a write in flight lies after.
    #[must_use]
    pub fn readable(&self, number: SegmentNumber) -> Option<(u64, u64)> {
        if let Some(sealed) = self.sealed.get(&number) {
            return Some((sealed.info.salt, sealed.info.used));
        }
        let segment = self.segments.get(&number)?;
        Some((segment.salt, if number == self.active { self.synced_end } else { segment.used }))
    }

    /// Takes over segments of earlier generations.
    pub fn adopt(&mut self, sealed: &[SealedSegment]) {
        self.sealed = sealed.iter().map(|segment| (segment.number, *segment)).collect();
    }

    /// Whether a segment of an earlier generation is left, anywhere on the node. One that is
    /// being removed counts: a crash may bring it back.
    #[must_use]
    pub fn has_sealed(&self) -> bool {
        !self.sealed.is_empty() || !self.going.is_empty()
    }

    /// A segment of an earlier generation is being removed, and not read any more.
    pub fn sealed_goes(&mut self, number: SegmentNumber) {
        if self.sealed.remove(&number).is_some() {
            self.going.insert(number);
        }
    }

    /// A segment of an earlier generation is gone for good.
    pub fn sealed_is_gone(&mut self, number: SegmentNumber) {
        self.sealed.remove(&number);
        self.going.remove(&number);
    }

    /// Bytes of its segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.used).sum()
    }

    /// Whether this log with its share of earlier generations is larger or older than the
    /// bounds allow.
    #[must_use]
    pub fn exceeds(&self, shards: u16, bytes_max: u64, age_max_ms: u64, wall_ms: u64) -> bool {
        let own = self.bytes();
        let sealed: u64 = self.sealed.values().map(|segment| segment.info.used).sum();
        let old = |segment: &SealedSegment| {
            age_max_ms > 0 && segment.info.newest_ms.saturating_add(age_max_ms) < wall_ms
        };
        !self.sealed.is_empty()
            && (own + sealed / u64::from(shards) > bytes_max || self.sealed.values().all(old))
    }

    /// The segment of an earlier generation that is removed next. A group's messages may be in
    /// logs of several generations, so one goes as a whole before the next. Within it, the log
    /// whose first segment is oldest goes first.
    #[must_use]
    pub fn oldest_sealed(&self) -> Option<SegmentNumber> {
        let generation = self.sealed.keys().next()?.log()?.generation;
        let of_log = |number: &SegmentNumber| number.log();
        let oldest = self.sealed.values().take_while(|segment| {
            of_log(&segment.number).is_some_and(|log| log.generation == generation)
        });
        let mut firsts: Vec<&SealedSegment> = Vec::new();
        for segment in oldest {
            if firsts.last().is_none_or(|last| of_log(&last.number) != of_log(&segment.number)) {
                firsts.push(segment);
            }
        }
        firsts.iter().min_by_key(|segment| segment.info.newest_ms).map(|segment| segment.number)
    }

    /// What is known of a segment.
    #[must_use]
    pub fn info(&self, number: SegmentNumber) -> Option<SegmentInfo> {
        self.segments.get(&number).copied()
    }

    /// The segment after `number` that exists.
    #[must_use]
    pub fn segment_after(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        self.segments.range(SegmentNumber(number.0 + 1)..).next().map(|(number, _)| *number)
    }

    /// A write failed: nothing more is accepted, since only recovery can tell what is on disk.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// There is no room for another segment on disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Whether a write is in flight.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.writing
    }

    /// Finds room for a commit of `len` bytes, in the next segment if need be. Without a next
    /// segment the last eighth of this one is for commits without messages: on a full disk
    /// members still leave and keep their cursors.
    pub fn room(&mut self, len: usize, has_messages: bool) -> Room {
        if self.writing || self.poisoned {
            return Room::Wait;
        }
        let reserved = match self.spare {
            None if has_messages => self.segment_bytes / RECORDS_SHARE,
            _ => 0,
        };
        if self.offset + len as u64 > self.segment_bytes - reserved {
            let Some((number, salt)) = self.spare.take() else {
                return Room::Wait;
            };
            self.active = number;
            self.offset = LOG_BLOCK as u64;
            self.synced_end = self.offset;
            self.segments.insert(number, SegmentInfo::fresh(salt));
        }
        Room::At(LogPos { segment: self.active, offset: self.offset })
    }

    /// The number and salt for the next commit, and the buffer to encode it into.
    pub fn begin(&mut self) -> (CommitNumber, u64, LogBuf) {
        let salt = self.segments.get(&self.active).map_or(0, |segment| segment.salt);
        let buf = self.buf.take().unwrap_or_else(|| LogBuf::with_capacity(COMMIT_BYTES_MAX));
        (CommitNumber(self.appended.0 + 1), salt, buf)
    }

    /// A commit of `len` bytes was handed to the disk at the place [`Log::room`] gave.
    pub fn started(&mut self, len: usize, newest_ms: u64) {
        debug_assert!(!self.writing);
        self.writing = true;
        self.appended = CommitNumber(self.appended.0 + 1);
        self.offset += len as u64;
        let offset = self.offset;
        if let Some(segment) = self.segments.get_mut(&self.active) {
            segment.used = offset;
            segment.newest_ms = newest_ms;
            segment.last_commit = self.appended;
            if segment.first_commit.0 == 0 {
                segment.first_commit = self.appended;
            }
        }
    }

    /// The write ended. A failure poisons the log: the sync is never retried, because a
    /// second one may succeed over pages that were dropped (Rebello et al., "Can
    /// Applications Recover from fsync Failures?", ATC 2020).
    pub fn finished(&mut self, ok: bool, buf: LogBuf) {
        self.writing = false;
        self.buf = Some(buf);
        if ok {
            self.synced = self.appended;
            self.synced_end = self.offset;
        } else {
            self.poisoned = true;
        }
        debug_assert!(self.synced <= self.appended);
    }

    /// The segment to create now, if the log has no spare one and none is on its way.
    pub fn wants_segment(&mut self) -> Option<(SegmentNumber, u64)> {
        if self.spare.is_some() || self.creating || self.poisoned {
            return None;
        }
        self.creating = true;
        Some((self.next_segment, self.segment_bytes))
    }

    /// The job for the next segment ended.
    pub fn segment_created(&mut self, number: SegmentNumber, salt: u64, ok: bool) {
        self.creating = false;
        self.full = !ok;
        if ok {
            self.spare = Some((number, salt));
            self.next_segment = SegmentNumber(number.0 + 1);
        }
    }

    /// The oldest segment that these bounds keep; never one after the active one.
    #[must_use]
    pub fn expirable(&self, bytes_max: u64, age_max_ms: u64, wall_ms: u64) -> SegmentNumber {
        let mut total = self.bytes();
        for (&number, segment) in &self.segments {
            let old = age_max_ms > 0 && segment.newest_ms.saturating_add(age_max_ms) < wall_ms;
            if number == self.active || (total <= bytes_max && !old) {
                return number;
            }
            total -= segment.used;
        }
        self.active
    }

    /// The oldest segment that a snapshot of the log up to `covered` does not replace: it holds
    /// more than messages. Nor does one replace the last commit on disk: a log without any commit
    /// would look to the next start as if what the snapshot covers were lost.
    #[must_use]
    pub fn uncovered(&self, covered: CommitNumber) -> SegmentNumber {
        let needed = |info: &SegmentInfo| info.last_commit > covered;
        let on_disk = |info: &SegmentInfo| (1..=self.synced.0).contains(&info.first_commit.0);
        let first = self.segments.iter().find(|(_, info)| needed(info));
        let last = self.segments.iter().rev().find(|(_, info)| on_disk(info));
        let stays = [first, last].into_iter().flatten().map(|(number, _)| *number).min();
        stays.unwrap_or(self.active)
    }

    /// Takes the sealed segments before this one out, oldest first.
    pub fn remove_before(&mut self, number: SegmentNumber) -> Vec<SegmentNumber> {
        let kept = self.segments.split_off(&number.min(self.active));
        let gone = std::mem::replace(&mut self.segments, kept);
        gone.into_keys().collect()
    }

    /// The oldest segment that is kept.
    #[must_use]
    pub fn oldest(&self) -> SegmentNumber {
        self.segments.keys().next().copied().unwrap_or(self.active)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;
    use crate::position::{LogId, ShardId};

    const BYTES: u64 = 16 * LOG_BLOCK as u64;

    fn log() -> Log {
        Log::new(BTreeMap::new(), SegmentNumber(1), 7, CommitNumber(0), BYTES)
    }

    fn write(log: &mut Log, blocks: usize, ms: u64) {
        assert!(matches!(log.room(blocks * LOG_BLOCK, true), Room::At(_)));
        let (_, _, buf) = log.begin();
        log.started(blocks * LOG_BLOCK, ms);
        log.finished(true, buf);
    }

    #[test]
    fn one_write_is_in_flight_at_most() {
        let mut log = log();
        assert!(matches!(log.room(LOG_BLOCK, true), Room::At(_)));
        let (number, _, buf) = log.begin();
        assert_eq!(number, CommitNumber(1));
        log.started(LOG_BLOCK, 1);
        assert_eq!(log.room(LOG_BLOCK, true), Room::Wait);
        assert!(log.synced() < log.appended());
        log.finished(true, buf);
        assert_eq!(log.synced(), log.appended());
    }

    #[test]
    fn a_full_segment_waits_for_the_spare_one() {
        let mut log = log();
        write(&mut log, 13, 1);
        assert_eq!(log.room(LOG_BLOCK, true), Room::Wait);
        assert_eq!(log.wants_segment(), Some((SegmentNumber(2), BYTES)));
        assert_eq!(log.wants_segment(), None);
        log.segment_created(SegmentNumber(2), 9, false);
        assert!(log.is_full());
        assert_eq!(log.wants_segment(), Some((SegmentNumber(2), BYTES)));
        log.segment_created(SegmentNumber(2), 9, true);
        let at = LogPos { segment: SegmentNumber(2), offset: LOG_BLOCK as u64 };
        assert_eq!(log.room(3 * LOG_BLOCK, true), Room::At(at));
    }

    #[test]
    fn without_a_next_segment_messages_leave_the_rest_of_this_one_to_records() {
        let mut log = log();
        write(&mut log, 13, 1);
        assert_eq!(log.room(LOG_BLOCK, true), Room::Wait);
        let at = LogPos { segment: SegmentNumber(1), offset: 14 * LOG_BLOCK as u64 };
        assert_eq!(log.room(LOG_BLOCK, false), Room::At(at));
        assert_eq!(log.room(3 * LOG_BLOCK, false), Room::Wait);
        assert!(log.wants_segment().is_some());
        log.segment_created(SegmentNumber(2), 9, true);
        assert_eq!(log.room(LOG_BLOCK, true), Room::At(at), "then messages use it up");
    }

    #[test]
    fn a_failed_write_is_never_retried() {
        let mut log = log();
        assert!(matches!(log.room(LOG_BLOCK, true), Room::At(_)));
        let (_, _, buf) = log.begin();
        log.started(LOG_BLOCK, 1);
        log.finished(false, buf);
        assert!(log.is_poisoned());
        assert_eq!(log.room(LOG_BLOCK, true), Room::Wait);
        assert_eq!(log.synced(), CommitNumber(0));
    }

    #[test]
    fn retention_by_bytes_and_by_age_never_takes_the_active_segment() {
        let mut log = log();
        for number in 2..5 {
            write(&mut log, 13, number * 1_000);
            assert!(log.wants_segment().is_some());
            log.segment_created(SegmentNumber(number), number, true);
        }
        write(&mut log, 13, 5_000);
        assert_eq!(log.expirable(BYTES * 4, 0, 0), SegmentNumber(1));
        let uncovered = [0, 1, 2, 9].map(|covered| log.uncovered(CommitNumber(covered)).0);
        assert_eq!(uncovered, [1, 2, 3, 4]);
        assert_eq!(log.expirable(BYTES * 3, 0, 0), SegmentNumber(2));
        assert_eq!(log.remove_before(SegmentNumber(2)), vec![SegmentNumber(1)]);
        assert_eq!(log.expirable(u64::MAX, 1_000, 4_500), SegmentNumber(3));
        assert_eq!(log.expirable(0, 1, u64::MAX), SegmentNumber(4));
        assert_eq!(log.remove_before(SegmentNumber(9)), vec![SegmentNumber(2), SegmentNumber(3)]);
        assert_eq!(log.oldest(), SegmentNumber(4));
    }

    #[test]
    fn retention_leaves_the_last_commit_on_disk_until_there_is_another() {
        let of_start = SegmentInfo {
            salt: 7,
            used: BYTES,
            first_commit: CommitNumber(1),
            last_commit: CommitNumber(23),
            ..SegmentInfo::default()
        };
        let segments = BTreeMap::from([(SegmentNumber(1), of_start)]);
        let mut log = Log::new(segments, SegmentNumber(2), 7, CommitNumber(23), BYTES);
        assert_eq!(log.uncovered(CommitNumber(23)), SegmentNumber(1), "2 has no commit yet");
        assert!(matches!(log.room(LOG_BLOCK, true), Room::At(_)));
        let (_, _, buf) = log.begin();
        log.started(LOG_BLOCK, 1);
        assert_eq!(log.uncovered(CommitNumber(23)), SegmentNumber(1), "it is in flight");
        log.finished(true, buf);
        assert_eq!(log.uncovered(CommitNumber(23)), SegmentNumber(2));
    }

    fn with_sealed(segments: &[(u16, u16, u64, u64)]) -> Log {
        let mut log = log();
        let sealed: Vec<_> = segments
            .iter()
            .map(|&(generation, shard, number, newest_ms)| {
                let of = LogId { generation, shard: ShardId(shard) };
                let info = SegmentInfo { newest_ms, ..SegmentInfo::default() };
                SealedSegment { number: SegmentNumber(number).sealed(of), info }
            })
            .collect();
        log.adopt(&sealed);
        log
    }

    #[test]
    fn a_generation_goes_as_a_whole_before_the_next_and_each_log_from_its_start() {
        // The wall clock went back: neither a later generation nor a later segment is first.
        let segments = [(0, 0, 4, 50), (0, 0, 5, 1), (0, 1, 2, 40), (1, 0, 1, 3), (1, 3, 1, 2)];
        let mut log = with_sealed(&segments);
        let mut order = Vec::new();
        while let Some(number) = log.oldest_sealed() {
            let of = number.log().expect("a sealed one");
            order.push((of.generation, of.shard.0, number.on_disk().0));
            log.sealed_goes(number);
            log.sealed_is_gone(number);
        }
        assert_eq!(order, [(0, 1, 2), (0, 0, 4), (0, 0, 5), (1, 3, 1), (1, 0, 1)]);
        assert!(!log.has_sealed());
    }

    #[test]
    fn a_sealed_segment_that_is_being_removed_is_not_read_and_still_comes_before_newer_ones() {
        let mut log = with_sealed(&[(0, 0, 4, 50)]);
        let number = log.oldest_sealed().expect("one is there");
        assert!(log.readable(number).is_some());
        log.sealed_goes(number);
        assert_eq!((log.readable(number), log.oldest_sealed()), (None, None));
        assert!(log.has_sealed(), "a crash may bring it back");
        assert!(!log.exceeds(1, 0, 0, 0), "nothing else could be removed");
        log.sealed_is_gone(number);
        assert!(!log.has_sealed());
    }
}
