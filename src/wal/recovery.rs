//! Start-up: reads a shard's log and says what it holds, where it was torn, and where it is
//! damaged. Decides nothing by guessing: an I/O error stops it.

use std::io;
use std::mem;

use super::bad_place::BadPlace;
use super::bytes_at::is_zero;
use super::commit::Commit;
use super::damage::{Damage, DamageKind, Torn};
use super::fold::Fold;
use super::index::LogPos;
use super::recovered::{Recovered, RecoveredSegment};
use super::run::Run;
use super::scan::{Scan, Window};
use super::segment::{SegmentHeader, SegmentHeaderFault};
use super::segment_index::{IndexHeader, decode_index};
use super::snapshot::{Snapshot, decode_snapshot};
use super::source::LogSource;
use crate::limits::LOG_BLOCK;
use crate::position::{CommitNumber, NodeId, SegmentNumber, ShardId};

const BLOCK: u64 = LOG_BLOCK as u64;

/// Why recovery stopped.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The folder of the log could not be listed.
    #[error("cannot list the log segments: {0}; nothing was changed, fix the disk or its mount")]
    List(#[source] io::Error),
    /// A segment could not be read.
    #[error(
        "cannot read log segment {segment}: {source}; nothing was changed, fix the disk or \
         restore the file and start again"
    )]
    Read {
        /// The segment.
        segment: SegmentNumber,
        /// What the system says.
        source: io::Error,
    },
    /// A snapshot could not be read.
    #[error(
        "cannot read the snapshot of commit {covered}: {source}; nothing was changed, fix the \
         disk or restore the file and start again"
    )]
    ReadSnapshot {
        /// The commit it covers.
        covered: CommitNumber,
        /// What the system says.
        source: io::Error,
    },
}

/// Reads the log of `shard` on `node` as far as a start needs it: the newest snapshot that can
/// be used, the indices of segments that it covers, and what came after. Changes nothing.
///
/// # Errors
/// [`RecoveryError`]: the disk did not answer. What the disk answered, however wrong, is no
/// error but [`Recovered::damage`].
pub fn recover(
    source: &mut impl LogSource,
    node: NodeId,
    shard: ShardId,
) -> Result<Recovered, RecoveryError> {
    read(source, node, shard, true, &mut |_, _, _| {})
}

/// Reads where messages are in a log that was sealed when the number of shards changed; with
/// `by_index` by its indices, as far as they can be used. What else its groups have is in the logs after it.
///
/// # Errors
/// As [`recover`].
pub fn recover_places(
    source: &mut impl LogSource,
    node: NodeId,
    shard: ShardId,
    by_index: bool,
) -> Result<Recovered, RecoveryError> {
    let mut numbers = source.segments().map_err(RecoveryError::List)?;
    numbers.sort_unstable();
    let visit = &mut |_: LogPos, _: &Commit<'_>, _: &Run<'_>| {};
    let mut recovery = Recovery::new(node, shard, visit);
    recovery.fold = Fold::places();
    recovery.segments(source, numbers, by_index)
}

/// As [`recover`], but reads every byte of the log, and shows every commit that is used with
/// its place and runs to `visit`.
///
/// # Errors
/// As [`recover`].
pub fn recover_with(
    source: &mut impl LogSource,
    node: NodeId,
    shard: ShardId,
    visit: &mut dyn FnMut(LogPos, &Commit<'_>, &Run<'_>),
) -> Result<Recovered, RecoveryError> {
    read(source, node, shard, false, visit)
}

fn read(
    source: &mut impl LogSource,
    node: NodeId,
    shard: ShardId,
    by_index: bool,
    visit: &mut dyn FnMut(LogPos, &Commit<'_>, &Run<'_>),
) -> Result<Recovered, RecoveryError> {
    let mut numbers = source.segments().map_err(RecoveryError::List)?;
    numbers.sort_unstable();
    let mut recovery = Recovery::new(node, shard, visit);
    recovery.snapshot(source)?;
    // The first segment of all starts with the first commit of all.
    let from_first = numbers.first().is_none_or(|first| *first == SegmentNumber(1));
    if from_first && recovery.out.snapshot.is_none() {
        recovery.base_copy(source)?;
    }
    if numbers.first() == Some(&SegmentNumber(1)) {
        recovery.last = Some(CommitNumber(0));
    } else if let Some(first) = numbers.first()
        && source.keeps_snapshots()
        && recovery.out.snapshot.is_none()
    {
        recovery.damage(*first, 0, 0, DamageKind::NoSnapshot);
    }
    recovery.segments(source, numbers, by_index)
}

