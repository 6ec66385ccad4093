//! The disks of the simulated node: log writes, log reads and jobs, each of which may fail.

use std::collections::BTreeMap;

use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::position::{Handle, SegmentNumber, Seq};
use crate::ring::LogBuf;
use crate::shard::{Event, Job};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const ENOENT: i32 = 2;

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
        self.node.disks[shard].begin_write(segment, offset, buf);
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
        let failed = !self.calm && self.rng.chance(self.config.trouble.read_error_ppm);
        let after = self.disk_time();
        let segment = segment.0;
        self.after(after, Due::LogRead { shard, token, segment, offset, len, failed });
    }

    /// Does a job on the disk, or as much of it as a crash lets be done.
    pub(super) fn carry_out(&mut self, shard: usize, job: &Job, whole: bool) {
        let wall_ms = self.wall_ms();
        let disk = &mut self.node.disks[shard];
        match job {
            // The file gets its name when it is complete.
            Job::CreateSegment { number, salt, bytes } if whole => {
                disk.create(*number, *salt, *bytes, wall_ms);
            }
            Job::CreateSegment { .. } => {}
            Job::RemoveSegments { numbers } => {
                let count = if whole { numbers.len() } else { self.rng.index(numbers.len()) };
                numbers[..count].iter().for_each(|number| disk.remove(*number));
            }
        }
    }

    fn disk_time(&mut self) -> u64 {
        match self.rng.below(50) {
            0 => self.rng.between(1_000_000, 60_000_000),
            _ => self.rng.between(40_000, 1_000_000),
        }
    }

    pub(super) fn start_job(&mut self, shard: usize, job: Job) {
        let creates = matches!(job, Job::CreateSegment { .. });
        let failed = creates && !self.calm && self.rng.chance(self.config.trouble.disk_full_ppm);
        if let Job::RemoveSegments { numbers } = &job {
            let mut removes = BTreeMap::<Handle, Seq>::new();
            for number in numbers {
                self.node.disks[shard].last_messages(*number, |handle, last| {
                    let seq = removes.entry(handle).or_default();
                    *seq = last.max(*seq);
                });
            }
            removes.into_iter().for_each(|(handle, last)| self.oracle.removes(handle, last));
        }
        self.node.shards[shard].jobs.push(job.clone());
        let after = self.rng.between(100_000, 100_000_000);
        self.after(after, Due::JobDone { shard, job, failed });
    }

    pub(super) fn log_written(&mut self, shard: usize, failed: bool) {
        let disk = &mut self.node.disks[shard];
        self.oracle.note(Note::CommitDone { shard, ok: !failed });
        let done = if failed {
            self.oracle.fault(Fault::WriteError);
            disk.tear_write(&mut self.rng).map(|(buf, ..)| buf)
        } else {
            disk.finish_write()
        };
        let Some(buf) = done else { return };
        let result = if failed { Err(EIO) } else { Ok(()) };
        self.tell(shard, Event::LogWritten { result, buf });
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
        let disk = &self.node.disks[shard];
        let read = disk.read_log(SegmentNumber(segment), offset, len, &mut self.rng);
        let result = if failed {
            self.oracle.fault(Fault::ReadError);
            Err(EIO)
        } else {
            read.ok_or(ENOENT)
        };
        self.tell(shard, Event::LogRead { token, result });
    }

    pub(super) fn job_done(&mut self, shard: usize, job: Job, failed: bool) {
        self.note(Note::Job { shard, ok: !failed });
        self.node.shards[shard].jobs.retain(|other| *other != job);
        if failed {
            self.oracle.fault(Fault::DiskFull);
        } else {
            self.carry_out(shard, &job, true);
        }
        let result = if failed { Err(ENOSPC) } else { Ok(()) };
        self.tell(shard, Event::JobDone { job, result });
    }
}
