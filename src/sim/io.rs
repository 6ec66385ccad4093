//! What a simulated shard sees of the world. Requests are kept until the turn has ended; the
//! world then carries them out.

use std::collections::VecDeque;

use super::rng::Rng;
use crate::fanout::Part;
use crate::position::{Nanos, SegmentNumber, ShardId};
use crate::ring::LogBuf;
use crate::shard::{ConnId, Event, Io, Job, RecvBuf};

/// Something that a shard asked for.
#[derive(Debug)]
pub(super) enum Request {
    Pause(ConnId),
    Resume(ConnId),
    Send(ConnId, Vec<Part>),
    QueryUnsent(ConnId),
    ShutdownWrite(ConnId),
    Close(ConnId),
    StopAccepting,
    WriteLog(SegmentNumber, u64, LogBuf),
    ReadLog(u64, SegmentNumber, u64, usize),
    StartJob(Job),
    Wake(ShardId),
}

/// A place in the descriptor table.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    link: Option<u32>,
}

/// The second implementer of [`Io`].
#[derive(Debug)]
pub(super) struct ShardIo {
    pub now: Nanos,
    pub wall_ms: u64,
    rng: Rng,
    /// What finished and waits for the next turn.
    ready: VecDeque<Event>,
    pub requests: Vec<Request>,
    bufs: Vec<Vec<u8>>,
    free_bufs: Vec<u16>,
    slots: Vec<Slot>,
    spare_control: Vec<Vec<u8>>,
    /// Events returned by the last wait.
    pub returned: usize,
}

impl ShardIo {
    pub fn new(rng: Rng, recv_buffers: u16) -> Self {
        Self {
            now: Nanos(0),
            wall_ms: 0,
            rng,
            ready: VecDeque::new(),
            requests: Vec::new(),
            bufs: (0..recv_buffers).map(|_| Vec::new()).collect(),
            free_bufs: (0..recv_buffers).collect(),
            slots: Vec::new(),
            spare_control: Vec::new(),
            returned: 0,
        }
    }

    pub fn push(&mut self, event: Event) {
        self.ready.push_back(event);
    }

    pub fn has_events(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn has_recv_buffer(&self) -> bool {
        !self.free_bufs.is_empty()
    }

    /// Hands bytes over in a provided buffer.
    pub fn receive(&mut self, conn: ConnId, fill: impl FnOnce(&mut Vec<u8>)) {
        let Some(id) = self.free_bufs.pop() else { return };
        let bytes = &mut self.bufs[usize::from(id)];
        bytes.clear();
        fill(bytes);
        let len = bytes.len() as u32;
        self.push(Event::Received { conn, buf: RecvBuf { id, len } });
    }

    /// Gives a connection the lowest free slot.
    pub fn open_slot(&mut self, link: u32) -> ConnId {
        let free = self.slots.iter().position(|slot| slot.link.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.generation += 1;
        slot.link = Some(link);
        ConnId { slot: index as u32, generation: slot.generation }
    }

    /// The link behind a connection that is not closed yet.
    pub fn link(&self, conn: ConnId) -> Option<u32> {
        let slot = self.slots.get(conn.slot as usize)?;
        slot.link.filter(|_| slot.generation == conn.generation)
    }

    /// Last event of a connection. Its slot is free: whoever gets it is announced after.
    pub fn close_slot(&mut self, conn: ConnId) {
        self.push(Event::Closed { conn });
        self.slots[conn.slot as usize].link = None;
    }

    /// Takes back what a write that ended has held.
    pub fn recycle(&mut self, parts: Vec<Part>) {
        for part in parts {
            if let Part::Control(mut bytes) = part
                && self.spare_control.len() < 8
            {
                bytes.clear();
                self.spare_control.push(bytes);
            }
        }
    }
}

impl Io for ShardIo {
    fn now(&self) -> Nanos {
        self.now
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms
    }

    fn random(&mut self) -> u64 {
        self.rng.next()
    }

    /// Never blocks: the world calls for a turn only when a real wait would have returned.
    fn wait(&mut self, _until: Option<Nanos>, events: &mut Vec<Event>) {
        let mut count = self.ready.len();
        if count > 1 && self.rng.chance(100_000) {
            count = 1 + self.rng.index(count);
        }
        self.returned = count;
        events.extend(self.ready.drain(..count));
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        &self.bufs[usize::from(buf.id)][..buf.len as usize]
    }

    fn release(&mut self, buf: RecvBuf) {
        debug_assert!(!self.free_bufs.contains(&buf.id));
        self.free_bufs.push(buf.id);
    }

    fn pause_recv(&mut self, conn: ConnId) {
        self.requests.push(Request::Pause(conn));
    }

    fn resume_recv(&mut self, conn: ConnId) {
        self.requests.push(Request::Resume(conn));
    }

    fn send(&mut self, conn: ConnId, parts: &mut Vec<Part>) {
        assert!((1..=crate::limits::SEND_PARTS_MAX).contains(&parts.len()));
        self.requests.push(Request::Send(conn, std::mem::take(parts)));
    }

    fn query_unsent(&mut self, conn: ConnId) {
        self.requests.push(Request::QueryUnsent(conn));
    }

    fn control_buf(&mut self) -> Vec<u8> {
        self.spare_control.pop().unwrap_or_default()
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        self.requests.push(Request::ShutdownWrite(conn));
    }

    fn close(&mut self, conn: ConnId) {
        self.requests.push(Request::Close(conn));
    }

    fn stop_accepting(&mut self) {
        self.requests.push(Request::StopAccepting);
    }

    fn write_log(&mut self, segment: SegmentNumber, offset: u64, buf: LogBuf) {
        self.requests.push(Request::WriteLog(segment, offset, buf));
    }

    fn read_log(&mut self, token: u64, segment: SegmentNumber, offset: u64, len: usize) {
        self.requests.push(Request::ReadLog(token, segment, offset, len));
    }

    fn start_job(&mut self, job: Job) {
        self.requests.push(Request::StartJob(job));
    }

    fn wake(&mut self, shard: ShardId) {
        self.requests.push(Request::Wake(shard));
    }
}
