//! Members behind the tail read from the owner's log: one chunk at a time, shared by all
//! members of a shard at the same place. Pages of FETCH are read in the same way; they and
//! members take turns, so that neither waits for all of the other.

use std::collections::VecDeque;
use std::rc::Rc;

use tracing::warn;

use super::conn::Membership;
use super::fetch::FetchRead;
use super::{Io, Shard};
use crate::fanout::Segment;
use crate::group::{Chunk, ChunkWait, Lag, Role};
use crate::limits::{COMMIT_BYTES_MAX, HISTORY_READ_TRIES};
use crate::mesh::{Announced, History, Message};
use crate::position::{Epoch, Handle, Nanos, SegmentNumber, Seq, ShardId};
use crate::ring::LogBuf;
use crate::wal::{self, LogPos, Resume};
use crate::wire::GapReason;

const ENOENT: i32 = 2;
/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Reads for FETCH in flight: a member that falls behind then finds a free one at once.
const FETCH_READS_MAX: usize = 2;
/// Time until a read that failed is tried again. Only those who want this place wait.
const READ_AGAIN_MS: u64 = 1_000;

/// Whom a read is for.
#[derive(Clone, Debug)]
pub enum For {
    /// The members of a shard that are at one place.
    Members(ShardId),
    /// A page of history.
    Fetch(Box<FetchRead>),
}

/// A read that was asked for.
#[derive(Debug)]
struct Wanted {
    who: For,
    handle: Handle,
    from: Seq,
}

/// A chunk that someone waits for.
#[derive(Clone, Debug)]
pub struct Read {
    who: For,
    pub handle: Handle,
    from: Seq,
    /// What was found missing so far.
    pub gap: Option<(Seq, Seq, GapReason)>,
    segment: SegmentNumber,
    offset: u64,
    /// Bytes that were asked for last.
    len: usize,
    /// The group's last message that was on disk then.
    synced: Seq,
    /// How often the place could not be read.
    failed: u32,
}

impl Read {
    fn new(who: For, handle: Handle, from: Seq) -> Self {
        let (segment, synced) = (SegmentNumber(0), Seq(0));
        Self { who, handle, from, gap: None, segment, offset: 0, len: 0, synced, failed: 0 }
    }

    /// The first place after the segment.
    fn segment_end(&self) -> LogPos {
        LogPos { segment: SegmentNumber(self.segment.0 + 1), offset: 0 }
    }
}

/// History that is being read by this shard, and members that want some.
#[derive(Debug, Default)]
pub struct Reads {
    /// Local members that fell behind and have not asked yet.
    pub wanted: Vec<Membership>,
    asked: VecDeque<Wanted>,
    fetches: VecDeque<Wanted>,
    /// A member was served last.
    fetch_is_next: bool,
    in_flight: Vec<(u64, Read)>,
    /// Reads that need more of the log, and how many bytes; they go on before others begin.
    parked: VecDeque<(Read, usize)>,
    /// Reads that failed, and when they are tried again; all wait equally long.
    failed: VecDeque<(Nanos, Read)>,
    done: Vec<(u64, Result<LogBuf, i32>)>,
    next_token: u64,
}

impl Reads {
    /// Someone needs history of an owned group.
    pub fn ask(&mut self, who: For, handle: Handle, from: Seq) {
        let queue = match who {
            For::Members(_) => &mut self.asked,
            For::Fetch(_) => &mut self.fetches,
        };
        queue.push_back(Wanted { who, handle, from });
    }

    /// The next read to begin, if one more may be in flight; `full`: none for members.
    fn next(&mut self, full: bool) -> Option<Wanted> {
        let fetching = |(_, read): &&(u64, Read)| matches!(read.who, For::Fetch(_));
        let may_fetch = self.in_flight.iter().filter(fetching).count() < FETCH_READS_MAX;
        let fetch = may_fetch && (self.fetch_is_next || self.asked.is_empty() || full);
        let next = if fetch { self.fetches.pop_front() } else { None };
        self.fetch_is_next = next.is_none();
        next.or_else(|| if full { None } else { self.asked.pop_front() })
    }

    /// When a read that failed is tried again.
    pub fn again_at(&self) -> Option<Nanos> {
        self.failed.front().map(|(at, _)| *at)
    }

    /// Reads that have waited long enough since they failed go on before others begin.
    fn try_again(&mut self, now: Nanos) {
        while self.again_at().is_some_and(|at| at <= now) {
            let Some((_, read)) = self.failed.pop_front() else { return };
            let len = read.len;
            self.parked.push_back((read, len));
        }
    }

    /// Whether nobody waits for the disk, but for reads that failed: nobody stops later for them.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty()
            && self.asked.is_empty()
            && self.fetches.is_empty()
            && self.in_flight.is_empty()
            && self.parked.is_empty()
    }
}