/// A file with a senseless number must not make recovery count to it.
const MISSING_REPORTED_MAX: usize = 1_000;

struct Recovery<'v> {
    node: NodeId,
    shard: ShardId,
    visit: &'v mut dyn FnMut(LogPos, &Commit<'_>, &Run<'_>),
    out: Recovered,
    fold: Fold,
    /// Last commit that is used.
    last: Option<CommitNumber>,
    /// What follows the last valid commit of segments that are done, where it is not zero.
    tails: Vec<BadPlace>,
    /// Segments without any content since the last one with some.
    empty: Vec<SegmentNumber>,
}

impl<'v> Recovery<'v> {
    fn new(
        node: NodeId,
        shard: ShardId,
        visit: &'v mut dyn FnMut(LogPos, &Commit<'_>, &Run<'_>),
    ) -> Self {
        Self {
            node,
            shard,
            visit,
            out: Recovered::default(),
            fold: Fold::default(),
            last: None,
            tails: Vec::new(),
            empty: Vec::new(),
        }
    }

    fn segments(
        mut self,
        source: &mut impl LogSource,
        numbers: Vec<SegmentNumber>,
        by_index: bool,
    ) -> Result<Recovered, RecoveryError> {
        let mut window = Window::new();
        let mut before: Option<SegmentNumber> = None;
        for segment in numbers {
            if let Some(before) = before {
                for missing in (before.0 + 1..segment.0).take(MISSING_REPORTED_MAX) {
                    self.damage(SegmentNumber(missing), 0, 0, DamageKind::Missing);
                }
            }
            before = Some(segment);
            let read = |source| RecoveryError::Read { segment, source };
            if by_index && self.indexed(source, &mut window, segment).map_err(read)? {
                continue;
            }
            self.segment(source, &mut window, segment).map_err(read)?;
        }
        let known = source.known_damage().map_err(RecoveryError::List)?;
        let mut out = self.finish(before);
        let (known, news) =
            out.damage.into_iter().partition(|damage| known.contains(&damage.to_string()));
        (out.known_damage, out.damage) = (known, news);
        Ok(out)
    }

    /// Begins with the newest snapshot that can be used. One that cannot is told of and passed
    /// over: the log since the one before it says the same.
    fn snapshot(&mut self, source: &mut impl LogSource) -> Result<(), RecoveryError> {
        let mut all = source.snapshots().map_err(RecoveryError::List)?;
        all.sort_unstable();
        for (older, covered) in all.iter().copied().enumerate().rev() {
            let read = |source| RecoveryError::ReadSnapshot { covered, source };
            let bytes = source.snapshot(covered).map_err(read)?;
            match decode_snapshot(&bytes, self.node, self.shard, covered) {
                Ok(snapshot) => {
                    self.out.snapshots = all[..=older].to_vec();
                    self.begin(snapshot);
                    return Ok(());
                }
                Err(fault) => self.out.bad_snapshots.push((covered, fault)),
            }
        }
        Ok(())
    }

    /// A log that began with a snapshot has a copy of it. Without either it does not say what its
    /// groups had before.
    fn base_copy(&mut self, source: &mut impl LogSource) -> Result<(), RecoveryError> {
        let covered = CommitNumber(0);
        let read = |source| RecoveryError::ReadSnapshot { covered, source };
        let Some(bytes) = source.base_copy().map_err(read)? else { return Ok(()) };
        match decode_snapshot(&bytes, self.node, self.shard, covered) {
            Ok(snapshot) => self.begin(snapshot),
            Err(_) => self.damage(SegmentNumber(1), 0, 0, DamageKind::NoSnapshot),
        }
        Ok(())
    }

    fn begin(&mut self, snapshot: Snapshot) {
        self.out.snapshot = Some(snapshot.header.covered);
        self.out.max_stamp = snapshot.header.max_stamp;
        self.out.max_epoch = snapshot.header.max_epoch;
        self.fold = Fold::begin(snapshot);
    }

