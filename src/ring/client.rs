//! The ring of the load generator: many client sockets on one thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use bytes::{Buf, Bytes};
use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};

use super::buffers::{GROUP, RecvBuffers};
use super::token::{GENERATION_MASK, Op, pack, unpack};
use super::uring::{Block, Cqe, Uring};

const SQ_ENTRIES: u32 = 512;
const CQ_ENTRIES: u32 = 8192;

/// What [`ClientRing::wait`] reports.
#[derive(Debug)]
pub enum ClientEvent<'a> {
    /// Bytes came.
    Received {
        /// From which socket.
        slot: u32,
        /// The bytes, valid during the call.
        bytes: &'a [u8],
    },
    /// One [`ClientRing::send`] was taken by the kernel as a whole.
    Sent {
        /// On which socket.
        slot: u32,
    },
    /// The socket is gone, by the peer, by an error or by [`ClientRing::close`]. Last event of
    /// this slot, comes once; the slot may then be given to another socket.
    Closed {
        /// Which socket.
        slot: u32,
        /// The errno, if it failed.
        error: Option<i32>,
    },
}

/// How a socket receives.
#[derive(Clone, Copy, Default)]
enum Recv {
    /// Whatever comes, until it is closed.
    #[default]
    Always,
    /// One piece of at most so many bytes each time that [`ClientRing::recv_once`] says so.
    Once(u32),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    open: bool,
    closing: bool,
    recv: Recv,
    /// A receive is with the kernel.
    recv_armed: bool,
    /// The front of `queue` is with the kernel.
    sending: bool,
    error: Option<i32>,
    queue: VecDeque<Bytes>,
    queued: usize,
}

