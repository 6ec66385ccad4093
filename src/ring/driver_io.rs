//! What a shard calls: each call queues entries for the next wait.

use std::os::fd::AsRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::LogBuf;
use super::conn::{NO_WRITE, Recv, State};
use super::driver::{Driver, NO_CONN, clock, log_id};
use super::token::{Op, pack};
use super::uring::Block;
use crate::fanout::Part;
use crate::limits::{LOG_BLOCK, SEND_PARTS_MAX};
use crate::position::{Nanos, SegmentNumber, ShardId};
use crate::shard::{ConnId, Event, Io, Job, RecvBuf, RecvEnd};

impl Io for Driver {
    fn now(&self) -> Nanos {
        self.now
    }

    fn wall_ms(&self) -> u64 {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        time.map_or(0, |time| time.as_millis() as u64)
    }

    fn random(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn wait(&mut self, until: Option<Nanos>, events: &mut Vec<Event>) {
        self.buffers.publish();
        self.feed_starved();
        let mut block = self.block(until);
        if self.spin_ns > 0 && block != Block::No {
            self.spin(until);
            block = self.block(until);
        }
        self.uring.enter(block);
        self.now = clock();
        events.append(&mut self.pending);
        let done = self.uring.take_done();
        self.counters.cqes += done.len() as u64;
        for cqe in &done {
            self.complete(cqe, events);
        }
        self.uring.put_back(done);
        while let Some((job, result)) = self.jobs.finished() {
            events.push(Event::JobDone { job, result });
        }
        self.arm_accepts(Some(self.now));
    }

    fn clock(&self) -> Nanos {
        clock()
    }

    fn give_way(&mut self) {
        std::thread::yield_now();
    }

    #[inline]
    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.buffers.bytes(buf.id, buf.len)
    }

    #[inline]
    fn release(&mut self, buf: RecvBuf) {
        self.buffers_out -= 1;
        self.buffers.put(buf.id);
    }

    fn pause_recv(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn) else { return };
        match c.recv {
            _ if c.state != State::Open => {}
            Recv::Armed => {
                c.recv = Recv::Pausing;
                self.cancel(Op::Recv, Op::CancelRecv, conn);
            }
            Recv::Starved => {
                c.recv = Recv::Off;
                let why = RecvEnd::Paused;
                self.pending.push(Event::RecvEnded { conn, why });
            }
            Recv::Off | Recv::Pausing => {}
        }
    }

    fn resume_recv(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn) else { return };
        if c.state == State::Open && c.recv == Recv::Off {
            c.recv = Recv::Armed;
            self.arm_recv(conn);
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnId, parts: &mut Vec<Part>) {
        debug_assert!(!parts.is_empty() && parts.len() <= SEND_PARTS_MAX);
        let Some(c) = self.conns.get(conn).filter(|c| c.state == State::Open) else {
            parts.clear();
            return;
        };
        assert!(c.write == NO_WRITE, "one write at a time on {conn:?}");
        let write = self.writes.start(parts);
        c.write = write;
        self.push_write(conn, write);
    }

    fn query_unsent(&mut self, conn: ConnId) {
        if self.conns.get(conn).is_some_and(|c| c.state == State::Open) {
            self.push_query_unsent(conn);
        }
    }

    fn control_buf(&mut self) -> Vec<u8> {
        self.writes.control_buf()
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn).filter(|c| c.state == State::Open) else { return };
        if c.write != NO_WRITE {
            c.shutdown_wanted = true;
        } else if !c.shutdown_in_flight {
            c.shutdown_in_flight = true;
            self.push_shutdown(conn);
        }
    }

    fn close(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn).filter(|c| c.state == State::Open) else { return };
        c.state = State::Closing;
        let (recv, writing) = (c.recv, c.write != NO_WRITE);
        if recv == Recv::Starved {
            c.recv = Recv::Off;
        }
        if recv == Recv::Armed {
            self.cancel(Op::Recv, Op::CancelRecv, conn);
        }
        if writing {
            self.cancel(Op::Send, Op::CancelSend, conn);
        }
        self.close_when_quiet(conn);
    }

    fn stop_accepting(&mut self) {
        self.stop_accepts();
    }

    fn write_log(&mut self, segment: SegmentNumber, offset: u64, buf: LogBuf) {
        debug_assert!(offset.is_multiple_of(LOG_BLOCK as u64));
        debug_assert!(!buf.is_empty() && buf.len().is_multiple_of(LOG_BLOCK));
        match self.log.write(segment, offset, buf) {
            // SAFETY: `LogIo` keeps the buffer and the file until `finish`.
            Ok((entry, slot)) => unsafe { self.push(entry, Op::LogWrite, log_id(slot)) },
            Err((errno, buf)) => {
                self.pending.push(Event::LogWritten { result: Err(errno), buf });
            }
        }
    }

    fn read_log(&mut self, token: u64, segment: SegmentNumber, offset: u64, len: usize) {
        debug_assert!(offset.is_multiple_of(LOG_BLOCK as u64) && len.is_multiple_of(LOG_BLOCK));
        match self.log.read(token, segment, offset, len) {
            // SAFETY: `LogIo` keeps the buffer and the file until `finish`, and lets nobody
            // at the buffer before.
            Ok((entry, slot)) => unsafe { self.push(entry, Op::LogRead, log_id(slot)) },
            Err(errno) => self.pending.push(Event::LogRead { token, result: Err(errno) }),
        }
    }

    fn start_job(&mut self, job: Job) {
        if let Job::RemoveSegments { numbers } = &job {
            self.log.forget(numbers);
        }
        if let Err((job, errno)) = self.jobs.start(job) {
            self.pending.push(Event::JobDone { job, result: Err(errno) });
        }
    }

    fn wake(&mut self, shard: ShardId) {
        if shard == self.shard {
            return;
        }
        if let Some(ring) = self.peers.get(usize::from(shard.0)) {
            let entry =
                opcode::MsgRingData::new(Fd(ring.as_raw_fd()), 0, pack(Op::Ignore, 0, 0), None)
                    .build()
                    .flags(squeue::Flags::SKIP_SUCCESS);
            // SAFETY: the entry points to no memory.
            unsafe { self.push(entry, Op::Ignore, NO_CONN) };
        }
    }
}
