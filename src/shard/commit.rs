//! Stage 5: everything that was staged goes to disk as one commit. At most one write is in
//! flight; what arrives meanwhile is staged for the next (group commit).

use tracing::{error, info, warn};

use super::inbox::Origin;
use super::records::{Records, Taken, Ticket};
use super::{Io, Job, Shard};
use crate::config::Priority;
use crate::fanout::{Segment, SegmentRef};
use crate::group::Group;
use crate::position::{CommitNumber, Nanos, Seq};
use crate::ring::LogBuf;
use crate::wal::{self, LogPos, Room};
use crate::wire::Published;

/// How long after a full disk the next segment is tried again.
const STORAGE_RETRY_MS: u64 = 1_000;
/// Bytes of buffers for metas that are kept for reuse.
const SPARE_METAS_MAX: usize = 1024 * 1024;

/// The answer to a publish, held back until its message reached its level.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub origin: Origin,
    pub published: Published,
}

/// Consecutive messages of one group in one commit.
#[derive(Debug)]
pub struct Run {
    pub group: u32,
    pub segment: SegmentRef,
    pub count: u32,
    pub metas: Vec<u8>,
    pub has_memory: bool,
    /// Members have not seen it yet; they will when it is on disk.
    pub waits: bool,
}

/// The commit that is being filled.
#[derive(Debug, Default)]
pub struct Filling {
    /// Groups with staged messages.
    pub groups: Vec<u32>,
    /// What is no longer staged because it was published early.
    pub runs: Vec<Run>,
    /// Answers that wait for the disk.
    pub replies: Vec<Reply>,
    /// Answers to messages that are published in this turn.
    pub early_replies: Vec<Reply>,
    /// Encoded bytes of messages staged.
    pub staged_bytes: usize,
    /// When the first message got its place.
    pub first_at: Option<Nanos>,
    /// Staged bytes by priority.
    pub staged_by: [usize; Priority::COUNT],
    /// What is not a message.
    pub records: Records,
    /// Empty vectors of earlier commits, for use again.
    spare: Spare,
}

/// Vectors of a commit that was published. They have the size that commits need here, so
/// filling the next one allocates nothing for a message.
#[derive(Debug, Default)]
struct Spare {
    runs: Vec<Run>,
    replies: Vec<Reply>,
    metas: Vec<Vec<u8>>,
    /// Capacity of all `metas` together.
    metas_bytes: usize,
}

impl Filling {
    /// An empty buffer for the metas of a group's messages.
    pub fn metas_buf(&mut self) -> Vec<u8> {
        let metas = self.spare.metas.pop().unwrap_or_default();
        self.spare.metas_bytes -= metas.capacity();
        metas
    }

    /// Takes the metas of a run back that is on disk.
    pub fn reuse_metas(&mut self, mut metas: Vec<u8>) {
        if self.spare.metas_bytes + metas.capacity() <= SPARE_METAS_MAX {
            metas.clear();
            self.spare.metas_bytes += metas.capacity();
            self.spare.metas.push(metas);
        }
    }

    /// Takes the vectors of a commit back that was published.
    pub fn reuse(&mut self, runs: Vec<Run>, replies: Vec<Reply>) {
        debug_assert!(runs.is_empty() && replies.is_empty());
        self.spare.runs = runs;
        self.spare.replies = replies;
    }

    /// Counts bytes of messages to a group of this priority.
    pub fn add(&mut self, priority: Priority, bytes: usize) {
        self.staged_bytes += bytes;
        self.staged_by[priority.index()] += bytes;
    }

    /// Nothing is staged any more.
    fn count_anew(&mut self) {
        self.staged_bytes = 0;
        self.staged_by = Default::default();
    }

    /// Whether messages of realtime groups are staged.
    pub fn is_urgent(&self) -> bool {
        self.staged_by[Priority::Realtime.index()] > 0
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.runs.is_empty() && self.records.is_empty()
    }

