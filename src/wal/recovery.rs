//! Start-up: reads a shard's log and says what it holds, where it was torn, and where it is
//! damaged. Decides nothing by guessing: an I/O error stops it.

use std::collections::HashMap;
use std::io;
use std::mem;

use super::bad_place::BadPlace;
use super::bytes_at::is_zero;
use super::commit::Commit;
use super::damage::{Damage, DamageKind, Torn};
use super::group_state::GroupState;
use super::index::{GroupIndex, LogPos};
use super::recovered::{Recovered, RecoveredGroup, RecoveredSegment};
use super::run::{Run, RunKind};
use super::scan::{Scan, Window};
use super::segment::{SegmentHeader, SegmentHeaderFault};
use super::source::LogSource;
use crate::limits::LOG_BLOCK;
use crate::position::{CommitNumber, Handle, NodeId, SegmentNumber, Seq, ShardId};
use crate::wire::{self, ServerFrame};

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
            self.out.max_epoch = self.out.max_epoch.max(run.epoch);
            let holds = match run.kind {
                RunKind::Messages => self.messages(pos, commit, &run),
                RunKind::Records => self.records(commit.number, &run),
                RunKind::Other(_) => true,
            };
            if !holds {
                let end = pos.offset + commit.total_len as u64;
                self.damage(pos.segment, pos.offset, end, DamageKind::Contradiction(run.handle));
            }
            (self.visit)(pos, commit, &run);
        }
    }

    fn group(&mut self, number: CommitNumber, run: &Run<'_>) -> &mut RecoveredGroup {
        let group = self.groups.entry(run.handle).or_insert_with(|| RecoveredGroup {
            handle: run.handle,
            name: run.group.into(),
            epoch: run.epoch,
            first: Seq(1),
            head: Seq(0),
            used_memory: false,
            index: GroupIndex::default(),
            state: GroupState::default(),
            head_known: false,
            last_commit: number,
        });
        group.last_commit = number;
        group
    }

    /// Takes a run of messages in; false if it contradicts what came before it.
    fn messages(&mut self, pos: LogPos, commit: &Commit<'_>, run: &Run<'_>) -> bool {
        self.out.messages += u64::from(run.count);
        let damaged = !self.out.damage.is_empty();
        let group = self.group(commit.number, run);
        if !group.head_known {
            group.head_known = true;
            group.first = run.first;
            group.head = Seq(run.first.0 - 1);
        }
        if run.epoch > group.epoch {
            // What members knew of the epoch before may be more than what was left of it.
            group.state.cut_after(Seq(run.first.0 - 1));
        }
        let overlaps = run.first <= group.head;
        // Where damage is known a hole is what it left; without it, it is news.
        let jumps = run.first > group.head.next() && !damaged;
        let holds = !overlaps && !jumps && *group.name == *run.group;
        if !overlaps {
            let bytes = (run.metas.len() + run.frames.len()) as u64;
            group.index.note(run.first, pos, bytes, commit.max_stamp.millis());
        }
        group.head = group.head.max(run.last());
        group.epoch = group.epoch.max(run.epoch);
        group.used_memory |= run.has_memory;
        let (mut rest, mut repeated) = (run.frames, 0);
        let mut seq = run.first;
        for meta in run.metas() {
            let Ok(Some((frame, len))) = wire::split(rest, rest.len()) else { break };
            let Ok(ServerFrame::Deliver(message)) = ServerFrame::decode(frame) else { break };
            let first = group.state.apply_message(&meta, seq, run.epoch, message.sender);
            repeated += u64::from(!first);
            rest = &rest[len..];
            seq = seq.next();
        }
        self.out.repeated_publishes += repeated;
        holds
    }

    /// Takes a run of records in; false if one is malformed or the group has another name.
    fn records(&mut self, number: CommitNumber, run: &Run<'_>) -> bool {
        let group = self.group(number, run);
        group.epoch = group.epoch.max(run.epoch);
        let mut count = 0;
        for record in run.records() {
            group.state.apply_record(&record);
            count += 1;
        }
        count == run.count && *group.name == *run.group
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
        self.out.groups = self.groups.into_values().collect();
        for group in &mut self.out.groups {
            if !group.head_known {
                group.head = group.state.last_known();
                group.first = group.head.next();
            }
            group.state.cut_after(group.head);
        }
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
