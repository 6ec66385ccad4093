//! The driver: [`Io`] over one io_uring. This file has its state and what it tells the kernel;
//! what a shard calls is in `driver_io.rs`, what the kernel answers in `complete.rs`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use io_uring::types::{Fd, Fixed};
use io_uring::{opcode, squeue};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::accept::Listener;
use super::buffers::{GROUP, RecvBuffers};
use super::cold::JobPort;
use super::conn::{Conns, State};
use super::driver_config::{DriverConfig, DriverCounters, DriverError};
use super::log_io::LogIo;
use super::token::{Op, pack};
use super::uring::{Block, Uring};
use super::waker::Waker;
use super::writes::Writes;
use crate::limits::DESCRIPTORS_SPARE;
use crate::position::{Nanos, ShardId};
use crate::shard::{ConnId, Event, Io};

/// Entries queued between two submissions. Small, so that they stay in the nearest cache; a
/// full queue is submitted at once.
const SQ_ENTRIES: u32 = 256;
/// Completions that may wait; more than these are kept by the kernel.
const CQ_ENTRIES: u32 = 8192;

/// From linux/io_uring.h; the crates do not name it.
const SOCKET_URING_OP_SIOCOUTQ: u32 = 1;

/// A driver that is dropped waits this long for what is in flight.
const DROP_MAX_MS: u64 = 10_000;

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
    pub(super) listeners: Vec<Listener>,
    /// Events that came about without a completion, for the next wait.
    pub(super) pending: Vec<Event>,
    pub(super) waker: Waker,
    /// The kernel writes the eventfd's count here.
    pub(super) wake_count: Box<u64>,
    pub(super) shard: ShardId,
    /// Rings of the shards by number. They are duplicates, so that a shard may end first.
    pub(super) peers: Vec<OwnedFd>,
    pub(super) now: Nanos,
    /// How long it looks for completions before it sleeps.
    pub(super) spin_ns: u64,
    pub(super) random: u64,
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
        for listener in &config.listeners {
            listener.set_nonblocking(false).map_err(DriverError::Files)?;
        }
        let waker = Waker::new().map_err(DriverError::Files)?;
        let jobs = config.cold.attach(&config.log_dir, config.steps, waker.clone());
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
            listeners: config.listeners.into_iter().map(Listener::new).collect(),
            pending: Vec::new(),
            waker,
            wake_count: Box::new(0),
            shard: config.shard,
            peers: Vec::new(),
            now: clock(),
            spin_ns: u64::from(config.spin_us) * 1_000,
            random: seed(),
            counters: DriverCounters::default(),
        };
        driver.arm_accepts(None);
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

    /// SIOCOUTQ of a socket in the table of descriptors (Linux 6.7). The kernel answers while
    /// the entry is submitted, so it is never in flight when the descriptor is closed.
    pub(super) fn push_query_unsent(&mut self, id: ConnId) {
        let entry = opcode::UringCmd16::new(Fixed(id.slot), SOCKET_URING_OP_SIOCOUTQ).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry, Op::Unsent, id) };
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
            || self.listeners.iter().any(Listener::is_busy)
            || self.writes.in_flight() + self.log.in_flight() > 0
    }

    /// Submits what is queued and looks for completions for a while. The kernel says in memory
    /// that both see whether there is something to do, so most looks are no system call.
    pub(super) fn spin(&mut self, until: Option<Nanos>) {
        let end = Nanos(clock().0.saturating_add(self.spin_ns));
        let end = until.map_or(end, |until| until.min(end));
        loop {
            self.uring.enter(Block::No);
            if self.uring.has_done() || clock() >= end {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// How long the coming enter may block.
    pub(super) fn block(&self, until: Option<Nanos>) -> Block {
        if !self.pending.is_empty() {
            return Block::No;
        }
        let Some(until) = [until, self.accept_retry_at()].into_iter().flatten().min() else {
            return Block::Forever;
        };
        if until <= self.now {
            return Block::No;
        }
        match until.since(clock()) {
            0 => Block::No,
            left => Block::For(Duration::from_nanos(left)),
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

pub(super) fn log_id(slot: u32) -> ConnId {
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
