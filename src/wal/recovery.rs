//! Start-up: reads a shard's log and says what it holds, where it was torn, and where it is
//! damaged. Decides nothing by guessing: an I/O error stops it.

use std::collections::HashMap;
use std::io;
use std::mem;

use super::commit::{Commit, CommitFault, Run, is_zero};
use super::damage::{Damage, DamageKind, Torn};
use super::index::{GroupIndex, LogPos};
use super::scan::{Scan, Window};
use super::segment::{SegmentHeader, SegmentHeaderFault};
use super::source::LogSource;
use crate::limits::{COMMIT_BYTES_MAX, LOG_BLOCK};
use crate::position::{CommitNumber, Epoch, Handle, NodeId, SegmentNumber, Seq, ShardId, Stamp};

const BLOCK: u64 = LOG_BLOCK as u64;

/// What a shard's log holds.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The groups, in the order of their last messages.
    pub groups: Vec<RecoveredGroup>,
    /// The segments that can be read, oldest first.
    pub segments: Vec<RecoveredSegment>,
    /// Number for the next commit.
    pub next_commit: CommitNumber,
    /// Number for the next segment, once the [`Recovered::unused`] ones are removed.
    pub next_segment: SegmentNumber,
    /// The largest stamp in the log.
    pub max_stamp: Stamp,
    /// The largest epoch in the log.
    pub max_epoch: Epoch,
    /// The last write, if it was interrupted.
    pub torn: Option<Torn>,
    /// What an interrupted write cannot explain. Unless it is empty, every group of this log
    /// must get a new epoch.
    pub damage: Vec<Damage>,
    /// Segments at the end of the log that hold no commit: written ahead, or torn in their
    /// first commit. The caller removes them before it creates [`Recovered::next_segment`].
    pub unused: Vec<SegmentNumber>,
    /// Segments of which nothing is used; `damage` says why. They stay until retention has
    /// removed everything before them.
    pub unusable: Vec<SegmentNumber>,
    /// Messages in the log.
    pub messages: u64,
    /// Commits in the log.
    pub commits: u64,
}

/// A group that has messages in the log.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    /// Its handle.
    pub handle: Handle,
    /// Its name.
    pub name: Box<[u8]>,
    /// Its epoch as of the last run.
    pub epoch: Epoch,
    /// Its oldest message that is kept.
    pub first: Seq,
    /// Its last message.
    pub head: Seq,
    /// Whether a message of level `memory` is in the log.
    pub used_memory: bool,
    /// Where its messages are.
    pub index: GroupIndex,
    last_commit: CommitNumber,
}

/// A segment that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// Its number.
    pub number: SegmentNumber,
    /// Its salt.
    pub salt: u64,
    /// End of its last valid commit.
    pub bytes_used: u64,
    /// Unix time of its newest message, or of its creation.
    pub newest_ms: u64,
}

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
}

/// Reads the log of `shard` on `node`. Changes nothing.
///
/// # Errors
/// [`RecoveryError`]: the disk did not answer. What the disk answered, however wrong, is no
/// error but [`Recovered::damage`].
pub fn recover(
    source: &mut impl LogSource,
    node: NodeId,
    shard: ShardId,
) -> Result<Recovered, RecoveryError> {
    recover_with(source, node, shard, &mut |_, _, _| {})
}

/// As [`recover`], and shows every commit that is used with its place and runs to `visit`.
///
/// # Errors
/// As [`recover`].
pub fn recover_with(
    source: &mut impl LogSource,
    node: NodeId,
    shard: ShardId,
    visit: &mut dyn FnMut(LogPos, &Commit<'_>, &Run<'_>),
) -> Result<Recovered, RecoveryError> {
    let mut numbers = source.segments().map_err(RecoveryError::List)?;
    numbers.sort_unstable();
    let mut recovery = Recovery::new(node, shard, visit);
    let mut window = Window::new();
    // The first segment of all starts with the first commit of all.
    if numbers.first() == Some(&SegmentNumber(1)) {
        recovery.last = Some(CommitNumber(0));
    }
    let mut before: Option<SegmentNumber> = None;
    for segment in numbers {
        if let Some(before) = before {
            for missing in (before.0 + 1..segment.0).take(MISSING_REPORTED_MAX) {
                recovery.damage(SegmentNumber(missing), 0, 0, DamageKind::Missing);
            }
        }
        before = Some(segment);
        recovery
            .segment(source, &mut window, segment)
            .map_err(|source| RecoveryError::Read { segment, source })?;
    }
    Ok(recovery.finish(before))
}