    /// Takes a segment in by its index, if it has a valid one and a snapshot covers it. Its
    /// bytes are then read when someone wants them.
    fn indexed(
        &mut self,
        source: &mut impl LogSource,
        window: &mut Window,
        segment: SegmentNumber,
    ) -> io::Result<bool> {
        let Some(bytes) = source.index(segment)? else { return Ok(false) };
        let Some((index, groups)) = decode_index(&bytes) else { return Ok(false) };
        let IndexHeader { node, shard, number, info } = index;
        let ours = (node, shard, number) == (self.node, self.shard, segment)
            && info.last_commit.0 > 0
            && self.fold.covers(info.last_commit)
            && self.last.is_none_or(|last| info.first_commit > last)
            && source.len(segment)? >= info.used;
        if !ours {
            return Ok(false);
        }
        let header = SegmentHeader::decode(window.at(source, segment, 0, LOG_BLOCK)?);
        let same = header.is_ok_and(|header| {
            (header.node, header.shard, header.number, header.salt)
                == (node, shard, number, info.salt)
        });
        if !same || !self.fold.index(&groups) {
            return Ok(false);
        }
        self.content_follows();
        self.settle(None, LogPos { segment, offset: BLOCK }, info.first_commit);
        self.last = Some(info.last_commit);
        self.out.commits += 1 + info.last_commit.0 - info.first_commit.0;
        self.out.segments.push(RecoveredSegment::of(segment, &info));
        Ok(true)
    }

    fn damage(&mut self, segment: SegmentNumber, start: u64, end: u64, kind: DamageKind) {
        self.out.damage.push(Damage { segment, start, end, commits: None, kind });
    }

    fn segment(
        &mut self,
        source: &mut impl LogSource,
        window: &mut Window,
        segment: SegmentNumber,
    ) -> io::Result<()> {
        let len = source.len(segment)?;
        let header = match SegmentHeader::decode(window.at(source, segment, 0, LOG_BLOCK)?) {
            Ok(header) => header,
            Err(SegmentHeaderFault::Zero) if is_all_zero(source, window, segment, len)? => {
                self.empty.push(segment);
                return Ok(());
            }
            Err(fault) => {
                self.unusable(segment, len, DamageKind::Header(fault));
                return Ok(());
            }
        };
        let SegmentHeader { node, shard, number, .. } = header;
        if (node, shard, number) != (self.node, self.shard, segment) {
            self.unusable(segment, len, DamageKind::Foreign { node, shard, number });
            return Ok(());
        }
        self.commits(source, window, header)
    }

    fn unusable(&mut self, segment: SegmentNumber, len: u64, kind: DamageKind) {
        self.content_follows();
        self.damage(segment, 0, len, kind);
        self.out.unusable.push(segment);
    }

    /// Segments are used in order, so one without content before one with some lost it.
    fn content_follows(&mut self) {
        for segment in mem::take(&mut self.empty) {
            self.damage(segment, 0, 0, DamageKind::Empty);
        }
    }

    fn commits(
        &mut self,
        source: &mut impl LogSource,
        window: &mut Window,
        header: SegmentHeader,
    ) -> io::Result<()> {
        let segment = header.number;
        let mut info = RecoveredSegment {
            number: segment,
            salt: header.salt,
            bytes_used: BLOCK,
            newest_ms: header.created_ms,
            first_commit: CommitNumber(0),
            last_commit: CommitNumber(0),
        };
        let mut bad: Option<BadPlace> = None;
        let mut used = 0;
        let mut scan = Scan::new(window, source, segment, header.salt)?;
        while let Some(found) = scan.next(source)? {
            let pos = LogPos { segment, offset: found.offset };
            match found.what {
                Ok(commit) if self.last.is_some_and(|last| commit.number <= last) => {
                    let end = pos.offset + commit.total_len as u64;
                    self.content_follows();
                    self.damage(segment, pos.offset, end, DamageKind::Repeated);
                    used += 1;
                }
                Ok(commit) => {
                    self.content_follows();
                    self.settle(bad.take(), pos, commit.number);
                    self.apply(pos, &commit);
                    info.bytes_used = pos.offset + commit.total_len as u64;
                    info.newest_ms = info.newest_ms.max(commit.max_stamp.millis());
                    info.last_commit = commit.number;
                    if info.first_commit.0 == 0 {
                        info.first_commit = commit.number;
                    }
                    used += 1;
                }
                Err(fault) => bad
                    .get_or_insert_with(|| BadPlace::new(segment, pos.offset, fault))
                    .see(pos.offset, fault),
            }
        }
        match bad {
            Some(mut bad) if bad.has_content() => {
                self.content_follows();
                bad.whole_segment = used == 0;
                self.tails.push(bad);
            }
            _ if used == 0 => {
                self.empty.push(segment);
                // It is unused unless a later segment shows that it should not be.
                return Ok(());
            }
            _ => {}
        }
        self.out.segments.push(info);
        self.out.to_index.extend((info.first_commit.0 > 0).then_some(segment));
        Ok(())
    }

