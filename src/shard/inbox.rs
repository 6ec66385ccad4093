//! Publishes that wait to be sequenced: one arena for their bytes, no allocation per message.

use std::collections::VecDeque;

use super::ConnId;
use crate::config::Priority;
use crate::position::{Level, ProducerId, ShardId};

/// Who published, and is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The shard that owns the connection.
    pub shard: ShardId,
    /// The connection.
    pub conn: ConnId,
    /// The request of the PUBLISH.
    pub request: u32,
}

/// What is known of a publish beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Who is answered.
    pub origin: Origin,
    /// Key of the group on this shard.
    pub group: usize,
    /// Priority of the group.
    pub priority: Priority,
    /// Level asked for.
    pub level: Level,
    /// Identity of the publisher.
    pub producer: ProducerId,
    /// The publisher's own number.
    pub producer_seq: u64,
    /// Share of the members for which a receipt is wanted; 0 for none.
    pub receipt: u8,
    /// It came after DRAIN was sent: answered if it has its place, and not taken.
    pub late: bool,
}

#[derive(Debug)]
struct Entry {
    header: Header,
    sender_len: u32,
    payload_len: u32,
}

/// Publishes of one priority, in the order in which they came.
#[derive(Debug, Default)]
struct Lane {
    entries: VecDeque<Entry>,
    arena: Vec<u8>,
    consumed: usize,
}

/// Publishes by the priority of their groups, so that one does not wait behind another.
/// Bounded by whoever pushes.
#[derive(Debug, Default)]
pub struct Inbox {
    lanes: [Lane; Priority::COUNT],
}

impl Inbox {
    /// Appends a publish.
    pub fn push(&mut self, header: Header, sender: &[u8], payload: &[u8]) {
        self.lanes[header.priority.index()].push(header, sender, payload);
    }

    /// The oldest publish of this priority: header, sender, payload.
    #[must_use]
    pub fn front(&self, priority: Priority) -> Option<(Header, &[u8], &[u8])> {
        self.lanes[priority.index()].front()
    }

    /// Removes the oldest publish of this priority.
    pub fn pop(&mut self, priority: Priority) {
        self.lanes[priority.index()].pop();
    }

    /// Bytes that wait in this priority, with what each publish takes beside its own.
    #[must_use]
    pub fn bytes_of(&self, priority: Priority) -> u64 {
        self.lanes[priority.index()].bytes()
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lanes.iter().map(Lane::bytes).sum()
    }

    /// Whether anything waits in this priority.
    #[must_use]
    pub fn has(&self, priority: Priority) -> bool {
        !self.lanes[priority.index()].entries.is_empty()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.entries.is_empty())
    }
}

impl Lane {
    fn push(&mut self, header: Header, sender: &[u8], payload: &[u8]) {
        self.entries.push_back(Entry {
            header,
            sender_len: sender.len() as u32,
            payload_len: payload.len() as u32,
        });
        self.arena.extend_from_slice(sender);
        self.arena.extend_from_slice(payload);
    }

    fn front(&self) -> Option<(Header, &[u8], &[u8])> {
        let entry = self.entries.front()?;
        let bytes = &self.arena[self.consumed..];
        let (sender, rest) = bytes.split_at(entry.sender_len as usize);
        Some((entry.header, sender, &rest[..entry.payload_len as usize]))
    }

    fn pop(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.consumed += (entry.sender_len + entry.payload_len) as usize;
        if self.entries.is_empty() {
            self.arena.clear();
            self.consumed = 0;
        } else if self.consumed > (1 << 20) && self.consumed > self.arena.len() / 2 {
            self.arena.drain(..self.consumed);
            self.consumed = 0;
        }
    }

    fn bytes(&self) -> u64 {
        let entries = self.entries.len() * size_of::<Entry>();
        (self.arena.len() - self.consumed + entries) as u64
    }
}
