//! The measuring stick: a broadcaster with nothing but what the kernel needs. A broadcast
//! costs one submission and one completion per member and write; there is no log, no limit,
//! no timer and no bookkeeping beside a cursor. `benches/floor.rs` serves the load generator
//! with it, so that the engine can be compared with what one core can do at all.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed};
use io_uring::{cqueue, opcode};

use super::buffers::{GROUP, RecvBuffers};
use super::mirror::Mirror;
use super::token::{GENERATION_MASK, Op, pack, unpack};
use super::uring::{Block, Cqe, Uring};
use super::waker::Waker;

// As the driver's.
const SQ_ENTRIES: u32 = 256;
const CQ_ENTRIES: u32 = 8192;
/// What members have not got yet must fit.
const SHARED_BYTES: usize = 64 << 20;

/// What [`BareRing::wait`] reports.
#[derive(Debug)]
pub enum BareEvent<'a> {
    /// A connection was accepted and receives.
    Accepted {
        /// Its slot.
        slot: u32,
    },
    /// Bytes came.
    Received {
        /// From whom.
        slot: u32,
        /// The bytes, valid during the call.
        bytes: &'a [u8],
    },
    /// The connection is gone and its slot free.
    Closed {
        /// Which.
        slot: u32,
    },
}

#[derive(Default)]
struct Member {
    generation: u32,
    joined: bool,
    closing: bool,
    recv_armed: bool,
    /// A write is in flight.
    writing: bool,
    /// It is of `control`, not of the shared bytes.
    writing_control: bool,
    /// The shared bytes up to here are with the peer.
    cursor: u64,
    /// End of the write that was started, always between two frames.
    target: u64,
    /// Bytes for this member alone; while they are written, others wait in `control_next`.
    control: Vec<u8>,
    control_sent: usize,
    control_next: Vec<u8>,
}

/// One core's sockets and the bytes they share.
pub struct BareRing {
    // Dropped first: afterwards the kernel touches nothing of the rest.
    uring: Uring,
    buffers: RecvBuffers,
    shared: Mirror,
    /// End of the shared bytes.
    head: u64,
    /// The shared bytes may grow to here without a look at the cursors.
    room_until: u64,
    members: Vec<Member>,
    /// Joined members in the order in which they are served.
    joined: Vec<u32>,
    next: usize,
    /// Members still to be looked at in this pass.
    pass_left: usize,
    /// Members whose write ended when there was more for them.
    late: VecDeque<u32>,
    listener: TcpListener,
    waker: Waker,
    wake_count: Box<u64>,
    /// Writes started.
    pub writes: u64,
}

