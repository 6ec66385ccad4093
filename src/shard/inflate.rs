//! Compressed messages of WebSocket clients. One that comes to many times its own length costs a
//! shard far more than it cost its sender, so a turn takes one of those. A connection whose message
//! has to wait for another turn is not read meanwhile.

use std::collections::VecDeque;

use super::conn::{ConnState, WAITS};
use super::{ConnId, Io, Shard};
use crate::limits::{WS_INFLATED_MIN, WS_INFLATED_RATIO, WS_INFLATED_UNKNOWN};
use crate::ws::deflate::Unreadable;
use crate::ws::{Kind, Violation};

/// What a shard decompresses in a turn.
#[derive(Debug, Default)]
pub struct Inflating {
    /// Connections with a message that waits, each once.
    waiting: VecDeque<ConnId>,
    /// A message of this turn came to more than its share.
    had_one: bool,
}

impl Inflating {
    /// Whether something is left for the next turn.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Shard {
    /// Begins a turn: messages that wait are first, in the order in which they came.
    pub(super) fn inflate_waiting(&mut self, io: &mut impl Io) {
        self.inflating.had_one = false;
        while !self.inflating.had_one
            && let Some(id) = self.inflating.waiting.pop_front()
        {
            self.go_on(id, io);
        }
    }

    /// Puts what a compressed message says in its place, or leaves it as it is for another turn,
    /// which is false.
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
        let now = if self.inflating.had_one { max.min(share) } else { max };
        let mut inflated = std::mem::take(&mut self.codec.inflated);
        let done = self.codec.deflate().decompress(message, now as usize, &mut inflated);
        if let Err(Unreadable::TooBig) = done
            && now < max
        {
            self.codec.inflated = inflated;
            if let Some(conn) = self.conn(id) {
                conn.throttled |= WAITS;
                self.inflating.waiting.push_back(id);
            }
            return Ok(false);
        }
        self.inflating.had_one |= inflated.len() as u64 > share;
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
