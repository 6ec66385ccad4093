//! Compressed messages of WebSocket clients. One that comes to many times its own length costs a
//! shard far more than it cost its sender, so these have a pace. A connection whose message has to
//! wait is not read meanwhile.

use std::collections::VecDeque;

use super::conn::{ConnState, WAITS};
use super::{ConnId, Io, Shard};
use crate::limits::{
    WS_INFLATED_MIN, WS_INFLATED_NS_PER_BYTE, WS_INFLATED_RATIO, WS_INFLATED_UNKNOWN,
};
use crate::position::Nanos;
use crate::ws::deflate::Unreadable;
use crate::ws::{Kind, Violation};

/// Messages that come to more than their share.
#[derive(Debug, Default)]
pub struct Inflating {
    /// Connections with one that waits, each once.
    waiting: VecDeque<ConnId>,
    /// The next one is taken then.
    next_at: Nanos,
}

impl Inflating {
    /// When one that waits is taken.
    pub fn deadline(&self) -> Option<Nanos> {
        (!self.waiting.is_empty()).then_some(self.next_at)
    }
}

impl Shard {
    /// Takes a message that waits, in the order in which they came.
    pub(super) fn inflate_waiting(&mut self, io: &mut impl Io) {
        while self.inflating.next_at <= self.now
            && let Some(id) = self.inflating.waiting.pop_front()
        {
            self.go_on(id, io);
        }
    }

    /// Puts what a compressed message says in its place, or leaves it as it is for later, which is
    /// false.
    pub(super) fn inflate(
        &mut self,
        id: ConnId,
        kind: Kind,
        max: u64,
        message: &mut Vec<u8>,
    ) -> Result<bool, Violation> {
        let share = WS_INFLATED_MIN + WS_INFLATED_RATIO * message.len() as u64;
        let is_open = self.conn(id).is_some_and(|conn| conn.state == ConnState::Open);
        let max = match (is_open, self.lacks_token(id)) {
            (true, _) => max,
            (false, false) => max.min(share),
            (false, true) => max.min(share).min(WS_INFLATED_UNKNOWN),
        };
        let may = if self.inflating.next_at <= self.now { max } else { max.min(share) };
        let mut inflated = std::mem::take(&mut self.codec.inflated);
        let done = self.codec.deflate().decompress(message, may as usize, &mut inflated);
        if let Err(Unreadable::TooBig) = done
            && may < max
        {
            self.codec.inflated = inflated;
            if let Some(conn) = self.conn(id) {
                conn.throttled |= WAITS;
                self.inflating.waiting.push_back(id);
            }
            return Ok(false);
        }
        let len = inflated.len() as u64;
        if len > share {
            self.inflating.next_at = Nanos(self.now.0 + len * WS_INFLATED_NS_PER_BYTE);
        }
        std::mem::swap(message, &mut inflated);
        self.codec.inflated = inflated;
        match done {
            Err(Unreadable::TooBig) => Err(Violation::TooBig { max }),
            Err(Unreadable::Broken) => Err(Violation::NotDeflate),
            Ok(()) if kind == Kind::Text && std::str::from_utf8(message).is_err() => {
                Err(Violation::NotUtf8)
            }
            Ok(()) => Ok(true),
        }
    }
}
