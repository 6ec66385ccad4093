//! Snapshots and indices of sealed segments: what lets the next start read little. Both are
//! made a slice a turn while the shard goes on, and written by jobs.

use std::collections::VecDeque;

use bytes::Bytes;
use tracing::{info, warn};

use super::capture::Place;
use super::{Io, Job, Shard};
use crate::position::{CommitNumber, Nanos, SegmentNumber};
use crate::wal::snapshot::Written;
use crate::wal::{IndexHeader, Recovered, SegmentIndexBuilder, SnapshotHeader, SnapshotPiece};

/// Bytes that are captured in one turn, give or take one item.
const SLICE_BYTES: usize = 64 * 1024;
/// Groups that are looked at in one turn.
const SLICE_GROUPS: usize = 512;
/// A piece goes to the disk when it is this large.
const PIECE_BYTES: usize = 512 * 1024;
/// How long after a failure the next snapshot is tried.
const RETRY_MS: u64 = 10_000;
/// How long a clean stop waits for its snapshot.
const LAST_SNAPSHOT_MS: u64 = 30_000;
/// Snapshots that stay: if the newest is damaged, the one before it and the log say the same.
const KEPT: usize = 2;

/// A snapshot that is being written.
#[derive(Debug)]
struct Writing {
    covered: CommitNumber,
    place: Place,
    piece: SnapshotPiece,
    written: Written,
    /// Bytes handed to the disk.
    at: u64,
    /// A job has the last piece.
    waits: bool,
}

/// An index that is being made.
#[derive(Debug)]
struct Indexing {
    number: SegmentNumber,
    builder: SegmentIndexBuilder,
    /// Key of the next group.
    next: usize,
}

/// Where snapshots and indices stand.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// What the snapshots on disk cover, oldest first.
    on_disk: Vec<CommitNumber>,
    wanted: bool,
    writing: Option<Writing>,
    retry_at: Option<Nanos>,
    to_index: VecDeque<SegmentNumber>,
    indexing: Option<Indexing>,
    index_jobs: u32,
    /// A clean stop is waiting for the last snapshot until then.
    stop_by: Option<Nanos>,
}

impl Snapshots {
    /// After a start: one is wanted if the log had to be read.
    pub fn after(recovered: &Recovered) -> Self {
        let wanted = recovered.next_commit.0 > recovered.snapshot.unwrap_or_default().0 + 1;
        Self { on_disk: recovered.snapshots.clone(), wanted, ..Self::default() }
    }

    /// Retention may take what the oldest of the snapshots that stay covers, so that each of
    /// them can be started from.
    pub fn covered(&self) -> CommitNumber {
        let oldest = self.on_disk.len().saturating_sub(KEPT);
        self.on_disk.get(oldest).copied().unwrap_or_default()
    }

    /// A segment is full: its index and a snapshot are due.
    pub fn sealed(&mut self, number: SegmentNumber) {
        self.to_index.push_back(number);
        self.wanted = true;
    }

    /// When there is something to do even if nothing happens.
    pub fn deadline(&self) -> Option<Nanos> {
        self.retry_at.filter(|_| self.wanted)
    }

    /// A clean stop has begun to wait for the last snapshot.
    pub fn stops(&self) -> bool {
        self.stop_by.is_some()
    }

    fn newest(&self) -> CommitNumber {
        self.on_disk.last().copied().unwrap_or_default()
    }
}

impl Shard {
    /// Whether the next slice can be captured now.
    pub(super) fn captures(&self) -> bool {
        let snapshots = &self.snapshots;
        snapshots.indexing.is_some()
            || !snapshots.to_index.is_empty()
            || snapshots.writing.as_ref().is_some_and(|writing| !writing.waits)
            || (snapshots.wanted && snapshots.writing.is_none() && snapshots.retry_at.is_none())
    }

    /// Stage 10: a slice of the index or snapshot that is being made.
    pub(super) fn snapshot(&mut self, io: &mut impl Io) {
        if self.snapshots.retry_at.is_some_and(|at| at <= io.now()) {
            self.snapshots.retry_at = None;
        }
        if !self.captures() {
            return;
        }
        if !self.index_sealed(io) {
            self.begin_snapshot();
            self.capture_slice(io);
        }
    }

    /// Makes a slice of an index; false if none is due.
    fn index_sealed(&mut self, io: &mut impl Io) -> bool {
        let snapshots = &mut self.snapshots;
        let mut indexing = match (snapshots.indexing.take(), snapshots.to_index.pop_front()) {
            (Some(indexing), next) => {
                next.into_iter().for_each(|next| snapshots.to_index.push_front(next));
                indexing
            }
            (None, Some(number)) => {
                let Some(info) = self.log.info(number) else { return true };
                let (node, shard) = (self.node, self.id);
                let header = IndexHeader { node, shard, number, info };
                Indexing { number, builder: SegmentIndexBuilder::new(&header), next: 0 }
            }
            (None, None) => return false,
        };
        let enough = indexing.builder.size() + SLICE_BYTES;
        let end = self.groups.capacity();
        for _ in 0..SLICE_GROUPS {
            if indexing.next >= end || indexing.builder.size() > enough {
                break;
            }
            if let Some(group) = self.groups.get_mut(indexing.next) {
                let handle = group.handle;
                if let Some(sequencer) = group.sequencer() {
                    let (entries, last) =
                        sequencer.index.in_segment(indexing.number, sequencer.synced);
                    indexing.builder.group(handle, last, entries);
                }
            }
            indexing.next += 1;
        }
        if indexing.next < end {
            self.snapshots.indexing = Some(indexing);
        } else {
            self.snapshots.index_jobs += 1;
            let bytes = Bytes::from(indexing.builder.finish());
            io.start_job(Job::WriteIndex { number: indexing.number, bytes });
        }
        true
    }