    /// A valid commit with `number` at `pos` settles what the bad places before it were.
    fn settle(&mut self, bad: Option<BadPlace>, pos: LogPos, number: CommitNumber) {
        let covered = self.fold.covered();
        if self.last.is_none() && covered.0 > 0 {
            // Of the log before it only what the snapshot does not cover is missed.
            self.last = Some(covered.min(CommitNumber(number.0.saturating_sub(1))));
        }
        let last = self.last;
        let lost = last
            .filter(|last| last.0 + 1 < number.0)
            .map(|last| (CommitNumber(last.0 + 1), CommitNumber(number.0 - 1)));
        let mut told = false;
        for tail in mem::take(&mut self.tails) {
            // A torn commit was given up by an earlier recovery and its number used again.
            if lost.is_some() || last.is_none() || !tail.is_torn(last) {
                self.rot(&tail, tail.content_end, None);
            }
        }
        if let Some(bad) = bad {
            self.rot(&bad, pos.offset, lost);
            told = true;
        }
        if lost.is_some() && !told {
            self.damage(pos.segment, pos.offset, pos.offset, DamageKind::Hole);
            if let Some(hole) = self.out.damage.last_mut() {
                hole.commits = lost;
            }
        }
    }

    fn rot(&mut self, bad: &BadPlace, end: u64, commits: Option<(CommitNumber, CommitNumber)>) {
        self.out.damage.push(Damage {
            segment: bad.segment,
            start: bad.offset,
            end,
            commits,
            kind: DamageKind::Rot(bad.fault),
        });
    }

    fn apply(&mut self, pos: LogPos, commit: &Commit<'_>) {
        self.last = Some(commit.number);
        self.out.commits += 1;
        self.out.max_stamp = self.out.max_stamp.max(commit.max_stamp);
        for run in commit.runs() {
            self.out.max_epoch = self.out.max_epoch.max(run.epoch);
            if run.has_messages() {
                self.out.messages += u64::from(run.count);
            }
            let damaged = !self.out.damage.is_empty();
            let holds = self.fold.run(pos, commit, &run, damaged);
            if !holds {
                let end = pos.offset + commit.total_len as u64;
                self.damage(pos.segment, pos.offset, end, DamageKind::Contradiction(run.handle));
            }
            (self.visit)(pos, commit, &run);
        }
    }

    fn finish(mut self, newest: Option<SegmentNumber>) -> Recovered {
        let last = self.last;
        for tail in mem::take(&mut self.tails) {
            if !tail.is_torn(last) {
                let lost = tail.number().filter(|number| last.is_none_or(|last| *number > last));
                self.rot(&tail, tail.content_end, lost.map(|number| (number, number)));
                continue;
            }
            let number = CommitNumber(last.map_or(1, |last| last.0 + 1));
            self.out.torn = Some(Torn {
                segment: tail.segment,
                offset: tail.offset,
                end: tail.content_end,
                number,
            });
            if tail.whole_segment
                && Some(tail.segment) == self.out.segments.last().map(|s| s.number)
            {
                self.out.segments.pop();
                self.out.unused.push(tail.segment);
            }
        }
        self.out.unused.append(&mut self.empty);
        let newest_kept = newest.map_or(0, |newest| {
            let unused_from = self.out.unused.first().map_or(u64::MAX, |first| first.0);
            newest.0.min(unused_from.saturating_sub(1))
        });
        self.out.next_segment = SegmentNumber(newest_kept + 1);
        self.out.next_commit = CommitNumber(last.map_or(1, |last| last.0 + 1));
        let (next, lost) = (self.out.next_commit, self.fold.behind().collect::<Vec<_>>());
        let (segment, covered) = (self.out.next_segment, self.fold.covered());
        if next <= covered {
            // What a snapshot covers was on disk once.
            self.damage(segment, 0, 0, DamageKind::Short);
            if let Some(short) = self.out.damage.last_mut() {
                short.commits = Some((next, covered));
            }
            self.out.next_commit = CommitNumber(covered.0 + 1);
        } else if self.out.damage.is_empty() {
            for handle in lost {
                self.damage(segment, 0, 0, DamageKind::Behind(handle));
            }
        }
        // Damage is told again at each start, so what has some is read again.
        let damaged: Vec<_> = self.out.damage.iter().map(|damage| damage.segment).collect();
        self.out.to_index.retain(|segment| !damaged.contains(segment));
        self.out.repeated_publishes = self.fold.repeated;
        self.out.groups = self.fold.finish();
        self.out
    }
}

fn is_all_zero(
    source: &mut impl LogSource,
    window: &mut Window,
    segment: SegmentNumber,
    len: u64,
) -> io::Result<bool> {
    for offset in (0..len).step_by(LOG_BLOCK) {
        if !is_zero(&window.at(source, segment, offset, LOG_BLOCK)?[..LOG_BLOCK]) {
            return Ok(false);
        }
    }
    Ok(true)
}
