//! The disks of the simulated node: log writes, log reads and jobs, each of which may fail.

use std::collections::BTreeMap;

use super::files::{EIO, ENOENT, FileTrouble};
use super::node::RunningJob;
use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::limits::HISTORY_READ_TRIES;
use crate::position::{Handle, SegmentNumber, Seq, ShardId};
use crate::ring::LogBuf;
use crate::serve::recover;
use crate::shard::{Event, Job};
use crate::wal::paths::segment_path;
use crate::wal::{Files, Step};

/// Share of failed reads after which reads of the same place go on failing, until the node starts
/// anew.
const LASTING_PPM: u32 = 300_000;
/// Starts that fail before the operator makes room on the disk, in case that is why.
const STARTS_WITHOUT_ROOM_MAX: u32 = 20;
/// Most steps of a job are over in this time.
const CRASH_AFTER_JOB_MS: u64 = 20;

impl World {
    pub(super) fn write_log(
        &mut self,
        shard: usize,
        segment: SegmentNumber,
        offset: u64,
        buf: LogBuf,
    ) {
        let bytes = buf.len();
        self.note(Note::Commit { shard, segment: segment.0, offset, bytes });
        let path = segment_path(&self.node.shard_dir(shard), segment);
        self.node.files.begin_write(shard, &path, offset, buf);
        let failed = !self.calm && self.rng.chance(self.config.trouble.write_error_ppm);
        let after = self.disk_time();
        self.after(after, Due::LogWritten { shard, failed });
        // The time around the end of a write is the best one to stop at.
        if !self.calm && self.rng.chance(self.config.trouble.crash_at_write_ppm) {
            let stop = self.rng.below(after + 300_000);
            self.after(stop, Due::Stop);
        }
    }

    pub(super) fn read_log(
        &mut self,
        shard: usize,
        token: u64,
        segment: SegmentNumber,
        offset: u64,
        len: usize,
    ) {
        let chance = !self.calm && self.rng.chance(self.config.trouble.read_error_ppm);
        let place = (shard, segment.0, offset);
        let sick = !self.calm && self.node.sick.get(&place).is_some_and(|sick| sick.lasts);
        let failed = chance || sick;
        if failed {
            let lasts = sick || self.rng.chance(LASTING_PPM);
            self.node.sick.entry(place).or_default().lasts = lasts;
        }
        let after = self.disk_time();
        let segment = segment.0;
        self.after(after, Due::LogRead { shard, token, segment, offset, len, failed });
    }

    fn disk_time(&mut self) -> u64 {
        match self.rng.below(50) {
            0 => {
                self.oracle.fault(Fault::SlowDisk);
                self.rng.between(1_000_000, 60_000_000)
            }
            _ => self.rng.between(40_000, 1_000_000),
        }
    }

    /// What fails from now on at calls to the file system.
    pub(super) fn file_trouble(&self) -> FileTrouble {
        let trouble = &self.config.trouble;
        if self.calm {
            return FileTrouble::default();
        }
        let has_room = self.node.failed_starts >= STARTS_WITHOUT_ROOM_MAX;
        FileTrouble {
            read_ppm: trouble.file_read_error_ppm,
            write_ppm: trouble.file_write_error_ppm,
            sync_ppm: trouble.file_sync_error_ppm,
            full_ppm: if has_room { 0 } else { trouble.disk_full_ppm },
        }
    }

    /// Counts what happened in the file system.
    pub(super) fn file_faults(&mut self) {
        let happened = std::mem::take(&mut self.node.files.inner_mut().happened);
        happened.into_iter().for_each(|fault| self.oracle.fault(fault));
    }

    /// Starts a job: its steps are carried out one after the other, some time apart.
    pub(super) fn start_job(&mut self, shard: usize, job: Job) {
        if let Job::RemoveSegments { numbers } = &job {
            self.retention_takes(shard, numbers);
        }
        let (dir, node) = (self.node.shard_dir(shard), self.node.node_id());
        let steps = recover::steps(&job, &dir, node, ShardId(shard as u16), self.wall_ms());
        self.next_job += 1;
        let id = self.next_job;
        let slow_ppm = match job {
            Job::RemoveSegments { .. } => self.config.slow_removal_ppm,
            _ => self.config.slow_job_ppm,
        };
        let slow = !self.calm && slow_ppm > 0 && self.rng.chance(slow_ppm);
        self.node.shards[shard].jobs.push(RunningJob { id, job, steps, done: 0, slow });
        if !self.calm && self.rng.chance(self.config.trouble.crash_at_job_ppm) {
            let soon_ms = CRASH_AFTER_JOB_MS.max(self.config.slow_step_ms);
            let stop = self.rng.below(soon_ms * 1_000_000);
            self.after(stop, Due::Stop);
        }
        self.job_goes_on(shard, id, slow);
    }

