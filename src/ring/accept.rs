//! Where connections come from: the listening sockets of a shard, each with a multishot accept.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::types::Fd;

use super::conn::{Recv, State};
use super::driver::Driver;
use super::token::Op;
use super::uring::Cqe;
use crate::position::Nanos;
use crate::shard::{ConnId, Event};

/// When the system is out of something, accepting is tried again after this time.
const ACCEPT_RETRY_MS: u64 = 100;

/// State of a multishot accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    Armed,
    /// Failed; tried again when a connection closes, or at this time if there is one.
    Waiting(Option<Nanos>),
    Stopping,
    Stopped,
}

/// A listening socket; its place in the list is the slot in the user data.
pub(super) struct Listener {
    socket: Option<TcpListener>,
    accept: Accept,
}

impl Listener {
    pub fn new(socket: TcpListener) -> Self {
        Self { socket: Some(socket), accept: Accept::Waiting(None) }
    }

    /// Whether the kernel still holds its accept.
    pub fn is_busy(&self) -> bool {
        matches!(self.accept, Accept::Armed | Accept::Stopping)
    }
}

/// The name of an accept in the user data.
fn accept_id(listener: u32) -> ConnId {
    ConnId { slot: listener, generation: 0 }
}

impl Driver {
    /// Arms the accepts that wait and whose time has come; without a time, all that wait.
    pub(super) fn arm_accepts(&mut self, now: Option<Nanos>) {
        for index in 0..self.listeners.len() {
            let due = match (self.listeners[index].accept, now) {
                (Accept::Waiting(_), None) => true,
                (Accept::Waiting(Some(at)), Some(now)) => at <= now,
                _ => false,
            };
            if due {
                self.arm_accept(index as u32);
            }
        }
    }

    fn arm_accept(&mut self, index: u32) {
        let Some(listener) = self.listeners.get_mut(index as usize) else { return };
        let Some(socket) = &listener.socket else { return };
        let entry = opcode::AcceptMulti::new(Fd(socket.as_raw_fd())).allocate_file_index(true);
        listener.accept = Accept::Armed;
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry.build(), Op::Accept, accept_id(index)) };
    }

    /// When the first accept that waits is tried again.
    pub(super) fn accept_retry_at(&self) -> Option<Nanos> {
        let waits = |listener: &Listener| match listener.accept {
            Accept::Waiting(at) => at,
            _ => None,
        };
        self.listeners.iter().filter_map(waits).min()
    }

    pub(super) fn stop_accepts(&mut self) {
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            match listener.accept {
                Accept::Armed => {
                    listener.accept = Accept::Stopping;
                    self.cancel(Op::Accept, Op::CancelAccept, accept_id(index as u32));
                }
                Accept::Waiting(_) => {
                    listener.accept = Accept::Stopped;
                    listener.socket = None;
                }
                Accept::Stopping | Accept::Stopped => {}
            }
        }
    }

    /// A cancel may miss an accept that is just being run; then it is asked for again.
    pub(super) fn accept_cancelled(&mut self, index: u32, result: i32) {
        let stopping =
            self.listeners.get(index as usize).is_some_and(|l| l.accept == Accept::Stopping);
        if result < 0 && stopping {
            self.cancel(Op::Accept, Op::CancelAccept, accept_id(index));
        }
    }

    pub(super) fn accepted(&mut self, index: u32, cqe: &Cqe, events: &mut Vec<Event>) {
        if cqe.result >= 0 {
            self.open(cqe.result as u32, events);
        }
        if cqueue::more(cqe.flags) {
            return;
        }
        let full = self.conns.live == self.conns.len();
        let retry_at = self.now.plus_ms(ACCEPT_RETRY_MS);
        let Some(listener) = self.listeners.get_mut(index as usize) else { return };
        if listener.accept == Accept::Stopping {
            listener.accept = Accept::Stopped;
            // Closing it refuses clients at once instead of leaving them in its queue, unless
            // somebody else goes on with it.
            listener.socket = None;
            return;
        }
        match -cqe.result {
            i32::MIN..=0 | libc::ECONNABORTED | libc::EINTR | libc::EPROTO => {
                self.arm_accept(index);
            }
            libc::ENFILE if full => {
                self.counters.accept_failures += 1;
                listener.accept = Accept::Waiting(None);
            }
            _ => {
                self.counters.accept_failures += 1;
                listener.accept = Accept::Waiting(Some(retry_at));
            }
        }
    }

    fn open(&mut self, slot: u32, events: &mut Vec<Event>) {
        // Some kernels report an accept before the close that made room for it.
        if let Some(conn) = self.conns.slot(slot)
            && conn.state == State::Closed
        {
            let generation = conn.generation;
            self.free(slot, generation, events);
        }
        let Some(conn) = self.conns.slot(slot) else { return };
        assert!(conn.state == State::Free, "descriptor {slot} accepted twice: {conn:?}");
        conn.state = State::Open;
        conn.recv = Recv::Armed;
        let id = ConnId { slot, generation: conn.generation };
        self.conns.live += 1;
        self.counters.accepts += 1;
        self.arm_recv(id);
        events.push(Event::Accepted { conn: id });
    }
}