    fn begin_snapshot(&mut self) {
        let snapshots = &mut self.snapshots;
        if snapshots.writing.is_some() || !snapshots.wanted {
            return;
        }
        snapshots.wanted = false;
        let covered = self.log.synced();
        if self.log.is_poisoned() || covered <= snapshots.newest() {
            return;
        }
        snapshots.writing = Some(Writing {
            covered,
            place: Place::default(),
            piece: SnapshotPiece::default(),
            written: Written::default(),
            at: 0,
            waits: false,
        });
    }

    fn capture_slice(&mut self, io: &mut impl Io) {
        let Some(mut writing) = self.snapshots.writing.take() else { return };
        if !writing.waits {
            let enough = writing.piece.len() + SLICE_BYTES;
            let done = self.capture(&mut writing.place, &mut writing.piece, enough, SLICE_GROUPS);
            if done || writing.piece.len() >= PIECE_BYTES {
                self.hand_over_piece(&mut writing, done, io);
            }
        }
        self.snapshots.writing = Some(writing);
    }

    fn hand_over_piece(&mut self, writing: &mut Writing, last: bool, io: &mut impl Io) {
        let mut bytes = Vec::new();
        if writing.at == 0 {
            let header = SnapshotHeader {
                node: self.node,
                shard: self.id,
                covered: writing.covered,
                max_stamp: self.stamp,
                max_epoch: self.start.max(self.max_epoch),
            };
            bytes = header.encode();
        }
        bytes.extend(writing.piece.seal(&mut writing.written));
        let at = writing.at;
        writing.waits = true;
        if !last {
            writing.at += bytes.len() as u64;
            return io.start_job(Job::WriteSnapshot { at, bytes: bytes.into() });
        }
        bytes.extend(writing.written.end());
        writing.at += bytes.len() as u64;
        let stay = self.snapshots.on_disk.len().saturating_sub(KEPT - 1);
        let obsolete = self.snapshots.on_disk[..stay].to_vec();
        let covered = writing.covered;
        io.start_job(Job::EndSnapshot { covered, at, bytes: bytes.into(), obsolete });
    }

    /// A job of a snapshot or index ended.
    pub(super) fn snapshot_job_done(&mut self, job: &Job, result: Result<(), i32>, now: Nanos) {
        let shard = self.id.0;
        let error = result.err().map(std::io::Error::from_raw_os_error);
        match (job, error) {
            (Job::WriteIndex { number, .. }, error) => {
                self.snapshots.index_jobs -= 1;
                if let Some(error) = error {
                    // The next start reads the segment and makes it.
                    warn!(shard, segment = number.0, %error, "the index of a segment could not be written");
                }
            }
            (Job::WriteSnapshot { .. }, None) => {
                if let Some(writing) = &mut self.snapshots.writing {
                    writing.waits = false;
                }
            }
            (Job::EndSnapshot { covered, at, bytes, obsolete }, None) => {
                self.snapshots.on_disk.drain(..obsolete.len());
                self.snapshots.on_disk.push(*covered);
                self.snapshots.writing = None;
                self.figures.snapshots += 1;
                self.retention_at = Some(now);
                let bytes = at + bytes.len() as u64;
                info!(shard, covered = covered.0, bytes, "wrote a snapshot");
            }
            (_, Some(error)) => {
                warn!(shard, %error, "a snapshot could not be written; it is tried again, and the log is kept until then");
                self.snapshots.writing = None;
                self.snapshots.wanted = true;
                self.snapshots.retry_at = Some(now.plus_ms(RETRY_MS));
            }
            _ => {}
        }
    }

    /// In a clean stop, after the last commit: writes what makes the next start short. Returns
    /// whether it is done, or cannot be.
    pub(super) fn last_snapshot(&mut self, now: Nanos) -> bool {
        if self.log.is_poisoned() {
            return true;
        }
        if self.snapshots.stop_by.is_none() {
            self.snapshots.stop_by = Some(now.plus_ms(LAST_SNAPSHOT_MS));
            let active = self.log.active();
            if self.log.info(active).is_some_and(|info| info.last_commit.0 > 0) {
                self.snapshots.to_index.push_back(active);
            }
            self.snapshots.wanted |= self.log.synced() > self.snapshots.newest();
        }
        let snapshots = &self.snapshots;
        let late = snapshots.stop_by.is_some_and(|at| at <= now);
        let failed = snapshots.retry_at.is_some();
        let busy = self.captures() || snapshots.writing.is_some() || snapshots.index_jobs > 0;
        late || (!busy && (!snapshots.wanted || failed))
    }
}