    /// What goes to the disk now; the messages only if they are `with` it.
    fn hand_over(
        &mut self,
        number: CommitNumber,
        at: LogPos,
        newest_ms: u64,
        now: Nanos,
        with: bool,
        records: Taken,
    ) -> Commit {
        self.records.remove(records);
        let mut commit = Commit {
            number,
            at,
            newest_ms,
            started_at: now,
            first_at: None,
            messages: 0,
            runs: Vec::new(),
            replies: Vec::new(),
            records: records.up_to,
            urgent: with && self.is_urgent(),
            synced: false,
        };
        if with {
            self.count_anew();
            commit.first_at = self.first_at.take();
            commit.messages = self.runs.iter().map(|run| u64::from(run.count)).sum();
            let Spare { runs, replies, .. } = &mut self.spare;
            commit.runs = std::mem::replace(&mut self.runs, std::mem::take(runs));
            commit.replies = std::mem::replace(&mut self.replies, std::mem::take(replies));
        }
        commit
    }
}

/// The commit that is on its way to the disk.
#[derive(Debug)]
pub struct Commit {
    pub number: CommitNumber,
    pub at: LogPos,
    /// Unix milliseconds of its newest message.
    pub newest_ms: u64,
    /// When it was handed to the disk.
    pub started_at: Nanos,
    /// When its first message got its place.
    pub first_at: Option<Nanos>,
    /// Messages in it.
    pub messages: u64,
    pub runs: Vec<Run>,
    pub replies: Vec<Reply>,
    /// It holds all records up to this one.
    pub records: Ticket,
    /// Messages of realtime groups are in it.
    pub urgent: bool,
    /// It is on disk and may be published.
    pub synced: bool,
}

impl Shard {
    /// Turns what a group has staged into a segment.
    pub(super) fn freeze(&mut self, key: u32) -> Option<Run> {
        let staged = &mut self.groups[key as usize].sequencer()?.staged;
        if staged.count == 0 {
            return None;
        }
        let last = Seq(staged.first.0 + u64::from(staged.count) - 1);
        let run = Run {
            group: key,
            segment: Segment::new(staged.frames.split().freeze(), staged.first, last, &self.pins),
            count: staged.count,
            metas: std::mem::take(&mut staged.metas),
            has_memory: staged.has_memory,
            waits: staged.waits,
        };
        staged.usual = run.segment.bytes().len();
        staged.count = 0;
        staged.waits = false;
        staged.has_memory = false;
        Some(run)
    }

    pub(super) fn commit(&mut self, io: &mut impl Io) {
        if self.in_flight.is_some() {
            return;
        }
        self.stage_cursors(io.now());
        if self.log.is_poisoned() {
            return;
        }
        if self.filling.is_empty() {
            self.filling.count_anew();
            return;
        }
        let mut keys = std::mem::take(&mut self.filling.groups);
        for key in keys.drain(..) {
            if let Some(run) = self.freeze(key) {
                if run.waits
                    && let Some(sequencer) = self.groups[key as usize].sequencer()
                {
                    sequencer.unsynced_durable += 1;
                }
                self.filling.runs.push(run);
            }
        }
        self.filling.groups = keys;
        let (groups, filling) = (&self.groups, &self.filling);
        let runs = filling.runs.iter().map(|run| log_run(&groups[run.group as usize], run));
        let mut runs: Vec<wal::Run<'_>> = runs.collect();
        let mut messages = runs.len();
        let records = filling.records.take(groups, &mut runs);
        let before = self.log.active();
        let mut room = self.log.room(wal::commit_len(runs.iter()), messages > 0);
        if room == Room::Wait && messages > 0 && messages < runs.len() {
            // Messages wait for the next segment, records need not.
            runs.drain(..messages);
            messages = 0;
            room = self.log.room(wal::commit_len(runs.iter()), false);
        }
        let Room::At(at) = room else {
            return self.prepare_segment(io);
        };
        if at.segment != before {
            self.retention_at = Some(io.now());
            self.snapshots.sealed(before);
        }
        let (number, salt, mut buf) = self.log.begin();
        wal::encode_commit(&mut buf, number, salt, self.stamp, &runs);
        let len = buf.len();
        io.write_log(at.segment, at.offset, buf);
        for run in self.filling.runs.iter().filter(|_| messages > 0) {
            if let Some(sequencer) = self.groups[run.group as usize].sequencer() {
                sequencer.handed = run.segment.last();
            }
        }
        let newest_ms = self.stamp.millis();
        self.log.started(len, newest_ms);
        self.figures.commit_bytes += len as u64;
        self.distributions.commit_bytes.observe(len as u64);
        let (filling, with) = (&mut self.filling, messages > 0);
        self.in_flight = Some(filling.hand_over(number, at, newest_ms, self.now, with, records));
        self.prepare_segment(io);
    }