impl Shard {
    /// Stage 8: members that fell behind ask the owner; the owner reads; what was read is
    /// handed on.
    pub(super) fn read_history(&mut self, io: &mut impl Io) {
        for membership in std::mem::take(&mut self.reads.wanted) {
            self.want(membership);
        }
        for (token, result) in std::mem::take(&mut self.reads.done) {
            if let Some(at) = self.reads.in_flight.iter().position(|(t, _)| *t == token) {
                let (_, read) = self.reads.in_flight.swap_remove(at);
                self.read_done(read, result, io.now());
            }
        }
        self.reads.try_again(io.now());
        // Before reads begin: members wait for these if too much waits to be handed on.
        self.hand_on(io);
        let beside = self.is_before_reads(io);
        while self.pace.may_read(self.reads.in_flight.len(), beside, io.now()) {
            if let Some((read, len)) = self.reads.parked.pop_front() {
                self.read_on(read, len, io);
            } else if let Some(Wanted { who, handle, from }) = self.reads.next(self.pace.is_full())
            {
                self.begin_read(who, handle, from, io);
            } else {
                return;
            }
        }
    }

    /// Goes on with a read that needs more.
    fn read_on(&mut self, read: Read, len: usize, io: &mut impl Io) {
        if self.log.readable(read.segment).is_some() {
            return self.submit_read(read, len, io);
        }
        // Retention took the segment meanwhile. Whoever asked waits for an answer to the
        // place it asked for, which a gap may have moved.
        let asked = read.gap.map_or(read.from, |(from, _, _)| from);
        self.begin_read(read.who, read.handle, asked, io);
    }

    /// A member needs what follows its cursor. Members at the same place share one read.
    fn want(&mut self, membership: Membership) {
        let Some(group) = self.groups.get_mut(membership.group as usize) else { return };
        let Some(member) = group.members.get(membership.member) else { return };
        let from = member.sent.next();
        if let Some(wait) = group.reads.iter_mut().find(|wait| wait.from == from) {
            wait.members.push(membership.member);
            return;
        }
        group.reads.push(ChunkWait { from, members: vec![membership.member] });
        let handle = group.handle;
        match group.role {
            Role::Owner(_) => self.reads.ask(For::Members(self.id), handle, from),
            Role::Replica { owner } => self.tell(owner, Message::Read { handle, from }),
        }
    }

    fn begin_read(&mut self, who: For, handle: Handle, from: Seq, io: &mut impl Io) {
        let key = self.by_handle.get(&handle).copied();
        let sequencer = key.and_then(|key| self.groups[key as usize].sequencer());
        let Some(sequencer) = sequencer else { return self.group_is_gone(who, handle) };
        super::retention::forget_removed(&self.log, sequencer);
        let (first, synced) = (sequencer.first_kept, sequencer.synced);
        if let For::Members(shard) = who
            && from > synced
            && self.answer_from_tail(shard, handle, from)
        {
            return;
        }
        let sequencer = key.and_then(|key| self.groups[key as usize].sequencer());
        let Some(sequencer) = sequencer else { return self.group_is_gone(who, handle) };
        let gap = (from < first).then(|| (from, Seq(first.0 - 1), GapReason::Retention));
        let from = from.max(first);
        let at = sequencer.index.find(from).filter(|_| from <= sequencer.synced);
        let mut read = Read { gap, ..Read::new(who, handle, from) };
        let Some(at) = at else { return self.answer(read, None) };
        (read.segment, read.offset) = (at.segment, at.offset);
        self.submit_read(read, CHUNK_BYTES, io);
    }

    /// Where the group goes on from this place of the log.
    fn next_place(&mut self, handle: Handle, from: LogPos) -> Option<LogPos> {
        let key = *self.by_handle.get(&handle)?;
        self.groups[key as usize].sequencer()?.index.from_place(from)
    }

    /// The group's last message that is on disk.
    fn synced_of(&mut self, handle: Handle) -> Seq {
        let key = self.by_handle.get(&handle).copied();
        let sequencer = key.and_then(|key| self.groups[key as usize].sequencer());
        sequencer.map(|sequencer| sequencer.synced).unwrap_or_default()
    }

    /// Reads on, in the next segment if this one has ended.
    fn submit_read(&mut self, mut read: Read, len: usize, io: &mut impl Io) {
        read.synced = self.synced_of(read.handle);
        loop {
            if let Some((_, end)) = self.log.readable(read.segment)
                && read.offset < end
            {
                let len = len.min((end - read.offset) as usize);
                read.len = len;
                let token = self.reads.next_token;
                self.reads.next_token += 1;
                self.figures.catch_up_reads += 1;
                self.pace.reads(io.now());
                io.read_log(token, read.segment, read.offset, len);
                self.reads.in_flight.push((token, read));
                return;
            }
            match self.next_place(read.handle, read.segment_end()) {
                Some(next) => (read.segment, read.offset) = (next.segment, next.offset),
                None => return self.missing(read),
            }
        }
    }