impl BareRing {
    /// A ring that accepts from `listener` into `slots` direct descriptors.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(
        listener: TcpListener,
        slots: u32,
        recv_buffers: u16,
        recv_buffer_bytes: u32,
    ) -> io::Result<Self> {
        let uring = Uring::new(SQ_ENTRIES, CQ_ENTRIES)?;
        uring.submitter().register_files_sparse(slots)?;
        let buffers = RecvBuffers::register(&uring, recv_buffers, recv_buffer_bytes)?;
        listener.set_nonblocking(false)?;
        let shared = Mirror::new(SHARED_BYTES)?;
        let mut ring = Self {
            uring,
            buffers,
            room_until: shared.capacity() as u64,
            shared,
            head: 0,
            members: (0..slots).map(|_| Member::default()).collect(),
            joined: Vec::new(),
            next: 0,
            pass_left: 0,
            late: VecDeque::new(),
            listener,
            waker: Waker::new()?,
            wake_count: Box::new(0),
            writes: 0,
        };
        ring.arm_accept();
        ring.arm_wake();
        Ok(ring)
    }

    /// Makes a wait return.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The member gets all that is broadcast from now on, but for the first `skip` bytes,
    /// which must be whole frames of the next [`BareRing::broadcast`].
    pub fn join(&mut self, slot: u32, skip: usize) {
        let member = &mut self.members[slot as usize];
        if !member.joined && !member.closing {
            member.joined = true;
            member.cursor = self.head + skip as u64;
            member.target = member.cursor;
            self.joined.push(slot);
        }
    }

    /// Appends whole frames to what every member gets. False if the slowest member is too
    /// far behind.
    pub fn broadcast(&mut self, frames: &[u8]) -> bool {
        let end = self.head + frames.len() as u64;
        if end > self.room_until {
            let members = self.joined.iter().map(|&slot| self.members[slot as usize].cursor);
            let oldest = members.min().unwrap_or(self.head);
            self.room_until = oldest + self.shared.capacity() as u64;
            if end > self.room_until {
                return false;
            }
        }
        // SAFETY: the range is inside the double mapping, and no member's cursor, so no write
        // in flight, is at or behind what it overwrites; the write of a member that is being
        // closed is read by the kernel inside of calls of this thread only, if at all.
        unsafe {
            let to = self.shared.at(self.head);
            std::ptr::copy_nonoverlapping(frames.as_ptr(), to, frames.len());
        }
        self.head = end;
        self.pass_left = self.joined.len();
        true
    }

    /// Appends whole frames for one member; they go out at once if nothing is in flight.
    pub fn reply(&mut self, slot: u32, frames: &[u8]) {
        let member = &mut self.members[slot as usize];
        if !member.closing {
            member.control_next.extend_from_slice(frames);
            if !member.writing {
                self.start_write(slot);
            }
        }
    }

    /// Whether members wait for a write.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.pass_left > 0 || !self.late.is_empty()
    }

    /// Starts up to `count` writes, each of all that the member has not got yet.
    pub fn write(&mut self, count: usize) {
        let until = self.writes + count as u64;
        while self.writes < until {
            if self.pass_left > 0 {
                self.pass_left -= 1;
                if self.next >= self.joined.len() {
                    self.next = 0;
                }
                let Some(&slot) = self.joined.get(self.next) else { break };
                self.next += 1;
                let member = &self.members[slot as usize];
                if !member.writing && member.cursor < self.head {
                    self.start_write(slot);
                }
            } else if let Some(slot) = self.late.pop_front() {
                if !self.members[slot as usize].writing {
                    self.start_write(slot);
                }
            } else {
                break;
            }
        }
    }

    /// Submits what is queued and reports what finished; blocks if asked to.
    pub fn wait(&mut self, block: bool, on: &mut dyn FnMut(BareEvent<'_>)) {
        self.uring.enter(if block { Block::Forever } else { Block::No });
        let done = self.uring.take_done();
        for cqe in &done {
            self.complete(cqe, on);
        }
        self.uring.put_back(done);
        self.buffers.publish();
    }

    #[inline]
    fn complete(&mut self, cqe: &Cqe, on: &mut dyn FnMut(BareEvent<'_>)) {
        let (op, slot, generation) = unpack(cqe.user_data);
        match op {
            Op::Accept => {
                if let Ok(slot) = u32::try_from(cqe.result) {
                    on(BareEvent::Accepted { slot });
                    self.arm_recv(slot);
                }
                if !cqueue::more(cqe.flags) {
                    self.arm_accept();
                }
                return;
            }
            Op::Wake => return self.arm_wake(),
            _ => {}
        }
        let Some(member) = self.members.get(slot as usize) else { return };
        if member.generation & GENERATION_MASK != generation {
            return;
        }
        match op {
            Op::Send => self.written(slot, cqe.result),
            Op::Recv => self.received(slot, cqe, on),
            Op::Close => {
                let generation = member.generation.wrapping_add(1);
                self.members[slot as usize] = Member { generation, ..Member::default() };
                on(BareEvent::Closed { slot });
            }
            _ => {}
        }
    }

    #[inline]
    fn start_write(&mut self, slot: u32) {
        let member = &mut self.members[slot as usize];
        if member.closing {
            return;
        }
        // A frame that was begun is finished before anything else.
        let between_frames = member.cursor == member.target;
        if member.control_sent == member.control.len() {
            member.control.clear();
            member.control_sent = 0;
            std::mem::swap(&mut member.control, &mut member.control_next);
        }
        let (start, len) = if between_frames && !member.control.is_empty() {
            member.writing_control = true;
            let left = &member.control[member.control_sent..];
            (left.as_ptr(), left.len())
        } else {
            if between_frames && member.joined {
                member.target = self.head;
            }
            member.writing_control = false;
            let len = (member.target - member.cursor) as usize;
            (self.shared.at(member.cursor).cast_const(), len)
        };
        if len == 0 {
            return;
        }
        member.writing = true;
        self.writes += 1;
        let entry = opcode::Send::new(Fixed(slot), start, len as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(pack(Op::Send, slot, member.generation));
        // SAFETY: shared bytes from the cursor on are not overwritten (see `broadcast`), and
        // `control` is not touched while a write of it is in flight: `reply` appends to
        // `control_next`, and a slot is emptied only after its last completion.
        unsafe { self.uring.push(&entry) };
    }

    #[inline]
    fn written(&mut self, slot: u32, result: i32) {
        let member = &mut self.members[slot as usize];
        member.writing = false;
        if member.closing {
            return self.close_when_quiet(slot);
        }
        if result <= 0 {
            return self.start_close(slot);
        }
        if member.writing_control {
            member.control_sent += result as usize;
        } else {
            member.cursor += result as u64;
        }
        let begun = member.cursor < member.target || member.control_sent < member.control.len();
        if begun || !member.control_next.is_empty() {
            self.start_write(slot);
        } else if member.joined && member.cursor < self.head {
            self.late.push_back(slot);
        }
    }

    fn received(&mut self, slot: u32, cqe: &Cqe, on: &mut dyn FnMut(BareEvent<'_>)) {
        let closing = self.members[slot as usize].closing;
        if let Some(id) = cqueue::buffer_select(cqe.flags) {
            if cqe.result > 0 && !closing {
                let bytes = self.buffers.bytes(id, cqe.result as u32);
                on(BareEvent::Received { slot, bytes });
            }
            self.buffers.put(id);
        }
        if cqueue::more(cqe.flags) {
            return;
        }
        self.members[slot as usize].recv_armed = false;
        if closing {
            self.close_when_quiet(slot);
        } else if cqe.result > 0 || cqe.result == -libc::ENOBUFS {
            self.arm_recv(slot);
        } else {
            self.start_close(slot);
        }
    }

    fn start_close(&mut self, slot: u32) {
        let member = &mut self.members[slot as usize];
        member.closing = true;
        let generation = member.generation;
        for (busy, op) in [(member.recv_armed, Op::Recv), (member.writing, Op::Send)] {
            if busy {
                let entry = opcode::AsyncCancel::new(pack(op, slot, generation)).build();
                // SAFETY: the entry points to no memory.
                unsafe { self.uring.push(&entry) };
            }
        }
        if std::mem::take(&mut self.members[slot as usize].joined) {
            self.joined.retain(|&other| other != slot);
            self.pass_left = self.joined.len();
        }
        self.late.retain(|&other| other != slot);
        self.close_when_quiet(slot);
    }

    fn close_when_quiet(&mut self, slot: u32) {
        let member = &self.members[slot as usize];
        if !member.recv_armed && !member.writing {
            let entry = opcode::Close::new(Fixed(slot)).build();
            let entry = entry.user_data(pack(Op::Close, slot, member.generation));
            // SAFETY: the entry points to no memory.
            unsafe { self.uring.push(&entry) };
        }
    }

    fn arm_recv(&mut self, slot: u32) {
        let member = &mut self.members[slot as usize];
        member.recv_armed = true;
        let entry = opcode::RecvMulti::new(Fixed(slot), GROUP).build();
        let entry = entry.user_data(pack(Op::Recv, slot, member.generation));
        // SAFETY: the entry points to no memory; the buffers are dropped after the ring.
        unsafe { self.uring.push(&entry) };
    }

    fn arm_accept(&mut self) {
        let listener = Fd(self.listener.as_raw_fd());
        let entry = opcode::AcceptMulti::new(listener).allocate_file_index(true).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.uring.push(&entry.user_data(pack(Op::Accept, 0, 0))) };
    }

    fn arm_wake(&mut self) {
        let count: *mut u64 = &raw mut *self.wake_count;
        let entry = opcode::Read::new(Fd(self.waker.fd()), count.cast(), 8).build();
        // SAFETY: the count is boxed and dropped after the ring; nobody reads it.
        unsafe { self.uring.push(&entry.user_data(pack(Op::Wake, 0, 0))) };
    }
}

impl Drop for BareRing {
    fn drop(&mut self) {
        self.uring.cancel_all();
    }
}
