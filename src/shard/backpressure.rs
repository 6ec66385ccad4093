//! Who publishes into a full share of the inbox is not read until it has drained. Each
//! priority has its own share, so that publishers of bulk groups cannot fill up that of
//! realtime ones. A connection that publishes to groups of several priorities is not read
//! while any of their shares is full: its bytes come in one order.

use std::collections::HashMap;

use super::conn::ConnState;
use super::{ConnId, Io, Shard};
use crate::config::{Priority, ShardConfig};
use crate::limits::{
    COMMIT_BULK_BESIDE_NORMAL, COMMIT_BULK_MAX, COMMIT_NORMAL_MAX, COMMIT_REALTIME_MAX,
    COMMIT_STAGED_MAX,
};

/// Names of foreign groups without members here whose priority is remembered.
const FOREIGN_NAMES_MAX: usize = 4096;

/// The share that questions about groups count against while they wait.
pub(super) const QUESTIONS: Priority = Priority::Normal;

/// What is on its way into an inbox, and who has to wait for that.
#[derive(Debug, Default)]
pub struct Backpressure {
    /// Bytes forwarded to owners that have not given credit for them, by priority.
    forwarded: [u64; Priority::COUNT],
    /// Connections that are not read, by the share they found full.
    throttled: [Vec<ConnId>; Priority::COUNT],
    foreign: HashMap<Box<[u8]>, Priority>,
}

impl Backpressure {
    /// Bytes were forwarded to an owner.
    pub fn forwarded(&mut self, priority: Priority, bytes: u64) {
        self.forwarded[priority.index()] += bytes;
    }

    /// An owner has taken forwarded bytes out of its inbox.
    pub fn credit(&mut self, priority: Priority, bytes: u64) {
        self.forwarded[priority.index()] -= bytes;
    }

    /// Bytes forwarded and not credited.
    pub fn forwarded_bytes(&self) -> u64 {
        self.forwarded.iter().sum()
    }
}

impl ShardConfig {
    /// Bytes of publishes that a commit may hold. With what goes around them, at most as much again,
    /// it fits into any segment.
    pub(super) fn commit_staged_max(&self) -> usize {
        COMMIT_STAGED_MAX.min(self.segment_bytes as usize / 4)
    }

    /// Bytes of the inbox for publishes to groups of this priority.
    fn inbox_share(&self, priority: Priority) -> u64 {
        match priority {
            _ if !self.classes.are_mixed() => self.inbox_bytes_max,
            Priority::Normal => self.inbox_bytes_max / 2,
            Priority::Realtime | Priority::Bulk => self.inbox_bytes_max / 4,
        }
    }
}

impl Shard {
    /// Bytes of the commit being filled for publishes to groups of this priority: a realtime
    /// message must not wait behind a commit that others filled.
    pub(super) fn commit_share(&self, priority: Priority) -> usize {
        match priority {
            _ if !self.config.classes.are_mixed() => self.config.commit_staged_max(),
            Priority::Realtime => COMMIT_REALTIME_MAX,
            Priority::Normal => COMMIT_NORMAL_MAX,
            Priority::Bulk if self.inbox.has(Priority::Normal) => COMMIT_BULK_BESIDE_NORMAL,
            Priority::Bulk => COMMIT_BULK_MAX,
        }
    }

    fn waiting(&self, priority: Priority) -> u64 {
        let questions = if priority == QUESTIONS { self.questions.bytes() } else { 0 };
        self.inbox.bytes_of(priority) + self.backpressure.forwarded[priority.index()] + questions
    }

    /// Whether a connection that asks must wait before it is read again.
    pub(super) fn throttle_questions(&mut self, id: ConnId) {
        if self.waiting(QUESTIONS) > self.config.inbox_share(QUESTIONS) {
            self.throttle(id, QUESTIONS);
        }
    }

    fn throttle(&mut self, id: ConnId, priority: Priority) {
        let bit = 1 << priority.index();
        let Some(conn) = self.conn(id) else { return };
        if conn.throttled & bit == 0 {
            conn.throttled |= bit;
            self.backpressure.throttled[priority.index()].push(id);
            self.figures.throttled += 1;
        }
    }

    /// Notes that a connection publishes to a group of this priority; stops reading it if
    /// too much of that waits.
    pub(super) fn throttle_if_full(&mut self, id: ConnId, priority: Priority) {
        let full = self.waiting(priority) > self.config.inbox_share(priority);
        let Some(conn) = self.conn(id) else { return };
        conn.answers = conn.answers.min(priority);
        if full {
            self.throttle(id, priority);
        }
    }

    pub(super) fn unthrottle(&mut self, io: &mut impl Io) {
        for priority in Priority::ALL {
            let at = priority.index();
            if self.backpressure.throttled[at].is_empty()
                || self.waiting(priority) > self.config.inbox_share(priority) / 2
            {
                continue;
            }
            for id in std::mem::take(&mut self.backpressure.throttled[at]) {
                if let Some(conn) = self.conn(id)
                    && conn.state == ConnState::Open
                {
                    conn.throttled &= !(1 << at);
                    self.resume_if_possible(id, io);
                }
            }
        }
    }

    /// Priority of a group that another shard owns. One without members here has no place
    /// that remembers its class, so the last ones asked for are kept aside.
    pub(super) fn priority_of_foreign(&mut self, name: &[u8]) -> Priority {
        if !self.config.classes.are_mixed() {
            return Priority::Normal;
        }
        if let Some(&key) = self.by_name.get(name) {
            return self.groups[key as usize].priority;
        }
        let foreign = &mut self.backpressure.foreign;
        if let Some(&priority) = foreign.get(name) {
            return priority;
        }
        if foreign.len() >= FOREIGN_NAMES_MAX {
            foreign.clear();
        }
        let priority = self.config.priority_of(self.config.classes.of(name));
        foreign.insert(name.into(), priority);
        priority
    }
}