/// A file with a senseless number must not make recovery count to it.
const MISSING_REPORTED_MAX: usize = 1_000;

struct Recovery<'v> {
    node: NodeId,
    shard: ShardId,
    visit: &'v mut dyn FnMut(LogPos, &Commit<'_>, &Run<'_>),
    out: Recovered,
    groups: HashMap<Handle, RecoveredGroup>,
    /// Last commit that is used.
    last: Option<CommitNumber>,
    /// What follows the last valid commit of segments that are done, where it is not zero.
    tails: Vec<BadPlace>,
    /// Segments without any content since the last one with some.
    empty: Vec<SegmentNumber>,
}

/// A place where a commit should start and none does.
struct BadPlace {
    segment: SegmentNumber,
    offset: u64,
    fault: CommitFault,
    /// End of the last block from there on that is not zero.
    content_end: u64,
    /// Whether a valid commit header follows later.
    header_follows: bool,
    /// Whether the segment has no valid commit at all.
    whole_segment: bool,
}

impl BadPlace {
    fn new(segment: SegmentNumber, offset: u64, fault: CommitFault) -> Self {
        let mut place = Self {
            segment,
            offset,
            fault,
            content_end: offset,
            header_follows: false,
            whole_segment: false,
        };
        place.see(offset, fault);
        place
    }

    fn see(&mut self, offset: u64, fault: CommitFault) {
        if fault != CommitFault::End {
            self.content_end = offset + BLOCK;
        }
        let header = matches!(fault, CommitFault::Torn { .. } | CommitFault::Rotten { .. });
        self.header_follows |= header && offset > self.offset;
    }

    fn has_content(&self) -> bool {
        self.content_end > self.offset
    }

    /// Whether one interrupted write explains it, given the last valid commit before it. At
    /// most one write is in flight, so whatever follows it was never written.
    fn is_torn(&self, last: Option<CommitNumber>) -> bool {
        let written = self.content_end - self.offset;
        if self.header_follows {
            return false;
        }
        match self.fault {
            CommitFault::Torn { number, total_len } => {
                written <= total_len as u64 && last.is_none_or(|last| number.0 == last.0 + 1)
            }
            CommitFault::End | CommitFault::Headless => written <= COMMIT_BYTES_MAX as u64,
            _ => false,
        }
    }
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
            groups: HashMap::new(),
            last: None,
            tails: Vec::new(),
            empty: Vec::new(),
        }
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
        Ok(())
    }

    /// A valid commit with `number` at `pos` settles what the bad places before it were.
    fn settle(&mut self, bad: Option<BadPlace>, pos: LogPos, number: CommitNumber) {
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
            self.out.messages += u64::from(run.count);
            self.out.max_epoch = self.out.max_epoch.max(run.epoch);
            let group = self.groups.entry(run.handle).or_insert_with(|| RecoveredGroup {
                handle: run.handle,
                name: run.group.into(),
                epoch: run.epoch,
                first: run.first,
                head: Seq(run.first.0 - 1),
                used_memory: false,
                index: GroupIndex::default(),
                last_commit: commit.number,
            });
            let overlaps = run.first <= group.head;
            // Where damage is known a hole is what it left; without it, it is news.
            let jumps = run.first > group.head.next() && self.out.damage.is_empty();
            let contradicts = overlaps || jumps || *group.name != *run.group;
            if !overlaps {
                group.index.note(run.first, pos);
            }
            group.head = group.head.max(run.last());
            group.epoch = group.epoch.max(run.epoch);
            group.used_memory |= run.has_memory;
            group.last_commit = commit.number;
            if contradicts {
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
                self.rot(&tail, tail.content_end, None);
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
        self.out.groups = self.groups.into_values().collect();
        self.out.groups.sort_by_key(|group| (group.last_commit, group.handle));
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
