//! Stopping in good order: accept nothing more, finish what was accepted, tell everyone.

use std::sync::Arc;

use super::conn::ConnState;
use super::look::{Look, LookReply};
use super::queues::Slice;
use super::{ConnId, Io, Shard, Turn};
use crate::auth::Keys;
use crate::config::{Priority, ShardConfig};
use crate::position::Nanos;
use crate::wire;
use crate::ws::CloseCode;

/// How often a draining shard looks whether the others are done.
const LOOK_MS: u64 = 5;
/// When everything is written it waits for so long for clients to close: then they have read it and
/// said what they had to say. A socket that is closed while it has unread bytes is reset, and its
/// client may not see the DRAIN. So long, too, HELLO of a connection that was just accepted may take.
const FAREWELL_MS: u64 = 500;
/// The first client comes back after this time, about what a successor takes to be there.
const FIRST_SLOT_MS: u32 = 300;
/// Clients of one shard that come back in the same millisecond: about half of what a shard takes,
/// so that those who are back are served meanwhile.
const PER_SLOT: u32 = 2;

/// Orders of the control thread.
#[derive(Debug)]
pub enum Control {
    /// Stop in good order.
    Drain,
    /// Go on with this configuration. Only keys that may change while a shard runs differ from
    /// the one it has; see [`crate::config::LIVE_KEYS`].
    Configure(Box<ShardConfig>),
    /// Go on with these keys.
    Keys(Arc<Keys>),
    /// Serve TLS by these certificates on connections that begin from now on.
    Tls(Arc<rustls::ServerConfig>),
    /// Answer an operator.
    Look(Look, LookReply),
}

/// A drain that is under way.
#[derive(Debug)]
pub struct Drain {
    /// When connections are closed whatever they still wait for.
    deadline: Nanos,
    /// Until then it waits for clients that close by themselves; known when all of them have been
    /// told, which takes a while with many.
    farewell: Option<Nanos>,
    /// When to look again.
    pub look_at: Nanos,
    /// Clients that were told when to come back.
    told: u32,
    /// This shard said that it has nothing left.
    said_drained: bool,
}

impl Drain {
    /// Whether this shard has said that it has nothing left.
    pub fn is_over(&self) -> bool {
        self.said_drained
    }
}

impl Shard {
    /// Whether everything this shard ever acknowledged is in its log.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.log.is_poisoned() && self.log_is_idle()
    }

    fn log_is_idle(&self) -> bool {
        let filling = &self.filling;
        self.in_flight.is_none() && filling.is_empty()
    }

    /// Last stage: whether there is another turn.
    pub(super) fn finish(&mut self, io: &mut impl Io) -> Turn {
        if self.looking.is_none() {
            match self.control.pop() {
                Ok(Control::Drain) if self.drain.is_none() => self.begin_drain(io),
                Ok(Control::Configure(config)) => {
                    // The limit of open files may have left less than is configured, and what was
                    // read from files is not in a configuration.
                    let connections_max = self.config.connections_max;
                    let (keys, tls) = (self.config.keys.take(), self.config.tls.take());
                    self.config = ShardConfig { connections_max, keys, tls, ..*config };
                    self.bound_members();
                }
                Ok(Control::Keys(keys)) => self.take_keys(keys),
                Ok(Control::Tls(config)) => self.handshakes.serve_by(config),
                Ok(Control::Look(look, to)) => self.begin_look(look, to),
                _ => {}
            }
        }
        self.go_on_looking(io);
        let now = io.now();
        if self.drain.is_none() {
            return Turn::Continue;
        }
        let idle = self.is_idle();
        let Some(drain) = &mut self.drain else { return Turn::Continue };
        drain.look_at = now.plus_ms(LOOK_MS);
        let late = now >= drain.deadline;
        let farewell_ms = FAREWELL_MS.min(u64::from(self.config.drain_grace_ms) / 2);
        let idle = idle
            && (now >= *drain.farewell.get_or_insert(now.plus_ms(farewell_ms))
                || self.conns.is_empty());
        if (idle || late) && !drain.said_drained {
            drain.said_drained = true;
            self.mesh.drained();
        }
        // All said so after their last push, so what they pushed can be seen here.
        let over = self.mesh.all_drained() && self.mesh.is_quiet() && idle;
        let over = over || self.snapshots.stops();
        if (!over && !late) || (over && !self.last_snapshot(now)) {
            return Turn::Continue;
        }
        let open: Vec<_> = self.conns.iter().map(|conn| conn.id).collect();
        for &id in &open {
            self.say_farewell(id, io);
        }
        // A socket with room takes it at once, and the others have had their time.
        io.wait(Some(io.now()), &mut self.events);
        for id in open {
            self.close(id, io);
        }
        // Cancelled writes hold buffers until their last event.
        io.wait(Some(now.plus_ms(LOOK_MS)), &mut self.events);
        self.report();
        Turn::Stopped
    }

    /// The last bytes of a connection that has a way to say that it ends: a close of WebSocket,
    /// close_notify of TLS. Without them its client takes the end for a cut.
    fn say_farewell(&mut self, id: ConnId, io: &mut impl Io) {
        let Some(conn) = self.conns.get_mut(id.slot) else { return };
        let encrypts = conn.tls.as_ref().is_some_and(|tls| tls.is_open());
        if conn.state != ConnState::Open || !(encrypts || conn.ws.is_some()) {
            return;
        }
        conn.close_websocket(Some(CloseCode::GOING_AWAY), "", &mut self.codec);
        conn.state = ConnState::Closing;
        let mut slice = Slice { sends: 1, bytes: 0 };
        self.serve(id.slot, Priority::Realtime, &mut slice, io);
    }

    fn begin_drain(&mut self, io: &mut impl Io) {
        io.stop_accepting();
        let now = io.now();
        let grace_ms = self.config.drain_grace_ms;
        let open: Vec<_> = self
            .conns
            .iter()
            .filter(|conn| conn.state == ConnState::Open)
            .map(|conn| conn.id)
            .collect();
        let deadline = now.plus_ms(u64::from(grace_ms));
        self.drain =
            Some(Drain { deadline, farewell: None, look_at: now, told: 0, said_drained: false });
        for id in open {
            self.tell_drain(id);
        }
    }

    /// Tells a client of a shard that drains when to come back. Slots spread the herd.
    pub(super) fn tell_drain(&mut self, id: ConnId) {
        let Some(drain) = &mut self.drain else { return };
        let reconnect_after_ms = FIRST_SLOT_MS + drain.told / PER_SLOT;
        drain.told += 1;
        let frame = wire::Drain { grace_ms: self.config.drain_grace_ms, reconnect_after_ms };
        self.control(id, |out| frame.encode(out));
    }

    /// Nothing that was accepted is on its way any more.
    fn is_idle(&mut self) -> bool {
        let log_idle = self.log.is_poisoned() || self.log_is_idle();
        self.inbox.is_empty()
            && self.questions.is_empty()
            && self.held.is_empty()
            && self.backpressure.forwarded_bytes() == 0
            && log_idle
            && (self.log.is_poisoned() || self.cursors.is_empty())
            && self.roster_changes.is_empty()
            && self.acks_are_told()
            && self.reads.is_idle()
            && self.pace.is_empty()
            && self.queues.is_empty()
            && self.writes_in_flight == 0
            && self.mesh.is_flushed()
    }
}