/// Sockets of one thread, driven by one io_uring. Sockets live in the ring's own table, so
/// their number is not bound by open files but by the size of that table.
pub struct ClientRing {
    // Dropped first: afterwards the kernel touches neither buffers nor queues.
    uring: Uring,
    buffers: RecvBuffers,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl ClientRing {
    /// A ring for up to `slots` sockets (bounded by RLIMIT_NOFILE) with `recv_buffers` (a
    /// power of two) buffers shared by all of them.
    ///
    /// # Errors
    /// What the kernel says: `EMFILE` if `slots` is above RLIMIT_NOFILE, `EINVAL` or `ENOSYS`
    /// if it is older than Linux 6.1, `EPERM` if io_uring is switched off.
    pub fn new(slots: u32, recv_buffers: u16, recv_buffer_bytes: u32) -> io::Result<Self> {
        let uring = Uring::new(SQ_ENTRIES, CQ_ENTRIES)?;
        uring.submitter().register_files_sparse(slots)?;
        let buffers = RecvBuffers::register(&uring, recv_buffers, recv_buffer_bytes)?;
        Ok(Self {
            uring,
            buffers,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            free: (0..slots).rev().collect(),
        })
    }

    /// Takes a connected socket over and starts to receive; returns its slot.
    ///
    /// # Errors
    /// `ENFILE` if all slots are taken, else what the kernel says.
    pub fn attach(&mut self, socket: OwnedFd) -> io::Result<u32> {
        let slot = self.install(socket)?;
        self.arm_recv(slot);
        Ok(slot)
    }

    /// As [`ClientRing::attach`], but the socket receives nothing until
    /// [`ClientRing::recv_once`], and one piece then. As long as it does not receive, an end of
    /// the connection shows only when something is sent.
    ///
    /// # Errors
    /// As [`ClientRing::attach`].
    pub fn attach_silent(&mut self, socket: OwnedFd) -> io::Result<u32> {
        let slot = self.install(socket)?;
        self.slots[slot as usize].recv = Recv::Once(0);
        Ok(slot)
    }

    fn install(&mut self, socket: OwnedFd) -> io::Result<u32> {
        let Some(slot) = self.free.pop() else {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        let installed = self.uring.submitter().register_files_update(slot, &[socket.as_raw_fd()]);
        if let Err(e) = installed {
            self.free.push(slot);
            return Err(e);
        }
        self.slots[slot as usize].open = true;
        Ok(slot)
    }

    /// Queues `bytes`; they are sent whole, after what was queued before on this socket.
    /// Ignored if the socket is closing or `bytes` is empty.
    pub fn send(&mut self, slot: u32, bytes: Bytes) {
        let s = &mut self.slots[slot as usize];
        if !s.open || s.closing || bytes.is_empty() {
            return;
        }
        s.queued += bytes.len();
        s.queue.push_back(bytes);
        if !s.sending {
            self.start_send(slot);
        }
    }

    /// Bytes given to [`ClientRing::send`] that the kernel has not taken yet.
    #[must_use]
    pub fn queued(&self, slot: u32) -> usize {
        self.slots[slot as usize].queued
    }

    /// Receives one piece of at most `bytes` (1 or more), and of at most a receive buffer, on a
    /// socket of [`ClientRing::attach_silent`]. Ignored while the last one has not come yet, and
    /// on other sockets.
    pub fn recv_once(&mut self, slot: u32, bytes: u32) {
        let s = &mut self.slots[slot as usize];
        if s.open && !s.closing && !s.recv_armed && matches!(s.recv, Recv::Once(_)) {
            s.recv = Recv::Once(bytes);
            self.arm_recv(slot);
        }
    }

    /// Closes the socket; [`ClientEvent::Closed`] follows.
    pub fn close(&mut self, slot: u32) {
        self.start_close(slot, None);
    }

    /// Submits what is queued and reports what finished; blocks until something did, at most
    /// for `timeout` (`None`: without bound, zero: not at all). Receive buffers go back to
    /// the kernel after each call of `on`.
    ///
    /// # Errors
    /// None today; a kernel that refuses to go on ends the process.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        on: &mut dyn FnMut(ClientEvent<'_>),
    ) -> io::Result<()> {
        self.uring.enter(match timeout {
            None => Block::Forever,
            Some(Duration::ZERO) => Block::No,
            Some(time) => Block::For(time),
        });
        let done = self.uring.take_done();
        for cqe in &done {
            let (op, slot, generation) = unpack(cqe.user_data);
            let Some(s) = self.slots.get(slot as usize) else { continue };
            if s.generation & GENERATION_MASK != generation {
                continue;
            }
            match op {
                Op::Recv => self.received(slot, cqe, on),
                Op::Send => self.sent(slot, cqe.result, on),
                Op::Close => self.closed(slot, on),
                Op::CancelRecv => self.recv_cancelled(slot, cqe.result),
                Op::CancelSend => self.send_cancelled(slot, cqe.result),
                _ => {}
            }
        }
        self.uring.put_back(done);
        self.buffers.publish();
        Ok(())
    }

    fn received(&mut self, slot: u32, cqe: &Cqe, on: &mut dyn FnMut(ClientEvent<'_>)) {
        let s = &mut self.slots[slot as usize];
        let ended = !cqueue::more(cqe.flags);
        if ended {
            s.recv_armed = false;
        }
        let (closing, once) = (s.closing, matches!(s.recv, Recv::Once(_)));
        if let Some(id) = cqueue::buffer_select(cqe.flags) {
            if cqe.result > 0 && !closing {
                let bytes = self.buffers.bytes(id, cqe.result as u32);
                on(ClientEvent::Received { slot, bytes });
            }
            self.buffers.put(id);
        }
        if !ended {
            return;
        }
        match -cqe.result {
            _ if closing => self.close_when_quiet(slot),
            0 => self.start_close(slot, None),
            i32::MIN..0 if once => {}
            // The buffers handled in this round go back before the next submission.
            libc::ENOBUFS | libc::ECANCELED | libc::EINTR | i32::MIN..0 => self.arm_recv(slot),
            errno => self.start_close(slot, Some(errno)),
        }
    }

    fn sent(&mut self, slot: u32, result: i32, on: &mut dyn FnMut(ClientEvent<'_>)) {
        let s = &mut self.slots[slot as usize];
        s.sending = false;
        if result >= 0 {
            let count = result as usize;
            s.queued -= count;
            if let Some(front) = s.queue.front_mut() {
                front.advance(count);
                if front.is_empty() {
                    s.queue.pop_front();
                    on(ClientEvent::Sent { slot });
                }
            }
        }
        if s.closing {
            self.close_when_quiet(slot);
        } else if result < 0 && result != -libc::EINTR {
            self.start_close(slot, Some(-result));
        } else if !s.queue.is_empty() {
            self.start_send(slot);
        }
    }

    fn closed(&mut self, slot: u32, on: &mut dyn FnMut(ClientEvent<'_>)) {
        let s = &mut self.slots[slot as usize];
        let error = s.error;
        // The queue goes too: a slot that is free holds no memory.
        *s = Slot { generation: s.generation.wrapping_add(1), ..Slot::default() };
        self.free.push(slot);
        on(ClientEvent::Closed { slot, error });
    }

    /// A cancel may miss a receive that is just being run; then it is asked for again.
    fn recv_cancelled(&mut self, slot: u32, result: i32) {
        let s = &self.slots[slot as usize];
        if result < 0 && s.recv_armed && s.closing {
            self.cancel_recv(slot);
        }
    }

    /// As for a receive.
    fn send_cancelled(&mut self, slot: u32, result: i32) {
        if result < 0 && self.slots[slot as usize].sending {
            self.cancel_send(slot);
        }
    }

    fn arm_recv(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        s.recv_armed = true;
        let entry = match s.recv {
            Recv::Always => opcode::RecvMulti::new(Fixed(slot), GROUP).build(),
            Recv::Once(bytes) => opcode::Recv::new(Fixed(slot), std::ptr::null_mut(), bytes)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
        }
        .user_data(pack(Op::Recv, slot, s.generation));
        // SAFETY: the entry points to no memory, the kernel picks a buffer; the buffer ring outlives
        // the uring.
        unsafe { self.uring.push(&entry) };
    }

    fn cancel_recv(&mut self, slot: u32) {
        let s = &self.slots[slot as usize];
        if s.recv_armed {
            let entry = opcode::AsyncCancel::new(pack(Op::Recv, slot, s.generation))
                .build()
                .user_data(pack(Op::CancelRecv, slot, s.generation));
            // SAFETY: the entry points to no memory.
            unsafe { self.uring.push(&entry) };
        }
    }

    fn cancel_send(&mut self, slot: u32) {
        let s = &self.slots[slot as usize];
        if s.sending {
            let entry = opcode::AsyncCancel::new(pack(Op::Send, slot, s.generation))
                .build()
                .user_data(pack(Op::CancelSend, slot, s.generation));
            // SAFETY: the entry points to no memory.
            unsafe { self.uring.push(&entry) };
        }
    }

    fn start_send(&mut self, slot: u32) {
        let s = &mut self.slots[slot as usize];
        let Some(front) = s.queue.front() else { return };
        s.sending = true;
        let entry = opcode::Send::new(Fixed(slot), front.as_ptr(), front.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(pack(Op::Send, slot, s.generation));
        // SAFETY: the Bytes stays in the queue, and its memory where it is, until `sent`: a
        // slot is emptied by `closed` only, and that waits for `sending` to end.
        unsafe { self.uring.push(&entry) };
    }

    fn start_close(&mut self, slot: u32, error: Option<i32>) {
        let s = &mut self.slots[slot as usize];
        if !s.open || s.closing {
            return;
        }
        s.closing = true;
        s.error = error;
        self.cancel_recv(slot);
        self.cancel_send(slot);
        self.close_when_quiet(slot);
    }

    fn close_when_quiet(&mut self, slot: u32) {
        let s = &self.slots[slot as usize];
        if s.recv_armed || s.sending {
            return;
        }
        let entry =
            opcode::Close::new(Fixed(slot)).build().user_data(pack(Op::Close, slot, s.generation));
        // SAFETY: the entry points to no memory.
        unsafe { self.uring.push(&entry) };
    }
}

impl Drop for ClientRing {
    fn drop(&mut self) {
        // A socket write copies its bytes before it completes or waits without touching
        // them, on this thread, so cancelling is all there is to do before memory goes.
        self.uring.cancel_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client.into())
    }

    #[derive(Default)]
    struct Seen {
        bytes: Vec<u8>,
        sent: usize,
        closed: Vec<(u32, Option<i32>)>,
    }

    fn turn(ring: &mut ClientRing, seen: &mut Seen) {
        ring.wait(Some(Duration::from_millis(50)), &mut |event| match event {
            ClientEvent::Received { bytes, .. } => seen.bytes.extend_from_slice(bytes),
            ClientEvent::Sent { .. } => seen.sent += 1,
            ClientEvent::Closed { slot, error } => seen.closed.push((slot, error)),
        })
        .unwrap();
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn bytes_arrive_in_order_both_ways() {
        let mut ring = ClientRing::new(4, 8, 4096).unwrap();
        let (mut peer, socket) = pair();
        let slot = ring.attach(socket).unwrap();
        let data = pattern(300_000);
        let expected = data.clone();
        let echo = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(got, expected);
            peer.write_all(&got).unwrap();
        });
        for chunk in data.chunks(100_000) {
            ring.send(slot, Bytes::copy_from_slice(chunk));
        }
        assert_eq!(ring.queued(slot), data.len());
        let mut seen = Seen::default();
        while seen.closed.is_empty() {
            turn(&mut ring, &mut seen);
        }
        echo.join().unwrap();
        assert_eq!(seen.sent, 3);
        assert_eq!(ring.queued(slot), 0);
        assert_eq!(seen.bytes, data);
        assert_eq!(seen.closed, [(slot, None)]);
    }

    #[test]
    fn silent_member_receives_one_bounded_piece_when_told_and_loses_nothing() {
        let mut ring = ClientRing::new(4, 8, 4096).unwrap();
        let (mut peer, socket) = pair();
        let slot = ring.attach_silent(socket).unwrap();
        let mut seen = Seen::default();
        let data = pattern(100_000);
        peer.write_all(&data).unwrap();
        turn(&mut ring, &mut seen);
        assert!(seen.bytes.is_empty());
        for (asked, most) in [(1, 1), (1_000, 1_000), (100_000, 4_096)] {
            let before = seen.bytes.len();
            // The second call is ignored.
            ring.recv_once(slot, asked);
            ring.recv_once(slot, asked);
            for _ in 0..3 {
                turn(&mut ring, &mut seen);
            }
            let got = seen.bytes.len() - before;
            assert!((1..=most).contains(&got), "{got} bytes of {most}");
        }
        while seen.bytes.len() < data.len() {
            ring.recv_once(slot, 100_000);
            turn(&mut ring, &mut seen);
        }
        assert_eq!(seen.bytes, data);
        drop(peer);
        ring.recv_once(slot, 1);
        while seen.closed.is_empty() {
            turn(&mut ring, &mut seen);
        }
        assert_eq!(seen.closed, [(slot, None)]);
    }

    #[test]
    fn silent_member_that_found_no_buffer_receives_when_there_is_one() {
        let mut ring = ClientRing::new(4, 1, 4096).unwrap();
        let (pairs, mut seen) = ([pair(), pair()], Seen::default());
        let slots = pairs.map(|(mut peer, socket)| {
            peer.write_all(&[7; 100]).unwrap();
            (ring.attach_silent(socket).unwrap(), peer)
        });
        for (slot, _) in &slots {
            ring.recv_once(*slot, 100);
        }
        while seen.bytes.len() < 200 {
            turn(&mut ring, &mut seen);
        }
        assert!(seen.closed.is_empty());
    }

    #[test]
    fn closing_during_a_stalled_send_frees_the_slot_once() {
        let mut ring = ClientRing::new(1, 8, 4096).unwrap();
        for _ in 0..3 {
            let (peer, socket) = pair();
            let slot = ring.attach(socket).unwrap();
            assert_eq!(slot, 0);
            assert!(ring.attach(pair().1).is_err());
            ring.send(slot, vec![0; 64 << 20].into());
            let mut seen = Seen::default();
            turn(&mut ring, &mut seen);
            assert!(ring.queued(slot) > 0);
            ring.close(slot);
            ring.close(slot);
            for _ in 0..4 {
                turn(&mut ring, &mut seen);
            }
            assert_eq!(seen.closed, [(slot, None)]);
            assert_eq!(ring.queued(slot), 0);
            drop(peer);
        }
    }

    #[test]
    fn reset_is_reported_with_its_errno() {
        let mut ring = ClientRing::new(1, 8, 4096).unwrap();
        let (peer, socket) = pair();
        let slot = ring.attach(socket).unwrap();
        let mut seen = Seen::default();
        turn(&mut ring, &mut seen);
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        while seen.closed.is_empty() {
            turn(&mut ring, &mut seen);
        }
        assert_eq!(seen.closed, [(slot, Some(libc::ECONNRESET))]);
    }
}
