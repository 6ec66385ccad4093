//! The driver: [`Io`] over one io_uring. This file has what a shard calls; what the kernel
//! answers is in `complete.rs`.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io_uring::types::{Fd, Fixed};
use io_uring::{opcode, squeue};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::LogBuf;
use super::buffers::{GROUP, RecvBuffers};
use super::cold::{ColdHandle, JobPort, SegmentHeaderFn};
use super::conn::{Conns, NO_WRITE, Recv, State};
use super::log_io::LogIo;
use super::token::{Op, pack};
use super::uring::{Block, Uring};
use super::waker::Waker;
use super::writes::Writes;
use crate::fanout::Part;
use crate::limits::{DESCRIPTORS_SPARE, LOG_BLOCK, SEND_PARTS_MAX};
use crate::position::{Nanos, SegmentNumber, ShardId};
use crate::shard::{ConnId, Event, Io, Job, RecvBuf};

/// Entries queued between two submissions. Small, so that they stay in the nearest cache; a
/// full queue is submitted at once.
const SQ_ENTRIES: u32 = 256;
/// Completions that may wait; more than these are kept by the kernel.
const CQ_ENTRIES: u32 = 8192;

/// A driver that is dropped waits this long for what is in flight.
const DROP_MAX_MS: u64 = 10_000;

/// What a driver is made of.
pub struct DriverConfig {
    /// The shard it serves.
    pub shard: ShardId,
    /// Where connections come from; socket options are set already and inherited by them.
    pub listener: TcpListener,
    /// Most connections of the shard.
    pub connections_max: u32,
    /// Receive buffers, a power of two.
    pub recv_buffers: u16,
    /// Bytes of each.
    pub recv_buffer_bytes: u32,
    /// Directory of the shard's log segments.
    pub log_dir: PathBuf,
    /// Who does the jobs.
    pub cold: ColdHandle,
    /// Makes the first block of a new segment, for [`Job::CreateSegment`].
    pub segment_header: SegmentHeaderFn,
}

/// A driver could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ring itself.
    #[error(
        "cannot set up io_uring: {0}. Linux 6.1 or newer with io_uring allowed is needed \
         (sysctl kernel.io_uring_disabled=0, no seccomp filter against it)"
    )]
    Ring(#[source] io::Error),
    /// The table of descriptors.
    #[error(
        "cannot register a table of {slots} descriptors: {source}. The limit of open files is \
         {nofile}; raise it with `ulimit -n`"
    )]
    Table {
        /// Slots asked for.
        slots: u64,
        /// RLIMIT_NOFILE.
        nofile: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// No room for a single connection.
    #[error(
        "the limit of open files is {nofile}, which leaves no room for connections beside \
         {spare} spare descriptors; raise it with `ulimit -n 65536`"
    )]
    Nofile {
        /// RLIMIT_NOFILE.
        nofile: u64,
        /// Slots that are not for members.
        spare: u64,
    },
    /// The receive buffers.
    #[error(
        "cannot register {count} receive buffers of {bytes} bytes: {source}. The count must be a \
         power of two up to 32768; Linux 5.19 or newer is needed"
    )]
    Buffers {
        /// Their count.
        count: u16,
        /// Bytes of each.
        bytes: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The eventfd for wake-ups, or the listener.
    #[error("cannot prepare the shard's files: {0}")]
    Files(#[source] io::Error),
}

/// Counts since the driver was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounters {
    /// Calls into the kernel.
    pub enters: u64,
    /// Completions.
    pub cqes: u64,
    /// Writes of one part.
    pub sends: u64,
    /// Writes of several parts.
    pub sendmsgs: u64,
    /// Writes the kernel took only a part of.
    pub short_sends: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Accepts that failed, for instance because the table was full.
    pub accept_failures: u64,
    /// Receives that ended because no buffer was free.
    pub recv_enobufs: u64,
    /// Times that completions had to wait in the kernel.
    pub cq_overflows: u64,
}

/// State of the multishot accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accept {
    Armed,
    /// Failed; tried again when a connection closes, or at this time if there is one.
    Waiting(Option<Nanos>),
    Stopping,
    Stopped,
}

