//! The io_uring driver of a shard: the real implementer of [`crate::shard::Io`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;

use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::time::{ClockId, clock_gettime};

use super::cold::{ColdClient, Waker};
use super::driver_buffers::BufRing;
use super::driver_token::{Op, Token};
use super::writes::{Write, Writes};
use super::{DriverError, LogBuf, open_segment};
use crate::fanout::Part;
use crate::limits::DESCRIPTORS_SPARE;
use crate::position::{Nanos, SegmentNumber, ShardId};
use crate::shard::{ConnId, Event, Io, Job, RecvBuf, RecvEnd};

const SQ_ENTRIES: u32 = 1024;
const CQ_ENTRIES: u32 = 16 * 1024;
/// Open segment files of history that are kept for further reads.
const FILES_MAX: usize = 64;
const ENTER_GETEVENTS: u32 = 1;

/// What a driver needs to start.
#[derive(Debug)]
pub struct DriverConfig {
    /// Listening socket of the shard; accepted sockets inherit its options.
    pub listener: TcpListener,
    /// Connections the shard may hold.
    pub connections_max: u32,
    /// Provided receive buffers.
    pub recv_buffers: u16,
    /// Bytes of each.
    pub recv_buffer_bytes: u32,
    /// Folder of the shard's log.
    pub log_dir: PathBuf,
    /// The shard's line to the cold executor.
    pub cold: ColdClient,
}

/// What the driver counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriverCounters {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Completions.
    pub cqes: u64,
    /// Writes with one part.
    pub sends: u64,
    /// Writes with several parts.
    pub sendmsgs: u64,
    /// Writes that the socket took only in part.
    pub short_sends: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Receives that found no free buffer.
    pub recv_starved: u64,
    /// Times the completion queue overflowed; nothing is lost, the kernel keeps them.
    pub cq_overflows: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    open: bool,
    recv_armed: bool,
    pausing: bool,
    /// It waits for a free receive buffer.
    starved: bool,
    closing: bool,
    close_sent: bool,
    /// Index of the write in flight.
    write: Option<u32>,
}

#[derive(Debug)]
struct LogRead {
    token: u64,
    buf: LogBuf,
    _file: Rc<File>,
}

/// The driver. It must be made and used on one thread (IORING_SETUP_SINGLE_ISSUER).
pub struct Driver {
    // The ring is dropped first: that ends every request before the memory it points to goes.
    ring: IoUring,
    buffers: BufRing,
    listener: TcpListener,
    accepting: bool,
    accept_armed: bool,
    accept_wants_room: bool,
    slots: Vec<Slot>,
    writes: Writes,
    starved: Vec<u32>,
    own_events: Vec<Event>,
    log_dir: PathBuf,
    files: HashMap<SegmentNumber, Rc<File>>,
    log_write: Option<(LogBuf, Rc<File>)>,
    log_reads: slab::Slab<LogRead>,
    cold: ColdClient,
    wake_word: Box<u64>,
    peers: Vec<RawFd>,
    now: Nanos,
    counters: DriverCounters,
}

