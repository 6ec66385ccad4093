//! Stage 9: what time brings. Deadlines of connections, writes that make no progress, memory
//! held by stalled members, retention.

use tracing::{debug, info};

use super::conn::ConnState;
use super::replies::Refusal;
use super::wheel::Due;
use super::{ConnId, Io, Shard};
use crate::position::Nanos;
use crate::wire::ErrorCode;

/// Silence of this length may be noticed a second late.
const LOOSE_SILENCE_MS: u64 = 20_000;
/// Room for deadlines that is kept.
const FIRED_KEPT_MAX: usize = 256;

/// A WebSocket that was silent for so long is asked by a ping.
pub(super) fn ask_after_ms(heartbeat_ms: u32) -> u64 {
    u64::from(heartbeat_ms) * 3 / 2
}

impl Shard {
    /// When the shard must have a turn even if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        [
            self.wheel.deadline(),
            self.sweep_at,
            self.storage_retry_at,
            self.reads.again_at(),
            self.snapshots.deadline(),
            self.announcements.deadline(),
            // A write that is under way ends with an event.
            self.cursors.flush_at().filter(|_| self.in_flight.is_none()),
            self.retention_deadline(),
            self.drain.as_ref().map(|drain| drain.look_at),
            self.inflating.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn expire(&mut self, io: &mut impl Io) {
        let now = io.now();
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.fire(now, &mut fired);
        for due in fired.drain(..) {
            match due {
                Due::Conn(id) => self.deadline(id, now, io),
                Due::Acks(id) => self.look_at_acks(id, now, io),
                Due::Token(id) => self.look_at_token(id, now),
            }
        }
        // Ten thousand deadlines at the same second are rare, and their list is not kept.
        fired.shrink_to(FIRED_KEPT_MAX);
        self.fired = fired;
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now, io);
        }
        self.announce_rosters(io);
        self.take_medians(now);
        self.bound_pins(io);
        self.bound_partials();
        if self.storage_retry_at.is_some_and(|at| at <= now) {
            self.storage_retry_at = None;
            self.prepare_segment(io);
        }
        self.retain(io);
    }

    /// The wheel fired for a connection: looks at its real deadline.
    fn deadline(&mut self, id: ConnId, now: Nanos, io: &mut impl Io) {
        let silence_ms = 2 * u64::from(self.config.heartbeat_ms);
        let ask_ms = ask_after_ms(self.config.heartbeat_ms);
        let handshake_ms = u64::from(self.config.handshake_timeout_ms);
        let Some(conn) = self.conn(id) else { return };
        match conn.state {
            ConnState::Closing => self.close(id, io),
            ConnState::Opening
            | ConnState::Upgrading
            | ConnState::Greeting
            | ConnState::Proving => {
                // Counted from the accept, so that a byte now and then does not help.
                let due = conn.heard_at.plus_ms(handshake_ms);
                if due > now {
                    return self.wheel.arm(id, due);
                }
                let refusal = if conn.state == ConnState::Proving {
                    let text = "no token came in time; send AUTH behind HELLO";
                    Refusal::new(ErrorCode::AuthRequired, text)
                } else {
                    Refusal::new(ErrorCode::HandshakeTimeout, "HELLO did not come in time")
                };
                self.refuse_last(id, 0, refusal.limit(handshake_ms));
            }
            ConnState::Open if silence_ms == 0 => {}
            ConnState::Open => {
                // A connection that we stopped reading cannot be heard.
                let due = conn.heard_at.plus_ms(silence_ms);
                if conn.paused || due > now {
                    let ask = conn.heard_at.plus_ms(ask_ms);
                    let at = match conn.ws {
                        _ if conn.paused => now.plus_ms(silence_ms),
                        Some(_) if ask > now => ask,
                        Some(_) => {
                            self.ask_by_ping(id);
                            due
                        }
                        None => due,
                    };
                    return if silence_ms < LOOSE_SILENCE_MS {
                        self.wheel.arm(id, at);
                    } else {
                        self.wheel.arm_loosely(id, at);
                    };
                }
                debug!(slot = id.slot, silence_ms, "member is silent, closing");
                self.figures.silent += 1;
                let text = "nothing was heard for twice the heartbeat time; send PING when idle";
                let refusal = Refusal::new(ErrorCode::HeartbeatTimeout, text).limit(silence_ms);
                self.refuse_last(id, 0, refusal);
            }
        }
    }

    /// Closes members whose write made no progress for too long.
    fn sweep(&mut self, now: Nanos, io: &mut impl Io) {
        let limit_ms = u64::from(self.config.stall_timeout_ms);
        for slot in 0..self.conns.end() {
            if self.conns.get(slot).is_some_and(|conn| self.seems_stalled(conn, now)) {
                self.has_stalled(slot);
            }
        }
        let stalled: Vec<_> = self
            .conns
            .iter()
            .filter(|conn| conn.in_flight && conn.progress_at.plus_ms(limit_ms) <= now)
            .map(|conn| conn.id)
            .collect();
        for id in stalled {
            self.figures.stalled += 1;
            self.close_unread(id, "its write made no progress", io);
        }
        self.sweep_at = (self.writes_in_flight > 0).then(|| now.plus_ms((limit_ms / 4).max(1)));
    }

    fn close_unread(&mut self, id: ConnId, why: &str, io: &mut impl Io) {
        let member = self.conn(id).map(|conn| String::from_utf8_lossy(&conn.member).into_owned());
        info!(slot = id.slot, member, why, "closing a member that does not read");
        self.close(id, io);
    }

    /// Keeps what stalled writes hold within its bound: the oldest write goes.
    fn bound_pins(&mut self, io: &mut impl Io) {
        if self.pins.bytes() <= self.config.pinned_bytes_max {
            return;
        }
        let oldest = self.conns.iter().filter(|conn| conn.in_flight);
        if let Some(id) = oldest.min_by_key(|conn| conn.progress_at).map(|conn| conn.id) {
            self.figures.closed_for_memory += 1;
            self.close_unread(id, "unfinished writes hold more than pinned_bytes_max", io);
        }
    }

    /// Keeps unfinished frames within their bound: the largest holder goes.
    fn bound_partials(&mut self) {
        let max = self.config.partial_bytes_max;
        if self.figures.partial_bytes <= max {
            return;
        }
        let holders = self.conns.iter().filter(|conn| conn.state != ConnState::Closing);
        if let Some(id) = holders.max_by_key(|conn| conn.unfinished()).map(|conn| conn.id) {
            self.figures.closed_for_memory += 1;
            let text = "memory for unfinished frames ran out and this connection held the most";
            self.refuse(id, 0, Refusal::new(ErrorCode::MemoryBudget, text).limit(max));
        }
    }
}
