//! Connections of the simulated network: two byte streams with bounded buffers.

use std::collections::VecDeque;

use crate::fanout::Part;
use crate::position::Nanos;
use crate::shard::ConnId;

/// One direction: bytes that were sent, of which the first ones have arrived. What was sent
/// and not yet read together never exceeds the capacity.
#[derive(Debug)]
pub(super) struct Pipe {
    bytes: VecDeque<u8>,
    arrived: usize,
    capacity: usize,
    /// When the last byte sent arrives; nothing overtakes it.
    last: Nanos,
}

impl Pipe {
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), arrived: 0, capacity, last: Nanos(0) }
    }

    pub fn free(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }

    pub fn arrived(&self) -> usize {
        self.arrived
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that were sent and have not arrived.
    pub fn on_the_way(&self) -> usize {
        self.bytes.len() - self.arrived
    }

    /// Sends bytes that would arrive at `at`; returns when they do.
    pub fn send(&mut self, bytes: &[u8], at: Nanos) -> Nanos {
        self.bytes.extend(bytes);
        self.after(at)
    }

    /// When something sent now arrives.
    pub fn after(&mut self, at: Nanos) -> Nanos {
        self.last = self.last.max(at);
        self.last
    }

    pub fn arrive(&mut self, count: usize) {
        self.arrived = (self.arrived + count).min(self.bytes.len());
    }

    /// Reads the first `count` bytes, which have arrived.
    pub fn read(&mut self, count: usize, out: &mut Vec<u8>) {
        debug_assert!(count <= self.arrived);
        out.extend(self.bytes.drain(..count));
        self.arrived -= count;
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.arrived = 0;
    }
}

/// Tells whether the bytes so far end inside a frame.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The start of a length field, or of the magic at first.
    head: Vec<u8>,
    begun: bool,
    /// Bytes of the frame that are still to come.
    left: usize,
}

impl Frames {
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let want = if self.left > 0 { self.left } else { 4 - self.head.len() };
            let (these, rest) = bytes.split_at(want.min(bytes.len()));
            bytes = rest;
            if self.left > 0 {
                self.left -= these.len();
                continue;
            }
            self.head.extend_from_slice(these);
            if let Ok(head) = <[u8; 4]>::try_from(&self.head[..]) {
                self.head.clear();
                // The magic comes before the first frame.
                self.left = if self.begun { u32::from_le_bytes(head) as usize } else { 0 };
                self.begun = true;
            }
        }
    }

    pub fn is_inside(&self) -> bool {
        self.left > 0 || !self.head.is_empty()
    }
}

/// Whether the server's side of a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recv {
    On,
    /// A pause was asked for and has not taken effect.
    Pausing,
    Off,
    /// Its last event was given.
    Ended,
}

/// A write of the server that is under way.
#[derive(Debug)]
pub(super) struct Write {
    pub parts: Vec<Part>,
    part: usize,
    offset: usize,
}

impl Write {
    pub fn new(parts: Vec<Part>) -> Self {
        Self { parts, part: 0, offset: 0 }
    }

    /// Takes up to `count` bytes that were not taken yet.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < count
            && let Some(part) = self.parts.get(self.part)
        {
            let rest = &part.as_slice()[self.offset..];
            let n = rest.len().min(count - out.len());
            out.extend_from_slice(&rest[..n]);
            self.offset += n;
            if self.offset == part.as_slice().len() {
                self.part += 1;
                self.offset = 0;
            }
        }
        out
    }

    pub fn is_done(&self) -> bool {
        self.part == self.parts.len()
    }
}

/// How one side of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// In order, after all bytes.
    Fin,
    /// At once; what was not read is lost.
    Reset,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub client: usize,
    pub shard: usize,
    /// Which life of the node it belongs to.
    pub boot: u32,
    pub conn: Option<ConnId>,
    pub up: Pipe,
    pub down: Pipe,
    /// What the server has received.
    pub frames: Frames,
    pub recv: Recv,
    pub recv_scheduled: bool,
    /// The client's end has reached the server.
    pub up_end: Option<End>,
    pub write: Option<Write>,
    pub write_scheduled: bool,
    /// The server sends nothing after the write in flight.
    pub shutdown: bool,
    /// The server closed it, or died.
    pub server_gone: bool,
    /// The client closed it, or was told that it ended.
    pub client_gone: bool,
    pub read_scheduled: bool,
    /// The server's end has reached the client.
    pub down_end: bool,
    /// The network drops everything from now on, and nobody is told.
    pub cut: bool,
}

impl Link {
    pub fn new(client: usize, shard: usize, boot: u32, up: usize, down: usize) -> Self {
        Self {
            client,
            shard,
            boot,
            conn: None,
            up: Pipe::new(up),
            down: Pipe::new(down),
            frames: Frames::default(),
            recv: Recv::On,
            recv_scheduled: false,
            up_end: None,
            write: None,
            write_scheduled: false,
            shutdown: false,
            server_gone: false,
            client_gone: false,
            read_scheduled: false,
            down_end: false,
            cut: false,
        }
    }
}