    pub(super) fn history_read(&mut self, token: u64, result: Result<LogBuf, i32>) {
        self.reads.done.push((token, result));
    }

    fn read_done(&mut self, mut read: Read, result: Result<LogBuf, i32>, now: Nanos) {
        let Some((salt, end)) = self.log.readable(read.segment) else {
            return self.reads.parked.push_back((read, CHUNK_BYTES));
        };
        let buf = match result {
            Ok(buf) => buf,
            Err(ENOENT) if read.segment.log().is_some() => {
                // Another shard has removed it and its message is on the way.
                self.log.sealed_goes(read.segment);
                return self.reads.parked.push_back((read, CHUNK_BYTES));
            }
            Err(errno) => return self.read_failed(read, errno, now),
        };
        read.failed = 0;
        if buf.is_empty() {
            return self.skip_segment(read);
        }
        let found =
            wal::collect(buf.as_slice(), read.offset, salt, read.handle, read.from, CHUNK_BYTES);
        if !found.frames.is_empty() {
            return self.answer(read, Some(found));
        }
        let mut len = CHUNK_BYTES;
        match found.end {
            Resume::NextAt { offset } => read.offset = offset,
            Resume::NeedBytes { offset, need } => {
                let whole = need <= COMMIT_BYTES_MAX && offset + need as u64 <= end;
                if !whole || (offset == read.offset && need <= buf.len()) {
                    return self.skip_segment(read);
                }
                read.offset = offset;
                len = need.max(CHUNK_BYTES);
            }
            Resume::SegmentEnd => return self.skip_segment(read),
            Resume::Hole { offset, next } => {
                widen(&mut read, next);
                read.offset = offset;
            }
            Resume::Bad { skip_to, .. } => {
                warn!(
                    shard = self.id.0,
                    segment = read.segment.0,
                    offset = read.offset,
                    "damaged commit in history; members get GAP"
                );
                read.offset = skip_to;
            }
        }
        self.reads.parked.push_back((read, len));
    }

    /// The disk did not give what was asked for. That says nothing about what lies there, so it
    /// is asked again; a checksum that is wrong is not.
    fn read_failed(&mut self, mut read: Read, errno: i32, now: Nanos) {
        self.figures.catch_up_read_errors += 1;
        read.failed += 1;
        let error = std::io::Error::from_raw_os_error(errno);
        let (segment, offset, tries) = (read.segment.0, read.offset, read.failed);
        warn!(shard = self.id.0, segment, offset, tries, %error, "history cannot be read");
        if read.failed < HISTORY_READ_TRIES {
            return self.reads.failed.push_back((now.plus_ms(READ_AGAIN_MS), read));
        }
        let offset = read.offset + read.len as u64;
        let after = LogPos { segment: read.segment, offset };
        self.skip_to(read, after);
    }

    fn skip_segment(&mut self, read: Read) {
        let end = read.segment_end();
        self.skip_to(read, end);
    }

    /// Goes on at the first known place of the group that is not before `place`.
    fn skip_to(&mut self, mut read: Read, place: LogPos) {
        read.failed = 0;
        match self.next_place(read.handle, place) {
            Some(next) => {
                (read.segment, read.offset) = (next.segment, next.offset);
                self.reads.parked.push_back((read, CHUNK_BYTES));
            }
            None => self.missing(read),
        }
    }

    /// The log ended without the message when it was asked: what it should have held is gone.
    fn missing(&mut self, mut read: Read) {
        if read.from <= read.synced {
            let end = read.synced.next();
            widen(&mut read, end);
        }
        self.answer(read, None);
    }

    fn answer(&mut self, read: Read, found: Option<wal::Collected>) {
        let shard = match &read.who {
            For::Members(shard) => *shard,
            For::Fetch(fetch) => return self.fetched(&read, fetch, found),
        };
        let epoch = found.as_ref().map_or(Epoch(0), |found| found.epoch);
        let asked = read.gap.map_or(read.from, |(from, _, _)| from);
        let segment =
            found.map(|f| Announced { bytes: f.frames.into(), first: f.first, last: f.last });
        let history = History { handle: read.handle, from: asked, gap: read.gap, epoch, segment };
        self.answer_with(shard, history);
    }

