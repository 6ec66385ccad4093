//! The server's end of the simulated connections.

use super::net::{End, Recv, Write};
use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::fanout::Part;
use crate::position::Nanos;
use crate::shard::{ConnId, Event, RecvEnd};

const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;
const ECANCELED: i32 = 125;

impl World {
    /// Whether the server's end of a link belongs to this life of the node and is open.
    fn served(&self, link: u32) -> bool {
        let boot = self.node.boot;
        self.node.is_up() && self.links.get(&link).is_some_and(|l| l.boot == boot && !l.server_gone)
    }

    pub(super) fn accept(&mut self, link: u32) {
        let refused = !self.node.accepting || !self.served(link);
        let Some(l) = self.links.get_mut(&link) else { return };
        if refused {
            l.server_gone = true;
            return self.after(1, Due::DownEnds { link, end: End::Reset });
        }
        let shard = l.shard;
        let conn = self.node.shards[shard].io.open_slot(link);
        l.conn = Some(conn);
        self.tell(shard, Event::Accepted { conn });
        self.schedule_receive(link);
    }

    pub(super) fn up_arrives(&mut self, link: u32, count: usize, sent: Nanos) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.cut || l.server_gone {
            return;
        }
        self.oracle.fault_if(sent < self.newest_sent, Fault::Overtaken);
        self.oracle.fault_if(self.now.since(sent) > 1_000_000, Fault::Delayed);
        self.newest_sent = self.newest_sent.max(sent);
        l.up.arrive(count);
        self.schedule_receive(link);
    }

    /// The client's end has come.
    pub(super) fn up_ends(&mut self, link: u32, end: End) {
        if !self.served(link) {
            return;
        }
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.cut {
            return;
        }
        l.up_end = Some(end);
        let (shard, conn) = (l.shard, l.conn);
        if end == End::Reset {
            self.oracle.fault_if(l.frames.is_inside(), Fault::ResetMidFrame);
            l.up.clear();
            if let Some(write) = l.write.take()
                && let Some(conn) = conn
            {
                self.node.shards[shard].io.recycle(write.parts);
                self.tell(shard, Event::Sent { conn, result: Err(ECONNRESET) });
            }
        }
        self.schedule_receive(link);
    }

    fn schedule_receive(&mut self, link: u32) {
        let after = self.rng.below(50_000);
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.conn.is_some() && !l.recv_scheduled {
            l.recv_scheduled = true;
            self.after(after, Due::Receive { link });
        }
    }

    /// Hands one piece of what has arrived to the shard.
    pub(super) fn receive(&mut self, link: u32) {
        if !self.served(link) {
            return;
        }
        let Some(l) = self.links.get_mut(&link) else { return };
        l.recv_scheduled = false;
        let (shard, Some(conn)) = (l.shard, l.conn) else { return };
        if !matches!(l.recv, Recv::On | Recv::Pausing) {
            return;
        }
        let arrived = l.up.arrived();
        if arrived == 0 {
            let why = match l.up_end {
                Some(End::Fin) if l.up.is_empty() => RecvEnd::Eof,
                Some(End::Reset) => RecvEnd::Failed(ECONNRESET),
                _ => return,
            };
            l.recv = Recv::Ended;
            return self.tell(shard, Event::RecvEnded { conn, why });
        }
        let running = &mut self.node.shards[shard];
        if !running.io.has_recv_buffer() {
            self.oracle.fault(Fault::NoReceiveBuffer);
            running.starved.push(link);
            return;
        }
        let max = arrived.min(self.config.shard.recv_buffer_bytes as usize);
        let count = match self.rng.below(8) {
            0 => 1 + self.rng.index(max.min(9)),
            1 | 2 => 1 + self.rng.index(max),
            _ => max,
        };
        self.oracle.fault(if count < arrived { Fault::SplitReceive } else { Fault::MergedReceive });
        running.io.receive(conn, |bytes| {
            l.up.read(count, bytes);
            l.frames.take(bytes);
        });
        let client = l.client;
        self.wake(shard);
        self.flush_client(client);
        self.schedule_receive(link);
    }

    fn link_of(&self, shard: usize, conn: ConnId) -> Option<u32> {
        self.node.shards.get(shard)?.io.link(conn)
    }

    pub(super) fn pause(&mut self, shard: usize, conn: ConnId) {
        let Some(link) = self.link_of(shard, conn) else { return };
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.recv == Recv::On {
            self.oracle.fault(Fault::Paused);
            l.recv = Recv::Pausing;
            let after = self.rng.below(300_000);
            self.after(after, Due::PauseTakesEffect { link });
        }
    }

    pub(super) fn pause_takes_effect(&mut self, link: u32) {
        if !self.served(link) {
            return;
        }
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.recv == Recv::Pausing
            && let Some(conn) = l.conn
        {
            l.recv = Recv::Off;
            let shard = l.shard;
            self.tell(shard, Event::RecvEnded { conn, why: RecvEnd::Paused });
        }
    }

    pub(super) fn resume(&mut self, shard: usize, conn: ConnId) {
        let Some(link) = self.link_of(shard, conn) else { return };
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.recv != Recv::Ended {
            assert!(l.recv == Recv::Off, "resumed without a pause: {:?}", l.recv);
            l.recv = Recv::On;
            self.schedule_receive(link);
        }
    }

    pub(super) fn send(&mut self, shard: usize, conn: ConnId, parts: Vec<Part>) {
        let Some(link) = self.link_of(shard, conn) else { return };
        self.note(Note::Write { link, parts: parts.len() });
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.server_gone {
            return;
        }
        assert!(l.write.is_none(), "a second write on one connection, link {link}");
        assert!(!l.shutdown, "a write after the sending side was shut down, link {link}");
        l.write = Some(Write::new(parts));
        self.kernel_writes(link);
    }

    /// Moves a part of the write under way into the socket's buffer.
    pub(super) fn kernel_writes(&mut self, link: u32) {
        if !self.served(link) {
            return;
        }
        let Some(l) = self.links.get_mut(&link) else { return };
        l.write_scheduled = false;
        let (shard, Some(conn)) = (l.shard, l.conn) else { return };
        let Some(mut write) = l.write.take() else { return };
        if l.up_end == Some(End::Reset) || (l.client_gone && l.up_end.is_some()) {
            self.node.shards[shard].io.recycle(write.parts);
            return self.tell(shard, Event::Sent { conn, result: Err(EPIPE) });
        }
        let free = l.down.free();
        let count = if self.rng.below(4) == 0 { self.rng.index(free + 1) } else { free };
        let bytes = write.take(count);
        if !bytes.is_empty() {
            let at = self.now.0 + 20_000 + self.rng.below(2_000_000);
            let at = l.down.send(&bytes, crate::position::Nanos(at));
            self.at(at, Due::DownArrives { link, count: bytes.len() });
        }
        if write.is_done() {
            self.node.shards[shard].io.recycle(write.parts);
            return self.tell(shard, Event::Sent { conn, result: Ok(()) });
        }
        let Some(l) = self.links.get_mut(&link) else { return };
        l.write = Some(write);
        if !bytes.is_empty() {
            self.oracle.fault(Fault::ShortWrite);
            self.tell(shard, Event::SendProgress { conn });
        }
        self.go_on_writing(link);
    }

    /// Has a write that waits for room in the socket tried again.
    pub(super) fn go_on_writing(&mut self, link: u32) {
        let after = self.rng.between(10_000, 400_000);
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.write.is_none() || l.write_scheduled {
            return;
        }
        if l.down.free() == 0 && l.up_end.is_none() {
            return self.oracle.fault(Fault::StalledWrite);
        }
        l.write_scheduled = true;
        self.after(after, Due::KernelWrites { link });
    }

    /// What the socket holds that the client has not taken.
    pub(super) fn query_unsent(&mut self, shard: usize, conn: ConnId) {
        let Some(link) = self.link_of(shard, conn) else { return };
        let Some(l) = self.links.get(&link) else { return };
        let result = Ok(l.down.on_the_way() as u32);
        self.tell(shard, Event::Unsent { conn, result });
    }

    pub(super) fn shutdown_write(&mut self, shard: usize, conn: ConnId) {
        let Some(link) = self.link_of(shard, conn) else { return };
        let Some(l) = self.links.get_mut(&link) else { return };
        assert!(l.write.is_none(), "shut down before the write in flight ended");
        if !l.shutdown && !l.server_gone {
            l.shutdown = true;
            let at = l.down.after(crate::position::Nanos(self.now.0 + 100_000));
            self.at(at, Due::DownEnds { link, end: End::Fin });
        }
    }

    pub(super) fn close(&mut self, shard: usize, conn: ConnId) {
        let Some(link) = self.link_of(shard, conn) else { return };
        self.note(Note::ServerCloses { link });
        self.oracle.fault(Fault::ServerClosed);
        let Some(l) = self.links.get_mut(&link) else { return };
        assert!(!l.server_gone, "closed twice");
        l.server_gone = true;
        l.recv = Recv::Ended;
        // What the server did not read makes its kernel reset the connection.
        let end = if l.up.is_empty() { End::Fin } else { End::Reset };
        let at = l.down.after(crate::position::Nanos(self.now.0 + 100_000));
        self.at(at, Due::DownEnds { link, end });
        let after = self.rng.between(1_000, 400_000);
        self.after(after, Due::Closed { link });
    }

    /// Nothing of a connection that the server closed is in flight any more.
    pub(super) fn closed(&mut self, link: u32) {
        let boot = self.node.boot;
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.boot != boot || !self.node.is_up() {
            return;
        }
        let (shard, Some(conn), write) = (l.shard, l.conn.take(), l.write.take()) else { return };
        if let Some(write) = write {
            self.node.shards[shard].io.recycle(write.parts);
            self.tell(shard, Event::Sent { conn, result: Err(ECANCELED) });
        }
        self.node.shards[shard].io.close_slot(conn);
        self.wake(shard);
        self.forget_link(link);
    }

    /// The node died: clients learn it sooner or later.
    pub(super) fn links_lose_server(&mut self) {
        let links: Vec<u32> = self.links.keys().copied().collect();
        for link in links {
            let Some(l) = self.links.get_mut(&link) else { continue };
            l.server_gone = true;
            l.write = None;
            l.conn = None;
            let at = crate::position::Nanos(self.now.0 + self.rng.below(50_000_000));
            let at = l.down.after(at);
            let end = if self.rng.flip() { End::Fin } else { End::Reset };
            self.at(at, Due::DownEnds { link, end });
            self.forget_link(link);
        }
    }

    /// Drops a link that neither side holds.
    pub(super) fn forget_link(&mut self, link: u32) {
        if let Some(l) = self.links.get(&link)
            && l.client_gone
            && l.server_gone
            && l.conn.is_none()
        {
            self.links.remove(&link);
        }
    }
}