/// [`Io`] over io_uring. Made and used on one thread; blocks in its ring alone.
pub struct Driver {
    // Dropped before everything the kernel may point to.
    pub(super) uring: Uring,
    pub(super) buffers: RecvBuffers,
    pub(super) buffers_out: usize,
    pub(super) buffers_total: usize,
    pub(super) conns: Conns,
    pub(super) connections_max: u32,
    /// Connections whose receive waits for buffers, oldest first.
    pub(super) starved: VecDeque<ConnId>,
    pub(super) writes: Writes,
    pub(super) log: LogIo,
    pub(super) jobs: JobPort,
    pub(super) listener: Option<TcpListener>,
    pub(super) accept: Accept,
    /// Events that came about without a completion, for the next wait.
    pub(super) pending: Vec<Event>,
    pub(super) waker: Waker,
    /// The kernel writes the eventfd's count here.
    pub(super) wake_count: Box<u64>,
    shard: ShardId,
    /// Rings of the shards by number. They are duplicates, so that a shard may end first.
    peers: Vec<OwnedFd>,
    pub(super) now: Nanos,
    random: u64,
    pub(super) counters: DriverCounters,
}

impl Driver {
    /// Makes the ring on this thread, registers descriptors and buffers, and starts to accept
    /// with the first wait.
    ///
    /// `connections_max` is cut to what RLIMIT_NOFILE allows; see
    /// [`Driver::connections_max`].
    ///
    /// # Errors
    /// [`DriverError`], each with what to do.
    pub fn new(config: DriverConfig) -> Result<Self, DriverError> {
        let uring = Uring::new(SQ_ENTRIES, CQ_ENTRIES).map_err(DriverError::Ring)?;
        let spare = DESCRIPTORS_SPARE as u64;
        let nofile = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if nofile <= spare {
            return Err(DriverError::Nofile { nofile, spare });
        }
        let slots = (u64::from(config.connections_max) + spare).min(nofile).min(1 << 20);
        uring
            .submitter()
            .register_files_sparse(slots as u32)
            .map_err(|source| DriverError::Table { slots, nofile, source })?;
        let (count, bytes) = (config.recv_buffers, config.recv_buffer_bytes);
        let buffers = RecvBuffers::register(&uring, count, bytes)
            .map_err(|source| DriverError::Buffers { count, bytes, source })?;
        // A receive from or an accept on a non-blocking descriptor would fail with EAGAIN
        // instead of waiting in the ring.
        config.listener.set_nonblocking(false).map_err(DriverError::Files)?;
        let waker = Waker::new().map_err(DriverError::Files)?;
        let jobs = config.cold.attach(&config.log_dir, config.segment_header, waker.clone());
        let mut driver = Self {
            uring,
            buffers,
            buffers_out: 0,
            buffers_total: usize::from(count),
            conns: Conns::new(slots as u32),
            connections_max: (slots - spare) as u32,
            starved: VecDeque::new(),
            writes: Writes::default(),
            log: LogIo::new(config.log_dir),
            jobs,
            listener: Some(config.listener),
            accept: Accept::Waiting(None),
            pending: Vec::new(),
            waker,
            wake_count: Box::new(0),
            shard: config.shard,
            peers: Vec::new(),
            now: clock(),
            random: seed(),
            counters: DriverCounters::default(),
        };
        driver.arm_accept();
        driver.arm_wake();
        Ok(driver)
    }

