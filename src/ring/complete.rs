//! What the kernel answers: each completion moves one connection, write, log operation or
//! the acceptor on, and tells the shard what it must know.

use io_uring::cqueue;

use super::conn::{Conn, NO_WRITE, Recv, State};
use super::driver::Driver;
use super::token::{Op, unpack};
use super::uring::Cqe;
use super::writes::Progress;
use crate::shard::{ConnId, Event, RecvBuf, RecvEnd};

impl Driver {
    #[inline]
    pub(super) fn complete(&mut self, cqe: &Cqe, events: &mut Vec<Event>) {
        let (op, slot, generation) = unpack(cqe.user_data);
        match op {
            Op::Send => self.sent(slot, generation, cqe.result, events),
            Op::Recv => self.received(slot, generation, cqe, events),
            Op::Accept => self.accepted(slot, cqe, events),
            Op::Close => self.closed(slot, generation, events),
            Op::Shutdown => self.shut_down(slot, generation),
            Op::CancelRecv | Op::CancelSend => self.cancelled(op, slot, generation, cqe.result),
            Op::CancelAccept => self.accept_cancelled(slot, cqe.result),
            Op::LogWrite => self.log_written(slot, cqe.result, events),
            Op::LogRead => self.log_read(slot, cqe.result, events),
            Op::Unsent => self.unsent(slot, generation, cqe.result, events),
            Op::Wake => self.arm_wake(),
            Op::Ignore => {}
        }
    }

    fn unsent(&mut self, slot: u32, generation: u32, result: i32, events: &mut Vec<Event>) {
        if let Some((id, conn)) = self.conns.of(slot, generation)
            && conn.state == State::Open
        {
            let result = u32::try_from(result).map_err(|_| -result);
            events.push(Event::Unsent { conn: id, result });
        }
    }

    fn sent(&mut self, slot: u32, generation: u32, result: i32, events: &mut Vec<Event>) {
        let Some((id, conn)) = self.conns.of(slot, generation) else { return };
        let write = conn.write;
        if write == NO_WRITE {
            return;
        }
        let closing = conn.state != State::Open;
        let result = match result {
            1.. => match self.writes.advance(write, result as usize) {
                Progress::Whole => Ok(()),
                Progress::Partial if closing => Err(libc::ECANCELED),
                Progress::Partial => {
                    self.counters.short_sends += 1;
                    events.push(Event::SendProgress { conn: id });
                    self.push_write(id, write);
                    return;
                }
            },
            // A write of at least one byte never takes none.
            0 => Err(libc::EIO),
            _ if result == -libc::EINTR && !closing => {
                self.push_write(id, write);
                return;
            }
            _ => Err(-result),
        };
        conn.write = NO_WRITE;
        let shutdown = std::mem::take(&mut conn.shutdown_wanted) && !closing && result.is_ok();
        conn.shutdown_in_flight |= shutdown;
        self.writes.finish(write);
        events.push(Event::Sent { conn: id, result });
        if shutdown {
            self.push_shutdown(id);
        }
        if closing {
            self.close_when_quiet(id);
        }
    }

    fn received(&mut self, slot: u32, generation: u32, cqe: &Cqe, events: &mut Vec<Event>) {
        let buffer = cqueue::buffer_select(cqe.flags);
        let Some((id, conn)) = self.conns.of(slot, generation) else {
            if let Some(buffer) = buffer {
                self.buffers.put(buffer);
            }
            return;
        };
        let open = conn.state == State::Open;
        if let Some(buffer) = buffer {
            if open && cqe.result > 0 {
                self.buffers_out += 1;
                let buf = RecvBuf { id: buffer, len: cqe.result as u32 };
                events.push(Event::Received { conn: id, buf });
            } else {
                self.buffers.put(buffer);
            }
        }
        if cqueue::more(cqe.flags) {
            return;
        }
        let pausing = conn.recv == Recv::Pausing;
        conn.recv = Recv::Off;
        if !open {
            self.close_when_quiet(id);
            return;
        }
        let out_of_buffers = cqe.result == -libc::ENOBUFS;
        self.counters.recv_enobufs += u64::from(out_of_buffers);
        let why = match -cqe.result {
            0 => RecvEnd::Eof,
            // The stream goes on: bytes came, or no fault of the socket ended the receive.
            i32::MIN..0 | libc::ENOBUFS | libc::ECANCELED | libc::EINTR if !pausing => {
                if out_of_buffers {
                    conn.recv = Recv::Starved;
                    self.starved.push_back(id);
                } else {
                    conn.recv = Recv::Armed;
                    self.arm_recv(id);
                }
                return;
            }
            i32::MIN..0 | libc::ENOBUFS | libc::ECANCELED | libc::EINTR => RecvEnd::Paused,
            errno => RecvEnd::Failed(errno),
        };
        events.push(Event::RecvEnded { conn: id, why });
    }

    /// Arms as many of the receives that ended for want of buffers as there are buffers.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        let mut free = self.buffers_total.saturating_sub(self.buffers_out);
        while free > 0
            && let Some(id) = self.starved.pop_front()
        {
            if let Some(conn) = self.conns.get(id)
                && conn.recv == Recv::Starved
            {
                conn.recv = Recv::Armed;
                self.arm_recv(id);
                free -= 1;
            }
        }
    }

    fn closed(&mut self, slot: u32, generation: u32, events: &mut Vec<Event>) {
        if let Some((id, conn)) = self.conns.of(slot, generation)
            && conn.state == State::Closed
        {
            self.free(slot, id.generation, events);
        }
        self.arm_accepts(None);
    }

    pub(super) fn free(&mut self, slot: u32, generation: u32, events: &mut Vec<Event>) {
        if let Some(conn) = self.conns.slot(slot) {
            *conn = Conn { generation: generation.wrapping_add(1), ..Conn::FREE };
            self.conns.live -= 1;
            events.push(Event::Closed { conn: ConnId { slot, generation } });
        }
    }

    fn shut_down(&mut self, slot: u32, generation: u32) {
        if let Some((id, conn)) = self.conns.of(slot, generation) {
            conn.shutdown_in_flight = false;
            self.close_when_quiet(id);
        }
    }

    /// A cancel may miss a request that is just being run; then it is asked for again.
    fn cancelled(&mut self, op: Op, slot: u32, generation: u32, result: i32) {
        if result >= 0 {
            return;
        }
        let Some((id, conn)) = self.conns.of(slot, generation) else { return };
        let closing = conn.state == State::Closing;
        match op {
            Op::CancelRecv
                if conn.recv == Recv::Pausing || (closing && conn.recv == Recv::Armed) =>
            {
                self.cancel(Op::Recv, Op::CancelRecv, id);
            }
            Op::CancelSend if closing && conn.write != NO_WRITE => {
                self.cancel(Op::Send, Op::CancelSend, id);
            }
            _ => {}
        }
    }

    fn log_written(&mut self, slot: u32, result: i32, events: &mut Vec<Event>) {
        let Some(op) = self.log.finish(slot) else { return };
        let result = match result {
            ..0 => Err(-result),
            _ if result as usize == op.buf.len() => Ok(()),
            _ => Err(libc::EIO),
        };
        events.push(Event::LogWritten { result, buf: op.buf });
    }

    fn log_read(&mut self, slot: u32, result: i32, events: &mut Vec<Event>) {
        let Some(mut op) = self.log.finish(slot) else { return };
        let result = if result < 0 {
            Err(-result)
        } else {
            op.buf.set_len(result as usize);
            Ok(op.buf)
        };
        events.push(Event::LogRead { token: op.token, result });
    }
}