    fn job_goes_on(&mut self, shard: usize, id: u64, slow: bool) {
        let after = match self.rng.below(8) {
            _ if slow => self.rng.below(self.config.slow_step_ms * 1_000_000),
            0 => self.rng.between(1_000_000, 60_000_000),
            _ => self.rng.between(20_000, 2_000_000),
        };
        self.after(after, Due::JobStep { shard, id });
    }

    pub(super) fn job_step(&mut self, shard: usize, id: u64) {
        let trouble = self.file_trouble();
        let mut files = self.node.files.clone();
        files.inner_mut().trouble = trouble;
        let jobs = &mut self.node.shards[shard].jobs;
        let Some(at) = jobs.iter().position(|job| job.id == id) else { return };
        let running = &mut jobs[at];
        let result = running.steps.get(running.done).map_or(Ok(()), |step| step.run(&mut files));
        running.done += 1;
        if result.is_ok() && running.done < running.steps.len() {
            let slow = running.slow;
            return self.job_goes_on(shard, id, slow);
        }
        let running = jobs.swap_remove(at);
        let result = result.map_err(|error| error.raw_os_error().unwrap_or(EIO));
        if result.is_err() {
            files.inner_mut().trouble = FileTrouble::default();
            for step in &running.steps {
                if let Step::Create { path, .. } = step {
                    let _ = files.remove(path);
                }
            }
        }
        self.file_faults();
        if result.is_ok() && matches!(running.job, Job::EndSnapshot { .. }) {
            self.oracle.fault(Fault::SnapshotWritten);
        }
        self.note(Note::Job { shard, ok: result.is_ok() });
        self.tell(shard, Event::JobDone { job: running.job, result });
    }

    /// What these segments hold may be announced as removed from now on.
    fn retention_takes(&mut self, shard: usize, numbers: &[SegmentNumber]) {
        let mut removes = BTreeMap::<Handle, Seq>::new();
        let dir = self.node.shard_dir(shard);
        for number in numbers {
            self.node.files.runs(&segment_path(&dir, *number), |_, handle, _, last| {
                let seq = removes.entry(handle).or_default();
                *seq = last.max(*seq);
            });
        }
        removes.into_iter().for_each(|(handle, last)| self.oracle.removes(handle, last));
    }

    pub(super) fn log_written(&mut self, shard: usize, failed: bool) {
        self.oracle.note(Note::CommitDone { shard, ok: !failed });
        let done = if failed {
            self.oracle.fault(Fault::WriteError);
            self.node.files.tear_write(shard, &mut self.rng).map(|torn| {
                self.oracle.fault_if(torn.reordered, Fault::ReorderedSectors);
                torn.buf
            })
        } else {
            self.node.files.finish_write(shard)
        };
        let Some(buf) = done else { return };
        let result = if failed { Err(EIO) } else { Ok(()) };
        self.tell(shard, Event::LogWritten { result, buf });
    }

    /// What lies from here to the end of the segment may be given up when it could not be read
    /// often enough: a server knows only some of the places where commits begin.
    fn read_failed_at(&mut self, shard: usize, segment: u64, offset: u64) {
        let sick = self.node.sick.entry((shard, segment, offset)).or_default();
        sick.failed += 1;
        if sick.failed < HISTORY_READ_TRIES {
            return;
        }
        self.oracle.fault(Fault::Unreadable);
        let path = segment_path(&self.node.shard_dir(shard), SegmentNumber(segment));
        let mut there = Vec::new();
        self.node.files.runs(&path, |at, handle, first, last| {
            if at >= offset {
                there.push((handle, first, last));
            }
        });
        for (handle, first, last) in there {
            self.oracle.cannot_read(handle, first, last);
        }
    }

    pub(super) fn log_read(
        &mut self,
        shard: usize,
        token: u64,
        segment: u64,
        offset: u64,
        len: usize,
        failed: bool,
    ) {
        let path = segment_path(&self.node.shard_dir(shard), SegmentNumber(segment));
        let read = self.node.files.read_log(shard, &path, offset, len, &mut self.rng);
        let result = if failed {
            self.oracle.fault(Fault::ReadError);
            self.read_failed_at(shard, segment, offset);
            Err(EIO)
        } else {
            read.ok_or(ENOENT)
        };
        self.tell(shard, Event::LogRead { token, result });
    }
}