    /// Whether realtime messages wait for the log write in flight, to be in it or after it.
    pub(super) fn log_is_urgent(&self) -> bool {
        let urgent =
            |commit: &Commit| !commit.synced && (commit.urgent || self.filling.is_urgent());
        self.in_flight.as_ref().is_some_and(urgent)
    }

    /// The log write ended: on disk, or never again anything from this log.
    pub(super) fn log_written(&mut self, result: Result<(), i32>, buf: LogBuf) {
        self.log.finished(result.is_ok(), buf);
        match result {
            Ok(()) => {
                self.figures.commits += 1;
                if let Some(commit) = &mut self.in_flight {
                    commit.synced = true;
                    self.distributions.commit.observe(self.now.since(commit.started_at));
                }
            }
            Err(errno) => self.poison(errno),
        }
    }

    /// The log takes nothing more.
    fn poison(&mut self, errno: i32) {
        error!(
            shard = self.id.0,
            commit = self.log.appended().0,
            error = %std::io::Error::from_raw_os_error(errno),
            "log write failed; this shard accepts no more messages until the server is restarted"
        );
        let in_flight = self.in_flight.take();
        let records = in_flight.as_ref().map(|commit| commit.records);
        for reply in in_flight.map_or_else(Vec::new, |commit| commit.replies) {
            self.answer_after_failure(reply);
        }
        self.refuse_roster_changes(records);
        self.refuse_all_held();
        for reply in std::mem::take(&mut self.filling.replies) {
            self.answer_after_failure(reply);
        }
        // The inbox is judged once more: what has its place on disk is still answered.
        self.filling.count_anew();
    }

    /// Has the next segment created ahead of its use.
    pub(super) fn prepare_segment(&mut self, io: &mut impl Io) {
        if self.storage_retry_at.is_some_and(|at| at > io.now()) {
            return;
        }
        if let Some((number, bytes)) = self.log.wants_segment() {
            let salt = io.random();
            io.start_job(Job::CreateSegment { number, salt, bytes });
        }
    }

    pub(super) fn job_done(&mut self, job: Job, result: Result<(), i32>, now: Nanos) {
        let failure = result.err().map(std::io::Error::from_raw_os_error);
        match job {
            Job::CreateSegment { number, salt, .. } => {
                let was_full = self.log.is_full();
                self.log.segment_created(number, salt, failure.is_none());
                self.storage_retry_at = None;
                if let Some(error) = failure {
                    self.storage_retry_at = Some(now.plus_ms(STORAGE_RETRY_MS));
                    if !was_full {
                        error!(shard = self.id.0, segment = number.0, %error,
                            "no room for the next log segment; publishes get STORAGE_FULL until there is");
                    }
                } else if was_full {
                    info!(shard = self.id.0, segment = number.0, "there is room for the log again");
                }
            }
            Job::WriteIndex { .. } | Job::WriteSnapshot { .. } | Job::EndSnapshot { .. } => {
                self.snapshot_job_done(&job, result, now);
            }
            Job::RemoveSegments { numbers } => {
                self.files_removed(&numbers, failure.is_none(), now);
                if let Some(error) = failure {
                    warn!(shard = self.id.0, ?numbers, %error, "old segments could not be removed; it is tried again");
                }
            }
        }
    }
}

fn log_run<'a>(group: &'a Group, run: &'a Run) -> wal::Run<'a> {
    wal::Run {
        kind: wal::RunKind::Messages,
        handle: group.handle,
        epoch: group.epoch,
        group: &group.name,
        first: run.segment.first(),
        count: run.count,
        has_memory: run.has_memory,
        metas: &run.metas,
        frames: run.segment.bytes(),
    }
}