impl Driver {
    /// Sets the ring up. Nothing is accepted before the first [`Io::wait`].
    ///
    /// # Errors
    /// [`DriverError`]: says what the system refused and what to do.
    pub fn new(config: DriverConfig) -> Result<Self, DriverError> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(CQ_ENTRIES)
            .build(SQ_ENTRIES)
            .map_err(DriverError::Ring)?;
        let table = config.connections_max.saturating_add(DESCRIPTORS_SPARE as u32);
        ring.submitter()
            .register_files_sparse(table)
            .map_err(|source| DriverError::Table { table, source })?;
        let buffers = BufRing::register(&ring, config.recv_buffers, config.recv_buffer_bytes)
            .map_err(DriverError::Buffers)?;
        let mut driver = Self {
            ring,
            buffers,
            listener: config.listener,
            accepting: true,
            accept_armed: false,
            accept_wants_room: false,
            slots: Vec::new(),
            writes: Writes::default(),
            starved: Vec::new(),
            own_events: Vec::new(),
            log_dir: config.log_dir,
            files: HashMap::new(),
            log_write: None,
            log_reads: slab::Slab::new(),
            cold: config.cold,
            wake_word: Box::new(0),
            peers: Vec::new(),
            now: monotonic(),
            counters: DriverCounters::default(),
        };
        driver.watch_waker();
        Ok(driver)
    }

    /// File descriptor of the ring, for the peers' wake-ups.
    #[must_use]
    pub fn ring_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Ring descriptors of all shards, in their order.
    pub fn set_peers(&mut self, peers: Vec<RawFd>) {
        self.peers = peers;
    }

    /// Lets another thread wake this shard.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.cold.waker()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> DriverCounters {
        self.counters
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: whatever an entry points to (parts of a write, log buffers, the wake word)
        // is owned by this driver until the entry's last completion, and the ring is dropped
        // before them.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.counters.enters += 1;
            // A full queue is emptied by submitting; errors show up in the next wait.
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn watch_waker(&mut self) {
        let word: *mut u64 = &mut *self.wake_word;
        let fd = Fd(self.cold.waker_fd());
        let entry = opcode::Read::new(fd, word.cast(), 8).build();
        self.push(&entry.user_data(Token::new(Op::Wake, 0, 0).pack()));
    }

    fn arm_accept(&mut self) {
        self.accept_armed = true;
        let fd = Fd(self.listener.as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).allocate_file_index(true).build();
        self.push(&entry.user_data(Token::new(Op::Accept, 0, 0).pack()));
    }

    fn arm_recv(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        state.recv_armed = true;
        let token = Token::new(Op::Recv, state.generation, slot);
        let entry = opcode::RecvMulti::new(Fixed(slot), BufRing::GROUP).build();
        self.push(&entry.user_data(token.pack()));
    }

    fn slot(&mut self, conn: ConnId) -> Option<&mut Slot> {
        let state = self.slots.get_mut(conn.slot as usize)?;
        (state.open && state.generation == conn.generation).then_some(state)
    }

    /// One enter, unless there is nothing to submit, to run or to wait for.
    fn enter(&mut self, until: Option<Nanos>) {
        let queued = {
            let submission = self.ring.submission();
            let work = submission.taskrun() || submission.cq_overflow();
            self.counters.cq_overflows += u64::from(submission.cq_overflow());
            (submission.len() as u32, work)
        };
        let (to_submit, has_work) = queued;
        let ready = !self.ring.completion().is_empty() || !self.own_events.is_empty();
        let wait_ns = match until {
            _ if ready => Some(0),
            Some(until) => Some(until.since(monotonic())),
            None => None,
        };
        if wait_ns == Some(0) && to_submit == 0 && !has_work {
            return;
        }
        self.counters.enters += 1;
        let submitter = self.ring.submitter();
        let _ = match wait_ns {
            None => submitter.submit_and_wait(1),
            Some(0) => {
                // SAFETY: no argument is passed, and the flag is the one that runs deferred
                // task work.
                unsafe { submitter.enter::<()>(to_submit, 0, ENTER_GETEVENTS, None) }
            }
            Some(ns) => {
                let time =
                    Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
    }

    fn complete(&mut self, entry: &cqueue::Entry, events: &mut Vec<Event>) {
        let token = Token::unpack(entry.user_data());
        let (result, slot) = (entry.result(), token.slot);
        match token.op {
            Op::Accept => self.accepted(entry, events),
            Op::Recv => self.received(token, entry, events),
            Op::Send => self.sent(token, result, events),
            Op::Close => self.closed(token, events),
            Op::Wake => self.watch_waker(),
            Op::LogWrite => {
                if let Some((buf, _)) = self.log_write.take() {
                    let result = match usize::try_from(result) {
                        Ok(written) if written == buf.len() => Ok(()),
                        Ok(_) => Err(libc::EIO),
                        Err(_) => Err(-result),
                    };
                    events.push(Event::LogWritten { result, buf });
                }
            }
            Op::LogRead => {
                if let Some(mut read) = self.log_reads.try_remove(slot as usize) {
                    let result = match usize::try_from(result) {
                        Ok(len) => {
                            read.buf.set_len(len.min(read.buf.capacity()));
                            Ok(read.buf)
                        }
                        Err(_) => Err(-result),
                    };
                    events.push(Event::LogRead { token: read.token, result });
                }
            }
            Op::Ignored => {}
        }
    }

    fn accepted(&mut self, entry: &cqueue::Entry, events: &mut Vec<Event>) {
        if !cqueue::more(entry.flags()) {
            self.accept_armed = false;
        }
        let Ok(slot) = u32::try_from(entry.result()) else {
            // A full table ends the accept; it goes on when a connection has closed.
            self.accept_wants_room = matches!(-entry.result(), libc::ENFILE | libc::EMFILE);
            return;
        };
        self.counters.accepts += 1;
        let at = slot as usize;
        if self.slots.len() <= at {
            self.slots.resize(at + 1, Slot::default());
        }
        let generation = self.slots[at].generation;
        self.slots[at] = Slot { generation, open: true, ..Slot::default() };
        events.push(Event::Accepted { conn: ConnId { slot, generation } });
        self.arm_recv(slot);
    }

    fn received(&mut self, token: Token, entry: &cqueue::Entry, events: &mut Vec<Event>) {
        let (result, slot) = (entry.result(), token.slot);
        let buf = cqueue::buffer_select(entry.flags());
        let conn = ConnId { slot, generation: token.generation };
        let Some(state) = self.slot(conn) else {
            if let Some(id) = buf {
                self.buffers.give_back(id);
            }
            return;
        };
        let armed = cqueue::more(entry.flags());
        state.recv_armed = armed;
        let closing = state.closing;
        match (result, buf) {
            (1.., Some(id)) if closing => self.buffers.give_back(id),
            (1.., Some(id)) => {
                events.push(Event::Received { conn, buf: RecvBuf { id, len: result as u32 } });
                if !armed {
                    self.recv_stopped(conn, events);
                }
            }
            (_, Some(id)) => self.buffers.give_back(id),
            _ => {}
        }
        if result <= 0 && !closing {
            match -result {
                0 => events.push(Event::RecvEnded { conn, why: RecvEnd::Eof }),
                libc::ENOBUFS => {
                    self.counters.recv_starved += 1;
                    self.recv_stopped(conn, events);
                }
                libc::ECANCELED => self.recv_stopped(conn, events),
                errno => events.push(Event::RecvEnded { conn, why: RecvEnd::Failed(errno) }),
            }
        }
        if closing && !armed {
            self.close_when_quiet(slot);
        }
    }

    /// A multishot receive ended though the connection did not: paused, or to be armed again.
    fn recv_stopped(&mut self, conn: ConnId, events: &mut Vec<Event>) {
        let Some(state) = self.slot(conn) else { return };
        if std::mem::take(&mut state.pausing) {
            events.push(Event::RecvEnded { conn, why: RecvEnd::Paused });
        } else if !state.starved {
            state.starved = true;
            self.starved.push(conn.slot);
        }
    }

    fn sent(&mut self, token: Token, result: i32, events: &mut Vec<Event>) {
        let conn = ConnId { slot: token.slot, generation: token.generation };
        let Some(state) = self.slot(conn) else { return };
        let Some(index) = state.write else { return };
        let closing = state.closing;
        let outcome = match u32::try_from(result) {
            Ok(0) => Err(libc::EPIPE),
            Ok(taken) => {
                if self.writes.advance(index, taken as usize) {
                    Ok(())
                } else if closing {
                    Err(libc::ECANCELED)
                } else {
                    self.counters.short_sends += 1;
                    events.push(Event::SendProgress { conn });
                    return self.submit_write(conn, index);
                }
            }
            Err(_) if -result == libc::EINTR || -result == libc::EAGAIN => {
                return self.submit_write(conn, index);
            }
            Err(_) => Err(-result),
        };
        self.writes.finish(index);
        self.slots[token.slot as usize].write = None;
        events.push(Event::Sent { conn, result: outcome });
        if closing {
            self.close_when_quiet(token.slot);
        }
    }

    fn submit_write(&mut self, conn: ConnId, index: u32) {
        let token = Token::new(Op::Send, conn.generation, conn.slot).pack();
        let entry = match self.writes.next(index) {
            Write::One { ptr, len } => {
                self.counters.sends += 1;
                opcode::Send::new(Fixed(conn.slot), ptr, len).flags(libc::MSG_NOSIGNAL).build()
            }
            Write::Many { msg } => {
                self.counters.sendmsgs += 1;
                let flags = libc::MSG_NOSIGNAL as u32;
                opcode::SendMsg::new(Fixed(conn.slot), msg).flags(flags).build()
            }
        };
        self.push(&entry.user_data(token));
    }

    fn closed(&mut self, token: Token, events: &mut Vec<Event>) {
        let at = token.slot as usize;
        let generation = self.slots[at].generation;
        events.push(Event::Closed { conn: ConnId { slot: token.slot, generation } });
        self.slots[at] = Slot { generation: Token::next_generation(generation), ..Slot::default() };
        self.accept_wants_room = false;
    }

    /// Closes the descriptor once nothing of the connection is in flight.
    fn close_when_quiet(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        if state.closing && !state.recv_armed && state.write.is_none() && !state.close_sent {
            state.close_sent = true;
            let token = Token::new(Op::Close, state.generation, slot);
            let entry = opcode::Close::new(Fixed(slot)).build();
            self.push(&entry.user_data(token.pack()));
        }
    }

    fn file(&mut self, number: SegmentNumber) -> io::Result<Rc<File>> {
        if let Some(file) = self.files.get(&number) {
            return Ok(file.clone());
        }
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        let file = Rc::new(open_segment(&self.log_dir, number)?);
        self.files.insert(number, file.clone());
        Ok(file)
    }
}

impl Io for Driver {
    fn now(&self) -> Nanos {
        self.now
    }

    fn wall_ms(&self) -> u64 {
        let time = clock_gettime(ClockId::Realtime);
        time.tv_sec.max(0) as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
    }

    fn random(&mut self) -> u64 {
        let mut word = [0; 8];
        // SAFETY: the pointer and length are those of `word`; getrandom writes nothing else.
        let got = unsafe { libc::getrandom(word.as_mut_ptr().cast(), word.len(), 0) };
        if got == 8 {
            u64::from_ne_bytes(word)
        } else {
            self.now.0 ^ (u64::from(std::process::id()) << 32)
        }
    }

    fn wait(&mut self, until: Option<Nanos>, events: &mut Vec<Event>) {
        if self.accepting && !self.accept_armed && !self.accept_wants_room {
            self.arm_accept();
        }
        for slot in std::mem::take(&mut self.starved) {
            let state = &mut self.slots[slot as usize];
            if std::mem::take(&mut state.starved) && state.open && !state.closing {
                self.arm_recv(slot);
            }
        }
        self.enter(until);
        self.now = monotonic();
        events.append(&mut self.own_events);
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { break };
            self.counters.cqes += 1;
            self.complete(&entry, events);
        }
        while let Some((job, result)) = self.cold.done() {
            events.push(Event::JobDone { job, result });
        }
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.buffers.bytes(buf.id, buf.len)
    }

    fn release(&mut self, buf: RecvBuf) {
        self.buffers.give_back(buf.id);
    }

    fn pause_recv(&mut self, conn: ConnId) {
        let Some(state) = self.slot(conn) else { return };
        if state.closing || state.pausing {
            return;
        }
        if state.recv_armed {
            state.pausing = true;
            let recv = Token::new(Op::Recv, conn.generation, conn.slot).pack();
            let entry = opcode::AsyncCancel::new(recv).build();
            self.push(&entry.user_data(Token::new(Op::Ignored, 0, 0).pack()));
        } else {
            state.starved = false;
            self.own_events.push(Event::RecvEnded { conn, why: RecvEnd::Paused });
        }
    }

    fn resume_recv(&mut self, conn: ConnId) {
        let Some(state) = self.slot(conn) else { return };
        if !state.closing && !state.recv_armed {
            self.arm_recv(conn.slot);
        }
    }

    fn send(&mut self, conn: ConnId, parts: &mut Vec<Part>) {
        let Some(state) = self.slots.get_mut(conn.slot as usize) else { return parts.clear() };
        if !state.open || state.generation != conn.generation || state.closing {
            return parts.clear();
        }
        debug_assert!(state.write.is_none());
        let index = self.writes.start(parts);
        state.write = Some(index);
        self.submit_write(conn, index);
    }

    fn control_buf(&mut self) -> Vec<u8> {
        self.writes.control_buf()
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        if self.slot(conn).is_some_and(|state| !state.closing) {
            let entry = opcode::Shutdown::new(Fixed(conn.slot), libc::SHUT_WR).build();
            self.push(&entry.user_data(Token::new(Op::Ignored, 0, 0).pack()));
        }
    }

    fn close(&mut self, conn: ConnId) {
        let Some(state) = self.slot(conn) else { return };
        if std::mem::replace(&mut state.closing, true) {
            return;
        }
        if state.recv_armed || state.write.is_some() {
            let which = CancelBuilder::fd(Fixed(conn.slot)).all();
            let entry = opcode::AsyncCancel2::new(which).build();
            self.push(&entry.user_data(Token::new(Op::Ignored, 0, 0).pack()));
        }
        self.close_when_quiet(conn.slot);
    }

    fn stop_accepting(&mut self) {
        self.accepting = false;
        if self.accept_armed {
            let accept = Token::new(Op::Accept, 0, 0).pack();
            let entry = opcode::AsyncCancel::new(accept).build();
            self.push(&entry.user_data(Token::new(Op::Ignored, 0, 0).pack()));
        }
    }

    fn write_log(&mut self, segment: SegmentNumber, offset: u64, buf: LogBuf) {
        debug_assert!(self.log_write.is_none());
        let file = match self.file(segment) {
            Ok(file) => file,
            Err(error) => {
                let result = Err(error.raw_os_error().unwrap_or(libc::EIO));
                return self.own_events.push(Event::LogWritten { result, buf });
            }
        };
        let bytes = buf.as_slice();
        let entry = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        self.log_write = Some((buf, file));
        self.push(&entry.user_data(Token::new(Op::LogWrite, 0, 0).pack()));
    }

    fn read_log(&mut self, token: u64, segment: SegmentNumber, offset: u64, len: usize) {
        let file = match self.file(segment) {
            Ok(file) => file,
            Err(error) => {
                let result = Err(error.raw_os_error().unwrap_or(libc::EIO));
                return self.own_events.push(Event::LogRead { token, result });
            }
        };
        let fd = Fd(file.as_raw_fd());
        let mut buf = LogBuf::with_capacity(len);
        buf.set_len(len);
        let ptr = buf.as_mut_slice().as_mut_ptr();
        let index = self.log_reads.insert(LogRead { token, buf, _file: file });
        let entry = opcode::Read::new(fd, ptr, len as u32).offset(offset).build();
        self.push(&entry.user_data(Token::new(Op::LogRead, 0, index as u32).pack()));
    }

    fn start_job(&mut self, job: Job) {
        if let Job::RemoveSegments { numbers } = &job {
            for number in numbers {
                self.files.remove(number);
            }
        }
        if let Err(job) = self.cold.start(job) {
            self.own_events.push(Event::JobDone { job, result: Err(libc::EIO) });
        }
    }

    fn wake(&mut self, shard: ShardId) {
        let Some(&fd) = self.peers.get(usize::from(shard.0)) else { return };
        let data = Token::new(Op::Ignored, 0, 0).pack();
        let entry = opcode::MsgRingData::new(Fd(fd), 0, data, None).build();
        self.push(&entry.user_data(data));
    }
}

fn monotonic() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    Nanos(time.tv_sec.max(0) as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