    fn answer_with(&mut self, shard: ShardId, history: History) {
        if shard == self.id {
            return self.history_arrived(history);
        }
        // A member must not be ahead of its shard's tail: what the log has is announced first.
        if let Some(&key) = self.by_handle.get(&history.handle) {
            self.announce(shard, key);
        }
        self.tell(shard, Message::History(history));
    }

    /// Answers with what was shown before it was on disk: the owner's tail keeps it as long as
    /// the log lacks it, which is for good if the log failed meanwhile.
    fn answer_from_tail(&mut self, shard: ShardId, handle: Handle, from: Seq) -> bool {
        let Some(&key) = self.by_handle.get(&handle) else { return false };
        let group = &self.groups[key as usize];
        let Some(tail) = group.tail.ordinal_of(from).and_then(|at| group.tail.get(at)) else {
            return false;
        };
        let bytes = tail.bytes().clone();
        let segment = Some(Announced { bytes, first: tail.first(), last: tail.last() });
        let history = History { handle, from, gap: None, epoch: group.epoch, segment };
        self.answer_with(shard, history);
        true
    }

    /// The group of a read was deleted meanwhile. Members learn of that in other ways; a FETCH
    /// finds nothing.
    fn group_is_gone(&mut self, who: For, handle: Handle) {
        if let For::Fetch(fetch) = who {
            self.fetched_nothing(handle, &fetch);
        }
    }

    /// A chunk is here: everyone who waited for it goes on when it is its turn.
    pub(super) fn history_arrived(&mut self, history: History) {
        let History { handle, from, gap, epoch, segment } = history;
        let Some(&key) = self.by_handle.get(&handle) else { return };
        let group = &mut self.groups[key as usize];
        let Some(at) = group.reads.iter().position(|wait| wait.from == from) else { return };
        let mut waiting = group.reads.swap_remove(at).members;
        let segment = segment.map(|s| Segment::new(s.bytes, s.first, s.last, &self.pins));
        if let Some(segment) = &segment {
            // It is in no tail: only unfinished writes hold it.
            segment.mark_evicted();
        }
        let bytes = segment.as_ref().map_or(0, |segment| segment.bytes().len());
        let chunk = Rc::new(Chunk { gap, epoch, segment });
        waiting.retain(|member| match group.members.get_mut(*member) {
            Some(member) if matches!(member.lag, Lag::Waiting) && member.sent.next() == from => {
                member.lag = Lag::Ready(chunk.clone());
                true
            }
            _ => false,
        });
        self.pace.push_chunk(key, handle, bytes, waiting);
    }
}

/// Extends what is missing up to before `next`.
fn widen(read: &mut Read, next: Seq) {
    let from = read.gap.map_or(read.from, |(from, _, _)| from);
    read.gap = Some((from, Seq(next.0 - 1), GapReason::Damaged));
    read.from = next;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const READS: usize = 4;

    fn begin(reads: &mut Reads) -> Option<bool> {
        if reads.in_flight.len() >= READS {
            return None;
        }
        let Wanted { who, handle, from } = reads.next(false)?;
        let fetch = matches!(who, For::Fetch(_));
        let read = Read::new(who, handle, from);
        reads.next_token += 1;
        reads.in_flight.push((reads.next_token, read));
        Some(fetch)
    }

    fn asked(members: usize, fetches: usize) -> Reads {
        let mut reads = Reads::default();
        for _ in 0..members {
            reads.ask(For::Members(ShardId(0)), Handle(1), Seq(1));
        }
        for _ in 0..fetches {
            reads.ask(For::Fetch(FetchRead::for_test()), Handle(1), Seq(1));
        }
        reads
    }

    #[test]
    fn members_find_a_free_read_beside_any_number_of_fetches() {
        let mut reads = asked(0, 100);
        while begin(&mut reads).is_some() {}
        assert_eq!(reads.in_flight.len(), FETCH_READS_MAX);
        reads.ask(For::Members(ShardId(0)), Handle(1), Seq(1));
        assert_eq!(begin(&mut reads), Some(false));
    }

    #[test]
    fn members_and_fetches_take_turns() {
        let mut reads = asked(100, 100);
        let mut begun = Vec::new();
        for _ in 0..40 {
            while let Some(fetch) = begin(&mut reads) {
                begun.push(fetch);
            }
            reads.in_flight.remove(0);
        }
        for pair in begun[READS..].windows(4) {
            assert!(pair.contains(&true) && pair.contains(&false), "{begun:?}");
        }
    }

    #[test]
    fn fetches_alone_and_members_alone_are_all_served() {
        for (members, fetches) in [(20, 0), (0, 20)] {
            let mut reads = asked(members, fetches);
            let mut count = 0;
            while !reads.is_idle() {
                while begin(&mut reads).is_some() {
                    count += 1;
                }
                reads.in_flight.remove(0);
            }
            assert_eq!(count, 20);
        }
    }
}