    /// Wakes this driver from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// A duplicate of its ring's descriptor, for [`Driver::set_peers`] of the other shards.
    ///
    /// # Errors
    /// What duplicating a descriptor says.
    pub fn ring_fd(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring, and with it the descriptor, lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.uring.fd()) }.try_clone_to_owned()
    }

    /// Tells it the rings of all shards by number, its own included; before the first
    /// [`Io::wake`].
    pub fn set_peers(&mut self, rings: Vec<OwnedFd>) {
        self.peers = rings;
    }

    /// Connections it has room for beside [`DESCRIPTORS_SPARE`]: what was configured, or less
    /// if RLIMIT_NOFILE is.
    #[must_use]
    pub fn connections_max(&self) -> u32 {
        self.connections_max
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> DriverCounters {
        DriverCounters {
            enters: self.uring.enters,
            cq_overflows: self.uring.cq_overflows,
            ..self.counters
        }
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// As [`Uring::push`].
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, op: Op, id: ConnId) {
        let entry = entry.user_data(pack(op, id.slot, id.generation));
        // SAFETY: the caller's promise.
        unsafe { self.uring.push(&entry) };
    }

    pub(super) fn arm_accept(&mut self) {
        if let Some(listener) = &self.listener {
            let entry =
                opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true);
            self.accept = Accept::Armed;
            // SAFETY: the entry points to no memory.
            unsafe { self.push(entry.build(), Op::Accept, NO_CONN) };
        }
    }

    pub(super) fn arm_wake(&mut self) {
        let count: *mut u64 = &raw mut *self.wake_count;
        let entry = opcode::Read::new(Fd(self.waker.fd()), count.cast(), 8).build();
        // SAFETY: the count is boxed and dropped after the ring; nobody reads it.
        unsafe { self.push(entry, Op::Wake, NO_CONN) };
    }

    pub(super) fn arm_recv(&mut self, id: ConnId) {
        let entry = opcode::RecvMulti::new(Fixed(id.slot), GROUP).build();
        // SAFETY: the entry points to no memory; the buffer ring is dropped after the ring.
        unsafe { self.push(entry, Op::Recv, id) };
    }

    pub(super) fn cancel(&mut self, what: Op, with: Op, id: ConnId) {
        let entry = opcode::AsyncCancel::new(pack(what, id.slot, id.generation)).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry, with, id) };
    }

    #[inline]
    pub(super) fn push_write(&mut self, id: ConnId, write: u32) {
        let (entry, gathers) = self.writes.entry(write, Fixed(id.slot));
        if gathers {
            self.counters.sendmsgs += 1;
        } else {
            self.counters.sends += 1;
        }
        // SAFETY: `Writes` keeps the parts and vectors until `finish`, which is called after
        // the last completion of this write.
        unsafe { self.push(entry, Op::Send, id) };
    }

    pub(super) fn push_shutdown(&mut self, id: ConnId) {
        let entry = opcode::Shutdown::new(Fixed(id.slot), libc::SHUT_WR).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry, Op::Shutdown, id) };
    }

    /// Closes the descriptor of a connection once nothing of it is in flight.
    pub(super) fn close_when_quiet(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.state == State::Closing && !conn.is_busy() {
            conn.state = State::Closed;
            let entry = opcode::Close::new(Fixed(id.slot)).build();
            // SAFETY: the entry points to no memory.
            unsafe { self.push(entry, Op::Close, id) };
        }
    }

    #[cfg(test)]
    pub(super) fn push_nop_for_test(&mut self) {
        // SAFETY: a NOP points to no memory.
        unsafe { self.push(opcode::Nop::new().build(), Op::Ignore, NO_CONN) };
    }

    /// Whether the kernel still holds something of this driver.
    fn is_busy(&self) -> bool {
        self.conns.live > 0
            || matches!(self.accept, Accept::Armed | Accept::Stopping)
            || self.writes.in_flight() + self.log.in_flight() > 0
    }

    /// How long the coming enter may block.
    fn block(&self, until: Option<Nanos>) -> Block {
        if !self.pending.is_empty() {
            return Block::No;
        }
        let until = match self.accept {
            Accept::Waiting(Some(at)) => Some(until.map_or(at, |until| until.min(at))),
            _ => until,
        };
        let Some(until) = until else { return Block::Forever };
        if until <= self.now {
            return Block::No;
        }
        match until.since(clock()) {
            0 => Block::No,
            left => Block::For(Duration::from_nanos(left)),
        }
    }
}

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
        let block = self.block(until);
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
        if let Accept::Waiting(Some(at)) = self.accept
            && at <= self.now
        {
            self.arm_accept();
        }
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
                let why = crate::shard::RecvEnd::Paused;
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
        match self.accept {
            Accept::Armed => {
                self.accept = Accept::Stopping;
                self.cancel(Op::Accept, Op::CancelAccept, NO_CONN);
            }
            Accept::Waiting(_) => {
                self.accept = Accept::Stopped;
                self.listener = None;
            }
            Accept::Stopping | Accept::Stopped => {}
        }
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

impl Drop for Driver {
    fn drop(&mut self) {
        // What the kernel still holds when the ring goes would be given back at some later
        // time: the listener's address, sockets, and, worst, memory that a disk writes to.
        self.stop_accepting();
        for id in self.conns.open() {
            self.close(id);
        }
        let deadline = clock().plus_ms(DROP_MAX_MS);
        let mut events = Vec::new();
        while self.is_busy() && clock() < deadline {
            self.wait(Some(clock().plus_ms(10)), &mut events);
            for event in events.drain(..) {
                if let Event::Accepted { conn } = event {
                    self.close(conn);
                }
            }
        }
        if self.writes.in_flight() + self.log.in_flight() > 0 {
            // A disk that does not answer for that long may still write: leak the memory.
            std::mem::forget(std::mem::take(&mut self.writes));
            std::mem::forget(std::mem::replace(&mut self.log, LogIo::new(PathBuf::new())));
        }
    }
}

/// For operations that are of no connection.
pub(super) const NO_CONN: ConnId = ConnId { slot: 0, generation: 0 };

fn log_id(slot: u32) -> ConnId {
    ConnId { slot, generation: 0 }
}

pub(super) fn clock() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn seed() -> u64 {
    let mut bytes = [0_u8; 8];
    // SAFETY: the kernel writes at most the 8 bytes that are there.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 { u64::from_ne_bytes(bytes) } else { clock().0 }
}
